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
/// The same of one peer, so that nobody takes all places.
const MAX_LIVE_PER_PEER: usize = MAX_LIVE / 10;
/// Lists under way in all; with at most 5.6 MB each they fit a small node's memory.
const MAX_INCOMING: usize = 8;
/// Lists under way of one peer.
const MAX_INCOMING_PER_PEER: usize = 2;
/// A list that is not whole after so long gives way: the longest has 34 pages.
const INCOMING_LIFE: Duration = Duration::from_secs(60);
/// Wall-clock seconds that a funded agreement keeps its space unsigned at least.
pub(super) const RESERVATION: u64 = 3600;
/// Wall-clock seconds that space is kept without money: time for a lock.
const UNFUNDED: u64 = 600;
/// The same for one that takes more than the share of the free space that all unfunded ones may have. There is only
/// one such at a time.
const UNFUNDED_LARGE: u64 = 120;
/// Bytes from which on a page is full: pages end with an entry.
const FULL_PAGE: usize = LIST_PAGE - MAX_ENTRY;
/// Bytes a second at which a transfer must at least go on to keep its reservation.
const SLOWEST_TRANSFER: u64 = 64 << 10;
/// Share of the free space that agreements without money may hold together.
const RESERVED_SHARE: u64 = 10;

/// A proposal whose list is still coming.
pub(crate) struct Incoming {
    peer: PublicKey,
    proposal: Proposal,
    list: Vec<u8>,
    next: u32,
    began: Instant,
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
        if page.len() < FULL_PAGE {
            return Err(Refusal::List("a page before the last is not full".into()));
        }
        let mut incoming = self.0.incoming.lock();
        incoming.retain(|_, x| x.began.elapsed() < INCOMING_LIFE);
        let of_peer = incoming.iter().filter(|(k, x)| x.peer == peer && **k != id).count();
        if of_peer >= MAX_INCOMING_PER_PEER {
            return Err(Refusal::TooMany("block lists on their way".into()));
        }
        if incoming.len() >= MAX_INCOMING {
            // The oldest gives way: whoever sends pages that never end does not keep others out.
            let oldest = incoming.iter().min_by_key(|(_, x)| x.began).map(|(k, _)| *k);
            oldest.and_then(|k| incoming.remove(&k));
        }
        let entry = Incoming { peer, proposal, list: page, next: 1, began: Instant::now() };
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
            // Every page but the last is full, so a list takes no more messages than it needs.
            let left = whole - entry.list.len();
            let fits = bytes.len() <= left.min(LIST_PAGE) && bytes.len() >= left.min(FULL_PAGE);
            if !fits || entry.began.elapsed() >= INCOMING_LIFE {
                incoming.remove(&id);
                let text = format!("page {page} of {left} bytes left came late or with {}", bytes.len());
                return Err(Refusal::List(text));
            }
            entry.list.extend_from_slice(&bytes);
            entry.next += 1;
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
        // What is released meanwhile was measured without this agreement's need.
        let _one = self.0.paying.lock().await;
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
                let until = wall_clock().saturating_add(check_space(&all, peer, draft.size, capacity)?);
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
        funded: false,
        renter_signature: None,
        host_signature: None,
        voucher: None,
        answered: None,
        audits: (0, 0),
        proven: 0,
        paid: btfs_ledger::Btt::ZERO,
        ends: None,
        told: false,
        lost: btfs_ledger::Btt::ZERO,
        skipped: 0,
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

/// Until when a funded agreement of this size may stay unsigned, wall clock.
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

/// That there is room for one more agreement without money; for how many seconds it is kept.
fn check_space(
    all: &[(B256, HostAgreement)],
    peer: PublicKey,
    asked: u64,
    capacity: u64,
) -> Result<u64, Refusal> {
    let (mut live, mut own) = (0, 0);
    for (_, r) in all.iter().filter(|(_, r)| r.state.holds_space()) {
        live += 1;
        own += usize::from(r.renter == peer);
    }
    if live >= MAX_LIVE || own >= MAX_LIVE_PER_PEER {
        return Err(Refusal::TooMany(format!("{live} agreements are running, {own} of this renter")));
    }
    let free = capacity.saturating_sub(used_bytes(all));
    if asked > free {
        return Err(Refusal::NoSpace { asked, free });
    }
    let unsigned = all.iter().filter(|(_, r)| matches!(r.state, HostState::Reserved | HostState::Received));
    let (mut count, mut of_peer, mut unfunded) = (0, 0, Vec::new());
    for (_, r) in unsigned {
        count += 1;
        of_peer += usize::from(r.renter == peer);
        if !r.funded {
            unfunded.push(r.agreement.size);
        }
    }
    if count >= MAX_UNSIGNED || of_peer >= MAX_PER_PEER {
        return Err(Refusal::TooMany(format!("{of_peer} of this renter, {count} in all")));
    }
    // Small ones share a tenth of what was free before them. One at a time may be larger, since nothing large could be
    // kept here otherwise, but not for long.
    let held = unfunded.iter().fold(0u64, |sum, size| sum.saturating_add(*size));
    let share = free.saturating_add(held) / RESERVED_SHARE;
    if asked > share {
        return match unfunded.iter().any(|size| *size > share) {
            true => Err(Refusal::TooMany("a large one without a lock is set aside already; try soon".into())),
            false => Ok(UNFUNDED_LARGE),
        };
    }
    let small =
        unfunded.iter().filter(|size| **size <= share).fold(0u64, |sum, size| sum.saturating_add(*size));
    if small.saturating_add(asked) > share {
        return Err(Refusal::TooMany(format!("{small} bytes are set aside without a lock")));
    }
    Ok(UNFUNDED)
}

/// Promises the space in the store's own books, with the batch.
fn promise(store: &Store, batch: &mut Batch, id: B256, bytes: u64) -> Result<(), Refusal> {
    store.reserve(batch, &pin_id(id), Class::Hosted, bytes).map_err(|error| {
        tracing::warn!(%error, "an agreement was refused for lack of space");
        Refusal::NoSpace { asked: bytes, free: 0 }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::terms::tests::{channel, offer, wish};

    const CAPACITY: u64 = 1000 << 20;

    fn peer(n: u8) -> PublicKey {
        btfs_ledger::SecretKey::from_bytes(&[n; 32]).unwrap().public()
    }

    fn unsigned(renter: u8, size: u64, funded: bool) -> (B256, HostAgreement) {
        let id = B256::repeat_byte(renter);
        let draft = terms::draft(&offer(), B256::ZERO, &channel(), id, &wish()).unwrap();
        let draft = btfs_ledger::typed::Agreement { size, ..draft };
        let proposal = Proposal { channel: channel(), draft, list_bytes: 0 };
        (id, HostAgreement { funded, ..reserved(peer(renter), &proposal, 0) })
    }

    #[test]
    fn space_without_money_is_a_tenth_and_one_large_agreement() {
        let mib = |n: u64| n << 20;
        let asked = |all: &[_], size| check_space(all, peer(9), size, CAPACITY);
        assert_eq!(asked(&[], mib(100)), Ok(UNFUNDED));
        assert_eq!(asked(&[], mib(900)), Ok(UNFUNDED_LARGE), "large ones are kept for a short time only");
        let small = [unsigned(1, mib(60), false)];
        assert_eq!(asked(&small, mib(40)), Ok(UNFUNDED));
        assert!(matches!(asked(&small, mib(41)), Err(Refusal::TooMany(_))), "others share the tenth");
        let large = [unsigned(1, mib(500), false)];
        assert!(matches!(asked(&large, mib(300)), Err(Refusal::TooMany(_))), "one large one at a time");
        assert_eq!(asked(&large, mib(50)), Ok(UNFUNDED), "which does not keep small ones out");
        let paid = [unsigned(1, mib(500), true)];
        assert_eq!(asked(&paid, mib(300)), Ok(UNFUNDED_LARGE), "those with a lock do not count");
        assert!(matches!(asked(&paid, mib(501)), Err(Refusal::NoSpace { .. })));
    }
}
