//! One task per peer that writes, and one per inbound stream that reads: bytes go from store to stream and from
//! stream to waiter without passing through the swarm.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::AsyncWriteExt;
use libp2p::swarm::Stream;
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio::time::timeout;

use super::engine::{Response, respond};
use super::handler::OpenError;
use super::hub::{Hub, Link};
use super::limits::{MAX_BLOCK, MAX_OPEN_ATTEMPTS, OPEN_TIMEOUT, RESPONSE_MAX_KIB};
use super::stats::add;
use super::wire::{FrameError, Message, Outgoing, Presence, Version, WantEntry, WantKind, read_frame};

/// Wants looked up for one response. A response rarely holds more blocks, and what is left over goes back.
const LOOKUPS: usize = 256;

/// Pause between attempts to open a stream, times the number of attempts.
const OPEN_PAUSE: Duration = Duration::from_millis(200);

/// A response that is ready to be written, with its share of the budget.
struct Prepared {
    response: Response,
    _budget: OwnedSemaphorePermit,
}

/// Writes to one peer until its link is closed.
pub(super) async fn run(hub: Arc<Hub>, link: Arc<Link>) {
    let mut writer = Writer { at: Place { hub, link }, stream: None, prepared: None };
    while !writer.at.link.is_closed() {
        // Those who want many blocks ask in one go: let them finish, and one message carries all.
        tokio::task::yield_now().await;
        let wants = writer.at.hub.with_desk(|desk| desk.client.take_outbox(&writer.at.link.peer));
        if wants.is_empty() && writer.prepared.is_none() {
            writer.prepared = writer.at.prepare().await;
        }
        if wants.is_empty() && writer.prepared.is_none() {
            if !writer.at.link.wants.lock().has_ready() {
                writer.at.link.wake.notified().await;
            }
        } else {
            writer.write(wants).await;
        }
    }
}

struct Writer {
    at: Place,
    stream: Option<(Stream, Version)>,
    prepared: Option<Prepared>,
}

/// Whom a task works for. Apart from the stream, which two futures may not share.
struct Place {
    hub: Arc<Hub>,
    link: Arc<Link>,
}

impl Place {
    /// Reads blocks for the wants that are due. `None` when there are none, or when none of them gets an answer.
    async fn prepare(&self) -> Option<Prepared> {
        let due = self.link.wants.lock().take(LOOKUPS);
        if due.is_empty() {
            return None;
        }
        // The hub keeps the semaphore open for as long as there are tasks.
        let mut budget = self.hub.budget.clone().acquire_many_owned(RESPONSE_MAX_KIB).await.ok()?;
        let (policy, peer, taken) = (self.hub.policy.clone(), self.link.peer, due.clone());
        let (reply, response) = oneshot::channel();
        let job = Box::new(move |source: &dyn btfs_storage::BlockSource| {
            // Nobody listens only when the peer's task is gone.
            let _ = reply.send(respond(due, &|cid| policy.may_serve(&peer, cid), source));
        });
        self.hub.reader.read(job).await;
        let Ok(response) = response.await else {
            self.link.wants.lock().put_back(&taken);
            tokio::time::sleep(OPEN_PAUSE).await;
            return None;
        };
        for (cid, error) in &response.read_errors {
            add(&self.hub.stats.read_errors, 1);
            tracing::warn!(%cid, %error, "a wanted block could not be read; answered as absent");
        }
        self.link.wants.lock().put_back(&response.rest);
        if response.is_silent() {
            response.settle(&mut self.link.wants.lock());
            return None;
        }
        let used = (response.bytes >> 10) + 1;
        drop(budget.split(budget.num_permits().saturating_sub(used)));
        Some(Prepared { response, _budget: budget })
    }

    fn count(&self, prepared: Option<&Prepared>) {
        for traffic in [&self.hub.stats.total, &*self.link.traffic] {
            add(&traffic.messages_sent, 1);
            if let Some(Prepared { response, .. }) = prepared {
                add(&traffic.blocks_sent, response.blocks());
                add(&traffic.bytes_sent, response.bytes);
            }
        }
    }

    async fn open_once(&self) -> Result<(Stream, Version), OpenError> {
        for opener in self.link.openers() {
            let (reply, opened) = oneshot::channel();
            if opener.send(reply).await.is_err() {
                continue;
            }
            return match timeout(OPEN_TIMEOUT, opened).await {
                Ok(Ok(result)) => result,
                Ok(Err(_)) => Err(OpenError::Failed("the connection closed".into())),
                Err(_) => Err(OpenError::Failed("timed out".into())),
            };
        }
        Err(OpenError::Failed("no connection".into()))
    }
}

impl Writer {
    /// Writes one message, and prepares the next response meanwhile.
    async fn write(&mut self, mut wants: Vec<WantEntry>) {
        let Some((mut stream, version)) = self.open().await else { return };
        let mut out = Outgoing::default();
        if version < Version::V1_2 {
            wants.retain(|entry| entry.cancel || entry.kind == WantKind::Block);
        }
        if !wants.is_empty() {
            out.wantlist(&wants, false);
        }
        let prepared = self.prepared.take();
        if let Some(prepared) = &prepared {
            prepared.response.encode(&mut out, version);
        }
        let result = if out.is_empty() {
            Ok(())
        } else {
            let (result, next) = tokio::join!(out.write(&mut stream), self.at.prepare());
            self.prepared = next;
            result
        };
        match result {
            Ok(()) => {
                self.at.link.touch();
                self.at.count(prepared.as_ref());
                if let Some(prepared) = prepared {
                    prepared.response.settle(&mut self.at.link.wants.lock());
                }
                self.stream = Some((stream, version));
            }
            Err(error) => {
                tracing::debug!(peer = %self.at.link.peer, %error, "a Bitswap stream broke; a new one is opened");
                if let Some(prepared) = prepared {
                    prepared.response.undo(&mut self.at.link.wants.lock());
                }
                self.at.hub.with_desk(|desk| desk.client.peer_reset(self.at.link.peer));
            }
        }
    }

    /// The open stream, or a new one. `None` when the peer cannot be talked to: its wants are forgotten then, and the
    /// client asks others.
    async fn open(&mut self) -> Option<(Stream, Version)> {
        if let Some(open) = self.stream.take() {
            return Some(open);
        }
        for attempt in 1..=MAX_OPEN_ATTEMPTS {
            match self.at.open_once().await {
                Ok((stream, version)) => {
                    self.at.hub.with_desk(|desk| {
                        desk.client.set_knows_have(&self.at.link.peer, version == Version::V1_2);
                    });
                    return Some((stream, version));
                }
                Err(error) => {
                    tracing::debug!(peer = %self.at.link.peer, %error, attempt, "no Bitswap stream");
                    if matches!(error, OpenError::Unsupported) || self.at.link.is_closed() {
                        break;
                    }
                }
            }
            tokio::time::sleep(OPEN_PAUSE * attempt).await;
        }
        self.prepared = None;
        self.at.link.wants.lock().clear();
        if !self.at.link.is_closed() {
            self.at.hub.with_desk(|desk| desk.client.peer_mute(self.at.link.peer, Instant::now()));
        }
        None
    }
}

/// Reads one inbound stream to its end.
pub(super) async fn read(hub: Arc<Hub>, link: Arc<Link>, mut stream: Stream) {
    loop {
        let frame = match read_frame(&mut stream, &link.frames).await {
            Ok(Some(frame)) => frame,
            Ok(None) => {
                // A stream whose other half is finished has no use; whether closing ours succeeds does not matter.
                let _ = stream.close().await;
                break;
            }
            Err(error) => {
                refuse(&hub, &link, &error);
                break;
            }
        };
        let (bytes, _permit) = frame;
        let size = bytes.len();
        match Message::decode(bytes) {
            Ok(message) => take_in(&hub, &link, message, size),
            Err(error) => {
                refuse(&hub, &link, &error.into());
                break;
            }
        }
    }
    link.inbound.fetch_sub(1, Ordering::AcqRel);
}

/// A frame could not be read: the stream is reset by being dropped.
fn refuse(hub: &Hub, link: &Link, error: &FrameError) {
    tracing::debug!(peer = %link.peer, %error, "a Bitswap stream was reset");
    if matches!(error, FrameError::Oversize(_) | FrameError::Malformed(_)) {
        add(&hub.stats.refused_frames, 1);
        hub.with_desk(|desk| desk.client.misbehaved(link.peer, Instant::now()));
    }
}

/// Takes in one message of `size` bytes.
fn take_in(hub: &Hub, link: &Link, message: Message, size: usize) {
    link.touch();
    let asked = message.wants.iter().filter(|entry| !entry.cancel);
    let wants = asked.inspect(|entry| hub.policy.wanted(&link.peer, &entry.cid)).count();
    for traffic in [&hub.stats.total, &*link.traffic] {
        add(&traffic.messages_received, 1);
        add(&traffic.wants_received, wants);
    }
    let mut dropped = message.dropped;
    if message.full || !message.wants.is_empty() {
        let applied = link.wants.lock().apply(&message.wants, message.full);
        dropped += applied.dropped;
        if applied.accepted > 0 {
            link.wake.notify_one();
        }
    }
    if dropped > 0 {
        add(&hub.stats.dropped_entries, dropped as usize);
    }
    if !message.presences.is_empty() {
        hub.with_desk(|desk| {
            let now = Instant::now();
            for (cid, presence) in &message.presences {
                desk.client.on_presence(link.peer, *cid.hash(), *presence == Presence::Have, now);
            }
        });
    }
    for (prefix, data) in message.blocks {
        match prefix.key_of(&data).filter(|_| data.len() <= MAX_BLOCK) {
            Some(key) => hub.deliver(link, key, unfold(data, size)),
            None => {
                add(&hub.stats.unrequested_blocks, 1);
                hub.with_desk(|desk| desk.client.misbehaved(link.peer, Instant::now()));
            }
        }
    }
}

/// A block is a slice of its frame and keeps all of it alive: small ones are copied out of large frames, so that a
/// kept block cannot cost many times its size.
fn unfold(block: Bytes, frame: usize) -> Bytes {
    if block.len() < frame / 8 { Bytes::copy_from_slice(&block) } else { block }
}
