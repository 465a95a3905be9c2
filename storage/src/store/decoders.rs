//! The decoders of what the databases hold, for the fuzzer: they are private otherwise.
//!
//! Records are written by this program alone, but a disk may give anything back.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_bytes::ByteBuf;

use super::located::{PlaceKey, Row as PlaceRow};
use super::pins::Stored;
use super::quota::Promise;
use super::rocks::Meta;
use super::{Key, PinId, PinKind, key as key_of};
use crate::Class;
use crate::alias::Key as AliasKey;
use crate::db::TableKey;

/// Decodes `bytes` as every kind of record and key; a bit for each that it is one of.
///
/// # Panics
/// When what decodes does not encode again to something that decodes the same: that would be a bug.
pub fn state_records(bytes: &[u8]) -> u32 {
    let found = [
        record::<Stored>(bytes),
        record::<Promise>(bytes),
        record::<Vec<ByteBuf>>(bytes),
        record::<u64>(bytes),
        key::<PinId>(bytes),
        key::<(PinId, u32)>(bytes),
        key::<(Key, PinId)>(bytes),
        key::<(u64, PinId)>(bytes),
        key::<AliasKey>(bytes),
        record::<PlaceRow>(bytes),
        key::<PlaceKey>(bytes),
        meta(bytes),
    ];
    found.iter().fold(0, |bits, found| bits << 1 | u32::from(*found))
}

/// One of each.
pub fn state_examples() -> Vec<Vec<u8>> {
    let root = crate::hash::cid_v1(crate::hash::RAW, b"root");
    let pin = super::Pin {
        id: "own:root".into(),
        kind: PinKind::List,
        root,
        class: Class::Own,
        name: Some("a name".into()),
        expires: Some(u64::MAX),
    };
    let id = pin.id.clone();
    let multihash = key_of(&root);
    let place = PlaceRow { offset: 1 << 40, len: 1 << 20, mtime: (1 << 31, 999), generation: 7 };
    let cbor =
        |written: Result<Vec<u8>, _>| written.unwrap_or_else(|error| panic!("a record is written: {error}"));
    vec![
        cbor(serde_ipld_dagcbor::to_vec(&Stored { pin, pages: 3 })),
        cbor(serde_ipld_dagcbor::to_vec(&Promise { class: Class::Hosted, bytes: 1 << 40 })),
        cbor(serde_ipld_dagcbor::to_vec(&vec![ByteBuf::from(multihash.to_vec()); 5])),
        cbor(serde_ipld_dagcbor::to_vec(&u64::MAX)),
        (id.clone(), 7u32).encode(),
        (multihash.clone(), id.clone()).encode(),
        (1u64 << 40, id).encode(),
        cbor(serde_ipld_dagcbor::to_vec(&place)),
        (multihash, b"/home/file".to_vec()).encode(),
        Meta { size: 1 << 20, class: Class::Cache, quarantined: true, generation: 300 }.encode().to_vec(),
    ]
}

fn record<T: Serialize + DeserializeOwned>(bytes: &[u8]) -> bool {
    let Ok(value) = serde_ipld_dagcbor::from_slice::<T>(bytes) else { return false };
    let again = serde_ipld_dagcbor::to_vec(&value).expect("what decodes encodes again");
    let twice = serde_ipld_dagcbor::from_slice::<T>(&again).expect("what is written is read");
    assert_eq!(serde_ipld_dagcbor::to_vec(&twice).ok(), Some(again), "a record changes by being read");
    true
}

fn key<K: TableKey>(bytes: &[u8]) -> bool {
    let Some(key) = K::decode(bytes) else { return false };
    assert_eq!(key.encode(), bytes, "a key has one encoding, or scans would lose it");
    true
}

fn meta(bytes: &[u8]) -> bool {
    let Some(meta) = Meta::decode(bytes) else { return false };
    assert_eq!(Meta::decode(&meta.encode()), Some(meta), "what is known of a block changes by being read");
    true
}
