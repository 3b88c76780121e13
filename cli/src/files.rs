//! Files. Input is read with a size limit. Files with secrets, and files that others wait for, are
//! written atomically.

use std::{
    fs,
    io::{Read as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use crate::error::{CliError, Result};

/// Largest input file, in bytes. One message to the control plane can hold it.
const MAX_BYTES: u64 = 3 * 1024 * 1024;

/// Reads a file; `-` is standard input.
///
/// # Errors
/// Exit code 2, naming the file and the reason.
pub fn read_bytes(path: &Path) -> Result<Vec<u8>> {
    let source: std::io::Result<Box<dyn std::io::Read>> = if path == Path::new("-") {
        Ok(Box::new(std::io::stdin()))
    } else {
        fs::File::open(path).map(|f| Box::new(f) as _)
    };
    let mut bytes = Vec::new();
    source.and_then(|s| s.take(MAX_BYTES + 1).read_to_end(&mut bytes)).map_err(|e| CliError::file(path, &e))?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(CliError::usage(path.display().to_string(), format!("larger than {MAX_BYTES} bytes")));
    }
    Ok(bytes)
}

/// Reads a text file; `-` is standard input.
///
/// # Errors
/// As [`read_bytes`], and when it isn't UTF-8.
pub fn read_text(path: &Path) -> Result<String> {
    String::from_utf8(read_bytes(path)?).map_err(|_| CliError::usage(path.display().to_string(), "not UTF-8 text"))
}

/// Writes a file that only its owner may read. The write is atomic: a new file is synced and
/// renamed over the old one.
///
/// # Errors
/// Exit code 2. Names the file and the reason. The old file is then unchanged.
pub fn write_private(path: &Path, bytes: &[u8]) -> Result<()> {
    write(path, bytes, 0o600)
}

/// [`write_private`] for a file without secrets.
///
/// # Errors
/// As [`write_private`].
pub fn write_public(path: &Path, bytes: &[u8]) -> Result<()> {
    write(path, bytes, 0o644)
}

fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    let name = path.file_name().ok_or_else(|| CliError::usage(path.display().to_string(), "not a file name"))?;
    let temporary: PathBuf = path.with_file_name(format!(".{}.{}", name.to_string_lossy(), std::process::id()));
    let written = (|| {
        let _ = fs::remove_file(&temporary); // of a process that died with our id: its mode may be another
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    })();
    written.map_err(|e| {
        let _ = fs::remove_file(&temporary);
        CliError::file(path, &e)
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_private_file_replaces_an_open_one_and_leaves_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        fs::write(&path, "old").unwrap();
        write_private(&path, b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_missing_folder_is_named() {
        let error = write_public(Path::new("/nonexistent-folder/f"), b"").unwrap_err();
        assert_eq!(error.to_string(), "/nonexistent-folder/f: no such file or directory");
    }
}
