//! Arm and claim: which epochs, which proof, and never an epoch twice.

use btfs_storage::proof::{Challenge, Purpose, leaf_hash, node_hash};
use proptest::prelude::*;

use super::rules::tests::World;
use super::*;
use crate::typed::{Agreement, ClaimLeaf, Domain, Operation, Signed};
use crate::{B256, Btt};

const L: u32 = 100;
const START: u64 = 1_000_000;
const HOST: usize = 2;

/// Five leaves as in the protocol's vectors: byte i repeated, the last of 5 bytes; and their tree.
struct Content {
    leaves: Vec<Vec<u8>>,
    levels: Vec<Vec<[u8; 32]>>,
}

impl Content {
    fn new() -> Content {
        let leaves: Vec<Vec<u8>> = (0u8..5).map(|i| vec![i; if i == 4 { 5 } else { 1024 }]).collect();
        let mut bottom: Vec<[u8; 32]> = leaves.iter().map(|leaf| leaf_hash(leaf)).collect();
        bottom.resize(8, [0; 32]);
        let mut levels = vec![bottom];
        while levels.last().unwrap().len() > 1 {
            let below = levels.last().unwrap();
            levels.push(below.chunks(2).map(|pair| node_hash(&pair[0], &pair[1])).collect());
        }
        Content { leaves, levels }
    }

    fn root(&self) -> B256 {
        self.levels.last().unwrap()[0].into()
    }

    fn leaf(&self, index: usize) -> ClaimLeaf {
        let path = (0..3).map(|height| self.levels[height][(index >> height) ^ 1].into()).collect();
        ClaimLeaf { data: self.leaves[index].clone(), path }
    }

    fn answer(&self, agreement: &Agreement, armed: &Armed) -> Vec<ClaimLeaf> {
        let challenge = Challenge {
            purpose: Purpose::Claim,
            seed: armed.seed.0,
            channel: agreement.channel.0,
            id: agreement.id.0,
            epoch: u64::from(armed.epoch),
        };
        let mut indices = challenge.indices(5).unwrap();
        let count = usize::from(agreement.claim_leaves).min(5);
        let mut leaves = Vec::new();
        for _ in 0..count {
            let leaf = self.leaf(indices.index() as usize);
            indices.advance(&leaf_hash(&leaf.data));
            leaves.push(leaf);
        }
        leaves
    }
}

fn agreement(world: &World, content: &Content) -> Agreement {
    Agreement {
        channel: world.terms().id(),
        id: B256::repeat_byte(0x22),
        revision: 0,
        offer: B256::ZERO,
        blocks: B256::ZERO,
        root: content.root(),
        leaves: 5,
        size: 4101,
        start: START,
        epoch_length: L,
        first_epoch: 0,
        end_epoch: 20,
        epoch_price: Btt::from_units(10),
        setup_price: Btt::ZERO,
        collateral: Btt::ZERO,
        claim_window: 500,
        audit_leaves: 4,
        claim_leaves: 4,
        claim_span: 3,
    }
}

fn arm(world: &World, agreement: &Agreement, epoch: u32) -> Result<Armed, Failure> {
    let signed = Box::new(Signed::sign(agreement.clone(), &world.domain, &world.keys[1]));
    match world.run(HOST, 0, &Operation::Arm { agreement: signed, epoch })? {
        Effect::Armed { armed, .. } => Ok(armed),
        other => panic!("arm gave {other:?}"),
    }
}

fn claim(world: &World, agreement: &Agreement, leaves: Vec<ClaimLeaf>) -> Result<Effect, Failure> {
    world.run(HOST, 0, &Operation::Claim { agreement: Box::new(agreement.clone()), leaves })
}

#[test]
fn the_tree_is_that_of_the_protocol() {
    let root = "8aa6f7c559b8560ac0bd446f126877f4bdf2587f9539961fc28dfa9f2a7295c9";
    assert_eq!(hex::encode(Content::new().root()), root);
}

#[test]
fn a_proven_epoch_is_paid_once() {
    let (mut world, content) = (World::new(), Content::new());
    let agreement = agreement(&world, &content);
    world.lock(100).unwrap();
    world.now = START + u64::from(L) * 5;
    let armed = arm(&world, &agreement, 4).unwrap();
    assert_eq!((armed.from, armed.epoch), (2, 4), "a claim pays its span");
    let answer = content.answer(&agreement, &armed);
    assert_eq!(answer.len(), 4);
    let effect = claim(&world, &agreement, answer.clone()).unwrap();
    assert!(matches!(effect, Effect::Claimed { paid_out, settled: 5, .. } if paid_out.units() == 30));
    assert_eq!(claim(&world, &agreement, answer), Err(Failure::NotArmed));
    assert!(matches!(arm(&world, &agreement, 4), Err(Failure::Epoch { .. })));
    assert_eq!(world.balance(3), 1030);
    // A voucher for the same epochs adds nothing.
    world.run(HOST, 0, &world.voucher(1, agreement.id, 30, 5)).unwrap();
    assert_eq!(world.balance(3), 1030);
}

#[test]
fn a_seed_is_drawn_once_and_answered_in_time() {
    let (mut world, content) = (World::new(), Content::new());
    let agreement = agreement(&world, &content);
    world.lock(100).unwrap();
    world.now = START + u64::from(L) - 1;
    assert!(matches!(arm(&world, &agreement, 0), Err(Failure::Epoch { .. })), "not over");
    world.now += 1;
    let armed = arm(&world, &agreement, 0).unwrap();
    assert!(matches!(arm(&world, &agreement, 0), Err(Failure::Epoch { .. })), "a second draw");
    world.now = armed.deadline + 1;
    let answer = content.answer(&agreement, &armed);
    assert!(matches!(claim(&world, &agreement, answer), Err(Failure::Epoch { .. })));
    world.now = agreement.epoch_end(0) + 500;
    assert!(matches!(arm(&world, &agreement, 0), Err(Failure::Epoch { .. })));
    assert!(matches!(arm(&world, &agreement, 20), Err(Failure::Epoch { .. })), "beyond the term");
    assert!(matches!(arm(&world, &agreement, u32::MAX), Err(Failure::Epoch { .. })));
}

#[test]
fn wrong_proofs_pay_nothing() {
    let (mut world, content) = (World::new(), Content::new());
    let agreement = agreement(&world, &content);
    world.lock(100).unwrap();
    world.now = START + u64::from(L);
    let armed = arm(&world, &agreement, 0).unwrap();
    let right = content.answer(&agreement, &armed);
    let spoil: [fn(&mut Vec<ClaimLeaf>); 6] = [
        |leaves| leaves.truncate(3),
        |leaves| leaves.push(leaves[0].clone()),
        |leaves| leaves[0].data[0] ^= 1,
        |leaves| leaves[1].path[0].0[0] ^= 1,
        |leaves| leaves[1].path.push(B256::ZERO),
        |leaves| leaves[2].data.clear(),
    ];
    for (index, spoil) in spoil.iter().enumerate() {
        let mut leaves = right.clone();
        spoil(&mut leaves);
        assert!(matches!(claim(&world, &agreement, leaves), Err(Failure::Proof(_))), "proof {index}");
    }
    let other = Agreement { epoch_price: Btt::from_units(99), ..agreement.clone() };
    assert_eq!(claim(&world, &other, right.clone()), Err(Failure::NotArmed));
    let unsigned = Box::new(Signed::sign(agreement.clone(), &world.domain, &world.keys[HOST]));
    let by_host = world.run(HOST, 0, &Operation::Arm { agreement: unsigned, epoch: 0 });
    assert!(matches!(by_host, Err(Failure::Document(_))));
    let elsewhere = Domain::embedded(&B256::ZERO);
    let foreign = Box::new(Signed::sign(agreement.clone(), &elsewhere, &world.keys[1]));
    let foreign = world.run(HOST, 0, &Operation::Arm { agreement: foreign, epoch: 0 });
    assert!(matches!(foreign, Err(Failure::Document(_))));
    assert_eq!(world.balance(3), 1000);
    claim(&world, &agreement, right).unwrap();
    assert_eq!(world.balance(3), 1010);
}

#[test]
fn a_claim_above_the_lock_reverts() {
    let (mut world, content) = (World::new(), Content::new());
    let agreement = agreement(&world, &content);
    world.lock(9).unwrap();
    world.now = START + u64::from(L);
    let armed = arm(&world, &agreement, 0).unwrap();
    let answer = content.answer(&agreement, &armed);
    assert!(matches!(claim(&world, &agreement, answer.clone()), Err(Failure::Lock { .. })));
    world.lock(1).unwrap();
    claim(&world, &agreement, answer).unwrap();
}

#[derive(Clone, Debug)]
enum Act {
    Arm(u32),
    Claim,
    Voucher(u32),
    Wait(u64),
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        4 => (0u32..20).prop_map(Act::Arm),
        4 => Just(Act::Claim),
        2 => (0u32..21).prop_map(Act::Voucher),
        3 => (0u64..400).prop_map(Act::Wait),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Honest vouchers (all epochs below `epochs` at their price, at most what has passed) and claims in any order.
    #[test]
    fn no_epoch_is_paid_twice(acts in proptest::collection::vec(act(), 1..60)) {
        let (mut world, content) = (World::new(), Content::new());
        let agreement = agreement(&world, &content);
        world.lock(1000).unwrap();
        let mut armed = None;
        for act in acts {
            match act {
                Act::Arm(epoch) => armed = arm(&world, &agreement, epoch).ok().or(armed),
                Act::Claim => if let Some(armed) = armed {
                    let _ = claim(&world, &agreement, content.answer(&agreement, &armed));
                },
                Act::Voucher(epochs) => {
                    // What the renter owes: what is paid already, and the epochs it has not settled.
                    let stream = world.stream(agreement.id);
                    let fresh = u128::from(epochs.saturating_sub(stream.settled));
                    let amount = stream.paid.units() + 10 * fresh;
                    world.run(HOST, 0, &world.voucher(1, agreement.id, amount, epochs)).unwrap();
                }
                Act::Wait(seconds) => world.now += seconds,
            }
            let stream = world.stream(agreement.id);
            prop_assert!(stream.paid.units() <= 10 * u128::from(stream.settled));
            prop_assert_eq!(world.balance(3), 1000 + stream.paid.units());
        }
    }
}
