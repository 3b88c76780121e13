//! Unix sockets by which another program of this machine could act for a confined command.
//!
//! The kernel's list has the name that a socket was bound with. The file may have another path: the
//! name may be relative to the program's directory, and OpenSSH's `ControlMaster` and others rename
//! or link the file after the bind. So every socket file in the directories of those names is
//! taken, and every one in the directories that programs use for sockets.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::{ffi::OsStrExt as _, fs::FileTypeExt as _},
    path::{Path, PathBuf},
};

use crate::user;

/// Sockets that only answer queries or sign. They start no program and read no file for their
/// client.
const HARMLESS: [&str; 12] = [
    "/run/nscd/",
    "/run/systemd/resolve/",
    "/run/systemd/userdb/",
    "/run/systemd/journal/",
    "/run/dbus/system_bus_socket",
    "/run/avahi-daemon/",
    "/run/postgresql/",
    "/run/mysqld/",
    "/var/run/nscd/",
    "/var/run/postgresql/",
    "/var/run/mysqld/",
    "/var/lib/sss/pipes/",
];

/// Levels below a directory of sockets that are searched.
const DEPTH: usize = 3;
/// Most entries that are read in one search. `/tmp` of a build machine can have millions.
const MAX_ENTRIES: usize = 50_000;

/// The session bus, terminal multiplexers, container engines, editors, SSH connections. In the
/// strict form it is every socket.
pub(super) fn reachable(strict: bool) -> BTreeSet<PathBuf> {
    let agent = std::env::var_os("SSH_AUTH_SOCK").map(PathBuf::from);
    let root = rustix::process::geteuid().is_root();
    let harmless = |path: &Path| {
        let listed = |prefix: &&str| path.as_os_str().as_bytes().starts_with(prefix.as_bytes());
        let bus = root && path.ends_with("system_bus_socket"); // systemd executes root's requests from there
        HARMLESS.iter().any(listed) && !bus
            || Some(path) == agent.as_deref()
            || path.parent().is_some_and(|dir| dir.ends_with("gnupg"))
    };
    let table = fs::read_to_string("/proc/net/unix").unwrap_or_default();
    let mut found = named(&table);
    let mut entries = MAX_ENTRIES;
    let parents: BTreeSet<PathBuf> = found.iter().filter_map(|path| path.parent()).map(Path::to_path_buf).collect();
    for directory in &parents {
        search(directory, 1, &mut entries, &mut found);
    }
    for directory in usual_directories() {
        search(&directory, DEPTH, &mut entries, &mut found);
    }
    found.retain(|path| is_socket(path) && (strict || !harmless(path)));
    found
}

/// The paths of the kernel's list. A relative name is resolved in the working directory of each
/// process that has the socket open, as far as this user may see that.
fn named(table: &str) -> BTreeSet<PathBuf> {
    let (mut found, mut relative) = (BTreeSet::new(), BTreeMap::<&str, &str>::new());
    for (inode, name) in table.lines().filter_map(entry) {
        if name.starts_with('/') {
            found.insert(PathBuf::from(name));
        } else if !name.starts_with('@') {
            relative.insert(inode, name);
        }
    }
    if relative.is_empty() {
        return found;
    }
    for process in fs::read_dir("/proc").into_iter().flatten().flatten().map(|entry| entry.path()) {
        let Ok(directory) = fs::read_link(process.join("cwd")) else { continue };
        for link in fs::read_dir(process.join("fd")).into_iter().flatten().flatten() {
            let Ok(target) = fs::read_link(link.path()) else { continue };
            let inode = target.to_str().and_then(|text| text.strip_prefix("socket:[")?.strip_suffix(']'));
            if let Some(name) = inode.and_then(|inode| relative.get(inode)) {
                found.insert(directory.join(name));
            }
        }
    }
    found
}

/// Inode and name of a line of `/proc/net/unix`; `None` for a socket without a name.
fn entry(line: &str) -> Option<(&str, &str)> {
    const INODE: usize = 7; // Num RefCount Protocol Flags Type St Inode Path
    let (mut inode, mut rest) = ("", line.trim_start());
    for _ in 0..INODE {
        let (field, after) = rest.split_once(' ')?;
        (inode, rest) = (field, after.trim_start_matches(' '));
    }
    (inode != "Inode" && !rest.is_empty()).then_some((inode, rest))
}

/// Where programs put sockets, beside the places that the kernel's list names.
fn usual_directories() -> Vec<PathBuf> {
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    let temporary = std::env::temp_dir();
    let home = user::home().map(|home| home.join(".ssh"));
    [Some("/run".into()), Some("/tmp".into()), Some(temporary), runtime, home].into_iter().flatten().collect()
}

/// Adds the socket files below `directory`, `depth` levels deep. Symbolic links are not followed.
fn search(directory: &Path, depth: usize, entries: &mut usize, found: &mut BTreeSet<PathBuf>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let Some(left) = entries.checked_sub(1) else { return };
        *entries = left;
        let Ok(kind) = entry.file_type() else { continue };
        if kind.is_socket() {
            found.insert(entry.path());
        } else if kind.is_dir() && depth > 1 {
            search(&entry.path(), depth - 1, entries, found);
        }
    }
}

fn is_socket(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|found| found.file_type().is_socket())
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn a_line_has_an_inode_and_a_name() {
        let line = |rest: &str| format!("ffff8881f2a3b000: 00000002 00000000 00010000 0001 01 {rest}");
        assert_eq!(entry(&line("18463 /run/x y.sock")), Some(("18463", "/run/x y.sock")));
        assert_eq!(entry(&line("  463 rel.sock")), Some(("463", "rel.sock")));
        assert_eq!(entry(&line("18463")), None);
        assert_eq!(entry("Num       RefCount Protocol Flags    Type St Inode Path"), None);
    }

    #[test]
    fn a_socket_is_found_under_its_new_name_and_under_a_link() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let _renamed = UnixListener::bind(at("before")).unwrap();
        fs::rename(at("before"), at("after")).unwrap();
        let _linked = UnixListener::bind(at("first")).unwrap();
        fs::hard_link(at("first"), at("second")).unwrap();
        let found = reachable(true);
        for name in ["after", "first", "second"] {
            assert!(found.contains(&at(name)), "{name}");
        }
    }
}
