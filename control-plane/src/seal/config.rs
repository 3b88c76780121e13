//! `[seal]`: where the key-encryption keys come from.

use std::path::PathBuf;

use serde::Deserialize;

use super::SealError;

/// Where KEKs are read from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SealKind {
    /// Files, mode 0600.
    #[default]
    File,
    /// Environment variables. A process can't take a variable out of its own environment safely
    /// once threads run, so it stays in `/proc/PID/environ` (readable by root alone, as the planes
    /// aren't dumpable): prefer files.
    Env,
}

/// `[seal]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SealConfig {
    /// Default: `file`.
    pub kind: SealKind,
    /// The active KEK's file, for `file`. No default.
    pub path: PathBuf,
    /// The active KEK's variable, for `env`. No default.
    pub variable: String,
    /// Older KEKs that may still be needed during a rotation: paths for `file`, variables for
    /// `env`. Default: none.
    pub older: Vec<String>,
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
        let wrong = match self.kind {
            SealKind::File if !path => Some("path"),
            SealKind::File if variable => Some("variable"),
            SealKind::Env if !variable => Some("variable"),
            SealKind::Env if path => Some("path"),
            _ => None,
        };
        match wrong {
            Some(key) => Err(SealError::Config { key, reason: has(if key == "path" { path } else { variable }) }),
            None => Ok(()),
        }
    }
}
