//! An issuer of tests: keys of every kind, and tokens with any header and claims.

use aws_lc_rs::{
    hmac,
    rand::SystemRandom,
    rsa::{KeyPair as RsaKeyPair, KeySize},
    signature::{
        self, ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair,
        KeyPair as _, RSA_PKCS1_SHA256, RSA_PKCS1_SHA384, RSA_PKCS1_SHA512, RSA_PSS_SHA256, RSA_PSS_SHA384,
        RSA_PSS_SHA512,
    },
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::{Value, json};

/// An issuer's private keys. Their ids are `rsa`, `p256`, `p384`, `ed` and `rsa-old`.
pub(crate) struct Signer {
    rsa: RsaKeyPair,
    old: RsaKeyPair,
    p256: EcdsaKeyPair,
    p384: EcdsaKeyPair,
    ed: Ed25519KeyPair,
}

pub(crate) fn base64url(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

impl Signer {
    pub(crate) fn new() -> Self {
        let rsa = || RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
        Self {
            rsa: rsa(),
            old: rsa(),
            p256: EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap(),
            p384: EcdsaKeyPair::generate(&ECDSA_P384_SHA384_FIXED_SIGNING).unwrap(),
            ed: Ed25519KeyPair::generate().unwrap(),
        }
    }

    fn rsa_jwk(key: &RsaKeyPair, kid: &str) -> Value {
        // DER of PKCS #1: a sequence of the modulus, behind a zero, and 65537.
        let n = &key.public_key().as_ref()[9..265];
        json!({ "kty": "RSA", "kid": kid, "use": "sig", "n": base64url(n), "e": "AQAB", "x5c": ["ignored"] })
    }

    fn ec_jwk(key: &EcdsaKeyPair, kid: &str, curve: &str) -> Value {
        let point = &key.public_key().as_ref()[1..]; // uncompressed
        let (x, y) = point.split_at(point.len() / 2);
        json!({ "kty": "EC", "crv": curve, "kid": kid, "x": base64url(x), "y": base64url(y) })
    }

    /// The key set, without `rsa-old`.
    pub(crate) fn jwks(&self) -> Value {
        json!({ "keys": [
            Self::rsa_jwk(&self.rsa, "rsa"),
            Self::ec_jwk(&self.p256, "p256", "P-256"),
            Self::ec_jwk(&self.p384, "p384", "P-384"),
            { "kty": "OKP", "crv": "Ed25519", "kid": "ed", "x": base64url(self.ed.public_key()) },
        ] })
    }

    /// The key set with `rsa-old` alone.
    pub(crate) fn old_jwks(&self) -> Value {
        json!({ "keys": [Self::rsa_jwk(&self.old, "rsa-old")] })
    }

    /// The PEM-less public key, as an HMAC secret of the confusion of RS256 and HS256.
    fn public_bytes(&self) -> Vec<u8> {
        self.rsa.public_key().as_ref().to_vec()
    }

    /// A signature by the key that `with` names, under the algorithm that it stands for.
    pub(crate) fn signature(&self, with: &str, signed: &str) -> Vec<u8> {
        let (random, bytes) = (SystemRandom::new(), signed.as_bytes());
        let rsa = |key: &RsaKeyPair, padding: &'static dyn signature::RsaEncoding| {
            let mut signature = vec![0; key.public_modulus_len()];
            key.sign(padding, &random, bytes, &mut signature).unwrap();
            signature
        };
        match with {
            "RS256" => rsa(&self.rsa, &RSA_PKCS1_SHA256),
            "RS384" => rsa(&self.rsa, &RSA_PKCS1_SHA384),
            "RS512" => rsa(&self.rsa, &RSA_PKCS1_SHA512),
            "PS256" => rsa(&self.rsa, &RSA_PSS_SHA256),
            "PS384" => rsa(&self.rsa, &RSA_PSS_SHA384),
            "PS512" => rsa(&self.rsa, &RSA_PSS_SHA512),
            "old" => rsa(&self.old, &RSA_PKCS1_SHA256),
            "ES256" => self.p256.sign(&random, bytes).unwrap().as_ref().to_vec(),
            "ES384" => self.p384.sign(&random, bytes).unwrap().as_ref().to_vec(),
            "EdDSA" => self.ed.sign(bytes).as_ref().to_vec(),
            "HS256" => {
                let key = hmac::Key::new(hmac::HMAC_SHA256, &self.public_bytes());
                hmac::sign(&key, bytes).as_ref().to_vec()
            }
            "nothing" => Vec::new(),
            "zeros" => vec![0; 256],
            other => panic!("no key for {other}"),
        }
    }

    /// A token with these parts as they are.
    pub(crate) fn token(&self, header: &str, claims: &str, with: &str) -> String {
        let signed = format!("{}.{}", base64url(header), base64url(claims));
        format!("{signed}.{}", base64url(self.signature(with, &signed)))
    }
}
