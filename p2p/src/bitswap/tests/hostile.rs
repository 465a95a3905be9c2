//! Peers that are slow, odd or hostile: raw streams against a node.

use super::*;
use crate::bitswap::limits::{FRAME_BUDGET_KIB, MAX_MESSAGE, MAX_STRIKES, MAX_WANTS_PER_PEER};
use crate::bitswap::wire::{Message, Outgoing, Presence, Version, WantEntry, WantKind, read_frame};
use btfs_storage::hash::{RAW, cid_v1};
use futures::{AsyncReadExt, AsyncWriteExt};
use libp2p::{Stream, StreamProtocol};
use tokio::sync::Semaphore;

const V1_2: StreamProtocol = StreamProtocol::new("/ipfs/bitswap/1.2.0");

/// A swarm that speaks whatever the test writes.
struct Raw {
    swarm: Swarming,
    control: libp2p_stream::Control,
    inbound: libp2p_stream::IncomingStreams,
}

impl Raw {
    async fn start() -> Raw {
        let behaviour = libp2p_stream::Behaviour::new();
        let mut control = behaviour.new_control();
        let inbound = control.accept(V1_2).unwrap();
        Raw { swarm: Swarming::start(behaviour).await, control, inbound }
    }

    async fn open(&mut self, node: &Node) -> Stream {
        self.control.open_stream(node.peer(), V1_2).await.unwrap()
    }
}

async fn next_message(stream: &mut Stream) -> Option<Message> {
    let budget = Semaphore::new(FRAME_BUDGET_KIB as usize);
    let frame = read_frame(stream, &budget).await.unwrap()?;
    Some(Message::decode(frame.0).unwrap())
}

/// Waits until the other side has ended the stream.
async fn ended(mut stream: Stream) {
    let mut rest = Vec::new();
    // A reset is as good an end as a close.
    let _ = stream.read_to_end(&mut rest).await;
}

fn want(cid: Cid) -> WantEntry {
    WantEntry { cid, priority: 1, cancel: false, kind: WantKind::Block, send_dont_have: true }
}

#[test]
fn garbage_and_oversize_frames_reset_the_stream_and_nothing_else() {
    run(async {
        let (node, mut raw) = (Node::start().await, Raw::start().await);
        let cid = node.fill(1, 1, 4000)[0];
        raw.swarm.connect(&node.swarm).await;
        for bytes in [vec![4, 0xff, 0xff, 0xff, 0xff], vec![0xff; 12], {
            let mut length = unsigned_varint::encode::usize_buffer();
            unsigned_varint::encode::usize(MAX_MESSAGE + 1, &mut length).to_vec()
        }] {
            let mut stream = raw.open(&node).await;
            stream.write_all(&bytes).await.unwrap();
            stream.flush().await.unwrap();
            ended(stream).await;
        }
        assert_eq!(node.bitswap.stats().refused_frames, 3);
        let mut stream = raw.open(&node).await;
        let mut out = Outgoing::default();
        out.wantlist(&[want(cid)], false);
        out.write(&mut stream).await.unwrap();
        let (_, mut answers) = raw.inbound.next().await.unwrap();
        assert_eq!(next_message(&mut answers).await.unwrap().blocks[0].1.len(), 4000);
    });
}

#[test]
fn too_many_wants_are_dropped_and_the_rest_is_answered() {
    run(async {
        let (node, mut raw) = (Node::start().await, Raw::start().await);
        raw.swarm.connect(&node.swarm).await;
        let mut stream = raw.open(&node).await;
        let wants: Vec<WantEntry> = (0..3000u32)
            .map(|n| WantEntry { send_dont_have: false, ..want(cid_v1(RAW, &n.to_le_bytes())) })
            .collect();
        let mut out = Outgoing::default();
        out.wantlist(&wants, false);
        out.write(&mut stream).await.unwrap();
        eventually(|| node.bitswap.stats().dropped_entries > 0).await;
        assert_eq!(node.bitswap.stats().dropped_entries as usize, 3000 - MAX_WANTS_PER_PEER);
        assert_eq!(node.bitswap.wantlist_of(&raw.swarm.peer).len(), MAX_WANTS_PER_PEER);
    });
}

#[test]
fn blocks_that_nobody_asked_for_are_dropped_and_their_sender_is_left_alone() {
    run(async {
        let (node, mut raw) = (Node::start().await, Raw::start().await);
        raw.swarm.connect(&node.swarm).await;
        let mut stream = raw.open(&node).await;
        let wanted = cid_v1(RAW, b"the right bytes");
        let session = node.bitswap.session(vec![raw.swarm.peer]);
        let get = tokio::spawn({
            let session = session.clone();
            async move { session.try_get(wanted).await }
        });
        let (_, mut wants) = raw.inbound.next().await.unwrap();
        assert_eq!(next_message(&mut wants).await.unwrap().wants[0].cid, wanted);
        for n in 0..MAX_STRIKES {
            let mut out = Outgoing::default();
            out.block(&wanted, Bytes::from(format!("wrong bytes {n}")), Version::V1_2);
            out.write(&mut stream).await.unwrap();
        }
        let refused = get.await.unwrap();
        assert!(matches!(refused, Err(FetchError::NotFound { cid, .. }) if cid == wanted), "{refused:?}");
        assert_eq!(node.bitswap.stats().unrequested_blocks, u64::from(MAX_STRIKES));
    });
}

#[test]
fn a_peer_that_opens_a_stream_per_answer_is_understood() {
    run(async {
        let (node, mut raw) = (Node::start().await, Raw::start().await);
        raw.swarm.connect(&node.swarm).await;
        let blocks: Vec<Vec<u8>> = (0..200).map(|n| block(3, n, 20_000)).collect();
        let cids: Vec<Cid> = blocks.iter().map(|data| cid_v1(RAW, data)).collect();
        let peer = raw.swarm.peer;
        let answering = async {
            let (_, mut wants) = raw.inbound.next().await.unwrap();
            let mut answered = 0;
            while answered < blocks.len() {
                for entry in next_message(&mut wants).await.unwrap().wants {
                    let at = cids.iter().position(|cid| *cid == entry.cid).unwrap();
                    let mut stream = raw.control.open_stream(node.peer(), V1_2).await.unwrap();
                    let mut out = Outgoing::default();
                    out.presence(&entry.cid, Presence::Have);
                    out.block(&entry.cid, blocks[at].clone().into(), Version::V1_2);
                    out.write(&mut stream).await.unwrap();
                    stream.close().await.unwrap();
                    answered += 1;
                }
            }
        };
        let session = node.bitswap.session(vec![peer]);
        let (bytes, ()) = tokio::join!(fetch_all(&session, &cids, 50), answering);
        assert_eq!(bytes.unwrap(), 200 * 20_000);
    });
}

#[test]
fn a_peer_without_bitswap_refuses_at_once() {
    run(async {
        let node = Node::start().await;
        let deaf = Swarming::start(libp2p::ping::Behaviour::default()).await;
        node.swarm.connect(&deaf).await;
        let cid = cid_v1(RAW, b"x");
        let session = node.bitswap.session(vec![deaf.peer]);
        assert!(matches!(session.try_get(cid).await, Err(FetchError::NotFound { .. })));
    });
}

#[test]
fn an_old_peer_gets_bare_blocks() {
    run(async {
        const OLD: StreamProtocol = StreamProtocol::new("/ipfs/bitswap/1.0.0");
        let node = Node::start().await;
        let behaviour = libp2p_stream::Behaviour::new();
        let mut control = behaviour.new_control();
        let mut inbound = control.accept(OLD).unwrap();
        let raw = Swarming::start(behaviour).await;
        raw.connect(&node.swarm).await;
        let cid = node.fill(1, 1, 4000)[0];
        let mut stream = control.open_stream(node.peer(), OLD).await.unwrap();
        let mut out = Outgoing::default();
        out.wantlist(&[want(cid)], true);
        out.write(&mut stream).await.unwrap();
        let (_, mut answers) = inbound.next().await.unwrap();
        let message = next_message(&mut answers).await.unwrap();
        assert_eq!((message.blocks[0].0.version, message.blocks[0].1.len()), (0, 4000));
    });
}
