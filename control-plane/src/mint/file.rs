//! A secret in a file, as an orchestrator mounts it. A tenant reads below `[sources] file_dir`, in
//! the folder of its own name.

use std::{
    fs::{File, OpenOptions},
    io::Read as _,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::fs::OFlags;
use seks_types::{id::TenantName, secret::Secret};
use serde::Deserialize;
use zeroize::Zeroizing;

use super::{Access, MintError, Minted, is_path, reference};

/// The largest file, in bytes.
const MAX_BYTES: u64 = 64 * 1024;
/// A network file system may not answer.
const LIMIT: Duration = Duration::from_secs(10);

/// What an operator stores: which file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Reference {
    /// Below the tenant's folder.
    path: String,
    /// A key, when the file is a JSON object. Default: the whole file.
    #[serde(default)]
    field: String,
    /// Seconds between two reads. Default: 300.
    #[serde(default = "reference::default_refresh")]
    refresh_seconds: u64,
}

/// Reads the file that a reference names.
pub(super) async fn read(secret: &Secret, access: &Access) -> Result<Minted, MintError> {
    let reference: Reference = reference::parse(secret, "path; optionally field, refresh_seconds")?;
    reference::check_refresh(reference.refresh_seconds)?;
    if !is_path(&reference.path) {
        return Err(MintError::Invalid("field `path` is segments of letters, digits, `-`, `_` and `.`".into()));
    }
    let folder = folder(&access.sources.file_dir, &access.tenant)?;
    let path = reference.path.clone();
    let reading = tokio::task::spawn_blocking(move || read_below(&folder, &path));
    let read = tokio::time::timeout(LIMIT, reading).await.map_err(|_| unreadable("was not read in time"))?;
    let document = read.map_err(|_| unreadable("was not read"))??;
    access.select(&reference.field, reference.refresh_seconds).of_document(&document)
}

fn folder(directory: &Path, tenant: &TenantName) -> Result<PathBuf, MintError> {
    if directory.as_os_str().is_empty() {
        return Err(MintError::Invalid(
            "the control plane's configuration has no `[sources] file_dir`: no secret is read from a file".into(),
        ));
    }
    Ok(directory.join(tenant.as_str()))
}

/// Links may lead elsewhere in the folder, as those of a Kubernetes volume do, and not out of it.
fn read_below(folder: &Path, path: &str) -> Result<Zeroizing<Vec<u8>>, MintError> {
    let resolve = |path: &Path| path.canonicalize().map_err(|error| failed(&error));
    let (root, real) = (resolve(folder)?, resolve(&folder.join(path))?);
    if !real.starts_with(&root) {
        return Err(MintError::Invalid("the file is a link out of the tenant's folder".into()));
    }
    // A pipe would block the open; it is refused below.
    let flags = (OFlags::NONBLOCK | OFlags::NOFOLLOW).bits();
    let flags = i32::try_from(flags).unwrap_or_default();
    let file: File = OpenOptions::new().read(true).custom_flags(flags).open(&real).map_err(|error| failed(&error))?;
    let metadata = file.metadata().map_err(|error| failed(&error))?;
    if !metadata.is_file() {
        return Err(MintError::Invalid("the path names no regular file".into()));
    }
    if metadata.len() > MAX_BYTES {
        return Err(MintError::Invalid("the file has more than 64 KiB".into()));
    }
    let mut content = Zeroizing::new(Vec::with_capacity(usize::try_from(MAX_BYTES).unwrap_or_default() + 1));
    file.take(MAX_BYTES + 1).read_to_end(&mut content).map_err(|error| failed(&error))?;
    if content.len() as u64 > MAX_BYTES {
        return Err(MintError::Invalid("the file has more than 64 KiB".into()));
    }
    Ok(content)
}

/// The same text for a file that is absent and for one that is not readable: a reference does not
/// explore the folder.
fn failed(_: &std::io::Error) -> MintError {
    unreadable("is not there, or this process may not read it")
}

fn unreadable(why: &str) -> MintError {
    MintError::Source { text: format!("the file {why}"), is_final: false }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    #[test]
    fn a_tenant_reads_regular_files_of_its_own_folder_alone() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("acme");
        fs::create_dir_all(root.join("..data")).unwrap();
        fs::create_dir_all(directory.path().join("other")).unwrap();
        fs::write(root.join("..data/key"), "the-secret").unwrap();
        fs::write(directory.path().join("other/key"), "another-tenants").unwrap();
        fs::write(root.join("large"), vec![b'x'; 64 * 1024 + 1]).unwrap();
        symlink("..data/key", root.join("key")).unwrap();
        symlink("../other/key", root.join("stolen")).unwrap();
        symlink("/etc/passwd", root.join("passwd")).unwrap();
        assert!(std::process::Command::new("mkfifo").arg(root.join("pipe")).status().unwrap().success());
        assert_eq!(read_below(&root, "key").unwrap().as_slice(), b"the-secret");
        for (path, why) in [
            ("stolen", "out of the tenant's folder"),
            ("passwd", "out of the tenant's folder"),
            ("pipe", "no regular file"),
            ("..data", "no regular file"),
            ("large", "64 KiB"),
            ("none", "is not there"),
        ] {
            let error = read_below(&root, path).unwrap_err().to_string();
            assert!(error.contains(why), "{path}: {error}");
        }
    }
}
