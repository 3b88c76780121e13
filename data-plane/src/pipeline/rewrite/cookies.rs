//! `Set-Cookie`: a client sends the cookie back where it got it from, which is the node. All
//! services have one node's address, so a cookie is confined to its own.

use super::Urls;

/// What a service says about its cookies.
#[derive(Clone, Copy)]
pub(super) struct CookieRules<'a> {
    pub(super) base_path: &'a str,
    /// Names of the cookies that come back to the upstream.
    pub(super) passed: &'a [String],
}

/// Adapts a cookie (RFC 6265, 5.2) to the node's address. `None`: it stays as it is.
///
/// `Path` becomes a path of the service at the node, and `Domain` is dropped if it holds the node's
/// host: clients would send the cookie to other services. A cookie in the service's `pass_cookies`
/// comes back to the upstream: the upstream's `Domain` is dropped, and `Secure` where agents reach
/// the node without TLS. Another domain stays, and clients ignore such a cookie as they would have
/// done before.
pub(super) fn rewrite_cookie(text: &str, urls: &Urls, rules: CookieRules<'_>) -> Option<String> {
    let (pair, attributes) = text.split_once(';')?;
    let cookie_name = pair.split('=').next().unwrap_or_default().trim();
    let is_passed = rules.passed.iter().any(|name| name == cookie_name);
    if !is_passed && !urls.has_prefix() && !attributes.to_ascii_lowercase().contains("domain") {
        return None; // an address of its own
    }
    // Clients refuse such a cookie with another path, or without `Secure`.
    let begins = |with: &str| pair.trim_start().get(..with.len()).is_some_and(|own| own.eq_ignore_ascii_case(with));
    let (is_host, is_secure) = (begins("__Host-"), begins("__Secure-"));
    let (mut out, mut changed) = (String::with_capacity(text.len() + 32), false);
    out.push_str(pair);
    for attribute in attributes.split(';') {
        let (name, value) = attribute.split_once('=').unwrap_or((attribute, ""));
        let (name, value) = (name.trim(), value.trim());
        let domain = name.eq_ignore_ascii_case("domain")
            && ((is_passed && urls.is_in_domain(value)) || urls.is_domain_of_node(value));
        let secure = is_passed && name.eq_ignore_ascii_case("secure") && urls.is_plain() && !is_host && !is_secure;
        if domain || secure {
            changed = true;
        } else if name.eq_ignore_ascii_case("path")
            && value.starts_with('/')
            && (urls.has_prefix() || is_passed)
            && !(is_host && is_passed)
        {
            changed = true;
            out.push_str("; Path=");
            out.push_str(&urls.cookie_path(value, rules.base_path));
        } else {
            out.push(';');
            out.push_str(attribute);
        }
    }
    changed.then_some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cookie_comes_back_to_the_node() {
        let urls = |prefix: &str| {
            let origin = if prefix.is_empty() { "https://s.node" } else { "http://node:8300" };
            Urls::new(true, "api.up.test", 443, origin.into(), prefix.into())
        };
        let passed = ["a", "__Host-a", "__secure-a"].map(str::to_owned);
        for (cookie, base_path, expected) in [
            ("a=1; Path=/v1", "", Some("a=1; Path=/api/s/v1")),
            ("a=1; path=/; HttpOnly", "", Some("a=1; Path=/api/s/; HttpOnly")),
            ("a=1;Domain=.UP.test;Path=/v1/x;Secure", "", Some("a=1; Path=/api/s/v1/x")),
            ("a=1; Domain=api.up.test", "", Some("a=1")),
            ("a=1; Path=/v1", "/v1", Some("a=1; Path=/api/s/")),
            ("a=1; Path=/", "/v1", Some("a=1; Path=/api/s/")),
            ("a=1; Path=/v1/x", "/v1", Some("a=1; Path=/api/s/v1/x")),
            ("a=1; Domain=other.test", "", None),
            ("a=1; Domain=p.test", "", None),
            ("a=1; Domain=", "", None),
            ("a=Path=/; Expires=Wed, 01 Jan 2031 00:00:00 GMT; SameSite=Lax", "", None),
            ("a=1", "", None),
            ("a=1; Path", "", None),
            ("__Host-a=1; Path=/; Secure", "", None),
            ("__secure-a=1; Path=/; Secure", "", Some("__secure-a=1; Path=/api/s/; Secure")),
        ] {
            let rules = CookieRules { base_path, passed: &passed };
            assert_eq!(rewrite_cookie(cookie, &urls("/api/s"), rules).as_deref(), expected, "{cookie}");
        }
        let rules = CookieRules { base_path: "", passed: &passed };
        let host = rewrite_cookie("a=1; Path=/v1; Domain=up.test; Secure", &urls(""), rules);
        assert_eq!(host.as_deref(), Some("a=1; Path=/v1; Secure"));
    }

    #[test]
    fn no_cookie_is_sent_to_another_service() {
        let urls = |origin: &str, prefix: &str| Urls::new(true, "api.up.test", 443, origin.into(), prefix.into());
        let path = urls("http://seks.node.test:8300", "/api/s");
        let host = urls("https://s.node.test", "");
        let passed = ["__Host-own".to_owned()];
        for (urls, cookie, expected) in [
            (&path, "a=1; Path=/; Secure", Some("a=1; Path=/api/s/; Secure")),
            (&path, "a=1; Path=/api/other", Some("a=1; Path=/api/s/api/other")),
            (&path, "a=1; Domain=node.test; path=/x", Some("a=1; Path=/api/s/x")),
            (&path, "a=1; Domain=.seks.node.test", Some("a=1")),
            (&path, "a=1; Domain=up.test", None),
            (&path, "__Host-a=1; Path=/; Secure", Some("__Host-a=1; Path=/api/s/; Secure")),
            (&path, "__Host-own=1; Path=/; Secure", None),
            (&path, "a=1; HttpOnly", None),
            (&host, "a=1; Path=/; Secure", None),
            (&host, "a=1; Path=/; Domain=Node.test", Some("a=1; Path=/")),
            (&host, "a=1; Path=/; Domain=other.test", None),
        ] {
            let rules = CookieRules { base_path: "", passed: &passed };
            assert_eq!(rewrite_cookie(cookie, urls, rules).as_deref(), expected, "{cookie}");
        }
    }
}
