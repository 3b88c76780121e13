//! An issuer's public keys (RFC 7517).

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, DecodingKey, jwk::Jwk};
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};

use super::{
    algorithm::algorithm,
    json,
    jwt::{Jwt, Rejected},
};

/// Largest key set, in bytes. Google's has 1.5 KiB, Entra's 16 KiB.
pub const MAX_JWKS_BYTES: usize = 64 * 1024;
/// Most keys of a set.
const MAX_KEYS: usize = 64;
/// Sizes of an RSA modulus, in bytes: 2048 to 8192 bits.
const MODULUS_BYTES: std::ops::RangeInclusive<usize> = 256..=1024;

/// Why a key set cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeySetError {
    /// More than [`MAX_JWKS_BYTES`], or more than 64 keys.
    #[error("the key set is larger than 64 KiB or has more than 64 keys")]
    TooLarge,
    /// It is not a JSON object with an array `keys`, or a name stands in it twice.
    #[error("the key set is not a JSON object with an array `keys`")]
    Malformed,
    /// No key in it verifies signatures with an algorithm that SEKS accepts.
    #[error("the key set has no key for RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384 or EdDSA")]
    Empty,
}

/// The keys of one issuer that verify signatures.
#[derive(Clone)]
pub struct KeySet(Box<[Key]>);

#[derive(Clone)]
struct Key {
    kid: Box<str>,
    /// The algorithm that the key names for itself.
    alg: Option<Algorithm>,
    family: Family,
    thumbprint: [u8; 32],
    key: DecodingKey,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Family {
    Rsa,
    P256,
    P384,
    Ed25519,
}

impl Family {
    fn signs_with(self, alg: Algorithm) -> bool {
        use Algorithm as A;
        match self {
            Self::Rsa => matches!(alg, A::RS256 | A::RS384 | A::RS512 | A::PS256 | A::PS384 | A::PS512),
            Self::P256 => alg == A::ES256,
            Self::P384 => alg == A::ES384,
            Self::Ed25519 => alg == A::EdDSA,
        }
    }
}

impl KeySet {
    /// Reads a key set. Keys of other kinds, for encryption, or with too short a modulus are left
    /// out.
    ///
    /// # Errors
    /// [`KeySetError`].
    pub fn parse(jwks: &[u8]) -> Result<Self, KeySetError> {
        if jwks.len() > MAX_JWKS_BYTES {
            return Err(KeySetError::TooLarge);
        }
        let mut set = json::object(jwks).ok_or(KeySetError::Malformed)?;
        let Some(Value::Array(keys)) = set.remove("keys") else { return Err(KeySetError::Malformed) };
        if keys.len() > MAX_KEYS {
            return Err(KeySetError::TooLarge);
        }
        let keys: Box<[Key]> = keys.iter().filter_map(|key| Key::read(key.as_object()?)).collect();
        if keys.is_empty() { Err(KeySetError::Empty) } else { Ok(Self(keys)) }
    }

    /// The set as it is stored and sent to nodes: usable keys alone, without certificates and
    /// unknown members. Two sets with the same keys have the same text, in whichever order an
    /// issuer lists them.
    ///
    /// # Errors
    /// [`KeySetError`].
    pub fn canonical(jwks: &[u8]) -> Result<String, KeySetError> {
        Self::parse(jwks)?;
        let set = json::object(jwks).ok_or(KeySetError::Malformed)?;
        let keys = set.get("keys").and_then(Value::as_array).ok_or(KeySetError::Malformed)?;
        let kept = |key: &Value| {
            let key = key.as_object().filter(|key| Key::read(key).is_some())?;
            let members = ["alg", "crv", "e", "kid", "kty", "n", "use", "x", "y"];
            let member = |name: &str| Some((name.to_owned(), key.get(name)?.clone()));
            let key: Map<String, Value> = members.into_iter().filter_map(member).collect();
            Some(Value::Object(key).to_string())
        };
        let mut keys: Vec<String> = keys.iter().filter_map(kept).collect();
        keys.sort_unstable();
        Ok(format!("{{\"keys\":[{}]}}", keys.join(",")))
    }

    /// The key ids, for people.
    pub fn ids(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|key| &*key.kid)
    }

    /// Whether every key of `others` is in the set.
    #[must_use]
    pub fn has_all_of(&self, others: &Self) -> bool {
        others.0.iter().all(|key| self.has(&key.thumbprint))
    }

    /// Whether the set still has the key with this thumbprint.
    #[must_use]
    pub fn has(&self, thumbprint: &[u8]) -> bool {
        self.0.iter().any(|key| key.thumbprint == thumbprint)
    }

    /// Verifies the signature with the key that the token names, and returns the key's thumbprint.
    ///
    /// # Errors
    /// [`Rejected::UnknownKey`] and [`Rejected::Signature`].
    pub fn verify(&self, jwt: &Jwt<'_>) -> Result<[u8; 32], Rejected> {
        let fits = |key: &&Key| {
            *key.kid == *jwt.kid() && key.family.signs_with(jwt.alg()) && key.alg.is_none_or(|alg| alg == jwt.alg())
        };
        let mut found = self.0.iter().filter(fits);
        let (Some(key), None) = (found.next(), found.next()) else { return Err(Rejected::UnknownKey) };
        match jsonwebtoken::crypto::verify(jwt.signature(), jwt.signed().as_bytes(), &key.key, jwt.alg()) {
            Ok(true) => Ok(key.thumbprint),
            Ok(false) | Err(_) => Err(Rejected::Signature),
        }
    }
}

impl Key {
    fn read(jwk: &Map<String, Value>) -> Option<Self> {
        let text = |name: &str| jwk.get(name).and_then(Value::as_str);
        if text("use").is_some_and(|usage| usage != "sig") {
            return None;
        }
        if let Some(operations) = jwk.get("key_ops")
            && !operations.as_array().is_some_and(|all| all.iter().any(|operation| operation == "verify"))
        {
            return None;
        }
        let kid: Box<str> = text("kid").filter(|kid| !kid.is_empty() && kid.len() <= 256)?.into();
        let alg = text("alg").map(|name| algorithm(name).ok_or(())).transpose().ok()?;
        let bytes = |name: &str| URL_SAFE_NO_PAD.decode(text(name)?).ok();
        let (family, members) = match (text("kty")?, text("crv")) {
            ("RSA", _) => {
                let modulus = bytes("n")?;
                if !MODULUS_BYTES.contains(&modulus.len()) || modulus.first() == Some(&0) {
                    return None;
                }
                (Family::Rsa, &["e", "kty", "n"][..])
            }
            ("EC", Some("P-256")) if is_point(&bytes, 32) => (Family::P256, &["crv", "kty", "x", "y"][..]),
            ("EC", Some("P-384")) if is_point(&bytes, 48) => (Family::P384, &["crv", "kty", "x", "y"][..]),
            ("OKP", Some("Ed25519")) if bytes("x")?.len() == 32 => (Family::Ed25519, &["crv", "kty", "x"][..]),
            _ => return None,
        };
        if alg.is_some_and(|alg| !family.signs_with(alg)) {
            return None;
        }
        let required: Map<String, Value> =
            members.iter().filter_map(|name| Some(((*name).to_owned(), jwk.get(*name)?.clone()))).collect();
        // RFC 7638: the required members, in the order of their names, without white space.
        let thumbprint = Sha256::digest(Value::Object(required.clone()).to_string()).into();
        let parsed: Jwk = serde_json::from_value(Value::Object(required)).ok()?;
        let key = DecodingKey::from_jwk(&parsed).ok()?;
        Some(Self { kid, alg, family, thumbprint, key })
    }
}

fn is_point(bytes: &impl Fn(&str) -> Option<Vec<u8>>, length: usize) -> bool {
    ["x", "y"].iter().all(|name| bytes(name).is_some_and(|coordinate| coordinate.len() == length))
}
