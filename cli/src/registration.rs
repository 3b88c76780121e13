//! How `seks` finds a running `seks dev` of this user. Each running one has a file in
//! `$XDG_STATE_HOME/seks/running`.
//!
//! The process holds an exclusive lock on its file while it runs. So the file of a killed process
//! is recognised, even if its process id is reused.

use std::{
    fs::{self, File},
    hash::{DefaultHasher, Hash as _, Hasher as _},
    io::{Read as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use crate::{
    error::{CliError, Result},
    user,
};

/// Largest registration, in bytes. Ours are below 1 KiB.
const MAX_BYTES: u64 = 64 * 1024;

/// The registration of a running `seks dev`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Running {
    /// Its context for the CLI, an absolute path.
    pub(crate) context_file: PathBuf,
    /// Its data directory, an absolute path.
    pub(crate) data_dir: PathBuf,
    /// The TCP ports of its admin, metrics and distribution listeners, which no agent needs.
    pub(crate) closed_ports: Vec<u16>,
}

/// A registration of this process. Dropping it removes the file.
#[derive(Debug)]
pub(crate) struct Registration {
    path: PathBuf,
    _lock: File,
}

impl Drop for Registration {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path); // left behind it is unlocked, and so ignored
    }
}

/// Registers this process in `state`, and removes files of killed processes.
///
/// # Errors
/// Exit code 2, naming the file.
pub(crate) fn register(state: &Path, running: &Running) -> Result<Registration> {
    let folder = state.join("running");
    user::create_private_dir(&folder)?;
    check_dir(&folder)?;
    for (path, file) in entries(&folder) {
        if !is_locked(&file) {
            let _ = fs::remove_file(path); // another start may have been faster
        }
    }
    let mut hasher = DefaultHasher::new();
    running.data_dir.hash(&mut hasher);
    let path = folder.join(format!("{:016x}.toml", hasher.finish()));
    let temporary = path.with_extension(std::process::id().to_string());
    let text = toml::to_string(running).map_err(|e| CliError::usage(path.display().to_string(), e))?;
    let written = (|| {
        let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        file.write_all(text.as_bytes())?;
        fs::rename(&temporary, &path)?;
        Ok(file)
    })();
    match written {
        Ok(lock) => Ok(Registration { path, _lock: lock }),
        Err(e) => {
            let _ = fs::remove_file(&temporary);
            Err(CliError::file(&path, &e))
        }
    }
}

/// All running `seks dev` of this user that are registered in `state`. Unreadable or non-private
/// files are skipped.
pub(crate) fn running(state: &Path) -> Vec<Running> {
    let folder = state.join("running");
    if check_dir(&folder).is_err() {
        return Vec::new();
    }
    let live = entries(&folder).into_iter().filter(|(_, file)| is_locked(file));
    live.filter_map(|(path, file)| read(&path, file)).collect()
}

fn check_dir(folder: &Path) -> Result<()> {
    let metadata = fs::symlink_metadata(folder).map_err(|e| CliError::file(folder, &e))?;
    user::check_private(&metadata, folder, 0o700)
}

fn entries(folder: &Path) -> Vec<(PathBuf, File)> {
    let paths = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let ours = paths.filter(|path| path.extension().is_some_and(|end| end == "toml"));
    ours.filter_map(|path| File::open(&path).ok().map(|file| (path, file))).collect()
}

fn is_locked(file: &File) -> bool {
    flock(file, FlockOperation::NonBlockingLockShared) == Err(rustix::io::Errno::WOULDBLOCK)
}

fn read(path: &Path, file: File) -> Option<Running> {
    user::check_private_file(&file, path).ok()?;
    let mut text = String::new();
    file.take(MAX_BYTES).read_to_string(&mut text).ok()?;
    let running: Running = toml::from_str(&text).ok()?;
    (running.context_file.is_absolute() && running.data_dir.is_absolute()).then_some(running)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn example(name: &str) -> Running {
        let data_dir = PathBuf::from("/data").join(name);
        Running { context_file: data_dir.join("context.toml"), data_dir, closed_ports: vec![8301, 8302] }
    }

    fn state() -> tempfile::TempDir {
        tempfile::Builder::new().permissions(fs::Permissions::from_mode(0o700)).tempdir().unwrap()
    }

    #[test]
    fn it_is_found_while_it_runs_and_not_afterwards() {
        let state = state();
        assert_eq!(running(state.path()), []);
        let first = register(state.path(), &example("a")).unwrap();
        let second = register(state.path(), &example("b")).unwrap();
        assert_eq!(running(state.path()).len(), 2);
        drop(second);
        assert_eq!(running(state.path()), [example("a")]);
        drop(first);
        assert_eq!(running(state.path()), []);
    }

    #[test]
    fn what_a_killed_process_left_is_ignored_and_removed_by_the_next() {
        let state = state();
        drop(register(state.path(), &example("a")).unwrap());
        let left = state.path().join("running/left.toml");
        fs::write(&left, toml::to_string(&example("killed")).unwrap()).unwrap();
        fs::set_permissions(&left, fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(running(state.path()), []);
        let _next = register(state.path(), &example("b")).unwrap();
        assert!(!left.exists());
        assert_eq!(running(state.path()), [example("b")]);
    }

    #[test]
    fn a_registration_that_others_could_have_written_is_ignored() {
        let state = state();
        let registration = register(state.path(), &example("a")).unwrap();
        fs::set_permissions(&registration.path, fs::Permissions::from_mode(0o660)).unwrap();
        assert_eq!(running(state.path()), []);
        fs::set_permissions(&registration.path, fs::Permissions::from_mode(0o600)).unwrap();
        fs::set_permissions(state.path().join("running"), fs::Permissions::from_mode(0o777)).unwrap();
        assert_eq!(running(state.path()), []);
        assert!(register(state.path(), &example("b")).is_err());
    }
}
