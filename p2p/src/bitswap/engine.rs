//! The server's answers: from due wants and a block source to one response of bounded size.
//!
//! Plain functions over [`BlockSource`]; the peer's task calls them on the store's blocking pool.

use btfs_storage::{BlockSource, StoreError};
use bytes::Bytes;
use cid::Cid;

use super::ledger::{Due, PeerWants, Settled};
use super::limits::{INLINE_BLOCK, MAX_BLOCK, RESPONSE_TARGET};
use super::wire::{Outgoing, Presence, Version, WantKind};

/// What is said to one want.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// The block itself.
    Block(Bytes),
    /// It is here.
    Have,
    /// It is not here, or not for this peer.
    DontHave,
    /// It is not here, and the peer did not ask to be told.
    Silence,
}

/// One response: answered wants, and those that did not fit.
#[derive(Debug, Default)]
pub struct Response {
    /// The wants with their answers, in order of priority.
    pub answers: Vec<(Due, Answer)>,
    /// Wants left for the next response.
    pub rest: Vec<Due>,
    /// Payload bytes.
    pub bytes: usize,
    /// Reads that failed; their wants were answered as if the block were absent.
    pub read_errors: Vec<(Cid, StoreError)>,
}

/// Answers `due` in order until the response is full.
pub fn respond(due: Vec<Due>, may_serve: &dyn Fn(&Cid) -> bool, source: &dyn BlockSource) -> Response {
    let mut response = Response::default();
    let mut due = due.into_iter();
    for want in due.by_ref() {
        let answer = if may_serve(&want.cid) {
            look_up(&want, source).unwrap_or_else(|error| {
                response.read_errors.push((want.cid, error));
                absent(&want)
            })
        } else {
            absent(&want)
        };
        if let Answer::Block(data) = &answer {
            response.bytes += data.len();
        }
        response.answers.push((want, answer));
        if response.bytes >= RESPONSE_TARGET {
            break;
        }
    }
    response.rest = due.collect();
    response
}

fn look_up(want: &Due, source: &dyn BlockSource) -> Result<Answer, StoreError> {
    if want.kind == WantKind::Have {
        match source.block_size(&want.cid)? {
            None => return Ok(absent(want)),
            Some(size) if size > INLINE_BLOCK => return Ok(Answer::Have),
            Some(_) => {}
        }
    }
    // A block over the cap cannot be sent to anyone; nothing stores one, so this is a foreign source's fault.
    Ok(source.get(&want.cid)?.filter(|data| data.len() <= MAX_BLOCK).map_or(absent(want), Answer::Block))
}

fn absent(want: &Due) -> Answer {
    if want.send_dont_have { Answer::DontHave } else { Answer::Silence }
}

impl Response {
    /// Puts the answers into a message. Peers below 1.2 know blocks only.
    pub fn encode(&self, out: &mut Outgoing, version: Version) {
        for (want, answer) in &self.answers {
            match answer {
                Answer::Block(data) => out.block(&want.cid, data.clone(), version),
                Answer::Have if version == Version::V1_2 => out.presence(&want.cid, Presence::Have),
                Answer::DontHave if version == Version::V1_2 => out.presence(&want.cid, Presence::DontHave),
                _ => {}
            }
        }
    }

    /// Blocks in the response.
    pub fn blocks(&self) -> usize {
        self.answers.iter().filter(|(_, answer)| matches!(answer, Answer::Block(_))).count()
    }

    /// Whether anything goes out.
    pub fn is_silent(&self) -> bool {
        self.answers.iter().all(|(_, answer)| *answer == Answer::Silence)
    }

    /// Ends the answered wants in the peer's ledger, after the response was written.
    pub fn settle(&self, wants: &mut PeerWants) {
        for (want, answer) in &self.answers {
            let settled = match answer {
                Answer::Block(_) | Answer::Have => Settled::Sent,
                Answer::DontHave | Answer::Silence => Settled::NotHere,
            };
            wants.settle(want, settled);
        }
    }

    /// Returns every want to the ledger: the response could not be written.
    pub fn undo(&self, wants: &mut PeerWants) {
        let due: Vec<Due> = self.answers.iter().map(|(want, _)| *want).collect();
        wants.put_back(&due);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bitswap::testing::MemBlocks;
    use crate::bitswap::wire::WantEntry;
    use btfs_storage::hash::{RAW, cid_v1};

    fn due(entries: &[(Cid, WantKind, bool)]) -> (PeerWants, Vec<Due>) {
        let entries: Vec<WantEntry> = entries
            .iter()
            .map(|&(cid, kind, send_dont_have)| WantEntry {
                cid,
                priority: 1,
                cancel: false,
                kind,
                send_dont_have,
            })
            .collect();
        let mut wants = PeerWants::default();
        wants.apply(&entries, false);
        let due = wants.take(entries.len());
        (wants, due)
    }

    #[test]
    fn have_is_answered_inline_only_when_small() {
        let blocks = MemBlocks::default();
        let small = blocks.add(vec![1; INLINE_BLOCK as usize]);
        let large = blocks.add(vec![2; INLINE_BLOCK as usize + 1]);
        let gone = cid_v1(RAW, b"gone");
        let (mut wants, due) = due(&[
            (small, WantKind::Have, true),
            (large, WantKind::Have, true),
            (gone, WantKind::Have, true),
            (cid_v1(RAW, b"gone too"), WantKind::Block, false),
        ]);
        let response = respond(due, &|_| true, &blocks);
        let answers: Vec<_> = response.answers.iter().map(|(_, answer)| answer.clone()).collect();
        let inline = Answer::Block(vec![1; INLINE_BLOCK as usize].into());
        assert_eq!(answers, [inline, Answer::Have, Answer::DontHave, Answer::Silence]);
        response.settle(&mut wants);
        assert_eq!(wants.len(), 2, "absent ones are kept");
    }

    #[test]
    fn withheld_blocks_look_absent() {
        let blocks = MemBlocks::default();
        let cid = blocks.add(vec![1; 5000]);
        let (_, due) = due(&[(cid, WantKind::Block, true)]);
        let response = respond(due, &|_| false, &blocks);
        assert_eq!(response.answers[0].1, Answer::DontHave);
    }

    #[test]
    fn a_response_is_closed_at_its_target_and_stays_below_the_frame_cap() {
        let blocks = MemBlocks::default();
        let mut list = vec![(blocks.add(vec![0; RESPONSE_TARGET - 1]), WantKind::Block, true)];
        for n in 1..4u8 {
            list.push((blocks.add(vec![n; MAX_BLOCK]), WantKind::Block, true));
        }
        let (mut wants, due) = due(&list);
        let response = respond(due, &|_| true, &blocks);
        assert_eq!((response.answers.len(), response.rest.len()), (2, 2));
        assert!(response.bytes < crate::bitswap::limits::MAX_MESSAGE);
        wants.put_back(&response.rest);
        response.undo(&mut wants);
        assert_eq!(wants.take(9).len(), 4);
    }

    #[test]
    fn a_failing_read_is_reported_and_answered_as_absent() {
        let blocks = MemBlocks::default();
        let cid = blocks.add(vec![1; 10]);
        blocks.corrupt(cid);
        let (_, due) = due(&[(cid, WantKind::Block, true)]);
        let response = respond(due, &|_| true, &blocks);
        assert_eq!(response.answers[0].1, Answer::DontHave);
        assert_eq!(response.read_errors.len(), 1);
    }
}
