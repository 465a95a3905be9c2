//! Settlement operations and their calldata.

use alloy_primitives::{Address, B256};
use alloy_sol_types::SolCall;
use thiserror::Error;

use super::{Agreement, Signed, Voucher, abi};
use crate::btt::Btt;
use crate::keys::Signature;

/// One challenged leaf of a claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClaimLeaf {
    /// The leaf's bytes, at most 1024.
    pub data: Vec<u8>,
    /// Siblings, bottom up.
    pub path: Vec<B256>,
}

/// What a call does. The same calldata works on an embedded ledger and on a vault contract.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Moves the call's value to another account. Embedded ledgers only.
    Transfer {
        /// Who gets it.
        to: Address,
    },
    /// Adds the call's value to the lock of the channel between the caller (the funder) and these three.
    Lock {
        /// Signs agreements and vouchers.
        renter: Address,
        /// Signs offers and agreements.
        host: Address,
        /// Is paid.
        payee: Address,
        /// Seconds between announcing a decrease and its refund.
        window: u32,
    },
    /// The funder announces a refund; due one window later. A new announcement replaces the one before.
    Decrease {
        /// The channel.
        channel: B256,
        /// How much.
        amount: Btt,
    },
    /// The funder takes a refund that is due.
    Finish {
        /// The channel.
        channel: B256,
    },
    /// The host lets the funder have money back at once.
    Release {
        /// The channel.
        channel: B256,
        /// How much.
        amount: Btt,
    },
    /// Host or payee have what a voucher owes paid out.
    Redeem {
        /// The voucher with the renter's signature.
        voucher: Signed<Voucher>,
    },
    /// The host asks for a seed to prove an epoch by itself.
    Arm {
        /// The agreement with the renter's signature.
        agreement: Box<Signed<Agreement>>,
        /// The epoch.
        epoch: u32,
    },
    /// The host proves the armed epoch and is paid for it.
    Claim {
        /// The armed agreement.
        agreement: Box<Agreement>,
        /// The challenged leaves in order.
        leaves: Vec<ClaimLeaf>,
    },
}

/// Why calldata is no operation.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum OperationError {
    /// Shorter than a selector, or one of no known operation.
    #[error("call names no known operation")]
    Unknown,
    /// Arguments that are not the canonical encoding of the operation's.
    #[error("malformed arguments of {0}")]
    Malformed(&'static str),
}

impl Operation {
    /// The operation's name, for people.
    pub fn name(&self) -> &'static str {
        match self {
            Operation::Transfer { .. } => "transfer",
            Operation::Lock { .. } => "lock",
            Operation::Decrease { .. } => "decrease",
            Operation::Finish { .. } => "finish",
            Operation::Release { .. } => "release",
            Operation::Redeem { .. } => "redeem",
            Operation::Arm { .. } => "arm",
            Operation::Claim { .. } => "claim",
        }
    }

    /// ABI calldata: selector and arguments.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Operation::Transfer { to } => abi::transferCall { to: *to }.abi_encode(),
            Operation::Lock { renter, host, payee, window } => {
                abi::lockCall { renter: *renter, host: *host, payee: *payee, window: *window }.abi_encode()
            }
            Operation::Decrease { channel, amount } => {
                abi::decreaseCall { channel: *channel, amount: amount.units() }.abi_encode()
            }
            Operation::Finish { channel } => abi::finishCall { channel: *channel }.abi_encode(),
            Operation::Release { channel, amount } => {
                abi::releaseCall { channel: *channel, amount: amount.units() }.abi_encode()
            }
            Operation::Redeem { voucher } => abi::redeemCall {
                voucher: (&voucher.document).into(),
                sig: voucher.signature.as_bytes().to_vec().into(),
            }
            .abi_encode(),
            Operation::Arm { agreement, epoch } => abi::armCall {
                agreement: (&agreement.document).into(),
                renterSig: agreement.signature.as_bytes().to_vec().into(),
                e: *epoch,
            }
            .abi_encode(),
            Operation::Claim { agreement, leaves } => abi::claimCall {
                agreement: (&**agreement).into(),
                leaves: leaves
                    .iter()
                    .map(|leaf| abi::Leaf { data: leaf.data.clone().into(), path: leaf.path.clone() })
                    .collect(),
            }
            .abi_encode(),
        }
    }

    /// Reads calldata; only the encoding that [`Operation::encode`] makes is accepted.
    pub fn decode(data: &[u8]) -> Result<Operation, OperationError> {
        let selector: [u8; 4] =
            data.get(..4).and_then(|s| s.try_into().ok()).ok_or(OperationError::Unknown)?;
        let operation = match selector {
            abi::transferCall::SELECTOR => {
                let call: abi::transferCall = arguments(data, "transfer")?;
                Operation::Transfer { to: call.to }
            }
            abi::lockCall::SELECTOR => {
                let call: abi::lockCall = arguments(data, "lock")?;
                let abi::lockCall { renter, host, payee, window } = call;
                Operation::Lock { renter, host, payee, window }
            }
            abi::decreaseCall::SELECTOR => {
                let call: abi::decreaseCall = arguments(data, "decrease")?;
                Operation::Decrease { channel: call.channel, amount: Btt::from_units(call.amount) }
            }
            abi::finishCall::SELECTOR => {
                let call: abi::finishCall = arguments(data, "finish")?;
                Operation::Finish { channel: call.channel }
            }
            abi::releaseCall::SELECTOR => {
                let call: abi::releaseCall = arguments(data, "release")?;
                Operation::Release { channel: call.channel, amount: Btt::from_units(call.amount) }
            }
            abi::redeemCall::SELECTOR => {
                let call: abi::redeemCall = arguments(data, "redeem")?;
                let signature = signature(&call.sig, "redeem")?;
                Operation::Redeem { voucher: Signed { document: (&call.voucher).into(), signature } }
            }
            abi::armCall::SELECTOR => {
                let call: abi::armCall = arguments(data, "arm")?;
                let signature = signature(&call.renterSig, "arm")?;
                let agreement = Box::new(Signed { document: (&call.agreement).into(), signature });
                Operation::Arm { agreement, epoch: call.e }
            }
            abi::claimCall::SELECTOR => {
                let call: abi::claimCall = arguments(data, "claim")?;
                let leaves = call.leaves.into_iter();
                let leaves =
                    leaves.map(|leaf| ClaimLeaf { data: leaf.data.into(), path: leaf.path }).collect();
                Operation::Claim { agreement: Box::new((&call.agreement).into()), leaves }
            }
            _ => return Err(OperationError::Unknown),
        };
        if operation.encode() == data {
            Ok(operation)
        } else {
            Err(OperationError::Malformed(operation.name()))
        }
    }
}

fn arguments<C: SolCall>(data: &[u8], name: &'static str) -> Result<C, OperationError> {
    C::abi_decode_validate(data).map_err(|_| OperationError::Malformed(name))
}

fn signature(bytes: &[u8], name: &'static str) -> Result<Signature, OperationError> {
    Signature::from_bytes(bytes).map_err(|_| OperationError::Malformed(name))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::SecretKey;
    use crate::typed::{Domain, documents::tests::agreement};

    fn operations() -> Vec<Operation> {
        let key = SecretKey::from_bytes(&[1; 32]).unwrap();
        let domain = Domain::embedded(&B256::ZERO);
        let channel = B256::repeat_byte(7);
        let voucher = Voucher { channel, stream: B256::repeat_byte(8), amount: Btt::ONE, epochs: 3 };
        let leaf = ClaimLeaf { data: vec![1; 1024], path: vec![B256::repeat_byte(2); 3] };
        vec![
            Operation::Transfer { to: Address::repeat_byte(1) },
            Operation::Lock {
                renter: Address::repeat_byte(1),
                host: Address::repeat_byte(2),
                payee: Address::repeat_byte(3),
                window: 259_200,
            },
            Operation::Decrease { channel, amount: Btt::ONE },
            Operation::Finish { channel },
            Operation::Release { channel, amount: Btt::MAX },
            Operation::Redeem { voucher: Signed::sign(voucher, &domain, &key) },
            Operation::Arm { agreement: Box::new(Signed::sign(agreement(), &domain, &key)), epoch: 9 },
            Operation::Claim { agreement: Box::new(agreement()), leaves: vec![leaf; 2] },
        ]
    }

    #[test]
    fn calldata_is_lossless_and_canonical() {
        for operation in operations() {
            let mut data = operation.encode();
            assert_eq!(Operation::decode(&data), Ok(operation.clone()), "{}", operation.name());
            data.push(0);
            assert_eq!(Operation::decode(&data), Err(OperationError::Malformed(operation.name())));
        }
        assert_eq!(Operation::decode(&[1, 2, 3]), Err(OperationError::Unknown));
        assert_eq!(Operation::decode(&[0; 36]), Err(OperationError::Unknown));
    }

    #[test]
    fn selectors_are_those_of_the_signatures() {
        let selector = |text: &str| alloy_primitives::keccak256(text)[..4].to_vec();
        let redeem = "redeem((bytes32,bytes32,uint128,uint32),bytes)";
        assert_eq!(abi::redeemCall::SELECTOR.to_vec(), selector(redeem));
        assert_eq!(abi::lockCall::SELECTOR.to_vec(), selector("lock(address,address,address,uint32)"));
    }

    proptest! {
        #[test]
        fn spoiled_calldata_never_panics(which in 0usize..8, index: usize, byte: u8, cut: usize) {
            let mut data = operations()[which].encode();
            let index = index % data.len();
            data[index] = byte;
            let cut = cut % data.len();
            for bytes in [&data[..], &data[..cut]] {
                if let Ok(operation) = Operation::decode(bytes) {
                    prop_assert_eq!(operation.encode(), bytes);
                }
            }
        }
    }
}
