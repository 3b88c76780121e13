//! What replica and node must agree on about the table, beyond the messages themselves.

pub mod checksum;
pub mod session;

use seks_types::destination::Destination;

pub use self::{
    checksum::TableChecksum,
    session::{Recipient, SessionError, SessionKey},
};

/// Protocol version in `Hello`.
pub const PROTOCOL: u32 = 1;

/// Largest `Chunk.changes`, in bytes: a revocation never waits behind more than this.
pub const CHUNK_BYTES: usize = 64 * 1024;

/// Largest message of either side that the other decodes, in bytes: a record that is larger than a chunk travels alone.
pub const MESSAGE_BYTES: usize = 8 * 1024 * 1024;

/// What a node says it can do. A record that needs a feature which the node doesn't name is withheld from it: an old node must
/// not ignore a new rule and inject anyway.
pub mod features {
    /// Bearer, raw or prefixed Authorization, named headers, Basic, query, path.
    pub const INJECT_V1: &str = "inject-v1";
    /// Cedar policies over the schema of contract §8.
    pub const POLICY_V1: &str = "policy-v1";
    /// AWS Signature Version 4: verified, and made again.
    pub const AWS_SIGV4_V1: &str = "aws-sigv4-v1";
    /// What a grant may need: all of this build.
    pub const ALL: &[&str] = &[INJECT_V1, POLICY_V1, AWS_SIGV4_V1];
    /// Takes several deltas in one message. No grant needs it.
    pub const DELTAS: &str = "deltas";
    /// Checks that a credential is used at the destination that it is bound to. A node without it is sent only credentials for which
    /// the replica has checked that.
    pub const BINDING_V1: &str = "binding-v1";
    /// Reads what a record requires (`TableToken.requires`), and refuses that record alone when it lacks it. A record that requires
    /// something is withheld from a node without this feature.
    pub const RECORD_FEATURES_V1: &str = "record-features-v1";
}

/// The HPKE `info` of the session key: ties the ciphertext to this protocol and use.
pub const SESSION_KEY_INFO: &[u8] = b"seks/v1/session-key";

/// Additional data of a credential that is sealed to a node: moved to another record, version or epoch it doesn't open.
#[must_use]
pub fn credential_aad(epoch: &str, tenant: &str, name: &str, version: u32) -> Vec<u8> {
    // Names can't hold a NUL, so the concatenation is unambiguous.
    let mut aad = Vec::with_capacity(epoch.len() + tenant.len() + name.len() + 24);
    for part in ["seks/v1/node", epoch, tenant, name] {
        aad.extend_from_slice(part.as_bytes());
        aad.push(0);
    }
    aad.extend_from_slice(&version.to_be_bytes());
    aad
}

/// As [`credential_aad`], of a credential that is bound to a destination.
#[must_use]
pub fn bound_credential_aad(
    epoch: &str,
    tenant: &str,
    name: &str,
    version: u32,
    destination: Option<&Destination>,
) -> Vec<u8> {
    let mut aad = credential_aad(epoch, tenant, name, version);
    // The version is the last part and has a fixed length: with and without a destination are told apart.
    aad.extend_from_slice(destination.map_or(&[], |destination| destination.as_bytes()));
    aad
}
