//! The destination that a stored credential is bound to.

/// Length of a destination, in bytes.
pub const BYTES: usize = 32;

/// SHA-256 of where a credential's bytes are sent and in what form, computed by
/// `Service::destination` in `seks_service`. Definitions with the same place and form have equal
/// destinations, however they are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Destination([u8; BYTES]);

impl Destination {
    /// Wraps a digest.
    #[must_use]
    pub fn new(digest: [u8; BYTES]) -> Self {
        Self(digest)
    }

    /// Reads a field of a message or a record. `None` when it is not [`BYTES`] long.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// The digest, for a message or a record.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}
