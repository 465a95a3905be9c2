//! SHA-256 of many messages at once, a lane of a vector register for each.
//!
//! One message is hashed block after block, each waiting for the one before, so a core with instructions for SHA-256
//! still waits most of the time. Sixteen messages side by side in AVX-512 registers keep it busy: 3.0 GB/s on a core
//! that does 1.45 GB/s of one message. What hashes many blocks that are here at the same time (leaves of a file, small
//! files, parity shards) comes through [`sha256_all`]; where a processor has no AVX-512, or messages are few, they are
//! hashed one by one.
//!
//! Invariants:
//!
//! * Every digest is that of [`sha256`](super::sha256), whatever the lengths and the number of messages.
//! * Lanes run in step: a message that ends gives its lane to the next one, the longest first. When too few are left
//!   to be worth it, each goes on alone from where it is.
//!
//! One of the places with `unsafe` in this crate, in [`wide`]: a function of a processor's feature may be called where
//! that was found, and a register is filled from an array of its size.

use sha2::block_api::compress256;

/// Messages hashed at once: 32-bit lanes of a 512-bit register.
const LANES: usize = 16;
/// Bytes of a block of SHA-256.
const BLOCK: usize = 64;
/// Messages from which lanes are worth it: sixteen take as long as eight alone.
pub(crate) const WORTH: usize = 8;
/// Where a length is written at the end, in bytes.
const LENGTH: usize = 8;

/// What SHA-256 begins with: the first 32 bits of the fractions of the square roots of the first 8 primes (FIPS 180-4).
const BEGIN: [u32; 8] =
    [0x6a09_e667, 0xbb67_ae85, 0x3c6e_f372, 0xa54f_f53a, 0x510e_527f, 0x9b05_688c, 0x1f83_d9ab, 0x5be0_cd19];

/// The state of every lane: word by word, as registers hold it.
type States = [[u32; LANES]; 8];

/// Hashes one or more whole blocks into every lane; all slices have the same length.
type Compress = fn(&mut States, &[&[u8]; LANES]);

/// Messages that this processor hashes at once: [`LANES`], or 1.
pub(crate) fn lanes() -> usize {
    if wide::compress().is_some() { LANES } else { 1 }
}

/// The SHA2-256 digests of `messages`, in their order.
pub fn sha256_all(messages: &[&[u8]]) -> Vec<[u8; 32]> {
    match wide::compress() {
        Some(compress) if messages.len() >= WORTH => in_lanes(messages, compress, WORTH),
        _ => messages.iter().map(|message| super::sha256(message)).collect(),
    }
}

/// A message on its way through a lane.
struct Lane<'a> {
    /// Its position among the messages.
    number: usize,
    /// Its whole blocks still to come.
    body: &'a [u8],
    /// The rest, padded as FIPS 180-4 says, and where the part of it begins that is still to come.
    end: [u8; 2 * BLOCK],
    at: usize,
}

impl<'a> Lane<'a> {
    fn new(number: usize, message: &'a [u8]) -> Lane<'a> {
        let (body, rest) = message.split_at(message.len() - message.len() % BLOCK);
        let mut end = [0; 2 * BLOCK];
        end[..rest.len()].copy_from_slice(rest);
        end[rest.len()] = 0x80;
        let bits = (message.len() as u64) << 3;
        end[2 * BLOCK - LENGTH..].copy_from_slice(&bits.to_be_bytes());
        let mut at = 0;
        if rest.len() + 1 + LENGTH <= BLOCK {
            // One block is enough, the second one: it has the length.
            end.copy_within(..BLOCK, BLOCK);
            end[2 * BLOCK - LENGTH..].copy_from_slice(&bits.to_be_bytes());
            at = BLOCK;
        }
        Lane { number, body, end, at }
    }

    /// Blocks that lie together and come next.
    fn next(&self) -> &[u8] {
        if self.body.is_empty() { &self.end[self.at..] } else { self.body }
    }

    /// `bytes` of [`next`](Self::next) are done; whether all is.
    fn advance(&mut self, bytes: usize) -> bool {
        if self.body.is_empty() {
            self.at += bytes;
        } else {
            self.body = &self.body[bytes..];
        }
        self.at == self.end.len()
    }

    /// Goes through the rest alone.
    fn finish(&self, state: &mut [u32; 8]) {
        for part in [self.body, &self.end[self.at..]] {
            compress256(state, part.as_chunks().0);
        }
    }
}

/// Hashes in lanes for as long as `worth` of them are taken.
fn in_lanes(messages: &[&[u8]], compress: Compress, worth: usize) -> Vec<[u8; 32]> {
    let mut waiting: Vec<usize> = (0..messages.len()).collect();
    // The last is taken first.
    waiting.sort_by_key(|number| messages[*number].len());
    let mut digests = vec![[0; 32]; messages.len()];
    let mut states: States = BEGIN.map(|word| [word; LANES]);
    let mut lanes: [Option<Lane<'_>>; LANES] = Default::default();
    loop {
        for (at, lane) in lanes.iter_mut().enumerate().filter(|(_, lane)| lane.is_none()) {
            let Some(number) = waiting.pop() else { break };
            *lane = Some(Lane::new(number, messages[number]));
            put(&mut states, at, &BEGIN);
        }
        if lanes.iter().flatten().count() < worth {
            break;
        }
        let Some(shortest) = lanes.iter().flatten().map(Lane::next).min_by_key(|next| next.len()) else {
            break;
        };
        let step = shortest.len();
        // A lane that is not taken does what another does.
        let blocks =
            std::array::from_fn(|at| lanes[at].as_ref().map_or(shortest, |lane| &lane.next()[..step]));
        compress(&mut states, &blocks);
        for (at, lane) in lanes.iter_mut().enumerate() {
            if let Some(message) = lane
                && message.advance(step)
            {
                digests[message.number] = digest(&take(&states, at));
                *lane = None;
            }
        }
    }
    for (at, lane) in lanes.iter().enumerate() {
        if let Some(lane) = lane {
            let mut state = take(&states, at);
            lane.finish(&mut state);
            digests[lane.number] = digest(&state);
        }
    }
    digests
}

fn put(states: &mut States, lane: usize, state: &[u32; 8]) {
    for (words, word) in states.iter_mut().zip(state) {
        words[lane] = *word;
    }
}

fn take(states: &States, lane: usize) -> [u32; 8] {
    states.map(|words| words[lane])
}

fn digest(state: &[u32; 8]) -> [u8; 32] {
    let mut digest = [0; 32];
    for (bytes, word) in digest.chunks_exact_mut(4).zip(state) {
        bytes.copy_from_slice(&word.to_be_bytes());
    }
    digest
}

#[cfg(not(target_arch = "x86_64"))]
mod wide {
    /// No registers for it.
    pub(super) fn compress() -> Option<super::Compress> {
        None
    }
}

/// AVX-512: the compression function of FIPS 180-4, section 6.2.2, on 16 messages.
#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
mod wide {
    use std::arch::x86_64::*;
    use std::array::from_fn;

    use super::{BLOCK, Compress, LANES, States};

    /// The first 32 bits of the fractions of the cube roots of the first 64 primes.
    #[rustfmt::skip]
    const ROUND: [u32; 64] = [
        0x428a_2f98, 0x7137_4491, 0xb5c0_fbcf, 0xe9b5_dba5, 0x3956_c25b, 0x59f1_11f1, 0x923f_82a4, 0xab1c_5ed5,
        0xd807_aa98, 0x1283_5b01, 0x2431_85be, 0x550c_7dc3, 0x72be_5d74, 0x80de_b1fe, 0x9bdc_06a7, 0xc19b_f174,
        0xe49b_69c1, 0xefbe_4786, 0x0fc1_9dc6, 0x240c_a1cc, 0x2de9_2c6f, 0x4a74_84aa, 0x5cb0_a9dc, 0x76f9_88da,
        0x983e_5152, 0xa831_c66d, 0xb003_27c8, 0xbf59_7fc7, 0xc6e0_0bf3, 0xd5a7_9147, 0x06ca_6351, 0x1429_2967,
        0x27b7_0a85, 0x2e1b_2138, 0x4d2c_6dfc, 0x5338_0d13, 0x650a_7354, 0x766a_0abb, 0x81c2_c92e, 0x9272_2c85,
        0xa2bf_e8a1, 0xa81a_664b, 0xc24b_8b70, 0xc76c_51a3, 0xd192_e819, 0xd699_0624, 0xf40e_3585, 0x106a_a070,
        0x19a4_c116, 0x1e37_6c08, 0x2748_774c, 0x34b0_bcb5, 0x391c_0cb3, 0x4ed8_aa4a, 0x5b9c_ca4f, 0x682e_6ff3,
        0x748f_82ee, 0x78a5_636f, 0x84c8_7814, 0x8cc7_0208, 0x90be_fffa, 0xa450_6ceb, 0xbef9_a3f7, 0xc671_78f2,
    ];

    /// The bits of `ternarylogic` for a ^ b ^ c, for b where a is set and else c, and for the majority.
    const XOR: i32 = 0x96;
    const CHOOSE: i32 = 0xca;
    const MAJORITY: i32 = 0xe8;

    /// The function, if this processor can run it.
    pub(super) fn compress() -> Option<Compress> {
        (is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw")).then_some(on_avx512)
    }

    /// Only given out by [`compress`], which has looked for the features.
    fn on_avx512(states: &mut States, blocks: &[&[u8]; LANES]) {
        // SAFETY: the processor has what the function is compiled for.
        unsafe { hash(states, blocks) }
    }

    #[target_feature(enable = "avx512f,avx512bw")]
    fn load<T>(from: &T) -> __m512i {
        const { assert!(size_of::<T>() == size_of::<__m512i>()) };
        // SAFETY: `from` is valid for reads of a register's size, which may be anywhere.
        unsafe { _mm512_loadu_si512(std::ptr::from_ref(from).cast()) }
    }

    #[target_feature(enable = "avx512f,avx512bw")]
    fn hash(states: &mut States, blocks: &[&[u8]; LANES]) {
        let blocks: [&[[u8; BLOCK]]; LANES] = blocks.map(|blocks| blocks.as_chunks().0);
        let count = blocks.iter().map(|blocks| blocks.len()).min().unwrap_or(0);
        let mut state: [__m512i; 8] = from_fn(|word| load(&states[word]));
        for number in 0..count {
            let words = words(blocks.map(|lane| load(&lane[number])));
            let after = rounds(state, words);
            state = from_fn(|word| _mm512_add_epi32(state[word], after[word]));
        }
        for (words, state) in states.iter_mut().zip(state) {
            // SAFETY: 16 words are a register's size.
            unsafe { _mm512_storeu_si512(words.as_mut_ptr().cast(), state) };
        }
    }

    /// The 16 words of a block of each lane: a register for each word, from one for each lane's block.
    #[target_feature(enable = "avx512f,avx512bw")]
    fn words(mut rows: [__m512i; LANES]) -> [__m512i; 16] {
        let mut other = [_mm512_setzero_si512(); 16];
        for i in 0..8 {
            other[2 * i] = _mm512_unpacklo_epi32(rows[2 * i], rows[2 * i + 1]);
            other[2 * i + 1] = _mm512_unpackhi_epi32(rows[2 * i], rows[2 * i + 1]);
        }
        for i in 0..4 {
            for half in 0..2 {
                let (even, odd) = (other[4 * i + half], other[4 * i + half + 2]);
                rows[4 * i + 2 * half] = _mm512_unpacklo_epi64(even, odd);
                rows[4 * i + 2 * half + 1] = _mm512_unpackhi_epi64(even, odd);
            }
        }
        for i in 0..4 {
            for half in 0..2 {
                let (low, high) = (rows[8 * half + i], rows[8 * half + 4 + i]);
                other[8 * half + i] = _mm512_shuffle_i32x4(low, high, 0x88);
                other[8 * half + 4 + i] = _mm512_shuffle_i32x4(low, high, 0xdd);
            }
        }
        // Words are big-endian.
        let swap = _mm512_broadcast_i32x4(_mm_set_epi64x(0x0c0d_0e0f_0809_0a0b, 0x0405_0607_0001_0203));
        for i in 0..4 {
            for half in 0..2 {
                let (low, high) = (other[4 * half + i], other[8 + 4 * half + i]);
                rows[4 * half + i] = _mm512_shuffle_epi8(_mm512_shuffle_i32x4(low, high, 0x88), swap);
                rows[8 + 4 * half + i] = _mm512_shuffle_epi8(_mm512_shuffle_i32x4(low, high, 0xdd), swap);
            }
        }
        rows
    }

    /// The 64 rounds over a block's words.
    #[target_feature(enable = "avx512f,avx512bw")]
    fn rounds(mut state: [__m512i; 8], mut words: [__m512i; 16]) -> [__m512i; 8] {
        let (last, before) = ROUND.as_chunks::<16>().0.split_last().expect("there are 64");
        for sixteen in before {
            for i in 0..16 {
                state = round(state, words[i], sixteen[i]);
                // The word of 16 rounds later.
                let (near, far) = (words[(i + 1) % 16], words[(i + 14) % 16]);
                let near =
                    xor(_mm512_ror_epi32(near, 7), _mm512_ror_epi32(near, 18), _mm512_srli_epi32(near, 3));
                let far =
                    xor(_mm512_ror_epi32(far, 17), _mm512_ror_epi32(far, 19), _mm512_srli_epi32(far, 10));
                let ninth = words[(i + 9) % 16];
                words[i] = _mm512_add_epi32(_mm512_add_epi32(words[i], near), _mm512_add_epi32(ninth, far));
            }
        }
        for i in 0..16 {
            state = round(state, words[i], last[i]);
        }
        state
    }

    #[target_feature(enable = "avx512f,avx512bw")]
    fn round([a, b, c, d, e, f, g, h]: [__m512i; 8], word: __m512i, constant: u32) -> [__m512i; 8] {
        let turned = xor(_mm512_ror_epi32(e, 6), _mm512_ror_epi32(e, 11), _mm512_ror_epi32(e, 25));
        let chosen = _mm512_ternarylogic_epi32(e, f, g, CHOOSE);
        let word = _mm512_add_epi32(word, _mm512_set1_epi32(constant.cast_signed()));
        let one = _mm512_add_epi32(_mm512_add_epi32(h, turned), _mm512_add_epi32(chosen, word));
        let turned = xor(_mm512_ror_epi32(a, 2), _mm512_ror_epi32(a, 13), _mm512_ror_epi32(a, 22));
        let two = _mm512_add_epi32(turned, _mm512_ternarylogic_epi32(a, b, c, MAJORITY));
        [_mm512_add_epi32(one, two), a, b, c, _mm512_add_epi32(d, one), e, f, g]
    }

    #[target_feature(enable = "avx512f,avx512bw")]
    fn xor(a: __m512i, b: __m512i, c: __m512i) -> __m512i {
        _mm512_ternarylogic_epi32(a, b, c, XOR)
    }
}

#[cfg(test)]
mod tests {
    use super::super::sha256;
    use super::*;

    /// The compression of each lane by itself.
    fn one_by_one(states: &mut States, blocks: &[&[u8]; LANES]) {
        for (lane, blocks) in blocks.iter().enumerate() {
            let mut state = take(states, lane);
            compress256(&mut state, blocks.as_chunks().0);
            put(states, lane, &state);
        }
    }

    fn message(len: usize) -> Vec<u8> {
        (0..len).map(|at| (at * at / 7 + len) as u8).collect()
    }

    #[test]
    fn lanes_give_the_digests_of_messages_alone() {
        // Every length around the ends of blocks, and one that leaves the others behind.
        let lengths = (0..200).chain([4096; 40]).chain([100_000, 65_536, 1 << 20]);
        let messages: Vec<Vec<u8>> = lengths.map(message).collect();
        for count in [0, 1, WORTH - 1, WORTH, LANES, LANES + 1, 100, messages.len()] {
            let messages: Vec<&[u8]> = messages.iter().rev().take(count).map(Vec::as_slice).collect();
            let expected: Vec<[u8; 32]> = messages.iter().map(|message| sha256(message)).collect();
            assert_eq!(sha256_all(&messages), expected, "{count} as the processor can");
            for worth in [1, WORTH, LANES] {
                assert_eq!(
                    in_lanes(&messages, one_by_one, worth),
                    expected,
                    "{count} while {worth} are left"
                );
            }
        }
    }
}
