//! `[seal]`: where the key-encryption keys come from.

use std::{path::PathBuf, time::Duration};

use serde::Deserialize;

use super::{
    SealError,
    key_service_config::{AwsKmsConfig, TransitConfig},
};

/// Bounds of `check_every`.
const CHECK_BOUNDS: std::ops::RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(3600);
/// Most of `refused_grace`.
const MAX_GRACE: Duration = Duration::from_secs(30 * 24 * 3600);

/// Where KEKs are read from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SealKind {
    /// Files, mode 0600.
    #[default]
    File,
    /// Environment variables. A process can't take a variable out of its own environment safely
    /// once threads run, so it stays in `/proc/PID/environ` (readable by root alone, as the planes
    /// aren't dumpable): prefer files.
    Env,
    /// Files whose keys are wrapped by the transit engine of Vault or OpenBao: `[seal.transit]`.
    VaultTransit,
    /// Files whose keys are wrapped by AWS KMS: `[seal.aws_kms]`.
    AwsKms,
}

impl SealKind {
    /// Whether a key service unwraps the key at start.
    #[must_use]
    pub fn is_wrapped(self) -> bool {
        !matches!(self, Self::File | Self::Env)
    }

    fn is_file(self) -> bool {
        self != Self::Env
    }
}

/// `[seal]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SealConfig {
    /// Default: `file`.
    pub kind: SealKind,
    /// The active KEK's file, for all kinds but `env`. No default.
    pub path: PathBuf,
    /// The active KEK's variable, for `env`. No default.
    pub variable: String,
    /// Older KEKs that may still be needed during a rotation: variables for `env`, otherwise
    /// paths. With a key service, files of plain keys may be among them, so that a store can move
    /// to it. Default: none.
    pub older: Vec<String>,
    /// How often a running control plane asks the key service whether the key may still be used.
    /// Default: 60 s; 1 s to 1 h.
    #[serde(with = "humantime_serde")]
    pub check_every: Duration,
    /// The control plane stops when the key service has refused the key for this long: it was
    /// disabled or deleted, or this process may not use it. A service that doesn't answer stops
    /// nothing. Default: 24 h; at most 30 d.
    #[serde(with = "humantime_serde")]
    pub refused_grace: Duration,
    /// For `vault-transit`.
    pub transit: TransitConfig,
    /// For `aws-kms`.
    pub aws_kms: AwsKmsConfig,
}

impl Default for SealConfig {
    fn default() -> Self {
        Self {
            kind: SealKind::default(),
            path: PathBuf::new(),
            variable: String::new(),
            older: Vec::new(),
            check_every: Duration::from_secs(60),
            refused_grace: Duration::from_secs(24 * 3600),
            transit: TransitConfig::default(),
            aws_kms: AwsKmsConfig::default(),
        }
    }
}

impl SealConfig {
    /// KEK from a file.
    #[must_use]
    pub fn file(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), ..Self::default() }
    }

    /// Whether the keys fit the kind.
    ///
    /// # Errors
    /// [`SealError::Config`] names the key.
    pub fn check(&self) -> Result<(), SealError> {
        let has = |present: bool| if present { "is not of this kind" } else { "is missing" };
        let (path, variable) = (!self.path.as_os_str().is_empty(), !self.variable.is_empty());
        let transit = (self.kind == SealKind::VaultTransit) != (self.transit != TransitConfig::default());
        let aws_kms = (self.kind == SealKind::AwsKms) != (self.aws_kms != AwsKmsConfig::default());
        let wrong = match self.kind {
            kind if kind.is_file() && !path => Some(("path", path)),
            kind if kind.is_file() && variable => Some(("variable", variable)),
            SealKind::Env if !variable => Some(("variable", variable)),
            SealKind::Env if path => Some(("path", path)),
            kind if transit => Some(("transit", kind != SealKind::VaultTransit)),
            kind if aws_kms => Some(("aws_kms", kind != SealKind::AwsKms)),
            _ => None,
        };
        if let Some((key, present)) = wrong {
            return Err(SealError::Config { key, reason: has(present) });
        }
        if !CHECK_BOUNDS.contains(&self.check_every) {
            return Err(SealError::Config { key: "check_every", reason: "is 1s to 1h" });
        }
        if self.refused_grace > MAX_GRACE {
            return Err(SealError::Config { key: "refused_grace", reason: "is at most 30d" });
        }
        match self.kind {
            SealKind::VaultTransit => self.transit.check(),
            SealKind::AwsKms => self.aws_kms.check(),
            SealKind::File | SealKind::Env => Ok(()),
        }
    }
}
