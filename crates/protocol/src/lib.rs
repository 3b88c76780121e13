//! What replica and node must agree on beyond the messages.

pub mod checksum;
pub mod session;

use seks_types::destination::Destination;

pub use self::{
    checksum::TableChecksum,
    session::{Recipient, SessionError, SessionKey},
};

/// The protocol version in `Hello`.
pub const PROTOCOL: u32 = 1;

/// Largest `Chunk.changes`, in bytes. A revocation never waits behind more than this.
pub const CHUNK_BYTES: usize = 64 * 1024;

/// Largest message that either side decodes, in bytes. A record larger than a chunk is sent alone.
pub const MESSAGE_BYTES: usize = 8 * 1024 * 1024;

/// Features that a node names in `Hello`. A record that needs a feature is withheld from a node
/// without it, so that an old node cannot ignore a new rule and inject anyway.
pub mod features {
    /// Injection into Authorization (bearer, raw or prefixed), named headers, Basic, query and
    /// path.
    pub const INJECT_V1: &str = "inject-v1";
    /// Cedar policies over the schema of contract §8.
    pub const POLICY_V1: &str = "policy-v1";
    /// AWS Signature Version 4: the node verifies the agent's signature and signs again.
    pub const AWS_SIGV4_V1: &str = "aws-sigv4-v1";
    /// What any grant may need, in every version: this list is closed.
    pub const ALL: &[&str] = &[INJECT_V1, POLICY_V1, AWS_SIGV4_V1];
    /// The node accepts several deltas in one message. No grant needs it.
    pub const DELTAS: &str = "deltas";
    /// The node checks that a credential is used at the destination that it is bound to. A node
    /// without this feature receives only credentials that the replica has checked.
    pub const BINDING_V1: &str = "binding-v1";
    /// The node reads what a record requires (`TableToken.requires`), and refuses that record alone
    /// when it lacks the feature.
    pub const RECORD_FEATURES_V1: &str = "record-features-v1";
    /// The node exchanges tokens of trusted issuers, and a record with `trust` is nobody's token.
    pub const TRUST_V1: &str = "trust-v1";
    /// The node refuses a token that is bound to a client certificate on every other connection.
    pub const CERTIFICATE_V1: &str = "certificate-v1";
    /// Features of this build that a single record may require. A later rule adds its feature here
    /// and not to [`ALL`]: a node that lacks one of `ALL` gets no credential at all.
    pub const OF_RECORDS: &[&str] = &[RECORD_FEATURES_V1, TRUST_V1, CERTIFICATE_V1];

    /// Whether this build can enforce a record that requires `feature`.
    #[must_use]
    pub fn is_known(feature: &str) -> bool {
        ALL.contains(&feature) || OF_RECORDS.contains(&feature)
    }
}

/// The HPKE `info` of the session key. It binds the ciphertext to this protocol and use.
pub const SESSION_KEY_INFO: &[u8] = b"seks/v1/session-key";

/// Additional data of a credential that is sealed to a node. The ciphertext does not open for
/// another record, version or epoch.
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

/// [`credential_aad`] of a credential that is bound to a destination.
#[must_use]
pub fn bound_credential_aad(
    epoch: &str,
    tenant: &str,
    name: &str,
    version: u32,
    destination: Option<&Destination>,
) -> Vec<u8> {
    let mut aad = credential_aad(epoch, tenant, name, version);
    // The version before it has a fixed length, so data with and without a destination differ.
    aad.extend_from_slice(destination.map_or(&[], |destination| destination.as_bytes()));
    aad
}
