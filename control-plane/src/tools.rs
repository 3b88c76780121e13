//! What is done on the machine that has the key: making it, changing it, making the first operator.

pub(crate) mod backup;

use std::{
    fs::{self, DirBuilder, OpenOptions},
    io::Write as _,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::Path,
};

use seks_control_plane::{
    Components, Config, OperatorIdentity,
    registry::fresh_enrolment,
    seal::{Sealer, rotate},
};
use seks_runtime::Exit;
use seks_types::id::OperatorName;

use crate::Failure;

/// Makes a key-encryption key.
pub(crate) fn create_kek(out: &Path) -> Result<(), Failure> {
    Sealer::create_file(out).map_err(|e| Failure::usage(&format!("--out: {e}")))
}

/// Re-wraps every sealed record under the active key-encryption key, and says what came of it on stdout.
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

/// Makes the first operator and writes `ca.pem`, `operator.pem` and `operator.key` (mode 0600) to a new directory. The files are
/// written before the operator is: one whose key is lost can't be made a second time.
pub(crate) async fn bootstrap_operator(config: &Config, name: &str, out: &Path) -> Result<(), Failure> {
    let name = OperatorName::try_from(name).map_err(|e| Failure::usage(&format!("--name: {e}")))?;
    let foundation = Components::open(config).await?;
    let enrolment = fresh_enrolment().map_err(|e| Failure::new(Exit::Failed, &e))?;
    let operator = foundation.operator_identity(&name, &enrolment).map_err(|e| Failure::new(Exit::Failed, &e))?;
    let failed = |e: std::io::Error| Failure::usage(&format!("--out: `{}`: {e}", out.display()));
    DirBuilder::new().mode(0o700).create(out).map_err(failed)?;
    let made = match write(out, &operator, &foundation.authority.ca_pem()) {
        Ok(()) => {
            let made = foundation.registry.create_first_operator(&name, &enrolment).await;
            made.map_err(|e| Failure::new(Exit::Failed, &e))
        }
        Err(error) => Err(failed(error)),
    };
    let refusal = match made {
        Ok(Some(_)) => return Ok(()),
        Ok(None) => {
            let why = "there is an operator already: an owner makes others with `seks operator create`";
            Failure::new(Exit::Conflict, &why)
        }
        Err(failure) => failure,
    };
    if let Err(error) = fs::remove_dir_all(out) {
        tracing::warn!(%error, "cannot remove what was written");
    }
    Err(refusal)
}

fn write(out: &Path, operator: &OperatorIdentity, ca: &str) -> std::io::Result<()> {
    for (file, text) in
        [("ca.pem", ca), ("operator.pem", operator.cert_pem.as_str()), ("operator.key", operator.key_pem.as_str())]
    {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(out.join(file))?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
    }
    Ok(())
}
