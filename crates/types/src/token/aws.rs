//! The token as an AWS key pair (Signature Version 4).
//!
//! The access key id is the token's digest in base 32. A node finds the token by it without an
//! index, and it is no secret. The secret access key is a MAC of that digest under the tenant's
//! key. The tenant's key is sealed in the store and is sent sealed to nodes inside credentials that
//! sign requests. A stolen store, backup or access key id is therefore not enough to sign.

use std::fmt;

use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD};
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;
use zeroize::Zeroizing;

use super::Digest;
use crate::secret::Secret;

/// The first characters of our access key ids. AWS uses the same for long-lived keys.
pub const PREFIX: &str = "AKIA";
/// Length of our access key ids. AWS allows 16 to 128 characters.
pub const LEN: usize = PREFIX.len() + 52; // 52 * 5 bits ≥ 256
/// The credential field with the tenant's key. No service may have a field of this name.
pub const KEY_FIELD: &str = "seks_aws_key";
/// Random bytes of a tenant's key. It is kept in hexadecimal.
pub const KEY_BYTES: usize = 32;

const BASE32: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
const LABEL: &[u8] = b"seks/v1/aws-secret-access-key\0";

/// A fake key pair.
pub struct AwsKeys {
    /// Identifies the token.
    pub access_key_id: String,
    /// The signing key of the SDK: 40 characters, as in AWS.
    pub secret_access_key: Zeroizing<String>,
}

impl fmt::Debug for AwsKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AwsKeys(..)")
    }
}

impl AwsKeys {
    /// The pair of the token with this digest, under the tenant's `key`.
    #[must_use]
    pub fn derive(key: &Secret, digest: &Digest) -> Self {
        Self { access_key_id: access_key_id(digest), secret_access_key: secret_access_key(key.expose(), digest) }
    }
}

/// A new key for a tenant.
///
/// # Errors
/// When the operating system has no randomness to give.
pub fn fresh_key() -> Result<Secret, getrandom::Error> {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let mut bytes = Zeroizing::new([0_u8; KEY_BYTES]);
    getrandom::fill(bytes.as_mut_slice())?;
    let digit = |n: u8| HEX.get(usize::from(n)).copied().unwrap_or(b'0');
    let mut text = Vec::with_capacity(2 * KEY_BYTES);
    text.extend(bytes.iter().flat_map(|b| [digit(b >> 4), digit(b & 15)]));
    Ok(Secret::new(text))
}

/// The access key id of the token with this digest.
#[must_use]
pub fn access_key_id(digest: &Digest) -> String {
    let mut id = String::with_capacity(LEN);
    id.push_str(PREFIX);
    let (mut bits, mut held) = (0_u32, 0_u32);
    let mut push = |value: u32| {
        let letter = BASE32.get((value & 31) as usize).copied().unwrap_or(b'A');
        id.push(char::from(letter));
    };
    for byte in digest.0 {
        bits = bits << 8 | u32::from(byte);
        held += 8;
        while held >= 5 {
            held -= 5;
            push(bits >> held);
        }
    }
    push(bits << (5 - held)); // 256 = 51 * 5 + 1
    id
}

/// The digest in one of our access key ids. `None` for any other id.
#[must_use]
pub fn digest_of(access_key_id: &[u8]) -> Option<Digest> {
    let text = access_key_id.strip_prefix(PREFIX.as_bytes()).filter(|_| access_key_id.len() == LEN)?;
    let mut digest = [0_u8; 32];
    let mut places = digest.iter_mut();
    let (mut bits, mut held) = (0_u32, 0_u32);
    for letter in text {
        let value = match letter {
            b'A'..=b'Z' => letter - b'A',
            b'2'..=b'7' => letter - b'2' + 26,
            _ => return None,
        };
        bits = bits << 5 | u32::from(value);
        held += 5;
        if held >= 8 {
            held -= 8;
            *places.next()? = (bits >> held & 0xff) as u8;
        }
    }
    // Each digest has one id: the remaining bits must be zero.
    (bits & ((1 << held) - 1) == 0).then_some(Digest(digest))
}

/// The secret access key of the token with this digest.
#[must_use]
pub fn secret_access_key(key: &[u8], digest: &Digest) -> Zeroizing<String> {
    let mut secret = Zeroizing::new(String::with_capacity(40));
    // HMAC takes keys of any length.
    if let Ok(mac) = Hmac::<Sha256>::new_from_slice(key) {
        let sum =
            Zeroizing::new(<[u8; 32]>::from(mac.chain_update(LABEL).chain_update(digest.0).finalize().into_bytes()));
        STANDARD_NO_PAD.encode_string(sum.get(..30).unwrap_or_default(), &mut secret);
    }
    secret
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(seed: u8) -> Digest {
        Digest::of(&[seed; 60])
    }

    #[test]
    fn an_access_key_id_is_shaped_like_one_and_names_its_token() {
        for digest in [digest(1), digest(2), Digest([0; 32]), Digest([0xff; 32])] {
            let id = access_key_id(&digest);
            assert_eq!(id.len(), LEN);
            assert!(id.bytes().all(|b| BASE32.contains(&b)), "{id}");
            assert_eq!(digest_of(id.as_bytes()), Some(digest));
        }
    }

    #[test]
    fn anybody_elses_access_key_id_names_nothing() {
        let id = access_key_id(&digest(1));
        let last = id.get(..LEN - 1).unwrap();
        let (asia, lower) = (id.replacen("AKIA", "ASIA", 1), id.to_lowercase());
        for other in [
            "",
            "AKIAIOSFODNN7EXAMPLE",
            last,
            &format!("{id}A"),
            &asia,
            &lower,
            &format!("{last}B"),
            &format!("{last}1"),
        ] {
            assert_eq!(digest_of(other.as_bytes()), None, "{other}");
        }
    }

    #[test]
    fn a_secret_access_key_depends_on_key_and_token() {
        let secret = secret_access_key(b"key", &digest(1));
        assert_eq!(secret.len(), 40);
        assert_eq!(*secret, *secret_access_key(b"key", &digest(1)));
        assert_ne!(*secret, *secret_access_key(b"key", &digest(2)));
        assert_ne!(*secret, *secret_access_key(b"yek", &digest(1)));
        assert!(!format!("{:?}", AwsKeys::derive(&Secret::new(b"key".to_vec()), &digest(1))).contains(&*secret));
    }
}
