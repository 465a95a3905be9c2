use super::*;
use crate::metainfo::{FileEntry, FileKind, Info};
use proptest::prelude::*;

fn layout(piece: u32, files: &[u64]) -> Arc<Layout> {
    let entry = |(i, length): (usize, &u64)| FileEntry {
        path: vec![i.to_string()],
        length: *length,
        kind: FileKind::Regular,
    };
    let entries: Vec<FileEntry> = files.iter().enumerate().map(entry).collect();
    let hashes = files.iter().sum::<u64>().div_ceil(u64::from(piece)) as usize * 20;
    Arc::new(Layout::new(&Info::build("t", piece, &entries, true, &vec![0; hashes]).unwrap()))
}

fn picker(layout: &Arc<Layout>, order: Order, budget: u64) -> Picker {
    Picker::new(layout.clone(), &Bitfield::empty(layout.piece_count()), order, budget)
}

fn deliver(picker: &mut Picker, conn: ConnId, r: BlockRequest) -> Received {
    picker.received(conn, r.piece, r.begin, &vec![1; r.length as usize])
}

#[test]
fn the_rarest_piece_comes_first() {
    let layout = layout(BLOCK, &[u64::from(BLOCK) * 4]);
    let mut p = picker(&layout, Order::RarestFirst, 1 << 30);
    let all = Bitfield::full(4);
    p.peer_has(&all);
    let mut most = Bitfield::full(4);
    most = Bitfield::from_wire(&[most.as_bytes()[0] & !0x20], 4).unwrap(); // all but piece 2
    p.peer_has(&most);
    assert_eq!(p.pick(1, &all, 1, 0)[0].piece, 2);
}

#[test]
fn sequential_order_goes_front_to_back() {
    let layout = layout(BLOCK, &[u64::from(BLOCK) * 4]);
    let mut p = picker(&layout, Order::Sequential, 1 << 30);
    let picked: Vec<u32> = p.pick(1, &Bitfield::full(4), 9, 7).iter().map(|r| r.piece).collect();
    assert_eq!(picked, [0, 1, 2, 3]);
}

#[test]
fn memory_stays_below_the_budget_and_leaves_complete_first() {
    let layout = layout(BLOCK, &[64 << 20]); // 4096 pieces, 64 to a leaf
    let mut p = picker(&layout, Order::RarestFirst, 4 << 20);
    let all = Bitfield::full(layout.piece_count());
    let mut random = 12_345u32;
    while !p.nothing_to_request() {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let picked = p.pick(1, &all, 20, random);
        assert!(!picked.is_empty());
        assert!(p.committed() <= (4 << 20) + (1 << 20) + u64::from(BLOCK) * 64, "{}", p.committed());
        assert!(p.partial.len() <= 5);
        for r in picked {
            let index = deliver(&mut p, 1, r).complete.unwrap().index;
            p.verified(index);
        }
    }
    assert_eq!(p.committed(), 0);
}

#[test]
fn the_endgame_asks_a_second_peer_and_cancels() {
    let layout = layout(BLOCK * 2, &[u64::from(BLOCK) * 2]);
    let mut p = picker(&layout, Order::RarestFirst, 1 << 30);
    let all = Bitfield::full(1);
    let first = p.pick(1, &all, 5, 0);
    assert_eq!(first.len(), 2);
    assert_eq!(p.pick(2, &all, 5, 0), first);
    assert!(p.pick(3, &all, 5, 0).is_empty());
    assert_eq!(deliver(&mut p, 2, first[0]).cancel, [1]);
    assert!(!deliver(&mut p, 1, first[0]).accepted);
    let complete = deliver(&mut p, 1, first[1]).complete.unwrap();
    assert_eq!(complete.senders, [1, 2]);
}

#[test]
fn a_failed_piece_is_taken_from_one_peer_alone() {
    let layout = layout(BLOCK * 2, &[u64::from(BLOCK) * 2]);
    let mut p = picker(&layout, Order::RarestFirst, 1 << 30);
    let all = Bitfield::full(1);
    let (a, b) = (p.pick(1, &all, 1, 0)[0], p.pick(2, &all, 1, 0)[0]);
    deliver(&mut p, 1, a);
    assert_eq!(deliver(&mut p, 2, b).complete.unwrap().senders, [1, 2]);
    p.failed(0);
    assert_eq!(p.pick(1, &all, 1, 0), [a]);
    assert!(p.pick(2, &all, 1, 0).is_empty());
    // The chosen one leaves: another takes over.
    p.peer_left(1, &all);
    assert_eq!(p.pick(2, &all, 5, 0).len(), 2);
}

#[test]
fn unasked_and_misshapen_blocks_are_ignored() {
    let layout = layout(BLOCK * 2, &[u64::from(BLOCK) * 2]);
    let mut p = picker(&layout, Order::RarestFirst, 1 << 30);
    let r = p.pick(1, &Bitfield::full(1), 1, 0)[0];
    assert!(!p.received(2, r.piece, r.begin, &[1; BLOCK as usize]).accepted);
    assert!(!p.received(1, r.piece, r.begin + 1, &[1; BLOCK as usize]).accepted);
    assert!(!p.received(1, r.piece, r.begin, &[1; 5]).accepted);
    assert!(!p.received(1, 77, 0, &[1; 5]).accepted);
    assert!(!p.received(1, r.piece, u32::MAX - 3, &[1; 5]).accepted);
    assert!(deliver(&mut p, 1, r).accepted);
}

#[test]
fn a_stuck_download_starts_elsewhere() {
    // Two leaves of 64 pieces each; the peer with the second half of leaf 0 never comes.
    let layout = layout(BLOCK, &[2 << 20]);
    let mut p = picker(&layout, Order::Sequential, 1 << 20);
    let mut half = Bitfield::empty(128);
    (0..32).for_each(|i| assert!(half.set(i)));
    for r in p.pick(1, &half, 500, 0) {
        let index = deliver(&mut p, 1, r).complete.unwrap().index;
        p.verified(index);
    }
    let mut other = Bitfield::empty(128);
    (64..128).for_each(|i| assert!(other.set(i)));
    assert!(p.pick(2, &other, 500, 0).is_empty() && p.stuck());
    assert_eq!(p.evict(), [0]);
    assert_eq!(p.pick(2, &other, 500, 0).len(), 64);
}

proptest! {
    /// Peers come, go, lie and drop requests; with one honest peer that stays, everything is downloaded and the accounts
    /// return to zero.
    #[test]
    fn any_schedule_completes(
        piece in prop::sample::select(vec![BLOCK, 100_000, 262_144, 2 << 20]),
        files in prop::collection::vec(0u64..3_000_000, 1..6),
        steps in prop::collection::vec((0u8..6, any::<u32>(), 1u32..4), 0..300),
    ) {
        let layout = layout(piece, &files);
        let count = layout.piece_count();
        let mut p = picker(&layout, Order::RarestFirst, 3 << 20);
        let all = Bitfield::full(count);
        let mut owed: Vec<(ConnId, BlockRequest)> = vec![];
        for (action, random, conn) in steps {
            match action {
                0 | 1 => owed.extend(p.pick(conn, &all, random as usize % 40, random).into_iter().map(|r| (conn, r))),
                2 | 3 if !owed.is_empty() => {
                    let (conn, r) = owed.swap_remove(random as usize % owed.len());
                    if let Some(done) = deliver(&mut p, conn, r).complete {
                        if action == 2 { p.verified(done.index) } else { p.failed(done.index) }
                    }
                }
                4 => { p.release_all(conn); owed.retain(|(c, _)| *c != conn); }
                _ if !owed.is_empty() => { let (c, r) = owed.swap_remove(random as usize % owed.len()); p.release(c, r); }
                _ => {}
            }
        }
        (1..4).for_each(|c| p.release_all(c));
        for round in 0.. {
            prop_assert!(round < 100_000);
            let picked = p.pick(9, &all, 50, round);
            if picked.is_empty() { break; }
            for r in picked {
                if let Some(done) = deliver(&mut p, 9, r).complete { p.verified(done.index) }
            }
        }
        prop_assert!(p.nothing_to_request());
        prop_assert_eq!(p.committed(), 0);
        (0..count).for_each(|i| p.mark_stored(i));
        prop_assert_eq!(p.stored(), count);
    }
}
