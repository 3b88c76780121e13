//! A host as agents name it to a proxy.

use crate::http::fields;
use http::Uri;
use seks_service::Upstream;

/// Scheme, host and port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Origin {
    tls: bool,
    host: Box<str>,
    port: u16,
}

impl Origin {
    /// Of `CONNECT host:port`; the port has to be there.
    pub(crate) fn of_tunnel(uri: &Uri) -> Option<Self> {
        let bare = uri.scheme().is_none() && uri.path_and_query().is_none_or(|p| p.as_str().is_empty());
        let authority = uri.authority().filter(|_| bare)?.as_str();
        Self::read(true, authority, None)
    }

    /// Of an absolute target, such as `http://host/path`.
    pub(crate) fn of_target(uri: &Uri) -> Option<Self> {
        let tls = match uri.scheme_str()? {
            "https" => true,
            "http" => false,
            _ => return None,
        };
        Self::read(tls, uri.authority()?.as_str(), Some(if tls { 443 } else { 80 }))
    }

    /// `host[:port]`; without a default the port has to be there.
    fn read(tls: bool, authority: &str, default: Option<u16>) -> Option<Self> {
        let host = fields::host_of(authority)?;
        // What stands behind the host, which has brackets where it has colons.
        let behind =
            authority.rsplit_once(']').map_or_else(|| authority.get(host.len()..), |(_, behind)| Some(behind))?;
        let port = match behind.strip_prefix(':') {
            Some(port) => port.parse().ok()?,
            None => default?,
        };
        Some(Self { tls, host: host.to_ascii_lowercase().into(), port })
    }

    /// The host without brackets.
    pub(crate) fn host(&self) -> &str {
        &self.host
    }

    /// The port.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// As a service would write it.
    pub(crate) fn to_url(&self) -> String {
        let scheme = if self.tls { "https" } else { "http" };
        if self.host.contains(':') {
            return format!("{scheme}://[{}]:{}", self.host, self.port);
        }
        format!("{scheme}://{}:{}", self.host, self.port)
    }

    /// Whether an upstream is there.
    pub(crate) fn is(&self, upstream: &Upstream) -> bool {
        self.tls == upstream.tls() && *self.host == *upstream.host() && self.port == upstream.port()
    }

    /// Whether `Host` beside `CONNECT` names it: the host, and the port where it has one.
    pub(crate) fn is_meant_by(&self, host: &str) -> bool {
        Self::read(self.tls, host, Some(self.port)).is_some_and(|meant| meant == *self)
    }

    /// Whether `Host` or `:authority` names it.
    pub(crate) fn is_named(&self, authority: &str) -> bool {
        Self::read(self.tls, authority, Some(if self.tls { 443 } else { 80 })).is_some_and(|named| named == *self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tunnel_is_to_a_host_and_a_port() {
        let origin = |text: &str| Origin::of_tunnel(&text.parse().unwrap());
        let api = origin("api.test:443").unwrap();
        assert_eq!((&*api.host, api.port, api.tls), ("api.test", 443, true));
        assert_eq!(origin("API.test:443"), Some(api.clone()));
        assert_eq!(&*origin("[::1]:8443").unwrap().host, "::1");
        for bad in ["api.test", "https://api.test:443/", "u@api.test:443", "/api.test:443", "api.test:0x1"] {
            assert!(bad.parse().map_or(true, |uri: Uri| Origin::of_tunnel(&uri).is_none()), "{bad}");
        }
        assert!(api.is(&Upstream::parse("https://api.test", false).unwrap()));
        for other in ["https://api.test:8443", "https://other.test", "https://x.api.test"] {
            assert!(!api.is(&Upstream::parse(other, false).unwrap()), "{other}");
        }
        let other_port = origin("api.test:8443").unwrap();
        assert!(other_port.is_meant_by("api.test") && other_port.is_meant_by("API.test:8443"));
        assert!(!other_port.is_meant_by("api.test:443") && !other_port.is_meant_by("other.test:8443"));
        assert!(api.is_named("api.test") && api.is_named("API.test:443"));
        assert!(!api.is_named("api.test:80") && !api.is_named("other.test") && !api.is_named("api.test."));
    }

    #[test]
    fn an_absolute_target_names_one_too() {
        let plain = Origin::of_target(&"http://api.test/x?y".parse().unwrap()).unwrap();
        assert!(plain.is(&Upstream::parse("http://api.test", true).unwrap()) && plain.port == 80);
        assert!(!plain.is(&Upstream::parse("https://api.test:80", true).unwrap()));
        assert_eq!(Origin::of_target(&"/x".parse().unwrap()), None);
        assert_eq!(Origin::of_target(&"http://127.0.0.1:99".parse().unwrap()).unwrap().port, 99);
        assert_eq!(Origin::of_target(&"http://[::1]/".parse().unwrap()).unwrap().port, 80);
    }
}
