//! The key that seals credentials on one distribution stream, and its exchange.
//!
//! The node makes an X25519 key pair for each stream and sends the public half in `Hello`. The
//! replica answers with a fresh AES-256-GCM key, sealed to it by HPKE (RFC 9180, base mode,
//! DHKEM(X25519, HKDF-SHA256), AES-256-GCM). Both halves are gone when the stream ends. A recorded
//! stream therefore stays unreadable to an attacker who steals the node's certificate later.

use aes_gcm::{
    Aes256Gcm, Nonce,
    aead::{AeadInOut as _, KeyInit as _},
};
use rustls::crypto::{
    aws_lc_rs::hpke::DH_KEM_X25519_HKDF_SHA256_AES_256 as SUITE,
    hpke::{EncapsulatedSecret, Hpke as _, HpkePrivateKey, HpkePublicKey},
};
use seks_types::secret::Secret;
use zeroize::Zeroize as _;

use super::SESSION_KEY_INFO;

const KEY_BYTES: usize = 32;
const NONCE_BYTES: usize = 12;
const TAG_BYTES: usize = 16;

/// Why sealing or opening failed. The error says nothing about the contents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SessionError {
    /// The other side's public key or encapsulated key is invalid.
    #[error("the session key exchange failed")]
    Exchange,
    /// Wrong key, wrong record, or changed ciphertext.
    #[error("the sealed value does not open")]
    Unreadable,
    /// The operating system has no randomness.
    #[error("no randomness")]
    Randomness,
}

/// A symmetric key for one stream, or for one process's memory. It may seal at most 2^32 values
/// (random 96-bit nonces, NIST SP 800-38D 8.3). A stream needs a few for each credential change.
pub struct SessionKey(Aes256Gcm);

impl SessionKey {
    /// A fresh random key that never leaves this process.
    ///
    /// # Errors
    /// [`SessionError::Randomness`].
    pub fn generate() -> Result<Self, SessionError> {
        let mut bytes = random_key()?;
        let key = Self::new(&bytes);
        bytes.zeroize();
        Ok(key)
    }

    /// A fresh random key, sealed to the holder of `public_key`:
    /// `(key, encapsulated key, ciphertext)`.
    ///
    /// # Errors
    /// [`SessionError::Exchange`] when `public_key` isn't an X25519 key;
    /// [`SessionError::Randomness`].
    pub fn offer(public_key: &[u8]) -> Result<(Self, Vec<u8>, Vec<u8>), SessionError> {
        let mut bytes = random_key()?;
        let to = HpkePublicKey(public_key.to_vec());
        let sealed = SUITE.seal(SESSION_KEY_INFO, b"", &bytes, &to);
        let key = Self::new(&bytes);
        bytes.zeroize();
        let (enc, ciphertext) = sealed.map_err(|_| SessionError::Exchange)?;
        Ok((key, enc.0, ciphertext))
    }

    fn new(bytes: &[u8; KEY_BYTES]) -> Self {
        Self(Aes256Gcm::new(bytes.into()))
    }

    /// Encrypts `plaintext` and binds it to `aad`: `nonce ‖ ciphertext ‖ tag`.
    ///
    /// # Errors
    /// [`SessionError::Randomness`].
    pub fn seal(&self, aad: &[u8], plaintext: &Secret) -> Result<Vec<u8>, SessionError> {
        let mut nonce = [0_u8; NONCE_BYTES];
        getrandom::fill(&mut nonce).map_err(|_| SessionError::Randomness)?;
        let bytes = plaintext.expose();
        // Exact capacity: a growing Vec would leave the plaintext in freed memory. It is encrypted
        // in place.
        let mut out = Vec::with_capacity(NONCE_BYTES + bytes.len() + TAG_BYTES);
        out.extend_from_slice(&nonce);
        out.extend_from_slice(bytes);
        let body = out.get_mut(NONCE_BYTES..).unwrap_or_default();
        let tag = self
            .0
            .encrypt_inout_detached(&Nonce::from(nonce), aad, body.into())
            .map_err(|_| SessionError::Unreadable)?;
        out.extend_from_slice(&tag);
        Ok(out)
    }

    /// Decrypts a value of [`seal`](Self::seal). Key and `aad` must be the same.
    ///
    /// # Errors
    /// [`SessionError::Unreadable`].
    pub fn open(&self, aad: &[u8], sealed: &[u8]) -> Result<Secret, SessionError> {
        let (nonce, rest) = sealed.split_first_chunk::<NONCE_BYTES>().ok_or(SessionError::Unreadable)?;
        let (body, tag) = rest.split_last_chunk::<TAG_BYTES>().ok_or(SessionError::Unreadable)?;
        let mut body = body.to_vec();
        self.0
            .decrypt_inout_detached(&Nonce::from(*nonce), aad, body.as_mut_slice().into(), tag.into())
            .map_err(|_| SessionError::Unreadable)?;
        Ok(Secret::new(body))
    }
}

fn random_key() -> Result<[u8; KEY_BYTES], SessionError> {
    let mut bytes = [0_u8; KEY_BYTES];
    getrandom::fill(&mut bytes).map_err(|_| SessionError::Randomness)?;
    Ok(bytes)
}

/// The node's half of the exchange, for one stream.
pub struct Recipient {
    public: HpkePublicKey,
    private: HpkePrivateKey,
}

impl Recipient {
    /// A fresh X25519 key pair.
    ///
    /// # Errors
    /// [`SessionError::Randomness`].
    pub fn generate() -> Result<Self, SessionError> {
        let (public, private) = SUITE.generate_key_pair().map_err(|_| SessionError::Randomness)?;
        Ok(Self { public, private })
    }

    /// The value of `Hello.session_key`.
    #[must_use]
    pub fn public_key(&self) -> &[u8] {
        &self.public.0
    }

    /// Opens the key that the replica offered.
    ///
    /// # Errors
    /// [`SessionError::Exchange`] when it was sealed to another key, or was changed.
    pub fn accept(&self, enc: &[u8], ciphertext: &[u8]) -> Result<SessionKey, SessionError> {
        let enc = EncapsulatedSecret(enc.to_vec());
        let mut bytes =
            SUITE.open(&enc, SESSION_KEY_INFO, b"", ciphertext, &self.private).map_err(|_| SessionError::Exchange)?;
        let key = <&[u8; KEY_BYTES]>::try_from(bytes.as_slice()).map(SessionKey::new);
        bytes.zeroize();
        key.map_err(|_| SessionError::Exchange)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(text: &str) -> Secret {
        Secret::new(text.into())
    }

    #[test]
    fn what_one_side_seals_the_other_opens() {
        let node = Recipient::generate().unwrap();
        let (replica_key, enc, ciphertext) = SessionKey::offer(node.public_key()).unwrap();
        let node_key = node.accept(&enc, &ciphertext).unwrap();
        let sealed = replica_key.seal(b"record", &secret("sk-real")).unwrap();
        assert_eq!(node_key.open(b"record", &sealed).unwrap().expose(), b"sk-real");
        assert!(!sealed.windows(4).any(|w| w == b"real"));
    }

    #[test]
    fn another_node_another_record_or_a_changed_bit_opens_nothing() {
        let (node, other) = (Recipient::generate().unwrap(), Recipient::generate().unwrap());
        let (key, enc, ciphertext) = SessionKey::offer(node.public_key()).unwrap();
        assert_eq!(other.accept(&enc, &ciphertext).err(), Some(SessionError::Exchange));
        assert_eq!(SessionKey::offer(b"short").err(), Some(SessionError::Exchange));
        let sealed = key.seal(b"record", &secret("sk-real")).unwrap();
        assert!(key.open(b"other record", &sealed).is_err());
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert!(key.open(b"record", &changed).is_err(), "byte {at}");
            assert!(key.open(b"record", &sealed[..at]).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn the_same_secret_never_looks_the_same_twice() {
        let key = SessionKey::generate().unwrap();
        assert_ne!(key.seal(b"", &secret("x")).unwrap(), key.seal(b"", &secret("x")).unwrap());
    }
}
