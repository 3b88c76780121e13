//! Secrets that are not what their owner takes them for.

use crate::error::{CliError, Result};

/// Refuses what is no credential, and returns a warning for what is seldom one.
///
/// # Errors
/// Exit code 2 for a byte order mark and for a token of SEKS.
pub(super) fn check(secret: &[u8]) -> Result<Option<&'static str>> {
    let refused = |why| Err(CliError::usage("secret", why));
    if [&b"\xef\xbb\xbf"[..], b"\xff\xfe", b"\xfe\xff"].iter().any(|mark| secret.starts_with(mark)) {
        return refused("it begins with a byte order mark: save it as UTF-8 without one");
    }
    let text = secret.trim_ascii();
    if seks_types::token::parse(text).is_ok() {
        return refused("it is a token of SEKS, which agents use instead of a credential; nothing was stored");
    }
    if text.contains(&b'\n') || text.starts_with(b"{") {
        return Ok(None);
    }
    let is_quoted = |quote: u8| text.len() > 1 && text.first() == Some(&quote) && text.last() == Some(&quote);
    let begins = |with: &str| text.get(..with.len()).is_some_and(|own| own.eq_ignore_ascii_case(with.as_bytes()));
    Ok(if is_quoted(b'"') || is_quoted(b'\'') {
        Some("the secret is in quotes, which are stored as a part of it")
    } else if begins("bearer ") || begins("basic ") || begins("token ") {
        Some("the secret begins with the name of a scheme, which the service's `inject` adds once more")
    } else if is_assignment(text) {
        Some("the secret looks like a line of a file with variables: store what is behind the `=`")
    } else {
        None
    })
}

/// `OPENAI_API_KEY=…`, `export X=…`. Base64 has its `=` at the end.
fn is_assignment(text: &[u8]) -> bool {
    let text = text.strip_prefix(b"export ").unwrap_or(text);
    let Some(at) = text.iter().position(|b| *b == b'=') else { return false };
    let (name, value) = text.split_at(at);
    let is_name = name.iter().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || *b == b'_');
    is_name && name.contains(&b'_') && value.iter().any(|b| *b != b'=')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_mistaken_for_a_credential_is_told() {
        let token = seks_types::token::FreshToken::generate().unwrap();
        for refused in [&b"\xef\xbb\xbfsk-1"[..], b"\xff\xfes\0", token.as_str().as_bytes()] {
            assert!(check(refused).is_err(), "{}", refused.escape_ascii());
        }
        for warned in ["\"sk-1\"", "'sk-1'\n", "Bearer sk-1", "OPENAI_API_KEY=sk-1", "export A_B=c", "basic dTpw"] {
            assert!(check(warned.as_bytes()).unwrap().is_some(), "{warned}");
        }
        for good in ["sk-1", "dXNlcjpw_A==", "AB_CD==", "{\"a\":\"b\"}", "-----BEGIN\nA_B=c\n", "a=b", "x\"y\""] {
            assert_eq!(check(good.as_bytes()).unwrap(), None, "{good}");
        }
    }
}
