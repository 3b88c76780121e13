//! From a host to the addresses that may be dialled. A name is resolved once, each address is
//! checked, and exactly these addresses are dialled.
//!
//! A name that resolves to an internal address would let someone else's DNS, or a spoofed answer,
//! scan our network through us. A second lookup between check and connect would bypass the check.

mod resolver;

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

pub use self::resolver::{Resolver, ResolverOptions};
use crate::address::DialRules;

/// Why there is no address to dial.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    /// The name has no address, or no name server answered.
    #[error("no address")]
    NoAddress,
    /// All addresses of the name are forbidden.
    #[error("no address that may be dialled")]
    Forbidden,
}

/// The permitted addresses of a host, in the resolver's order with the families interleaved (RFC
/// 8305 §4).
///
/// # Errors
/// [`ResolveError`].
pub async fn resolve(host: &str, port: u16, rules: &DialRules) -> Result<Vec<SocketAddr>, ResolveError> {
    resolve_with(Resolver::system(), host, host, port, rules).await
}

/// [`resolve`] by a given resolver, within the lookup limits of `owner`.
///
/// # Errors
/// [`ResolveError`].
pub async fn resolve_with(
    resolver: &Arc<Resolver>,
    owner: &str,
    host: &str,
    port: u16,
    rules: &DialRules,
) -> Result<Vec<SocketAddr>, ResolveError> {
    if let Ok(ip) = host.parse::<IpAddr>() {
        return permitted_addresses([SocketAddr::new(ip, port)], rules);
    }
    let found = resolver.addresses(owner, host).await.ok_or(ResolveError::NoAddress)?;
    permitted_addresses(found.iter().map(|ip| SocketAddr::new(*ip, port)), rules)
}

fn permitted_addresses(
    found: impl IntoIterator<Item = SocketAddr>,
    rules: &DialRules,
) -> Result<Vec<SocketAddr>, ResolveError> {
    let (v6, v4): (Vec<_>, Vec<_>) =
        found.into_iter().filter(|address| rules.permits(*address)).partition(SocketAddr::is_ipv6);
    let mut interleaved = Vec::with_capacity(v6.len() + v4.len());
    let (mut v6, mut v4) = (v6.into_iter(), v4.into_iter());
    loop {
        let (six, four) = (v6.next(), v4.next());
        if six.is_none() && four.is_none() {
            break;
        }
        interleaved.extend(six.into_iter().chain(four));
    }
    if interleaved.is_empty() {
        return Err(ResolveError::Forbidden);
    }
    Ok(interleaved)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::address::{DialGuard, Networks, OwnAddresses};

    fn check(found: &[&str], given: bool) -> Option<Vec<String>> {
        let allowed_here = Networks::loopback_and_lan();
        let given = if given { allowed_here.clone() } else { Networks::default() };
        let guard = DialGuard { allowed: allowed_here, own: OwnAddresses::default() };
        let rules = DialRules { guard: Arc::new(guard), tenant_networks: given };
        let found = found.iter().map(|ip| SocketAddr::new(ip.parse().unwrap(), 443));
        permitted_addresses(found, &rules).ok().map(|a| a.iter().map(|a| a.ip().to_string()).collect())
    }

    #[test]
    fn a_private_address_is_never_dialled_without_leave() {
        assert_eq!(check(&["127.0.0.1", "93.184.216.34"], false).unwrap(), ["93.184.216.34"]);
        assert_eq!(check(&["93.184.216.34", "10.0.0.1"], false).unwrap(), ["93.184.216.34"]);
        for ip in [
            "127.0.0.1",
            "10.0.0.1",
            "172.16.0.1",
            "192.168.0.1",
            "169.254.169.254",
            "100.64.0.1",
            "0.0.0.0",
            "224.0.0.1",
            "255.255.255.255",
            "::1",
            "::",
            "fe80::1",
            "fc00::1",
            "fd00:ec2::254",
            "::ffff:127.0.0.1",
            "::ffff:a9fe:a9fe",
            "64:ff9b::7f00:1",
            "2002:7f00:1::",
        ] {
            assert_eq!(check(&[ip], false), None, "{ip}");
        }
    }

    #[test]
    fn metadata_is_never_dialled_even_with_leave() {
        for ip in ["169.254.169.254", "fe80::1", "fd00:ec2::254", "::ffff:169.254.169.254", "0.0.0.0"] {
            assert_eq!(check(&[ip], true), None, "{ip}");
        }
        assert_eq!(check(&["169.254.169.254", "127.0.0.1"], true).unwrap(), ["127.0.0.1"]);
    }

    #[test]
    fn families_take_turns() {
        let found = ["93.184.216.34", "93.184.216.35", "2606:2800:220:1::1"];
        assert_eq!(check(&found, false).unwrap(), ["2606:2800:220:1::1", "93.184.216.34", "93.184.216.35"]);
    }
}
