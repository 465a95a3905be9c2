//! Step 6, the renter's half: what is due at the end of each epoch. Audit, verdict, voucher; in that order, each
//! durable before the next.
//!
//! [`RenterService::tick`] does everything that is due at a moment of settlement time and then says that the work is
//! done through it. In a network declared local that is at once when the clock steps; elsewhere audits wait for a
//! random time in the first half of the next epoch, and silence is asked again until that half is over.

use std::sync::Arc;
use std::time::Instant;

use btfs_ledger::typed::{Signed, Voucher};
use btfs_ledger::{B256, Btt};
use futures::StreamExt;
use rand::RngExt;

use super::records::RenterAgreement;
use super::tripwire::remember;
use super::{Inner, QUICK_ANSWER, RentError, RenterService, unexpected};
use crate::audit::{
    self, ANSWER_DEADLINE, AUDITS_PER_EPOCH, LOCAL_PROBE, REDIALS, RETRIES, SLOW_ANSWER, Verdict,
};
use crate::events::MarketEvent;
use crate::messages::{
    AUDIT_PROTOCOL, AuditReply, AuditRequest, MAX_AUDIT_REPLY, Refusal, RentalReply, RentalRequest, decode,
    encode,
};
use crate::ports::CourierError;
use crate::schedule::Schedule;
use crate::score::Reputation;
use crate::states::RenterState;
use crate::vouchers;

/// Agreements that are worked on at once.
const AT_ONCE: usize = 16;
/// Silence is asked again after this fraction of an epoch.
pub(super) const ASK_AGAIN: u64 = 16;
/// Audits of one agreement in one tick: with 14 epochs each, enough for 56 missed days, which is all a host answers.
const AUDITS_PER_TICK: u32 = AUDITS_PER_EPOCH;

/// Whether an agreement has work left at the moment of the tick.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Left {
    Nothing,
    Work,
}

impl RenterService {
    /// Does everything that is due at settlement time `now`.
    pub async fn tick(&self, now: u64) {
        let all = match self.0.agreements().await {
            Ok(all) => all,
            Err(error) => return tracing::error!(%error, "the renter's agreements cannot be read"),
        };
        let running = all.into_iter().filter(|(_, r)| has_work(r, now));
        let left: Vec<Left> = futures::stream::iter(running)
            .map(|(id, _)| {
                let inner = self.0.clone();
                async move {
                    inner.work(id, now).await.unwrap_or_else(|error| {
                        tracing::warn!(agreement = %id, %error, "a step is put off");
                        Left::Work
                    })
                }
            })
            .buffer_unordered(AT_ONCE)
            .collect()
            .await;
        if let Err(error) = self.0.refund(now).await {
            tracing::warn!(%error, "money is not taken back yet");
        }
        if left.iter().all(|l| *l == Left::Nothing) {
            self.0.worked_through.send_if_modified(|t| {
                let later = now > *t;
                *t = now.max(*t);
                later
            });
        }
    }

    /// Whether all work that fell due until settlement time `time` is done: audits judged, vouchers acknowledged by
    /// every host that can be reached.
    pub fn work_done_through(&self, time: u64) -> bool {
        *self.0.worked_through.borrow() >= time
    }

    /// Waits until [`work_done_through`](Self::work_done_through) holds.
    pub async fn work_done(&self, time: u64) {
        // The sender lives as long as this service.
        let _ = self.0.worked_through.subscribe().wait_for(|t| *t >= time).await;
    }
}

impl Inner {
    /// All due work of one agreement.
    async fn work(self: &Arc<Self>, id: B256, now: u64) -> Result<Left, RentError> {
        let mut left = Left::Nothing;
        let r = self.agreement(id).await?;
        if r.state == RenterState::Offered {
            self.ask_offered(id, &r, now).await?;
        }
        if !matches!(
            self.agreement(id).await?.state,
            RenterState::Active | RenterState::Closing | RenterState::Done
        ) {
            return Ok(left);
        }
        for _ in 0..AUDITS_PER_TICK {
            let r = self.agreement(id).await?;
            if r.state != RenterState::Active || r.schedule().due(r.next, now).is_none() {
                break;
            }
            match self.audit_due(id, &r, now).await? {
                Judged::Yes => self.due.lock().remove(&id),
                Judged::NotYet => {
                    left = Left::Work;
                    break;
                }
                Judged::Open => break,
            };
        }
        let r = self.agreement(id).await?;
        if r.ends.is_some() && !r.notice_heard {
            self.send_notice(id, &r).await?;
        }
        // A host that was just silent is paid when it answers again.
        let away = r.state == RenterState::Active && r.verdict.as_ref().is_some_and(Verdict::is_silence);
        if !r.acknowledged && !away {
            self.pay(id).await?;
        }
        let r = self.agreement(id).await?;
        if r.state == RenterState::Active && r.next >= r.schedule().end_epoch {
            self.change(id, |_, _, r| Ok(r.state.advance(RenterState::Closing)?)).await?;
            self.events.send(MarketEvent::Closed { id, peer: r.host, reason: r.reason });
        }
        Ok(left)
    }

    /// One audit with its retries, judged and recorded.
    async fn audit_due(
        self: &Arc<Self>,
        id: B256,
        r: &RenterAgreement,
        now: u64,
    ) -> Result<Judged, RentError> {
        let schedule = r.schedule();
        let Some((from, epoch)) = schedule.due(r.next, now) else { return Ok(Judged::Yes) };
        if !self.local && !self.is_time(id, r, now) {
            return Ok(Judged::NotYet);
        }
        let stream = self.money.stream(r.agreement.channel, id).await?;
        if stream.settled > r.next {
            // The host claimed these at the settlement: proven there, nothing left to pay.
            let settled = stream.settled.min(schedule.end_epoch);
            self.change(id, move |_, _, r| {
                let claimed = settled.saturating_sub(r.next);
                r.days.extend(std::iter::repeat_n('P', claimed as usize));
                r.next = r.next.max(settled);
                r.paid = r.paid.max(stream.paid);
                Ok(())
            })
            .await?;
            return Ok(Judged::Yes);
        }
        let Some(heard) = self.audit_with_retries(id, from, epoch, now).await? else {
            // Audits that passed have used up what the host answers in this epoch: the next one goes on.
            self.ask_again_at(id, now, schedule.length);
            return Ok(if self.local { Judged::Open } else { Judged::NotYet });
        };
        if let Some(ends) = heard.ended.filter(|ends| *ends < schedule.end_epoch) {
            // A notice that we did not hear: what is left to judge ends with it.
            self.host_ended(id, r, ends, now).await?;
            return Ok(Judged::Yes);
        }
        let Heard { verdict, millis, excuse, .. } = heard;
        self.events.send(MarketEvent::Audit {
            id,
            host: r.host,
            from,
            epoch,
            verdict: verdict.clone(),
            millis,
        });
        let late = now >= schedule.verdict_deadline(epoch);
        match &verdict {
            Verdict::Unknown(_) => {
                self.ask_again_at(id, now, schedule.length);
                Ok(Judged::Open)
            }
            v if v.is_silence() && excuse => match self.excused(id, from, epoch, now).await? {
                Some(last) => {
                    self.record(id, from, last, verdict, millis, stream.paid).await?;
                    Ok(Judged::Yes)
                }
                None => {
                    self.ask_again_at(id, now, schedule.length);
                    // A local clock stands until it is stepped: the next day's audit covers this one too.
                    Ok(if self.local { Judged::Open } else { Judged::NotYet })
                }
            },
            v if v.is_silence() && !self.local && !late => {
                self.ask_again_at(id, now, schedule.length);
                Ok(Judged::NotYet)
            }
            _ => {
                self.record(id, from, epoch, verdict, millis, stream.paid).await?;
                Ok(Judged::Yes)
            }
        }
    }

    /// Through which epoch an excuse costs the host what was asked about. It is asked again for half an epoch from its
    /// first excuse on, however long the epochs are over: the renter may have been the one that was away.
    async fn excused(
        self: &Arc<Self>,
        id: B256,
        from: u32,
        epoch: u32,
        now: u64,
    ) -> Result<Option<u32>, RentError> {
        self.change(id, move |_, _, r| {
            let (first, schedule) = (*r.excused.get_or_insert(now), r.schedule());
            let patient = now < first.saturating_add(schedule.length / 2);
            let over = (from..=epoch).take_while(|e| now >= schedule.verdict_deadline(*e)).last();
            Ok(over.filter(|_| !patient))
        })
        .await
    }

    /// Whether the random moment of this epoch's audit has come; drawn at the first question.
    fn is_time(&self, id: B256, r: &RenterAgreement, now: u64) -> bool {
        let mut due = self.due.lock();
        let (first, schedule) = (r.next, r.schedule());
        let entry = due.entry(id).or_insert((first, 0));
        if entry.0 != first || entry.1 == 0 {
            *entry = (first, schedule.audit_at(first, rand::rng().random::<f64>()));
        }
        now >= entry.1
    }

    fn ask_again_at(&self, id: B256, now: u64, length: u64) {
        if let Some(entry) = self.due.lock().get_mut(&id) {
            entry.1 = now.saturating_add((length / ASK_AGAIN).max(1));
        }
    }

    /// Asks, and again after silence, each time with a fresh nonce, and never with more of them than an epoch has: a
    /// host that saw a nonce and kept silent must not draw until the leaves suit it. `None` if audits of other epochs have
    /// used them up.
    async fn audit_with_retries(
        self: &Arc<Self>,
        id: B256,
        from: u32,
        epoch: u32,
        now: u64,
    ) -> Result<Option<Heard>, RentError> {
        let r = &self.agreement(id).await?;
        let mut last = self.probe(r, epoch).await;
        if last.is_none() {
            last = self.pay_before(id, r).await?;
        }
        let (mut retries, mut redials) = (RETRIES, REDIALS);
        let last = loop {
            if let Some(last) = last {
                break last;
            }
            match self.take_nonce(id, epoch, r.schedule().epoch_at(now)).await? {
                Nonce::Taken => {}
                Nonce::Spent => {
                    break Heard {
                        verdict: Verdict::Timeout,
                        millis: 0,
                        excuse: r.excused.is_some(),
                        ended: None,
                    };
                }
                Nonce::SpentElsewhere => return Ok(None),
            }
            let answer = self.audit_once(r, from, epoch).await;
            let left = match &answer.verdict {
                Verdict::Timeout if !answer.excuse => &mut retries,
                Verdict::Offline => &mut redials,
                _ => return Ok(Some(answer)),
            };
            match left.checked_sub(1) {
                Some(fewer) => *left = fewer,
                None => last = Some(answer),
            }
        };
        if !self.discovery.online().await {
            let verdict = Verdict::Unknown("this node itself has no connection".into());
            return Ok(Some(Heard { verdict, ..last }));
        }
        Ok(Some(last))
    }

    /// Brings a voucher that is not acknowledged before more is audited: a host need not prove beyond what it is owed.
    /// If it is silent about it, that is this round's verdict.
    async fn pay_before(self: &Arc<Self>, id: B256, r: &RenterAgreement) -> Result<Option<Heard>, RentError> {
        if r.acknowledged || r.voucher.is_none() {
            return Ok(None);
        }
        let began = Instant::now();
        let mut silence = None;
        for _ in 0..=REDIALS {
            match self.pay(id).await {
                // What it makes of the voucher is no proof either way.
                Ok(Brought::Done) | Err(RentError::Protocol(_)) => return Ok(None),
                Ok(Brought::Silence(verdict)) => silence = Some(verdict),
                Err(error) => return Err(error),
            }
        }
        let millis = began.elapsed().as_millis() as u64;
        Ok(silence.map(|verdict| Heard { verdict, millis, excuse: false, ended: None }))
    }

    /// Counts one nonce for the audit of `epoch`, before it is drawn: both for that audit, and for the epoch that runs
    /// at the moment (`current`), as the host counts them.
    async fn take_nonce(self: &Arc<Self>, id: B256, epoch: u32, current: u32) -> Result<Nonce, RentError> {
        self.change(id, move |_, _, r| {
            let count = |(of, count): (u32, u32), e| if of == e { count } else { 0 };
            let (own, all) = (count(r.asked, epoch), count(r.asked_in, current));
            if own >= AUDITS_PER_EPOCH || (all >= AUDITS_PER_EPOCH && own > 0) {
                return Ok(Nonce::Spent);
            }
            if all >= AUDITS_PER_EPOCH {
                return Ok(Nonce::SpentElsewhere);
            }
            (r.asked, r.asked_in) = ((epoch, own + 1), (current, all + 1));
            Ok(Nonce::Taken)
        })
        .await
    }

    /// Asks a host that was silent last time (or a moment ago, about this epoch) whether it is back, before it costs
    /// the patience of whole audits. A verdict if it is not.
    async fn probe(&self, r: &RenterAgreement, epoch: u32) -> Option<Heard> {
        let asked = r.asked.0 == epoch && r.asked.1 > 0;
        if !asked && !r.verdict.as_ref().is_some_and(Verdict::is_silence) {
            return None;
        }
        let limit = if self.local { LOCAL_PROBE } else { ANSWER_DEADLINE };
        let began = Instant::now();
        let verdict =
            match self.ask_within(&r.host, &RentalRequest::Status { id: r.agreement.id }, limit).await {
                Err(RentError::Courier(CourierError::Timeout)) => Verdict::Timeout,
                Err(RentError::Courier(CourierError::Unreachable(_))) => Verdict::Offline,
                _ => return None,
            };
        Some(Heard { verdict, millis: began.elapsed().as_millis() as u64, excuse: false, ended: None })
    }

    async fn audit_once(self: &Arc<Self>, r: &RenterAgreement, from: u32, epoch: u32) -> Heard {
        let nonce = B256::from(rand::rng().random::<[u8; 32]>());
        let request = AuditRequest { id: r.agreement.id, from, epoch, nonce };
        let withheld = self.withhold(r, &request).await;
        let began = Instant::now();
        let reply = self.courier.ask(&r.host, AUDIT_PROTOCOL, encode(&request), ANSWER_DEADLINE).await;
        let elapsed = began.elapsed();
        drop(withheld);
        let reply = reply.and_then(|bytes| {
            decode(&bytes, MAX_AUDIT_REPLY).map_err(|e| CourierError::Protocol(e.to_string()))
        });
        let excuse = audit::is_excuse(&reply);
        let ended = match &reply {
            Ok(AuditReply::Refused(Refusal::Ended { epoch })) => Some(*epoch),
            _ => None,
        };
        let verdict = match audit::judge(&r.agreement, &request, reply) {
            // Late is silent, whatever the transport thought.
            Verdict::Pass if elapsed > ANSWER_DEADLINE => Verdict::Timeout,
            verdict => verdict,
        };
        Heard { verdict, millis: elapsed.as_millis() as u64, excuse, ended }
    }

    /// Writes the verdict, and with a pass the voucher, in one batch; only then is anything sent.
    async fn record(
        self: &Arc<Self>,
        id: B256,
        from: u32,
        epoch: u32,
        verdict: Verdict,
        millis: u64,
        paid: Btt,
    ) -> Result<(), RentError> {
        let (domain, key) = (*self.money.domain(), self.key.clone());
        let host = self.agreement(id).await?.host;
        let tripped = self.take_trip(&host);
        self.change(id, move |s, batch, r| {
            if r.next != from {
                // Somebody judged it meanwhile; one verdict is enough.
                return Ok(());
            }
            if verdict == Verdict::Pass {
                let last = r.voucher.as_ref().map(|v| &v.document);
                let voucher = vouchers::after_pass(&r.agreement, last, paid, from, epoch)?;
                r.voucher = Some(Signed::sign(voucher, &domain, &key));
                r.acknowledged = false;
            }
            let letter = match &verdict {
                Verdict::Pass => 'P',
                Verdict::Timeout => 'T',
                Verdict::Offline => 'O',
                Verdict::Fail(_) | Verdict::Unknown(_) => 'F',
            };
            r.days.extend(std::iter::repeat_n(letter, (epoch + 1 - from) as usize));
            r.next = epoch + 1;
            r.excused = None;
            r.paid = r.paid.max(paid);
            remember(s, batch, &r.host, |h| reckon(&mut h.reputation, &verdict, millis, tripped))?;
            r.verdict = Some(verdict);
            Ok(())
        })
        .await
    }

    /// Sends the newest voucher until it is acknowledged, adopting a better one of ours that the host shows.
    async fn pay(self: &Arc<Self>, id: B256) -> Result<Brought, RentError> {
        // Twice: a voucher that was behind is made anew on the better one.
        for _ in 0..2 {
            let r = self.agreement(id).await?;
            let Some(voucher) = r.voucher.clone().filter(|_| !r.acknowledged) else { break };
            let send = RentalRequest::Voucher { id, voucher: voucher.clone() };
            match self.ask_within(&r.host, &send, QUICK_ANSWER).await {
                Ok(RentalReply::Acknowledged { amount, epochs }) if amount >= voucher.document.amount => {
                    self.acknowledged(id, voucher, amount, epochs).await?;
                }
                Ok(RentalReply::Behind { voucher: shown }) => self.adopt(id, shown).await?,
                Ok(other) => return Err(unexpected(&other)),
                Err(RentError::Courier(error)) => {
                    tracing::info!(agreement = %id, %error, "the host is away; its voucher waits");
                    return Ok(match error {
                        CourierError::Timeout => Brought::Silence(Verdict::Timeout),
                        CourierError::Unreachable(_) => Brought::Silence(Verdict::Offline),
                        // It, or this node, is busy or starting: the audit says more.
                        _ => Brought::Done,
                    });
                }
                Err(RentError::Refused(refusal)) => {
                    tracing::warn!(agreement = %id, %refusal, "the host did not credit the voucher; it waits");
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(Brought::Done)
    }

    async fn acknowledged(
        self: &Arc<Self>,
        id: B256,
        sent: Signed<Voucher>,
        amount: Btt,
        epochs: u32,
    ) -> Result<(), RentError> {
        let host = self
            .change(id, move |_, _, r| {
                // A newer voucher may have been made meanwhile.
                r.acknowledged = r.voucher.as_ref() == Some(&sent);
                Ok(r.host)
            })
            .await?;
        self.events.send(MarketEvent::VoucherAcknowledged { id, host, amount, epochs });
        Ok(())
    }

    /// Takes over a better voucher of our own (our state is older than the host's), and puts on top of it what was
    /// proven since.
    async fn adopt(self: &Arc<Self>, id: B256, shown: Signed<Voucher>) -> Result<(), RentError> {
        let (domain, key) = (*self.money.domain(), self.key.clone());
        self.change(id, move |_, _, r| {
            let ours = shown.verify(&domain, r.channel.renter).is_ok();
            let last = r.voucher.as_ref().map(|v| &v.document);
            let better = last.is_none_or(|l| shown.document.amount >= l.amount);
            if !ours || !better || !vouchers::adopt(&r.agreement, None, &shown.document) {
                return Err(RentError::Protocol("the voucher it shows is not a better one of ours".into()));
            }
            let judged = shown.document.epochs;
            let newer = r.days.bytes().skip(judged as usize).filter(|b| *b == b'P').count() as u32;
            // Epochs that the shown voucher covers and we have lost the memory of.
            let lost = judged.saturating_sub(r.next);
            r.days.extend(std::iter::repeat_n('-', lost as usize));
            r.next = r.next.max(judged);
            r.acknowledged = newer == 0;
            r.voucher = Some(match newer {
                0 => shown,
                _ => {
                    let base = shown.document.amount.max(r.paid);
                    let voucher = vouchers::on_top(&r.agreement, base, newer, r.next)?;
                    Signed::sign(voucher, &domain, &key)
                }
            });
            Ok(())
        })
        .await
    }
}

/// Whether an agreement may need something: it runs, or its last voucher has not arrived and still can be paid, or its
/// host has not heard that it is over.
fn has_work(r: &RenterAgreement, now: u64) -> bool {
    match r.state {
        RenterState::Offered | RenterState::Active | RenterState::Closing => true,
        RenterState::Done => {
            let unheard = r.voucher.is_some() && !r.acknowledged;
            let payable = now < r.schedule().data_until().saturating_add(u64::from(r.channel.window));
            // A host that did not hear of the end keeps the data for the whole term.
            let kept = r.ends.is_some() && !r.notice_heard;
            (unheard && payable) || (kept && now < Schedule::of(&r.agreement, None).data_until())
        }
        _ => false,
    }
}

/// What came of asking.
struct Heard {
    verdict: Verdict,
    millis: u64,
    /// Whether the silence was an excuse in words.
    excuse: bool,
    /// The end that the host names instead of an answer.
    ended: Option<u32>,
}

/// Whether there was a nonce left.
enum Nonce {
    Taken,
    /// This audit has had all.
    Spent,
    /// Audits of other epochs have had all that the host answers at the moment.
    SpentElsewhere,
}

/// What came of bringing a voucher.
enum Brought {
    /// The host has answered, or there is nothing to bring.
    Done,
    /// It could not be asked: what an audit would have shown.
    Silence(Verdict),
}

/// What became of a due audit.
enum Judged {
    /// Recorded.
    Yes,
    /// Its time has not come, or silence is asked again.
    NotYet,
    /// Nothing can be said; a later audit covers these epochs too.
    Open,
}

/// Moves a host's reputation by one verdict.
fn reckon(r: &mut Reputation, verdict: &Verdict, millis: u64, tripped: bool) {
    match verdict {
        Verdict::Pass => {
            r.passed += 1;
            r.streak = 0;
            let allowed = SLOW_ANSWER.as_millis() as u64 + r.latency_ms;
            r.slow += u64::from(millis > allowed);
        }
        Verdict::Fail(_) => {
            r.failed += 1;
            r.streak += 1;
        }
        Verdict::Timeout | Verdict::Offline => {
            r.silent += 1;
            r.streak += 1;
        }
        Verdict::Unknown(_) => {}
    }
    r.tripwires += u64::from(tripped);
}
