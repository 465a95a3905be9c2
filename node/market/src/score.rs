//! Which hosts to use, and why not the others: visible sub-scores, hard exclusions, weighted random choice.
//!
//! A score is the product of its parts. Each part lies in `[0.1, 1]`, so that no single weakness hides all others,
//! and an exclusion is a typed reason and not a zero that somebody has to explain. The caller passes in what it
//! knows and a random generator; nothing here asks anyone. Scores are the only floats near the market: money is
//! compared as integers and reaches a score as a ratio in parts per million.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::net::IpAddr;

use btfs_ledger::Btt;
use btfs_ledger::typed::Offer;
use rand::{Rng, RngExt};
use serde::{Deserialize, Serialize};

/// Lowest value of a sub-score.
pub const FLOOR: f64 = 0.1;
/// Share of choices made without regard to score, so that new hosts get a chance to prove themselves.
const EXPLORATION: f64 = 0.05;
/// Audits after which a host counts as vetted.
const VETTED_AUDITS: u64 = 100;
/// Seconds since first seen after which a host counts as vetted (7 days).
const VETTED_AGE: u64 = 7 * 86_400;
/// Misses in a row that exclude a host from new agreements.
const EXCLUDING_STREAK: u32 = 3;

/// What a renter remembers of a host, grown by audits and visits.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Reputation {
    /// Settlement time of the first offer seen.
    pub first_seen: u64,
    /// Epoch audits passed.
    pub passed: u64,
    /// Epoch audits answered wrongly or with "not found".
    pub failed: u64,
    /// Epoch audits that stayed without an answer.
    pub silent: u64,
    /// Answers that came, but later than the deadline for good ones.
    pub slow: u64,
    /// Missed epochs in a row, ending with the newest verdict.
    pub streak: u32,
    /// Requests for offers that were answered.
    pub visits_answered: u64,
    /// Requests for offers that were not.
    pub visits_missed: u64,
    /// Times it asked for exactly the blocks under challenge.
    pub tripwires: u64,
    /// Round-trip time of the last offer request in milliseconds.
    pub latency_ms: u64,
    /// Agreements that it was paid for after it had said that it did not sign them.
    #[serde(default)]
    pub denied: u64,
}

/// What is wanted from a host.
#[derive(Clone, Debug)]
pub struct Need {
    /// Bytes of the largest block list that one host would get.
    pub size: u64,
    /// Term in seconds.
    pub term: u64,
    /// Most that may be paid for a GiB-day.
    pub max_price: Option<Btt>,
    /// Most that may be asked once per agreement.
    pub max_setup: Option<Btt>,
    /// Longest channel window the renter accepts, in seconds.
    pub max_window: u64,
    /// Settlement time.
    pub now: u64,
}

/// Why a host is not used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Exclusion {
    /// It did not answer or rents nothing out.
    NoOffer,
    /// Its offer is past its time.
    Expired,
    /// The term is shorter than it accepts.
    BelowMinimumTerm,
    /// The term is longer than it accepts.
    AboveMaximumTerm,
    /// The data is larger than it takes in one agreement.
    TooLarge,
    /// It has less room than needed.
    NoSpace,
    /// Its price is above the limit.
    TooDear,
    /// It wants money locked longer than the limit.
    WindowTooLong,
    /// It asks for collateral terms this version does not know.
    UnknownTerms,
    /// It failed its last audits.
    FailedAudits,
    /// It took money for an agreement that it said it had not signed.
    Denied,
    /// Another chosen host is in the same subnet.
    SameSubnet,
    /// It already holds or refused a part of this thing.
    AlreadyUsed,
    /// It is this node.
    Myself,
}

impl Exclusion {
    /// The phrase that follows a count: "3 below the minimum term".
    pub fn phrase(self) -> &'static str {
        match self {
            Self::NoOffer => "without an offer",
            Self::Expired => "with an expired offer",
            Self::BelowMinimumTerm => "that want a longer term",
            Self::AboveMaximumTerm => "that want a shorter term",
            Self::TooLarge => "that take no agreement this large",
            Self::NoSpace => "without enough space",
            Self::TooDear => "too dear",
            Self::WindowTooLong => "that lock money for too long",
            Self::UnknownTerms => "with terms this version does not know",
            Self::FailedAudits => "that failed their last audits",
            Self::Denied => "that took money for what they said they had not signed",
            Self::SameSubnet => "in a subnet already used",
            Self::AlreadyUsed => "already used or tried for this",
            Self::Myself => "that is this node",
        }
    }
}

/// How many hosts each reason ruled out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exclusions(pub BTreeMap<Exclusion, u32>);

impl Exclusions {
    /// Counts one host.
    pub fn add(&mut self, reason: Exclusion) {
        *self.0.entry(reason).or_default() += 1;
    }

    /// Hosts ruled out in all.
    pub fn total(&self) -> u32 {
        self.0.values().sum()
    }
}

impl fmt::Display for Exclusions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("none was ruled out");
        }
        for (i, (reason, n)) in self.0.iter().enumerate() {
            let comma = if i == 0 { "" } else { ", " };
            write!(f, "{comma}{n} {}", reason.phrase())?;
        }
        Ok(())
    }
}

/// The parts of a score, each in `[0.1, 1]`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct SubScores {
    /// Cheaper than the middle of the market is better.
    pub price: f64,
    /// Share of requests answered.
    pub uptime: f64,
    /// Share of audits passed.
    pub audits: f64,
    /// Known for longer is better, up to the vetting age.
    pub age: f64,
    /// Room left beyond what is asked.
    pub space: f64,
    /// Round-trip time.
    pub latency: f64,
    /// Collateral offered (always 1 until collateral exists).
    pub collateral: f64,
}

impl SubScores {
    /// The product.
    pub fn total(&self) -> f64 {
        self.price * self.uptime * self.audits * self.age * self.space * self.latency * self.collateral
    }
}

fn part(x: f64) -> f64 {
    x.clamp(FLOOR, 1.0)
}

/// A share with one imagined success, so that the first miss of a new host is not its end.
fn share(good: u64, bad: u64) -> f64 {
    (good + 1) as f64 / (good + bad + 1) as f64
}

/// `a / b` as a float by way of parts per million; 1 if `b` is zero, capped at 1000.
fn ratio(a: u128, b: u128) -> f64 {
    if b == 0 {
        return if a == 0 { 1.0 } else { 1000.0 };
    }
    let ppm = a.checked_mul(1_000_000).map_or_else(|| (a / b).saturating_mul(1_000_000), |p| p / b);
    ppm.min(1_000_000_000) as f64 / 1e6
}

/// Whether a host can be used at all for this need; the first reason that rules it out.
pub fn fits(offer: &Offer, reputation: &Reputation, need: &Need) -> Result<(), Exclusion> {
    let fail = |bad: bool, why| if bad { Err(why) } else { Ok(()) };
    fail(offer.expires <= need.now, Exclusion::Expired)?;
    fail(need.term < offer.min_term, Exclusion::BelowMinimumTerm)?;
    fail(need.term > offer.max_term, Exclusion::AboveMaximumTerm)?;
    fail(need.size > offer.max_size, Exclusion::TooLarge)?;
    fail(need.size > offer.free, Exclusion::NoSpace)?;
    fail(need.max_price.is_some_and(|max| offer.price > max), Exclusion::TooDear)?;
    fail(need.max_setup.is_some_and(|max| offer.setup_price > max), Exclusion::TooDear)?;
    fail(u64::from(offer.window) > need.max_window, Exclusion::WindowTooLong)?;
    fail(offer.collateral != 0, Exclusion::UnknownTerms)?;
    fail(reputation.denied > 0, Exclusion::Denied)?;
    fail(reputation.streak >= EXCLUDING_STREAK, Exclusion::FailedAudits)
}

/// The parts of a host's score; `typical_price` is the median price of the offers in hand.
pub fn score(offer: &Offer, reputation: &Reputation, need: &Need, typical_price: Btt) -> SubScores {
    let r = reputation;
    let known_for = need.now.saturating_sub(r.first_seen) as f64 / VETTED_AGE as f64;
    let seen = (r.passed as f64 / VETTED_AUDITS as f64).min(1.0);
    // A slow answer is a quarter of a miss; a tripwire counts like five.
    let bad = r.failed + r.slow / 4 + r.tripwires * 5;
    SubScores {
        // At the typical price 0.67, free 1, twice the typical price 0.33.
        price: part(1.0 - ratio(offer.price.units(), typical_price.units()) / 3.0),
        uptime: part(share(r.visits_answered + r.passed, r.visits_missed + r.silent)),
        audits: part(share(r.passed, bad * 3)),
        age: part(0.5 + 0.25 * known_for.min(1.0) + 0.25 * seen),
        space: part(0.25 + ratio(u128::from(offer.free), u128::from(need.size.max(1)) * 16)),
        latency: part(1.0 - r.latency_ms as f64 / 2000.0),
        collateral: 1.0,
    }
}

/// The subnet that counts as one operator: /24 for IPv4, /48 for IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Subnet {
    /// The first 24 bits.
    V4([u8; 3]),
    /// The first 48 bits.
    V6([u8; 6]),
}

impl From<IpAddr> for Subnet {
    fn from(ip: IpAddr) -> Subnet {
        match ip.to_canonical() {
            IpAddr::V4(a) => {
                let o = a.octets();
                Subnet::V4([o[0], o[1], o[2]])
            }
            IpAddr::V6(a) => {
                let o = a.octets();
                Subnet::V6([o[0], o[1], o[2], o[3], o[4], o[5]])
            }
        }
    }
}

/// One host that fits, for the draw.
#[derive(Clone, Debug)]
pub struct Candidate<T> {
    /// The caller's handle.
    pub host: T,
    /// Product of its sub-scores, above 0.
    pub weight: f64,
    /// Where it is, if known.
    pub subnet: Option<Subnet>,
}

/// Draws up to `wanted` hosts, weighted by score and without repetition, and returns them best first: the first
/// ones take data columns. With `subnet_cap`, at most that many per subnet; hosts passed over for it are counted.
pub fn draw<T>(
    mut pool: Vec<Candidate<T>>,
    wanted: usize,
    subnet_cap: Option<usize>,
    rng: &mut impl Rng,
    exclusions: &mut Exclusions,
) -> Vec<Candidate<T>> {
    let mut chosen: Vec<Candidate<T>> = Vec::with_capacity(wanted.min(pool.len()));
    let mut per_subnet: HashMap<Subnet, usize> = HashMap::new();
    while chosen.len() < wanted && !pool.is_empty() {
        let explore = rng.random_bool(EXPLORATION);
        let weight = |c: &Candidate<T>| if explore { 1.0 } else { c.weight.max(1e-9) };
        let sum: f64 = pool.iter().map(weight).sum();
        let mut x = rng.random::<f64>() * sum;
        let at = pool.iter().position(|c| {
            x -= weight(c);
            x < 0.0
        });
        let pick = pool.swap_remove(at.unwrap_or(pool.len() - 1));
        if let (Some(cap), Some(net)) = (subnet_cap, pick.subnet) {
            let used = per_subnet.entry(net).or_default();
            if *used >= cap {
                exclusions.add(Exclusion::SameSubnet);
                continue;
            }
            *used += 1;
        }
        chosen.push(pick);
    }
    chosen.sort_by(|a, b| b.weight.total_cmp(&a.weight));
    chosen
}

/// Yearly probability of losing a k-of-n thing that is repaired weekly, if hosts vanish independently at 90 % a
/// year: pessimistic about hosts, optimistic about independence (hence the subnet caps).
pub fn yearly_loss(k: u32, n: u32) -> f64 {
    let weekly_host_loss = 1.0 - 0.1f64.powf(1.0 / 52.0);
    1.0 - (1.0 - loss_with(k, n, weekly_host_loss)).powi(52)
}

/// Probability of losing a k-of-n thing within `seconds` when nothing is repaired, on the same assumptions.
pub fn term_loss(k: u32, n: u32, seconds: u64) -> f64 {
    loss_with(k, n, 1.0 - 0.1f64.powf(seconds as f64 / (365.25 * 86_400.0)))
}

/// Probability that more than `n - k` of `n` hosts are lost when each is lost with probability `p`.
fn loss_with(k: u32, n: u32, p: f64) -> f64 {
    (n.saturating_sub(k) + 1..=n)
        .map(|lost| {
            let ways = (0..lost).fold(1.0, |acc, i| acc * f64::from(n - i) / f64::from(i + 1));
            ways * p.powi(lost as i32) * (1.0 - p).powi((n - lost) as i32)
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    fn offer() -> Offer {
        Offer {
            price: Btt::from_units(1000),
            max_term: 86_400 * 365,
            free: 1 << 34,
            expires: 10_000,
            ..crate::terms::tests::offer()
        }
    }

    fn need() -> Need {
        Need {
            size: 1 << 30,
            term: 30 * 86_400,
            max_price: None,
            max_setup: None,
            max_window: 14 * 86_400,
            now: 9_000,
        }
    }

    #[test]
    fn every_exclusion_has_its_cause() {
        let r = Reputation::default();
        let check = |o: &Offer, n: &Need| fits(o, &r, n);
        assert_eq!(check(&offer(), &need()), Ok(()));
        assert_eq!(check(&offer(), &Need { now: 10_000, ..need() }), Err(Exclusion::Expired));
        assert_eq!(check(&offer(), &Need { term: 86_399, ..need() }), Err(Exclusion::BelowMinimumTerm));
        assert_eq!(check(&offer(), &Need { term: 86_400 * 366, ..need() }), Err(Exclusion::AboveMaximumTerm));
        assert_eq!(check(&offer(), &Need { size: 1 << 41, ..need() }), Err(Exclusion::TooLarge));
        assert_eq!(check(&offer(), &Need { size: 1 << 35, ..need() }), Err(Exclusion::NoSpace));
        let poor = Need { max_price: Some(Btt::from_units(999)), ..need() };
        assert_eq!(check(&offer(), &poor), Err(Exclusion::TooDear));
        assert_eq!(check(&offer(), &Need { max_window: 86_400, ..need() }), Err(Exclusion::WindowTooLong));
        let bad = Reputation { streak: 3, ..r.clone() };
        assert_eq!(fits(&offer(), &bad, &need()), Err(Exclusion::FailedAudits));
    }

    #[test]
    fn counts_read_as_a_sentence() {
        let mut e = Exclusions::default();
        for x in [Exclusion::TooDear, Exclusion::BelowMinimumTerm, Exclusion::TooDear] {
            e.add(x);
        }
        assert_eq!(e.to_string(), "1 that want a longer term, 2 too dear");
        assert_eq!(e.total(), 3);
    }

    #[test]
    fn parts_stay_in_range_and_misses_cost() {
        let good = Reputation { passed: 200, visits_answered: 50, ..Default::default() };
        let bad =
            Reputation { passed: 100, failed: 100, visits_missed: 50, latency_ms: 9000, ..good.clone() };
        let typical = Btt::from_units(1000);
        let (g, b) = (score(&offer(), &good, &need(), typical), score(&offer(), &bad, &need(), typical));
        for s in [&g, &b] {
            for x in [s.price, s.uptime, s.audits, s.age, s.space, s.latency, s.collateral] {
                assert!((FLOOR..=1.0).contains(&x));
            }
        }
        assert!(g.total() > 2.0 * b.total());
    }

    #[test]
    fn the_draw_prefers_good_hosts_but_not_always() {
        let mut rng = StdRng::seed_from_u64(7);
        let mut first = 0;
        for _ in 0..1000 {
            let pool = (0..10)
                .map(|i| Candidate { host: i, weight: if i == 0 { 0.9 } else { 0.1 }, subnet: None })
                .collect();
            let got = draw(pool, 3, None, &mut rng, &mut Exclusions::default());
            assert_eq!(got.len(), 3);
            assert!(got.windows(2).all(|w| w[0].weight >= w[1].weight));
            first += usize::from(got[0].host == 0);
        }
        assert!((700..1000).contains(&first), "{first}");
    }

    #[test]
    fn one_column_a_subnet() {
        let mut rng = StdRng::seed_from_u64(1);
        let net = |ip: &str| Some(Subnet::from(ip.parse::<IpAddr>().unwrap()));
        let ips = ["10.0.0.1", "10.0.0.2", "::ffff:10.0.0.9", "10.0.1.1", "2001:db8::1", "2001:db8:0:9::1"];
        let pool = |()| {
            let c = ips.iter().map(|ip| Candidate { host: *ip, weight: 0.5, subnet: net(ip) });
            c.collect::<Vec<_>>()
        };
        let mut e = Exclusions::default();
        assert_eq!(draw(pool(()), 6, Some(1), &mut rng, &mut e).len(), 3);
        assert_eq!(e.0[&Exclusion::SameSubnet], 3);
        assert_eq!(draw(pool(()), 6, None, &mut rng, &mut e).len(), 6);
    }

    #[test]
    fn durability_matches_the_known_figures() {
        // 10 of 30, 4 of 12 and three copies: 1e-20, 5e-9 and 4e-3 a year.
        assert!((3e-3..6e-3).contains(&yearly_loss(1, 3)));
        assert!((1e-9..1e-8).contains(&yearly_loss(4, 12)));
        assert!(yearly_loss(10, 30) < 1e-14);
        assert!(term_loss(2, 6, 30 * 86_400) > yearly_loss(4, 12));
    }
}
