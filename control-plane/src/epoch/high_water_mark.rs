//! The highest revision that was seen, in a small file outside of the store.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use seks_runtime::private_file::give_to_owner_of;
use serde::{Deserialize, Serialize};

use crate::store::Revision;

/// What was last seen of the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HighWaterMark {
    /// Its epoch.
    pub epoch: String,
    /// The highest revision.
    pub revision: Revision,
    /// Every record of it is authenticated: it has none of an earlier version.
    #[serde(default)]
    pub authenticated: bool,
}

/// Why a mark can't be kept. One line for the operator.
#[derive(Debug, thiserror::Error)]
pub enum HighWaterMarkError {
    /// The file system.
    #[error("`{path}`: {source}")]
    File {
        /// Which.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// It isn't a mark: it may have been one, so it isn't written over.
    #[error("`{0}` is not the mark of a store: if it is damaged, remove it, which forgets what was seen")]
    Malformed(String),
}

/// Where a mark is kept.
#[derive(Clone, Debug)]
pub struct HighWaterMarkFile(PathBuf);

impl HighWaterMarkFile {
    /// At `path`, which need not exist.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// `None` when nothing was ever seen.
    ///
    /// # Errors
    /// [`HighWaterMarkError`].
    pub fn read(&self) -> Result<Option<HighWaterMark>, HighWaterMarkError> {
        match fs::read(&self.0) {
            Ok(text) => {
                serde_json::from_slice(&text).map(Some).map_err(|_| HighWaterMarkError::Malformed(self.shown()))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(self.failed(source)),
        }
    }

    /// Replaces it, whole or not at all.
    ///
    /// # Errors
    /// [`HighWaterMarkError::File`].
    pub fn write(&self, mark: &HighWaterMark) -> Result<(), HighWaterMarkError> {
        let directory = self.0.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut draft = self.0.as_os_str().to_owned();
        draft.push(".new");
        let draft = PathBuf::from(draft);
        let write = || {
            DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
            let _ = fs::remove_file(&draft); // what a crash left
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft)?;
            give_to_owner_of(directory, &file)?;
            file.write_all(&serde_json::to_vec(mark)?)?;
            file.sync_all()?;
            fs::rename(&draft, &self.0)?;
            File::open(directory)?.sync_all()
        };
        write().map_err(|source| self.failed(source))
    }

    fn failed(&self, source: io::Error) -> HighWaterMarkError {
        HighWaterMarkError::File { path: self.shown(), source }
    }

    fn shown(&self) -> String {
        self.0.display().to_string()
    }
}
