//! Vectors of the codec suite and of Kubo, what must be refused, and round trips.

use std::borrow::Cow;

use bytes::Bytes;
use cid::Cid;
use proptest::prelude::*;

use super::*;
use crate::testing::MemoryBlocks;
use crate::{BlockSink, BlockSource};

fn json(text: &str) -> Result<Value, IpldError> {
    decode(Codec::DagJson, &Bytes::copy_from_slice(text.as_bytes()))
}

fn cbor(hex: &str) -> Result<Value, IpldError> {
    decode(Codec::DagCbor, &Bytes::from(hex::decode(hex).unwrap()))
}

/// The CID and the bytes of a dag-json text under another codec.
fn stored(text: &str, codec: Codec) -> (String, String) {
    let block = encode(codec, &json(text).unwrap()).unwrap();
    (hash::cid_v1(codec.code(), &block).to_string(), hex::encode(block))
}

/// Published by the IPLD codec suite: one value in three codecs.
#[test]
fn the_codec_suite_s_node_has_its_cids() {
    let text = r#"{"Data":{"/":{"bytes":"CAE"}},"Links":[{"Hash":{"/":"bafkreicysg23kiwv34eg2d7qweipxwosdo2py4ldv42nbauguluen5v6am"},"Name":"hello.txt","Tsize":6}]}"#;
    let (cid, block) = stored(text, Codec::DagJson);
    assert_eq!(cid, "baguqeera33s42p2sjw7hz6rsawracsab643ixxch3nx7eovttooneklcim5q");
    assert_eq!(hex::decode(block).unwrap(), text.as_bytes());
    let (_, block) = stored(text, Codec::DagPb);
    let value = decode(Codec::DagPb, &Bytes::from(hex::decode(block).unwrap())).unwrap();
    assert_eq!(encode(Codec::DagJson, &value).unwrap(), text);
}

/// Made by Kubo 0.42 with `ipfs dag put`.
#[test]
fn kubo_s_blocks_are_made_byte_by_byte() {
    let text = r#"{"z":1,"aa":[1,-1,1.5,null,true,"s\u0001\b\f\n é 😀"],"b":{"/":{"bytes":"AQID"}},
        "l":{"/":"bafkreifzjut3te2nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e"}}"#;
    let (cid, block) = stored(text, Codec::DagCbor);
    assert_eq!(cid, "bafyreif37dwa3hacwkh57pfmh5vwld5s3e5ontq2ftpctzpggrx53ykvyu");
    assert_eq!(
        block,
        "a4616243010203616cd82a58250001551220b94d27b9934d3e08a52e52d7da7dabfac484efe37a5380ee9088f7ace2ef\
         cde9617a01626161860120fb3ff8000000000000f6f56d7301080c0a20c3a920f09f9880"
            .replace(' ', "")
    );
    assert_eq!(
        encode(Codec::DagJson, &cbor(&block).unwrap()).unwrap(),
        r#"{"aa":[1,-1,1.5,null,true,"s\u0001\u0008\u000c\n é 😀"],"b":{"/":{"bytes":"AQID"}},"l":{"/":"bafkreifzjut3te2nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e"},"z":1}"#
    );
    let link = r#"{"/":"bafkreicysg23kiwv34eg2d7qweipxwosdo2py4ldv42nbauguluen5v6am"}"#;
    let node = format!(
        r#"{{"Data":{{"/":{{"bytes":"CAE"}}}},"Links":[{{"Hash":{link},"Name":"b","Tsize":6}},{{"Hash":{link},"Tsize":1}},{{"Hash":{link},"Name":"a"}}]}}"#
    );
    let (cid, block) = stored(&node, Codec::DagPb);
    assert_eq!(cid, "bafybeieu7mpow7spmfreq2wfetfk5hdyozh6coujy4pvgvvyzpho2umr2u", "{block}");
    let hello = r#"{"/":{"bytes":"aGVsbG8gd29ybGQ"}}"#;
    assert_eq!(stored(hello, Codec::Raw).0, "bafkreifzjut3te2nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e");
}

#[test]
fn every_integer_of_the_data_model_survives() {
    for (text, hex) in [
        ("18446744073709551615", "1bffffffffffffffff"),
        ("-18446744073709551616", "3bffffffffffffffff"),
        ("9223372036854775808", "1b8000000000000000"),
        ("0", "00"),
        ("-1", "20"),
    ] {
        assert_eq!(stored(text, Codec::DagCbor).1, hex);
        assert_eq!(encode(Codec::DagJson, &cbor(hex).unwrap()).unwrap(), text);
    }
    for text in ["18446744073709551616", "-18446744073709551617"] {
        assert!(json(text).unwrap_err().to_string().contains("over 64 bits"));
    }
    for (text, value) in [("1.0", 1.0), ("1e300", 1e300), ("-0.0", -0.0), ("0.1", 0.1)] {
        assert_eq!(json(text).unwrap(), Value::Float(value));
        assert_eq!(encode(Codec::DagJson, &Value::Float(value)).unwrap(), text);
    }
}

#[test]
fn dag_cbor_out_of_form_is_refused() {
    for (hex, what) in [
        ("a3636261720363666f6f0163666f6f02", "a name twice, of the codec suite"),
        ("a2626161016162 02", "names out of order"),
        ("1801", "an integer longer than needed"),
        ("9f01ff", "a list of unsaid length"),
        ("f97e00", "half a float, not a number"),
        ("fb7ff0000000000000", "infinity"),
        ("c101", "a foreign tag"),
        ("a10101", "a name that is no text"),
        ("0000", "something after the end"),
        ("81", "cut off"),
        ("", "nothing"),
        ("d82a4101", "a link that is none"),
        ("d82a458001550000", "a link with a foreign first byte"),
        ("f7", "undefined"),
    ] {
        assert!(cbor(&hex.replace(' ', "")).is_err(), "{what}");
    }
}

#[test]
fn dag_json_out_of_form_is_refused() {
    for text in [
        "",
        "nul",
        "01",
        "1.",
        "-",
        "+1",
        "1e",
        "1e999",
        "[1,]",
        "[1 2]",
        "{\"a\":1,}",
        "{\"a\" 1}",
        "{a:1}",
        "\"a",
        "\"\u{1}\"",
        "\"\\x\"",
        "\"\\ud800\"",
        "\"\\ud800\\u0041\"",
        "\"\\u+123\"",
        "1 2",
        r#"{"a":1,"a":2}"#,
        r#"{"/":"not a CID"}"#,
        r#"{"/":1}"#,
        r#"{"/":{"bytes":"AQ=="}}"#,
        r#"{"/":{"bytes":"AQ","more":1}}"#,
        r#"{"a":1,"/":"foo"}"#,
        r#"{"/":"bafkreicysg23kiwv34eg2d7qweipxwosdo2py4ldv42nbauguluen5v6am","a":1}"#,
    ] {
        let error = json(text).expect_err(text).to_string();
        assert!(error.contains("at byte"), "{error}");
    }
    assert!(decode(Codec::DagJson, &Bytes::from_static(b"\"\xff\"")).is_err());
    assert_eq!(json(" [ \"\\ud83d\\ude00\\/\" ] ").unwrap(), Value::List(vec![Value::String("😀/".into())]));
    let reserved = Value::Map(vec![(Cow::Borrowed("/"), Value::String("x".into()))]);
    assert!(encode(Codec::DagJson, &reserved).is_err());
    assert!(encode(Codec::DagCbor, &reserved).is_ok());
}

#[test]
fn what_a_codec_cannot_hold_is_named() {
    for (text, codec, what) in [
        ("{}", Codec::DagPb, "no Links"),
        ("1", Codec::DagPb, "map belongs"),
        (r#"{"Links":[],"More":1}"#, Codec::DagPb, "\"More\""),
        (r#"{"Links":[{}]}"#, Codec::DagPb, "no Hash"),
        (r#"{"Links":1}"#, Codec::DagPb, "not a list"),
        (r#"{"Data":"text","Links":[]}"#, Codec::DagPb, "not bytes"),
        ("{}", Codec::Raw, "not bytes"),
    ] {
        let error = encode(codec, &json(text).unwrap()).unwrap_err().to_string();
        assert!(error.contains(what), "{error}");
    }
    assert!(encode(Codec::DagCbor, &Value::Float(f64::NAN)).is_err());
    assert!(encode(Codec::DagJson, &Value::Float(f64::INFINITY)).is_err());
    assert!("dag-xml".parse::<Codec>().is_err());
    assert_eq!("dag-cbor".parse::<Codec>().unwrap(), Codec::DagCbor);
}

#[test]
fn hostile_blocks_end_with_an_error_and_little_memory() {
    let zeros = |head: &[u8]| {
        let mut block = head.to_vec();
        block.resize(crate::MAX_BLOCK, 0);
        Bytes::from(block)
    };
    // A list that says it has as many zeros as the block has room for.
    let list = zeros(&[0x9a, 0x00, 0x1f, 0xff, 0xfb]);
    assert!(decode(Codec::DagCbor, &list).unwrap_err().to_string().contains("more values"));
    let deep = vec![0x81u8; 1 << 16];
    assert!(decode(Codec::DagCbor, &Bytes::from(deep)).is_err());
    assert!(json(&"[".repeat(1 << 16)).unwrap_err().to_string().contains("deep"));
    assert!(json(&format!("[{}0]", "0,".repeat(1 << 20))).unwrap_err().to_string().contains("more values"));
}

/// What one codec takes, the other takes: bytes and links are maps in one and not in the other.
#[test]
fn both_codecs_end_at_the_same_depth() {
    let link = r#"{"/":"bafkqaaa"}"#;
    for innermost in ["0", r#"{"/":{"bytes":"AA"}}"#, link, "[]", "{}"] {
        let nested = |depth: usize| format!("{}{innermost}{}", "[".repeat(depth), "]".repeat(depth));
        let most = if matches!(innermost, "[]" | "{}") { MAX_DEPTH - 1 } else { MAX_DEPTH };
        let value = json(&nested(most)).unwrap();
        for codec in [Codec::DagCbor, Codec::DagJson] {
            assert_eq!(decode(codec, &encode(codec, &value).unwrap()).unwrap(), value);
        }
        assert!(json(&nested(most + 1)).unwrap_err().to_string().contains("deep"), "{innermost}");
        let mut cbor = vec![0x81u8; most + 1];
        cbor.extend_from_slice(&encode(Codec::DagCbor, &json(innermost).unwrap()).unwrap());
        assert!(
            decode(Codec::DagCbor, &cbor.into()).unwrap_err().to_string().contains("deep"),
            "{innermost}"
        );
    }
}

/// A little DAG over all codecs: dag-cbor over a directory and a dag-json value.
fn dag() -> (MemoryBlocks, Cid, Cid, Cid) {
    let mut blocks = MemoryBlocks::default();
    let mut put = |codec: Codec, text: &str| {
        let block = encode(codec, &json(text).unwrap()).unwrap();
        let cid = hash::cid_v1(codec.code(), &block);
        blocks.put(&cid, block).unwrap();
        cid
    };
    let leaf = put(Codec::Raw, r#"{"/":{"bytes":"aGVsbG8gd29ybGQ"}}"#);
    let directory = put(
        Codec::DagPb,
        &format!(
            r#"{{"Data":{{"/":{{"bytes":"CAE"}}}},"Links":[{{"Hash":{{"/":"{leaf}"}},"Name":"Links","Tsize":11}}]}}"#
        ),
    );
    let inner = put(Codec::DagJson, &format!(r#"{{"deep":[7,{{"/":"{directory}"}}],"": 1}}"#));
    let root = put(Codec::DagCbor, &format!(r#"{{"a":{{"b":[0,{{"/":"{inner}"}}]}},"n":null}}"#));
    (blocks, root, directory, leaf)
}

#[test]
fn paths_go_from_block_to_block() {
    let (blocks, root, directory, leaf) = dag();
    let follow = |path: &str, start| resolve(&blocks, &root, path, start);
    let at = |cid, remainder: &str| Resolved { cid, remainder: remainder.into() };
    assert_eq!(follow("", Start::Files).unwrap(), at(root, ""));
    assert_eq!(follow("/a/b/0", Start::Files).unwrap(), at(root, "a/b/0"));
    assert_eq!(get(&blocks, &at(root, "a/b/0")).unwrap(), Value::Integer(0));
    assert_eq!(follow("a/b/1/deep/1", Start::Files).unwrap(), at(directory, ""));
    // An entry of that name goes before the field; `/ipld` knows fields alone.
    assert_eq!(follow("a/b/1/deep/1/Links", Start::Files).unwrap(), at(leaf, ""));
    assert_eq!(follow("a/b/1/deep/1/Links/0/Name", Start::Data).unwrap(), at(directory, "Links/0/Name"));
    assert_eq!(follow("a/b/1/deep/1/Links/0/Hash", Start::Data).unwrap(), at(leaf, ""));
    assert_eq!(follow("a/b/1/deep/1/Data", Start::Files).unwrap(), at(directory, "Data"));
    for path in ["x", "a/b/2", "a/b/x", "n/x", "a/b/1/deep/1/nothing", "a/b/1/deep/1/Links/x"] {
        let error = follow(path, Start::Files).unwrap_err();
        assert!(matches!(error, IpldError::NoSuchPath { .. }), "{path}: {error}");
    }
    let (mut blocks, root, directory, _) = dag();
    blocks.remove(&directory);
    let error = resolve(&blocks, &root, "a/b/1/deep/1/Links", Start::Files).unwrap_err();
    assert!(matches!(error, IpldError::Read(ReadError::Missing(cid)) if cid == directory), "{error}");
}

#[test]
fn dag_json_blocks_are_walked() {
    let (blocks, root, directory, leaf) = dag();
    let walked: Vec<Cid> = crate::read::walk(&blocks, &root).map(|block| block.unwrap().0).collect();
    assert_eq!(walked.len(), 4);
    assert_eq!((walked[0], walked[2], walked[3]), (root, directory, leaf));
    assert!(blocks.has(&walked[1]).unwrap());
}

/// Values of every kind.
fn any_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::Bool),
        (-(1i128 << 64)..1i128 << 64).prop_map(Value::Integer),
        any::<f64>().prop_filter("finite", |value| value.is_finite()).prop_map(Value::Float),
        ".{0,12}".prop_map(Value::String),
        prop::collection::vec(any::<u8>(), 0..40).prop_map(Value::Bytes),
        any::<[u8; 4]>().prop_map(|bytes| Value::Link(Box::new(hash::cid_v1(hash::RAW, &bytes)))),
    ];
    leaf.prop_recursive(5, 60, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::List),
            prop::collection::btree_map("[a-z/]{1,8}|é|\\PC{2,5}", inner, 0..6).prop_map(|map| {
                let entries = map.into_iter().filter(|(name, _)| name != "/");
                Value::Map(entries.map(|(name, value)| (Cow::Owned(name), value)).collect())
            }),
        ]
    })
}

proptest! {
    #[test]
    fn any_value_round_trips(value in any_value()) {
        for codec in [Codec::DagCbor, Codec::DagJson] {
            let block = encode(codec, &value).unwrap();
            let back = decode(codec, &block).unwrap();
            prop_assert_eq!(&back, &value);
            prop_assert_eq!(encode(codec, &back).unwrap(), block);
        }
    }

    #[test]
    fn links_are_the_same_in_both_codecs(value in any_value()) {
        let mut expected = Vec::new();
        value.links(&mut expected);
        let block = encode(Codec::DagJson, &value).unwrap();
        let cid = hash::cid_v1(hash::DAG_JSON, &block);
        prop_assert_eq!(&crate::dagpb::links(&cid, &block).unwrap(), &expected);
        let block = encode(Codec::DagCbor, &value).unwrap();
        let cid = hash::cid_v1(hash::DAG_CBOR, &block);
        let mut found = crate::dagpb::links(&cid, &block).unwrap();
        // dag-cbor has another order of names.
        found.sort();
        expected.sort();
        prop_assert_eq!(found, expected);
    }

    /// What decodes is in the one form that encodes again, byte by byte.
    #[test]
    fn dag_cbor_has_one_form(value in any_value(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut block = encode(Codec::DagCbor, &value).unwrap().to_vec();
        let at = at.index(block.len());
        block[at] = byte;
        let block = Bytes::from(block);
        if let Ok(value) = decode(Codec::DagCbor, &block) {
            prop_assert_eq!(encode(Codec::DagCbor, &value).unwrap(), block);
        }
    }

    #[test]
    fn decoding_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200), text in "[\\[\\]{}\",:0-9a-z/\\\\. -]{0,60}") {
        for codec in Codec::ALL {
            let _ = decode(codec, &Bytes::from(bytes.clone()));
            let _ = decode(codec, &Bytes::from(text.clone().into_bytes()));
        }
    }
}
