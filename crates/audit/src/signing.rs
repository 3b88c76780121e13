//! The key that exports are signed with: Ed25519. The control plane holds it; anybody may have the
//! public half.

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use data_encoding::{BASE64, HEXLOWER};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

const PUBLIC_BYTES: usize = 32;
/// The DER in front of an Ed25519 public key in a SubjectPublicKeyInfo (RFC 8410).
const SPKI_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
const PEM_BEGIN: &str = "-----BEGIN PUBLIC KEY-----";
const PEM_END: &str = "-----END PUBLIC KEY-----";

/// Why bytes are not a signing key, or a signature does not hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SigningError {
    /// Not a key of this kind.
    #[error("not an Ed25519 public key in PEM")]
    Key,
    /// Another key signed it, or the signed bytes were changed.
    #[error("the signature does not match")]
    Signature,
    /// The operating system has no randomness.
    #[error("no randomness")]
    Randomness,
}

/// The private key.
pub struct SigningKey {
    pair: Ed25519KeyPair,
    seed: Zeroizing<[u8; 32]>,
}

impl SigningKey {
    /// A new key.
    ///
    /// # Errors
    /// [`SigningError::Randomness`].
    pub fn generate() -> Result<Self, SigningError> {
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).map_err(|_| SigningError::Randomness)?;
        Self::from_bytes(&seed)
    }

    /// The key that [`to_bytes`](Self::to_bytes) wrote.
    ///
    /// # Errors
    /// [`SigningError::Key`].
    pub fn from_bytes(seed: &[u8]) -> Result<Self, SigningError> {
        let seed = Zeroizing::new(<[u8; 32]>::try_from(seed).map_err(|_| SigningError::Key)?);
        let pair = Ed25519KeyPair::from_seed_unchecked(seed.as_ref()).map_err(|_| SigningError::Key)?;
        Ok(Self { pair, seed })
    }

    /// The seed. For the control plane's seal.
    #[must_use]
    pub fn to_bytes(&self) -> Zeroizing<[u8; 32]> {
        self.seed.clone()
    }

    /// Signs `message`.
    #[must_use]
    pub fn sign(&self, message: &[u8]) -> Vec<u8> {
        self.pair.sign(message).as_ref().to_vec()
    }

    /// The public half.
    #[must_use]
    pub fn public(&self) -> VerifyingKey {
        let mut bytes = [0; PUBLIC_BYTES];
        bytes.iter_mut().zip(self.pair.public_key().as_ref()).for_each(|(place, byte)| *place = *byte);
        VerifyingKey(bytes)
    }
}

/// The public key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VerifyingKey([u8; PUBLIC_BYTES]);

impl VerifyingKey {
    /// Reads PEM.
    ///
    /// # Errors
    /// [`SigningError::Key`].
    pub fn from_pem(text: &str) -> Result<Self, SigningError> {
        let body = text.trim().strip_prefix(PEM_BEGIN).and_then(|rest| rest.strip_suffix(PEM_END));
        let body: String = body.ok_or(SigningError::Key)?.split_whitespace().collect();
        let der = BASE64.decode(body.as_bytes()).map_err(|_| SigningError::Key)?;
        let key = der.strip_prefix(&SPKI_PREFIX).ok_or(SigningError::Key)?;
        key.try_into().map(Self).map_err(|_| SigningError::Key)
    }

    /// As PEM, which openssl reads.
    #[must_use]
    pub fn to_pem(&self) -> String {
        let der = [&SPKI_PREFIX[..], &self.0].concat();
        format!("{PEM_BEGIN}\n{}\n{PEM_END}\n", BASE64.encode(&der))
    }

    /// Its name: the first 8 bytes of its SHA-256, in hexadecimal.
    #[must_use]
    pub fn id(&self) -> String {
        HEXLOWER.encode(Sha256::digest(self.0).get(..8).unwrap_or_default())
    }

    /// Checks a signature.
    ///
    /// # Errors
    /// [`SigningError::Signature`].
    pub fn verify(&self, message: &[u8], signature: &[u8]) -> Result<(), SigningError> {
        let key = UnparsedPublicKey::new(&ED25519, &self.0);
        key.verify(message, signature).map_err(|_| SigningError::Signature)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_holds_for_its_message_and_its_key_alone() {
        let (key, other) = (SigningKey::generate().unwrap(), SigningKey::generate().unwrap());
        let key = SigningKey::from_bytes(key.to_bytes().as_ref()).unwrap();
        let signature = key.sign(b"manifest");
        let public = VerifyingKey::from_pem(&key.public().to_pem()).unwrap();
        assert_eq!((public, public.verify(b"manifest", &signature)), (key.public(), Ok(())));
        assert_eq!(public.verify(b"manifesT", &signature), Err(SigningError::Signature));
        assert_eq!(other.public().verify(b"manifest", &signature), Err(SigningError::Signature));
        assert_eq!(VerifyingKey::from_pem("nothing"), Err(SigningError::Key));
        assert_ne!(public.id(), other.public().id());
    }
}
