//! The file system of a confined command, built from mounts in its own mount namespace.
//!
//! Hidden paths are covered: a directory by an empty file system, a file by an empty file. The
//! directories on the way are pinned. Otherwise a command could rename `~/.config` and put its own
//! `~/.config/seks` in place for the user's next `seks`.

use std::{
    collections::BTreeSet,
    fs, io,
    os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{Access, StatVfsMountFlags},
    mount::{MountFlags, MountPropagationFlags, mount, mount_bind, mount_bind_recursive, mount_change, mount_remount},
    thread::{CapabilitySet, UnshareFlags},
};

use super::plan::Plan;

/// Enters a new mount namespace, and with `network` also an empty network namespace. A process
/// without the privilege does so in a new user namespace, in which every id maps to itself.
pub(super) fn enter_namespaces(network: bool) -> io::Result<()> {
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let privileged = rustix::thread::capabilities(None)?.effective.contains(CapabilitySet::SYS_ADMIN);
    let mut flags = UnshareFlags::NEWNS;
    flags.set(UnshareFlags::NEWNET | UnshareFlags::NEWIPC, network);
    flags.set(UnshareFlags::NEWUSER, !privileged);
    // The other form of it is unsafe for the sake of CLONE_FILES, which isn't among these.
    #[expect(deprecated, reason = "the only safe form; no flag here shares or splits descriptors")]
    rustix::thread::unshare(flags)?;
    if !privileged {
        fs::write("/proc/self/setgroups", "deny")?; // user_namespaces(7): before an unprivileged gid_map
        fs::write("/proc/self/uid_map", format!("{uid} {uid} 1"))?;
        fs::write("/proc/self/gid_map", format!("{gid} {gid} 1"))?;
    }
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    Ok(())
}

/// Whether mounts work in the namespaces. On some systems AppArmor permits the namespace but no
/// mounts in it.
pub(super) fn probe(network: bool) -> io::Result<()> {
    enter_namespaces(network)?;
    mount_empty(Path::new("/proc"))
}

/// Covers, pins and protects the paths of the plan. The current directory is entered again, because
/// it may be below a new mount.
pub(super) fn apply(plan: &Plan) -> io::Result<()> {
    let cwd = std::env::current_dir()?;
    let mounts = Mount::all()?;
    let mut hidden: BTreeSet<PathBuf> = plan.hidden.iter().cloned().collect();
    hidden.extend(plan.hidden.iter().flat_map(|path| aliases(&mounts, path)));
    if let Some(inside) = hidden.iter().find(|path| cwd.starts_with(path)) {
        return Err(io::Error::other(format!("the current directory is inside {}, which is hidden", inside.display())));
    }
    for path in pins(hidden.iter().chain(&plan.read_only)) {
        if !mounts.iter().any(|mount| mount.point == path) {
            mount_bind_recursive(&path, &path).map_err(|e| at(&path, &e))?;
        }
    }
    for path in &plan.read_only {
        make_read_only(path).map_err(|e| at(path, &e))?;
    }
    hidden.extend(block_devices().into_iter().chain(plan.sockets.iter().cloned()).filter(|path| path.exists()));
    let scratch = hidden.iter().find(|path| path.is_dir()).cloned();
    let mut empty = PathBuf::from("/dev/null");
    if let Some(scratch) = &scratch {
        mount("seks", scratch, "tmpfs", NOTHING_SPECIAL, c"size=64k,mode=0700").map_err(|e| at(scratch, &e))?;
        empty = scratch.join("empty");
        fs::write(&empty, "")?;
        fs::set_permissions(&empty, fs::Permissions::from_mode(0o000))?;
        if !plan.hosts.is_empty() {
            let hosts = scratch.join("hosts");
            fs::write(&hosts, &plan.hosts)?;
            mount_bind(&hosts, "/etc/hosts")?;
        }
    }
    for path in hidden.iter().filter(|path| Some(*path) != scratch.as_ref()) {
        let covered = if path.is_dir() { mount_empty(path) } else { mount_bind(&empty, path).map_err(Into::into) };
        covered.map_err(|e: io::Error| at(path, &e))?;
    }
    if let Some(scratch) = scratch {
        mount_remount(&scratch, NOTHING_SPECIAL | MountFlags::RDONLY, c"")?; // with the files that come from it
        mount_empty(&scratch)?;
    }
    std::env::set_current_dir(cwd)
}

const NOTHING_SPECIAL: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV).union(MountFlags::NOEXEC);

fn mount_empty(path: &Path) -> io::Result<()> {
    Ok(mount("seks", path, "tmpfs", NOTHING_SPECIAL | MountFlags::RDONLY, c"size=4k,mode=0")?)
}

fn at(path: &Path, error: &dyn std::fmt::Display) -> io::Error {
    io::Error::other(format!("{}: {error}", path.display()))
}

/// A user namespace must not drop flags of the mount below, so they are repeated.
fn make_read_only(path: &Path) -> io::Result<()> {
    let known = rustix::fs::statvfs(path)?.f_flag;
    mount_bind(path, path)?;
    let mut flags = MountFlags::BIND | MountFlags::RDONLY;
    flags.set(MountFlags::NOSUID, known.contains(StatVfsMountFlags::NOSUID));
    flags.set(MountFlags::NODEV, known.contains(StatVfsMountFlags::NODEV));
    flags.set(MountFlags::NOEXEC, known.contains(StatVfsMountFlags::NOEXEC));
    flags.set(MountFlags::NOATIME, known.contains(StatVfsMountFlags::NOATIME));
    flags.set(MountFlags::RELATIME, known.contains(StatVfsMountFlags::RELATIME));
    Ok(mount_remount(path, flags, c"")?)
}

/// The directories on the way to these paths that this user could rename, from the root down.
fn pins<'a>(paths: impl Iterator<Item = &'a PathBuf>) -> BTreeSet<PathBuf> {
    let mut all = BTreeSet::new();
    for path in paths.filter(|path| !path.starts_with("/dev") && !path.starts_with("/proc")) {
        let above = path.ancestors().skip(1).filter(|dir| dir.parent().is_some_and(is_writable));
        all.extend(above.map(Path::to_path_buf));
    }
    all
}

pub(super) fn is_writable(path: &Path) -> bool {
    rustix::fs::access(path, Access::WRITE_OK).is_ok()
}

/// Disks that this user could read directly.
fn block_devices() -> Vec<PathBuf> {
    let entries = fs::read_dir("/dev").into_iter().flatten().flatten();
    let blocks = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_block_device()));
    let readable = |path: &PathBuf| rustix::fs::access(path, Access::READ_OK).is_ok();
    blocks.map(|entry| entry.path()).filter(readable).collect()
}

/// One line of `/proc/self/mountinfo`, proc_pid_mountinfo(5).
#[derive(Debug, PartialEq, Eq)]
struct Mount {
    device: String,
    /// The mounted part of the file system.
    root: PathBuf,
    point: PathBuf,
}

impl Mount {
    fn all() -> io::Result<Vec<Self>> {
        Ok(fs::read_to_string("/proc/self/mountinfo")?.lines().filter_map(Self::parse).collect())
    }

    fn parse(line: &str) -> Option<Self> {
        let mut fields = line.split(' ').skip(2);
        let (device, root, point) = (fields.next()?, fields.next()?, fields.next()?);
        Some(Self { device: device.into(), root: unescape(root), point: unescape(point) })
    }
}

/// White space and backslashes are octal escapes in that file.
fn unescape(text: &str) -> PathBuf {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(text.to_owned(), |text, (code, plain)| text.replace(code, plain))
        .into()
}

/// Other paths of the same directory or file, because its file system may be mounted in several
/// places.
fn aliases(mounts: &[Mount], path: &Path) -> Vec<PathBuf> {
    let own = mounts
        .iter()
        .filter(|mount| path.starts_with(&mount.point))
        .max_by_key(|mount| mount.point.components().count());
    let Some(own) = own else { return Vec::new() };
    let inside = path.strip_prefix(&own.point).unwrap_or(Path::new(""));
    let inside = own.root.join(inside);
    let same = |found: &PathBuf| {
        let id = |path: &Path| fs::metadata(path).map(|m| (m.dev(), m.ino())).ok();
        found != path
            && found.exists()
            && (id(found) == id(path) || id(found).is_some_and(|_| !inside.starts_with(found)))
    };
    let others = mounts.iter().filter(|mount| mount.device == own.device && mount.point != own.point);
    let found = others.filter_map(|mount| match inside.strip_prefix(&mount.root) {
        Ok(rest) => Some(mount.point.join(rest)),
        Err(_) => mount.root.starts_with(&inside).then(|| mount.point.clone()), // a part of it
    });
    found.map(|path| path.components().collect()).filter(same).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mounts(text: &str) -> Vec<Mount> {
        text.lines().filter_map(Mount::parse).collect()
    }

    #[test]
    fn a_line_of_mountinfo_is_read() {
        let line = r"36 35 98:0 /mnt1 /mnt\0402 rw,noatime master:1 - ext3 /dev/root rw";
        let read = Mount { device: "98:0".into(), root: "/mnt1".into(), point: "/mnt 2".into() };
        assert_eq!(Mount::parse(line), Some(read));
    }

    #[test]
    fn what_leads_to_a_hidden_path_is_pinned() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join(".config/seks");
        fs::create_dir_all(&path).unwrap();
        let pinned = pins([path.clone()].iter());
        assert!(pinned.contains(&home.path().join(".config")) && pinned.contains(home.path()), "{pinned:?}");
        assert!(!pinned.contains(&path) && !pinned.contains(Path::new("/")), "{pinned:?}");
    }

    #[test]
    fn another_mount_of_the_same_file_system_is_found() {
        let real = tempfile::tempdir().unwrap();
        let (home, copy) = (real.path().join("home"), real.path().join("copy"));
        for dir in [&home, &copy] {
            fs::create_dir_all(dir.join("u/seks")).unwrap();
        }
        fs::write(copy.join("u/seks/x"), "").unwrap();
        let (home, copy) = (home.display(), copy.display());
        let table = mounts(&format!("1 0 8:1 / {home} rw - x\n2 0 8:1 /u {copy}/u rw - x\n3 0 8:2 / /other rw - x"));
        let found = aliases(&table, &PathBuf::from(format!("{home}/u/seks")));
        assert_eq!(found, [PathBuf::from(format!("{copy}/u/seks"))]);
    }
}
