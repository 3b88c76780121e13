//! Key-encryption keys: read from a file or a variable, known by an id that gives nothing away.

use std::{
    fmt,
    fs::{File, OpenOptions},
    io::{Read as _, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::Path,
};

use aes_gcm::{Aes256Gcm, KeyInit as _};
use data_encoding::{HEXLOWER, HEXLOWER_PERMISSIVE};
use sha2::{Digest as _, Sha256};
use zeroize::{Zeroize as _, Zeroizing};

use super::SealError;

/// Length of a KEK.
pub const BYTES: usize = 32;

/// A KEK's name in envelopes, logs and errors: the first 64 bits of a hash of the key. The key has 256 random bits, so the
/// hash can't be searched.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct KekId(pub [u8; 8]);

impl fmt::Display for KekId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        HEXLOWER.encode_write(&self.0, f)
    }
}

impl fmt::Debug for KekId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// A key-encryption key, as an expanded cipher that is wiped when dropped.
#[derive(Clone)]
pub(super) struct Kek {
    id: KekId,
    cipher: Box<Aes256Gcm>,
}

impl Kek {
    /// From raw bytes, which the caller wipes.
    pub(super) fn new(key: &[u8; BYTES]) -> Self {
        let hash = Sha256::new().chain_update(b"seks/v1/kek-id\0").chain_update(key).finalize();
        let mut id = [0; 8];
        id.iter_mut().zip(hash).for_each(|(to, from)| *to = from);
        Self { id: KekId(id), cipher: Box::new(Aes256Gcm::new(key.into())) }
    }

    /// From a file: regular, owned by us or root, closed to group and others. What is checked is what was opened, so a symbolic
    /// link is as private as the file it leads to.
    pub(super) fn from_file(path: &Path) -> Result<Self, SealError> {
        let shown = || path.display().to_string();
        let failed = |source| SealError::KeyFile { path: shown(), source };
        let mut file = File::open(path).map_err(failed)?;
        let meta = file.metadata().map_err(failed)?;
        let exposed = |reason: String| Err(SealError::KeyExposed { path: shown(), reason });
        if !meta.is_file() {
            return exposed("not a regular file".into());
        }
        if meta.mode() & 0o077 != 0 {
            return exposed(format!("mode is {:04o}, must be 0600: others could read the key", meta.mode() & 0o7777));
        }
        let us = rustix::process::geteuid().as_raw();
        if meta.uid() != us && meta.uid() != 0 {
            return exposed(format!("owned by user {}, must be owned by {us} or root", meta.uid()));
        }
        // One byte more than the longest acceptable content: enough to see that it is too long.
        let mut text = Zeroizing::new([0_u8; BYTES * 2 + 3]);
        let mut length = 0;
        while let Some(rest) = text.get_mut(length..).filter(|rest| !rest.is_empty()) {
            match file.read(rest).map_err(failed)? {
                0 => break,
                n => length += n,
            }
        }
        Self::parse(text.get(..length).unwrap_or_default(), || format!("key file `{}`", shown()))
    }

    /// From an environment variable, which stays set: see [`SealKind::Env`](super::SealKind::Env).
    pub(super) fn from_env(variable: &str) -> Result<Self, SealError> {
        let text = std::env::var_os(variable).ok_or_else(|| SealError::KeyVariable(variable.into()))?;
        let text = Zeroizing::new(text.into_encoded_bytes());
        Self::parse(&text, || format!("environment variable `{variable}`"))
    }

    fn parse(text: &[u8], origin: impl Fn() -> String) -> Result<Self, SealError> {
        let wrong = |reason| SealError::KeyFormat { origin: origin(), reason };
        let text = text.strip_suffix(b"\n").map_or(text, |line| line.strip_suffix(b"\r").unwrap_or(line));
        if text.len() != BYTES * 2 {
            return Err(wrong(if text.is_empty() { "this is empty" } else { "this has another length" }));
        }
        let mut key = Zeroizing::new([0_u8; BYTES]);
        // Into the place that is wiped: nothing else ever holds the key.
        HEXLOWER_PERMISSIVE.decode_mut(text, key.as_mut_slice()).map_err(|_| wrong("this has other characters"))?;
        if key.iter().all(|byte| *byte == 0) {
            return Err(wrong("this is all zeros"));
        }
        Ok(Self::new(&key))
    }

    pub(super) fn id(&self) -> KekId {
        self.id
    }

    pub(super) fn cipher(&self) -> &Aes256Gcm {
        &self.cipher
    }
}

/// Writes a new KEK beside `path` and links it there: whoever is killed meanwhile leaves no half key behind.
pub(super) fn create_file(path: &Path) -> Result<(), SealError> {
    let failed = |source| SealError::KeyFile { path: path.display().to_string(), source };
    let mut key = Zeroizing::new([0_u8; BYTES]);
    getrandom::fill(key.as_mut_slice()).map_err(SealError::Random)?;
    let mut text = Zeroizing::new([b'\n'; BYTES * 2 + 1]);
    if let Some(digits) = text.get_mut(..BYTES * 2) {
        HEXLOWER.encode_mut(key.as_slice(), digits);
    }
    key.zeroize();

    let directory = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let draft = path.with_extension(format!("new-{}", std::process::id()));
    let written = (|| {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft)?;
        file.write_all(text.as_slice())?;
        file.sync_all()?;
        std::fs::hard_link(&draft, path) // unlike a rename it never replaces a key that is there
    })();
    let removed = std::fs::remove_file(&draft);
    written.and(removed).and_then(|()| File::open(directory)?.sync_all()).map_err(failed)
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _, path::PathBuf};

    use super::*;

    const HEX: &str = "00112233445566778899aabbccddeeff00112233445566778899AABBCCDDEEFF";

    fn file(directory: &Path, name: &str, content: &str, mode: u32) -> PathBuf {
        let path = directory.join(name);
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    #[test]
    fn a_key_is_64_hexadecimal_characters_and_a_newline_at_most() {
        let directory = tempfile::tempdir().unwrap();
        let read = |content: &str| Kek::from_file(&file(directory.path(), "kek", content, 0o600)).map(|kek| kek.id());
        let id = read(HEX).unwrap();
        assert_eq!(read(&format!("{HEX}\n")).unwrap(), id);
        assert_eq!(read(&format!("{HEX}\r\n")).unwrap(), id);
        assert_eq!(read(&HEX.to_lowercase()).unwrap(), id);
        for (bad, reason) in [
            (String::new(), "empty"),
            ("\n".into(), "empty"),
            (HEX[..63].into(), "length"),
            (format!("{HEX}0"), "length"),
            (format!("{HEX}\n\n"), "length"),
            (format!(" {HEX}"), "length"),
            (HEX.repeat(1000), "length"),
            (HEX.replace('0', "g"), "characters"),
            ("+1".repeat(32), "characters"),
            ("0".repeat(64), "zeros"),
        ] {
            let error = read(&bad).unwrap_err().to_string();
            assert!(error.contains(reason) && !error.contains('\n'), "{error}");
            assert!(bad.len() < 8 || !error.contains(&bad[..8]), "the error repeats the key: {error}");
        }
    }

    #[test]
    fn a_key_that_others_could_read_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        for mode in [0o604, 0o640, 0o644, 0o601, 0o660] {
            let path = file(directory.path(), "open", HEX, mode);
            let link = directory.path().join(format!("link-{mode:o}"));
            std::os::unix::fs::symlink(&path, &link).unwrap();
            for path in [path, link] {
                let error = Kek::from_file(&path).err().unwrap();
                assert!(matches!(error, SealError::KeyExposed { .. }), "{mode:o}: {error}");
            }
        }
        let path = file(directory.path(), "closed", HEX, 0o400);
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(path, &link).unwrap();
        assert!(Kek::from_file(&link).is_ok());
        assert!(matches!(Kek::from_file(directory.path()).err().unwrap(), SealError::KeyExposed { .. }));
        let missing = Kek::from_file(&directory.path().join("missing")).err().unwrap();
        assert!(matches!(missing, SealError::KeyFile { .. }), "{missing}");
    }

    #[test]
    fn a_variable_that_is_not_set_or_not_a_key_is_named() {
        let error = |variable| Kek::from_env(variable).err().unwrap().to_string();
        assert_eq!(error("SEKS_TEST_NO_SUCH_KEY"), "environment variable `SEKS_TEST_NO_SUCH_KEY` is not set");
        assert!(error("PATH").starts_with("environment variable `PATH`: a key-encryption key is 64"));
    }

    #[test]
    fn a_new_key_file_is_private_complete_and_never_replaces_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("kek");
        create_file(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let id = Kek::from_file(&path).unwrap().id();
        assert!(matches!(create_file(&path), Err(SealError::KeyFile { .. })));
        assert_eq!(Kek::from_file(&path).unwrap().id(), id, "the key that was there is gone");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "a draft is left");
        let other = directory.path().join("other");
        create_file(&other).unwrap();
        assert_ne!(Kek::from_file(&other).unwrap().id(), id);
    }
}
