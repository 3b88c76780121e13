//! Backup, restore, and saying that a store may have gone back.

use std::{io::Write as _, path::Path};

use seks_control_plane::{
    Config, Storage,
    backup::{self, BackupError, Summary},
    epoch::Epoch,
    seal::{SealError, Sealer},
    store::{OpenError, StoreError},
};
use seks_runtime::Exit;

use crate::Failure;

/// Most characters of a reason.
const MAX_REASON: usize = 500;

/// Writes all of the store to a new file.
pub(crate) async fn backup(config: &Config, out: &Path) -> Result<(), Failure> {
    let sealer = sealer(config).await?;
    let Summary { records, revision, store_id } =
        backup::create_from(&config.store, &sealer, out).await.map_err(|e| failure("--out", e))?;
    say(&format!(
        "{records} records at revision {revision} of the store {store_id}; sealed with key {}",
        sealer.active()
    ))
}

/// Makes a store out of such a file.
pub(crate) async fn restore(config: &Config, from: &Path, replace: bool) -> Result<(), Failure> {
    let restored = backup::restore(&config.store, &sealer(config).await?, from, replace).await;
    let Summary { records, store_id, .. } = restored.map_err(|e| failure("--from", e))?;
    say(&format!(
        "{records} records restored, as the store {store_id}. What was revoked since the backup was made is valid again: no control \
         plane serves it before `seks-control-plane accept-rollback --reason …`"
    ))
}

/// Begins a new epoch of a store that went back.
pub(crate) async fn accept_rollback(config: &Config, reason: &str) -> Result<(), Failure> {
    let reason = reason.trim();
    if reason.is_empty() || reason.len() > MAX_REASON || reason.chars().any(char::is_control) {
        return Err(Failure::usage(&format!("--reason: 1 to {MAX_REASON} characters of one line")));
    }
    let base = Storage::open(config).await?;
    let mark = base.mark().map_err(|e| Failure::usage(&format!("store.mark_file: {e}")))?;
    let accepted = Epoch::accept(base.store.as_ref(), &base.sealer, mark.as_ref(), reason).await;
    let epoch = accepted.map_err(|e| Failure::new(Exit::Failed, &format!("store: {e}")))?;
    tracing::warn!(reason, epoch = epoch.name(), superseded = ?epoch.superseded(), "a rollback was accepted");
    say(&format!("accepted: the store's epoch is {} from now on; start every control plane again", epoch.name()))
}

async fn sealer(config: &Config) -> Result<Sealer, Failure> {
    Sealer::from_config(&config.seal).await.map_err(|e| crate::tools::seal_failure("seal: ", &e))
}

fn failure(flag: &str, error: BackupError) -> Failure {
    let away = |e: &StoreError| matches!(e, StoreError::Unavailable(_) | StoreError::Unknown(_) | StoreError::Full);
    match &error {
        BackupError::File { .. } | BackupError::Unfit { .. } => Failure::usage(&format!("{flag}: {error}")),
        BackupError::Record { source: SealError::Store(e), .. }
        | BackupError::Open(OpenError::Store(e))
        | BackupError::Store(e)
            if away(e) =>
        {
            Failure::new(Exit::Failed, &format!("store: {error}"))
        }
        BackupError::Seal { .. } | BackupError::Record { .. } => Failure::usage(&error),
        BackupError::NoStore => Failure::new(Exit::NotFound, &error),
        BackupError::Open(OpenError::Exists(_)) => {
            let hint = "`--replace` replaces an embedded store; with etcd, name another store.prefix";
            Failure::new(Exit::Conflict, &format!("{error}: {hint}"))
        }
        BackupError::Open(_) | BackupError::Store(_) => Failure::usage(&format!("store: {error}")),
    }
}

fn say(line: &str) -> Result<(), Failure> {
    std::io::stdout().write_all(format!("{line}\n").as_bytes()).map_err(|e| Failure::new(Exit::Failed, &e))
}
