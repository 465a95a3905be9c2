//! The quote: what storing a thing would take, before anybody is bound.
//!
//! Quoting lays the content out, makes its parity (kept for an hour under an expiring pin) and draws the hosts, so
//! that accepting only has to do what was shown.

use std::sync::Arc;

use btfs_ledger::price::{epoch_price, total_price};
use btfs_ledger::typed::{Offer, Signed};
use btfs_ledger::{B256, Btt, PublicKey};
use btfs_storage::blocklist::BlockList;
use btfs_storage::layout::Layout;
use btfs_storage::{BlockSource, Cid, Class, Pin, PinKind, Store, erasure, read};
use rand::RngExt;
use serde::{Deserialize, Serialize};

use super::hosts::Survey;
use super::records::{self, Bounds, QuotedPrice, Slot, Spread, Thing, ThingState};
use super::{Inner, RentError, RenterService};
use crate::pages;
use crate::ports::wall_clock;
use crate::score::{self, Candidate, Exclusion, Exclusions, Need};
use crate::terms;

/// Longest notice period of a channel that is accepted: money would be stuck for longer.
pub(super) const MAX_WINDOW: u64 = 14 * 86_400;
/// Quotes that wait for an answer at once.
const MAX_QUOTES: usize = 16;
/// Wall-clock seconds that a quote and its parity blocks are kept.
const QUOTE_LIFE: u64 = 3600;
/// Most anchors: more copies of the same bytes are not more hosts' work.
const MAX_ANCHORS: u8 = 4;
/// Default redundancy by the number of usable hosts: the widest that leaves a choice.
const PRESETS: [(usize, u8, u8); 3] = [(40, 10, 20), (16, 4, 8), (6, 2, 4)];

/// What is to be stored.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StoreRequest {
    /// Root of the content, all of it on this node.
    #[serde(with = "crate::cid_text")]
    pub root: Cid,
    /// What the user calls it.
    #[serde(default)]
    pub name: Option<String>,
    /// `(k, m)`; by the number of usable hosts if not given.
    #[serde(default)]
    pub redundancy: Option<(u8, u8)>,
    /// Whole copies instead of coding.
    #[serde(default)]
    pub copies: Option<u8>,
    /// More hosts that hold all of coded content, for plain IPFS and BitTorrent clients.
    #[serde(default)]
    pub anchors: u8,
    /// Epochs to pay for.
    pub epochs: u32,
    /// Seconds per epoch; a day if not given.
    #[serde(default)]
    pub epoch_length: Option<u32>,
    /// Most to pay for a GiB-day.
    #[serde(default)]
    pub max_price: Option<Btt>,
}

/// One host in a quote.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct QuotedHost {
    /// The host's node.
    pub peer: PublicKey,
    /// Which column it gets.
    pub column: usize,
    /// Bytes it keeps.
    pub size: u64,
    /// Its price for a GiB-day.
    pub price_per_gib_day_btt: Btt,
    /// Its price once per agreement.
    #[serde(default)]
    pub setup_price_btt: Btt,
    /// Its price for one epoch of this.
    pub epoch_price_btt: Btt,
    /// Setup and all epochs.
    pub total_btt: Btt,
    /// Its score.
    pub score: f64,
}

/// What storing would take.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Quote {
    /// Names the quote for [`RenterService::accept`].
    pub id: String,
    /// Root of the content.
    #[serde(with = "crate::cid_text")]
    pub root: Cid,
    /// The layout; none for copies.
    #[serde(with = "crate::cid_text::option", default)]
    pub layout: Option<Cid>,
    /// How it would be spread.
    pub spread: Spread,
    /// Bytes of the content's blocks.
    pub size: u64,
    /// Bytes on all hosts together.
    pub stored_size: u64,
    /// Epochs and their length in seconds.
    pub epochs: u32,
    /// Seconds per epoch.
    pub epoch_length: u32,
    /// The hosts, by column; anchors come last.
    pub hosts: Vec<QuotedHost>,
    /// Hosts that would also fit, for replacements.
    pub spare_hosts: usize,
    /// Why the others do not.
    pub excluded: Exclusions,
    /// To be locked: the most this can ever cost.
    pub lock_btt: Btt,
    /// The most for a GiB-day of a host that replaces one of these before it has begun.
    #[serde(default)]
    pub replacement_price_btt: Btt,
    /// The most that is locked in all if hosts have to be replaced.
    #[serde(default)]
    pub limit_btt: Btt,
    /// What the account has.
    pub balance_btt: Btt,
    /// Probability of loss within a year with weekly repair, hosts failing independently at 90 % a year.
    pub yearly_loss: f64,
    /// Probability of loss within the term without any repair.
    pub term_loss: f64,
    /// What the user should know besides.
    pub note: Option<String>,
}

/// A quote with what accepting it needs.
pub(crate) struct Prepared {
    quote: Quote,
    lists: Vec<Arc<BlockList>>,
    max_price: Option<Btt>,
    bounds: Bounds,
    name: Option<String>,
    made: u64,
}

/// Content laid out for a spread.
struct Laid {
    spread: Spread,
    layout: Option<Cid>,
    size: u64,
    /// One list per host.
    lists: Vec<Arc<BlockList>>,
    note: Option<String>,
}

impl RenterService {
    /// Lays the content out, finds hosts and says what it would cost. `progress` is told bytes of content read.
    pub async fn quote(
        &self,
        request: StoreRequest,
        progress: impl FnMut(u64) + Send + 'static,
    ) -> Result<Quote, RentError> {
        let epoch_length = request.epoch_length.unwrap_or(terms::DAY);
        if request.epochs == 0 || request.epochs > terms::MAX_EPOCHS {
            return Err(RentError::Request(format!("a term has 1 to {} epochs", terms::MAX_EPOCHS)));
        }
        if request.anchors > MAX_ANCHORS {
            return Err(RentError::Request(format!("at most {MAX_ANCHORS} anchors are possible")));
        }
        let root = request.root;
        if self.0.store.run(move |s| s.block_size(&root)).await? == Some(0) {
            // Said before hosts are asked: no host could change it.
            return Err(RentError::Empty);
        }
        let now = self.0.now().await?;
        let term = u64::from(request.epochs) * u64::from(epoch_length);
        let survey = self.0.survey(now).await?;
        let need = Need {
            size: 1,
            term,
            max_price: request.max_price,
            max_setup: None,
            max_window: MAX_WINDOW,
            now,
        };
        let (k, m) = redundancy(&request, self.0.usable(&survey, &need))?;
        let id = hex::encode(rand::rng().random::<[u8; 16]>());
        let (pin, wanted) = (format!("quote:{id}"), request.clone());
        let laid = self.0.store.run(move |s| lay_out(s, &wanted, k, m, &pin, progress)).await?;
        let largest = laid.lists.iter().map(|l| l.size()).max().unwrap_or(0);
        let need = Need { size: largest, ..need };
        let (chosen, spare, excluded) = self.0.choose(&survey, &need, laid.lists.len(), &[]).await;
        if chosen.len() < laid.lists.len() {
            let (needed, found, known) = (laid.lists.len(), chosen.len(), survey.hosts.len());
            return Err(RentError::NoHosts { needed, found, known, excluded });
        }
        let hosts = price_hosts(&laid, &chosen, request.epochs, epoch_length)?;
        let lock = Btt::checked_sum(hosts.iter().map(|h| h.total_btt)).ok_or(terms::TermsError::Overflow)?;
        let bounds = bounds(&laid, &hosts, lock, &request, epoch_length)?;
        let needed = laid.spread.needed() as u32;
        let quote = Quote {
            root: request.root,
            layout: laid.layout,
            spread: laid.spread,
            size: laid.size,
            stored_size: laid.lists.iter().map(|l| l.size()).sum(),
            epochs: request.epochs,
            epoch_length,
            spare_hosts: spare,
            excluded,
            lock_btt: lock,
            replacement_price_btt: bounds.price,
            limit_btt: bounds.total,
            balance_btt: self.0.money.balance().await?,
            yearly_loss: score::yearly_loss(needed, laid.spread.hosts() as u32),
            term_loss: score::term_loss(needed, laid.spread.hosts() as u32, term),
            note: laid.note,
            id,
            hosts,
        };
        let (lists, max_price, name) = (laid.lists, request.max_price, request.name);
        let made = wall_clock();
        self.0.keep_quote(Prepared { quote: quote.clone(), lists, max_price, bounds, name, made })?;
        Ok(quote)
    }

    /// Orders what a quote says. Returns the thing's id; [`status`](Self::status) and the events show the rest.
    pub async fn accept(&self, quote: &str) -> Result<B256, RentError> {
        let prepared =
            self.0.quotes.lock().remove(quote).ok_or_else(|| RentError::NoQuote(quote.to_owned()))?;
        let (needed, balance) = (prepared.quote.lock_btt, self.0.money.balance().await?);
        if balance < needed {
            return Err(RentError::NotEnough { needed, balance });
        }
        let id = B256::from(rand::rng().random::<[u8; 32]>());
        let thing = thing_of(&prepared);
        self.0
            .write(move |s, batch| {
                let mut kept = std::collections::HashSet::new();
                for list in &prepared.lists {
                    let digest = B256::from(list.digest());
                    if kept.insert(digest) {
                        pages::delete(s.state(), batch, &records::LISTS, digest)?;
                        pages::put(batch, &records::LISTS, digest, &list.encode())?;
                    }
                }
                let pin = |id: String, kind, root| Pin {
                    id: id.into(),
                    kind,
                    root,
                    class: Class::Own,
                    name: None,
                    expires: None,
                };
                s.pin(batch, &pin(content_pin(id), PinKind::Recursive, thing.root))?;
                if let Some(layout) = thing.layout {
                    let layout = Layout::load(&layout, s).map_err(|e| RentError::Content(e.to_string()))?;
                    let own: Vec<Cid> = layout.own_blocks().iter().map(|b| b.0).collect();
                    s.pin_list(batch, &pin(layout_pin(id), PinKind::List, layout.cid()), &own)?;
                    let parity: Vec<Cid> = layout.parity_blocks().map(|b| b.0).collect();
                    s.pin_list(batch, &pin(parity_pin(id), PinKind::List, layout.cid()), &parity)?;
                }
                let kept = s.unpin(batch, &format!("quote:{}", prepared.quote.id).into())?;
                if thing.layout.is_some() && !kept {
                    // It expired, and a collection may have taken its parity since.
                    return Err(RentError::NoQuote(prepared.quote.id.clone()));
                }
                batch.put(&records::THINGS, &id.0, &thing)?;
                Ok(())
            })
            .await?;
        self.0.clone().start_placing(id);
        Ok(id)
    }
}

/// The pin that keeps the content while hosts pull it.
pub(super) fn content_pin(id: B256) -> String {
    format!("store:{}:content", hex::encode(id))
}

/// The pin of the layout, for as long as the thing is stored.
pub(super) fn layout_pin(id: B256) -> String {
    format!("store:{}:layout", hex::encode(id))
}

/// The pin of the parity blocks while hosts pull them.
pub(super) fn parity_pin(id: B256) -> String {
    format!("store:{}:parity", hex::encode(id))
}

fn thing_of(prepared: &Prepared) -> Thing {
    let q = &prepared.quote;
    let slot = |(list, host): (&Arc<BlockList>, &QuotedHost)| Slot {
        list: B256::from(list.digest()),
        planned: host.peer,
        quoted: Some(QuotedPrice { price: host.price_per_gib_day_btt, setup_price: host.setup_price_btt }),
        agreement: None,
        tried: Vec::new(),
    };
    Thing {
        root: q.root,
        layout: q.layout,
        name: prepared.name.clone(),
        spread: q.spread,
        size: q.size,
        created: wall_clock(),
        epochs: q.epochs,
        epoch_length: q.epoch_length,
        max_price: prepared.max_price,
        state: ThingState::Placing,
        problem: None,
        slots: prepared.lists.iter().zip(&q.hosts).map(slot).collect(),
        bounds: Some(prepared.bounds),
        cancelled: false,
    }
}

/// k and m: as asked, or by the number of usable hosts.
fn redundancy(request: &StoreRequest, hosts: Usable) -> Result<(u8, u8), RentError> {
    if let Some(n) = request.copies {
        if n == 0 || n > btfs_storage::layout::MAX_COPIES {
            let most = btfs_storage::layout::MAX_COPIES;
            return Err(RentError::Request(format!("1 to {most} copies are possible")));
        }
        return Ok((1, n));
    }
    if let Some(km) = request.redundancy {
        return Ok(km);
    }
    let Usable { usable, known, excluded } = hosts;
    let preset = PRESETS.iter().find(|(hosts, ..)| usable >= *hosts);
    match (preset, usable) {
        (Some((_, k, m)), _) => Ok((*k, *m)),
        (None, 0) => Err(RentError::NoHosts { needed: 6, found: 0, known, excluded }),
        (None, _) => Err(RentError::Request(format!(
            "{usable} usable hosts are too few for erasure coding (6 are needed for 2+4); of {known} known \
             {excluded}; ask for whole copies instead, for example --copies {}",
            usable.min(3)
        ))),
    }
}

/// How many hosts would do, and why the others would not.
struct Usable {
    usable: usize,
    known: usize,
    excluded: Exclusions,
}

/// Walks the content, decides between coding and copies, and makes parity and lists.
fn lay_out(
    s: &Store,
    request: &StoreRequest,
    k: u8,
    m: u8,
    pin: &str,
    mut progress: impl FnMut(u64),
) -> Result<Laid, RentError> {
    let content = |e: &dyn std::fmt::Display| RentError::Content(e.to_string());
    let (root, copies) = (&request.root, request.copies);
    let mut blocks = Vec::new();
    for block in read::walk(s, root) {
        let (cid, size) = block.map_err(|e| content(&e))?;
        blocks.push((cid, size));
        // A list has at most 65,536 entries and there are at most 256 hosts.
        if blocks.len() > 65_536 * 256 {
            return Err(RentError::Content("it has too many blocks; store its parts".into()));
        }
    }
    let plan = match erasure::plan(blocks, k, m) {
        Err(erasure::ErasureError::Empty) => return Err(RentError::Empty),
        other => other.map_err(|e| content(&e))?,
    };
    let spread = copies.map_or_else(|| Spread::from(plan.redundancy()), |n| Spread::Copies { n });
    let size = plan.size();
    if let Spread::Copies { n } = spread {
        let list = Arc::new(BlockList::from_blocks(plan.all_blocks()).map_err(|e| content(&e))?);
        let note = copies.is_none().then(|| {
            format!(
                "the content is smaller than {k} shards: it is kept as {n} whole copies, not erasure-coded"
            )
        });
        return Ok(Laid { spread, layout: None, size, lists: vec![list; usize::from(n)], note });
    }
    let mut ingest = s.ingest(Class::Own)?;
    let layout = erasure::encode(s, root, &plan, &mut ingest, &mut progress).map_err(|e| content(&e))?;
    let mut batch = s.state().batch();
    let made: Vec<Cid> =
        layout.own_blocks().iter().map(|b| b.0).chain(layout.parity_blocks().map(|b| b.0)).collect();
    let expires = Some(wall_clock() + QUOTE_LIFE);
    let kind = PinKind::List;
    let pin = Pin { id: pin.into(), kind, root: layout.cid(), class: Class::Own, name: None, expires };
    s.pin_list(&mut batch, &pin, &made)?;
    ingest.finish(batch)?;
    let list = |blocks| BlockList::from_blocks(blocks).map(Arc::new).map_err(|e| content(&e));
    let mut lists = (0..layout.columns()).map(|i| list(layout.column(i))).collect::<Result<Vec<_>, _>>()?;
    if request.anchors > 0 {
        lists.extend(vec![list(layout.anchor())?; usize::from(request.anchors)]);
    }
    Ok(Laid { spread, layout: Some(layout.cid()), size, lists, note: None })
}

/// What replacements may cost: what the user allowed, else a quarter more than what is quoted.
fn bounds(
    laid: &Laid,
    hosts: &[QuotedHost],
    lock: Btt,
    request: &StoreRequest,
    length: u32,
) -> Result<Bounds, RentError> {
    let a_quarter_more =
        |x: Btt| x.checked_add(Btt::from_units(x.units() / 4)).ok_or(terms::TermsError::Overflow);
    let dearest = hosts.iter().map(|h| h.price_per_gib_day_btt).max().unwrap_or(Btt::ZERO);
    let setup = hosts.iter().map(|h| h.setup_price_btt).max().unwrap_or(Btt::ZERO);
    let setup_price = a_quarter_more(setup)?;
    let Some(price) = request.max_price else {
        return Ok(Bounds { price: a_quarter_more(dearest)?, setup_price, total: a_quarter_more(lock)? });
    };
    let at_most = |list: &Arc<BlockList>| {
        let each = epoch_price(list.size(), price, length)?;
        total_price(setup_price, each, request.epochs)
    };
    let all: Option<Vec<Btt>> = laid.lists.iter().map(at_most).collect();
    let total = all.and_then(Btt::checked_sum).ok_or(terms::TermsError::Overflow)?;
    Ok(Bounds { price, setup_price, total })
}

type Chosen = Vec<(PublicKey, Signed<Offer>, f64)>;

fn price_hosts(laid: &Laid, chosen: &Chosen, epochs: u32, length: u32) -> Result<Vec<QuotedHost>, RentError> {
    let quoted = laid.lists.iter().zip(chosen).enumerate();
    quoted
        .map(|(column, (list, (peer, offer, score)))| {
            let offer = &offer.document;
            let each = epoch_price(list.size(), offer.price, length).ok_or(terms::TermsError::Overflow)?;
            let total = total_price(offer.setup_price, each, epochs).ok_or(terms::TermsError::Overflow)?;
            Ok(QuotedHost {
                peer: *peer,
                column,
                size: list.size(),
                price_per_gib_day_btt: offer.price,
                setup_price_btt: offer.setup_price,
                epoch_price_btt: each,
                total_btt: total,
                score: *score,
            })
        })
        .collect()
}

impl Inner {
    /// Keeps a quote until it is accepted or too old.
    fn keep_quote(&self, prepared: Prepared) -> Result<(), RentError> {
        let mut quotes = self.quotes.lock();
        quotes.retain(|_, p| p.made + QUOTE_LIFE > wall_clock());
        if quotes.len() >= MAX_QUOTES {
            return Err(RentError::Request("too many quotes wait for an answer; try again later".into()));
        }
        quotes.insert(prepared.quote.id.clone(), prepared);
        Ok(())
    }

    /// How many hosts fit a need.
    fn usable(&self, survey: &Survey, need: &Need) -> Usable {
        let mut excluded = Exclusions::default();
        let mut usable = 0;
        for (peer, record) in &survey.hosts {
            match self.line(*peer, record, need, survey.typical_price).excluded {
                Some(reason) => excluded.add(reason),
                None => usable += 1,
            }
        }
        Usable { usable, known: survey.hosts.len(), excluded }
    }

    /// Draws hosts for a need, best first, none of `tried`; also how many more would fit, and why others do not.
    pub(super) async fn choose(
        &self,
        survey: &Survey,
        need: &Need,
        wanted: usize,
        tried: &[PublicKey],
    ) -> (Chosen, usize, Exclusions) {
        let mut excluded = Exclusions::default();
        let mut pool = Vec::new();
        let mut used = std::collections::HashSet::new();
        if !self.local {
            for peer in tried {
                used.extend(self.discovery.ip_of(peer).await.map(score::Subnet::from));
            }
        }
        for (peer, record) in &survey.hosts {
            let line = self.line(*peer, record, need, survey.typical_price);
            let subnet = self.discovery.ip_of(peer).await.map(score::Subnet::from);
            let reason = match line.excluded {
                Some(reason) => Some(reason),
                None if tried.contains(peer) => Some(Exclusion::AlreadyUsed),
                None if subnet.is_some_and(|n| used.contains(&n)) => Some(Exclusion::SameSubnet),
                None => None,
            };
            match (reason, &record.offer) {
                (None, Some(offer)) => {
                    pool.push(Candidate { host: (*peer, offer.clone()), weight: line.score, subnet })
                }
                (reason, _) => excluded.add(reason.unwrap_or(Exclusion::NoOffer)),
            }
        }
        let fitting = pool.len();
        // Subnet caps hold everywhere but in networks declared local.
        let cap = (!self.local).then_some(1);
        let chosen = score::draw(pool, wanted, cap, &mut rand::rng(), &mut excluded);
        let spare = fitting - chosen.len();
        (chosen.into_iter().map(|c| (c.host.0, c.host.1, c.weight)).collect(), spare, excluded)
    }
}
