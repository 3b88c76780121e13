//! The two sides of a rewritten URL: the upstream's origin, and the base by which the agent reaches
//! the same service.

use super::pattern::OriginPattern;

/// How an upstream writes its own origin, and what is written instead.
///
/// One is made only for an answer that may hold such a URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Urls {
    tls: bool,
    host: String,
    port: u16,
    /// `http://127.0.0.1:8300`: scheme and authority by which the agent addressed the node.
    origin: String,
    /// `/api/openai` in path mode, empty in host mode.
    prefix: String,
}

impl Urls {
    /// `host` is the upstream's, in brackets when it is an IPv6 address. `origin` has no final
    /// slash; `prefix` is empty or begins with one.
    pub(super) fn new(tls: bool, host: &str, port: u16, origin: String, prefix: String) -> Self {
        Self { tls, host: host.to_ascii_lowercase(), port, origin, prefix }
    }

    fn scheme(&self) -> &'static str {
        if self.tls { "https" } else { "http" }
    }

    fn default_port(&self) -> u16 {
        if self.tls { 443 } else { 80 }
    }

    /// Whether `authority` is the upstream's: its host in any case, its port written out or, where
    /// it is the scheme's own, not.
    fn is_authority(&self, authority: &str) -> bool {
        let Some(rest) = authority
            .get(..self.host.len())
            .filter(|host| host.eq_ignore_ascii_case(&self.host))
            .and_then(|_| authority.get(self.host.len()..))
        else {
            return false;
        };
        match rest.strip_prefix(':') {
            None => rest.is_empty() && self.port == self.default_port(),
            Some(port) => port.parse() == Ok(self.port),
        }
    }

    /// The reference that leads to the same resource through the node; `None` when `reference`
    /// needs no change: it is relative to the current path, or another host's. An absolute URL
    /// stays absolute, an absolute path stays a path.
    pub(super) fn reference(&self, reference: &str) -> Option<String> {
        if let Some(rest) = reference.strip_prefix("//") {
            let (authority, rest) = split_authority(rest);
            // Without a scheme it has that of the page: the agent's, which is the node's.
            let own = self.origin.split_once(':').map_or("", |(_, authority)| authority);
            return (self.is_authority(authority)).then(|| [own, &self.prefix, rest].concat());
        }
        if reference.starts_with('/') {
            return (!self.prefix.is_empty()).then(|| [self.prefix.as_str(), reference].concat());
        }
        let (scheme, rest) = reference.split_once("://")?;
        let (authority, rest) = split_authority(rest);
        (scheme.eq_ignore_ascii_case(self.scheme()) && self.is_authority(authority))
            .then(|| [self.origin.as_str(), &self.prefix, rest].concat())
    }

    /// Whether a cookie of this domain is one for the upstream's host.
    pub(super) fn is_in_domain(&self, domain: &str) -> bool {
        let domain = domain.trim_start_matches('.');
        let parent = || self.host.len().checked_sub(domain.len()).and_then(|at| self.host.split_at_checked(at));
        let own = parent().is_some_and(|(sub, own)| own.eq_ignore_ascii_case(domain) && sub.ends_with('.'));
        !domain.is_empty() && (self.host.eq_ignore_ascii_case(domain) || own)
    }

    /// Whether a cookie of this domain is sent to the node, and to what else is in the domain.
    pub(super) fn is_domain_of_node(&self, domain: &str) -> bool {
        let domain = domain.trim_start_matches('.');
        let authority = self.origin.split_once("://").map_or("", |(_, authority)| authority);
        let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host);
        let at = host.len().checked_sub(domain.len());
        let is_end = at.and_then(|at| host.split_at_checked(at)).is_some_and(|(before, end)| {
            end.eq_ignore_ascii_case(domain) && (before.is_empty() || before.ends_with('.'))
        });
        !domain.is_empty() && is_end
    }

    /// Whether services differ in their paths at one address of the node.
    pub(super) fn has_prefix(&self) -> bool {
        !self.prefix.is_empty()
    }

    /// The path below which an agent finds what is below `path` at the upstream. `base_path` is put
    /// in front of what agents ask for, so nothing of the service is outside of it.
    pub(super) fn cookie_path(&self, path: &str, base_path: &str) -> String {
        let path = if is_at_or_above(path, base_path) { "/" } else { path };
        [self.prefix.as_str(), path].concat()
    }

    /// Whether agents reach the node without TLS.
    pub(super) fn is_plain(&self) -> bool {
        self.origin.starts_with("http:")
    }

    /// Path and query of a reference that [`reference`](Self::reference) made, as an agent of the
    /// service sends them.
    pub(super) fn rest<'a>(&self, reference: &'a str) -> Option<&'a str> {
        reference.strip_prefix(&self.origin).unwrap_or(reference).strip_prefix(&self.prefix)
    }

    /// The pattern of these URLs in the body of a service with this base path.
    pub(super) fn pattern(&self, base_path: &str) -> OriginPattern {
        let port = (self.port != self.default_port(), self.port);
        OriginPattern::new(self.scheme(), &self.host, port, base_path, &[self.origin.as_str(), &self.prefix].concat())
    }
}

/// Whether all below `base_path` is below `path`.
fn is_at_or_above(path: &str, base_path: &str) -> bool {
    let path = path.trim_end_matches('/');
    base_path.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// The authority at the start of `rest`, and what follows it.
fn split_authority(rest: &str) -> (&str, &str) {
    rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn github() -> Urls {
        Urls::new(true, "api.github.com", 443, "http://127.0.0.1:8300".into(), "/api/github".into())
    }

    #[test]
    fn a_reference_to_the_upstream_leads_through_the_node() {
        let cases = [
            ("https://api.github.com/repos?page=2", "http://127.0.0.1:8300/api/github/repos?page=2"),
            ("HTTPS://API.GitHub.com:443/x", "http://127.0.0.1:8300/api/github/x"),
            ("https://api.github.com", "http://127.0.0.1:8300/api/github"),
            ("https://api.github.com?q", "http://127.0.0.1:8300/api/github?q"),
            ("//api.github.com/x", "//127.0.0.1:8300/api/github/x"),
            ("/v2/_catalog?n=2", "/api/github/v2/_catalog?n=2"),
            ("/", "/api/github/"),
        ];
        for (reference, expect) in cases {
            assert_eq!(github().reference(reference).as_deref(), Some(expect), "{reference}");
        }
    }

    #[test]
    fn other_hosts_schemes_and_relative_references_stay() {
        for reference in [
            "https://api.github.com.evil.test/x",
            "https://evil.test/https://api.github.com/x",
            "https://user@api.github.com/x",
            "https://api.github.com:8443/x",
            "http://api.github.com/x",
            "//other.test/x",
            "page/2",
            "?page=2",
            "",
            "mailto:a@api.github.com",
        ] {
            assert_eq!(github().reference(reference), None, "{reference}");
        }
    }

    #[test]
    fn host_mode_and_ports_of_their_own() {
        let urls = Urls::new(false, "[::1]", 8080, "https://up.seks.test".into(), String::new());
        assert_eq!(urls.reference("http://[::1]:8080/x").as_deref(), Some("https://up.seks.test/x"));
        assert_eq!(urls.reference("http://[::1]/x"), None);
        assert_eq!(urls.reference("/x"), None, "a path is the same in host mode");
    }
}
