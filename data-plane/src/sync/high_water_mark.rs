//! The highest revision of the store that this node has seen, kept beside its identity.
//!
//! A node that restarts has no table. Without this mark it would accept an old table from a store
//! that was rolled back.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::time::sleep;

/// The file in the data directory.
const FILE: &str = "mark.json";
/// How often what changed is written: this much may be forgotten by a node that is killed.
const PERIOD: Duration = Duration::from_secs(1);

/// A state of a store.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Seen {
    /// The store's epoch; `""`: nothing was ever seen.
    pub(super) epoch: String,
    /// The highest revision in it.
    pub(super) revision: u64,
}

/// Keeps it.
pub(super) struct HighWaterMark {
    path: Option<PathBuf>,
    seen: Mutex<Seen>,
}

impl HighWaterMark {
    /// What is kept in `data_dir`; without one, in memory only. A file that can't be read is an
    /// error: to go on without it would be to forget.
    ///
    /// # Errors
    /// Of the file system; a file that isn't a mark.
    pub(super) fn load(data_dir: Option<&Path>) -> io::Result<Self> {
        let path = data_dir.map(|dir| dir.join(FILE));
        let text = path.as_ref().map_or(Ok(Vec::new()), fs::read);
        let seen = match text {
            Ok(text) if path.is_some() => serde_json::from_slice(&text)?,
            Ok(_) => Seen::default(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Seen::default(),
            Err(error) => return Err(error),
        };
        Ok(Self { path, seen: Mutex::new(seen) })
    }

    /// What was seen.
    pub(super) fn seen(&self) -> Seen {
        self.seen.lock().clone()
    }

    /// The node's table is at `revision` of `epoch`.
    pub(super) fn note(&self, epoch: &str, revision: u64) {
        let mut seen = self.seen.lock();
        if seen.epoch != epoch {
            *seen = Seen { epoch: epoch.to_owned(), revision };
        } else {
            seen.revision = seen.revision.max(revision);
        }
    }

    /// Writes each change, until it is dropped.
    pub(super) async fn keep(&self) {
        let mut written = self.seen();
        loop {
            sleep(PERIOD).await;
            let seen = self.seen();
            let Some(path) = self.path.clone().filter(|_| seen != written) else { continue };
            let writing = seen.clone();
            match tokio::task::spawn_blocking(move || write(&path, &writing)).await {
                Ok(Ok(())) => written = seen,
                Ok(Err(error)) => tracing::warn!(%error, "what was seen of the store can't be written down"),
                Err(_) => {} // the runtime is shutting down
            }
        }
    }
}

/// Whole or not at all.
fn write(path: &Path, seen: &Seen) -> io::Result<()> {
    let draft = path.with_extension("json.new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
    file.write_all(&serde_json::to_vec(seen)?)?;
    file.sync_all()?;
    fs::rename(&draft, path)?;
    File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_seen_survives_a_restart_and_never_goes_back_in_an_epoch() {
        let dir = tempfile::tempdir().unwrap();
        let mark = HighWaterMark::load(Some(dir.path())).unwrap();
        assert_eq!(mark.seen(), Seen::default());
        mark.note("e1", 7);
        mark.note("e1", 5);
        write(&dir.path().join(FILE), &mark.seen()).unwrap();
        let again = HighWaterMark::load(Some(dir.path())).unwrap();
        assert_eq!(again.seen(), Seen { epoch: "e1".into(), revision: 7 });
        again.note("e2", 1);
        assert_eq!(again.seen(), Seen { epoch: "e2".into(), revision: 1 });
        fs::write(dir.path().join(FILE), "{").unwrap();
        assert!(HighWaterMark::load(Some(dir.path())).is_err(), "a damaged one isn't forgotten");
    }
}
