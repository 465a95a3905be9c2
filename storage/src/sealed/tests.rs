//! Sealed files that are whole, read in part, and broken in every way there is.

use std::io::Read;

use proptest::prelude::*;

use super::*;

fn key(byte: u8) -> SealKey {
    SealKey::from_bytes([byte; SealKey::LEN])
}

fn seal(content: &[u8], key: &SealKey) -> Vec<u8> {
    let mut sealed = Vec::new();
    Sealer::new(content, key).unwrap().read_to_end(&mut sealed).unwrap();
    assert_eq!(sealed.len() as u64, sealed_size(content.len() as u64));
    assert_eq!(content_size(sealed.len() as u64), Ok(content.len() as u64));
    sealed
}

/// Reads a part of a sealed file as the program does: length, header and last segment first.
fn open(sealed: &[u8], key: &SealKey, offset: u64, length: u64) -> Result<Vec<u8>, SealError> {
    let size = sealed.len() as u64;
    let part = |range: &std::ops::Range<u64>| sealed[range.start as usize..range.end as usize].to_vec();
    let last = part(&last_segment(size)?);
    let unsealer = Unsealer::new(key, size, &sealed[..HEADER], last)?;
    let mut content = Vec::new();
    for segment in unsealer.segments(offset, length) {
        content.extend_from_slice(&unsealer.open(segment.index, part(&segment.sealed))?[segment.wanted]);
    }
    Ok(content)
}

fn whole(sealed: &[u8], key: &SealKey) -> Result<Vec<u8>, SealError> {
    open(sealed, key, 0, u64::MAX)
}

fn content(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 31 + at / 251) as u8).collect()
}

/// Lengths at which something changes.
const LENGTHS: [usize; 9] = [
    0,
    1,
    SEGMENT - 1,
    SEGMENT,
    SEGMENT + 1,
    2 * SEGMENT - 17,
    2 * SEGMENT,
    2 * SEGMENT + 16,
    3 * SEGMENT + 5,
];

#[test]
fn content_of_any_length_comes_back() {
    for len in LENGTHS {
        let content = content(len);
        let sealed = seal(&content, &key(1));
        assert!(whole(&sealed, &key(1)).unwrap() == content, "{len}");
    }
}

/// Fixed once: files sealed by this version must open for ever. The segment is what golang.org/x/crypto makes of it, too.
#[test]
fn the_format_does_not_change() {
    let mut sealed = Vec::new();
    Sealer::with_prefix(&b"sealed"[..], &key(7), [9; PREFIX]).read_to_end(&mut sealed).unwrap();
    assert_eq!(hex::encode(&sealed[..HEADER]), format!("425446535345414c01{}", "09".repeat(19)));
    assert_eq!(hex::encode(&sealed[HEADER..]), "97fcafddd7d422f5be8f0a3c898b8c5022c07065180c");
    assert_eq!(whole(&sealed, &key(7)).unwrap(), b"sealed");
}

#[test]
fn one_segment_is_what_the_cipher_alone_gives() {
    use chacha20poly1305::XChaCha20Poly1305;
    use chacha20poly1305::aead::{Aead, KeyInit, Payload};
    let content = content(SEGMENT + 10);
    let mut sealed = Vec::new();
    Sealer::with_prefix(&content[..], &key(3), [5; PREFIX]).read_to_end(&mut sealed).unwrap();
    let (header, body) = sealed.split_at(HEADER);
    let cipher = XChaCha20Poly1305::new(&[3; 32].into());
    for (index, segment) in body.chunks(SEGMENT + TAG).enumerate() {
        let mut nonce = [5u8; 24];
        nonce[19..].copy_from_slice(&[0, 0, 0, index as u8, index as u8]);
        let opened = cipher.decrypt(&nonce.into(), Payload { msg: segment, aad: header }).unwrap();
        assert!(opened == content.chunks(SEGMENT).nth(index).unwrap());
    }
}

#[test]
fn every_cut_and_every_longer_file_is_refused() {
    for len in LENGTHS {
        let sealed = seal(&content(len), &key(1));
        let cuts = (0..64.min(sealed.len())).chain((0..sealed.len()).step_by(4999));
        let boundaries = (0..4).map(|segment| HEADER + segment * (SEGMENT + TAG));
        for cut in cuts.chain(boundaries).filter(|cut| *cut < sealed.len()) {
            assert!(open(&sealed[..cut.max(HEADER)], &key(1), 0, 1).is_err(), "{len} cut at {cut}");
        }
        for more in [1, TAG, SEGMENT, SEGMENT + TAG] {
            let mut longer = sealed.clone();
            longer.resize(sealed.len() + more, 0);
            assert!(open(&longer, &key(1), 0, 1).is_err(), "{len} and {more}");
        }
    }
}

#[test]
fn segments_swapped_doubled_dropped_or_foreign_are_refused() {
    let a = seal(&content(4 * SEGMENT), &key(1));
    let b = seal(&content(4 * SEGMENT), &key(1));
    let c = seal(&content(4 * SEGMENT), &key(2));
    let segment = |file: &[u8], index: usize| {
        file[HEADER + index * (SEGMENT + TAG)..HEADER + (index + 1) * (SEGMENT + TAG)].to_vec()
    };
    let build = |header: &[u8], segments: &[Vec<u8>]| [&header[..HEADER], &segments.concat()].concat();
    let own: Vec<Vec<u8>> = (0..4).map(|index| segment(&a, index)).collect();
    assert!(whole(&build(&a, &own), &key(1)).is_ok());
    for order in [
        &[1, 0, 2, 3][..],
        &[0, 2, 1, 3],
        &[0, 0, 1, 2, 3],
        &[0, 1, 3],
        &[1, 2, 3],
        &[0, 1, 2],
        &[3, 3, 3, 3],
    ] {
        let segments: Vec<Vec<u8>> = order.iter().map(|index| own[*index].clone()).collect();
        assert!(whole(&build(&a, &segments), &key(1)).is_err(), "{order:?}");
    }
    for other in [&b, &c] {
        for index in 0..4 {
            let mut segments = own.clone();
            segments[index] = segment(other, index);
            assert!(whole(&build(&a, &segments), &key(1)).is_err());
        }
        assert!(whole(&build(other, &own), &key(1)).is_err(), "another header");
    }
    assert_eq!(whole(&a, &key(2)), Err(SealError::Refused { index: 3 }));
}

#[test]
fn what_is_not_sealed_is_named() {
    let plain = content(1000);
    assert_eq!(whole(&plain, &key(1)), Err(SealError::NotSealed));
    let mut newer = seal(b"x", &key(1));
    newer[MAGIC.len()] = 2;
    assert_eq!(whole(&newer, &key(1)), Err(SealError::Version(2)));
    assert_eq!(last_segment(43), Err(SealError::Length { size: 43 }));
    assert!(last_segment(u64::MAX).is_err());
}

#[test]
fn links_carry_keys_and_nothing_else_shows_them() {
    let link = Link { reference: "/ipfs/bafy/path".into(), key: SealKey::random().unwrap() };
    let text = link.reveal();
    assert_eq!(text.parse::<Link>().unwrap(), link);
    let key = link.key.reveal();
    assert_eq!(key.len(), 43);
    assert!(!format!("{link:?}").contains(key.as_str()));
    assert_ne!(link.key, SealKey::random().unwrap());
    assert_eq!("bafy".parse::<Link>(), Err(BadLink::NoKey));
    for cut in [0, 10, 42] {
        let error = format!("bafy#{}", &key[..cut]).parse::<Link>().unwrap_err();
        assert_eq!(error, BadLink::Key);
        assert!(cut == 0 || !error.to_string().contains(&key[..cut]));
    }
    // 43 characters hold 258 bits: the two over must be zero, or one key would have several names.
    assert_eq!(format!("bafy#{}", "_".repeat(43)).parse::<Link>(), Err(BadLink::Key));
}

/// A reader that gives its bytes in pieces of any size.
struct Pieces<'a>(&'a [u8], usize);

impl Read for Pieces<'_> {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        let len = self.1.min(into.len()).min(self.0.len());
        into[..len].copy_from_slice(&self.0[..len]);
        self.0 = &self.0[len..];
        Ok(len)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn random_access_gives_the_plain_slice(
        len in 0usize..4 * SEGMENT,
        offset in 0u64..5 * SEGMENT as u64,
        length in prop_oneof![0u64..100, 0u64..5 * SEGMENT as u64, Just(u64::MAX)],
        pieces in 1usize..100_000,
    ) {
        let content = content(len);
        let mut sealed = Vec::new();
        Sealer::new(Pieces(&content, pieces), &key(4)).unwrap().read_to_end(&mut sealed).unwrap();
        let from = (offset as usize).min(len);
        let to = offset.saturating_add(length).min(len as u64) as usize;
        prop_assert!(open(&sealed, &key(4), offset, length).unwrap() == content[from..to.max(from)]);
    }

    #[test]
    fn every_flipped_bit_is_refused(
        len in 0usize..3 * SEGMENT,
        at in any::<prop::sample::Index>(),
        bit in 0u8..8,
    ) {
        let plain = content(len);
        let mut sealed = seal(&plain, &key(5));
        let at = at.index(sealed.len());
        sealed[at] ^= 1 << bit;
        prop_assert!(whole(&sealed, &key(5)).is_err());
    }
}
