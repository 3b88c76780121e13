//! Encryption of audit files.
//!
//! The control plane has an X25519 key pair, the audit key. The writer of a file generates a new
//! AES-256-GCM key for it, and encapsulates that key to the audit key with HPKE (RFC 9180, base
//! mode, DHKEM(X25519, HKDF-SHA256), AES-256-GCM). The writer erases the key when the file is
//! complete. From then on only the control plane can read the file.

use std::{fmt, sync::Arc};

use aes_gcm::{
    Aes256Gcm, Nonce,
    aead::{AeadInOut as _, KeyInit as _},
};
use data_encoding::HEXLOWER;
use parking_lot::RwLock;
use rustls::crypto::{
    aws_lc_rs::hpke::DH_KEM_X25519_HKDF_SHA256_AES_256 as SUITE,
    hpke::{EncapsulatedSecret, Hpke as _, HpkePrivateKey, HpkePublicKey},
};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

const INFO: &[u8] = b"seks/v1/audit-file-key";
const KEY_BYTES: usize = 32;
/// Bytes that the authentication tag adds to a sealed part.
pub const TAG_BYTES: usize = 16;
/// An encapsulated file key: the ephemeral public key, the encrypted key and its tag.
pub const SEALED_KEY_BYTES: usize = KEY_BYTES + KEY_BYTES + TAG_BYTES;

/// Why sealing or opening failed. The error says nothing about the contents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// The bytes are not an X25519 key.
    #[error("not an audit key")]
    Key,
    /// Another audit key is needed, or the file's header was changed.
    #[error("the file's key does not open")]
    FileKey,
    /// The contents were changed, or moved within the file.
    #[error("the sealed contents do not open")]
    Contents,
    /// The operating system has no randomness.
    #[error("no randomness")]
    Randomness,
}

/// Names an audit key: the first 8 bytes of the public key's SHA-256.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct KeyId(pub [u8; 8]);

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&HEXLOWER.encode(&self.0))
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&HEXLOWER.encode(&self.0))
    }
}

/// The public half of the audit key. Nodes have it.
#[derive(Clone, PartialEq, Eq)]
pub struct AuditPublicKey([u8; KEY_BYTES]);

impl fmt::Debug for AuditPublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AuditPublicKey({})", self.id())
    }
}

impl AuditPublicKey {
    /// The key of these bytes.
    ///
    /// # Errors
    /// [`SealError::Key`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, SealError> {
        bytes.try_into().map(Self).map_err(|_| SealError::Key)
    }

    /// Its bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Its name.
    #[must_use]
    pub fn id(&self) -> KeyId {
        let digest: [u8; 32] = Sha256::digest(self.0).into();
        let mut id = [0; 8];
        id.copy_from_slice(digest.first_chunk::<8>().unwrap_or(&[0; 8]));
        KeyId(id)
    }

    /// A fresh key for one file whose header is `header`, and that key, encapsulated.
    ///
    /// # Errors
    /// [`SealError::Randomness`], [`SealError::Key`].
    pub fn file_key(&self, header: &[u8]) -> Result<(FileKey, [u8; SEALED_KEY_BYTES]), SealError> {
        let mut key = Zeroizing::new([0_u8; KEY_BYTES]);
        getrandom::fill(key.as_mut()).map_err(|_| SealError::Randomness)?;
        let (enc, ciphertext) =
            SUITE.seal(INFO, header, key.as_ref(), &HpkePublicKey(self.0.to_vec())).map_err(|_| SealError::Key)?;
        let sealed = [enc.0, ciphertext].concat();
        let sealed = sealed.try_into().map_err(|_| SealError::Key)?;
        Ok((FileKey(Aes256Gcm::new((&*key).into())), sealed))
    }
}

/// The audit key of a control plane.
pub struct AuditKeyPair {
    public: AuditPublicKey,
    private: HpkePrivateKey,
}

impl AuditKeyPair {
    /// A new key pair.
    ///
    /// # Errors
    /// [`SealError::Randomness`].
    pub fn generate() -> Result<Self, SealError> {
        let (public, private) = SUITE.generate_key_pair().map_err(|_| SealError::Randomness)?;
        Ok(Self { public: AuditPublicKey::from_bytes(&public.0)?, private })
    }

    /// The key pair that [`to_bytes`](Self::to_bytes) wrote.
    ///
    /// # Errors
    /// [`SealError::Key`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, SealError> {
        let (public, private) = bytes.split_at_checked(KEY_BYTES).ok_or(SealError::Key)?;
        if private.len() != KEY_BYTES {
            return Err(SealError::Key);
        }
        Ok(Self { public: AuditPublicKey::from_bytes(public)?, private: HpkePrivateKey::from(private.to_vec()) })
    }

    /// `public key ‖ private key`. For the control plane's seal.
    #[must_use]
    pub fn to_bytes(&self) -> Zeroizing<Vec<u8>> {
        Zeroizing::new([self.public.as_bytes(), self.private.secret_bytes()].concat())
    }

    /// The public half.
    #[must_use]
    pub fn public(&self) -> &AuditPublicKey {
        &self.public
    }

    /// The same pair as the only one of a control plane.
    #[cfg(test)]
    pub(crate) fn alone(&self) -> AuditKeys {
        Self::from_bytes(&self.to_bytes()).unwrap().into()
    }

    /// The key of the file whose header is `header`.
    ///
    /// # Errors
    /// [`SealError::FileKey`].
    pub fn open(&self, header: &[u8], sealed: &[u8; SEALED_KEY_BYTES]) -> Result<FileKey, SealError> {
        FileKey::from_bytes(&self.open_bytes(header, sealed)?)
    }

    /// The bytes of that key, for the node that wrote the file.
    ///
    /// # Errors
    /// [`SealError::FileKey`].
    pub(crate) fn open_bytes(
        &self,
        header: &[u8],
        sealed: &[u8; SEALED_KEY_BYTES],
    ) -> Result<Zeroizing<Vec<u8>>, SealError> {
        let (enc, ciphertext) = sealed.split_at(KEY_BYTES);
        let enc = EncapsulatedSecret(enc.to_vec());
        let key = SUITE.open(&enc, INFO, header, ciphertext, &self.private).map_err(|_| SealError::FileKey)?;
        Ok(Zeroizing::new(key))
    }
}

/// The audit keys of a control plane: the one that files are sealed to from now on, and those of
/// before a rotation, which older files need.
pub struct AuditKeys(RwLock<Vec<Arc<AuditKeyPair>>>);

/// Keys that are kept at most: one rotation a month for ten years.
const MAX_KEYS: usize = 120;

impl AuditKeys {
    /// The keys that [`to_bytes`](Self::to_bytes) wrote.
    ///
    /// # Errors
    /// [`SealError::Key`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, SealError> {
        let (pairs, rest) = bytes.as_chunks::<{ 2 * KEY_BYTES }>();
        if pairs.is_empty() || pairs.len() > MAX_KEYS || !rest.is_empty() {
            return Err(SealError::Key);
        }
        let keys: Result<_, _> = pairs.iter().map(|pair| AuditKeyPair::from_bytes(pair).map(Arc::new)).collect();
        Ok(Self(RwLock::new(keys?)))
    }

    /// One pair after the other, the current one first. For the control plane's seal. One pair is
    /// what control planes without rotation read; they refuse to start with more.
    #[must_use]
    pub fn to_bytes(&self) -> Zeroizing<Vec<u8>> {
        let mut bytes = Zeroizing::new(Vec::with_capacity(2 * KEY_BYTES * self.0.read().len()));
        self.0.read().iter().for_each(|pair| bytes.extend_from_slice(&pair.to_bytes()));
        bytes
    }

    /// Makes a new pair the current one.
    ///
    /// # Errors
    /// [`SealError::Randomness`]; [`SealError::Key`] when there are [`MAX_KEYS`] already.
    pub fn rotate(&self) -> Result<(), SealError> {
        let mut keys = self.0.write();
        if keys.len() >= MAX_KEYS {
            return Err(SealError::Key);
        }
        keys.insert(0, Arc::new(AuditKeyPair::generate()?));
        Ok(())
    }

    /// Takes over the keys of `newer`. Returns whether another key is the current one now.
    pub fn replace(&self, newer: Self) -> bool {
        let newer = newer.0.into_inner();
        let mut keys = self.0.write();
        let current = |keys: &[Arc<AuditKeyPair>]| keys.first().map(|pair| pair.public.id());
        let is_other = current(&newer) != current(&keys);
        *keys = newer;
        is_other
    }

    /// The public key that files are sealed to from now on.
    #[must_use]
    pub fn public(&self) -> AuditPublicKey {
        self.0.read().first().map_or(AuditPublicKey([0; KEY_BYTES]), |pair| pair.public.clone()) // never empty
    }

    /// The pair of this name.
    #[must_use]
    pub fn get(&self, id: KeyId) -> Option<Arc<AuditKeyPair>> {
        self.0.read().iter().find(|pair| pair.public.id() == id).cloned()
    }
}

impl From<AuditKeyPair> for AuditKeys {
    fn from(pair: AuditKeyPair) -> Self {
        Self(RwLock::new(vec![Arc::new(pair)]))
    }
}

impl From<AuditKeyPair> for Arc<AuditKeys> {
    fn from(pair: AuditKeyPair) -> Self {
        Self::new(pair.into())
    }
}

/// The key of one file. Each part of the file has a number, which is its nonce.
pub struct FileKey(Aes256Gcm);

impl FileKey {
    /// The key of these bytes, as a control plane gives it to the node that wrote the file.
    ///
    /// # Errors
    /// [`SealError::FileKey`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, SealError> {
        let key = <&[u8; KEY_BYTES]>::try_from(bytes).map_err(|_| SealError::FileKey)?;
        Ok(Self(Aes256Gcm::new(key.into())))
    }

    /// Encrypts `buffer[from..]` in place and appends the tag.
    ///
    /// # Errors
    /// [`SealError::Contents`] when it is longer than AES-GCM allows (64 GiB).
    pub fn seal(&self, part: u64, aad: &[u8], buffer: &mut Vec<u8>, from: usize) -> Result<(), SealError> {
        let body = buffer.get_mut(from..).unwrap_or_default();
        let tag = self.0.encrypt_inout_detached(&nonce(part), aad, body.into()).map_err(|_| SealError::Contents)?;
        buffer.extend_from_slice(&tag);
        Ok(())
    }

    /// Decrypts what [`seal`](Self::seal) made. Part and `aad` must be the same.
    ///
    /// # Errors
    /// [`SealError::Contents`].
    pub fn open(&self, part: u64, aad: &[u8], sealed: &[u8]) -> Result<Vec<u8>, SealError> {
        let (body, tag) = sealed.split_last_chunk::<TAG_BYTES>().ok_or(SealError::Contents)?;
        let mut body = body.to_vec();
        let opened = self.0.decrypt_inout_detached(&nonce(part), aad, body.as_mut_slice().into(), tag.into());
        opened.map_err(|_| SealError::Contents)?;
        Ok(body)
    }
}

fn nonce(part: u64) -> Nonce<aes_gcm::aead::consts::U12> {
    let mut nonce = [0; 12];
    if let Some(place) = nonce.last_chunk_mut::<8>() {
        *place = part.to_be_bytes();
    }
    Nonce::from(nonce)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_control_plane_reads_a_file_and_only_unchanged() {
        let (key, other) = (AuditKeyPair::generate().unwrap(), AuditKeyPair::generate().unwrap());
        let key = AuditKeyPair::from_bytes(&key.to_bytes()).unwrap();
        let (file, sealed) = key.public().file_key(b"header").unwrap();
        let mut bytes = b"clear".to_vec();
        bytes.extend_from_slice(b"agent ci-bot");
        file.seal(7, b"aad", &mut bytes, 5).unwrap();
        assert!(bytes.starts_with(b"clear") && !bytes.windows(6).any(|w| w == b"ci-bot"));
        let opened = key.open(b"header", &sealed).unwrap();
        assert_eq!(opened.open(7, b"aad", &bytes[5..]).unwrap(), b"agent ci-bot");
        for at in 5..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            assert_eq!(opened.open(7, b"aad", &changed[5..]), Err(SealError::Contents), "byte {at}");
        }
        assert!(opened.open(8, b"aad", &bytes[5..]).is_err() && opened.open(7, b"", &bytes[5..]).is_err());
        assert_eq!(key.open(b"another", &sealed).err(), Some(SealError::FileKey));
        assert_eq!(other.open(b"header", &sealed).err(), Some(SealError::FileKey));
        assert_ne!(key.public().id(), other.public().id());
    }

    #[test]
    fn a_rotation_keeps_the_earlier_keys_and_seals_to_the_new_one() {
        let keys = AuditKeys::from(AuditKeyPair::generate().unwrap());
        let (old, before) = (keys.public(), keys.to_bytes());
        keys.rotate().unwrap();
        assert_ne!(keys.public(), old);
        let again = AuditKeys::from_bytes(&keys.to_bytes()).unwrap();
        assert_eq!(again.public(), keys.public());
        assert!(again.get(old.id()).is_some() && again.get(KeyId([0; 8])).is_none());
        assert!(AuditKeyPair::from_bytes(&keys.to_bytes()).is_err(), "a version without rotation does not start");
        assert_eq!(AuditKeyPair::from_bytes(&before).unwrap().public(), &old, "and reads what was not rotated");
        let running = AuditKeys::from_bytes(&before).unwrap();
        assert!(running.replace(again) && running.public() == keys.public());
        assert!(!running.replace(AuditKeys::from_bytes(&keys.to_bytes()).unwrap()));
        for damaged in [&[][..], &before[1..], &[0; 65]] {
            assert!(AuditKeys::from_bytes(damaged).is_err());
        }
    }
}
