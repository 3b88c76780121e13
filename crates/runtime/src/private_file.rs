//! Files that hold a key or a password: who may read them, and whose they become.

use std::{
    fs::{File, Metadata},
    io,
    os::unix::fs::{MetadataExt as _, fchown},
    path::Path,
};

/// Permission bits that nobody but the owner and a reading group may have.
const OTHERS: u32 = 0o007;
/// Permission bits with which the group could replace the file's content.
const GROUP_CHANGES: u32 = 0o030;
/// The group may read.
const GROUP_READS: u32 = 0o040;

/// Opens a file with a secret. The checks apply to the open file, so a symbolic link is as private
/// as its target.
///
/// The rule is PostgreSQL's for private keys:
/// - a regular file, owned by this process's user or by root. A process of root accepts any owner,
///   because a service's own files belong to the service's user.
/// - Mode 0600 or stricter; or 0640, if root owns the file and its group is a group of this
///   process. Kubernetes mounts secrets in this form, and so do packages that create a user.
///
/// # Errors
/// Of the file system. An exposed file is [`io::ErrorKind::PermissionDenied`] with a text that
/// names the problem and the repair.
pub fn open_private(path: &Path) -> io::Result<File> {
    let file = File::open(path)?;
    check(&file.metadata()?, &Reader::this_process()?)
        .map_err(|why| io::Error::new(io::ErrorKind::PermissionDenied, why))?;
    Ok(file)
}

/// Whether root owns a file that only the group of this process, and root, can read: Kubernetes
/// mounts secrets in this form.
#[must_use]
pub fn is_mounted_secret(file: &Metadata) -> bool {
    let group_reads = file.uid() == 0 && file.mode() & GROUP_READS != 0;
    group_reads && Reader::this_process().is_ok_and(|reader| reader.user != 0 && check(file, &reader).is_ok())
}

/// Reads a text file with a secret. See [`open_private`]. The caller wipes the text.
///
/// # Errors
/// As [`open_private`]; [`io::ErrorKind::InvalidData`] for text that is not UTF-8.
pub fn read_private(path: &Path) -> io::Result<String> {
    io::read_to_string(open_private(path)?)
}

/// Gives a new file to the owner of its directory, if root made it. Root runs the tools that make a
/// service's files, and the service, which has a user of its own, must be able to open them.
///
/// # Errors
/// Of the file system.
pub fn give_to_owner_of(directory: &Path, file: &File) -> io::Result<()> {
    let owner = std::fs::metadata(directory)?;
    if rustix::process::geteuid().is_root() && owner.uid() != 0 {
        fchown(file, Some(owner.uid()), Some(owner.gid()))?;
    }
    Ok(())
}

/// Whose rights a file is read with.
struct Reader {
    user: u32,
    groups: Vec<u32>,
}

impl Reader {
    fn this_process() -> io::Result<Self> {
        let mut groups: Vec<u32> =
            rustix::process::getgroups()?.into_iter().map(rustix::process::Gid::as_raw).collect();
        groups.push(rustix::process::getegid().as_raw());
        Ok(Self { user: rustix::process::geteuid().as_raw(), groups })
    }
}

fn check(file: &Metadata, reader: &Reader) -> Result<(), String> {
    if !file.is_file() {
        return Err("not a regular file".into());
    }
    exposure(file.mode() & 0o7777, file.uid(), file.gid(), reader).map_or(Ok(()), Err)
}

/// Why a file of this mode, owner and group is exposed.
fn exposure(mode: u32, owner: u32, group: u32, reader: &Reader) -> Option<String> {
    if mode & OTHERS != 0 {
        return Some(format!(
            "readable by others: mode is {mode:04o}, must be 0600, or 0640 with owner root and the service's group"
        ));
    }
    if mode & GROUP_CHANGES != 0 {
        return Some(format!("its group can change it: mode is {mode:04o}, must be 0600 or 0640"));
    }
    if owner != reader.user && owner != 0 && reader.user != 0 {
        return Some(format!("owned by user {owner}, must be owned by {} or root", reader.user));
    }
    if mode & GROUP_READS != 0 && (owner != 0 || !(reader.user == 0 || reader.groups.contains(&group))) {
        return Some(format!(
            "readable by others: mode {mode:04o} is accepted only with owner root and the service's own group; chmod 600"
        ));
    }
    None
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _};

    use super::*;

    #[test]
    fn a_private_file_is_ours_or_roots_and_only_our_group_may_read_it() {
        let service = Reader { user: 500, groups: vec![500, 600] };
        let root = Reader { user: 0, groups: vec![0] };
        for (mode, owner, group, by_service, by_root) in [
            (0o600, 500, 500, true, true),
            (0o400, 500, 500, true, true),
            (0o600, 0, 0, true, true),
            (0o640, 0, 500, true, true),
            (0o440, 0, 600, true, true),
            (0o640, 0, 700, false, true),
            (0o640, 500, 500, false, false),
            (0o600, 501, 501, false, true),
            (0o644, 0, 0, false, false),
            (0o660, 0, 500, false, false),
            (0o604, 500, 500, false, false),
            (0o601, 500, 500, false, false),
        ] {
            for (reader, fine) in [(&service, by_service), (&root, by_root)] {
                let why = exposure(mode, owner, group, reader);
                assert_eq!(why.is_none(), fine, "{mode:o} {owner}:{group} by {}: {why:?}", reader.user);
            }
        }
    }

    #[test]
    fn what_is_opened_is_checked_and_not_the_link_to_it() {
        let directory = tempfile::tempdir().unwrap();
        let (file, link) = (directory.path().join("key"), directory.path().join("link"));
        fs::write(&file, "secret").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        for (mode, fine) in [(0o644, false), (0o600, true)] {
            fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(read_private(&link).is_ok(), fine, "{mode:o}");
        }
        let error = open_private(directory.path()).unwrap_err();
        assert_eq!(error.to_string(), "not a regular file");
    }
}
