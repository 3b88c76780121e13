//! What a credential is bound to when it is stored.

/// Length of a destination, in bytes.
pub const BYTES: usize = 32;

/// SHA-256 of where a credential's bytes go and in what form, computed by `seks_service`'s `Service::destination`. Definitions
/// that send a secret to the same place in the same form have equal destinations, however they are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Destination([u8; BYTES]);

impl Destination {
    /// Wraps a digest.
    #[must_use]
    pub fn new(digest: [u8; BYTES]) -> Self {
        Self(digest)
    }

    /// Reads a message's or a record's field; `None` when it isn't [`BYTES`] long.
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
