//! What a confined command must not reach: decided by `seks run`, carried out by the helper that becomes the command.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The decisions. All paths are absolute and real: without symbolic links.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Plan {
    /// Nothing but the forwarded addresses is reachable.
    pub(crate) strict: bool,
    /// Whether namespaces are used. Without them Landlock alone hides files.
    pub(crate) namespaces: bool,
    /// Files and directories that are neither read nor written.
    pub(crate) hidden: Vec<PathBuf>,
    /// Unix sockets that are covered in the same way. What leads to them is not pinned.
    pub(crate) sockets: Vec<PathBuf>,
    /// Files that are not written: the `seks` that the user runs next.
    pub(crate) read_only: Vec<PathBuf>,
    /// Directories that hold a symbolic link to something hidden: their entries can't be replaced.
    pub(crate) fixed: Vec<PathBuf>,
    /// TCP ports to which nothing connects.
    pub(crate) closed_ports: Vec<u16>,
    /// `HOST:PORT` of each listener that stands for the proxy in an empty network namespace.
    pub(crate) forwarded: Vec<String>,
    /// The unix socket on which `seks run` takes these listeners over.
    pub(crate) handover: PathBuf,
    /// `/etc/hosts` in there; empty: as it is.
    pub(crate) hosts: String,
}
