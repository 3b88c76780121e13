//! The objects that a confined command must not reach: the files and ports of SEKS on this machine.

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
};

use crate::{known, registration, user};

/// The default ports of the admin, metrics and distribution listeners.
const DEFAULT_PORTS: [u16; 3] = [8301, 8302, 8303];
/// The files in a data directory of `seks dev`.
const DATA_FILES: [&str; 6] = ["kek", "store.redb", "node", "join-token", "lock", "context.toml"];
/// Programs whose listeners are closed to agents, except for the proxy's.
const PROGRAMS: [&str; 3] = ["seks", "seks-control-plane", "seks-data-plane"];
/// The directories and files of SEKS: this user's, those of every registered `seks dev`, those that
/// are remembered, `.seks-data` in this folder and in those above, and those around the context
/// files. Missing directories of the user are created, because a command could create them.
pub(super) fn files(context_files: &[PathBuf]) -> BTreeSet<PathBuf> {
    let own = user::all_dirs();
    for dir in &own {
        let _ = user::create_private_dir(dir); // where this user can't, a command can't
    }
    let mut found: BTreeSet<PathBuf> = own.into_iter().collect();
    let state = user::state_dir();
    let registered = state.as_deref().map(registration::running).unwrap_or_default();
    found.extend(registered.into_iter().flat_map(|running| [running.data_dir, running.context_file]));
    let (folders_known, files_known): (Vec<_>, Vec<_>) =
        state.as_deref().map(known::paths).unwrap_or_default().into_iter().partition(|path| path.is_dir());
    found.extend(files_known);
    found.extend(context_files.iter().cloned());
    let cwd = std::env::current_dir().unwrap_or_default();
    let folders = context_files.iter().filter_map(|file| file.parent()).map(|folder| cwd.join(folder));
    let former = cwd.ancestors().map(|folder| folder.join(".seks-data"));
    for folder in folders.chain(former).chain(folders_known) {
        if !folder.join("kek").exists() {
            continue;
        }
        if folder.join("store.redb").exists() && !cwd.starts_with(&folder) {
            found.insert(folder);
        } else {
            found.extend(DATA_FILES.iter().chain(&["store"]).map(|name| folder.join(name)));
        }
    }
    found.retain(|path| path.exists());
    found
}

/// The ports of SEKS's own listeners without those of the proxy: registered ones, those of this
/// user's processes as far as they can be seen, the defaults, and those of the control planes in
/// the context.
pub(super) fn closed_ports(endpoints: &[(String, u16)], proxies: &[u16]) -> Vec<u16> {
    let mut ports: BTreeSet<u16> = DEFAULT_PORTS.into();
    let registered = user::state_dir().map(|state| registration::running(&state)).unwrap_or_default();
    ports.extend(registered.into_iter().flat_map(|running| running.closed_ports));
    ports.extend(listening());
    for (host, port) in endpoints {
        // Rules on ports know no hosts. A control plane elsewhere on the web's own ports is left to
        // its client certificates.
        let here = matches!(host.as_str(), "localhost" | "127.0.0.1" | "::1" | "[::1]");
        if here || !matches!(port, 80 | 443) {
            ports.insert(*port);
        }
    }
    ports.retain(|port| *port != 0 && !proxies.contains(port));
    ports.into_iter().collect()
}

/// The TCP ports on which this user's SEKS processes listen. Hardened ones show nothing to their
/// own user, only to root: those are registered, or use the default ports.
fn listening() -> Vec<u16> {
    let own = std::process::id().to_string();
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten().map(|entry| entry.path());
    let ours = processes.filter(|path| {
        let program = fs::read_link(path.join("exe")).ok();
        let name = program
            .as_deref()
            .and_then(Path::file_name)
            .and_then(OsStr::to_str)
            .map(|n| n.trim_end_matches(" (deleted)"));
        path.file_name() != Some(OsStr::new(&own)) && name.is_some_and(|name| PROGRAMS.contains(&name))
    });
    let links = ours.flat_map(|path| fs::read_dir(path.join("fd")).into_iter().flatten().flatten());
    let sockets: BTreeSet<PathBuf> = links.filter_map(|fd| fs::read_link(fd.path()).ok()).collect();
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(|table| fs::read_to_string(table).unwrap_or_default());
    let listeners = tables.iter().flat_map(|table| table.lines()).filter_map(listener);
    listeners
        .filter(|(_, inode)| sockets.contains(Path::new(&format!("socket:[{inode}]"))))
        .map(|(port, _)| port)
        .collect()
}

/// Port and inode of a line of `/proc/net/tcp` that is a listener's.
fn listener(line: &str) -> Option<(u16, &str)> {
    const LISTEN: &str = "0A";
    let fields: Vec<_> = line.split_whitespace().collect();
    let (_, port) = fields.get(1)?.rsplit_once(':')?;
    (*fields.get(3)? == LISTEN).then_some((u16::from_str_radix(port, 16).ok()?, *fields.get(9)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_is_told_from_a_connection() {
        let line = "  0: 0100007F:206D 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000  0 12345 1 0 100 0 0 10 0";
        assert_eq!(listener(line), Some((8301, "12345")));
        assert_eq!(listener(&line.replace(" 0A ", " 01 ")), None);
        assert_eq!(listener("  sl  local_address rem_address   st"), None);
    }

    #[test]
    fn a_proxys_port_is_never_closed_and_the_webs_only_on_this_machine() {
        let closed = closed_ports(&[("127.0.0.1".into(), 443)], &[8302]);
        assert!(closed.contains(&443) && closed.contains(&8301) && !closed.contains(&8302), "{closed:?}");
        let closed = closed_ports(&[("seks.example".into(), 443)], &[]);
        assert!(!closed.contains(&443) && closed.contains(&8302), "{closed:?}");
        assert!(closed_ports(&[("seks.example".into(), 443), ("seks.example".into(), 9301)], &[]).contains(&9301));
    }
}
