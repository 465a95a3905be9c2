//! Random calls against the rules alone, in memory, by the thousand.

use std::cell::RefCell;
use std::convert::Infallible;

use proptest::prelude::*;

use super::*;
use crate::SecretKey;
use crate::typed::Calldata;

/// The state in maps.
#[derive(Clone, Default)]
struct Memory {
    accounts: BTreeMap<Address, Account>,
    channels: BTreeMap<B256, Channel>,
    streams: BTreeMap<(B256, B256), Stream>,
}

impl Book for Memory {
    type Error = Infallible;
    fn account(&self, address: &Address) -> Result<Account, Infallible> {
        Ok(self.accounts.get(address).copied().unwrap_or_default())
    }
    fn channel(&self, id: &B256) -> Result<Option<Channel>, Infallible> {
        Ok(self.channels.get(id).copied())
    }
    fn stream(&self, channel: &B256, stream: &B256) -> Result<Stream, Infallible> {
        Ok(self.streams.get(&(*channel, *stream)).copied().unwrap_or_default())
    }
}

impl Memory {
    fn total(&self) -> Btt {
        let balances = self.accounts.values().map(|account| account.balance);
        Btt::checked_sum(balances.chain(self.channels.values().map(|channel| channel.locked))).unwrap()
    }
}

const WINDOW: u32 = 1000;

pub(crate) struct World {
    memory: RefCell<Memory>,
    pub(crate) domain: Domain,
    pub(crate) now: u64,
    pub(crate) keys: [SecretKey; 4],
}

impl World {
    pub(crate) fn new() -> World {
        let keys = [1, 2, 3, 4].map(|byte| SecretKey::from_bytes(&[byte; 32]).unwrap());
        let mut memory = Memory::default();
        for key in &keys {
            memory.accounts.insert(key.address(), Account { balance: Btt::from_units(1000), nonce: 0 });
        }
        let domain = Domain::embedded(&B256::repeat_byte(9));
        World { memory: RefCell::new(memory), domain, now: 1_000_000, keys }
    }

    pub(crate) fn terms(&self) -> ChannelTerms {
        let [funder, renter, host, payee] = [0, 1, 2, 3].map(|index: usize| self.keys[index].address());
        ChannelTerms { funder, renter, host, payee, window: WINDOW }
    }

    pub(crate) fn channel(&self) -> Channel {
        self.memory.borrow().channels[&self.terms().id()]
    }

    pub(crate) fn stream(&self, id: B256) -> Stream {
        self.memory.borrow().stream(&self.terms().id(), &id).unwrap()
    }

    pub(crate) fn balance(&self, who: usize) -> u128 {
        self.memory.borrow().account(&self.keys[who].address()).unwrap().balance.units()
    }

    pub(crate) fn run(&self, who: usize, value: u128, operation: &Operation) -> Result<Effect, Failure> {
        let from = self.keys[who].address();
        let nonce = self.memory.borrow().account(&from).unwrap().nonce;
        let call = Call {
            from,
            nonce,
            deadline: self.now,
            value: Btt::from_units(value),
            data: Calldata(operation.encode()),
        };
        let around = Surroundings {
            domain: &self.domain,
            now: self.now,
            answer_seconds: 60,
            seed: B256::repeat_byte(7),
        };
        let (changes, result) = execute(&*self.memory.borrow(), &around, &call).unwrap();
        assert_eq!(changes.accounts[&from].nonce, nonce + 1, "every signed call uses its nonce");
        if result.is_err() {
            assert_eq!(changes.accounts.len(), 1);
            assert!(changes.channels.is_empty() && changes.streams.is_empty());
        }
        let mut memory = self.memory.borrow_mut();
        memory.accounts.extend(changes.accounts);
        memory.channels.extend(changes.channels);
        memory.streams.extend(changes.streams);
        result
    }

    pub(crate) fn lock(&self, value: u128) -> Result<Effect, Failure> {
        let ChannelTerms { renter, host, payee, window, .. } = self.terms();
        self.run(0, value, &Operation::Lock { renter, host, payee, window })
    }

    pub(crate) fn voucher(&self, signer: usize, stream: B256, amount: u128, epochs: u32) -> Operation {
        let amount = Btt::from_units(amount);
        let voucher = Voucher { channel: self.terms().id(), stream, amount, epochs };
        Operation::Redeem { voucher: Signed::sign(voucher, &self.domain, &self.keys[signer]) }
    }
}

const STREAM: B256 = B256::repeat_byte(0x22);

#[test]
fn a_voucher_is_paid_once() {
    let world = World::new();
    world.lock(100).unwrap();
    let redeem = world.voucher(1, STREAM, 30, 3);
    for (who, expected) in [(2, 30), (3, 0), (2, 0)] {
        let effect = world.run(who, 0, &redeem).unwrap();
        assert!(
            matches!(effect, Effect::Redeemed { paid_out, settled: 3, .. } if paid_out.units() == expected)
        );
    }
    assert_eq!((world.balance(3), world.channel().locked.units()), (1030, 70));
    // Lower and older ones change nothing.
    world.run(2, 0, &world.voucher(1, STREAM, 20, 1)).unwrap();
    assert_eq!((world.stream(STREAM).paid.units(), world.stream(STREAM).settled), (30, 3));
    // More than the lock pays the lock.
    world.run(3, 0, &world.voucher(1, STREAM, 500, 4)).unwrap();
    assert_eq!((world.balance(3), world.channel().locked.units()), (1100, 0));
    // And the rest when there is more.
    world.lock(50).unwrap();
    world.run(3, 0, &world.voucher(1, STREAM, 500, 4)).unwrap();
    assert_eq!(world.balance(3), 1150);
}

#[test]
fn only_the_right_signer_role_and_settlement_count() {
    let world = World::new();
    world.lock(100).unwrap();
    let good = world.voucher(1, STREAM, 30, 3);
    for who in [0, 1] {
        assert!(matches!(world.run(who, 0, &good), Err(Failure::Role(_))));
    }
    for signer in [0, 2, 3] {
        let forged = world.voucher(signer, STREAM, 30, 3);
        assert!(matches!(world.run(2, 0, &forged), Err(Failure::Document(_))));
    }
    let Operation::Redeem { voucher } = &good else { unreachable!() };
    for elsewhere in [Domain::embedded(&B256::repeat_byte(8)), Domain::bttc(world.domain.contract())] {
        let voucher = Signed::sign(voucher.document.clone(), &elsewhere, &world.keys[1]);
        assert!(matches!(world.run(2, 0, &Operation::Redeem { voucher }), Err(Failure::Document(_))));
    }
    let channel = world.terms().id();
    let amount = Btt::from_units(1);
    for who in [1, 2, 3] {
        assert!(matches!(world.run(who, 0, &Operation::Decrease { channel, amount }), Err(Failure::Role(_))));
    }
    for who in [0, 1, 3] {
        assert!(matches!(world.run(who, 0, &Operation::Release { channel, amount }), Err(Failure::Role(_))));
    }
    let other = B256::repeat_byte(1);
    assert_eq!(world.run(2, 0, &Operation::Finish { channel: other }), Err(Failure::NoChannel(other)));
    assert_eq!(world.balance(3), 1000);
}

#[test]
fn money_comes_back_by_release_or_after_the_window() {
    let mut world = World::new();
    world.lock(100).unwrap();
    let channel = world.terms().id();
    let amount = Btt::from_units(60);
    assert_eq!(world.run(0, 0, &Operation::Finish { channel }), Err(Failure::NotPending));
    world.run(0, 0, &Operation::Decrease { channel, amount }).unwrap();
    assert_eq!(world.channel().available().units(), 40);
    world.now += u64::from(WINDOW) - 1;
    assert!(matches!(world.run(0, 0, &Operation::Finish { channel }), Err(Failure::NotDue { .. })));
    // The host still redeems what it is owed.
    world.run(2, 0, &world.voucher(1, STREAM, 70, 1)).unwrap();
    world.now += 1;
    let refunded = Btt::from_units(30);
    assert_eq!(world.run(0, 0, &Operation::Finish { channel }), Ok(Effect::Finished { channel, refunded }));
    world.lock(10).unwrap();
    assert!(matches!(world.run(2, 0, &Operation::Release { channel, amount }), Err(Failure::Lock { .. })));
    world.run(2, 0, &Operation::Release { channel, amount: Btt::from_units(10) }).unwrap();
    assert_eq!((world.balance(0), world.balance(3)), (930, 1070));
}

#[test]
fn a_decrease_restarts_its_window() {
    let mut world = World::new();
    world.lock(100).unwrap();
    let channel = world.terms().id();
    world.run(0, 0, &Operation::Decrease { channel, amount: Btt::from_units(1) }).unwrap();
    world.now += u64::from(WINDOW);
    world.run(0, 0, &Operation::Decrease { channel, amount: Btt::from_units(100) }).unwrap();
    assert!(matches!(world.run(0, 0, &Operation::Finish { channel }), Err(Failure::NotDue { .. })));
}

#[test]
fn impossible_calls_fail_and_move_nothing() {
    let world = World::new();
    let to = world.keys[1].address();
    assert!(matches!(world.run(0, 1001, &Operation::Transfer { to }), Err(Failure::Balance { .. })));
    assert_eq!(world.run(0, 0, &Operation::Transfer { to }), Err(Failure::Nothing));
    assert_eq!(world.run(0, 5, &Operation::Transfer { to: Address::ZERO }), Err(Failure::Nothing));
    assert_eq!(world.lock(0), Err(Failure::Nothing));
    let channel = world.terms().id();
    assert!(matches!(world.run(0, 5, &Operation::Finish { channel }), Err(Failure::Value(_))));
    let own = world.keys[0].address();
    assert!(world.run(0, 1000, &Operation::Transfer { to: own }).is_ok());
    assert_eq!(world.balance(0), 1000, "to oneself");
    let late = Call {
        from: own,
        nonce: 0,
        deadline: world.now - 1,
        value: Btt::from_units(5),
        data: Calldata(Operation::Transfer { to }.encode()),
    };
    let around = Surroundings { domain: &world.domain, now: world.now, answer_seconds: 60, seed: B256::ZERO };
    let (_, result) = execute(&*world.memory.borrow(), &around, &late).unwrap();
    assert!(matches!(result, Err(Failure::Expired { .. })));
    let garbage = Call { deadline: u64::MAX, data: Calldata(vec![1, 2, 3, 4, 5]), ..late };
    let (_, result) = execute(&*world.memory.borrow(), &around, &garbage).unwrap();
    assert!(matches!(result, Err(Failure::Malformed(_))));
}

#[derive(Clone, Debug)]
enum Act {
    Transfer { from: usize, to: usize, amount: u128 },
    Lock { amount: u128 },
    Decrease { who: usize, amount: u128 },
    Finish { who: usize },
    Release { who: usize, amount: u128 },
    Redeem { who: usize, signer: usize, stream: u8, amount: u128, epochs: u32 },
    Wait { seconds: u64 },
}

fn act() -> impl Strategy<Value = Act> {
    let who = 0usize..4;
    let amount = 0u128..600;
    prop_oneof![
        (who.clone(), who.clone(), amount.clone()).prop_map(|(from, to, amount)| Act::Transfer {
            from,
            to,
            amount
        }),
        amount.clone().prop_map(|amount| Act::Lock { amount }),
        (prop_oneof![4 => Just(0usize), 1 => who.clone()], amount.clone())
            .prop_map(|(who, amount)| Act::Decrease { who, amount }),
        prop_oneof![4 => Just(0usize), 1 => who.clone()].prop_map(|who| Act::Finish { who }),
        (prop_oneof![4 => Just(2usize), 1 => who.clone()], amount.clone())
            .prop_map(|(who, amount)| Act::Release { who, amount }),
        (who.clone(), prop_oneof![6 => Just(1usize), 1 => who], 0u8..3, amount, 0u32..40).prop_map(
            |(who, signer, stream, amount, epochs)| Act::Redeem { who, signer, stream, amount, epochs }
        ),
        (0u64..700).prop_map(|seconds| Act::Wait { seconds }),
    ]
}

fn perform(world: &mut World, act: &Act) -> Result<Effect, Failure> {
    let channel = world.terms().id();
    let units = Btt::from_units;
    match *act {
        Act::Transfer { from, to, amount } => {
            world.run(from, amount, &Operation::Transfer { to: world.keys[to].address() })
        }
        Act::Lock { amount } => world.lock(amount),
        Act::Decrease { who, amount } => {
            world.run(who, 0, &Operation::Decrease { channel, amount: units(amount) })
        }
        Act::Finish { who } => world.run(who, 0, &Operation::Finish { channel }),
        Act::Release { who, amount } => {
            world.run(who, 0, &Operation::Release { channel, amount: units(amount) })
        }
        Act::Redeem { who, signer, stream, amount, epochs } => {
            world.run(who, 0, &world.voucher(signer, B256::repeat_byte(stream), amount, epochs))
        }
        Act::Wait { seconds } => {
            world.now += seconds;
            Err(Failure::Nothing)
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn money_is_neither_made_nor_lost(acts in proptest::collection::vec(act(), 1..60)) {
        let mut world = World::new();
        let supply = world.memory.borrow().total();
        for act in acts {
            let before = world.memory.borrow().clone();
            let done = perform(&mut world, &act).is_ok();
            let after = world.memory.borrow();
            prop_assert_eq!(after.total(), supply);
            for (key, stream) in &after.streams {
                let old = before.streams.get(key).copied().unwrap_or_default();
                prop_assert!(stream.paid >= old.paid && stream.settled >= old.settled && stream.next >= old.next);
                if stream.paid > old.paid {
                    let by_host = matches!(act, Act::Redeem { who: 2 | 3, signer: 1, .. });
                    prop_assert!(by_host && done, "paid without the host's or payee's call: {:?}", act);
                }
            }
            for (id, channel) in &after.channels {
                let old = before.channels.get(id).map_or(Btt::ZERO, |channel| channel.locked);
                if channel.locked < old {
                    let way_out = matches!(act, Act::Release { who: 2, .. } | Act::Redeem { who: 2 | 3, .. });
                    let window = matches!(act, Act::Finish { who: 0 }) && world.now >= before.channels[id].due;
                    prop_assert!(way_out || window, "left the lock by {:?}", act);
                }
            }
        }
    }
}
