//! JSON Web Tokens that are signed with RS256 (RFC 7515, RFC 7518 3.3): by which service accounts
//! and GitHub Apps say who they are.

use aws_lc_rs::{
    rand::SystemRandom,
    signature::{RSA_PKCS1_SHA256, RsaKeyPair},
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use rustls_pki_types::{PrivateKeyDer, pem::PemObject as _};
use serde_json::Value;

use super::MintError;

/// An RSA key.
pub(super) struct Key(RsaKeyPair);

impl Key {
    /// From PEM: PKCS #8 (Google's) or PKCS #1 (GitHub's).
    pub(super) fn parse(pem: &str) -> Result<Self, MintError> {
        let wrong = || MintError::Invalid("field `private_key` is not an RSA key in PEM".into());
        let pair = match PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(|_| wrong())? {
            PrivateKeyDer::Pkcs8(der) => RsaKeyPair::from_pkcs8(der.secret_pkcs8_der()),
            PrivateKeyDer::Pkcs1(der) => RsaKeyPair::from_der(der.secret_pkcs1_der()),
            _ => return Err(wrong()),
        };
        pair.map(Self).map_err(|_| wrong())
    }

    /// A token with these claims.
    pub(super) fn sign(&self, key_id: &str, claims: &Value) -> Result<String, MintError> {
        let mut head = serde_json::json!({ "alg": "RS256", "typ": "JWT" });
        if let (false, Some(head)) = (key_id.is_empty(), head.as_object_mut()) {
            head.insert("kid".into(), key_id.into());
        }
        let mut token =
            format!("{}.{}", URL_SAFE_NO_PAD.encode(head.to_string()), URL_SAFE_NO_PAD.encode(claims.to_string()));
        let mut signature = vec![0; self.0.public_modulus_len()];
        self.0
            .sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), token.as_bytes(), &mut signature)
            .map_err(|_| MintError::Invalid("field `private_key` can't sign".into()))?;
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(signature, &mut token);
        Ok(token)
    }
}
