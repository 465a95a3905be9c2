use alloy_primitives::{U256, hex, keccak256};
use proptest::prelude::*;

use super::*;
use crate::cbor;
use crate::typed::{ChannelTerms, Signed, VerifiedVoucher, VoucherError};
use crate::{SecretKey, SignatureError};

pub(crate) fn agreement() -> Agreement {
    Agreement {
        channel: B256::repeat_byte(0x11),
        id: B256::repeat_byte(0x22),
        revision: 0,
        offer: B256::repeat_byte(3),
        blocks: B256::repeat_byte(4),
        root: B256::repeat_byte(5),
        leaves: 5,
        size: 4101,
        start: 1_000_000,
        epoch_length: 86_400,
        first_epoch: 0,
        end_epoch: 30,
        epoch_price: Btt::from_units(77),
        setup_price: Btt::from_units(5),
        collateral: Btt::ZERO,
        claim_window: 86_400,
        audit_leaves: 30,
        claim_leaves: 30,
        claim_span: 14,
    }
}

const WINDOW: u32 = 3 * 86_400;

fn voucher() -> Voucher {
    Voucher { channel: B256::repeat_byte(0x11), stream: B256::repeat_byte(0x22), amount: Btt::ONE, epochs: 7 }
}

#[test]
fn typehashes_are_those_of_the_protocol() {
    let typehash = |text: &str| keccak256(text.as_bytes());
    let offer = "Offer(address host,address payee,uint128 price,uint128 setupPrice,uint64 minTerm,uint64 maxTerm,uint64 maxSize,uint64 free,uint32 collateral,uint32 window,uint64 expires)";
    let call = "Call(address from,uint64 nonce,uint64 deadline,uint128 value,bytes data)";
    assert_eq!(abi::Offer::eip712_root_type(), offer);
    assert_eq!(abi::Call::eip712_root_type(), call);
    assert_eq!(
        typehash(&abi::Agreement::eip712_root_type()),
        hex!("0b104843a260f83bf262aa8380550de36aa86e0d071f80c0215ed05608001d53")
    );
    assert_eq!(
        typehash(&abi::Voucher::eip712_root_type()),
        hex!("fda5924c0041405579643739d4e43ccf26a6b609e2dbaa934ef34b109c46275d")
    );
}

#[test]
fn the_voucher_vector_holds() {
    let domain = Domain::bttc(Address::repeat_byte(0x44));
    assert_eq!(
        voucher().digest(&domain),
        hex!("fab806175f6cb254c069f4dbd7bfbfd1121540f786e113b0ab7135249ade3ae4")
    );
}

#[test]
fn digests_are_the_bytes_of_eip_712() {
    // Put together by hand, field by field, as a contract would with abi.encode.
    let domain = Domain::embedded(&B256::repeat_byte(9));
    assert_eq!(domain.contract(), Address::repeat_byte(9));
    let word = |number: u64| B256::from(U256::from(number));
    let separator = keccak256(
        [
            keccak256(
                "EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"
                    .as_bytes(),
            ),
            keccak256(b"BTFS Vault"),
            keccak256(b"1"),
            word(4_346_956),
            Address::repeat_byte(9).into_word(),
        ]
        .concat(),
    );
    let call = Call {
        from: Address::repeat_byte(1),
        nonce: 2,
        deadline: 3,
        value: Btt::from_units(4),
        data: Calldata(vec![5, 6]),
    };
    let body = keccak256(
        [
            keccak256(b"Call(address from,uint64 nonce,uint64 deadline,uint128 value,bytes data)"),
            Address::repeat_byte(1).into_word(),
            word(2),
            word(3),
            word(4),
            keccak256([5, 6]),
        ]
        .concat(),
    );
    let expected = keccak256([&[0x19, 0x01][..], separator.as_slice(), body.as_slice()].concat());
    assert_eq!(call.digest(&domain), expected);
}

#[test]
fn a_channel_id_is_the_hash_of_five_words() {
    let terms = ChannelTerms {
        funder: Address::repeat_byte(1),
        renter: Address::repeat_byte(2),
        host: Address::repeat_byte(3),
        payee: Address::repeat_byte(4),
        window: 259_200,
    };
    let words: Vec<B256> = [terms.funder, terms.renter, terms.host, terms.payee]
        .map(|role| role.into_word())
        .into_iter()
        .chain([B256::from(U256::from(259_200u64))])
        .collect();
    assert_eq!(terms.id(), keccak256(words.concat()));
}

#[test]
fn documents_are_arrays_in_field_order() {
    let bytes = cbor::encode(&voucher());
    assert_eq!(bytes[0], 0x84, "an array of four");
    assert_eq!(&bytes[1..3], [0x58, 0x20], "the channel: a string of 32 bytes");
    assert_eq!(bytes[69], 0x50, "money: a string of 16 bytes");
    assert_eq!(bytes[86], 7);
    assert_eq!(cbor::decode::<Voucher>(&bytes, 256), Ok(voucher()));
    let mut longer = bytes.clone();
    longer[0] = 0x85;
    longer.push(0);
    assert!(cbor::decode::<Voucher>(&longer, 256).is_err());
    let mut shorter = bytes.clone();
    shorter[0] = 0x83;
    shorter.pop();
    assert!(cbor::decode::<Voucher>(&shorter, 256).is_err());
    assert_eq!(cbor::encode(&agreement())[0], 0x93, "an array of nineteen");
}

#[test]
fn documents_are_objects_in_json() {
    let json = serde_json::to_value(voucher()).unwrap();
    assert_eq!(json["amount"], "1");
    assert_eq!(serde_json::from_value::<Voucher>(json.clone()).unwrap(), voucher());
    let mut unknown = json;
    unknown["tip"] = "1".into();
    assert!(serde_json::from_value::<Voucher>(unknown).is_err());
    let key = SecretKey::from_bytes(&[1; 32]).unwrap();
    let signed = Signed::sign(agreement(), &Domain::embedded(&B256::ZERO), &key);
    let json = serde_json::to_string(&signed).unwrap();
    assert_eq!(serde_json::from_str::<Signed<Agreement>>(&json).unwrap(), signed);
    assert_eq!(cbor::decode::<Signed<Agreement>>(&cbor::encode(&signed), 1024), Ok(signed));
}

#[test]
fn a_voucher_counts_only_where_it_was_signed_for() {
    let renter = SecretKey::from_bytes(&[1; 32]).unwrap();
    let other = SecretKey::from_bytes(&[2; 32]).unwrap();
    let terms = ChannelTerms {
        funder: renter.address(),
        renter: renter.address(),
        host: other.address(),
        payee: other.address(),
        window: WINDOW,
    };
    let here = Domain::embedded(&B256::repeat_byte(1));
    let recreated = Domain::embedded(&B256::repeat_byte(2));
    let document = Voucher { channel: terms.id(), ..voucher() };
    let signed = Signed::sign(document.clone(), &here, &renter);
    let verified = VerifiedVoucher::check(signed.clone(), &here, &terms).unwrap();
    assert_eq!(verified.voucher(), &document);
    let refused = |signed: Signed<Voucher>, domain: &Domain, terms: &ChannelTerms| {
        VerifiedVoucher::check(signed, domain, terms).unwrap_err()
    };
    let elsewhere = ChannelTerms { window: WINDOW + 1, ..terms };
    assert!(matches!(refused(signed.clone(), &here, &elsewhere), VoucherError::OtherChannel { .. }));
    let wrong = |error| matches!(error, VoucherError::Signature(SignatureError::WrongSigner { .. }));
    assert!(wrong(refused(signed.clone(), &recreated, &terms)));
    assert!(wrong(refused(signed.clone(), &Domain::bttc(here.contract()), &terms)));
    let mut more = signed;
    more.document.amount = Btt::MAX;
    assert!(wrong(refused(more, &here, &terms)));
    assert!(wrong(refused(Signed::sign(document, &here, &other), &here, &terms)));
}

#[test]
fn impossible_agreements_are_refused() {
    assert_eq!(agreement().check(WINDOW), Ok(()));
    assert!(agreement().check(WINDOW - 1).is_err());
    let broken: [fn(&mut Agreement); 14] = [
        |a| a.size = 0,
        |a| a.leaves = 0,
        |a| a.leaves = MAX_LEAVES + 1,
        |a| a.epoch_length = 0,
        |a| a.end_epoch = 0,
        |a| a.first_epoch = 1,
        |a| a.revision = 1,
        |a| a.collateral = Btt::ONE,
        |a| a.audit_leaves = 0,
        |a| a.claim_leaves = 29,
        |a| a.claim_span = 0,
        |a| a.claim_window = 86_399,
        |a| a.epoch_price = Btt::MAX,
        |a| a.start = u64::MAX - 86_400,
    ];
    for (index, spoil) in broken.iter().enumerate() {
        let mut agreement = agreement();
        spoil(&mut agreement);
        assert!(agreement.check(WINDOW).is_err(), "rule {index}");
    }
}

#[test]
fn a_renewal_keeps_the_content() {
    let first = agreement();
    let renewed = Agreement {
        revision: 1,
        first_epoch: 30,
        end_epoch: 60,
        setup_price: Btt::ZERO,
        epoch_price: Btt::from_units(80),
        offer: B256::repeat_byte(8),
        ..first.clone()
    };
    assert_eq!(renewed.check_renews(&first), Ok(()));
    assert_eq!(renewed.check(WINDOW), Ok(()));
    for other in [
        Agreement { root: B256::ZERO, ..renewed.clone() },
        Agreement { first_epoch: 29, ..renewed.clone() },
        Agreement { revision: 2, ..renewed.clone() },
        Agreement { start: 0, ..renewed.clone() },
        Agreement { setup_price: Btt::ONE, ..renewed },
    ] {
        assert!(other.check_renews(&first).is_err());
    }
}

#[test]
fn epochs_follow_the_clock() {
    let agreement = agreement();
    assert_eq!(agreement.epoch_at(999_999), None);
    assert_eq!(agreement.epoch_at(1_000_000), Some(0));
    assert_eq!(agreement.epoch_at(1_086_399), Some(0));
    assert_eq!(agreement.epoch_end(0), 1_086_400);
    assert_eq!(agreement.epoch_start(1), 1_086_400);
    assert_eq!(agreement.epoch_at(u64::MAX), Some(u32::MAX));
}

proptest! {
    #[test]
    fn no_bytes_panic_the_decoder(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = cbor::decode::<Signed<Agreement>>(&bytes, 256);
        let _ = cbor::decode::<Signed<Call>>(&bytes, 256);
    }

    #[test]
    fn flipping_a_byte_gives_another_document_or_none(index in 0usize..90, mask in 1u8..) {
        let mut bytes = cbor::encode(&voucher());
        let index = index % bytes.len();
        bytes[index] ^= mask;
        prop_assert_ne!(cbor::decode::<Voucher>(&bytes, 256).ok(), Some(voucher()));
    }
}
