//! Scripted peers and a scripted tracker.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use crate::bitfield::Bitfield;
use crate::infohash::InfoHash;
use crate::metainfo::Info;
use crate::wire::handshake::{self, Handshake};
use crate::wire::{Frames, Message};

const FRAMES: Frames = Frames { max_bitfield: 1 << 16 };

/// What a scripted peer does.
#[derive(Clone)]
pub struct Script {
    /// Pieces it has; all if `None`.
    pub pieces: Option<Vec<u32>>,
    /// Never unchokes.
    pub silent: bool,
}

impl Script {
    pub fn honest() -> Script {
        Script { pieces: None, silent: false }
    }
}

/// A peer that serves `data` as if it were the torrent's.
pub struct FakePeer {
    pub addr: SocketAddr,
    /// `have` messages it got.
    pub have: mpsc::UnboundedReceiver<u32>,
    /// Connections that ended.
    pub ended: mpsc::UnboundedReceiver<()>,
    served: Arc<Mutex<Vec<u32>>>,
}

impl FakePeer {
    pub async fn start(info: Info, data: Vec<u8>, script: Script) -> FakePeer {
        let listener = TcpListener::bind(super::LOOPBACK).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let served = Arc::new(Mutex::new(Vec::new()));
        let (have_tx, have) = mpsc::unbounded_channel();
        let (ended_tx, ended) = mpsc::unbounded_channel();
        let (shared, data) = (served.clone(), Bytes::from(data));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let mut id = *b"-XX0000-............";
                id[8..10].copy_from_slice(&addr.port().to_be_bytes());
                let peer = shake(stream, Handshake::ours(info.hash(), id)).await;
                serve(peer, &info, &data, &script, &have_tx, &shared).await;
                let _ = ended_tx.send(()); // a test that does not care dropped the other end
            }
        });
        FakePeer { addr, have, ended, served }
    }

    /// Pieces of which it served blocks.
    pub fn served(&self) -> Vec<u32> {
        self.served.lock().clone()
    }
}

async fn serve(
    mut peer: Peer,
    info: &Info,
    data: &Bytes,
    script: &Script,
    have: &mpsc::UnboundedSender<u32>,
    served: &Mutex<Vec<u32>>,
) {
    let mut field = Bitfield::empty(info.piece_count());
    let all = || (0..info.piece_count()).collect();
    script.pieces.clone().unwrap_or_else(all).into_iter().for_each(|p| {
        field.set(p);
    });
    peer.send(&Message::Bitfield(Bytes::copy_from_slice(field.as_bytes()))).await;
    if !script.silent {
        peer.send(&Message::Unchoke).await;
    }
    while let Some(message) = peer.next().await {
        match message {
            Message::Have(piece) => {
                let _ = have.send(piece); // as above
            }
            Message::Request(r) => {
                assert!(field.get(r.piece), "asked for a piece it does not have");
                served.lock().push(r.piece);
                let start = r.piece as usize * info.piece_length as usize + r.begin as usize;
                let data = data.slice(start..start + r.length as usize);
                peer.send(&Message::Piece { piece: r.piece, begin: r.begin, data }).await;
            }
            _ => {}
        }
    }
}

/// A raw connection after its handshake.
pub struct Peer {
    stream: TcpStream,
    buf: BytesMut,
}

async fn shake(mut stream: TcpStream, ours: Handshake) -> Peer {
    // Either side may be gone already; the caller sees that as the end of messages.
    let _ = stream.write_all(&ours.encode()).await;
    let mut theirs = [0; handshake::LEN];
    let _ = stream.read_exact(&mut theirs).await;
    Peer { stream, buf: BytesMut::new() }
}

/// Connects as a peer that speaks BEP 6.
pub async fn connect(addr: SocketAddr, hash: InfoHash) -> Peer {
    let stream = TcpStream::connect(addr).await.unwrap();
    shake(stream, Handshake::ours(hash, *b"-XX0000-raw.........")).await
}

impl Peer {
    pub async fn send(&mut self, message: &Message) {
        let mut out = BytesMut::new();
        message.encode(&mut out);
        let _ = self.stream.write_all(&out).await; // as above
    }

    /// The next message; `None` once the connection ended.
    pub async fn next(&mut self) -> Option<Message> {
        loop {
            if let Some(message) = FRAMES.next(&mut self.buf).unwrap() {
                return Some(message);
            }
            if self.stream.read_buf(&mut self.buf).await.unwrap_or(0) == 0 {
                return None;
            }
        }
    }

    /// Reads until a message satisfies `wanted`.
    pub async fn until(&mut self, wanted: impl Fn(&Message) -> bool) {
        loop {
            if wanted(&self.next().await.expect("the connection ended before the message came")) {
                return;
            }
        }
    }
}

/// Whether the other side hangs up after `bad`.
pub async fn dropped_after(addr: SocketAddr, hash: InfoHash, bad: &[u8]) -> bool {
    let mut peer = connect(addr, hash).await;
    let _ = peer.stream.write_all(bad).await; // it may have hung up already
    while peer.next().await.is_some() {}
    true
}

/// An HTTP tracker that answers with one peer, once told of it.
pub struct Tracker {
    pub url: String,
    requests: mpsc::UnboundedReceiver<String>,
    peer: Arc<Mutex<Option<SocketAddr>>>,
}

impl Tracker {
    pub async fn start() -> Tracker {
        let listener = TcpListener::bind(super::LOOPBACK).await.unwrap();
        let url = format!("http://{}/announce", listener.local_addr().unwrap());
        let (tx, requests) = mpsc::unbounded_channel();
        let peer = Arc::new(Mutex::new(None));
        let known = peer.clone();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = Vec::new();
                while !request.windows(4).any(|w| w == b"\r\n\r\n") {
                    if stream.read_buf(&mut request).await.unwrap_or(0) == 0 {
                        break;
                    }
                }
                let mut body = b"d8:intervali900e5:peers".to_vec();
                match *known.lock() {
                    Some(SocketAddr::V4(addr)) => {
                        body.extend_from_slice(b"6:");
                        body.extend_from_slice(&addr.ip().octets());
                        body.extend_from_slice(&addr.port().to_be_bytes());
                    }
                    _ => body.extend_from_slice(b"0:"),
                }
                body.push(b'e');
                let head =
                    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
                let _ = stream.write_all(&[head.as_bytes(), &body].concat()).await; // the engine may have gone
                let line = String::from_utf8_lossy(&request).lines().next().unwrap_or_default().to_owned();
                let _ = tx.send(line); // the test may be over
            }
        });
        Tracker { url, requests, peer }
    }

    pub fn answer_with(&self, addr: SocketAddr) {
        *self.peer.lock() = Some(addr);
    }

    /// The request line of the next announce.
    pub async fn announced(&mut self) -> String {
        self.requests.recv().await.unwrap()
    }
}
