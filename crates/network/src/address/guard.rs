//! The dial decision for one resolved address.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    sync::Arc,
};

use super::{AddressClass, Networks, classify, embedded_v4};
use parking_lot::RwLock;

/// Addresses of SEKS itself: its listeners, control planes and store. Both planes of one process
/// share them.
#[derive(Clone, Debug, Default)]
pub struct OwnAddresses(Arc<RwLock<Vec<SocketAddr>>>);

impl OwnAddresses {
    /// Adds a bound listener, or an endpoint.
    pub fn add(&self, address: SocketAddr) {
        let mut all = self.0.write();
        if !all.contains(&address) {
            all.push(address);
        }
    }

    /// Adds the current addresses of `HOST:PORT`. A name that does not resolve adds nothing.
    pub async fn add_host(&self, host: &str, port: u16) {
        match host.trim_matches(['[', ']']).parse::<IpAddr>() {
            Ok(ip) => self.add(SocketAddr::new(ip, port)),
            Err(_) => {
                if let Ok(found) = tokio::net::lookup_host((host, port)).await {
                    found.for_each(|address| self.add(address));
                }
            }
        }
    }

    /// Adds the current addresses of a URL or of `HOST:PORT`.
    pub async fn add_endpoint(&self, endpoint: &str) {
        let authority = endpoint.split_once("://").map_or(endpoint, |(_, rest)| rest);
        let authority = authority.split(['/', '?', '#']).next().unwrap_or_default();
        let default = if endpoint.starts_with("http://") { 80 } else { 443 };
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.contains(']') => (host, port.parse().unwrap_or(default)),
            _ => (authority, default),
        };
        self.add_host(host, port).await;
    }

    /// Whether `address` is one of them. A port that is bound on this machine counts for every
    /// address of this machine.
    fn contains(&self, address: SocketAddr, here: bool) -> bool {
        let all = self.0.read();
        all.iter().any(|own| {
            let own_ip = own.ip().to_canonical();
            own.port() == address.port()
                && (own_ip == address.ip() || (here && (own_ip.is_unspecified() || is_of_this_machine(own_ip))))
        })
    }
}

/// The dial limits of a process.
#[derive(Clone, Debug, Default)]
pub struct DialGuard {
    /// Private networks that this process's own configuration allows.
    pub allowed: Networks,
    /// Addresses that the process must never dial.
    pub own: OwnAddresses,
}

/// The dial limits for one service: those of the process, and the networks of the service's tenant.
#[derive(Clone, Debug, Default)]
pub struct DialRules {
    /// The limits of the process.
    pub guard: Arc<DialGuard>,
    /// The tenant's private networks, when the service has `allow_private`. Otherwise empty.
    pub tenant_networks: Networks,
}

impl DialRules {
    /// Whether `address`, as it was resolved, may be dialled.
    #[must_use]
    pub fn permits(&self, address: SocketAddr) -> bool {
        let class = classify(address.ip());
        if class == AddressClass::Forbidden {
            return false;
        }
        let ip = address.ip().to_canonical();
        let address = SocketAddr::new(ip, address.port());
        let here = is_of_this_machine(ip);
        if self.guard.own.contains(address, here) {
            return false;
        }
        match (class, here) {
            (AddressClass::Public, false) => true,
            (_, false) => self.both_allow(ip),
            // Another address of this machine is equal to loopback, and needs loopback in the list.
            (_, true) => self.both_allow(ip) && allows_loopback(&self.guard.allowed),
        }
    }

    /// Whether both lists include the address, and the private IPv4 address that it may embed.
    fn both_allow(&self, ip: IpAddr) -> bool {
        let both = |ip: IpAddr| self.tenant_networks.contains(ip) && self.guard.allowed.contains(ip);
        let carried = match ip {
            IpAddr::V4(_) => Vec::new(),
            IpAddr::V6(v6) => embedded_v4(v6),
        };
        both(ip) && carried.into_iter().map(IpAddr::V4).all(|v4| classify(v4) == AddressClass::Public || both(v4))
    }
}

fn allows_loopback(networks: &Networks) -> bool {
    networks.contains(Ipv4Addr::LOCALHOST.into()) || networks.contains(Ipv6Addr::LOCALHOST.into())
}

/// Whether packets to `ip` stay on this machine. Connecting a datagram socket sends nothing. The
/// kernel then names the source address, which for an address of this machine is the address
/// itself.
fn is_of_this_machine(ip: IpAddr) -> bool {
    if ip.is_loopback() {
        return true;
    }
    let any: IpAddr = if ip.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let source = || {
        let socket = UdpSocket::bind((any, 0))?;
        socket.connect((ip, 9))?; // any port: discard
        socket.local_addr()
    };
    source().is_ok_and(|source| source.ip() == ip)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(allowed: &[&str], given: &[&str], own: &[&str]) -> DialRules {
        let addresses = OwnAddresses::default();
        own.iter().for_each(|address| addresses.add(address.parse().unwrap()));
        let guard = DialGuard { allowed: Networks::parse(allowed).unwrap(), own: addresses };
        DialRules { guard: Arc::new(guard), tenant_networks: Networks::parse(given).unwrap() }
    }

    fn permits(rules: &DialRules, address: &str) -> bool {
        rules.permits(address.parse().unwrap())
    }

    #[test]
    fn a_private_address_takes_both_the_tenants_networks_and_the_nodes() {
        let (ten, all) = (&["10.0.0.0/8"][..], &["10.0.0.0/8", "127.0.0.0/8"][..]);
        assert!(permits(&rules(all, ten, &[]), "10.1.2.3:443"));
        for (allowed, given) in [(ten, &[][..]), (&[][..], ten), (&[][..], &[][..]), (ten, &["10.2.0.0/16"][..])] {
            assert!(!permits(&rules(allowed, given, &[]), "10.1.2.3:443"), "{allowed:?} {given:?}");
            assert!(permits(&rules(allowed, given, &[]), "93.184.216.34:443"));
        }
    }

    #[test]
    fn no_network_allows_metadata_link_local_or_this_network() {
        let everything = rules(&["0.0.0.0/0", "::/0"], &["0.0.0.0/0", "::/0"], &[]);
        for never in [
            "169.254.169.254:80",
            "168.63.129.16:80",
            "100.100.100.200:80",
            "192.0.0.192:80",
            "0.0.0.0:80",
            "0.1.2.3:80",
            "224.0.0.1:80",
            "255.255.255.255:80",
            "[fd00:ec2::23]:80",
            "[fd20:ce::254]:80",
            "[fd00:c1::a9fe:a9fe]:80",
            "[fd00:42::42]:80",
            "[::ffff:168.63.129.16]:80",
            "[::]:80",
            "[ff02::1]:80",
        ] {
            assert!(!permits(&everything, never), "{never}");
        }
        assert!(permits(&everything, "100.64.0.1:80") && permits(&everything, "[fd00::1]:80"));
    }

    #[test]
    fn own_listeners_are_refused_in_every_form_of_the_address() {
        let loopback = &["127.0.0.0/8", "::1/128", "::ffff:0:0:0/96", "64:ff9b::/96"][..];
        let dev = rules(loopback, loopback, &["127.0.0.1:8302", "[::]:2379", "10.9.9.9:8303"]);
        for own in ["127.0.0.1:8302", "127.0.0.2:8302", "[::1]:8302", "[::ffff:127.0.0.1]:8302", "127.0.0.1:2379"] {
            assert!(!permits(&dev, own), "{own}");
        }
        assert!(permits(&dev, "127.0.0.1:8000") && permits(&dev, "[::ffff:127.0.0.1]:8000"));
        let ten = rules(&["10.0.0.0/8"], &["10.0.0.0/8"], &["10.9.9.9:8303"]);
        assert!(!permits(&ten, "10.9.9.9:8303") && permits(&ten, "10.9.9.9:443") && permits(&ten, "10.9.9.8:8303"));
    }

    #[test]
    fn another_address_of_this_machine_is_loopback() {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        let Ok(own) = socket.connect("198.51.100.1:9").and_then(|()| socket.local_addr()) else { return };
        if own.ip().is_loopback() {
            return; // no network beside loopback on this machine
        }
        let network = format!("{}/{}", own.ip(), if own.is_ipv4() { 32 } else { 128 });
        let address = SocketAddr::new(own.ip(), 80).to_string();
        assert!(!permits(&rules(&[&network], &[&network], &[]), &address));
        assert!(permits(&rules(&[&network, "127.0.0.0/8"], &[&network], &[]), &address));
    }

    #[test]
    fn a_carried_address_counts_too() {
        let nat64 = &["64:ff9b::/96"][..];
        assert!(permits(&rules(nat64, nat64, &[]), "[64:ff9b::5db8:d822]:443"));
        assert!(!permits(&rules(nat64, nat64, &[]), "[64:ff9b::a00:1]:443"));
        let both = &["64:ff9b::/96", "10.0.0.0/8"][..];
        assert!(permits(&rules(both, both, &[]), "[64:ff9b::a00:1]:443"));
    }

    #[tokio::test]
    async fn endpoints_are_read_as_urls_and_as_authorities() {
        let own = OwnAddresses::default();
        for endpoint in ["https://10.0.0.1:2379", "10.0.0.2:2379", "http://[::1]:2379/x", "https://10.0.0.3"] {
            own.add_endpoint(endpoint).await;
        }
        let all = own.0.read().iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(all, ["10.0.0.1:2379", "10.0.0.2:2379", "[::1]:2379", "10.0.0.3:443"]);
    }
}
