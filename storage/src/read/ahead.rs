//! Files, read asynchronously and ahead of the reader.
//!
//! An [`AheadReader`] keeps a window of leaves under way, each on a task of its own, so that they come in while the
//! reader is busy with those before. The window begins with one leaf and doubles as long as reading goes straight on; a
//! reader of a [`range`](AheadReader::range) has the whole window at once, and nothing beyond
//! is asked for. A seek within the window keeps what is in it.

use std::collections::VecDeque;
use std::future::Future;
use std::io::{self, SeekFrom};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use cid::Cid;
use futures::future::BoxFuture;
use futures::{FutureExt, Stream};
use tokio::io::{AsyncRead, AsyncSeek, ReadBuf};
use tokio::task::JoinHandle;

use super::file::{file_node, position_of};
use super::{LeafPlan, LeafSlice, ReadError};
use crate::unixfs::FileNode;
use crate::{BlockSource, StoreError, hash};

/// Bytes of leaves that may be under way: enough to hide a network's delay and to keep a store's threads busy, little
/// enough to have for each of many readers. A leaf may always be, however long.
const WINDOW: u64 = 16 << 20;
/// Leaves that may be, however short.
const MAX_AHEAD: usize = 64;

/// Where the blocks of a file come from, in their own time: a store, or a store and the networks.
pub trait Blocks: Clone + Send + Sync + 'static {
    /// Why one could not be had.
    type Error: From<ReadError> + std::error::Error + Send + Sync + 'static;

    /// A leaf.
    fn leaf(&self, cid: Cid) -> impl Future<Output = Result<Bytes, Self::Error>> + Send;

    /// A node above leaves.
    fn node(&self, cid: Cid) -> impl Future<Output = Result<Bytes, Self::Error>> + Send {
        self.leaf(cid)
    }
}

/// A file that is read ahead of its reader. Must be used within a tokio runtime.
///
/// After an error it is where it was, and reading can be tried again. Errors of [`AsyncRead`] carry the error of
/// [`Blocks`] inside; [`poll_bytes`](Self::poll_bytes) gives it as it is, and the bytes without copying.
pub struct AheadReader<B: Blocks> {
    blocks: B,
    root: Cid,
    node: Arc<FileNode>,
    /// Where it reads to, at most.
    end: u64,
    position: u64,
    /// The bytes at `position`, arrived and not handed out.
    current: Bytes,
    /// Leaves behind `current` that are not under way yet.
    plan: LeafPlan,
    /// The node that the plan needs to go on.
    wanted: Option<BoxFuture<'static, Result<Held, B::Error>>>,
    held: Held,
    under_way: VecDeque<UnderWay<B::Error>>,
    /// Bytes of them.
    bytes: u64,
    /// How many bytes may be.
    window: u64,
    /// Why no more leaves can be had; told once those before were handed out.
    failed: Option<B::Error>,
    planned: bool,
}

/// A leaf under way.
struct UnderWay<E> {
    slice: LeafSlice,
    /// Bytes of it that were skipped by seeking.
    skip: u64,
    task: Task<Result<Bytes, E>>,
}

/// A task that ends with whoever waits for it.
enum Task<T> {
    Done(Option<T>),
    Running(JoinHandle<T>),
}

impl<T> Drop for Task<T> {
    fn drop(&mut self) {
        if let Task::Running(handle) = self {
            handle.abort();
        }
    }
}

impl<T> Task<T> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<T> {
        match self {
            Task::Done(value) => Poll::Ready(value.take().expect("a task is not waited for again")),
            Task::Running(handle) => match ready!(handle.poll_unpin(cx)) {
                Ok(value) => Poll::Ready(value),
                // Only its own panic can end it: it is aborted by its drop alone.
                Err(error) => std::panic::resume_unwind(error.into_panic()),
            },
        }
    }
}

/// A source of at most one block.
#[derive(Default)]
struct Held(Option<(Cid, Bytes)>);

impl BlockSource for Held {
    fn get(&self, cid: &Cid) -> Result<Option<Bytes>, StoreError> {
        if let Some(data) = hash::inline(cid) {
            return Ok(Some(Bytes::copy_from_slice(data)));
        }
        Ok(self.0.as_ref().filter(|(held, _)| held.hash() == cid.hash()).map(|(_, block)| block.clone()))
    }
    fn has(&self, cid: &Cid) -> Result<bool, StoreError> {
        Ok(self.get(cid)?.is_some())
    }
    fn block_size(&self, cid: &Cid) -> Result<Option<u64>, StoreError> {
        Ok(self.get(cid)?.map(|block| block.len() as u64))
    }
}

impl<B: Blocks> AheadReader<B> {
    /// Opens the file at `cid`; gets its root block.
    pub async fn open(blocks: B, cid: &Cid) -> Result<AheadReader<B>, B::Error> {
        let held = match hash::inline(cid) {
            Some(_) => Held::default(),
            None => Held(Some((*cid, blocks.node(*cid).await?))),
        };
        let node = Arc::new(file_node(&held, cid)?);
        let end = node.size;
        Ok(AheadReader {
            plan: LeafPlan::over(*cid, node.clone(), 0..end),
            blocks,
            root: *cid,
            node,
            end,
            position: 0,
            current: Bytes::new(),
            wanted: None,
            held: Held::default(),
            under_way: VecDeque::new(),
            bytes: 0,
            window: 0,
            failed: None,
            planned: false,
        })
    }

    /// Content bytes of the file.
    pub fn size(&self) -> u64 {
        self.node.size
    }

    /// Reads no further than `end`, and as far ahead as may be.
    fn until(mut self, end: u64) -> AheadReader<B> {
        self.end = end.min(self.size());
        self.restart(self.position);
        self.window = WINDOW;
        self
    }

    /// Forgets what is under way and begins anew at `position`.
    fn restart(&mut self, position: u64) {
        self.position = position;
        self.current = Bytes::new();
        self.plan = LeafPlan::over(self.root, self.node.clone(), position..self.end);
        self.wanted = None;
        self.under_way.clear();
        self.bytes = 0;
        self.failed = None;
        self.planned = false;
    }

    /// Starts leaves until the window is full.
    fn look_ahead(&mut self, cx: &mut Context<'_>) {
        while !self.planned
            && self.under_way.len() < MAX_AHEAD
            && (self.under_way.is_empty() || self.bytes < self.window)
        {
            if let Some(wanted) = &mut self.wanted {
                match wanted.poll_unpin(cx) {
                    Poll::Pending => return,
                    Poll::Ready(Ok(held)) => self.held = held,
                    Poll::Ready(Err(error)) => return self.fail(error),
                }
                self.wanted = None;
            }
            match self.plan.next(&self.held) {
                Ok(Some(slice)) => self.start(slice),
                Ok(None) => self.planned = true,
                Err(ReadError::Missing(cid)) => {
                    let blocks = self.blocks.clone();
                    let node = async move { Ok(Held(Some((cid, blocks.node(cid).await?)))) };
                    self.wanted = Some(node.boxed());
                }
                Err(error) => self.fail(error.into()),
            }
        }
    }

    fn fail(&mut self, error: B::Error) {
        self.failed = Some(error);
        self.planned = true;
    }

    fn start(&mut self, slice: LeafSlice) {
        let task = if slice.content.is_some() || hash::inline(&slice.cid).is_some() {
            Task::Done(Some(slice.bytes(&Held::default()).map_err(B::Error::from)))
        } else {
            let (blocks, leaf) = (self.blocks.clone(), slice.clone());
            // A task of its own: blocks come in though the reader pauses.
            Task::Running(tokio::spawn(async move {
                let block = blocks.leaf(leaf.cid).await?;
                Ok(leaf.bytes(&Held(Some((leaf.cid, block))))?)
            }))
        };
        self.bytes += slice.leaf_len;
        self.under_way.push_back(UnderWay { slice, skip: 0, task });
    }

    /// Makes `current` hold the bytes at the position; `false` at the end.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, B::Error>> {
        if !self.current.is_empty() {
            return Poll::Ready(Ok(true));
        }
        self.look_ahead(cx);
        let Some(first) = self.under_way.front_mut() else {
            return match self.failed.take() {
                Some(error) => {
                    self.restart(self.position);
                    Poll::Ready(Err(error))
                }
                None if self.planned => Poll::Ready(Ok(false)),
                None => Poll::Pending,
            };
        };
        match ready!(first.task.poll(cx)) {
            Ok(bytes) => {
                self.current = bytes.slice(first.skip as usize..);
                let leaf_len = first.slice.leaf_len;
                self.under_way.pop_front();
                self.bytes -= leaf_len;
                self.window = (2 * self.window.max(leaf_len)).min(WINDOW);
                self.look_ahead(cx);
                Poll::Ready(Ok(true))
            }
            Err(error) => {
                self.restart(self.position);
                Poll::Ready(Err(error))
            }
        }
    }

    /// Bytes from the current position on, as many as lie together, or `None` at the end.
    pub fn poll_bytes(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, B::Error>>> {
        match ready!(self.poll_fill(cx)) {
            Ok(true) => {
                let bytes = std::mem::take(&mut self.current);
                self.position += bytes.len() as u64;
                Poll::Ready(Some(Ok(bytes)))
            }
            Ok(false) => Poll::Ready(None),
            Err(error) => Poll::Ready(Some(Err(error))),
        }
    }

    /// Up to `length` bytes from `offset` as a stream.
    pub fn range(
        mut self,
        offset: u64,
        length: u64,
    ) -> impl Stream<Item = Result<Bytes, B::Error>> + Send + 'static {
        self.skip_to(offset);
        let mut reader = self.until(offset.saturating_add(length));
        futures::stream::poll_fn(move |cx| reader.poll_bytes(cx))
    }

    /// Goes to `position`, past what lies before it in the window.
    fn skip_to(&mut self, position: u64) {
        let at_hand = self.position + self.current.len() as u64;
        let window_end =
            self.under_way.back().map_or(at_hand, |last| last.slice.file_offset + last.slice.len);
        if position < self.position || position >= window_end || self.failed.is_some() {
            self.window = 0;
            return self.restart(position);
        }
        if position < at_hand {
            let _ = self.current.split_to((position - self.position) as usize);
        } else {
            self.current = Bytes::new();
            while let Some(first) = self.under_way.front_mut() {
                let slice = &first.slice;
                if position < slice.file_offset + slice.len {
                    first.skip = first.skip.max(position.saturating_sub(slice.file_offset));
                    break;
                }
                self.bytes -= slice.leaf_len;
                self.under_way.pop_front();
            }
        }
        self.position = position;
    }
}

/// Nothing in it is ever pinned where it is.
impl<B: Blocks> Unpin for AheadReader<B> {}

impl<B: Blocks> AsyncRead for AheadReader<B> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if buffer.remaining() > 0 && ready!(self.poll_fill(cx)).map_err(io::Error::other)? {
            let len = buffer.remaining().min(self.current.len());
            buffer.put_slice(&self.current.split_to(len));
            self.position += len as u64;
        }
        Poll::Ready(Ok(()))
    }
}

impl<B: Blocks> AsyncSeek for AheadReader<B> {
    fn start_seek(mut self: Pin<&mut Self>, to: SeekFrom) -> io::Result<()> {
        let position = position_of(to, self.position, self.size())?;
        if position != self.position {
            self.skip_to(position);
        }
        Ok(())
    }

    fn poll_complete(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<u64>> {
        Poll::Ready(Ok(self.position))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use proptest::prelude::*;
    use tokio::io::{AsyncReadExt, AsyncSeekExt};
    use tokio::sync::Semaphore;

    use super::*;
    use crate::import::{Profile, import_reader};
    use crate::testing::MemoryBlocks;

    /// Blocks that come one by one, as they are let.
    #[derive(Clone)]
    struct Slow {
        blocks: Arc<MemoryBlocks>,
        let_go: Arc<Semaphore>,
        asked: Arc<AtomicU64>,
    }

    impl Blocks for Slow {
        type Error = ReadError;

        async fn leaf(&self, cid: Cid) -> Result<Bytes, ReadError> {
            self.asked.fetch_add(1, Ordering::SeqCst);
            self.let_go.acquire().await.expect("open").forget();
            self.node(cid).await
        }

        async fn node(&self, cid: Cid) -> Result<Bytes, ReadError> {
            // Nodes take a moment as well.
            tokio::task::yield_now().await;
            self.blocks.get(&cid)?.ok_or(ReadError::Missing(cid))
        }
    }

    fn slow(content: &[u8], profile: &Profile, permits: usize) -> (Slow, Cid) {
        let mut blocks = MemoryBlocks::default();
        let root = import_reader(content, profile, &mut blocks, &mut |_| {}).unwrap().root;
        let let_go = Arc::new(Semaphore::new(permits));
        (Slow { blocks: Arc::new(blocks), let_go, asked: Arc::default() }, root)
    }

    fn content(len: usize) -> Vec<u8> {
        (0..len).map(|i| (i ^ (i >> 8).wrapping_mul(31)) as u8).collect()
    }

    fn run<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
        #[test]
        fn a_file_reads_as_its_bytes(
            len in 0usize..3000,
            chunk in 1usize..40,
            width in 2usize..6,
            v0 in any::<bool>(),
            reads in prop::collection::vec((0u64..3200, 0usize..300), 1..20),
        ) {
            let profile = Profile::tiny(chunk, width, if v0 { Profile::V0_2015 } else { Profile::V1_2025 });
            let content = content(len);
            let (blocks, root) = slow(&content, &profile, Semaphore::MAX_PERMITS);
            let part = |at: u64, count: usize| {
                let start = (at as usize).min(len);
                content[start..(start + count).min(len)].to_vec()
            };
            run(async {
                let mut reader = AheadReader::open(blocks.clone(), &root).await.unwrap();
                prop_assert_eq!(reader.size(), len as u64);
                for (at, count) in reads {
                    prop_assert_eq!(reader.seek(SeekFrom::Start(at)).await.unwrap(), at);
                    let mut got = Vec::new();
                    (&mut reader).take(count as u64).read_to_end(&mut got).await.unwrap();
                    prop_assert_eq!(got, part(at, count));
                    let stream = AheadReader::open(blocks.clone(), &root).await.unwrap().range(at, count as u64);
                    let got: Vec<Bytes> = futures::TryStreamExt::try_collect(stream).await.unwrap();
                    prop_assert_eq!(got.concat(), part(at, count));
                }
                Ok(())
            })?;
        }
    }

    /// Gives other tasks the chance to do all they can.
    async fn settle() {
        for _ in 0..1000 {
            tokio::task::yield_now().await;
        }
    }

    #[test]
    fn the_window_is_bounded_and_grows_with_reading() {
        let content = content(400 * 100);
        let (blocks, root) = slow(&content, &Profile::tiny(100, 500, Profile::V1_2025), 0);
        let asked = || blocks.asked.load(Ordering::SeqCst);
        run(async {
            let mut reader = AheadReader::open(blocks.clone(), &root).await.unwrap();
            let mut byte = [0; 1];
            let waits = futures::poll!(Box::pin(reader.read(&mut byte))).is_pending();
            settle().await;
            assert!(waits && asked() == 1, "one leaf at first, not {}", asked());
            blocks.let_go.add_permits(100);
            let mut all = vec![0; 10_000];
            reader.read_exact(&mut all).await.unwrap();
            assert_eq!(all, content[..10_000]);
            settle().await;
            assert_eq!(asked(), 100 + MAX_AHEAD as u64, "{MAX_AHEAD} short ones at most");
            // What was asked for is still wanted after a short step, and not after a long one.
            reader.seek(SeekFrom::Current(1000)).await.unwrap();
            blocks.let_go.add_permits(1000);
            reader.read_exact(&mut byte).await.unwrap();
            settle().await;
            assert_eq!((byte[0], asked()), (content[11_000], 100 + MAX_AHEAD as u64 + 11));
            let before = asked();
            let stream = AheadReader::open(blocks.clone(), &root).await.unwrap().range(0, 250);
            let got: Vec<Bytes> = futures::TryStreamExt::try_collect(stream).await.unwrap();
            assert_eq!((got.concat(), asked()), (content[..250].to_vec(), before + 3));
        });
    }

    #[test]
    fn a_failed_read_can_be_tried_again() {
        let content = content(1000);
        let (blocks, root) = slow(&content, &Profile::tiny(100, 3, Profile::V1_2025), Semaphore::MAX_PERMITS);
        let whole = blocks.blocks.clone();
        run(async {
            let mut without = (*whole).clone();
            let lost = hash::cid_v1(hash::RAW, &content[300..400]);
            without.remove(&lost);
            let blocks = Slow { blocks: Arc::new(without), ..blocks };
            let mut reader = AheadReader::open(blocks, &root).await.unwrap();
            let mut start = vec![0; 300];
            reader.read_exact(&mut start).await.unwrap();
            assert_eq!(start, content[..300]);
            for _ in 0..2 {
                let error = reader.read(&mut [0; 10]).await.unwrap_err();
                assert!(error.to_string().contains(&lost.to_string()), "{error}");
            }
            reader.blocks.blocks = whole;
            let mut rest = Vec::new();
            reader.read_to_end(&mut rest).await.unwrap();
            assert_eq!(rest, content[300..]);
        });
    }
}
