//! The origin of an upstream. It is parsed once, so that no byte of a request can influence the
//! destination.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr},
};

use http::{HeaderValue, Uri, uri::Authority};
use seks_network::address::{AddressClass, classify, is_metadata_name};

/// Scheme, host and port.
#[derive(Clone, PartialEq, Eq)]
pub struct Upstream {
    tls: bool,
    authority: Authority,
    port: u16,
}

/// Why an upstream is invalid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UpstreamError {
    /// Not `scheme://host[:port]`.
    #[error("`{0}` is not an origin: scheme://host[:port], without user, path, query or fragment")]
    NotAnOrigin(String),
    /// A port outside 1 to 65535, or written with leading zeros.
    #[error("`{0}` is not a port: 1 to 65535, without leading zeros")]
    Port(String),
    /// `http` without `allow_private`.
    #[error("plain http needs allow_private")]
    PlainHttp,
    /// An internal address or name without `allow_private`.
    #[error("`{0}` is a private address or name and needs allow_private")]
    Private(String),
    /// A metadata or link-local address.
    #[error("`{0}` is a link-local or metadata address, which is always forbidden")]
    Forbidden(String),
}

impl Upstream {
    /// Parses an origin. Numeric disguises of addresses (`127.1`, `0x7f000001`), user info, paths
    /// and fragments are refused.
    ///
    /// # Errors
    /// [`UpstreamError`].
    pub fn parse(text: &str, allow_private: bool) -> Result<Self, UpstreamError> {
        let wrong = || UpstreamError::NotAnOrigin(text.chars().take(120).collect());
        let uri: Uri = text.parse().map_err(|_| wrong())?;
        let (scheme, authority) = (uri.scheme_str().ok_or_else(wrong)?, uri.authority().ok_or_else(wrong)?.clone());
        // The text must equal its parsed parts: no user, path, query or fragment. Lower case is the
        // canonical form.
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
        let port = match split_authority(authority.as_str()).ok_or_else(wrong)?.1 {
            Some(text) => parse_port(text).ok_or_else(|| UpstreamError::Port(text.chars().take(60).collect()))?,
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
                AddressClass::Forbidden => Err(UpstreamError::Forbidden(host.into())),
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
        // Some resolvers take a last label of digits (or 0x…) for an address. No top-level domain
        // begins with a digit.
        let numeric = last.bytes().next().is_some_and(|b| b.is_ascii_digit());
        if host.len() > 253 || !host.split('.').all(label) || numeric {
            return Err(UpstreamError::NotAnOrigin(host.chars().take(120).collect()));
        }
        if is_metadata_name(host) {
            return Err(UpstreamError::Forbidden(host.into()));
        }
        let inside = host == "localhost"
            || [".localhost", ".internal", ".local"].iter().any(|s| host.ends_with(s))
            || !host.contains('.');
        if inside && !allow_private { Err(UpstreamError::Private(host.into())) } else { Ok(()) }
    }

    /// Whether the scheme is `https`.
    #[must_use]
    pub fn tls(&self) -> bool {
        self.tls
    }

    /// The host without brackets: a name or an address.
    #[must_use]
    pub fn host(&self) -> &str {
        self.authority.host().trim_start_matches('[').trim_end_matches(']')
    }

    /// The port, or the scheme's default.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// `host[:port]` as configured, for the `Host` header and `:authority`.
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

/// Host and port as written. `http::uri::Authority::port` has no port above 65535, so it is not
/// used.
fn split_authority(authority: &str) -> Option<(&str, Option<&str>)> {
    if let Some(bracketed) = authority.strip_prefix('[') {
        let (address, rest) = bracketed.split_once(']')?;
        address.parse::<Ipv6Addr>().ok()?;
        return if rest.is_empty() { Some((address, None)) } else { Some((address, Some(rest.strip_prefix(':')?))) };
    }
    match authority.split_once(':') {
        Some((host, port)) if !host.is_empty() => Some((host, Some(port))),
        Some(_) => None,
        None => Some((authority, None)),
    }
}

/// Accepts only the canonical form: digits, no sign, no leading zero.
fn parse_port(text: &str) -> Option<u16> {
    text.parse::<u16>().ok().filter(|port| *port > 0 && text == port.to_string())
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
            "https://[::1",
            "https://::1",
            "https://[127.0.0.1]",
            "https://[fe80::1%25eth0]",
            "https://[::1]8443",
            "https://api.test:443:443",
            "https://:443",
        ] {
            assert!(Upstream::parse(bad, true).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_port_that_is_none_is_named() {
        for port in ["65536", "0", "070", "99999999999999999999", "+443", "-1", "4 43", "443a", ""] {
            match Upstream::parse(&format!("https://api.test:{port}"), true) {
                Err(UpstreamError::Port(named)) => assert_eq!(named, port),
                Err(UpstreamError::NotAnOrigin(_)) => {} // no URI at all
                other => panic!("{port}: {other:?}"),
            }
        }
        let error = Upstream::parse("https://api.test:65536", false).unwrap_err().to_string();
        assert_eq!(error, "`65536` is not a port: 1 to 65535, without leading zeros");
        assert_eq!(Upstream::parse("https://[::1]:65536", true).unwrap_err(), UpstreamError::Port("65536".into()));
        assert_eq!(Upstream::parse("https://api.test:65535", false).unwrap().port(), 65535);
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
            assert!(matches!(Upstream::parse(never, true), Err(UpstreamError::Forbidden(_))), "{never}");
        }
    }
}
