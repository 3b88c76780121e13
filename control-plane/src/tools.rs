//! What is done on the machine that has the key: making it, changing it, making the first operator.

pub(crate) mod backup;
mod operator;

use std::{io::Write as _, path::Path};

use seks_control_plane::{
    Components, Config,
    authority::audit_key,
    seal::{SealError, Sealer, rotate},
};
use seks_runtime::Exit;

pub(crate) use self::operator::{NewOperator, bootstrap_operator};
use crate::Failure;

/// Makes a key-encryption key.
pub(crate) fn create_kek(out: &Path) -> Result<(), Failure> {
    Sealer::create_file(out).map_err(|e| Failure::usage(&format!("--out: {e}")))
}

/// Makes a new audit key, and says so on stdout.
pub(crate) async fn rotate_audit_key(config: &Config) -> Result<(), Failure> {
    let foundation = Components::open(config).await?;
    let rotated = audit_key::rotate(foundation.store.as_ref(), &foundation.sealer).await;
    let (new, before) = rotated.map_err(|e| Failure::new(Exit::Failed, &e))?;
    let line = format!("audit records are sealed to key {new} now; key {before} is kept for what is sealed to it\n");
    std::io::stdout().write_all(line.as_bytes()).map_err(|e| Failure::new(Exit::Failed, &e))
}

/// Makes a key-encryption key that the key service of the configuration wraps.
pub(crate) async fn create_wrapped_kek(config: &Config, out: &Path) -> Result<(), Failure> {
    config.seal.check().map_err(|e| Failure::usage(&e))?;
    Sealer::create_wrapped_file(&config.seal, out).await.map_err(|e| seal_failure("", &e))
}

/// A key service that is away is no error of the configuration.
fn seal_failure(what: &str, error: &SealError) -> Failure {
    let exit = match error {
        SealError::KekUnavailable(_) | SealError::KekRefused(_) => Exit::Failed,
        _ => Exit::Usage,
    };
    Failure::new(exit, &format!("{what}{error}"))
}

/// Re-wraps every sealed record under the active key-encryption key, and says what came of it on
/// stdout.
pub(crate) async fn rotate_kek(config: &Config) -> Result<(), Failure> {
    let foundation = Components::open(config).await?;
    let report = rotate::rotate(&foundation.sealer, foundation.store.as_ref()).await;
    let report = report.map_err(|e| Failure::new(Exit::Failed, &e))?;
    if let Some((key, error)) = report.left.first() {
        let left = report.left.len();
        let text = format!("{left} sealed records still need another key, {key} among them: {error}; keep the old key");
        return Err(Failure::new(Exit::Failed, &text));
    }
    let line = format!("{} records re-wrapped; key {} is the only one needed now\n", report.rewrapped, report.active);
    std::io::stdout().write_all(line.as_bytes()).map_err(|e| Failure::new(Exit::Failed, &e))
}
