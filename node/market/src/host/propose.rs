//! Step 1: a draft comes in with its block list; space is set aside for a while.
//!
//! Lists arrive in pages and are held in memory until they are whole; how many may be under way is bounded per peer
//! and in all, and the oldest give way. What was answered with `Reserved` is durable.

use std::time::{Duration, Instant};

use btfs_ledger::{B256, PublicKey};
use btfs_storage::blocklist::{BlockList, MAX_ENTRIES, MAX_ENTRY};
use btfs_storage::db::Batch;
use btfs_storage::{Cid, Class, Pin, PinKind, Store};

use super::{HostAgreement, HostService, internal, pin_id, records, used_bytes};
use crate::messages::{LIST_PAGE, Proposal, Refusal, RentalReply};
use crate::pages;
use crate::ports::wall_clock;
use crate::states::HostState;
use crate::terms;

/// Unsigned agreements of one peer.
const MAX_PER_PEER: usize = 4;
/// Unsigned agreements in all.
const MAX_UNSIGNED: usize = 256;
/// Agreements on record that still hold space: bounds every scan.
const MAX_LIVE: usize = 100_000;
/// Lists under way in all; with at most 5.6 MB each they fit a small node's memory.
const MAX_INCOMING: usize = 8;
/// Lists under way of one peer.
const MAX_INCOMING_PER_PEER: usize = 2;
/// A list that did not get a page for so long gives way.
const INCOMING_LIFE: Duration = Duration::from_secs(60);
/// Wall-clock seconds that an unsigned agreement keeps its space at least.
pub(super) const RESERVATION: u64 = 3600;
/// Bytes a second at which a transfer must at least go on to keep its reservation.
const SLOWEST_TRANSFER: u64 = 64 << 10;
/// Share of the free space that unsigned agreements of one peer may hold beyond their first.
const RESERVED_SHARE: u64 = 10;

/// A proposal whose list is still coming.
pub(crate) struct Incoming {
    peer: PublicKey,
    proposal: Proposal,
    list: Vec<u8>,
    next: u32,
    touched: Instant,
}

impl HostService {
    /// `propose`: terms and the first page of the list.
    pub(super) async fn propose(
        &self,
        peer: PublicKey,
        proposal: Proposal,
        page: Vec<u8>,
    ) -> Result<RentalReply, Refusal> {
        let id = proposal.draft.id;
        if let Some(known) = self.0.record(id).await.map_err(internal)? {
            return again(&known, peer, &proposal);
        }
        self.check_terms(peer, &proposal).await?;
        let whole = proposal.list_bytes as usize;
        if whole == 0 || whole > MAX_ENTRIES * MAX_ENTRY || page.len() > LIST_PAGE || page.len() > whole {
            return Err(Refusal::List("its length is out of bounds".into()));
        }
        if page.len() == whole {
            return self.reserve(peer, proposal, page).await;
        }
        let mut incoming = self.0.incoming.lock();
        incoming.retain(|_, x| x.touched.elapsed() < INCOMING_LIFE);
        let of_peer = incoming.iter().filter(|(k, x)| x.peer == peer && **k != id).count();
        if of_peer >= MAX_INCOMING_PER_PEER || incoming.len() >= MAX_INCOMING {
            return Err(Refusal::TooMany("block lists on their way".into()));
        }
        let entry = Incoming { peer, proposal, list: page, next: 1, touched: Instant::now() };
        incoming.insert(id, entry);
        Ok(RentalReply::NeedPage { page: 1 })
    }

    /// A further page of a list.
    pub(super) async fn list_page(
        &self,
        peer: PublicKey,
        id: B256,
        page: u32,
        bytes: Vec<u8>,
    ) -> Result<RentalReply, Refusal> {
        let done = {
            let mut incoming = self.0.incoming.lock();
            let entry = incoming.get_mut(&id).filter(|x| x.peer == peer).ok_or(Refusal::Unknown)?;
            if page != entry.next {
                return Ok(RentalReply::NeedPage { page: entry.next });
            }
            let whole = entry.proposal.list_bytes as usize;
            if bytes.is_empty() || bytes.len() > LIST_PAGE || entry.list.len() + bytes.len() > whole {
                incoming.remove(&id);
                return Err(Refusal::List("a page is empty or too long".into()));
            }
            entry.list.extend_from_slice(&bytes);
            entry.next += 1;
            entry.touched = Instant::now();
            if entry.list.len() < whole {
                return Ok(RentalReply::NeedPage { page: entry.next });
            }
            incoming.remove(&id)
        };
        let Incoming { proposal, list, .. } = done.ok_or(Refusal::Unknown)?;
        self.reserve(peer, proposal, list).await
    }

    async fn check_terms(&self, peer: PublicKey, proposal: &Proposal) -> Result<(), Refusal> {
        if !self.settings().renting {
            return Err(Refusal::NotRenting);
        }
        let draft = &proposal.draft;
        if proposal.channel.renter != peer.address() {
            return Err(Refusal::Terms("the channel's renter is not the one who asks".into()));
        }
        let offer = self.standing_offer(draft.offer).await?;
        terms::check(draft, &offer, draft.offer, &proposal.channel).map_err(|e| Refusal::Terms(e.to_string()))
    }

    /// Checks the whole list and sets the space aside.
    async fn reserve(
        &self,
        peer: PublicKey,
        proposal: Proposal,
        list: Vec<u8>,
    ) -> Result<RentalReply, Refusal> {
        self.check_terms(peer, &proposal).await?;
        let inner = self.0.clone();
        let capacity = self.settings().capacity;
        self.0
            .store
            .run(move |s| {
                let draft = &proposal.draft;
                let blocks = check_list(&list, &proposal)?;
                let _one = inner.write.lock();
                let db = s.state();
                // Asked again while the first answer was on its way.
                if let Some(known) = db.get(&records::AGREEMENTS, &draft.id.0).map_err(internal)? {
                    return again(&known, peer, &proposal);
                }
                let scan = db.scan(&records::AGREEMENTS, &[]);
                let all: Vec<_> = scan
                    .map(|x| x.map(|(k, v)| (B256::from(k), v)))
                    .collect::<Result<_, _>>()
                    .map_err(internal)?;
                check_space(&all, peer, draft.size, capacity)?;
                let until = reserved_until(draft.size);
                let record = reserved(peer, &proposal, until);
                let mut batch = db.batch();
                batch.put(&records::AGREEMENTS, &draft.id.0, &record).map_err(internal)?;
                pages::put(&mut batch, &records::LISTS, draft.id, &list).map_err(internal)?;
                promise(s, &mut batch, draft.id, draft.size)?;
                // Blocks are kept as they come, so that a transfer that breaks off goes on where it stopped.
                let cids: Vec<Cid> = blocks.cids().collect();
                let pin = Pin {
                    id: pin_id(draft.id).into(),
                    kind: PinKind::List,
                    root: cids[0],
                    class: Class::Hosted,
                    name: None,
                    expires: None,
                };
                s.pin_list(&mut batch, &pin, &cids).map_err(internal)?;
                db.commit(batch).map_err(internal)?;
                Ok(RentalReply::Reserved { until })
            })
            .await
    }
}

/// The record of a new agreement.
fn reserved(renter: PublicKey, proposal: &Proposal, reserved_until: u64) -> HostAgreement {
    HostAgreement {
        state: HostState::Reserved,
        reason: None,
        renter,
        channel: proposal.channel,
        agreement: proposal.draft.clone(),
        reserved_until,
        renter_signature: None,
        host_signature: None,
        voucher: None,
        answered: None,
        audits: (0, 0),
        proven: 0,
        paid: btfs_ledger::Btt::ZERO,
        ends: None,
    }
}

/// The answer to a proposal whose id is on record: the same proposal gets the same answer.
fn again(known: &HostAgreement, peer: PublicKey, proposal: &Proposal) -> Result<RentalReply, Refusal> {
    let same = known.renter == peer
        && known.channel == proposal.channel
        && terms::same_but_start(&known.agreement, &proposal.draft);
    match known.state {
        _ if !same => Err(Refusal::Mismatch("another agreement has this id".into())),
        HostState::Reserved | HostState::Received => {
            Ok(RentalReply::Reserved { until: known.reserved_until })
        }
        HostState::Failed => Err(Refusal::WrongState("failed; propose a new one".into())),
        state => Err(Refusal::WrongState(format!("{state:?}").to_lowercase())),
    }
}

/// Until when an agreement of this size may stay unsigned, wall clock.
pub(super) fn reserved_until(size: u64) -> u64 {
    wall_clock().saturating_add(RESERVATION).saturating_add(size / SLOWEST_TRANSFER)
}

fn check_list(list: &[u8], proposal: &Proposal) -> Result<BlockList, Refusal> {
    let bad = |text: String| Err(Refusal::List(text));
    let draft = &proposal.draft;
    let list = match BlockList::decode(list) {
        Ok(list) => list,
        Err(wrong) => return bad(wrong.to_string()),
    };
    if list.digest() != draft.blocks.0 {
        return bad("its digest is not the draft's".into());
    }
    if list.size() != draft.size {
        return bad(format!("its blocks have {} bytes, the draft says {}", list.size(), draft.size));
    }
    if list.leaves() != draft.leaves {
        return bad(format!("its blocks have {} leaves, the draft says {}", list.leaves(), draft.leaves));
    }
    Ok(list)
}

fn check_space(
    all: &[(B256, HostAgreement)],
    peer: PublicKey,
    asked: u64,
    capacity: u64,
) -> Result<(), Refusal> {
    let live = all.iter().filter(|(_, r)| r.state.holds_space()).count();
    if live >= MAX_LIVE {
        return Err(Refusal::TooMany(format!("{live} agreements are running")));
    }
    let free = capacity.saturating_sub(used_bytes(all));
    if asked > free {
        return Err(Refusal::NoSpace { asked, free });
    }
    let unsigned = all.iter().filter(|(_, r)| matches!(r.state, HostState::Reserved | HostState::Received));
    let (mut count, mut of_peer, mut bytes) = (0, 0, 0u64);
    for (_, r) in unsigned {
        count += 1;
        if r.renter == peer {
            of_peer += 1;
            bytes = bytes.saturating_add(r.agreement.size);
        }
    }
    if count >= MAX_UNSIGNED || of_peer >= MAX_PER_PEER {
        return Err(Refusal::TooMany(format!("{of_peer} of this renter, {count} in all")));
    }
    // The first unsigned agreement of a peer may be of any size that fits; further ones share a tenth.
    if of_peer > 0 && bytes.saturating_add(asked) > free / RESERVED_SHARE {
        return Err(Refusal::TooMany(format!("{bytes} bytes are set aside for this renter and unsigned")));
    }
    Ok(())
}

/// Promises the space in the store's own books, with the batch.
fn promise(store: &Store, batch: &mut Batch, id: B256, bytes: u64) -> Result<(), Refusal> {
    store.reserve(batch, &pin_id(id), Class::Hosted, bytes).map_err(|error| {
        tracing::warn!(%error, "an agreement was refused for lack of space");
        Refusal::NoSpace { asked: bytes, free: 0 }
    })
}
