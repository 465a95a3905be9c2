//! CARs that are well made, cut, bent and made to harm.

use std::io::Cursor;

use bytes::Bytes;
use cid::Cid;
use proptest::prelude::*;

use super::*;
use crate::dagpb::{PbLink, PbNode, put_varint};
use crate::testing::MemoryBlocks;
use crate::{BlockSink, BlockSource};

/// A small DAG: a node over two leaves, one of them linked twice, and one in its CID.
fn dag() -> (MemoryBlocks, Cid, Vec<(Cid, Bytes)>) {
    let mut blocks = MemoryBlocks::default();
    let leaves = [b"one".as_slice(), b"two", b"one"].map(|data| (hash::cid_v1(hash::RAW, data), data));
    let inline = hash::cid_from_digest(hash::RAW, hash::IDENTITY, b"in the CID");
    let link = |cid| PbLink { cid, name: None, tsize: None };
    let links = leaves.iter().map(|(cid, _)| link(*cid)).chain([link(inline)]).collect();
    let node = PbNode { links, data: None }.encode();
    let root = hash::cid_v1(hash::DAG_PB, &node);
    let mut list = vec![(root, node)];
    list.extend(leaves[..2].iter().map(|(cid, data)| (*cid, Bytes::copy_from_slice(data))));
    for (cid, data) in &list {
        blocks.put(cid, data.clone()).unwrap();
    }
    (blocks, root, list)
}

fn car() -> Vec<u8> {
    let (blocks, root, _) = dag();
    let mut out = Vec::new();
    let length = export(&blocks, &root, &mut out, &mut |_| {}).unwrap();
    assert_eq!(length, out.len() as u64);
    out
}

/// A CARv2 around `payload`: padding before and after the data, then `index`.
fn version_2(payload: &[u8], index: &[u8]) -> Vec<u8> {
    let data = (V2_PRAGMA.len() + V2_HEADER + 9) as u64;
    let end = data + payload.len() as u64;
    let mut out = V2_PRAGMA.to_vec();
    out.extend([FULLY_INDEXED; 1]);
    out.extend([0; 15]);
    let index_at = if index.is_empty() { 0 } else { end + 5 };
    for number in [data, payload.len() as u64, index_at] {
        out.extend(number.to_le_bytes());
    }
    out.extend([0; 9]);
    out.extend(payload);
    out.extend([0; 5]);
    out.extend(index);
    out
}

fn read(bytes: &[u8]) -> Result<Vec<(Cid, Bytes)>, CarError> {
    CarReader::new(bytes)?.collect()
}

#[test]
fn a_dag_comes_back_in_the_order_of_its_links_and_each_block_once() {
    let (_, root, list) = dag();
    let bytes = car();
    let reader = CarReader::new(&bytes[..]).unwrap();
    assert_eq!(*reader.header(), Header { version: 1, roots: vec![root], fully_indexed: false });
    assert_eq!(reader.collect::<Result<Vec<_>, _>>().unwrap(), list);
    let mut into = MemoryBlocks::default();
    let imported = import(Cursor::new(&bytes), &mut into, &mut |_| {}).unwrap();
    assert_eq!((imported.roots, imported.blocks), (vec![root], 3));
    for (cid, data) in list {
        assert_eq!(into.get(&cid).unwrap(), Some(data));
    }
}

#[test]
fn the_header_is_that_of_the_specification() {
    // The header of the specification's example: two roots, version 1.
    let roots = [
        "bafyreihyrpefhacm6kkp4ql6j6udakdit7g3dmkzfriqfykhjw6cad5lrm",
        "bafyreidj5idub6mapiupjwjsyyxhyhedxycv4vihfsicm2vt46o7morwlm",
    ];
    let roots = roots.map(|text| text.parse::<Cid>().unwrap());
    let written = CarWriter::new(Vec::new(), &roots).unwrap().finish().unwrap();
    let expected = "63a265726f6f747382d82a58250001711220f88bc853804cf294fe417e4fa83028689fcdb1b1592c51\
                    02e1474dbc200fab8bd82a5825000171122069ea0740f9807a28f4d932c62e7c1c83be055e55072c90\
                    266ab3e79df63a365b6776657273696f6e01";
    assert_eq!(hex::encode(written), expected.replace(char::is_whitespace, ""));
}

#[test]
fn an_export_stops_at_the_first_missing_block() {
    let (mut blocks, root, list) = dag();
    blocks.remove(&list[2].0);
    let error = export(&blocks, &root, Vec::new(), &mut |_| {}).unwrap_err();
    assert!(matches!(error, CarError::Dag(ReadError::Missing(cid)) if cid == list[2].0), "{error}");
}

#[test]
fn version_2_is_read_by_its_offsets_and_its_index_skipped() {
    let (_, root, list) = dag();
    for index in [&b""[..], b"\x80\x08 an index that nobody reads"] {
        let bytes = version_2(&car(), index);
        let mut reader = CarReader::new(&bytes[..]).unwrap();
        assert_eq!(*reader.header(), Header { version: 2, roots: vec![root], fully_indexed: true });
        assert_eq!(reader.by_ref().collect::<Result<Vec<_>, _>>().unwrap(), list);
        assert_eq!(reader.offset(), bytes.len() as u64);
    }
}

#[test]
fn every_cut_is_named() {
    let bytes = car();
    let ends: Vec<usize> = {
        let mut reader = CarReader::new(&bytes[..]).unwrap();
        let mut ends = vec![reader.offset() as usize];
        while reader.next().is_some_and(|block| block.is_ok()) {
            ends.push(reader.offset() as usize);
        }
        ends
    };
    for cut in 0..bytes.len() {
        match read(&bytes[..cut]) {
            // A CARv1 does not say how long it is: between two blocks a cut cannot be told from the end.
            Ok(_) => assert!(ends.contains(&cut), "cut at {cut} went unseen"),
            Err(CarError::NotACar(_)) => assert_eq!(cut, 0),
            Err(CarError::Truncated { offset, .. }) => assert_eq!(offset, cut as u64),
            Err(other) => panic!("cut at {cut}: {other}"),
        }
    }
    // A CARv2 does.
    let bytes = version_2(&car(), b"");
    for cut in 0..bytes.len() - 5 {
        assert!(read(&bytes[..cut]).is_err(), "cut at {cut}");
    }
}

#[test]
fn garbage_is_named() {
    let mut bytes = car();
    let end = bytes.len() as u64;
    let (_, _, list) = dag();
    bytes.extend(b"\x03abc");
    let error = read(&bytes).unwrap_err();
    assert!(
        matches!(&error, CarError::BadSection { offset, last, .. } if *offset == end && *last == Some(list[2].0)),
        "{error}"
    );
    let mut bytes = version_2(&car(), b"");
    bytes.push(1);
    let error = read(&bytes).unwrap_err();
    assert!(
        matches!(error, CarError::TrailingGarbage { offset, .. } if offset == bytes.len() as u64 - 1),
        "{error}"
    );
    for (bytes, what) in [
        (&b""[..], "empty"),
        (b"\0", "length 0"),
        (b"\x05hello", "does not decode"),
        (b"\x0a\xa1gversion\x02", "cut off"),
        (b"\x0a\xa1gversion\x01", "no list of roots"),
        (b"\x80\0", "shortest form"),
        (b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", "over 63 bits"),
    ] {
        let error = read(bytes).unwrap_err().to_string();
        assert!(error.contains(what), "{error}");
    }
    assert!(matches!(read(b"\x0a\xa1gversion\x03"), Err(CarError::Version(3))));
}

#[test]
fn lengths_are_checked_before_anything_is_allocated() {
    let mut header = Vec::new();
    put_varint(&mut header, MAX_HEADER as u64 + 1);
    assert!(matches!(read(&header), Err(CarError::HeaderTooLarge { size }) if size == MAX_HEADER as u64 + 1));
    let cid = hash::cid_v1(hash::RAW, b"x");
    let mut bytes = car();
    let start = bytes.len() as u64;
    put_varint(&mut bytes, 1 << 50);
    bytes.extend(cid.to_bytes());
    bytes.extend([0; 200]);
    let size = (1 << 50) - cid.encoded_len() as u64;
    let error = read(&bytes).unwrap_err();
    assert!(
        matches!(error, CarError::BlockTooLarge { cid: named, offset, size: told }
            if named == cid && offset == start && told == size),
        "{error}"
    );
    let largest = vec![7u8; MAX_BLOCK];
    let mut writer = CarWriter::new(Vec::new(), &[]).unwrap();
    writer.put(&hash::cid_v1(hash::RAW, &largest), &largest).unwrap();
    assert_eq!(read(&writer.finish().unwrap()).unwrap().len(), 1);
}

#[test]
fn wrong_and_foreign_hashes_are_refused() {
    let cid = hash::cid_v1(hash::RAW, b"right");
    let foreign = hash::cid_from_digest(hash::RAW, hash::BT_PIECES_ROOT, &hash::sha256(b"right"));
    let identity = hash::cid_from_digest(hash::RAW, hash::IDENTITY, b"right");
    for (cid, fits) in [(cid, true), (identity, true), (foreign, false)] {
        for (data, right) in [(b"right", true), (b"wrong", false)] {
            let mut writer = CarWriter::new(Vec::new(), &[cid]).unwrap();
            writer.put(&cid, data).unwrap();
            let bytes = writer.finish().unwrap();
            let read = read(&bytes);
            assert_eq!(read.is_ok(), fits && right);
            assert!(read.is_ok() || matches!(read, Err(CarError::Block { .. })));
        }
    }
}

#[test]
fn a_reader_ends_after_an_error() {
    let bytes = car();
    let mut reader = CarReader::new(&bytes[..100]).unwrap();
    assert!(reader.by_ref().any(|block| block.is_err()));
    assert!(reader.next().is_none());
}

proptest! {
    #[test]
    fn any_blocks_round_trip(
        contents in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..20),
        second in any::<bool>(),
    ) {
        let blocks: Vec<(Cid, Bytes)> =
            contents.into_iter().map(|data| (hash::cid_v1(hash::RAW, &data), Bytes::from(data))).collect();
        let roots: Vec<Cid> = blocks.iter().map(|(cid, _)| *cid).take(3).collect();
        let mut writer = CarWriter::new(Vec::new(), &roots).unwrap();
        for (cid, data) in &blocks {
            writer.put(cid, data).unwrap();
        }
        let mut bytes = writer.finish().unwrap();
        if second {
            bytes = version_2(&bytes, b"");
        }
        let reader = CarReader::new(&bytes[..]).unwrap();
        prop_assert_eq!(&reader.header().roots, &roots);
        prop_assert_eq!(reader.collect::<Result<Vec<_>, _>>().unwrap(), blocks);
    }

    /// Whatever was bent, what comes out are the blocks that went in: nothing else hashes to their CIDs.
    #[test]
    fn mutations_never_give_a_false_block(
        at in any::<prop::sample::Index>(),
        bits in 1u8..,
        cut in prop::option::of(any::<prop::sample::Index>()),
        second in any::<bool>(),
    ) {
        let mut bytes = if second { version_2(&car(), b"an index") } else { car() };
        let at = at.index(bytes.len());
        bytes[at] ^= bits;
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        let Ok(reader) = CarReader::new(&bytes[..]) else { return Ok(()) };
        let (_, _, list) = dag();
        for block in reader.flatten() {
            prop_assert!(hash::verify(&block.0, &block.1).is_ok());
            prop_assert!(list.iter().any(|(_, data)| *data == block.1));
        }
    }
}
