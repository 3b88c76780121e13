//! The envelope's bytes.
//!
//! | offset | bytes | what |
//! |---|---|---|
//! | 0 | 1 | format: 1, or 2 when the wrapped DEK has another length than a local key's |
//! | 1 | 1 | algorithm: 1 = AES-256-GCM for the data |
//! | 2 | 8 | id of the KEK |
//! | 10 | 2 | format 2 alone: length w of the wrapped DEK, big-endian |
//! | 10 | w = 60 | DEK, wrapped by the KEK; additional data: bytes 0–9. Of a local key: nonce, AES-256-GCM ciphertext and tag |
//! | 10 + w | 12 | nonce of the data |
//! | 22 + w | n + 16 | data, sealed; additional data: 1, algorithm and the record's id, destination included |
//!
//! The data's additional data leaves format and the KEK's id out, so that a rotation re-wraps
//! without opening the secret.

use aes_gcm::{Aes256Gcm, KeyInit as _, aead::AeadInOut as _};
use bytes::Bytes;
use seks_types::{destination::Destination, secret::Secret};

use super::{
    RecordId, SealError, local,
    provider::{DEK_BYTES, Dek, KekId, KekProvider},
};

const FORMAT: u8 = 1;
/// With the length of the wrapped key in front of it.
const FORMAT_ANY_LENGTH: u8 = 2;
const ALGORITHM: u8 = 1;
const NONCE: usize = 12;
const TAG: usize = 16;
const HEADER: usize = 10;

/// What an envelope of a local key adds to the length of its secret, in bytes.
pub const OVERHEAD: usize = HEADER + local::WRAPPED + NONCE + TAG;

/// The readable part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The KEK that wraps the DEK.
    pub kek: KekId,
}

impl Header {
    /// Reads it.
    ///
    /// # Errors
    /// [`SealError::Malformed`] for anything that this version can't have written.
    pub fn parse(envelope: &[u8]) -> Result<Self, SealError> {
        Parts::split(envelope).map(|parts| Self { kek: parts.kek })
    }
}

/// An envelope, taken apart.
pub(super) struct Parts<'a> {
    pub(super) header: &'a [u8; HEADER],
    pub(super) kek: KekId,
    pub(super) wrapped: &'a [u8],
    /// Nonce, data and tag.
    sealed: &'a [u8],
}

impl<'a> Parts<'a> {
    pub(super) fn split(envelope: &'a [u8]) -> Result<Self, SealError> {
        let [format, algorithm, ..] = envelope else { return Err(SealError::Malformed("it is truncated")) };
        if !matches!(*format, FORMAT | FORMAT_ANY_LENGTH) {
            return Err(SealError::Malformed("it is of an unknown format"));
        }
        if *algorithm != ALGORITHM {
            return Err(SealError::Malformed("it is of an unknown algorithm"));
        }
        Self::fields(*format, envelope).ok_or(SealError::Malformed("it is truncated"))
    }

    fn fields(format: u8, envelope: &'a [u8]) -> Option<Self> {
        let (header, mut rest) = envelope.split_first_chunk::<HEADER>()?;
        let kek = KekId(*header.last_chunk()?);
        let mut length = local::WRAPPED;
        if format == FORMAT_ANY_LENGTH {
            let (bytes, after) = rest.split_first_chunk::<2>()?;
            (length, rest) = (u16::from_be_bytes(*bytes).into(), after);
        }
        let (wrapped, sealed) = rest.split_at_checked(length)?;
        (sealed.len() >= NONCE + TAG).then_some(Self { header, kek, wrapped, sealed })
    }
}

pub(super) async fn seal(kek: &dyn KekProvider, id: &RecordId<'_>, plaintext: &Secret) -> Result<Bytes, SealError> {
    let mut dek = Dek::new([0; DEK_BYTES]);
    getrandom::fill(dek.as_mut_slice()).map_err(SealError::Random)?;
    let front = wrap(kek, &dek).await?;
    // The exact length: a growing Vec would leave copies of the plaintext behind. It is encrypted
    // where it lies.
    let mut out = Vec::with_capacity(front.len() + NONCE + plaintext.expose().len() + TAG);
    out.extend_from_slice(&front);
    let mut nonce = [0; NONCE];
    getrandom::fill(&mut nonce).map_err(SealError::Random)?;
    out.extend_from_slice(&nonce);
    let start = out.len();
    out.extend_from_slice(plaintext.expose());
    let tag = Aes256Gcm::new((&*dek).into())
        .encrypt_inout_detached((&nonce).into(), &additional(id), out.get_mut(start..).unwrap_or_default().into())
        .map_err(|_| SealError::Rejected)?;
    out.extend_from_slice(&tag);
    Ok(out.into())
}

/// Opens an envelope whose DEK is unwrapped already.
pub(super) fn open(dek: &Dek, id: &RecordId<'_>, parts: &Parts<'_>) -> Result<Secret, SealError> {
    let fields = || {
        let (nonce, rest) = parts.sealed.split_first_chunk::<NONCE>()?;
        let (data, tag) = rest.split_last_chunk::<TAG>()?;
        Some((nonce, data, tag))
    };
    let (nonce, data, tag) = fields().ok_or(SealError::Rejected)?;
    let mut data = zeroize::Zeroizing::new(data.to_vec());
    Aes256Gcm::new((&**dek).into())
        .decrypt_inout_detached(nonce.into(), &additional(id), data.as_mut_slice().into(), tag.into())
        .map_err(|_| SealError::Rejected)?;
    Ok(Secret::new(std::mem::take(&mut *data)))
}

/// The same envelope with its DEK wrapped by `to`. The data stays byte for byte what it was.
pub(super) async fn rewrap(dek: &Dek, to: &dyn KekProvider, parts: &Parts<'_>) -> Result<Bytes, SealError> {
    let mut out = wrap(to, dek).await?;
    out.extend_from_slice(parts.sealed);
    Ok(out.into())
}

/// Header and wrapped DEK.
async fn wrap(kek: &dyn KekProvider, dek: &Dek) -> Result<Vec<u8>, SealError> {
    let mut header = [FORMAT; HEADER];
    let [format, algorithm, id @ ..] = &mut header;
    *algorithm = ALGORITHM;
    *id = kek.id().0;
    let local = kek.is_local();
    if !local {
        *format = FORMAT_ANY_LENGTH;
    }
    let wrapped = kek.wrap(&header, dek).await?;
    let mut out = header.to_vec();
    if local {
        if wrapped.len() != local::WRAPPED {
            return Err(SealError::Malformed("a wrapped key of another length"));
        }
    } else {
        let length =
            u16::try_from(wrapped.len()).map_err(|_| SealError::Malformed("a wrapped key that is too long"))?;
        out.extend_from_slice(&length.to_be_bytes());
    }
    out.extend_from_slice(&wrapped);
    Ok(out)
}

/// Every part with its length in front: no two records share an encoding, whatever their names
/// hold.
fn additional(id: &RecordId<'_>) -> Vec<u8> {
    let parts =
        [b"seks/v1/record", id.tenant.as_bytes(), id.kind.as_bytes(), id.name.as_bytes(), id.store_id.as_bytes()];
    let mut out = Vec::with_capacity(6 + parts.iter().map(|part| part.len() + 8).sum::<usize>());
    out.extend([FORMAT, ALGORITHM]);
    for part in parts {
        out.extend_from_slice(&(part.len() as u64).to_be_bytes());
        out.extend_from_slice(part);
    }
    out.extend_from_slice(&id.version.to_be_bytes());
    // The last part, and of one length: with and without it are told apart.
    out.extend_from_slice(id.destination.as_ref().map_or(&[], Destination::as_bytes));
    out
}
