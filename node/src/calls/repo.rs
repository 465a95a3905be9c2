//! The local store: what it holds, its space, its collector, its health, copies of it.

use std::path::PathBuf;
use std::sync::Arc;

use axum::Router;
use btfs_storage::{Class, GcOptions, GcPhase, GcProgress, Incomplete, Rebuilt, Store};
use serde::{Deserialize, Serialize};

use super::pins::{PinInfo, pin_info};
use crate::api::call::{Answered, ApiError, Progress, route};
use crate::call;
use crate::calls::absolute;
use crate::node::Node;
use crate::parity::{self, Repaired};
use crate::retrieve::{RetrieveError, repair};

/// Incomplete pins told in one answer; more are counted.
const INCOMPLETE: usize = 1000;

/// Asks what the store holds.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct RepoStatRequest {}

/// What the store holds.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RepoStatAnswer {
    /// Distinct blocks.
    pub blocks: u64,
    /// Bytes of them.
    pub live_bytes: u64,
    /// Of these, the user's own.
    pub own_bytes: u64,
    /// Of these, kept for renters.
    pub hosted_bytes: u64,
    /// Of these, fetched and not pinned.
    pub cache_bytes: u64,
    /// Promised to renters and not yet here.
    pub reserved_bytes: u64,
    /// Most bytes of own data; absent: the disk is the limit.
    pub own_quota_bytes: Option<u64>,
    /// Most bytes kept for renters.
    pub hosted_quota_bytes: Option<u64>,
    /// Most bytes of fetched data.
    pub cache_quota_bytes: Option<u64>,
    /// Damaged blocks that were put aside.
    pub quarantined_blocks: u64,
    /// Bytes of the database files.
    pub disk_bytes: u64,
    /// Bytes of them that hold no live block: index, log, and what no collection has returned yet.
    pub overhead_bytes: u64,
    /// Free on the disk.
    pub free_bytes: u64,
    /// Of these, never used.
    pub reserve_bytes: u64,
    /// Pins of all kinds.
    pub pins: u64,
    /// Memory that a daemon may take for blocks that are read again and again; 0 without a daemon.
    pub hot_capacity_bytes: u64,
    /// Bytes of blocks in it.
    pub hot_bytes: u64,
    /// Blocks answered from it since the daemon's start.
    pub hot_hits: u64,
    /// Blocks read from the database since then.
    pub hot_misses: u64,
    /// Whether a collection was broken off; the daemon goes on with it, as does `repo gc`.
    pub unfinished_collection: bool,
    /// Blocks that daemons have read in this round of looking for damage.
    pub scrubbed_blocks: u64,
    /// Their bytes.
    pub scrubbed_bytes: u64,
    /// When the last whole round ended, in unix seconds.
    pub last_scrub_ended: Option<u64>,
}

call!(RepoStatRequest => RepoStatAnswer, "repo/stat");

/// Deletes what no pin keeps.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct GcRequest {
    /// Only count what would go.
    pub dry_run: bool,
    /// Leave space that takes much writing to return until that is worth it.
    pub lazy: bool,
}

/// What was deleted.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GcAnswer {
    /// How many blocks; in a dry run, how many would be.
    pub blocks_deleted: u64,
    /// How many bytes.
    pub bytes_deleted: u64,
    /// Blocks that were looked at.
    pub blocks_examined: u64,
    /// Pins that had expired and were removed.
    pub pins_expired: u64,
    /// Bytes by which the files shrank.
    pub bytes_returned: u64,
    /// Whether nothing was changed.
    pub dry_run: bool,
    /// Whether a damaged table keeps space from being returned.
    pub kept_by_damage: bool,
}

call!(GcRequest => GcAnswer, "repo/gc");

/// Reads and hashes everything.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct VerifyRequest {
    /// Build databases with damaged tables anew, rebuild what is damaged or lacking from parity that is here, and fetch the
    /// rest from the networks.
    pub repair: bool,
    /// At most so many bytes a second; absent: as fast as it goes.
    pub bytes_per_second: Option<u64>,
}

/// What is wrong.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct VerifyAnswer {
    /// Blocks that were read and hashed.
    pub blocks_checked: u64,
    /// Their bytes.
    pub bytes_checked: u64,
    /// Blocks that are damaged and put aside, found now or before.
    pub blocks_damaged: u64,
    /// Blocks that the disk did not give, left as they are.
    pub blocks_unreadable: u64,
    /// Blocks that are well, but whose index entry was damaged and is written anew.
    pub blocks_reindexed: u64,
    /// Data directories whose databases have a damaged table, which keeps space from being returned.
    pub damaged_directories: Vec<PathBuf>,
    /// Those that were built anew.
    pub rebuilt: Vec<Rebuilt>,
    /// Blocks that were rebuilt from parity that is here, lost parity included.
    pub blocks_from_parity: u64,
    /// Why some of it could not be used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parity_error: Option<String>,
    /// Pins that lack blocks, at most a thousand of them.
    pub incomplete: Vec<IncompletePin>,
    /// How many there are.
    pub incomplete_pins: u64,
    /// How many of them are whole again.
    pub repaired_pins: u64,
    /// Whether anything could be fetched.
    pub online: bool,
}

/// A pin that lacks blocks.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct IncompletePin {
    /// The pin.
    pub pin: PinInfo,
    /// Blocks that it lacks; what hangs below an absent node is not known.
    pub lacks: Vec<String>,
    /// Whether it was made whole.
    pub repaired: bool,
    /// Why not, if that was tried.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

call!(VerifyRequest => VerifyAnswer, "repo/verify");

/// Copies the repo while it is in use.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct BackupRequest {
    /// Absolute path of a directory that is empty or not there.
    pub target: PathBuf,
}

/// What was copied.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BackupAnswer {
    /// Where.
    pub path: PathBuf,
    /// Blocks.
    pub blocks: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Pins.
    pub pins: u64,
    /// Blocks that `add --nocopy` left in their files, and which are not in the copy.
    pub blocks_in_files: u64,
    /// Their bytes.
    pub bytes_in_files: u64,
}

call!(BackupRequest => BackupAnswer, "repo/backup");

pub(super) fn routes(router: Router<Arc<Node>>) -> Router<Arc<Node>> {
    let router = route::<RepoStatRequest, _, _>(router, |node, _, _| async move { repo_stat(&node).await });
    let router = route::<GcRequest, _, _>(router, |node, request, progress| async move {
        gc(&node, request, progress).await
    });
    let router = route::<VerifyRequest, _, _>(router, verify);
    route::<BackupRequest, _, _>(router, |node, request, _| async move { backup(&node, request).await })
}

/// What the store holds.
pub async fn repo_stat(node: &Node) -> Answered<RepoStatAnswer> {
    let read = node.store.run(|store| {
        Ok::<_, ApiError>((store.stat()?, store.has_unfinished_collection()?, store.scrub_round()?))
    });
    let (stat, unfinished_collection, scrub) = read.await?;
    let hot = node.store.hot_stat();
    let of = |class: Class| stat.classes.iter().find(|of| of.class == class);
    let bytes = |class| of(class).map_or(0, |of| of.bytes);
    let quota = |class| of(class).and_then(|of| of.quota_bytes);
    Ok(RepoStatAnswer {
        blocks: stat.blocks,
        live_bytes: stat.bytes,
        own_bytes: bytes(Class::Own),
        hosted_bytes: bytes(Class::Hosted),
        cache_bytes: bytes(Class::Cache),
        reserved_bytes: stat.classes.iter().map(|of| of.reserved_bytes).sum(),
        own_quota_bytes: quota(Class::Own),
        hosted_quota_bytes: quota(Class::Hosted),
        cache_quota_bytes: quota(Class::Cache),
        quarantined_blocks: stat.quarantined_blocks,
        disk_bytes: stat.disk_bytes,
        overhead_bytes: stat.overhead_bytes,
        free_bytes: stat.disk_free_bytes,
        reserve_bytes: stat.reserve_bytes,
        pins: stat.pins,
        hot_capacity_bytes: hot.capacity_bytes,
        hot_bytes: hot.bytes,
        hot_hits: hot.hits,
        hot_misses: hot.misses,
        unfinished_collection,
        scrubbed_blocks: scrub.checked,
        scrubbed_bytes: scrub.bytes,
        last_scrub_ended: scrub.last_ended,
    })
}

/// Deletes what no pin keeps, on a thread of its own: it may take long.
pub async fn gc(node: &Node, request: GcRequest, progress: Progress) -> Answered<GcAnswer> {
    let store = node.store.clone();
    let options = GcOptions { dry_run: request.dry_run, thorough: !request.lazy };
    let work = move || {
        store.gc_with(options, &mut |GcProgress { phase, done, total }| {
            let what = match phase {
                GcPhase::Mark => "marking blocks",
                GcPhase::Sweep => "looking through blocks",
                GcPhase::Reclaim => "returning space",
            };
            progress.step(what, done, Some(total));
        })
    };
    let report = tokio::task::spawn_blocking(work).await??;
    Ok(GcAnswer {
        blocks_deleted: report.freed_blocks,
        bytes_deleted: report.freed_bytes,
        blocks_examined: report.examined_blocks,
        pins_expired: report.expired_pins,
        bytes_returned: report.returned_bytes,
        dry_run: request.dry_run,
        kept_by_damage: report.kept_by_damage,
    })
}

/// Reads and hashes everything, names what lacks something, and rebuilds or fetches that if asked to.
pub async fn verify(node: Arc<Node>, request: VerifyRequest, progress: Progress) -> Answered<VerifyAnswer> {
    if request.bytes_per_second == Some(0) {
        return Err(ApiError::bad("a rate of 0 bytes a second would never end; leave it out for no limit"));
    }
    let (store, told) = (node.store.clone(), progress.clone());
    let work = move || look_through(&store, &request, &told).map(|found| (found, request));
    let ((mut answer, incomplete), request) = tokio::task::spawn_blocking(work).await??;
    answer.online = node.host().is_ok();
    for found in incomplete {
        let mut told = IncompletePin {
            pin: pin_info(&found.pin),
            lacks: found.lacks.iter().map(ToString::to_string).collect(),
            repaired: false,
            error: None,
        };
        if request.repair {
            // It may be whole already, by parity.
            match (repair(&node, &found.pin.id, &progress).await, node.host()) {
                (Ok(()), _) => told.repaired = true,
                (Err(RetrieveError::Offline { .. }), Err(offline)) => told.error = Some(offline.message),
                (Err(error), _) => told.error = Some(error.to_string()),
            }
        }
        answer.repaired_pins += u64::from(told.repaired);
        answer.incomplete.push(told);
    }
    Ok(answer)
}

/// The part of verifying that blocks: what was found, and the pins that lack something.
fn look_through(
    store: &Store,
    request: &VerifyRequest,
    progress: &Progress,
) -> Result<(VerifyAnswer, Vec<Incomplete>), ApiError> {
    let total = store.stat()?.bytes;
    let verified = store.verify(request.bytes_per_second, &mut |bytes| {
        progress.step("verifying", bytes, Some(total.max(bytes)));
        !progress.is_unheard()
    })?;
    let rebuilt = match request.repair && !progress.is_unheard() {
        true => store.rebuild_damaged(&mut |bytes, total| {
            progress.step("building anew", bytes, Some(total));
            !progress.is_unheard()
        })?,
        false => Vec::new(),
    };
    let mut incomplete = Vec::new();
    let incomplete_pins = store.examine(&mut |found| {
        if incomplete.len() < INCOMPLETE {
            incomplete.push(found);
        }
    })?;
    let blocks_damaged = store.quarantined_blocks()?;
    let (from_parity, failed) = match request.repair && !progress.is_unheard() {
        true => parity::mend(store, &parity::layouts(store)?, progress),
        false => (Vec::new(), None),
    };
    let answer = VerifyAnswer {
        blocks_checked: verified.checked,
        bytes_checked: verified.bytes,
        blocks_damaged,
        blocks_unreadable: verified.unreadable,
        blocks_reindexed: verified.reindexed,
        damaged_directories: store.damaged_directories()?,
        rebuilt,
        blocks_from_parity: from_parity.iter().map(Repaired::blocks).sum(),
        parity_error: failed.map(|error| error.to_string()),
        incomplete: Vec::new(),
        incomplete_pins,
        repaired_pins: 0,
        online: false,
    };
    Ok((answer, incomplete))
}

/// Copies the repo: databases, settings, network and key, everything that makes the node what it is.
pub async fn backup(node: &Node, request: BackupRequest) -> Answered<BackupAnswer> {
    let target = request.target;
    absolute(&target)?;
    let (store, repo, path) = (node.store.clone(), node.repo.clone(), target.clone());
    let report = tokio::task::spawn_blocking(move || {
        let report = store.backup(&path)?;
        repo.copy_files_to(&path)?;
        Ok::<_, ApiError>(report)
    });
    let report = report.await??;
    Ok(BackupAnswer {
        path: target,
        blocks: report.blocks,
        bytes: report.bytes,
        pins: report.pins,
        blocks_in_files: report.blocks_in_files,
        bytes_in_files: report.bytes_in_files,
    })
}
