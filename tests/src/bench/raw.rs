//! The yardstick of every exchange over libp2p: one stream, nothing but bytes.
//!
//! Two swarms, each with a runtime of its own as two daemons have, over the transports that our daemons prefer between
//! themselves: TCP on loopback, TLS, yamux.

use std::sync::mpsc;
use std::time::Instant;

use futures::{AsyncReadExt, AsyncWriteExt, StreamExt};
use libp2p::swarm::SwarmEvent;
use libp2p::{Multiaddr, PeerId, StreamProtocol, Swarm, SwarmBuilder, noise, tcp, tls, yamux};
use tokio::runtime::Runtime;

use super::MIB;

const PROTOCOL: StreamProtocol = StreamProtocol::new("/btfs/bench/raw/1");

/// Bytes a write: larger ones change nothing.
const WRITE: usize = 256 << 10;

/// MiB a second that one stream carries, from the first write until the other side says that it has all `bytes`.
pub(super) fn rate(bytes: u64) -> f64 {
    let (told, address) = mpsc::channel();
    let receiver =
        std::thread::spawn(move || Runtime::new().expect("a runtime").block_on(receive(bytes, told)));
    let (peer, address) = address.recv().expect("the receiver listens");
    let seconds = Runtime::new().expect("a runtime").block_on(send(bytes, peer, address));
    receiver.join().expect("the receiver ends well");
    bytes as f64 / MIB as f64 / seconds
}

fn swarm() -> Swarm<libp2p_stream::Behaviour> {
    SwarmBuilder::with_new_identity()
        .with_tokio()
        .with_tcp(
            tcp::Config::default().nodelay(true),
            (tls::Config::new, noise::Config::new),
            yamux::Config::default,
        )
        .expect("TLS and Noise make their keys")
        .with_behaviour(|_| libp2p_stream::Behaviour::new())
        .expect("nothing can fail")
        .build()
}

/// Takes `bytes` from the first stream, says so by one byte, and ends when the sender hangs up.
async fn receive(bytes: u64, told: mpsc::Sender<(PeerId, Multiaddr)>) {
    let mut swarm = swarm();
    let mut streams = swarm.behaviour().new_control().accept(PROTOCOL).expect("accepted once");
    swarm.listen_on("/ip4/127.0.0.1/tcp/0".parse().expect("an address")).expect("a free port");
    tokio::spawn(async move {
        let peer = *swarm.local_peer_id();
        loop {
            if let SwarmEvent::NewListenAddr { address, .. } = swarm.select_next_some().await {
                told.send((peer, address)).expect("the sender waits for it");
            }
        }
    });
    let (_, mut stream) = streams.next().await.expect("the sender comes");
    let mut buffer = vec![0u8; WRITE];
    let mut left = bytes;
    while left > 0 {
        let read = stream.read(&mut buffer).await.expect("the stream stays");
        assert!(read > 0, "the sender ended {left} bytes early");
        left = left.checked_sub(read as u64).expect("no more than was promised");
    }
    stream.write_all(&[1]).await.expect("the sender waits for it");
    stream.flush().await.expect("the sender waits for it");
    // The end of the stream, or of the connection: either is the sender's goodbye.
    let _ = stream.read(&mut buffer).await;
}

/// Seconds from the first write to the receiver's word.
async fn send(bytes: u64, peer: PeerId, address: Multiaddr) -> f64 {
    let mut swarm = swarm();
    let mut control = swarm.behaviour().new_control();
    swarm.dial(address).expect("an address that can be dialled");
    while !matches!(swarm.select_next_some().await, SwarmEvent::ConnectionEstablished { .. }) {}
    tokio::spawn(async move {
        loop {
            swarm.select_next_some().await;
        }
    });
    let mut stream = control.open_stream(peer, PROTOCOL).await.expect("the receiver knows the protocol");
    let buffer = vec![7u8; WRITE];
    let begun = Instant::now();
    let mut left = bytes;
    while left > 0 {
        let part = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        stream.write_all(&buffer[..part]).await.expect("the receiver reads");
        left -= part as u64;
    }
    stream.flush().await.expect("the receiver reads");
    stream.read_exact(&mut [0]).await.expect("the receiver has all");
    let seconds = begun.elapsed().as_secs_f64();
    stream.close().await.expect("the receiver waits for the end");
    seconds
}

#[cfg(test)]
mod tests {
    #[test]
    fn bytes_arrive() {
        assert!(super::rate(3 << 20) > 0.0);
    }
}
