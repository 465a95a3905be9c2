//! The client without a network: single decisions, and whole exchanges with peers that have, lack, lie, fall silent and
//! leave at random.

use super::*;
use crate::bitswap::limits::{
    ASK_TIMEOUT_MAX, CONFIDENT_AFTER, LAST_HOPE, MAX_ASKS_PER_PEER, MAX_STRIKES, WINDOW_START,
};
use crate::bitswap::wire::WantKind;
use btfs_storage::hash::{RAW, cid_v1};
use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::time::Duration;

const MS: Duration = Duration::from_millis(1);

fn cid(n: usize) -> Cid {
    cid_v1(RAW, &n.to_le_bytes())
}

fn key(n: usize) -> Key {
    *cid(n).hash()
}

/// A client with connected peers and one session of all of them.
fn client(peers: usize, now: Instant) -> (Client, Vec<PeerId>, SessionId) {
    let mut client = Client::default();
    let peers: Vec<PeerId> = (0..peers).map(|_| PeerId::random()).collect();
    for peer in &peers {
        client.peer_up(*peer, now);
    }
    let session = client.open(&peers).unwrap();
    (client, peers, session)
}

/// Who was just asked for what, in the order of the peers.
fn asked(client: &mut Client, peers: &[PeerId]) -> Vec<(usize, Cid, WantKind)> {
    let mut all = Vec::new();
    for (n, peer) in peers.iter().enumerate() {
        let entries = client.take_outbox(peer);
        all.extend(entries.iter().filter(|e| !e.cancel).map(|e| (n, e.cid, e.kind)));
    }
    all
}

fn blocks(asked: &[(usize, Cid, WantKind)]) -> Vec<(usize, Cid)> {
    asked.iter().filter(|a| a.2 == WantKind::Block).map(|a| (a.0, a.1)).collect()
}

/// The bookkeeping agrees with itself.
fn check(client: &Client) {
    for (id, peer) in &client.peers {
        let held = client.wants.values().filter(|want| want.phase == Phase::Held(*id)).count();
        assert_eq!(peer.in_flight, held, "in flight to a peer are the wants that it holds");
        assert!(peer.outbox.occupied() <= MAX_ASKS_PER_PEER);
    }
    for (key, want) in &client.wants {
        assert!(!want.waiters.is_empty(), "somebody waits for every want");
        let out: Vec<_> = want.asks.iter().filter(|ask| ask.state == AskState::Block).collect();
        match want.phase {
            Phase::Held(peer) => assert!(out.len() == 1 && out[0].peer == peer),
            _ => assert!(out.is_empty()),
        }
        let idle = matches!(want.phase, Phase::Listening | Phase::Exhausted(_));
        assert_eq!(client.idle.contains(key), idle, "{:?}", want.phase);
        for waiter in &want.waiters {
            assert_eq!(client.tickets.get(&waiter.ticket), Some(key));
            assert!(client.sessions[&waiter.session].wants.contains_key(key));
        }
    }
    assert_eq!(client.tickets.len(), client.wants.values().map(|want| want.waiters.len()).sum::<usize>());
}

#[test]
fn one_peer_is_asked_for_the_block_at_once() {
    let now = Instant::now();
    let (mut client, peers, session) = client(1, now);
    let ticket = client.want(session, cid(1), Patience::Forever, now).unwrap();
    assert_eq!(client.take_events(), [Event::Wake(peers[0])]);
    assert_eq!(asked(&mut client, &peers), [(0, cid(1), WantKind::Block)]);
    assert_eq!(client.on_block(peers[0], key(1), now), Verdict::Wanted(vec![ticket]));
    assert!(client.take_outbox(&peers[0]).is_empty(), "the server forgets the want by itself");
    assert_eq!(client.on_block(peers[0], key(1), now), Verdict::Duplicate);
    check(&client);
    assert!(!client.is_waiting());
}

#[test]
fn the_others_are_asked_for_presence_until_a_peer_is_trusted() {
    let now = Instant::now();
    let (mut client, peers, session) = client(3, now);
    for n in 0..=CONFIDENT_AFTER as usize {
        client.want(session, cid(n), Patience::Forever, now).unwrap();
        let all = asked(&mut client, &peers);
        let (holder, _) = blocks(&all)[0];
        if client.peers[&peers[holder]].hits_in_row < CONFIDENT_AFTER {
            assert_eq!(all.len(), 3, "one want-block, two want-haves");
        } else {
            assert_eq!(all.len(), 1, "the trusted one alone");
        }
        client.on_block(peers[holder], key(n), now + MS);
        check(&client);
    }
}

#[test]
fn a_no_moves_the_want_to_who_said_have() {
    let now = Instant::now();
    let (mut client, peers, session) = client(3, now);
    client.want(session, cid(1), Patience::UntilRefused, now).unwrap();
    let all = asked(&mut client, &peers);
    let first = blocks(&all)[0].0;
    let other = peers[(first + 2) % 3];
    client.on_presence(other, key(1), true, now);
    assert!(asked(&mut client, &peers).is_empty(), "one want-block at a time");
    client.on_presence(peers[first], key(1), false, now);
    assert_eq!(blocks(&asked(&mut client, &peers)), [((first + 2) % 3, cid(1))]);
    check(&client);
}

#[test]
fn when_all_say_no_some_are_refused_and_others_wait() {
    let now = Instant::now();
    let (mut client, peers, session) = client(2, now);
    let hasty = client.want(session, cid(1), Patience::UntilRefused, now).unwrap();
    let patient = client.want(session, cid(1), Patience::Forever, now).unwrap();
    client.take_events();
    for peer in &peers {
        client.on_presence(*peer, key(1), false, now);
    }
    let events: Vec<Event> =
        client.take_events().into_iter().filter(|event| !matches!(event, Event::Wake(_))).collect();
    let Event::Refused(ticket, refused, asked) = &events[0] else { panic!("{events:?}") };
    assert_eq!((*ticket, *refused, asked.len()), (hasty, cid(1), 2));
    assert_eq!(events[1..], [Event::Starved(session)]);
    assert!(client.is_starving(session));
    check(&client);
    client.on_presence(peers[1], key(1), true, now);
    assert!(!client.is_starving(session), "it came to that peer");
    assert_eq!(client.on_block(peers[1], key(1), now), Verdict::Wanted(vec![patient]));
    check(&client);
}

#[test]
fn a_silent_peer_loses_its_wants_to_another_and_its_late_blocks_are_no_offence() {
    let now = Instant::now();
    let (mut client, peers, session) = client(2, now);
    client.want(session, cid(1), Patience::Forever, now).unwrap();
    let first = blocks(&asked(&mut client, &peers))[0].0;
    let later = now + ASK_TIMEOUT_MAX + MS;
    client.tick(later);
    assert_eq!(blocks(&asked(&mut client, &peers)), [(1 - first, cid(1))]);
    check(&client);
    assert!(matches!(client.on_block(peers[1 - first], key(1), later), Verdict::Wanted(_)));
    assert_eq!(client.on_block(peers[first], key(1), later), Verdict::Duplicate);
    assert_eq!(client.peers[&peers[first]].strikes, 0);
}

#[test]
fn the_only_peer_is_given_longer_and_then_its_wants_are_refused() {
    let now = Instant::now();
    let (mut client, peers, session) = client(1, now);
    for n in 0..2 * WINDOW_START {
        client.want(session, cid(n), Patience::UntilRefused, now).unwrap();
    }
    client.take_outbox(&peers[0]);
    client.tick(now + LAST_HOPE - MS);
    assert!(client.take_events().iter().all(|event| matches!(event, Event::Wake(_))));
    client.tick(now + LAST_HOPE + MS);
    let refused: Vec<Event> =
        client.take_events().into_iter().filter(|e| matches!(e, Event::Refused(..))).collect();
    assert_eq!(refused.len(), 2 * WINDOW_START, "those in its window and those that waited for room");
    assert!(matches!(&refused[0], Event::Refused(_, _, asked) if *asked == peers));
    check(&client);
    assert!(!client.is_waiting());
}

#[test]
fn the_window_bounds_what_is_in_flight_and_opens() {
    let now = Instant::now();
    let (mut client, peers, session) = client(1, now);
    for n in 0..5000 {
        client.want(session, cid(n), Patience::Forever, now).unwrap();
    }
    let (mut now, mut done, mut most) = (now, 0, 0);
    while done < 5000 {
        let batch = blocks(&asked(&mut client, &peers));
        most = most.max(batch.len());
        now += 10 * MS;
        for (_, cid) in batch {
            assert!(matches!(client.on_block(peers[0], *cid.hash(), now), Verdict::Wanted(_)));
            done += 1;
        }
        check(&client);
    }
    assert_eq!(most, MAX_ASKS_PER_PEER);
}

#[test]
fn a_peer_that_leaves_is_dialled_and_asked_again() {
    let now = Instant::now();
    let (mut client, peers, session) = client(1, now);
    client.want(session, cid(1), Patience::UntilRefused, now).unwrap();
    client.take_outbox(&peers[0]);
    client.take_events();
    client.peer_down(peers[0], now);
    assert_eq!(client.take_events(), [Event::Dial(peers[0])]);
    check(&client);
    client.peer_up(peers[0], now);
    assert_eq!(blocks(&asked(&mut client, &peers)), [(0, cid(1))]);
    client.take_events();
    client.peer_down(peers[0], now + MS);
    assert!(matches!(client.take_events()[..], [Event::Refused(..)]), "it was dialled a moment ago");
    check(&client);
}

#[test]
fn a_failed_dial_refuses() {
    let now = Instant::now();
    let mut client = Client::default();
    let peer = PeerId::random();
    let session = client.open(&[peer]).unwrap();
    client.want(session, cid(1), Patience::UntilRefused, now).unwrap();
    assert_eq!(client.take_events(), [Event::Dial(peer)]);
    client.dial_failed(peer, now);
    assert!(matches!(client.take_events()[..], [Event::Refused(..)]));
    check(&client);
}

#[test]
fn a_liar_is_no_longer_asked() {
    let now = Instant::now();
    let (mut client, peers, session) = client(2, now);
    let mut asked_liar = 0;
    for n in 0..200 {
        client.want(session, cid(n), Patience::Forever, now).unwrap();
        // The first peer claims everything and has nothing.
        let mut rounds = 0;
        while client.wants.contains_key(&key(n)) {
            for (who, cid, kind) in asked(&mut client, &peers) {
                let key = *cid.hash();
                match (who, kind) {
                    (0, WantKind::Have) => client.on_presence(peers[0], key, true, now),
                    (0, WantKind::Block) => {
                        asked_liar += 1;
                        client.on_presence(peers[0], key, false, now);
                    }
                    (_, WantKind::Have) => client.on_presence(peers[1], key, true, now),
                    (_, WantKind::Block) => drop(client.on_block(peers[1], key, now)),
                }
            }
            check(&client);
            rounds += 1;
            assert!(rounds < 10);
        }
    }
    assert!(asked_liar <= 2 * MAX_STRIKES, "{asked_liar}");
}

#[test]
fn a_want_that_was_dropped_silently_is_said_again() {
    let now = Instant::now();
    let (mut client, peers, session) = client(1, now);
    client.want(session, cid(1), Patience::Forever, now).unwrap();
    assert_eq!(asked(&mut client, &peers).len(), 1);
    client.tick(now + crate::bitswap::limits::SAY_AGAIN + MS);
    assert_eq!(asked(&mut client, &peers).len(), 1);
    check(&client);
}

#[test]
fn a_broken_stream_is_made_good() {
    let now = Instant::now();
    let (mut client, peers, session) = client(1, now);
    for n in 0..10 {
        client.want(session, cid(n), Patience::Forever, now).unwrap();
    }
    assert_eq!(asked(&mut client, &peers).len(), 10);
    client.peer_reset(peers[0]);
    assert_eq!(asked(&mut client, &peers).len(), 10);
}

#[test]
fn closing_a_session_withdraws_what_only_it_wanted() {
    let now = Instant::now();
    let (mut client, peers, one) = client(1, now);
    let two = client.open(&peers).unwrap();
    client.want(one, cid(1), Patience::Forever, now).unwrap();
    client.want(one, cid(2), Patience::Forever, now).unwrap();
    let kept = client.want(two, cid(2), Patience::Forever, now).unwrap();
    client.take_outbox(&peers[0]);
    client.close(one, now);
    let entries = client.take_outbox(&peers[0]);
    assert_eq!(entries.iter().map(|e| (e.cid, e.cancel)).collect::<Vec<_>>(), [(cid(1), true)]);
    assert_eq!(client.on_block(peers[0], key(1), now), Verdict::Duplicate);
    assert_eq!(client.on_block(peers[0], key(2), now), Verdict::Wanted(vec![kept]));
    check(&client);
}

#[test]
fn bounds_refuse_and_a_closed_session_does_too() {
    let now = Instant::now();
    let (mut client, peers, session) = client(1, now);
    for n in 0..MAX_WANTS {
        client.want(session, cid(n), Patience::Forever, now).unwrap();
    }
    let over = client.want(session, cid(MAX_WANTS), Patience::Forever, now);
    assert_eq!(over, Err(Refusal::TooManyWants));
    for _ in 1..MAX_SESSION_PEERS {
        assert!(client.add_peer(session, PeerId::random(), now));
    }
    assert!(!client.add_peer(session, PeerId::random(), now));
    assert!(client.add_peer(session, peers[0], now), "it is a member already");
    client.close(session, now);
    assert_eq!(client.want(session, cid(1), Patience::Forever, now), Err(Refusal::NoSession));
    check(&client);
    assert!(client.idle.is_empty() && client.tickets.is_empty() && client.peers.len() == 1);
}

/// How a simulated peer behaves.
#[derive(Clone, Copy, PartialEq)]
enum Nature {
    Honest,
    /// Answers nothing.
    Silent,
    /// Claims all, delivers nothing.
    Liar,
    /// Loses one want in eight.
    Forgetful,
}

struct World {
    client: Client,
    peers: Vec<PeerId>,
    natures: Vec<Nature>,
    holds: Vec<HashSet<Key>>,
    now: Instant,
    rng: StdRng,
}

impl World {
    /// Answers what peer `n` was asked.
    fn answer(&mut self, n: usize) {
        let peer = self.peers[n];
        for entry in self.client.take_outbox(&peer) {
            let key = *entry.cid.hash();
            let has = self.holds[n].contains(&key);
            if entry.cancel {
                continue;
            }
            match self.natures[n] {
                Nature::Silent => {}
                Nature::Forgetful if self.rng.random_range(0..8) == 0 => {}
                Nature::Liar => {
                    self.client.on_presence(peer, key, entry.kind == WantKind::Have, self.now);
                }
                _ if has && entry.kind == WantKind::Block => {
                    self.client.on_block(peer, key, self.now);
                }
                _ => self.client.on_presence(peer, key, has, self.now),
            }
        }
    }

    fn step(&mut self) {
        self.now += Duration::from_millis(self.rng.random_range(1..300));
        for n in 0..self.peers.len() {
            match self.rng.random_range(0..40) {
                0 => self.client.peer_down(self.peers[n], self.now),
                1..20 => self.answer(n),
                _ => self.client.peer_up(self.peers[n], self.now),
            }
        }
        self.client.tick(self.now);
        for event in self.client.take_events() {
            if let Event::Dial(peer) = event {
                match self.rng.random_range(0..2) {
                    0 => self.client.dial_failed(peer, self.now),
                    _ => self.client.peer_up(peer, self.now),
                }
            }
        }
        check(&self.client);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    /// Whatever the other peers do, and however often connections fail: what one peer that answers has, arrives.
    #[test]
    fn every_block_that_an_answering_peer_has_arrives(seed in any::<u64>()) {
        let mut rng = StdRng::seed_from_u64(seed);
        let now = Instant::now();
        let count = rng.random_range(1..7);
        let (client, peers, session) = client(count, now);
        let mut natures: Vec<Nature> = (0..count)
            .map(|_| {
                let all = [Nature::Honest, Nature::Silent, Nature::Liar, Nature::Forgetful];
                all[rng.random_range(0..4)]
            })
            .collect();
        natures[0] = if rng.random_range(0..2) == 0 { Nature::Honest } else { Nature::Forgetful };
        let wants = rng.random_range(1..300);
        let mut holds = vec![HashSet::new(); count];
        for n in 0..wants {
            holds[0].insert(key(n));
            let other = rng.random_range(0..count);
            holds[other].insert(key(n));
        }
        let mut world = World { client, peers, natures, holds, now, rng };
        for n in 0..wants {
            world.client.want(session, cid(n), Patience::Forever, now).unwrap();
        }
        for _ in 0..20_000 {
            world.step();
            if !world.client.is_waiting() {
                break;
            }
        }
        prop_assert!(!world.client.is_waiting(), "{} of {} wants are left", world.client.wants.len(), wants);
        world.client.close(session, world.now);
        prop_assert!(world.client.idle.is_empty() && world.client.tickets.is_empty());
    }
}
