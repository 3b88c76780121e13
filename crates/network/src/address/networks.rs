//! Lists of networks in configuration files and records.

use std::{net::IpAddr, sync::Arc};

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, de::Error as _};

/// Most networks in one list. Bounds the comparisons for each new connection.
const MAX_NETWORKS: usize = 64;

/// Private networks that may be dialled. None when empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Networks(Arc<[IpNet]>);

/// Why a list of networks is not acceptable.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NetworkError {
    /// Not `ADDRESS/PREFIX`.
    #[error("`{0}` is no network: ADDRESS/PREFIX, such as 10.0.0.0/8")]
    NotANetwork(String),
    /// Bits are set behind the prefix.
    #[error("`{given}` has bits set behind its prefix: `{meant}`")]
    HostBits {
        /// As written.
        given: String,
        /// The network that it lies in.
        meant: IpNet,
    },
    /// The list is too long.
    #[error("at most {MAX_NETWORKS} networks")]
    TooMany,
}

impl Networks {
    /// Loopback, RFC 1918 and unique local addresses. The default of `seks dev`.
    #[must_use]
    pub fn loopback_and_lan() -> Self {
        let all = ["127.0.0.0/8", "::1/128", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7"];
        Self(all.iter().filter_map(|network| network.parse().ok()).collect())
    }

    /// Parses a list.
    ///
    /// # Errors
    /// [`NetworkError`], naming the entry.
    pub fn parse(list: &[impl AsRef<str>]) -> Result<Self, NetworkError> {
        if list.len() > MAX_NETWORKS {
            return Err(NetworkError::TooMany);
        }
        let networks = list.iter().map(|text| parse_network(text.as_ref())).collect::<Result<Vec<_>, _>>()?;
        Ok(Self(networks.into()))
    }

    /// Whether the list is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a network contains `ip`, in its canonical form.
    #[must_use]
    pub fn contains(&self, ip: IpAddr) -> bool {
        self.0.iter().any(|network| network.contains(&ip))
    }

    /// Whether a network of `before` is no longer included completely.
    #[must_use]
    pub fn removes_any_of(&self, before: &Self) -> bool {
        !before.0.iter().all(|old| self.0.iter().any(|new| new.contains(old)))
    }

    /// The networks in CIDR notation.
    #[must_use]
    pub fn to_strings(&self) -> Vec<String> {
        self.0.iter().map(ToString::to_string).collect()
    }
}

/// An IPv4-mapped network (`::ffff:10.0.0.0/104`) in its IPv4 form (`10.0.0.0/8`), any other as it
/// is. Addresses are compared in their IPv4 form, so the mapped spelling would match none of them.
#[must_use]
pub fn canonical_network(network: IpNet) -> IpNet {
    let IpNet::V6(v6) = network else { return network };
    match (v6.addr().to_ipv4_mapped(), v6.prefix_len().checked_sub(MAPPED_PREFIX)) {
        (Some(v4), Some(length)) => ipnet::Ipv4Net::new(v4, length).map_or(network, IpNet::V4),
        _ => network,
    }
}

/// Length of `::ffff:0:0/96`, which holds the IPv4-mapped addresses (RFC 4291, 2.5.5.2).
const MAPPED_PREFIX: u8 = 96;

fn parse_network(text: &str) -> Result<IpNet, NetworkError> {
    let wrong = || NetworkError::NotANetwork(text.chars().take(60).collect());
    let network: IpNet = text.parse().map_err(|_| wrong())?;
    // An IPv4-mapped network would match nothing: addresses are compared in their plain form.
    if matches!(network, IpNet::V6(v6) if v6.addr().to_ipv4_mapped().is_some()) {
        return Err(wrong());
    }
    if network.trunc() != network {
        return Err(NetworkError::HostBits { given: text.into(), meant: network.trunc() });
    }
    Ok(network)
}

impl<'de> Deserialize<'de> for Networks {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::parse(&Vec::<String>::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapped_network_has_an_ipv4_form() {
        for (given, meant) in [
            ("::ffff:127.0.0.1/128", "127.0.0.1/32"),
            ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
            ("::ffff:0:0/96", "0.0.0.0/0"),
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("2001:db8::/32", "2001:db8::/32"),
            ("::/0", "::/0"),
        ] {
            assert_eq!(canonical_network(given.parse().unwrap()).to_string(), meant);
        }
    }

    #[test]
    fn only_whole_networks_are_read() {
        assert!(Networks::parse(&["10.0.0.0/8", "fd00::/8", "192.0.2.1/32"]).is_ok());
        for bad in ["10.0.0.0", "10/8", "10.0.0.0/33", "host/8", "", "::ffff:10.0.0.0/104", " 10.0.0.0/8"] {
            assert!(matches!(Networks::parse(&[bad]), Err(NetworkError::NotANetwork(_))), "{bad}");
        }
        let error = Networks::parse(&["10.1.0.0/8"]).unwrap_err().to_string();
        assert_eq!(error, "`10.1.0.0/8` has bits set behind its prefix: `10.0.0.0/8`");
        assert_eq!(Networks::parse(&vec!["10.0.0.0/8"; 65]), Err(NetworkError::TooMany));
    }

    #[test]
    fn a_list_narrows_when_a_network_is_gone_or_smaller() {
        let list = |all: &[&str]| Networks::parse(all).unwrap();
        assert!(list(&["10.0.0.0/9"]).removes_any_of(&list(&["10.0.0.0/8"])));
        assert!(list(&[]).removes_any_of(&list(&["::1/128"])));
        assert!(!list(&["10.0.0.0/8"]).removes_any_of(&list(&["10.1.0.0/16"])));
    }
}
