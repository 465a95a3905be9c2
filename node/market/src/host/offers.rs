//! The signed offer: made from the settings when somebody asks, kept until it expires.

use btfs_ledger::B256;
use btfs_ledger::typed::{Document, Offer, Signed};
use btfs_storage::Store;

use super::{HostService, Inner, internal, records, used_bytes};
use crate::messages::{OfferReply, OfferRequest, Refusal};

/// Seconds that an offer stands, on the settlement's clock: long enough to place a large thing on it.
const OFFER_LIFE: u64 = 2 * 86_400;
/// A standing offer with less time left than this is not handed out any more.
const OFFER_SPARE: u64 = 86_400;
/// An offer's free space may be off by this share of the capacity, so that not every agreement makes a new offer.
const FREE_STEPS: u64 = 64;
/// Offers kept at once; the settings of a host do not change hundreds of times in two days.
const MAX_OFFERS: usize = 256;

impl HostService {
    /// Answers a request of `/btfs/offer/1`.
    pub async fn offer(&self, request: OfferRequest) -> OfferReply {
        let OfferRequest::Get = request;
        match self.current_offer().await {
            Ok(Some(offer)) => OfferReply::Offer(Box::new(offer)),
            Ok(None) => OfferReply::NotRenting,
            Err(error) => {
                tracing::warn!(%error, "no offer can be made");
                OfferReply::NotRenting
            }
        }
    }

    /// The offer in force: a stored one that still says the truth, else a new one, durable before it goes out.
    async fn current_offer(&self) -> Result<Option<Signed<Offer>>, Refusal> {
        let settings = self.settings();
        if !settings.renting {
            return Ok(None);
        }
        let now = self.0.now().await?;
        let free = settings.capacity.saturating_sub(used_bytes(&self.0.all().await.map_err(internal)?));
        let host = self.0.key.address();
        let wanted = Offer {
            host,
            payee: settings.payee.unwrap_or(host),
            price: settings.price,
            setup_price: settings.setup_price,
            min_term: settings.min_term,
            max_term: settings.max_term,
            max_size: settings.max_size,
            free,
            collateral: 0,
            window: settings.window,
            expires: now.saturating_add(OFFER_LIFE),
        };
        let inner = self.0.clone();
        let spare = settings.capacity / FREE_STEPS;
        self.0.store.run(move |s| inner.stand_by(s, wanted, now, spare)).await.map(Some)
    }

    /// The offer that a draft names, if it still stands.
    pub(super) async fn standing_offer(&self, digest: B256) -> Result<Offer, Refusal> {
        let now = self.0.now().await?;
        let found =
            self.0.store.run(move |s| s.state().get(&records::OFFERS, &digest.0)).await.map_err(internal)?;
        found.map(|o| o.document).filter(|o| o.expires > now).ok_or(Refusal::StaleOffer)
    }
}

impl Inner {
    /// A standing offer that says the same as `wanted` but for `spare` bytes of space, or a new one.
    fn stand_by(&self, s: &Store, wanted: Offer, now: u64, spare: u64) -> Result<Signed<Offer>, Refusal> {
        let _one = self.write.lock();
        let db = s.state();
        let mut batch = db.batch();
        let mut standing = Vec::new();
        for record in db.scan(&records::OFFERS, &[]) {
            let (key, offer) = record.map_err(internal)?;
            if offer.document.expires <= now {
                batch.delete(&records::OFFERS, &key).map_err(internal)?;
            } else {
                standing.push(offer);
            }
        }
        let good = |o: &&Signed<Offer>| {
            let o = &o.document;
            let same = Offer { expires: wanted.expires, free: wanted.free, ..o.clone() } == wanted;
            same && o.expires > now + OFFER_SPARE && o.free.abs_diff(wanted.free) <= spare
        };
        let found = standing.iter().find(good).cloned();
        if found.is_none() && standing.len() >= MAX_OFFERS {
            return Err(Refusal::Rate("too many offers were made in two days".into()));
        }
        let offer = match found {
            Some(offer) => offer,
            None => {
                let offer = Signed::sign(wanted, self.money.domain(), &self.key);
                let digest = offer.document.digest(self.money.domain());
                batch.put(&records::OFFERS, &digest.0, &offer).map_err(internal)?;
                offer
            }
        };
        if !batch.is_empty() {
            db.commit(batch).map_err(internal)?;
        }
        Ok(offer)
    }
}
