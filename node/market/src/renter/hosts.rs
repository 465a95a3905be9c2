//! Knowing the hosts: collecting offers, remembering how each behaved, and showing why one is (not) used.

use std::sync::Arc;
use std::time::{Duration, Instant};

use btfs_ledger::typed::{Offer, Signed};
use btfs_ledger::{Btt, PublicKey};
use btfs_storage::db::DbError;
use futures::StreamExt;
use serde::Serialize;

use super::records::{HOSTS, HostRecord};
use super::{Inner, RentError, RenterService};
use crate::messages::{self, OFFER_PROTOCOL, OfferReply, OfferRequest};
use crate::ports::CourierError;
use crate::score::{self, Exclusion, Need, Reputation, SubScores};

/// Hosts looked for in the network at once.
const MAX_HOSTS: usize = 300;
/// Hosts remembered; the worst known give way. Bounds the table whatever the network announces.
const MAX_REMEMBERED: usize = 10_000;
/// Offers asked for at once.
const ASKING: usize = 32;
/// Wall-clock time for an offer.
const OFFER_WAIT: Duration = Duration::from_secs(5);

/// One host as `btfs market` shows it.
#[derive(Clone, Debug, Serialize)]
pub struct HostLine {
    /// The host's node.
    pub peer: PublicKey,
    /// Its offer, if it has one.
    pub offer: Option<Offer>,
    /// The parts of its score, if it fits.
    pub scores: Option<SubScores>,
    /// Their product.
    pub score: f64,
    /// Why it is not used.
    pub excluded: Option<Exclusion>,
    /// The same in words.
    pub why: Option<&'static str>,
    /// What is remembered of it.
    pub reputation: Reputation,
}

/// The market as it was found.
pub(super) struct Survey {
    pub hosts: Vec<(PublicKey, HostRecord)>,
    pub typical_price: Btt,
}

impl RenterService {
    /// Asks the network for hosts and every host for its offer, and shows all of them, best first. `need` says what
    /// for; without one, for a small thing over 30 days.
    pub async fn market(&self, need: Option<Need>) -> Result<Vec<HostLine>, RentError> {
        let now = self.0.now().await?;
        let thirty_days = 30 * 86_400;
        let need = need.unwrap_or(Need {
            size: 1 << 20,
            term: thirty_days,
            max_price: None,
            max_setup: None,
            max_window: super::plan::MAX_WINDOW,
            now,
        });
        let survey = self.0.survey(now).await?;
        let mut lines: Vec<HostLine> =
            survey.hosts.iter().map(|(peer, r)| self.0.line(*peer, r, &need, survey.typical_price)).collect();
        lines.sort_by(|a, b| b.score.total_cmp(&a.score));
        Ok(lines)
    }
}

impl Inner {
    /// The judgement over one host.
    pub(super) fn line(&self, peer: PublicKey, record: &HostRecord, need: &Need, typical: Btt) -> HostLine {
        let offer = record.offer.as_ref().map(|o| o.document.clone());
        let fit = match &offer {
            _ if peer == self.key.public() => Err(Exclusion::Myself),
            None => Err(Exclusion::NoOffer),
            Some(offer) => score::fits(offer, &record.reputation, need),
        };
        let scores = match (&fit, &offer) {
            (Ok(()), Some(offer)) => Some(score::score(offer, &record.reputation, need, typical)),
            _ => None,
        };
        let excluded = fit.err();
        HostLine {
            peer,
            score: scores.map_or(0.0, |s| s.total()),
            scores,
            why: excluded.map(Exclusion::phrase),
            excluded,
            offer,
            reputation: record.reputation.clone(),
        }
    }

    /// Asks discovered and remembered hosts for their offers, and remembers the answers.
    pub(super) async fn survey(self: &Arc<Self>, now: u64) -> Result<Survey, RentError> {
        let mut peers = self.discovery.hosts(MAX_HOSTS).await;
        let known = self.remembered().await?;
        peers.extend(known.iter().map(|(k, _)| *k));
        peers.sort();
        peers.dedup();
        peers.truncate(MAX_HOSTS * 2);
        let answers: Vec<_> = futures::stream::iter(peers)
            .map(|peer| async move { (peer, self.ask_offer(peer).await) })
            .buffer_unordered(ASKING)
            .collect()
            .await;
        let room = MAX_REMEMBERED.saturating_sub(known.len());
        let hosts = self
            .write(move |s, batch| {
                let mut hosts = Vec::new();
                let mut new = 0;
                for (peer, answer) in answers {
                    let found = s.state().get(&HOSTS, peer.as_bytes())?;
                    let fresh = found.is_none();
                    let mut record: HostRecord = found.unwrap_or_default();
                    note(&mut record, answer, now);
                    // A peer that was announced but never had an offer is not worth a record.
                    if fresh && (record.offer.is_none() || new >= room) {
                        hosts.push((peer, record));
                        continue;
                    }
                    new += usize::from(fresh);
                    batch.put(&HOSTS, peer.as_bytes(), &record)?;
                    hosts.push((peer, record));
                }
                Ok(hosts)
            })
            .await?;
        let mut prices: Vec<Btt> =
            hosts.iter().filter_map(|(_, r)| r.offer.as_ref().map(|o| o.document.price)).collect();
        prices.sort();
        let typical_price = prices.get(prices.len() / 2).copied().unwrap_or(Btt::ZERO);
        Ok(Survey { hosts, typical_price })
    }

    async fn remembered(&self) -> Result<Vec<(PublicKey, HostRecord)>, DbError> {
        self.store
            .run(|s| {
                let mut out = Vec::new();
                for row in s.state().scan(&HOSTS, &[]) {
                    let (key, record) = row?;
                    // Only valid keys are ever written.
                    out.extend(PublicKey::from_bytes(&key).ok().map(|k| (k, record)));
                }
                Ok(out)
            })
            .await
    }

    /// One host's offer with the time it took; `None` if it gave none that holds.
    async fn ask_offer(&self, peer: PublicKey) -> Option<(Option<Signed<Offer>>, u64)> {
        if peer == self.key.public() {
            return None;
        }
        let began = Instant::now();
        let request = messages::encode(&OfferRequest::Get);
        let mut reply = self.courier.ask(&peer, OFFER_PROTOCOL, request.clone(), OFFER_WAIT).await;
        if matches!(reply, Err(CourierError::Unreachable(_))) {
            // A connection may have broken at this moment.
            reply = self.courier.ask(&peer, OFFER_PROTOCOL, request, OFFER_WAIT).await;
        }
        let bytes = reply.inspect_err(|error| tracing::debug!(host = %peer, %error, "no offer")).ok()?;
        let millis = began.elapsed().as_millis() as u64;
        match messages::decode(&bytes, messages::MAX_OFFER_FRAME).ok()? {
            OfferReply::NotRenting => Some((None, millis)),
            OfferReply::Offer(offer) => {
                let host = peer.address();
                let holds = offer.document.host == host && offer.verify(self.money.domain(), host).is_ok();
                Some((holds.then_some(*offer), millis))
            }
        }
    }
}

/// Writes down one visit.
fn note(record: &mut HostRecord, answer: Option<(Option<Signed<Offer>>, u64)>, now: u64) {
    let r = &mut record.reputation;
    match answer {
        None => {
            r.visits_missed += 1;
            record.offer = None;
        }
        Some((offer, millis)) => {
            r.visits_answered += 1;
            r.latency_ms = millis;
            if r.first_seen == 0 && offer.is_some() {
                r.first_seen = now;
            }
            record.offer = offer;
        }
    }
}
