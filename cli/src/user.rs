//! Private directories of this user (XDG Base Directory Specification 0.8), and the check that a
//! file or directory belongs to this user and is closed to others.

use std::{
    fs::{File, Metadata},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _},
    path::{Path, PathBuf},
};

use seks_runtime::private_file;

use crate::error::{CliError, Result};

/// `$XDG_CONFIG_HOME/seks`, by default `~/.config/seks`. `None` where neither variable is an
/// absolute path.
pub(crate) fn config_dir() -> Option<PathBuf> {
    directory("XDG_CONFIG_HOME", ".config")
}

/// `$XDG_STATE_HOME/seks`, by default `~/.local/state/seks`. `None` where neither variable is an
/// absolute path.
pub(crate) fn state_dir() -> Option<PathBuf> {
    directory("XDG_STATE_HOME", ".local/state")
}

/// The default data directory of `seks dev`.
pub(crate) fn dev_data_dir() -> Option<PathBuf> {
    Some(state_dir()?.join("dev"))
}

/// The user's own context file, whether or not it exists.
pub(crate) fn context_file() -> Option<PathBuf> {
    Some(config_dir()?.join("context.toml"))
}

/// `$XDG_CACHE_HOME/seks`, by default `~/.cache/seks`. `None` where neither variable is an absolute
/// path.
pub(crate) fn cache_dir() -> Option<PathBuf> {
    directory("XDG_CACHE_HOME", ".cache")
}

/// The directories of configuration and state, by variable and by default, because the user's next
/// shell may lack the variable.
pub(crate) fn all_dirs() -> Vec<PathBuf> {
    let defaults = home().map(|home| [home.join(".config/seks"), home.join(".local/state/seks")]);
    let mut all: Vec<_> = config_dir().into_iter().chain(state_dir()).chain(defaults.into_iter().flatten()).collect();
    all.sort();
    all.dedup();
    all
}

fn directory(variable: &str, below_home: &str) -> Option<PathBuf> {
    // The specification requires that relative values are ignored. They would name a directory
    // inside the current folder.
    let base = absolute(variable).or_else(|| Some(home()?.join(below_home)));
    Some(base?.join("seks"))
}

/// The user's home directory.
pub(crate) fn home() -> Option<PathBuf> {
    absolute("HOME")
}

fn absolute(variable: &str) -> Option<PathBuf> {
    std::env::var_os(variable).map(PathBuf::from).filter(|path| path.is_absolute())
}

/// Creates a directory and its missing parents with mode 0700. An existing one is not changed.
///
/// # Errors
/// Exit code 2, naming the directory.
pub(crate) fn create_private_dir(path: &Path) -> Result<()> {
    let created = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    created.map_err(|e| CliError::file(path, &e))
}

/// Checks an open file that may hold a key: this user owns it, and its mode is 0600 or stricter. A
/// secret that Kubernetes has mounted for this process is accepted too.
///
/// # Errors
/// Exit code 2. Names the file, the problem and the command that repairs it.
pub(crate) fn check_private_file(file: &File, path: &Path) -> Result<()> {
    let metadata = file.metadata().map_err(|e| CliError::file(path, &e))?;
    if !metadata.is_file() {
        return Err(CliError::usage(path.display().to_string(), "not a regular file"));
    }
    if private_file::is_mounted_secret(&metadata) {
        return Ok(());
    }
    check_private(&metadata, path, 0o600)
}

/// Checks owner and mode: `allowed` is 0600 for a file, 0700 for a directory.
///
/// # Errors
/// As [`check_private_file`].
pub(crate) fn check_private(metadata: &Metadata, path: &Path, allowed: u32) -> Result<()> {
    check_owner(metadata, path)?;
    let mode = metadata.mode() & 0o777;
    if mode & 0o077 != 0 {
        let why = format!("mode {mode:04o} gives access to other users");
        let repair = format!("if nobody else has changed it: chmod {allowed:o} '{}'", path.display());
        return Err(CliError::usage(path.display().to_string(), why).hint(repair));
    }
    Ok(())
}

/// Checks that this user is the owner.
///
/// # Errors
/// Exit code 2, naming both users.
pub(crate) fn check_owner(metadata: &Metadata, path: &Path) -> Result<()> {
    let (owner, own) = (metadata.uid(), rustix::process::geteuid().as_raw());
    if owner == own {
        return Ok(());
    }
    Err(CliError::usage(path.display().to_string(), format!("owned by user id {owner}, and you are {own}"))
        .hint("use it as its owner, or use one of your own"))
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _};

    use super::*;

    #[test]
    fn a_file_that_others_can_reach_is_refused_with_the_repair() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        fs::write(&path, "").unwrap();
        for (mode, fine) in [(0o600, true), (0o400, true), (0o640, false), (0o604, false), (0o620, false)] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let checked = check_private_file(&File::open(&path).unwrap(), &path);
            assert_eq!(checked.is_ok(), fine, "{mode:o}: {checked:?}");
            if let Err(error) = checked {
                assert!(error.hint.unwrap().contains("chmod 600"), "{mode:o}");
            }
        }
        let error = check_private_file(&File::open(dir.path()).unwrap(), dir.path()).unwrap_err();
        assert_eq!(error.why, "not a regular file");
    }
}
