//! The data directory: key-encryption key, store, the node's identity and the CLI's context, for one process at a time.

use std::{
    fs::{self, DirBuilder, File},
    io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

use rustix::fs::{FlockOperation, flock};
use seks_control_plane::seal::Sealer;

use crate::error::{CliError, Result};

/// An open data directory. Nobody else has it open while this lives.
pub(crate) struct DataDir {
    path: PathBuf,
    _lock: File,
}

impl DataDir {
    /// Makes it with mode 0700 where it isn't there, takes its lock, and makes the key-encryption key at the first start.
    ///
    /// # Errors
    /// Exit code 2 in one line: read-only, full, in use, or a store without its key.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|e| CliError::file(path, &e))?;
        let path = fs::canonicalize(path).map_err(|e| CliError::file(path, &e))?;
        let lock = lock(&path)?;
        let dir = Self { path, _lock: lock };
        dir.ensure_kek()?;
        Ok(dir)
    }

    fn ensure_kek(&self) -> Result<()> {
        let kek = self.kek();
        if kek.exists() {
            return Ok(());
        }
        if self.store().exists() {
            // A new key couldn't open anything in there, and would hide that the right one is gone.
            return Err(CliError::usage(kek.display().to_string(), "the key-encryption key of this store is missing")
                .hint("put it back; without it the stored credentials can't be read"));
        }
        Sealer::create_file(&kek).map_err(|e| CliError::usage("data directory", e))
    }

    /// Where to look when something is wrong with what is kept.
    pub(crate) fn hint(&self) -> String {
        format!("the data directory is {}", self.path.display())
    }

    /// Whether it is this folder.
    pub(crate) fn is(&self, folder: &str) -> bool {
        fs::canonicalize(folder).is_ok_and(|found| found == self.path)
    }

    /// The key-encryption key's file.
    pub(crate) fn kek(&self) -> PathBuf {
        self.path.join("kek")
    }

    /// The store's file.
    pub(crate) fn store(&self) -> PathBuf {
        self.path.join("store.redb")
    }

    /// The node's own directory.
    pub(crate) fn node(&self) -> PathBuf {
        self.path.join("node")
    }

    /// The file with the node's first join token.
    pub(crate) fn join_token(&self) -> PathBuf {
        self.path.join("join-token")
    }

    /// The CLI's context.
    pub(crate) fn context(&self) -> PathBuf {
        self.path.join("context.toml")
    }
}

fn lock(path: &Path) -> Result<File> {
    let name = path.join("lock");
    let file = File::options().create(true).truncate(false).write(true).open(&name);
    let file = file.map_err(|e| CliError::file(&name, &e))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => {
            Err(CliError::usage(path.display().to_string(), "in use by another `seks dev`")
                .hint("stop that one, or choose another --data-dir"))
        }
        Err(e) => Err(CliError::file(&name, &io::Error::from(e))),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn a_first_start_makes_a_private_folder_and_a_private_key() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("deep/data");
        let dir = DataDir::open(&path).unwrap();
        assert_eq!((mode(&path), mode(&dir.kek())), (0o700, 0o600));
        let key = fs::read(dir.kek()).unwrap();
        drop(dir);
        let again = DataDir::open(&path).unwrap();
        assert_eq!(fs::read(again.kek()).unwrap(), key, "a restart keeps the key");
    }

    #[test]
    fn a_second_process_is_refused_in_one_line() {
        let parent = tempfile::tempdir().unwrap();
        let _first = DataDir::open(parent.path()).unwrap();
        let error = DataDir::open(parent.path()).err().unwrap();
        assert_eq!((error.exit as u8, error.why.as_str()), (2, "in use by another `seks dev`"));
    }

    #[test]
    fn a_store_without_its_key_is_not_given_another() {
        let parent = tempfile::tempdir().unwrap();
        fs::write(parent.path().join("store.redb"), "x").unwrap();
        let error = DataDir::open(parent.path()).err().unwrap();
        assert!(error.to_string().contains("key-encryption key of this store is missing"), "{error}");
        assert!(!parent.path().join("kek").exists());
    }

    #[test]
    fn a_file_in_its_place_is_named() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("f");
        fs::write(&path, "").unwrap();
        let error = DataDir::open(&path).err().unwrap();
        assert_eq!((error.exit as u8, error.what.clone()), (2, path.display().to_string()), "{error}");
    }
}
