//! The envelope's bytes.
//!
//! | offset | bytes | what |
//! |---|---|---|
//! | 0 | 1 | format: 1 |
//! | 1 | 1 | algorithm: 1 = AES-256-GCM for both layers |
//! | 2 | 8 | id of the KEK |
//! | 10 | 12 | nonce of the wrap |
//! | 22 | 48 | DEK, wrapped; additional data: bytes 0–9 |
//! | 70 | 12 | nonce of the data |
//! | 82 | n + 16 | data, sealed; additional data: format, algorithm and the record's id, destination included |
//!
//! The data's additional data leaves the KEK's id out, so that a rotation re-wraps without opening the secret.

use aes_gcm::{Aes256Gcm, KeyInit as _, aead::AeadInOut as _};
use bytes::Bytes;
use seks_types::{destination::Destination, secret::Secret};
use zeroize::Zeroizing;

use super::{
    RecordId, SealError,
    kek::{self, Kek, KekId},
};

const FORMAT: u8 = 1;
const ALGORITHM: u8 = 1;
const NONCE: usize = 12;
const TAG: usize = 16;
const HEADER: usize = 10;
const WRAPPED: usize = kek::BYTES + TAG;

/// What an envelope adds to the length of its secret.
pub const OVERHEAD: usize = HEADER + NONCE + WRAPPED + NONCE + TAG;

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

struct Parts<'a> {
    header: &'a [u8; HEADER],
    kek: KekId,
    wrap_nonce: &'a [u8; NONCE],
    wrapped: &'a [u8; WRAPPED],
    nonce: &'a [u8; NONCE],
    data: &'a [u8],
    tag: &'a [u8; TAG],
}

impl<'a> Parts<'a> {
    fn split(envelope: &'a [u8]) -> Result<Self, SealError> {
        let [format, algorithm, ..] = envelope else { return Err(SealError::Malformed("it is truncated")) };
        if *format != FORMAT {
            return Err(SealError::Malformed("it is of an unknown format"));
        }
        if *algorithm != ALGORITHM {
            return Err(SealError::Malformed("it is of an unknown algorithm"));
        }
        Self::fields(envelope).ok_or(SealError::Malformed("it is truncated"))
    }

    fn fields(envelope: &'a [u8]) -> Option<Self> {
        let (header, rest) = envelope.split_first_chunk::<HEADER>()?;
        let kek = KekId(*header.last_chunk()?);
        let (wrap_nonce, rest) = rest.split_first_chunk()?;
        let (wrapped, rest) = rest.split_first_chunk()?;
        let (nonce, rest) = rest.split_first_chunk()?;
        let (data, tag) = rest.split_last_chunk()?;
        Some(Self { header, kek, wrap_nonce, wrapped, nonce, data, tag })
    }
}

pub(super) fn seal(kek: &Kek, id: &RecordId<'_>, plaintext: &Secret) -> Result<Bytes, SealError> {
    let mut dek = Zeroizing::new([0_u8; kek::BYTES]);
    getrandom::fill(dek.as_mut_slice()).map_err(SealError::Random)?;
    // The exact length: a growing Vec would leave copies of the plaintext behind. It is encrypted where it lies.
    let mut out = Vec::with_capacity(OVERHEAD + plaintext.expose().len());
    wrap(kek, &dek, &mut out)?;
    let nonce = fresh_nonce()?;
    out.extend_from_slice(&nonce);
    let start = out.len();
    out.extend_from_slice(plaintext.expose());
    let tag = Aes256Gcm::new((&*dek).into())
        .encrypt_inout_detached((&nonce).into(), &additional(id), out.get_mut(start..).unwrap_or_default().into())
        .map_err(|_| SealError::Rejected)?;
    out.extend_from_slice(&tag);
    Ok(out.into())
}

pub(super) fn open(kek: &Kek, id: &RecordId<'_>, envelope: &[u8]) -> Result<Secret, SealError> {
    let parts = Parts::split(envelope)?;
    let dek = unwrap(kek, &parts)?;
    let mut data = Zeroizing::new(parts.data.to_vec());
    Aes256Gcm::new((&*dek).into())
        .decrypt_inout_detached(parts.nonce.into(), &additional(id), data.as_mut_slice().into(), parts.tag.into())
        .map_err(|_| SealError::Rejected)?;
    Ok(Secret::new(std::mem::take(&mut *data)))
}

/// The data stays byte for byte what it was.
pub(super) fn rewrap(from: &Kek, to: &Kek, envelope: &[u8]) -> Result<Bytes, SealError> {
    let parts = Parts::split(envelope)?;
    let dek = unwrap(from, &parts)?;
    let mut out = Vec::with_capacity(envelope.len());
    wrap(to, &dek, &mut out)?;
    out.extend_from_slice(envelope.get(out.len()..).unwrap_or_default());
    Ok(out.into())
}

/// Appends header, nonce and wrapped DEK.
fn wrap(kek: &Kek, dek: &[u8; kek::BYTES], out: &mut Vec<u8>) -> Result<(), SealError> {
    let mut header = [FORMAT; HEADER];
    let [_, algorithm, id @ ..] = &mut header;
    *algorithm = ALGORITHM;
    *id = kek.id().0;
    let nonce = fresh_nonce()?;
    let mut wrapped = Zeroizing::new(*dek);
    let tag = kek
        .cipher()
        .encrypt_inout_detached((&nonce).into(), &header, wrapped.as_mut_slice().into())
        .map_err(|_| SealError::Rejected)?;
    out.extend_from_slice(&header);
    out.extend_from_slice(&nonce);
    out.extend_from_slice(wrapped.as_slice());
    out.extend_from_slice(&tag);
    Ok(())
}

fn unwrap(kek: &Kek, parts: &Parts<'_>) -> Result<Zeroizing<[u8; kek::BYTES]>, SealError> {
    let (wrapped, tag) = parts.wrapped.split_at(kek::BYTES);
    let (Ok(mut dek), Ok(tag)) =
        (<[u8; kek::BYTES]>::try_from(wrapped).map(Zeroizing::new), <&[u8; TAG]>::try_from(tag))
    else {
        return Err(SealError::Rejected);
    };
    kek.cipher()
        .decrypt_inout_detached(parts.wrap_nonce.into(), parts.header, dek.as_mut_slice().into(), tag.into())
        .map_err(|_| SealError::Rejected)?;
    Ok(dek)
}

fn fresh_nonce() -> Result<[u8; NONCE], SealError> {
    let mut nonce = [0; NONCE];
    getrandom::fill(&mut nonce).map_err(SealError::Random)?;
    Ok(nonce)
}

/// Every part with its length in front: no two records share an encoding, whatever their names hold.
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
