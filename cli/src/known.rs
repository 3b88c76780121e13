//! Secret files of SEKS outside of this user's own directories, for `seks run` to hide: data
//! directories of `seks dev`, also of those that do not run, and context files of operators. Each
//! has a file with its path in `$XDG_STATE_HOME/seks/known`.

use std::{
    ffi::OsStr,
    fs,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
};

use crate::{
    error::{CliError, Result},
    files::write_private,
    user,
};

/// Most paths that are read: hiding one takes a mount.
const MAX_PATHS: usize = 1024;
/// Longest path, in bytes (Linux's PATH_MAX).
const MAX_PATH: usize = 4096;

/// Remembers `path` in `state`, and forgets what exists no more.
///
/// # Errors
/// Exit code 2, naming the file.
pub(crate) fn remember(state: &Path, path: &Path) -> Result<()> {
    let path = fs::canonicalize(path).map_err(|e| CliError::file(path, &e))?;
    let folder = state.join("known");
    user::create_private_dir(&folder)?;
    for (entry, known) in entries(&folder) {
        if known == path {
            return Ok(());
        }
        if !known.exists() {
            let _ = fs::remove_file(entry); // another command may have been faster
        }
    }
    let mut hasher = DefaultHasher::new();
    path.hash(&mut hasher);
    write_private(&folder.join(format!("{:016x}", hasher.finish())), path.as_os_str().as_bytes())
}

/// All paths that are remembered in `state` and still exist.
pub(crate) fn paths(state: &Path) -> Vec<PathBuf> {
    entries(&state.join("known")).into_iter().map(|(_, path)| path).filter(|path| path.exists()).collect()
}

/// Files in `folder`, and the path in each. A partial or foreign one is skipped.
fn entries(folder: &Path) -> Vec<(PathBuf, PathBuf)> {
    let files = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).take(MAX_PATHS);
    files
        .filter_map(|file| {
            let bytes = fs::read(&file).ok().filter(|bytes| bytes.len() <= MAX_PATH)?;
            let path = PathBuf::from(OsStr::from_bytes(&bytes));
            path.is_absolute().then_some((file, path))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_exists_is_known_until_it_is_gone() {
        let (state, place) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (first, second) = (place.path().join("first"), place.path().join("second"));
        assert!(paths(state.path()).is_empty() && remember(state.path(), &first).is_err());
        for path in [&first, &second, &first] {
            fs::write(path, "").unwrap();
            remember(state.path(), path).unwrap();
        }
        let known = paths(state.path());
        assert!(known.len() == 2 && known.contains(&fs::canonicalize(&first).unwrap()), "{known:?}");
        fs::remove_file(&first).unwrap();
        assert_eq!(paths(state.path()), [fs::canonicalize(&second).unwrap()]);
        remember(state.path(), place.path()).unwrap();
        assert_eq!(fs::read_dir(state.path().join("known")).unwrap().count(), 2, "the first is forgotten");
    }
}
