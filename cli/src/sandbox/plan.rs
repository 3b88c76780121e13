//! The restrictions of a confined command. `seks run` decides them, and the helper applies them
//! before it becomes the command.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The restrictions. All paths are absolute and contain no symbolic links.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Plan {
    /// Only the forwarded addresses are reachable.
    pub(crate) strict: bool,
    /// Whether namespaces are used. Without them only Landlock hides files.
    pub(crate) namespaces: bool,
    /// Files and directories that can neither be read nor written.
    pub(crate) hidden: Vec<PathBuf>,
    /// Unix sockets that are covered in the same way. Directories on the way to them are not
    /// pinned.
    pub(crate) sockets: Vec<PathBuf>,
    /// Files that cannot be written: the user's `seks` program.
    pub(crate) read_only: Vec<PathBuf>,
    /// Directories that contain a symbolic link to a hidden path. Their entries cannot be replaced.
    pub(crate) fixed: Vec<PathBuf>,
    /// TCP ports that cannot be connected to.
    pub(crate) closed_ports: Vec<u16>,
    /// `HOST:PORT` of each listener that replaces the proxy in an empty network namespace.
    pub(crate) forwarded: Vec<String>,
    /// The unix socket on which `seks run` receives these listeners.
    pub(crate) handover: PathBuf,
    /// The content of `/etc/hosts` in the namespace. Empty: unchanged.
    pub(crate) hosts: String,
}
