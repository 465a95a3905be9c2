//! One connection from handshake to end: the reading half and what each message does.
//!
//! The reader takes bytes in, decides under the swarm's lock, and leaves what is to be said in the peer's [`Link`]; it never
//! writes. Complete pieces go to the disk task over a bounded channel: when hashing or the disk falls behind, the reader
//! waits there and TCP slows the peer down.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedReadHalf;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout};

use super::disk::DiskJob;
use super::link::{Link, MAX_UPLOADS};
use super::metadata::{self, Fetched, MAX_FETCHES, MetadataFetch};
use super::torrent::{Peer, PeerPieces, Phase, Torrent};
use super::{Inner, upload};
use crate::depth::{DEFAULT_REQQ, Depth};
use crate::metainfo::{Info, MAX_INFO};
use crate::picker::{CompletePiece, ConnId};
use crate::wire::extended::{ExtendedHandshake, HANDSHAKE_ID, MetadataMessage, UT_METADATA_ID};
use crate::wire::handshake::{self, Handshake};
use crate::wire::{BlockRequest, Frames, MAX_REQUEST, Message, WireError};

/// To connect, and again for the handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Silence after which a peer is gone; keep-alives come at least every 120 s.
const PEER_TIMEOUT: Duration = Duration::from_secs(150);
/// Bytes asked from the socket at a time: 16 blocks.
const READ_BYTES: usize = 256 << 10;
/// Blocks that nobody asked for before a peer is dropped; cancelled requests in the endgame account for some.
const MAX_USELESS: u32 = 2000;
/// Largest bitfield: that of the largest info dictionary.
const FRAMES: Frames = Frames { max_bitfield: MAX_INFO / 20 / 8 + 1 };

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
enum ConnError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Wire(#[from] WireError),
    #[error("silent for too long")]
    Silent,
    #[error("it is this node itself")]
    Myself,
    #[error("it serves another torrent")]
    OtherTorrent,
    #[error("already connected, banned or too many")]
    Unwanted,
}

/// Dials `addr` for `torrent` and stays until the connection ends.
pub async fn dial(inner: Arc<Inner>, torrent: Arc<Torrent>, addr: SocketAddr, permit: OwnedSemaphorePermit) {
    let opened = async {
        let mut stream =
            timeout(HANDSHAKE_TIMEOUT, TcpStream::connect(addr)).await.map_err(|_| ConnError::Silent)??;
        stream.set_nodelay(true)?;
        let ours = Handshake::ours(torrent.hash, inner.peer_id).encode();
        stream.write_all(&ours).await?;
        let theirs = read_handshake(&mut stream).await?;
        if theirs.info_hash != torrent.hash {
            return Err(ConnError::OtherTorrent);
        }
        Ok((stream, theirs))
    };
    let opened = tokio::select! {
        () = torrent.cancel.cancelled() => Err(ConnError::Unwanted),
        opened = opened => opened,
    };
    torrent.swarm.lock().dialling -= 1;
    let useful = match opened {
        Ok((stream, theirs)) => run(&inner, &torrent, stream, addr, theirs, true).await,
        Err(error) => {
            tracing::debug!(torrent = %torrent.hash, %addr, %error, "peer could not be reached");
            false
        }
    };
    drop(permit);
    torrent.swarm.lock().candidates.ended(&addr, useful, Instant::now());
}

/// Takes an incoming connection, finds its torrent and stays until it ends.
pub async fn accept(
    inner: Arc<Inner>,
    mut stream: TcpStream,
    addr: SocketAddr,
    _permit: OwnedSemaphorePermit,
) {
    let opened = async {
        stream.set_nodelay(true)?;
        let theirs = read_handshake(&mut stream).await?;
        let torrent = inner.torrents.lock().get(&theirs.info_hash).cloned().ok_or(ConnError::OtherTorrent)?;
        if torrent.cancel.is_cancelled() || !torrent.swarm.lock().has_room(&inner, &addr) {
            return Err(ConnError::Unwanted);
        }
        stream.write_all(&Handshake::ours(torrent.hash, inner.peer_id).encode()).await?;
        Ok((torrent, theirs))
    };
    let opened = tokio::select! {
        () = inner.cancel.cancelled() => return,
        opened = opened => opened,
    };
    match opened {
        Ok((torrent, theirs)) => {
            run(&inner, &torrent, stream, addr, theirs, false).await;
        }
        Err(error) => tracing::debug!(%addr, %error, "incoming peer refused"),
    }
}

impl super::torrent::Swarm {
    fn has_room(&self, inner: &Inner, addr: &SocketAddr) -> bool {
        self.peers.len() < inner.config.limits.per_torrent && !self.candidates.is_banned(addr)
    }
}

async fn read_handshake(stream: &mut TcpStream) -> Result<Handshake, ConnError> {
    let mut bytes = [0; handshake::LEN];
    timeout(HANDSHAKE_TIMEOUT, stream.read_exact(&mut bytes)).await.map_err(|_| ConnError::Silent)??;
    Ok(Handshake::decode(&bytes)?)
}

/// A shaken connection until its end; true if anything came over it.
async fn run(
    inner: &Arc<Inner>,
    torrent: &Arc<Torrent>,
    stream: TcpStream,
    addr: SocketAddr,
    theirs: Handshake,
    dialled: bool,
) -> bool {
    let conn = inner.next_conn.fetch_add(1, Ordering::Relaxed);
    let link = Arc::new(Link::new(conn, theirs.fast, torrent.cancel.child_token()));
    if let Err(error) = register(inner, torrent, &link, addr, &theirs, dialled) {
        tracing::debug!(torrent = %torrent.hash, %addr, %error, "peer refused");
        return false;
    }
    let (read, write) = stream.into_split();
    torrent.tasks.spawn(upload::run(inner.clone(), torrent.clone(), link.clone(), write));
    let reader = Reader { inner: inner.clone(), torrent: torrent.clone(), link: link.clone() };
    let ended = tokio::select! {
        () = link.cancel.cancelled() => Ok(()),
        ended = reader.read(read) => ended,
    };
    if let Err(error) = ended {
        tracing::debug!(torrent = %torrent.hash, %addr, %error, "peer connection ended");
    }
    link.cancel.cancel();
    unregister(inner, torrent, conn)
}

fn register(
    inner: &Inner,
    torrent: &Torrent,
    link: &Arc<Link>,
    addr: SocketAddr,
    theirs: &Handshake,
    dialled: bool,
) -> Result<(), ConnError> {
    let mut swarm = torrent.swarm.lock();
    if theirs.peer_id == inner.peer_id {
        swarm.candidates.ban_self(addr, dialled);
        return Err(ConnError::Myself);
    }
    let twice = swarm.peers.values().any(|p| p.peer_id == theirs.peer_id);
    if twice || torrent.cancel.is_cancelled() || !swarm.has_room(inner, &addr) {
        return Err(ConnError::Unwanted);
    }
    let info = torrent.content().map(|c| c.info.raw().len() as u64);
    let mut first = Vec::with_capacity(2);
    // The bitfield comes first, as BEP 3 wants it.
    match &swarm.have {
        Some(have) if have.is_full() && theirs.fast => first.push(Message::HaveAll),
        Some(have) if have.count() > 0 => {
            first.push(Message::Bitfield(Bytes::copy_from_slice(have.as_bytes())))
        }
        _ if theirs.fast => first.push(Message::HaveNone),
        _ => {}
    }
    if theirs.extended {
        first.push(Message::Extended { id: HANDSHAKE_ID, payload: our_extensions(inner, info).encode() });
    }
    link.send_all(&first);
    let now = Instant::now();
    let peer = Peer {
        link: link.clone(),
        addr,
        dialled,
        peer_id: theirs.peer_id,
        client: None,
        pieces: PeerPieces::Early { bitfield: None, all: false, haves: Vec::new() },
        am_choking: true,
        am_interested: false,
        peer_choking: true,
        peer_interested: false,
        owed: Default::default(),
        depth: Depth::new(DEFAULT_REQQ),
        last_block: now,
        downloaded: 0,
        downloaded_at_round: 0,
        useless: 0,
        strikes: 0,
        ut_metadata: None,
        metadata: None,
    };
    swarm.peers.insert(link.conn, peer);
    Ok(())
}

fn our_extensions(inner: &Inner, metadata_size: Option<u64>) -> ExtendedHandshake {
    ExtendedHandshake {
        ut_metadata: Some(UT_METADATA_ID),
        metadata_size,
        reqq: Some(MAX_UPLOADS as u32),
        port: inner.local_addr.map(|a| a.port()),
        client: Some(concat!("btfs ", env!("CARGO_PKG_VERSION")).to_owned()),
    }
}

fn unregister(inner: &Inner, torrent: &Torrent, conn: ConnId) -> bool {
    let mut guard = torrent.swarm.lock();
    let swarm = &mut *guard;
    let Some(peer) = swarm.peers.remove(&conn) else { return false };
    if let Some(picker) = &mut swarm.picker {
        match peer.field() {
            Some(field) => picker.peer_left(conn, field),
            None => picker.release_all(conn),
        }
    }
    if let Some(choker) = &mut swarm.choker {
        choker.leave(conn);
    }
    swarm.refill_all(inner.random());
    peer.downloaded > 0
}

/// What is left to do once the swarm's lock is released.
enum After {
    Nothing,
    Disk(CompletePiece),
    Metadata(Box<Info>),
}

struct Reader {
    inner: Arc<Inner>,
    torrent: Arc<Torrent>,
    link: Arc<Link>,
}

impl Reader {
    async fn read(&self, mut socket: OwnedReadHalf) -> Result<(), ConnError> {
        let mut buf = BytesMut::with_capacity(READ_BYTES);
        loop {
            while let Some(message) = FRAMES.next(&mut buf)? {
                match self.on_message(message)? {
                    After::Nothing => {}
                    After::Disk(piece) => {
                        if let Some(disk) = self.torrent.disk.get() {
                            // Closed only while the torrent ends, which ends this task too.
                            let _ = disk.send(DiskJob::Piece(piece)).await;
                        }
                    }
                    After::Metadata(info) => self.inner.metadata_arrived(&self.torrent, *info).await,
                }
            }
            self.torrent.swarm.lock().refill(self.link.conn, self.inner.random());
            buf.reserve(READ_BYTES);
            let read =
                timeout(PEER_TIMEOUT, socket.read_buf(&mut buf)).await.map_err(|_| ConnError::Silent)??;
            if read == 0 {
                return Ok(());
            }
        }
    }

    fn on_message(&self, message: Message) -> Result<After, WireError> {
        let conn = self.link.conn;
        let mut swarm = self.torrent.swarm.lock();
        match message {
            Message::Piece { piece, begin, data } => {
                drop(swarm);
                return self.on_block(piece, begin, &data);
            }
            Message::Request(request) => {
                drop(swarm);
                self.on_request(request);
            }
            Message::Extended { id, payload } => {
                drop(swarm);
                return self.on_extended(id, &payload);
            }
            Message::Cancel(request) => self.link.cancel_upload(&request),
            Message::Choke => {
                if let Some(peer) = swarm.peers.get_mut(&conn) {
                    peer.peer_choking = true;
                }
                swarm.release(conn);
                swarm.refill_all(self.inner.random());
            }
            Message::Unchoke => {
                if let Some(peer) = swarm.peers.get_mut(&conn) {
                    peer.peer_choking = false;
                }
            }
            Message::Interested => swarm.interest_changed(conn, true, self.inner.seconds()),
            Message::NotInterested => swarm.interest_changed(conn, false, self.inner.seconds()),
            Message::Have(piece) => swarm.add_piece(conn, piece)?,
            Message::Bitfield(bits) => {
                // The buffer it lies in is wanted back.
                swarm.set_pieces(conn, Some(Bytes::copy_from_slice(&bits)), false)?;
                self.leave_if_both_seed(&swarm);
            }
            Message::HaveAll => {
                swarm.set_pieces(conn, None, true)?;
                self.leave_if_both_seed(&swarm);
            }
            Message::HaveNone => swarm.set_pieces(conn, None, false)?,
            Message::Reject(request) => {
                if let Some(peer) = swarm.peers.get_mut(&conn) {
                    peer.owed.remove(&request);
                }
                if let Some(picker) = &mut swarm.picker {
                    picker.release(conn, request);
                }
            }
            Message::KeepAlive | Message::Port(_) | Message::Suggest(_) | Message::AllowedFast(_) => {}
            Message::Unknown(_) => {}
        }
        Ok(After::Nothing)
    }

    fn leave_if_both_seed(&self, swarm: &super::torrent::Swarm) {
        if matches!(*self.torrent.phase.borrow(), Phase::Seeding(_)) {
            swarm.drop_seeds();
        }
    }

    fn on_request(&self, request: BlockRequest) {
        let swarm = self.torrent.swarm.lock();
        let choking = swarm.peers.get(&self.link.conn).is_none_or(|p| p.am_choking);
        let have = swarm.have.as_ref().is_some_and(|h| h.get(request.piece));
        drop(swarm);
        let inside = self.torrent.content().is_some_and(|c| {
            let end = u64::from(request.begin) + u64::from(request.length);
            have && end <= u64::from(c.layout.piece_size(request.piece))
        });
        if !choking && inside && (1..=MAX_REQUEST).contains(&request.length) {
            self.link.upload(request);
        } else if self.link.fast {
            self.link.send(&Message::Reject(request));
        }
    }

    fn on_block(&self, piece: u32, begin: u32, data: &[u8]) -> Result<After, WireError> {
        let conn = self.link.conn;
        let length = data.len() as u32; // a message is at most 32 KiB
        let request = BlockRequest { piece, begin, length };
        self.torrent.downloaded.fetch_add(u64::from(length), Ordering::Relaxed);
        let mut guard = self.torrent.swarm.lock();
        let swarm = &mut *guard;
        let Some(peer) = swarm.peers.get_mut(&conn) else { return Ok(After::Nothing) };
        peer.owed.remove(&request);
        peer.downloaded += u64::from(length);
        let received =
            swarm.picker.as_mut().map(|p| p.received(conn, piece, begin, data)).unwrap_or_default();
        if !received.accepted {
            self.torrent.wasted.fetch_add(u64::from(length), Ordering::Relaxed);
            peer.useless += 1;
            let flooding = peer.useless > MAX_USELESS;
            return if flooding {
                Err(WireError::Protocol("sends blocks nobody asked for"))
            } else {
                Ok(After::Nothing)
            };
        }
        peer.depth.on_block(length);
        peer.last_block = Instant::now();
        for other in received.cancel {
            if let Some(peer) = swarm.peers.get_mut(&other) {
                peer.owed.remove(&request);
                peer.link.send(&Message::Cancel(request));
            }
        }
        Ok(received.complete.map_or(After::Nothing, After::Disk))
    }

    fn on_extended(&self, id: u8, payload: &Bytes) -> Result<After, WireError> {
        match id {
            HANDSHAKE_ID => self.on_extension_handshake(&ExtendedHandshake::decode(payload)?),
            UT_METADATA_ID => return self.on_metadata(MetadataMessage::decode(payload)?),
            _ => {} // not one we told
        }
        Ok(After::Nothing)
    }

    fn on_extension_handshake(&self, theirs: &ExtendedHandshake) {
        let wanted = self.torrent.content().is_none();
        let mut swarm = self.torrent.swarm.lock();
        let fetching = swarm.peers.values().filter(|p| p.metadata.is_some()).count();
        let Some(peer) = swarm.peers.get_mut(&self.link.conn) else { return };
        peer.client = theirs.client.clone().or(peer.client.take());
        peer.ut_metadata = theirs.ut_metadata.or(peer.ut_metadata);
        if let Some(reqq) = theirs.reqq {
            peer.depth.set_reqq(reqq);
        }
        if let (true, Some(id), Some(size)) = (wanted, peer.ut_metadata, theirs.metadata_size)
            && fetching < MAX_FETCHES
            && peer.metadata.is_none()
        {
            peer.metadata = MetadataFetch::start(id, size, &self.link);
        }
        // An incoming peer's own port makes it dialable later.
        if let (Some(port), false) = (theirs.port, peer.dialled) {
            let addr = SocketAddr::new(peer.addr.ip(), port);
            if port != 0 && !addr.ip().is_loopback() {
                swarm.candidates.add(addr, Instant::now());
            }
        }
    }

    fn on_metadata(&self, message: MetadataMessage) -> Result<After, WireError> {
        let mut swarm = self.torrent.swarm.lock();
        let Some(peer) = swarm.peers.get_mut(&self.link.conn) else { return Ok(After::Nothing) };
        match message {
            MetadataMessage::Request(piece) => {
                let Some(id) = peer.ut_metadata else { return Ok(After::Nothing) };
                let info = self.torrent.content().map(|c| c.info.raw());
                let answer = if self.link.congested() {
                    MetadataMessage::Reject(piece)
                } else {
                    metadata::answer(info, piece)
                };
                self.link.send(&Message::Extended { id, payload: answer.encode() });
            }
            MetadataMessage::Data { piece, data, .. } => {
                let Some(fetch) = &mut peer.metadata else { return Ok(After::Nothing) };
                match fetch.received(piece, &data, self.torrent.hash, &self.link)? {
                    Fetched::Going => {}
                    Fetched::Done(info) => {
                        peer.metadata = None;
                        peer.downloaded += info.raw().len() as u64;
                        return Ok(After::Metadata(info));
                    }
                    Fetched::Refused => {
                        return Err(WireError::Protocol("its metadata is of another torrent"));
                    }
                    Fetched::Unusable(error) => self.torrent.fail(error.to_string()),
                }
            }
            MetadataMessage::Reject(_) => peer.metadata = None,
            MetadataMessage::Unknown => {}
        }
        Ok(After::Nothing)
    }
}
