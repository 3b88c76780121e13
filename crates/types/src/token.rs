//! Tokens: `seks_token_`, 43 base-62 characters (256 random bits) and 6 characters of checksum.
//!
//! The checksum distinguishes a typo from an unknown token before any lookup. The fixed form lets
//! secret scanners match `seks_token_[0-9A-Za-z]{49}`. Stores and nodes hold only the SHA-256.

pub mod aws;
pub mod carrying;
#[cfg(test)]
mod fuzz;

use sha2::{Digest as _, Sha256};
use zeroize::Zeroize;

/// The first characters of every token.
pub const PREFIX: &str = "seks_token_";
/// Length of a token in bytes.
pub const LEN: usize = 60;
const RANDOM_CHARS: usize = 43; // 62^43 > 2^256
const CHECKSUM_CHARS: usize = 6; // 62^6 > 2^32
const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// SHA-256 of a token. Stores and nodes identify a token by it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest(pub [u8; 32]);

impl std::fmt::Debug for Digest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Digest(..)") // harmless, but no log needs it
    }
}

impl Digest {
    /// The digest of a token's bytes.
    #[must_use]
    pub fn of(token: &[u8]) -> Self {
        Self(Sha256::digest(token).into())
    }
}

impl TryFrom<&[u8]> for Digest {
    type Error = std::array::TryFromSliceError;
    fn try_from(bytes: &[u8]) -> Result<Self, Self::Error> {
        bytes.try_into().map(Self)
    }
}

/// A new token. It is shown to the operator once, and wiped when dropped.
pub struct FreshToken([u8; LEN]);

impl FreshToken {
    /// A new random token.
    ///
    /// # Errors
    /// When the operating system has no randomness to give.
    pub fn generate() -> Result<Self, getrandom::Error> {
        let mut random = [0_u8; 32];
        getrandom::fill(&mut random)?;
        let token = Self::from_random(&mut random);
        random.zeroize();
        Ok(token)
    }

    fn from_random(random: &mut [u8; 32]) -> Self {
        let mut token = [0_u8; LEN];
        let (prefix, rest) = token.split_at_mut(PREFIX.len());
        prefix.copy_from_slice(PREFIX.as_bytes());
        let (body, checksum) = rest.split_at_mut(RANDOM_CHARS);
        for c in body.iter_mut().rev() {
            *c = digit(divide(random, 62));
        }
        let sum = checksum_of(body);
        checksum.copy_from_slice(&sum);
        Self(token)
    }

    /// The token as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default() // always ASCII
    }

    /// The digest of this token.
    #[must_use]
    pub fn digest(&self) -> Digest {
        Digest::of(&self.0)
    }
}

impl Drop for FreshToken {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

/// Why a value is no valid token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// The value does not contain the token prefix.
    NotOurs,
    /// The value contains the prefix, but its length, alphabet or checksum is wrong.
    Damaged,
}

/// Finds the token in a value that an SDK sent. It is the whole value, or follows a vendor's prefix
/// (`sk-ant-seks_token_…`). The prefix has at most 32 letters, digits, `-`, `_`, `.`, `=`
/// (`Token token=…`) and `:` (`123456789:seks_token_…`, a Telegram bot's). Grammar and checksum are
/// checked before any lookup.
///
/// # Errors
/// Whether the value is foreign or a damaged token. The error never holds the value.
pub fn parse(value: &[u8]) -> Result<Digest, Malformed> {
    let start = value.len().checked_sub(LEN);
    let token = start.and_then(|at| value.get(at..)).unwrap_or_default();
    let shape = start.and_then(|at| value.get(..at)).unwrap_or_default();
    let in_shape = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'=' | b':');
    let shape_ok = shape.len() <= 32 && shape.iter().all(in_shape);
    let (Some(rest), true) = (token.strip_prefix(PREFIX.as_bytes()), shape_ok) else {
        let looks_ours = memchr::memmem::find(value, PREFIX.as_bytes()).is_some();
        return Err(if looks_ours { Malformed::Damaged } else { Malformed::NotOurs });
    };
    let (body, checksum) = rest.split_at(RANDOM_CHARS);
    if body.iter().all(u8::is_ascii_alphanumeric) && checksum == checksum_of(body) {
        Ok(Digest::of(token))
    } else {
        Err(Malformed::Damaged)
    }
}

/// The vendor's prefix of a `--shape`. SDKs that check their key's form accept the token with it.
#[must_use]
pub fn shape_prefix(shape: &str) -> Option<&'static str> {
    if shape.is_empty() {
        return Some("");
    }
    PREFIXES.iter().find(|(name, _)| *name == shape).map(|(_, prefix)| *prefix)
}

/// Prefixes that vendors give their keys, by the name of the shape.
///
/// Clients that check: googlemaps (`AIza`), python-telegram-bot, aiogram and pyTelegramBotAPI
/// (`DIGITS:`), @sendgrid/mail (`SG.`), slack-cli (`xoxb-`, `xapp-`), stripe-cli (`sk_test_`),
/// octokit (the kind of token by `ghs_` or `ghu_`), serenity (three parts with dots), LiteLLM
/// (`sk-`).
const PREFIXES: &[(&str, &str)] = &[
    ("openai", "sk-"),
    ("anthropic", "sk-ant-"),
    ("github", "ghp_"),
    ("google", "AIza"),
    ("slack", "xoxb-"),
    ("stripe", "sk_test_"),
    ("groq", "gsk_"),
    ("discord", "MTIzNDU2Nzg5MDEyMzQ1Njc4.GabcdE."),
    ("gitlab", "glpat-"),
    ("huggingface", "hf_"),
    ("openrouter", "sk-or-v1-"),
    ("sendgrid", "SG."),
    ("shopify", "shpat_"),
    ("slack-app", "xapp-"),
    ("telegram", "123456789:"),
    ("twilio", "SK"),
    ("vault", "hvs."),
];

/// The shapes of [`shape_prefix`], for help and errors.
pub const SHAPES: &[&str] = &[
    "openai",
    "anthropic",
    "github",
    "google",
    "slack",
    "stripe",
    "groq",
    "discord",
    "gitlab",
    "huggingface",
    "openrouter",
    "sendgrid",
    "shopify",
    "slack-app",
    "telegram",
    "twilio",
    "vault",
];

fn checksum_of(body: &[u8]) -> [u8; CHECKSUM_CHARS] {
    let mut crc = crc32fast::Hasher::new();
    crc.update(PREFIX.as_bytes());
    crc.update(body);
    let mut sum = crc.finalize();
    let mut out = [0; CHECKSUM_CHARS];
    for c in out.iter_mut().rev() {
        *c = digit((sum % 62) as u8);
        sum /= 62;
    }
    out
}

fn digit(value: u8) -> u8 {
    ALPHABET.get(usize::from(value)).copied().unwrap_or(b'0')
}

/// Divides a big-endian number in place and returns the remainder.
fn divide(number: &mut [u8; 32], by: u16) -> u8 {
    let mut remainder = 0_u16;
    for byte in number.iter_mut() {
        let value = remainder << 8 | u16::from(*byte);
        *byte = (value / by) as u8;
        remainder = value % by;
    }
    remainder as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_has_the_form_that_scanners_match() {
        let token = FreshToken::generate().unwrap();
        let text = token.as_str();
        assert_eq!(text.len(), LEN);
        assert!(text.strip_prefix(PREFIX).unwrap().bytes().all(|b| b.is_ascii_alphanumeric()));
        assert_eq!(parse(text.as_bytes()), Ok(token.digest()));
    }

    #[test]
    fn all_256_bits_are_in_it() {
        let zero = FreshToken::from_random(&mut [0; 32]);
        let full = FreshToken::from_random(&mut [0xff; 32]);
        assert!(zero.as_str().starts_with("seks_token_0000000000000000000000000000000000000000000"));
        assert!(!full.as_str().starts_with("seks_token_0"), "2^256 - 1 needs all 43 digits");
        for bit in 0..256 {
            let mut random = [0_u8; 32];
            random[bit / 8] = 1 << (bit % 8);
            assert_ne!(FreshToken::from_random(&mut random).as_str(), zero.as_str(), "bit {bit}");
        }
    }

    #[test]
    fn every_single_character_typo_is_caught_offline() {
        let token = FreshToken::generate().unwrap();
        for at in 0..LEN {
            let mut bytes = token.0;
            bytes[at] = if bytes[at] == b'x' { b'y' } else { b'x' };
            assert!(parse(&bytes).is_err(), "position {at}");
        }
    }

    #[test]
    fn a_parameter_of_a_scheme_is_looked_through() {
        let token = FreshToken::generate().unwrap();
        let value = format!("token={}", token.as_str());
        assert_eq!(parse(value.as_bytes()), Ok(token.digest()), "Authorization: Token token=…");
    }

    #[test]
    fn a_vendor_shape_is_looked_through() {
        let token = FreshToken::generate().unwrap();
        assert_eq!(SHAPES.len(), PREFIXES.len());
        for shape in SHAPES {
            let shaped = format!("{}{}", shape_prefix(shape).unwrap(), token.as_str());
            assert_eq!(parse(shaped.as_bytes()), Ok(token.digest()), "{shape}");
        }
        for bad in [
            format!("x y{}", token.as_str()),
            format!("{}x", token.as_str()),
            token.as_str()[..59].into(),
            "x".repeat(33) + token.as_str(),
        ] {
            assert_eq!(parse(bad.as_bytes()), Err(Malformed::Damaged), "{bad}");
        }
        assert_eq!(parse(b"sk-proj-1234"), Err(Malformed::NotOurs));
        assert_eq!(parse(b""), Err(Malformed::NotOurs));
    }
}
