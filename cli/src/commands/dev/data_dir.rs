//! The data directory: key-encryption key, store, the node's identity and the CLI's context. One
//! process at a time uses it.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use rustix::fs::{FlockOperation, flock};
use seks_control_plane::seal::Sealer;

use crate::{
    error::{CliError, Result},
    user,
};

/// An open data directory. No other process has it open until this is dropped.
pub(crate) struct DataDir {
    path: PathBuf,
    _lock: File,
}

impl DataDir {
    /// Makes it with mode 0700 where it isn't there, takes its lock, and makes the key-encryption
    /// key at the first start.
    ///
    /// # Errors
    /// Exit code 2 in one line: read-only, full, in use, of another user, open to other users, or a
    /// store without its key.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        user::create_private_dir(path)?;
        let path = fs::canonicalize(path).map_err(|e| CliError::file(path, &e))?;
        ensure_private(&path)?;
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

    /// Its absolute path.
    pub(crate) fn path(&self) -> &Path {
        &self.path
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

/// An empty directory that others can enter is given mode 0700. In any other they may have left or
/// changed files.
fn ensure_private(path: &Path) -> Result<()> {
    let metadata = fs::metadata(path).map_err(|e| CliError::file(path, &e))?;
    if !metadata.is_dir() {
        return Err(CliError::usage(path.display().to_string(), "not a directory"));
    }
    user::check_owner(&metadata, path)?;
    match user::check_private(&metadata, path, 0o700) {
        Err(_) if fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_none()) => {
            fs::set_permissions(path, fs::Permissions::from_mode(0o700)).map_err(|e| CliError::file(path, &e))
        }
        checked => checked,
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
        fs::set_permissions(parent.path(), fs::Permissions::from_mode(0o700)).unwrap();
        fs::write(parent.path().join("store.redb"), "x").unwrap();
        let error = DataDir::open(parent.path()).err().unwrap();
        assert!(error.to_string().contains("key-encryption key of this store is missing"), "{error}");
        assert!(!parent.path().join("kek").exists());
    }

    #[test]
    fn a_folder_that_others_can_enter_is_closed_while_it_is_empty_and_refused_afterwards() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("data");
        fs::create_dir(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
        drop(DataDir::open(&path).unwrap());
        assert_eq!(mode(&path), 0o700);
        for loose in [0o770, 0o707, 0o750, 0o705] {
            fs::set_permissions(&path, fs::Permissions::from_mode(loose)).unwrap();
            let error = DataDir::open(&path).err().unwrap();
            assert!(error.why.contains("gives access to other users"), "{loose:o}: {error}");
            assert!(error.hint.unwrap().contains("chmod 700"));
        }
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
