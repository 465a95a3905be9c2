//! HTTP trackers (BEP 3, 7, 23): one announce, from request to peers. When to announce is the engine's business.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use futures::StreamExt;
use percent_encoding::{NON_ALPHANUMERIC, percent_encode};

use crate::bencode::{self, BencodeError, Value};
use crate::infohash::InfoHash;

/// Largest tracker answer: thousands of peers.
pub const MAX_RESPONSE: usize = 256 << 10;
/// Peers taken from one answer.
pub const MAX_PEERS: usize = 200;
/// Peers asked for (`numwant`).
const WANTED: u32 = 50;
/// A tracker that takes longer is as good as down.
const TIMEOUT: Duration = Duration::from_secs(20);
/// Never announce more often, whatever the tracker says.
pub const MIN_INTERVAL: Duration = Duration::from_secs(30);
/// What is assumed if the tracker names no interval (BEP 3 leaves it open; half an hour is usual).
pub const DEFAULT_INTERVAL: Duration = Duration::from_secs(1800);
/// Never wait longer, whatever the tracker says.
pub const MAX_INTERVAL: Duration = Duration::from_secs(6 * 3600);

/// Why an announce failed.
#[derive(Debug, thiserror::Error)]
pub enum TrackerError {
    /// Not a URL this node can announce to.
    #[error("tracker {url:?} cannot be used: {reason}")]
    Unusable {
        /// The URL, shortened.
        url: String,
        /// Why.
        reason: &'static str,
    },
    /// The request failed.
    #[error("tracker cannot be reached: {0}")]
    Http(String),
    /// Not status 200.
    #[error("tracker answered with status {0}")]
    Status(u16),
    /// Above [`MAX_RESPONSE`].
    #[error("tracker answered with more than {MAX_RESPONSE} bytes")]
    TooLarge,
    /// Not bencode, or not a dictionary.
    #[error("tracker answered with something that is not a tracker's answer: {0}")]
    Malformed(#[from] BencodeError),
    /// The tracker's own words.
    #[error("tracker refused: {0}")]
    Refused(String),
}

/// What an announce is about (`event`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// The first announce.
    Started,
    /// The download just finished.
    Completed,
    /// The torrent leaves the swarm.
    Stopped,
    /// A regular one.
    None,
}

/// What an announce says.
#[derive(Debug, Clone, Copy)]
pub struct Announce {
    /// Which torrent.
    pub info_hash: InfoHash,
    /// Who.
    pub peer_id: [u8; 20],
    /// Where we listen.
    pub port: u16,
    /// Bytes sent since `Started`.
    pub uploaded: u64,
    /// Bytes received since `Started`.
    pub downloaded: u64,
    /// Bytes still missing.
    pub left: u64,
    /// Why now.
    pub event: Event,
}

/// What the tracker answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Wait this long until the next regular announce; already bounded.
    pub interval: Duration,
    /// Peers, at most [`MAX_PEERS`].
    pub peers: Vec<SocketAddr>,
    /// Complete peers, if told.
    pub seeds: Option<u64>,
    /// Incomplete peers, if told.
    pub leechers: Option<u64>,
}

/// Announces once to `tracker`.
pub async fn announce(
    client: &reqwest::Client,
    tracker: &str,
    announce: &Announce,
) -> Result<Answer, TrackerError> {
    let url = announce_url(tracker, announce)?;
    // The URL may hold a passkey: it stays out of the error text.
    let unreachable = |e: reqwest::Error| TrackerError::Http(e.without_url().to_string());
    let response = client.get(url).timeout(TIMEOUT).send().await.map_err(unreachable)?;
    if response.status() != reqwest::StatusCode::OK {
        return Err(TrackerError::Status(response.status().as_u16()));
    }
    let mut body = Vec::new();
    let mut chunks = response.bytes_stream();
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(unreachable)?;
        if body.len() + chunk.len() > MAX_RESPONSE {
            return Err(TrackerError::TooLarge);
        }
        body.extend_from_slice(&chunk);
    }
    parse_answer(&body)
}

/// The URL of an announce: the tracker's own query is kept, ours is appended.
pub fn announce_url(tracker: &str, announce: &Announce) -> Result<url::Url, TrackerError> {
    let unusable = |reason| TrackerError::Unusable { url: tracker.chars().take(60).collect(), reason };
    let mut url: url::Url = tracker.parse().map_err(|_| unusable("it is not a URL"))?;
    if url.scheme() != "http" {
        return Err(unusable("only http:// trackers are supported"));
    }
    // A torrent from a stranger must not make this node call services on its own machine: loopback trackers are
    // only reached under the path every tracker has.
    let loopback = match url.host() {
        Some(url::Host::Ipv4(ip)) => ip.is_loopback(),
        Some(url::Host::Ipv6(ip)) => ip.is_loopback(),
        Some(url::Host::Domain(name)) => name.eq_ignore_ascii_case("localhost"),
        None => return Err(unusable("it names no host")),
    };
    if loopback && !url.path().ends_with("/announce") {
        return Err(unusable("a tracker on this machine must have a path that ends in /announce"));
    }
    let escape = |bytes: &[u8]| percent_encode(bytes, NON_ALPHANUMERIC).to_string();
    let event = match announce.event {
        Event::Started => "&event=started",
        Event::Completed => "&event=completed",
        Event::Stopped => "&event=stopped",
        Event::None => "",
    };
    let ours = format!(
        "info_hash={}&peer_id={}&port={}&uploaded={}&downloaded={}&left={}&compact=1&numwant={WANTED}{event}",
        escape(&announce.info_hash.0),
        escape(&announce.peer_id),
        announce.port,
        announce.uploaded,
        announce.downloaded,
        announce.left,
    );
    let query = url.query().filter(|q| !q.is_empty()).map_or(ours.clone(), |q| format!("{q}&{ours}"));
    url.set_query(Some(&query));
    Ok(url)
}

/// Reads an answer; peers come as 6-byte or 18-byte strings, or as a list of dictionaries.
pub fn parse_answer(body: &[u8]) -> Result<Answer, TrackerError> {
    let value = bencode::parse(body)?;
    let dict = value.as_dict().ok_or(TrackerError::Malformed(BencodeError::Unexpected(0)))?;
    if let Some(reason) = dict.bytes("failure reason") {
        return Err(TrackerError::Refused(
            String::from_utf8_lossy(&reason[..reason.len().min(200)]).into_owned(),
        ));
    }
    let seconds = dict
        .int("interval")
        .into_iter()
        .chain(dict.int("min interval"))
        .filter_map(|n| u64::try_from(n).ok())
        .max();
    let interval = seconds.map_or(DEFAULT_INTERVAL, Duration::from_secs).clamp(MIN_INTERVAL, MAX_INTERVAL);
    let mut peers = Vec::new();
    match dict.get("peers") {
        Some(Value::Bytes(compact)) => peers.extend(compact_v4(compact)),
        Some(Value::List(list)) => peers.extend(list.iter().filter_map(listed_peer)),
        _ => {}
    }
    peers.extend(dict.bytes("peers6").into_iter().flat_map(compact_v6));
    peers.retain(|p| p.port() != 0 && !p.ip().is_unspecified());
    peers.truncate(MAX_PEERS);
    let count = |key| dict.int(key).and_then(|n| u64::try_from(n).ok());
    Ok(Answer { interval, peers, seeds: count("complete"), leechers: count("incomplete") })
}

fn compact_v4(bytes: &[u8]) -> impl Iterator<Item = SocketAddr> + '_ {
    bytes.chunks_exact(6).map(|c| {
        let ip = Ipv4Addr::new(c[0], c[1], c[2], c[3]);
        SocketAddr::new(ip.into(), u16::from_be_bytes([c[4], c[5]]))
    })
}

fn compact_v6(bytes: &[u8]) -> impl Iterator<Item = SocketAddr> + '_ {
    bytes.chunks_exact(18).map(|c| {
        let ip: [u8; 16] = c[..16].try_into().expect("16 bytes");
        SocketAddr::new(Ipv6Addr::from(ip).into(), u16::from_be_bytes([c[16], c[17]]))
    })
}

fn listed_peer(value: &Value<'_>) -> Option<SocketAddr> {
    let dict = value.as_dict()?;
    let ip: IpAddr = std::str::from_utf8(dict.bytes("ip")?).ok()?.parse().ok()?;
    Some(SocketAddr::new(ip, u16::try_from(dict.int("port")?).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ours(event: Event) -> Announce {
        Announce {
            info_hash: InfoHash([0xff; 20]),
            peer_id: *b"-BF0100-abcdefghijkl",
            port: 6981,
            uploaded: 1,
            downloaded: 2,
            left: 3,
            event,
        }
    }

    #[test]
    fn the_url_keeps_the_trackers_query() {
        let url = announce_url("http://t.example:80/announce?key=a%26b", &ours(Event::Started)).unwrap();
        let query = url.query().unwrap();
        assert!(
            query.starts_with(&format!("key=a%26b&info_hash={}&peer_id=%2DBF0100%2D", "%FF".repeat(20))),
            "{query}"
        );
        assert!(
            query.ends_with("&port=6981&uploaded=1&downloaded=2&left=3&compact=1&numwant=50&event=started")
        );
    }

    #[test]
    fn unusable_trackers_are_named() {
        for bad in [
            "udp://t:1/announce",
            "nonsense",
            "https://t/announce",
            "http://127.0.0.1:5001/api/v0/shutdown",
            "http://localhost/x",
        ] {
            assert!(
                matches!(announce_url(bad, &ours(Event::None)), Err(TrackerError::Unusable { .. })),
                "{bad}"
            );
        }
        assert!(announce_url("http://127.0.0.1:6969/announce", &ours(Event::None)).is_ok());
    }

    #[test]
    fn all_three_peer_forms_are_read() {
        let mut body = b"d8:completei5e10:incompletei7e8:intervali900e5:peers12:".to_vec();
        body.extend([10, 0, 0, 1, 0x1a, 0xe1, 10, 0, 0, 2, 0, 0]);
        body.extend(b"6:peers618:");
        body.extend([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 9]);
        body.push(b'e');
        let answer = parse_answer(&body).unwrap();
        assert_eq!(answer.peers, ["10.0.0.1:6881".parse().unwrap(), "[::1]:9".parse().unwrap()]);
        assert_eq!((answer.interval.as_secs(), answer.seeds, answer.leechers), (900, Some(5), Some(7)));
        let list = b"d8:intervali1e5:peersld2:ip9:127.0.0.14:porti80eed2:ip1:x4:porti80eeee";
        let answer = parse_answer(list).unwrap();
        assert_eq!((answer.peers.len(), answer.interval), (1, MIN_INTERVAL));
    }

    #[test]
    fn refusals_are_told() {
        assert!(matches!(parse_answer(b"d14:failure reason4:goneee"), Err(TrackerError::Malformed(_))));
        assert!(
            matches!(parse_answer(b"d14:failure reason4:gonee"), Err(TrackerError::Refused(r)) if r == "gone")
        );
    }

    proptest! {
        #[test]
        fn any_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse_answer(&bytes);
        }
    }
}
