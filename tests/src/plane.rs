//! A plane as a process of its own: the files that it starts from, and what its log says when it
//! serves.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use serde_json::Value;

use crate::process::Process;

/// Writes a file that only this user can read, as the planes want their keys and tokens.
///
/// # Panics
/// When it can't be written.
pub fn write_private(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}

/// A context file for the CLI: the admin API at `admin` (`host:port`), as the operator whose files
/// are in the directory `operator`.
pub fn context(admin: &str, operator: &str) -> String {
    format!(
        "current = \"test\"\n[contexts.test]\nendpoint = \"https://{admin}\"\nca = \"{operator}/ca.pem\"\n\
         certificate = \"{operator}/operator.pem\"\nkey = \"{operator}/operator.key\"\n"
    )
}

/// Moves the log of an earlier start of `name` away: where a plane listens is read from a log of
/// one start.
pub fn put_log_aside(directory: &Path, name: &str) {
    drop(fs::rename(directory.join(format!("{name}.err")), directory.join(format!("{name}.err.before"))));
}

/// Where a plane serves, from the line that it logs then.
#[derive(Clone, Debug)]
pub struct Serving(Value);

impl Serving {
    /// Waits until the plane says that it serves.
    ///
    /// # Panics
    /// When it ends instead, or after [`PATIENCE`](crate::process::PATIENCE).
    pub fn wait(process: &mut Process) -> Self {
        process.wait_for_output("its listeners", |log| {
            let mut lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
            lines.find(|line| line["message"] == "serving" || line["fields"]["message"] == "serving").map(Self)
        })
    }

    /// `host:port` of a listener: `admin`, `distribution`, `metrics`, `proxy`.
    ///
    /// # Panics
    /// When the plane has no such listener.
    pub fn at(&self, listener: &str) -> String {
        let address = self.0[listener].as_str().or_else(|| self.0["fields"][listener].as_str());
        address.unwrap_or_else(|| panic!("no `{listener}` in {}", self.0)).to_owned()
    }
}
