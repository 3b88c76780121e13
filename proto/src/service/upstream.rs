//! An upstream's origin: parsed once, so that no byte of a request can have a say in where it goes.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use http::{HeaderValue, Uri, uri::Authority};

/// Scheme, host and port.
#[derive(Clone, PartialEq, Eq)]
pub struct Upstream {
    tls: bool,
    authority: Authority,
    port: u16,
}

/// Why an upstream is not acceptable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UpstreamError {
    /// Not `scheme://host[:port]`.
    #[error("`{0}` is not an origin: scheme://host[:port], without user, path, query or fragment")]
    NotAnOrigin(String),
    /// `http` without `--allow-private`.
    #[error("plain http is only for upstreams with allow_private")]
    PlainHttp,
    /// An address or name inside, without `--allow-private`.
    #[error("`{0}` is a private address or name: only with allow_private")]
    Private(String),
    /// Metadata and link-local addresses.
    #[error("`{0}` is a link-local or metadata address: never")]
    Never(String),
}

impl Upstream {
    /// Parses an origin. Addresses in numeric disguise (`127.1`, `0x7f000001`), user info, paths and fragments are refused.
    ///
    /// # Errors
    /// [`UpstreamError`].
    pub fn parse(text: &str, allow_private: bool) -> Result<Self, UpstreamError> {
        let wrong = || UpstreamError::NotAnOrigin(text.chars().take(120).collect());
        let uri: Uri = text.parse().map_err(|_| wrong())?;
        let (scheme, authority) = (uri.scheme_str().ok_or_else(wrong)?, uri.authority().ok_or_else(wrong)?.clone());
        // Byte for byte what it was made of: no user, path, query, fragment or trailing anything. Lower case is the canonical form.
        if text != format!("{scheme}://{authority}")
            || authority.as_str().contains('@')
            || text != text.to_ascii_lowercase()
        {
            return Err(wrong());
        }
        let tls = match scheme {
            "https" => true,
            "http" if allow_private => false,
            "http" => return Err(UpstreamError::PlainHttp),
            _ => return Err(wrong()),
        };
        let port = match authority.port() {
            Some(port) => port
                .as_str()
                .parse::<u16>()
                .ok()
                .filter(|p| *p > 0 && port.as_str() == p.to_string())
                .ok_or_else(wrong)?,
            None if authority.as_str().ends_with(':') => return Err(wrong()),
            None if tls => 443,
            None => 80,
        };
        let upstream = Self { tls, authority, port };
        upstream.check_host(allow_private).map(|()| upstream)
    }

    fn check_host(&self, allow_private: bool) -> Result<(), UpstreamError> {
        let host = self.host();
        if let Ok(ip) = host.parse::<IpAddr>() {
            return match classify(ip) {
                AddressClass::Never => Err(UpstreamError::Never(host.into())),
                AddressClass::Private if !allow_private => Err(UpstreamError::Private(host.into())),
                _ => Ok(()),
            };
        }
        let label = |l: &str| {
            !l.is_empty()
                && l.len() <= 63
                && !l.starts_with('-')
                && !l.ends_with('-')
                && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        };
        let last = host.rsplit('.').next().unwrap_or_default();
        // A last label of digits (or 0x…) is an address in disguise to some resolvers; no top-level domain begins with a digit.
        let numeric = last.bytes().next().is_some_and(|b| b.is_ascii_digit());
        if host.len() > 253 || !host.split('.').all(label) || numeric {
            return Err(UpstreamError::NotAnOrigin(host.chars().take(120).collect()));
        }
        if matches!(host, "metadata.google.internal" | "metadata" | "instance-data") {
            return Err(UpstreamError::Never(host.into()));
        }
        let inside = host == "localhost"
            || [".localhost", ".internal", ".local"].iter().any(|s| host.ends_with(s))
            || !host.contains('.');
        if inside && !allow_private { Err(UpstreamError::Private(host.into())) } else { Ok(()) }
    }

    /// `https`.
    #[must_use]
    pub fn tls(&self) -> bool {
        self.tls
    }

    /// Host without brackets: a name or an address.
    #[must_use]
    pub fn host(&self) -> &str {
        self.authority.host().trim_start_matches('[').trim_end_matches(']')
    }

    /// Port, the scheme's default included.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// `host[:port]` as configured: the `Host` header and `:authority`.
    #[must_use]
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// The `Host` header's value.
    ///
    /// # Errors
    /// Never for a parsed upstream: an authority is a valid header value.
    pub fn host_header(&self) -> Result<HeaderValue, http::header::InvalidHeaderValue> {
        HeaderValue::from_str(self.authority.as_str())
    }
}

impl fmt::Display for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", if self.tls { "https" } else { "http" }, self.authority)
    }
}

impl fmt::Debug for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// What an address is, for deciding whether it may be dialled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressClass {
    /// On the public Internet.
    Public,
    /// Private, loopback, shared or documentation space: only with `allow_private`.
    Private,
    /// Link-local (cloud metadata), unspecified, multicast, broadcast: never.
    Never,
}

/// Cloud metadata services outside link-local space: AWS over IPv6, Alibaba, Oracle's legacy one.
const METADATA: &[IpAddr] = &[
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0x0ec2, 0, 0, 0, 0, 0, 0x0254)),
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
    IpAddr::V4(Ipv4Addr::new(192, 0, 0, 192)),
];

/// Classifies an address; one that embeds an IPv4 address (mapped, NAT64, 6to4) is what the embedded one is.
#[must_use]
pub fn classify(ip: IpAddr) -> AddressClass {
    if METADATA.contains(&ip) {
        return AddressClass::Never;
    }
    match ip {
        IpAddr::V4(v4) => classify_v4(v4),
        IpAddr::V6(v6) => classify_v6(v6),
    }
}

fn classify_v4(ip: Ipv4Addr) -> AddressClass {
    let [a, b, c, _] = ip.octets();
    if ip.is_link_local() || ip.is_unspecified() || ip.is_multicast() || ip.is_broadcast() || a == 0 || a >= 240 {
        return AddressClass::Never;
    }
    let private = ip.is_private()
        || ip.is_loopback()
        || (a == 100 && b & 0xc0 == 64) // RFC 6598, carrier-grade NAT
        || (a == 192 && b == 0 && (c == 0 || c == 2)) // IETF protocol assignments, TEST-NET-1
        || (a == 198 && (b & 0xfe == 18 || (b == 51 && c == 100))) // benchmarking, TEST-NET-2
        || (a == 203 && b == 0 && c == 113); // TEST-NET-3
    if private { AddressClass::Private } else { AddressClass::Public }
}

fn classify_v6(ip: Ipv6Addr) -> AddressClass {
    let s = ip.segments();
    let tail = Ipv4Addr::from(u32::from(s[6]) << 16 | u32::from(s[7]));
    if let Some(v4) = ip.to_ipv4_mapped() {
        return classify(v4.into());
    }
    if s[0] == 0x64 && s[1] == 0xff9b {
        return worst(AddressClass::Private, classify(tail.into())); // NAT64: where it comes out is the network's choice
    }
    if s[0] == 0x2002 {
        return classify(Ipv4Addr::from(u32::from(s[1]) << 16 | u32::from(s[2])).into()); // 6to4
    }
    if ip.is_unspecified() || ip.is_multicast() || s[0] & 0xffc0 == 0xfe80 {
        return AddressClass::Never;
    }
    let v4_compatible = s[..6] == [0; 6];
    let private = ip.is_loopback()
        || v4_compatible
        || s[0] & 0xfe00 == 0xfc00 // unique local
        || s[0] & 0xffc0 == 0xfec0 // site local, deprecated
        || s[0] == 0x0100 // discard only
        || (s[0] == 0x2001 && (s[1] == 0 || s[1] == 0x0db8)) // Teredo, documentation
        || s[0] & 0xe000 != 0x2000; // not global unicast
    if private { AddressClass::Private } else { AddressClass::Public }
}

fn worst(a: AddressClass, b: AddressClass) -> AddressClass {
    if a == AddressClass::Never || b == AddressClass::Never { AddressClass::Never } else { a }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_kept_as_written() {
        let upstream = Upstream::parse("https://api.openai.com", false).unwrap();
        assert_eq!((upstream.host(), upstream.port(), upstream.tls()), ("api.openai.com", 443, true));
        assert_eq!(Upstream::parse("http://127.0.0.1:8080", true).unwrap().to_string(), "http://127.0.0.1:8080");
        assert_eq!(Upstream::parse("https://[::1]:8443", true).unwrap().host(), "::1");
    }

    #[test]
    fn anything_else_is_refused() {
        for bad in [
            "https://u:p@api.test",
            "https://api.test/#x",
            "https://api.test/",
            "https://api.test/v1/../",
            "https://api.test:0",
            "https://api.test:",
            "https://api.test:070",
            "unix:/x",
            "api.test",
            "",
            "https://",
            "https://2852039166.",
            "ftp://api.test",
            "https://API.test",
            "https://api.test?x",
            "https://api..test",
            "https://-a.test",
            "https://127.1",
            "https://0251.0376.0251.0376",
            "https://0xA9FEA9FE",
            "https://0xa9fea9fe",
            "https://2852039166",
            "https://0",
            "https://localhost.",
            "https://a_b.test",
            "https://*.test",
        ] {
            assert!(Upstream::parse(bad, true).is_err(), "{bad}");
        }
    }

    #[test]
    fn private_upstreams_need_leave_and_metadata_never_gets_it() {
        for private in [
            "https://localhost",
            "https://10.0.0.1",
            "https://[::1]",
            "https://[fc00::1]",
            "https://db.internal",
            "https://intranet",
        ] {
            assert!(matches!(Upstream::parse(private, false), Err(UpstreamError::Private(_))), "{private}");
            assert!(Upstream::parse(private, true).is_ok(), "{private}");
        }
        assert_eq!(Upstream::parse("http://api.test", false), Err(UpstreamError::PlainHttp));
        for never in [
            "https://169.254.169.254",
            "https://[fe80::1]",
            "https://[::ffff:169.254.169.254]",
            "https://metadata.google.internal",
            "https://0.0.0.0",
        ] {
            assert!(matches!(Upstream::parse(never, true), Err(UpstreamError::Never(_))), "{never}");
        }
    }

    #[test]
    fn addresses_are_what_they_embed() {
        use AddressClass::{Never, Private, Public};
        for (ip, class) in [
            ("93.184.216.34", Public),
            ("127.0.0.1", Private),
            ("10.0.0.1", Private),
            ("172.16.0.1", Private),
            ("172.32.0.1", Public),
            ("192.168.0.1", Private),
            ("169.254.169.254", Never),
            ("100.64.0.1", Private),
            ("100.128.0.1", Public),
            ("0.0.0.0", Never),
            ("224.0.0.1", Never),
            ("255.255.255.255", Never),
            ("100.100.100.200", Never),
            ("::1", Private),
            ("::", Never),
            ("fe80::1", Never),
            ("fc00::1", Private),
            ("fd00:ec2::254", Never),
            ("::ffff:127.0.0.1", Private),
            ("::ffff:a9fe:a9fe", Never),
            ("64:ff9b::7f00:1", Private),
            ("64:ff9b::a9fe:a9fe", Never),
            ("2002:7f00:1::", Private),
            ("2606:2800:220:1::1", Public),
        ] {
            assert_eq!(classify(ip.parse().unwrap()), class, "{ip}");
        }
    }
}
