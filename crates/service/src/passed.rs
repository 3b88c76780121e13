//! What is forwarded of an agent's head only because a service says so: the keys `pass_headers` and
//! `pass_cookies`.

use http::HeaderName;

use super::{CopySource, FORBIDDEN_HEADERS, InjectionSite, ServiceError, TokenSlot, invalid};

/// Most names of each key.
const MAX_NAMES: usize = 32;
/// Longest name, in bytes.
const MAX_NAME: usize = 64;

/// Headers and cookies that a service takes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Passed {
    /// Headers with `_` in their names, and those of [`CopySource`] on which policies are not
    /// decided.
    pub headers: Vec<HeaderName>,
    /// Names of cookies, compared with case.
    pub cookies: Vec<String>,
    /// Names that some server reads as a header which holds the token or the credential (`_` for
    /// `-`). They are never forwarded. Empty unless such a header has a `_` in its name.
    pub shadowing: Vec<HeaderName>,
}

impl Passed {
    pub(super) fn parse(
        headers: &[String],
        cookies: &[String],
        injection: &[InjectionSite],
        slots: &[TokenSlot],
    ) -> Result<Self, ServiceError> {
        let secret: Vec<&HeaderName> = secret_headers(injection, slots).collect();
        let headers = headers.iter().map(|name| header(name, &secret)).collect::<Result<Vec<_>, _>>()?;
        if headers.len() > MAX_NAMES || cookies.len() > MAX_NAMES {
            let key = if headers.len() > MAX_NAMES { "pass_headers" } else { "pass_cookies" };
            return Err(invalid(key, format!("at most {MAX_NAMES} names")));
        }
        if !cookies.is_empty() && secret.contains(&&http::header::COOKIE) {
            return Err(invalid("pass_cookies", "the header Cookie holds the token or the credential"));
        }
        let shadowing = secret.iter().filter(|name| name.as_str().contains('_'));
        let shadowing = shadowing.filter_map(|name| HeaderName::from_bytes(dashed(name).as_bytes()).ok()).collect();
        let cookies = cookies.iter().map(|name| cookie(name)).collect::<Result<_, _>>()?;
        Ok(Self { headers, cookies, shadowing })
    }
}

fn secret_headers<'a>(injection: &'a [InjectionSite], slots: &'a [TokenSlot]) -> impl Iterator<Item = &'a HeaderName> {
    let injected = injection.iter().filter_map(|site| match site {
        InjectionSite::Header(name, _) => Some(name),
        _ => None,
    });
    injected.chain(slots.iter().filter_map(|slot| match slot {
        TokenSlot::Header(name) => Some(name),
        _ => None,
    }))
}

/// The name as servers read it that make a variable of it (CGI, WSGI, Rack, PHP).
fn dashed(name: &HeaderName) -> String {
    name.as_str().replace('_', "-")
}

fn header(name: &str, secret: &[&HeaderName]) -> Result<HeaderName, ServiceError> {
    let wrong = |reason: &str| Err(invalid("pass_headers", format!("`{}` {reason}", name.escape_debug())));
    let Some(parsed) = HeaderName::from_bytes(name.as_bytes()).ok().filter(|_| name.len() <= MAX_NAME) else {
        return wrong("is not a valid header name");
    };
    if CopySource::of_header(parsed.as_str()).is_some() {
        return Ok(parsed);
    }
    if !name.contains('_') {
        return wrong("has no `_`: it is forwarded anyway, or never");
    }
    let read = dashed(&parsed);
    let prefixes =
        ["x-forwarded-", "x-original-", "x-rewrite-", "x-http-method", "x-seks-", "proxy-", "sec-websocket-"];
    let names = ["authorization", "cookie", "forwarded", "via", "x-method-override", "x-real-ip"];
    if FORBIDDEN_HEADERS.contains(&read.as_str())
        || names.contains(&read.as_str())
        || CopySource::of_header(&read).is_some()
    {
        return wrong("is read by some servers as a header that agents must not set");
    }
    if prefixes.iter().any(|prefix| read.starts_with(prefix)) {
        return wrong("is read by some servers as a header that agents must not set");
    }
    if secret.iter().any(|secret| dashed(secret) == read) {
        return wrong("is read by some servers as the header that holds the credential");
    }
    Ok(parsed)
}

fn cookie(name: &str) -> Result<String, ServiceError> {
    let token = |b: u8| b.is_ascii_graphic() && !b"\"(),/:;<=>?@[\\]{}".contains(&b);
    if name.is_empty() || name.len() > MAX_NAME || !name.bytes().all(token) {
        return Err(invalid("pass_cookies", format!("`{}` is not the name of a cookie", name.escape_debug())));
    }
    Ok(name.into())
}
