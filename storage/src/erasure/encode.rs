//! Making parity: for content that is stored for the first time, and for parity shards that were lost.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use cid::Cid;

use super::codec::{Encoder, Hashing, ShardBytes};
use super::{ErasureError, MAX_STRIPE_MEMORY, Plan, Shard, StripeSpec, shard_len};
use crate::layout::Layout;
use crate::{BlockSink, BlockSource, Bytes, dagpb, hash};

/// A stripe whose parity was made.
struct Coded {
    /// Positions of the blocks that have children.
    interior: Vec<u32>,
    /// Parity that was hashed since the stripe before, in order: some may be of earlier ones, and some of this one come
    /// with the next.
    parity: Vec<([u8; 32], Bytes)>,
}

/// Reads the planned content once, puts every parity block and the layout's own blocks into `sink`, and gives the
/// layout. `progress` is told the bytes of data read since the last call.
///
/// A stripe is read and coded while the parity of the one before goes into `sink`, unless the two would take more
/// memory than a stripe may.
///
/// # Errors
/// [`ErasureError::Missing`] for a block that is not in `source`; nothing is acknowledged by the sink then.
pub fn encode(
    source: &dyn BlockSource,
    root: &Cid,
    plan: &Plan,
    sink: &mut dyn BlockSink,
    progress: &mut dyn FnMut(u64),
) -> Result<Layout, ErasureError> {
    let mut interiors = Vec::with_capacity(plan.stripes().len());
    let mut names = Vec::new();
    std::thread::scope(|scope| {
        let (give, coded) = sync_channel(0);
        let (go_on, wait) = sync_channel(1);
        scope.spawn(move || code_all(source, plan, &give, &wait));
        for data in plan.stripes() {
            let Coded { interior, parity } =
                coded.recv().expect("every stripe up to an error is answered")?;
            let width = data.len() + usize::from(plan.m);
            let is_alone = 2 * width as u64 * shard_len(data) as u64 > MAX_STRIPE_MEMORY;
            if !is_alone {
                go_on.send(()).expect("the thread waits after every stripe");
            }
            for (digest, block) in parity {
                let cid = hash::cid_from_digest(hash::RAW, hash::SHA2_256, &digest);
                sink.put(&cid, block)?;
                names.push(cid);
            }
            if is_alone {
                go_on.send(()).expect("the thread waits after every stripe");
            }
            progress(data.iter().map(Shard::size).sum());
            interiors.push(interior);
        }
        Ok::<(), ErasureError>(())
    })?;
    let m = usize::from(plan.m);
    assert_eq!(names.len(), interiors.len() * m, "each stripe has all its parity");
    let mut names = names.into_iter();
    let stripes = plan.stripes().zip(interiors).map(|(data, interior)| StripeSpec {
        data: data.to_vec(),
        parity: names.by_ref().take(m).collect(),
        interior,
    });
    let (layout, blocks) = Layout::build(*root, plan.k, plan.m, stripes.collect())?;
    for (cid, block) in blocks {
        sink.put(&cid, block)?;
    }
    Ok(layout)
}

/// Reads and codes one stripe after another, each when it may. Ends after an error, or when nobody wants more.
fn code_all(
    source: &dyn BlockSource,
    plan: &Plan,
    give: &SyncSender<Result<Coded, ErasureError>>,
    go_on: &Receiver<()>,
) {
    let (mut encoder, mut hashing) = (Encoder::default(), Hashing::default());
    let mut code = |data: &[Shard], last| {
        let (bytes, interior) = read_stripe(source, data)?;
        let parity = encoder.parity(&bytes, usize::from(plan.m), shard_len(data))?;
        Ok(Coded { interior, parity: hashing.hash(parity, last) })
    };
    let mut stripes = plan.stripes().peekable();
    while let Some(data) = stripes.next() {
        let coded = code(data, stripes.peek().is_none());
        let is_last = coded.is_err();
        if give.send(coded).is_err() || is_last || go_on.recv().is_err() {
            return;
        }
    }
}

/// Makes the parity blocks of a stripe again from its whole data.
///
/// # Errors
/// [`ErasureError::Missing`] if data is lost (rebuild it first), [`ErasureError::False`] if the result is not the
/// parity that `spec` names.
pub fn regenerate(spec: &StripeSpec, source: &dyn BlockSource) -> Result<Vec<(Cid, Bytes)>, ErasureError> {
    let (bytes, _) = read_stripe(source, &spec.data)?;
    let parity = Encoder::default().parity(&bytes, spec.parity.len(), spec.shard_len())?;
    let mut blocks = Vec::with_capacity(parity.len());
    for ((digest, block), cid) in Hashing::default().hash(parity, true).into_iter().zip(&spec.parity) {
        if *cid != hash::cid_from_digest(hash::RAW, hash::SHA2_256, &digest) {
            return Err(ErasureError::False { cid: *cid });
        }
        blocks.push((*cid, block));
    }
    Ok(blocks)
}

/// The bytes of a stripe's data shards, and the positions of the blocks that have children.
fn read_stripe(
    source: &dyn BlockSource,
    data: &[Shard],
) -> Result<(Vec<ShardBytes>, Vec<u32>), ErasureError> {
    let mut stripe = Vec::with_capacity(data.len());
    let mut interior = Vec::new();
    let mut position = 0;
    for shard in data {
        let mut bytes = ShardBytes::default();
        let mut start = 0;
        for block in &shard.blocks {
            let cid = block.cid;
            let data = source.get(&cid)?.ok_or(ErasureError::Missing(cid))?;
            let listed = block.size as usize;
            if data.len() != listed {
                return Err(ErasureError::Size { cid, found: data.len(), listed });
            }
            if has_children(&cid, &data)? {
                interior.push(position);
            }
            bytes.push(start, data);
            start += listed;
            position += 1;
        }
        stripe.push(bytes);
    }
    Ok((stripe, interior))
}

/// Whether a block is an interior node of its DAG.
fn has_children(cid: &Cid, data: &Bytes) -> Result<bool, ErasureError> {
    let links = dagpb::links(cid, data)
        .map_err(|error| ErasureError::Node { cid: *cid, reason: error.to_string().into() })?;
    Ok(!links.is_empty())
}
