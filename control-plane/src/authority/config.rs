//! `[authority]`: which CA signs, and which certificates count.

use std::path::PathBuf;

use serde::Deserialize;

/// `[authority]`: PEM files, read at the start.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AuthorityConfig {
    /// The SPIFFE trust domain of the names in its certificates. Default: `seks`.
    pub trust_domain: String,
    /// A CA from elsewhere, that signs directly. Default: our own, its key sealed in the store.
    pub cert_file: PathBuf,
    /// Its key. Must not be readable by others.
    pub key_file: PathBuf,
    /// CAs whose certificates count as well: while one CA takes over from another, both. Default:
    /// none.
    pub trusted_file: PathBuf,
    /// A mesh whose certificates nodes may show instead of ours. Default: none.
    pub mesh: MeshConfig,
}

impl Default for AuthorityConfig {
    fn default() -> Self {
        Self {
            trust_domain: "seks".into(),
            cert_file: PathBuf::new(),
            key_file: PathBuf::new(),
            trusted_file: PathBuf::new(),
            mesh: MeshConfig::default(),
        }
    }
}

/// `[authority.mesh]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MeshConfig {
    /// Its SPIFFE trust domain; not our own.
    pub trust_domain: String,
    /// Its CAs, in PEM.
    pub bundle_file: PathBuf,
}
