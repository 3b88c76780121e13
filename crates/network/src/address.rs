//! The addresses that a SEKS process may dial.
//!
//! A service's name is resolved once, each address is checked here, and a permitted address is
//! dialled. Three things decide: the class of the address ([`classify`]), the networks that the
//! tenant was given and this process allows ([`Networks`]), and the addresses of SEKS itself
//! ([`DialGuard`]).

mod guard;
mod metadata;
mod networks;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub use self::{
    guard::{DialGuard, DialRules, OwnAddresses},
    metadata::is_metadata_name,
    networks::{NetworkError, Networks, canonical_network},
};

/// The class of an address. It decides whether the address may be dialled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressClass {
    /// On the public Internet.
    Public,
    /// Private, loopback, shared, benchmarking or documentation space. Only permitted by networks
    /// that include it.
    Private,
    /// Metadata service, link-local, unspecified, multicast, broadcast, reserved. No configuration
    /// permits it.
    Forbidden,
}

/// Classifies an address. An address that embeds an IPv4 address is never less restricted than that
/// address.
#[must_use]
pub fn classify(ip: IpAddr) -> AddressClass {
    if metadata::is_metadata(ip) {
        return AddressClass::Forbidden;
    }
    match ip {
        IpAddr::V4(v4) => classify_v4(v4),
        IpAddr::V6(v6) => classify_v6(v6),
    }
}

/// By the IANA IPv4 Special-Purpose Address Registry (RFC 6890).
fn classify_v4(ip: Ipv4Addr) -> AddressClass {
    let [a, b, c, _] = ip.octets();
    if a == 0 || ip.is_link_local() || ip.is_multicast() || a >= 240 {
        return AddressClass::Forbidden;
    }
    let private = ip.is_private()
        || ip.is_loopback()
        || (a == 100 && b & 0xc0 == 64) // RFC 6598, carrier-grade NAT
        || (a == 192 && b == 0 && (c == 0 || c == 2)) // IETF protocol assignments, TEST-NET-1
        || (a == 192 && b == 88 && c == 99) // 6to4 relay anycast, deprecated by RFC 7526
        || (a == 198 && (b & 0xfe == 18 || (b == 51 && c == 100))) // benchmarking, TEST-NET-2
        || (a == 203 && b == 0 && c == 113); // TEST-NET-3
    if private { AddressClass::Private } else { AddressClass::Public }
}

fn classify_v6(ip: Ipv6Addr) -> AddressClass {
    if let Some(v4) = ip.to_ipv4_mapped() {
        return classify(v4.into());
    }
    let s = ip.segments();
    if ip.is_unspecified() || ip.is_multicast() || s[0] & 0xffc0 == 0xfe80 {
        return AddressClass::Forbidden;
    }
    let embedded = embedded_v4(ip);
    if embedded.iter().any(|v4| classify((*v4).into()) == AddressClass::Forbidden) {
        return AddressClass::Forbidden;
    }
    let six_to_four = s[0] == 0x2002;
    let private = ip.is_loopback()
        || (!embedded.is_empty() && !six_to_four) // a translator or relay chooses where it leads
        || embedded.iter().any(|v4| classify((*v4).into()) == AddressClass::Private)
        || s[0] & 0xfe00 == 0xfc00 // unique local
        || s[0] & 0xffc0 == 0xfec0 // site local, deprecated
        || s[0] == 0x0100 // discard only
        || (s[0] == 0x2001 && (s[1] == 0x0db8 || s[1] == 2 || s[1] & 0xfff0 == 0x10)) // documentation, benchmarking, ORCHID
        || (s[0] == 0x3fff && s[1] & 0xf000 == 0) // documentation, RFC 9637
        || s[0] & 0xe000 != 0x2000; // not global unicast
    if private { AddressClass::Private } else { AddressClass::Public }
}

/// The IPv4 addresses to which a packet for `ip` may be carried: NAT64 (RFC 6052, RFC 8215), 6to4
/// (RFC 3056), Teredo (RFC 4380: server and client), ISATAP (RFC 5214), IPv4-compatible and
/// IPv4-translated (RFC 2765).
fn embedded_v4(ip: Ipv6Addr) -> Vec<Ipv4Addr> {
    let s = ip.segments();
    let pair = |high: u16, low: u16| Ipv4Addr::from(u32::from(high) << 16 | u32::from(low));
    let tail = pair(s[6], s[7]);
    match s {
        [0, 0, 0, 0, 0, 0, 0, 0 | 1] => Vec::new(), // unspecified, loopback
        [0, 0, 0, 0, 0, 0, ..] | [0, 0, 0, 0, 0xffff, 0, ..] | [0x64, 0xff9b, ..] => vec![tail],
        [0x2002, ..] => vec![pair(s[1], s[2])],
        [0x2001, 0, ..] => vec![pair(s[2], s[3]), pair(!s[6], !s[7])],
        [_, _, _, _, 0 | 0x200, 0x5efe, ..] => vec![tail],
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests;
