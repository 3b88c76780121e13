//! Recognises a value that is not a token, such as a vendor's real key, for the text of the
//! refusal. The value is neither stored nor repeated.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{HeaderMap, header};
use seks_types::token::aws;

use super::{sigv4, token::CREDENTIAL_HEADERS};

const REAL_KEY: &str = "this is not a SEKS token; it looks like a real key: it was not forwarded";
const SIGNATURE_2: &str = "the request is signed with AWS Signature Version 2, which hides its token: sign with Version 4 \
                           (boto3: `Config(signature_version=\"s3v4\")`)";

/// Prefixes that vendors give their keys.
const PREFIXES: &[&str] = &[
    "AIza",
    "AKIA",
    "ASIA",
    "EAA",
    "SG.",
    "dop_v1_",
    "eyJ",
    "figd_",
    "fw_",
    "ghp_",
    "gho_",
    "ghs_",
    "ghu_",
    "github_pat_",
    "glpat-",
    "gsk_",
    "hf_",
    "hvs.",
    "key-",
    "lin_api_",
    "napi_",
    "npm_",
    "ntn_",
    "pat-",
    "pk_",
    "pplx-",
    "r8_",
    "re_",
    "rk_",
    "sbp_",
    "secret_",
    "shpat_",
    "sk-",
    "sk_",
    "tvly-",
    "whsec_",
    "xai-",
    "xapp-",
    "xox",
    "ya29.",
];

/// A real key is at least as long. Passwords and placeholders mostly are not.
const MIN_KEY: usize = 16;

/// What to say of a request that holds no token. `None`: nothing is known.
pub(super) fn hint(headers: &HeaderMap, target: &str) -> Option<&'static str> {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let values = || query.split('&').filter_map(|pair| pair.split_once('='));
    let has = |name: &str| values().any(|(n, _)| n == name);
    let authorization = headers.get(header::AUTHORIZATION).map_or(&b""[..], |value| value.as_bytes());
    if (has("AWSAccessKeyId") && has("Signature")) || authorization.starts_with(b"AWS ") {
        return Some(SIGNATURE_2);
    }
    // An agent's own key pair looks like one of AWS, and names its token.
    let signed = authorization.strip_prefix(sigv4::HEADER_SCHEME.as_bytes()).and_then(sigv4::header_access_key_id);
    let signed = signed.or_else(|| sigv4::query_access_key_id(query).map(str::as_bytes));
    if let Some(id) = signed {
        let is_real = (id.starts_with(b"AKIA") || id.starts_with(b"ASIA")) && aws::digest_of(id).is_none();
        return is_real.then_some(REAL_KEY);
    }
    let presented = CREDENTIAL_HEADERS.iter().filter(|name| **name != "cookie");
    let in_head = presented.flat_map(|name| headers.get_all(*name)).any(|value| holds_key(value.as_bytes()));
    let in_query = values().any(|(_, value)| has_vendors_prefix(value.as_bytes()));
    (in_head || in_query || is_bots_path(path)).then_some(REAL_KEY)
}

/// Of a header, with a scheme or without.
fn holds_key(value: &[u8]) -> bool {
    let (scheme, rest) = match memchr::memchr(b' ', value).and_then(|at| value.split_at_checked(at)) {
        Some((scheme, rest)) => (scheme, rest.trim_ascii()),
        None => (&b""[..], value),
    };
    if scheme.eq_ignore_ascii_case(b"basic") {
        let pair = STANDARD.decode(rest).unwrap_or_default();
        return pair.split(|b| *b == b':').any(looks_like_key);
    }
    looks_like_key(rest)
}

/// A vendor's prefix, or a long word of letters and digits that no person would write.
fn looks_like_key(value: &[u8]) -> bool {
    // A damaged token is a typo; one without its prefix is not told from it.
    let typo = value.windows(4).any(|w| w.eq_ignore_ascii_case(b"seks"));
    let word = |b: &u8| b.is_ascii_alphanumeric() || b"-_.=+/~:".contains(b);
    let random = value.len() >= 2 * MIN_KEY
        && value.iter().all(word)
        && value.iter().any(u8::is_ascii_digit)
        && value.iter().any(u8::is_ascii_alphabetic);
    !typo && (has_vendors_prefix(value) || random)
}

fn has_vendors_prefix(value: &[u8]) -> bool {
    value.len() >= MIN_KEY && PREFIXES.iter().any(|prefix| value.starts_with(prefix.as_bytes()))
}

/// `/bot123456789:AA…`, a Telegram bot's.
fn is_bots_path(path: &str) -> bool {
    path.split('/').take(3).filter_map(|segment| segment.strip_prefix("bot")?.split_once(':')).any(|(id, key)| {
        id.len() >= 6 && id.bytes().all(|b| b.is_ascii_digit()) && key.len() >= 30 && !key.contains("seks")
    })
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn said(name: &'static str, value: &str, target: &str) -> Option<&'static str> {
        let mut headers = HeaderMap::new();
        if !name.is_empty() {
            headers.insert(name, HeaderValue::from_str(value).unwrap());
        }
        hint(&headers, target)
    }

    #[test]
    fn a_real_key_is_told_from_a_typo() {
        let basic = |pair: &str| format!("Basic {}", STANDARD.encode(pair));
        for (name, value, target) in [
            ("authorization", "Bearer sk-proj-abcdefghijklmnop", "/x"),
            ("authorization", "Bearer ghp_0123456789abcdefghijklmnopqrstuvwxyz", "/x"),
            ("authorization", "xoxb-1234567890-abcdef", "/x"),
            ("x-api-key", "sk-ant-api03-abcdefgh", "/x"),
            ("api-key", "0123456789abcdef0123456789abcdef", "/x"),
            ("authorization", &basic("AC0123456789:0123456789abcdef0123456789abcdef"), "/x"),
            ("authorization", &basic("sk_test_0123456789abcdef:"), "/x"),
            (
                "authorization",
                "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0",
                "/b",
            ),
            ("", "", "/b?X-Amz-Credential=AKIAIOSFODNN7EXAMPLE%2F20260101%2Fus-east-1"),
            ("", "", "/x?key=AIzaSyA0123456789"),
            ("", "", "/bot123456789:AAHdqTcvCH1vGWJxfSeofSAs0K5PALDsawq/getMe"),
            ("", "", "/file/bot123456789:AAHdqTcvCH1vGWJxfSeofSAs0K5PALDsawq/a"),
        ] {
            assert_eq!(said(name, value, target), Some(REAL_KEY), "{name}: {value} {target}");
        }
        for (name, value, target) in [
            ("authorization", "Bearer seks_token_abc", "/x"),
            ("authorization", "Bearer seks-token-0123456789abcdefghijklmnopqrstuvwxyz", "/x"),
            ("authorization", "Bearer changeme", "/x"),
            ("authorization", "Bearer sk-short", "/x"),
            ("authorization", &basic("user:password"), "/x"),
            ("cookie", "session=0123456789abcdef0123456789abcdef", "/x"),
            ("", "", "/x?page=2"),
        ] {
            assert_eq!(said(name, value, target), None, "{name}: {value} {target}");
        }
    }

    #[test]
    fn signature_version_2_is_named() {
        for (value, target) in
            [("", "/b/k?AWSAccessKeyId=AKIA0123456789ABCDEF&Signature=x%3D&Expires=1"), ("AWS AKIA:abc=", "/b/k")]
        {
            let name = if value.is_empty() { "" } else { "authorization" };
            assert!(said(name, value, target).unwrap().contains("signature_version"), "{target}");
        }
    }
}
