//! The network file: which network a node belongs to and whose ledger it trusts.
//!
//! `btfs ledger init` writes one; `btfs init --network FILE` copies it into the repo. It holds no secret.

use std::path::Path;

use serde::{Deserialize, Serialize};

/// A network, as its file says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkFile {
    /// Names the Kademlia protocol: `btfs`, `ipfs`, or a private name.
    pub name: String,
    /// Whether all of it is one machine or one laboratory: lifts the subnet caps and lets the operator step the
    /// ledger's clock.
    #[serde(default)]
    pub local: bool,
    /// Multiaddresses, with peer ids, of the nodes to join through.
    #[serde(default)]
    pub bootstrap: Vec<String>,
    /// The ledger that moves BTT here, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ledger: Option<LedgerEntry>,
}

/// Which ledger, and who operates it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LedgerEntry {
    /// Peer id of the operator's node.
    pub peer: String,
    /// keccak256 of the genesis, hex: another genesis is another ledger.
    pub genesis: String,
}

/// Why a network file could not be used.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The file could not be read.
    #[error("cannot read the network file {path}: {source}")]
    Read {
        /// Which file.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// It is not a network file.
    #[error("{path} is not a network file: {reason}")]
    Invalid {
        /// Which file.
        path: String,
        /// Why not.
        reason: String,
    },
}

impl Default for NetworkFile {
    /// The public BTFS network, without bootstrap addresses or ledger of its own.
    fn default() -> Self {
        Self { name: "btfs".into(), local: false, bootstrap: Vec::new(), ledger: None }
    }
}

impl NetworkFile {
    /// Longest network name: it becomes part of a protocol name on the wire.
    const MAX_NAME: usize = 32;

    /// Reads and checks a network file.
    pub fn load(path: &Path) -> Result<Self, NetworkError> {
        let shown = path.display().to_string();
        let text = std::fs::read_to_string(path)
            .map_err(|source| NetworkError::Read { path: shown.clone(), source })?;
        Self::parse(&text).map_err(|reason| NetworkError::Invalid { path: shown, reason })
    }

    fn parse(text: &str) -> Result<Self, String> {
        let file: Self = toml::from_str(text).map_err(|error| error.to_string())?;
        file.check()?;
        Ok(file)
    }

    /// Whether its values can work; if not, why.
    pub fn check(&self) -> Result<(), String> {
        let file = self;
        let named = (1..=Self::MAX_NAME).contains(&file.name.len())
            && file.name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        if !named {
            return Err(format!("name `{}` must be 1 to 32 of a-z, 0-9 and `-`", file.name));
        }
        for address in &file.bootstrap {
            let parsed: libp2p::Multiaddr =
                address.parse().map_err(|error| format!("bootstrap `{address}`: {error}"))?;
            if !parsed.iter().any(|part| matches!(part, libp2p::multiaddr::Protocol::P2p(_))) {
                return Err(format!("bootstrap `{address}` has no /p2p/PEER at its end"));
            }
        }
        if let Some(ledger) = &file.ledger {
            ledger.peer.parse::<libp2p::PeerId>().map_err(|error| format!("ledger.peer: {error}"))?;
            let digest = hex::decode(&ledger.genesis).map_err(|error| format!("ledger.genesis: {error}"))?;
            if digest.len() != 32 {
                return Err("ledger.genesis must be 32 bytes in hex".into());
            }
        }
        Ok(())
    }

    /// The file's text.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("a network file of strings and flags is always TOML")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_file_survives_its_own_text() {
        let peer = libp2p::identity::Keypair::generate_ed25519().public().to_peer_id();
        let file = NetworkFile {
            name: "demo".into(),
            local: true,
            bootstrap: vec![format!("/ip4/127.0.0.1/tcp/4101/p2p/{peer}")],
            ledger: Some(LedgerEntry { peer: peer.to_string(), genesis: "ab".repeat(32) }),
        };
        assert_eq!(NetworkFile::parse(&file.to_toml()).unwrap(), file);
    }

    #[test]
    fn what_cannot_work_is_refused() {
        for (text, part) in [
            ("name = \"No Spaces\"", "name"),
            ("name = \"x\"\nbootstrap = [\"/ip4/127.0.0.1/tcp/1\"]", "/p2p/"),
            ("name = \"x\"\nledgr = 1", "ledgr"),
            ("name = \"x\"\n[ledger]\npeer = \"nobody\"\ngenesis = \"00\"", "ledger.peer"),
        ] {
            let error = NetworkFile::parse(text).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }
}
