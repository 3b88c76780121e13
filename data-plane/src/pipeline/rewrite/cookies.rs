//! `Set-Cookie` of services with `pass_cookies`: a client sends the cookie back where it got it
//! from, which is the node.

use super::Urls;

/// Adapts a cookie (RFC 6265, 5.2) to the node's address. `None`: it stays as it is.
///
/// `Path` becomes a path of the node. `Domain` is dropped if it is the upstream's: the cookie is
/// then the node's alone. Another domain stays, and clients ignore such a cookie as they would have
/// done before. `Secure` is dropped where agents reach the node without TLS.
pub(super) fn rewrite_cookie(text: &str, urls: &Urls, base_path: &str) -> Option<String> {
    let (pair, attributes) = text.split_once(';')?;
    // Clients refuse such a cookie with another path, or without `Secure`.
    let begins = |with: &str| pair.trim_start().get(..with.len()).is_some_and(|own| own.eq_ignore_ascii_case(with));
    let (is_host, is_secure) = (begins("__Host-"), begins("__Secure-"));
    let (mut out, mut changed) = (String::with_capacity(text.len() + 32), false);
    out.push_str(pair);
    for attribute in attributes.split(';') {
        let (name, value) = attribute.split_once('=').unwrap_or((attribute, ""));
        let (name, value) = (name.trim(), value.trim());
        let domain = name.eq_ignore_ascii_case("domain") && urls.is_in_domain(value);
        let secure = name.eq_ignore_ascii_case("secure") && urls.is_plain() && !is_host && !is_secure;
        if domain || secure {
            changed = true;
        } else if name.eq_ignore_ascii_case("path") && value.starts_with('/') && !is_host {
            changed = true;
            out.push_str("; Path=");
            out.push_str(&urls.cookie_path(value, base_path));
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
            assert_eq!(rewrite_cookie(cookie, &urls("/api/s"), base_path).as_deref(), expected, "{cookie}");
        }
        let host = rewrite_cookie("a=1; Path=/v1; Domain=up.test; Secure", &urls(""), "");
        assert_eq!(host.as_deref(), Some("a=1; Path=/v1; Secure"));
    }
}
