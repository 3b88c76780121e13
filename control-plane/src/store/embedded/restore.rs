//! A store out of a backup: made whole beside its place, and put there in one step.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use bytes::Bytes;

use super::database::{self, Database};
use crate::{
    clock::unix_now,
    store::{Key, OpenError, Revision},
};

/// Puts a store with `records` at `path`, with the id `store_id` and `revision` as its newest. One
/// that is there is refused, or with `replace` kept beside it as `PATH.replaced-TIME`.
pub(in crate::store) fn restore(
    path: &Path,
    store_id: &str,
    revision: Revision,
    records: &[(Key, Bytes)],
    replace: bool,
) -> Result<(), OpenError> {
    let failed = |source| OpenError::File { path: path.display().to_string(), source };
    let there = path.try_exists().map_err(failed)?;
    if there && !replace {
        return Err(OpenError::Exists(path.display().to_string()));
    }
    // Held until the end, so that no process writes to a store that is being replaced.
    let locked = if there { Some(Database::open(path.to_path_buf())?) } else { None };
    let directory = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let draft = beside(path, &format!("restore-{}", std::process::id()));
    database::make_directory(directory).map_err(failed)?;
    let _ = fs::remove_file(&draft); // what a crash left
    let placed = database::write_new(&draft, path, store_id, revision, records)
        .and_then(|()| place(&draft, path, there).map_err(failed));
    let _ = fs::remove_file(&draft); // linked where it belongs, or of no use
    placed?;
    drop(locked);
    File::open(directory).and_then(|dir| dir.sync_all()).map_err(failed)
}

fn place(draft: &Path, path: &Path, there: bool) -> std::io::Result<()> {
    if !there {
        return fs::hard_link(draft, path); // of two at once, one wins
    }
    let now = unix_now();
    fs::hard_link(path, beside(path, &format!("replaced-{now}")))?;
    fs::rename(draft, path)
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(suffix);
    name.into()
}
