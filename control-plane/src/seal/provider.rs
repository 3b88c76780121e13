//! The interface of a key-encryption key, independent of where the key is kept.
//!
//! To add a provider (a KMS, an HSM), implement [`KekProvider`] in a file beside
//! [`local`](super::local), and give `SealKind` a variant that makes one. `seal/tests/remote.rs`
//! has a stand-in that shows which faults a provider must handle.

use std::fmt;

use data_encoding::HEXLOWER;
use futures_util::future::BoxFuture;
use zeroize::Zeroizing;

use super::SealError;

/// Length of a data-encryption key, in bytes.
pub const DEK_BYTES: usize = 32;

/// A data-encryption key in the clear: wiped when dropped.
pub type Dek = Zeroizing<[u8; DEK_BYTES]>;

/// A KEK's name in envelopes, logs and errors. Of a local key: the first 64 bits of a hash of the
/// key. The key has 256 random bits, so the hash can't be searched. Of a key elsewhere: the first
/// 64 bits of a hash of its name there.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct KekId(pub [u8; 8]);

impl fmt::Display for KekId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        HEXLOWER.encode_write(&self.0, f)
    }
}

impl fmt::Debug for KekId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// One key-encryption key: wraps and unwraps data keys. The [`Sealer`](super::Sealer) limits the
/// duration and the rate of calls, and caches unwrapped keys. A provider only makes the call.
pub trait KekProvider: Send + Sync + 'static {
    /// The key's name in envelopes. It never changes, and no other key has it.
    fn id(&self) -> KekId;

    /// Wraps `dek`. `header` is bound to the result: with another header it doesn't unwrap. The
    /// result has at most 64 KiB.
    ///
    /// # Errors
    /// [`SealError::Random`]; [`SealError::KekUnavailable`] when the key can't be asked.
    fn wrap<'a>(&'a self, header: &'a [u8], dek: &'a Dek) -> BoxFuture<'a, Result<Vec<u8>, SealError>>;

    /// Unwraps what [`wrap`](Self::wrap) has made with the same `header`.
    ///
    /// # Errors
    /// [`SealError::Rejected`] for anything else; [`SealError::KekUnavailable`] when the key can't
    /// be asked.
    fn unwrap<'a>(&'a self, header: &'a [u8], wrapped: &'a [u8]) -> BoxFuture<'a, Result<Dek, SealError>>;

    /// Whether the key is in this process. Its wrapped keys have 60 bytes then, and
    /// [`unwrap_now`](Self::unwrap_now) answers.
    fn is_local(&self) -> bool {
        false
    }

    /// As [`unwrap`](Self::unwrap), at once; `None` when the key isn't in this process. A key that
    /// is needs no cache.
    fn unwrap_now(&self, _header: &[u8], _wrapped: &[u8]) -> Option<Result<Dek, SealError>> {
        None
    }
}
