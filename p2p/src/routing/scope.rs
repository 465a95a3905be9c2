//! How far an address reaches: this machine, this site, the world.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use libp2p::Multiaddr;
use libp2p::multiaddr::Protocol;

/// The reach of an address, narrow to wide.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Scope {
    /// Loopback.
    Machine,
    /// Private, link-local and other addresses that are not routed in the internet.
    Site,
    /// Routed in the internet; also every DNS name.
    World,
}

/// The scope of `addr`, or nothing if it names no host that can be dialled (unspecified, memory, relayed).
pub(crate) fn scope(addr: &Multiaddr) -> Option<Scope> {
    if addr.iter().any(|part| matches!(part, Protocol::P2pCircuit)) {
        return None;
    }
    match addr.iter().next()? {
        Protocol::Ip4(ip) => ip_scope(IpAddr::V4(ip)),
        Protocol::Ip6(ip) => ip_scope(IpAddr::V6(ip)),
        Protocol::Dns(_) | Protocol::Dns4(_) | Protocol::Dns6(_) | Protocol::Dnsaddr(_) => Some(Scope::World),
        _ => None,
    }
}

fn ip_scope(ip: IpAddr) -> Option<Scope> {
    if ip.is_unspecified() || ip.is_multicast() {
        return None;
    }
    if ip.is_loopback() {
        return Some(Scope::Machine);
    }
    let site = match ip {
        IpAddr::V4(ip) => ip.is_private() || ip.is_link_local() || is_shared(ip) || ip.is_broadcast(),
        IpAddr::V6(ip) => is_unique_local(ip) || ip.is_unicast_link_local(),
    };
    Some(if site { Scope::Site } else { Scope::World })
}

/// 100.64.0.0/10, carriers' own translation (RFC 6598).
fn is_shared(ip: Ipv4Addr) -> bool {
    ip.octets()[0] == 100 && ip.octets()[1] & 0xc0 == 64
}

/// fc00::/7 (RFC 4193).
fn is_unique_local(ip: Ipv6Addr) -> bool {
    ip.octets()[0] & 0xfe == 0xfc
}

/// Of the addresses that this node listens on, those worth telling others. Loopback is told only if there is
/// nothing else (a network on one machine); in a public network, site addresses only if there is no public one.
pub(crate) fn worth_telling<'a>(
    listening: impl Iterator<Item = &'a Multiaddr>,
    public_network: bool,
) -> Vec<Multiaddr> {
    let scoped: Vec<(Scope, &Multiaddr)> = listening.filter_map(|a| Some((scope(a)?, a))).collect();
    let widest = scoped.iter().map(|(scope, _)| *scope).max();
    let narrowest_told = match widest {
        Some(Scope::World) if !public_network => Scope::Site,
        Some(widest) => widest,
        None => return Vec::new(),
    };
    scoped.into_iter().filter(|(scope, _)| *scope >= narrowest_told).map(|(_, a)| a.clone()).collect()
}

/// Whether an address that a peer tells of itself is of use to us, given the address of the connection to it: a
/// peer seen from afar does not get us to dial our own loopback or our own site.
pub(crate) fn usable(told: &Multiaddr, connected_through: &Multiaddr) -> bool {
    match (scope(told), scope(connected_through)) {
        (Some(told), Some(seen)) => told >= seen || told == Scope::World,
        (Some(told), None) => told == Scope::World,
        (None, _) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(text: &str) -> Multiaddr {
        text.parse().unwrap()
    }

    #[test]
    fn scopes() {
        let cases = [
            ("/ip4/127.0.0.1/tcp/1", Some(Scope::Machine)),
            ("/ip6/::1/udp/1/quic-v1", Some(Scope::Machine)),
            ("/ip4/192.168.1.2/tcp/1", Some(Scope::Site)),
            ("/ip4/100.64.0.1/tcp/1", Some(Scope::Site)),
            ("/ip6/fd00::1/tcp/1", Some(Scope::Site)),
            ("/ip4/8.8.8.8/tcp/1", Some(Scope::World)),
            ("/dns4/example.org/tcp/1", Some(Scope::World)),
            ("/ip4/0.0.0.0/tcp/1", None),
            ("/memory/5", None),
        ];
        for (text, expected) in cases {
            assert_eq!(scope(&addr(text)), expected, "{text}");
        }
    }

    #[test]
    fn what_is_told() {
        let all = ["/ip4/127.0.0.1/tcp/1", "/ip4/10.0.0.1/tcp/1", "/ip4/8.8.8.8/tcp/1"].map(addr);
        assert_eq!(worth_telling(all.iter(), true), all[2..]);
        assert_eq!(worth_telling(all.iter(), false), all[1..]);
        assert_eq!(worth_telling(all[..2].iter(), true), all[1..2]);
        assert_eq!(worth_telling(all[..1].iter(), true), all[..1]);
    }

    #[test]
    fn what_is_believed() {
        let [machine, site, world] =
            ["/ip4/127.0.0.1/tcp/1", "/ip4/10.0.0.1/tcp/1", "/ip4/8.8.8.8/tcp/1"].map(addr);
        assert!(usable(&machine, &machine) && usable(&site, &machine) && usable(&world, &machine));
        assert!(!usable(&machine, &site) && usable(&site, &site));
        assert!(!usable(&machine, &world) && !usable(&site, &world) && usable(&world, &world));
    }
}
