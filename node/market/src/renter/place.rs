//! Steps 1 to 5, the renter's half: one agreement from draft to active, and what happens when a host refuses.
//!
//! [`Inner::drive`] reads the record, does the one step its state asks for, and records it; so it can be dropped and
//! called again at any point, also by the next process. A host that fails before its agreement is active is replaced
//! by another one that was not tried yet.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use btfs_ledger::typed::{Agreement, ChannelTerms, Document, Offer, Signed};
use btfs_ledger::{B256, Btt, PublicKey};
use btfs_storage::Store;
use btfs_storage::blocklist::BlockList;
use btfs_storage::proof::ProofTree;
use futures::StreamExt;
use rand::RngExt;

use super::records::{self, HOSTS, RenterAgreement, Thing, ThingState};
use super::{Inner, RentError, RenterService, plan, unexpected};
use crate::events::MarketEvent;
use crate::messages::{LIST_PAGE, Proposal, Refusal, RentalReply, RentalRequest};
use crate::money::MoneyError;
use crate::score::{self, Need};
use crate::states::RenterState;
use crate::terms::{self, Wish};

/// Slots of one thing that are filled at once: pulls of more hosts would share one uplink anyway.
const FILLING: usize = 6;
/// Attempts of one step before its host is given up: with the pauses below about a minute, enough for a restart.
const ATTEMPTS: u32 = 15;
/// First pause after an attempt that failed; doubles up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// Longest pause between attempts.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Steps of one agreement: the six of the protocol and some more starts.
const MAX_STEPS: usize = 24;
/// Starts signed for one agreement, over all restarts: each is remembered, since the host may hold any of them.
const MAX_STARTS: usize = 64;
/// Pause between two questions about a transfer that goes on.
const PROGRESS_PAUSE: Duration = Duration::from_millis(250);
/// A transfer that brings nothing for so long is given up: a host that is busy with others takes minutes.
const STALLED: Duration = Duration::from_secs(600);
/// The longest that a delivery may take, besides its bytes: the host's own limit for a reservation.
const DELIVERY: Duration = Duration::from_secs(3600);
/// Bytes a second at which a delivery must at least go on.
const SLOWEST_DELIVERY: u64 = 64 << 10;
/// The reason on record after [`RenterService::cancel`].
pub(super) const CANCELLED: &str = "cancelled by the renter";
/// Hosts tried for one slot.
const MAX_TRIED: usize = 8;

/// Counts attempts and pauses between them.
struct Patience {
    left: u32,
    pause: Duration,
}

impl Patience {
    fn new() -> Patience {
        Patience { left: ATTEMPTS, pause: FIRST_PAUSE }
    }

    /// Waits, or gives up with the error.
    async fn again(&mut self, error: RentError) -> Result<(), RentError> {
        self.left = self.left.saturating_sub(1);
        if self.left == 0 {
            return Err(error);
        }
        tokio::time::sleep(self.pause).await;
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        Ok(())
    }
}

/// What became of an agreement.
pub(super) enum Step {
    /// Active (or already past it).
    Active,
    /// It ended before it began; why.
    Failed(String),
    /// Our signature is out and the host does not say whether it signed; why. The renter's ticks see it through.
    Silent(String),
}

impl RenterService {
    /// Takes up all placing that a restart interrupted.
    pub(crate) async fn resume(&self) -> Result<(), RentError> {
        for (id, thing) in self.0.things().await? {
            if thing.state == ThingState::Placing {
                self.0.clone().start_placing(id);
            }
        }
        Ok(())
    }

    /// Waits until a thing is no longer being placed, and returns it.
    pub async fn placed(&self, id: B256) -> Result<Thing, RentError> {
        let mut events = self.0.placed.subscribe();
        loop {
            let thing = self.0.thing(id).await?;
            if thing.state != ThingState::Placing {
                return Ok(thing);
            }
            // The sender lives as long as this service.
            let _ = events.changed().await;
        }
    }
}

impl Inner {
    /// Fills all slots of a thing in a task of its own, once at a time.
    pub(super) fn start_placing(self: Arc<Self>, id: B256) {
        if !self.placing.lock().insert(id) {
            return;
        }
        tokio::spawn(async move {
            if let Err(error) = self.clone().place(id).await {
                tracing::error!(thing = %id, %error, "placing stopped; it goes on after the next start");
            }
            self.placing.lock().remove(&id);
            self.placed.send_modify(|n| *n += 1);
            self.changed.notify_one();
        });
    }

    // The future is boxed so that the compiler need not prove the whole tree of steps `Send` at once.
    fn place(
        self: Arc<Self>,
        id: B256,
    ) -> std::pin::Pin<Box<dyn Future<Output = Result<(), RentError>> + Send>> {
        Box::pin(async move {
            let thing = self.thing(id).await?;
            let slots = 0..thing.slots.len();
            let results: Vec<Result<(), RentError>> = futures::stream::iter(slots)
                .map(|slot| self.clone().fill_slot(id, slot))
                .buffer_unordered(FILLING)
                .collect()
                .await;
            let problems: Vec<String> =
                results.into_iter().filter_map(|r| r.err().map(|e| e.to_string())).collect();
            let problem = problems.first().map(|first| {
                format!("{} of {} places could not be filled; {first}", problems.len(), thing.slots.len())
            });
            self.write(move |s, batch| {
                let Some(mut thing) = s.state().get(&records::THINGS, &id.0)? else { return Ok(()) };
                if thing.state == ThingState::Placing {
                    let problem = if thing.cancelled { Some(CANCELLED.to_owned()) } else { problem };
                    thing.state = if problem.is_some() { ThingState::Incomplete } else { ThingState::Active };
                    thing.problem = problem;
                    batch.put(&records::THINGS, &id.0, &thing)?;
                }
                // Every host has what it needs: content and parity are the user's to keep or not.
                s.unpin(batch, &plan::content_pin(id).into())?;
                s.unpin(batch, &plan::parity_pin(id).into())?;
                Ok(())
            })
            .await
        })
    }

    /// Signs hosts up for one slot until one is active or none is left.
    async fn fill_slot(self: Arc<Self>, id: B256, slot: usize) -> Result<(), RentError> {
        let mut last: Option<String> = None;
        let mut silent: Option<B256> = None;
        loop {
            let thing = self.thing(id).await?;
            if thing.state != ThingState::Placing {
                return Ok(());
            }
            let place = thing.slots.get(slot).ok_or_else(|| RentError::Unknown(id.to_string()))?;
            let open = match place.agreement {
                Some(agreement) => Some((agreement, self.agreement(agreement).await?)),
                None => None,
            };
            let agreement = match open {
                Some((agreement, r)) if r.state != RenterState::Failed && silent != Some(agreement) => {
                    agreement
                }
                failed => {
                    if thing.cancelled {
                        return Err(RentError::Request(CANCELLED.into()));
                    }
                    last = failed.and_then(|(_, r)| r.reason).or(last);
                    if place.tried.len() >= MAX_TRIED {
                        return Err(RentError::Request(last.unwrap_or_else(|| "no host took it".into())));
                    }
                    self.draft(id, &thing, slot, last.as_deref()).await?
                }
            };
            match self.drive(agreement).await? {
                Step::Active => return Ok(()),
                Step::Failed(reason) => last = Some(reason),
                Step::Silent(reason) => (last, silent) = (Some(reason), Some(agreement)),
            }
        }
    }

    /// Chooses a host for a slot and writes a draft down.
    async fn draft(
        self: &Arc<Self>,
        id: B256,
        thing: &Thing,
        slot: usize,
        last: Option<&str>,
    ) -> Result<B256, RentError> {
        let place = &thing.slots[slot];
        let list = Arc::new(self.list(place.list).await?);
        let (host, offer) = self.host_for(thing, slot, list.size(), last).await?;
        let kept = list.clone();
        let tree = self.store.run(move |s| ProofTree::build(&kept, s)).await;
        let tree = tree.map_err(|e| RentError::Content(e.to_string()))?;
        let wish = Wish {
            blocks: place.list,
            root: B256::from(tree.root()),
            leaves: tree.leaves(),
            size: list.size(),
            epochs: thing.epochs,
            epoch_length: thing.epoch_length,
            audit_leaves: terms::AUDIT_LEAVES,
        };
        let channel = ChannelTerms {
            funder: self.money.address(),
            renter: self.key.address(),
            host: offer.document.host,
            payee: offer.document.payee,
            window: terms::window(
                &offer.document,
                thing.epoch_length,
                terms::claim_window(thing.epoch_length),
            ),
        };
        let agreement_id = B256::from(rand::rng().random::<[u8; 32]>());
        let digest = offer.document.digest(self.money.domain());
        let agreement = terms::draft(&offer.document, digest, &channel, agreement_id, &wish)?;
        let record = drafted(id, slot, host, channel, agreement);
        self.write(move |s, batch| {
            let found = s.state().get(&records::THINGS, &id.0)?;
            let mut thing = found.ok_or_else(|| RentError::Unknown(id.to_string()))?;
            // The place is free from here on; what was in it may still cost.
            thing.slots[slot].agreement = None;
            check_total(s, id, &thing, &record.agreement)?;
            thing.slots[slot].agreement = Some(agreement_id);
            thing.slots[slot].tried.push(host);
            batch.put(&records::THINGS, &id.0, &thing)?;
            batch.put(&records::AGREEMENTS, &agreement_id.0, &record)?;
            Ok(agreement_id)
        })
        .await
    }

    /// The host planned for a slot, or another one that no slot of this thing uses or tried.
    async fn host_for(
        self: &Arc<Self>,
        thing: &Thing,
        slot: usize,
        size: u64,
        last: Option<&str>,
    ) -> Result<(PublicKey, Signed<Offer>), RentError> {
        let place = &thing.slots[slot];
        let now = self.now().await?;
        let term = u64::from(thing.epochs) * u64::from(thing.epoch_length);
        let max_price = thing.bounds.map(|b| b.price).or(thing.max_price);
        let max_setup = thing.bounds.map(|b| b.setup_price);
        let need = Need { size, term, max_price, max_setup, max_window: plan::MAX_WINDOW, now };
        if place.tried.is_empty() {
            let planned = place.planned;
            let found = self.store.run(move |s| s.state().get(&HOSTS, planned.as_bytes())).await?;
            // As it was quoted, or better; an offer that changed since competes with the others.
            let as_quoted = |o: &Offer| {
                let quoted = place.quoted;
                quoted.is_none_or(|q| o.price <= q.price && o.setup_price <= q.setup_price)
            };
            let fitting = found.filter(|r| {
                let offer = r.offer.as_ref().map(|o| &o.document);
                offer.is_some_and(|o| as_quoted(o) && score::fits(o, &r.reputation, &need).is_ok())
            });
            if let Some(offer) = fitting.and_then(|r| r.offer) {
                return Ok((planned, offer));
            }
        }
        let survey = self.survey(now).await?;
        let others = thing.slots.iter().enumerate().filter(|(i, _)| *i != slot).map(|(_, s)| s.planned);
        let tried = thing.slots.iter().flat_map(|s| s.tried.iter().copied());
        let taken: Vec<PublicKey> = tried.chain(others).collect();
        let (chosen, _, excluded) = self.choose(&survey, &need, 1, &taken).await;
        match chosen.into_iter().next() {
            Some((host, offer, _)) => Ok((host, offer)),
            None => match last {
                Some(reason) => Err(RentError::Request(format!(
                    "the last host tried said: {reason}; no other host fits ({excluded})"
                ))),
                None => {
                    let known = survey.hosts.len();
                    Err(RentError::NoHosts { needed: 1, found: 0, known, excluded })
                }
            },
        }
    }

    /// Takes an agreement as far as it goes: to active, to failed, or to a host that does not say whether it signed.
    async fn drive(self: &Arc<Self>, id: B256) -> Result<Step, RentError> {
        for _ in 0..MAX_STEPS {
            let r = self.agreement(id).await?;
            match r.state {
                RenterState::Failed => return Ok(Step::Failed(r.reason.unwrap_or_default())),
                RenterState::Active | RenterState::Closing | RenterState::Done => return Ok(Step::Active),
                _ if self.thing(r.thing).await?.cancelled => return self.give_up(id, CANCELLED).await,
                _ => {}
            }
            let step = match r.state {
                // A call to the settlement is seen through: it does not wait for the host.
                RenterState::Reserved => self.fund(id, &r).await,
                _ => tokio::select! {
                    step = self.talk(id, &r) => step,
                    cancelled = self.cancelled(r.thing) => cancelled.and(Ok(())),
                },
            };
            match step {
                Ok(()) => {}
                // Our own fault or lack of money: no other host would do better.
                Err(e @ (RentError::Db(_) | RentError::Store(_) | RentError::Step(_))) => return Err(e),
                Err(e @ RentError::NotEnough { .. }) => {
                    self.give_up(id, &e.to_string()).await?;
                    return Err(e);
                }
                Err(error) => return self.give_up(id, &error.to_string()).await,
            }
        }
        self.give_up(id, "no start of the agreement suits the host's clock").await
    }

    /// The steps that wait for the host.
    async fn talk(self: &Arc<Self>, id: B256, r: &RenterAgreement) -> Result<(), RentError> {
        match r.state {
            RenterState::Draft => self.propose(id, r).await,
            RenterState::Funded => self.deliver_and_sign(id, r).await,
            _ => self.exchange(id, r).await,
        }
    }

    /// Waits until a thing is cancelled.
    async fn cancelled(&self, thing: B256) -> Result<(), RentError> {
        let mut cancels = self.cancels.subscribe();
        while !self.thing(thing).await?.cancelled {
            // The sender lives as long as this service.
            let _ = cancels.changed().await;
        }
        Ok(())
    }

    /// Asks a host, again after silence.
    pub(super) async fn ask_patiently(
        &self,
        host: &PublicKey,
        request: &RentalRequest,
    ) -> Result<RentalReply, RentError> {
        let mut patience = Patience::new();
        loop {
            match self.ask(host, request).await {
                Err(e) if is_passing(&e) => patience.again(e).await?,
                other => return other,
            }
        }
    }

    /// Draft -> Reserved.
    async fn propose(self: &Arc<Self>, id: B256, r: &RenterAgreement) -> Result<(), RentError> {
        let list: BlockList = self.list(r.agreement.blocks).await?;
        let pages: Vec<_> = list.pages(LIST_PAGE).collect();
        let list_bytes = pages.iter().map(|p| p.len() as u32).sum();
        let proposal = Proposal { channel: r.channel, draft: r.agreement.clone(), list_bytes };
        let first = pages.first().map(|p| p.to_vec()).unwrap_or_default();
        let mut request = RentalRequest::Propose { proposal: Box::new(proposal), page: first };
        loop {
            match self.ask_patiently(&r.host, &request).await? {
                RentalReply::Reserved { .. } => break,
                RentalReply::NeedPage { page } => {
                    let bytes = pages.get(page as usize).ok_or_else(|| {
                        RentError::Protocol(format!("it asked for page {page} of {}", pages.len()))
                    })?;
                    request = RentalRequest::ListPage { id, page, bytes: bytes.to_vec() };
                }
                other => return Err(unexpected(&other)),
            }
        }
        self.change(id, |_, _, r| Ok(r.state.advance(RenterState::Reserved)?)).await?;
        self.events.send(MarketEvent::Reserved { id, host: r.host });
        Ok(())
    }

    /// Reserved -> Funded: locks what the channel lacks.
    async fn fund(self: &Arc<Self>, id: B256, r: &RenterAgreement) -> Result<(), RentError> {
        let mut patience = Patience::new();
        loop {
            match self.lock_for(id, r).await {
                Err(e @ RentError::Money(MoneyError::Unavailable(_))) => patience.again(e).await?,
                other => break other?,
            }
        }
        self.change(id, |_, _, r| Ok(r.state.advance(RenterState::Funded)?)).await
    }

    async fn lock_for(self: &Arc<Self>, id: B256, r: &RenterAgreement) -> Result<(), RentError> {
        let _one = self.paying.lock().await;
        let channel = r.channel.id();
        // A lock that was on its way when we crashed is in the channel after this, and not locked again.
        self.money.resume().await?;
        let view = self.money.channel(channel).await?;
        let needed = self.needs(channel).await?;
        let missing = needed.saturating_sub(view.available());
        if missing == Btt::ZERO {
            return Ok(());
        }
        let balance = self.money.balance().await?;
        if balance < missing {
            return Err(RentError::NotEnough { needed: missing, balance });
        }
        self.money.lock(&r.channel, missing, &format!("lock:{}", hex::encode(id))).await?;
        self.events.send(MarketEvent::Locked { id, channel, amount: missing });
        Ok(())
    }

    /// What all agreements of a channel need of its lock.
    pub(super) async fn needs(&self, channel: B256) -> Result<Btt, RentError> {
        let all = self.agreements().await?;
        let of_channel = all.iter().filter(|(_, r)| r.agreement.channel == channel);
        Ok(of_channel.fold(Btt::ZERO, |sum, (_, r)| sum.checked_add(r.need()).unwrap_or(Btt::MAX)))
    }

    /// Asks until the host has everything. Only bytes that arrived count as progress, and the whole has an end, so that
    /// a host that says "receiving" for ever does not hold the money and the slot.
    async fn deliver(self: &Arc<Self>, id: B256, r: &RenterAgreement) -> Result<(), RentError> {
        let size = r.agreement.size;
        let (began, longest) = (Instant::now(), DELIVERY + Duration::from_secs(size / SLOWEST_DELIVERY));
        let (mut best, mut moved) = (0, began);
        let mut patience = Patience::new();
        while began.elapsed() < longest && moved.elapsed() < STALLED {
            match self.ask(&r.host, &RentalRequest::Deliver { id }).await {
                Ok(RentalReply::Receiving { received, .. }) => {
                    let received = received.min(size);
                    if received > best {
                        (best, moved, patience) = (received, Instant::now(), Patience::new());
                    }
                    tokio::time::sleep(PROGRESS_PAUSE).await;
                }
                Ok(RentalReply::Received { size, leaves, root }) => {
                    let a = &r.agreement;
                    if (size, leaves, root) != (a.size, a.leaves, a.root) {
                        return Err(RentError::Protocol("it computed another proof root".into()));
                    }
                    return Ok(());
                }
                Ok(other) => return Err(unexpected(&other)),
                Err(e) if is_passing(&e) => patience.again(e).await?,
                Err(e) => return Err(e),
            }
        }
        Err(RentError::Request(format!("the host took {best} of {size} bytes and then no more")))
    }

    /// Funded -> Offered: waits until the host has everything, and signs with the start set to now.
    async fn deliver_and_sign(self: &Arc<Self>, id: B256, r: &RenterAgreement) -> Result<(), RentError> {
        self.deliver(id, r).await?;
        let start = self.money.refresh().await?;
        let (domain, key) = (*self.money.domain(), self.key.clone());
        self.change(id, move |_, _, r| {
            r.state.advance(RenterState::Offered)?;
            if r.starts.len() >= MAX_STARTS {
                return Err(RentError::Request("too many starts were signed for this host".into()));
            }
            r.agreement.start = start;
            r.starts.push(start);
            r.signature = Some(key.sign_digest(&r.agreement.digest(&domain)));
            Ok(())
        })
        .await
    }
}

/// That a thing with one more agreement costs no more in all than its quote allowed. Counted is every agreement that may
/// be signed, also one whose host does not say so and whose place is given to another.
fn check_total(s: &Store, id: B256, thing: &Thing, agreement: &Agreement) -> Result<(), RentError> {
    let Some(bounds) = thing.bounds else { return Ok(()) };
    let price = |a: &Agreement| a.total_price().unwrap_or(Btt::MAX);
    let (mut sum, mut silent) = (price(agreement), 0);
    for row in s.state().scan(&records::AGREEMENTS, &[]) {
        let (other, r) = row?;
        if r.thing != id || r.state == RenterState::Failed {
            continue;
        }
        sum = sum.checked_add(price(&r.agreement)).unwrap_or(Btt::MAX);
        silent += u32::from(thing.slots.iter().all(|slot| slot.agreement != Some(B256::from(other))));
    }
    if sum > bounds.total {
        let cause = match silent {
            0 => "prices have risen".to_owned(),
            n => format!("agreements that their hosts neither sign nor deny still hold money ({n} here)"),
        };
        return Err(RentError::Request(format!(
            "{cause}: with the hosts that are left it would cost {sum} BTT in all, the quote allowed {}",
            bounds.total
        )));
    }
    Ok(())
}

/// The record of a new agreement.
fn drafted(
    thing: B256,
    slot: usize,
    host: PublicKey,
    channel: ChannelTerms,
    agreement: Agreement,
) -> RenterAgreement {
    RenterAgreement {
        state: RenterState::Draft,
        reason: None,
        host,
        thing,
        slot: slot as u32,
        channel,
        agreement,
        signature: None,
        starts: Vec::new(),
        unshown: None,
        host_signature: None,
        voucher: None,
        acknowledged: false,
        next: 0,
        asked: (0, 0),
        asked_in: (0, 0),
        excused: None,
        days: String::new(),
        verdict: None,
        paid: Btt::ZERO,
        ends: None,
        notice_heard: false,
        refunded: false,
    }
}

/// Whether asking again soon may help: silence, a host that is busy or just starting, a settlement that is away, a
/// transfer that broke off, a lock that the host does not see yet.
pub(super) fn is_passing(error: &RentError) -> bool {
    use crate::ports::CourierError::{Myself, Refused, Timeout, Unreachable};
    matches!(
        error,
        RentError::Courier(Timeout | Unreachable(_) | Refused(_) | Myself(_))
            | RentError::Refused(
                Refusal::NoSettlement(_)
                    | Refusal::Transfer(_)
                    | Refusal::NotFunded { .. }
                    | Refusal::Internal(_)
                    // Space that others have asked for and not paid is free again within minutes.
                    | Refusal::TooMany(_)
            )
    )
}
