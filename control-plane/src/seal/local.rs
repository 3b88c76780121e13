//! Key-encryption keys in this process: read from a file or a variable.

use std::{
    fs::{File, OpenOptions},
    io::{Read as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use aes_gcm::{Aes256Gcm, KeyInit as _, aead::AeadInOut as _};
use data_encoding::{HEXLOWER, HEXLOWER_PERMISSIVE};
use futures_util::{FutureExt as _, future::BoxFuture};
use seks_runtime::private_file::{give_to_owner_of, open_private};
use sha2::{Digest as _, Sha256};
use zeroize::{Zeroize as _, Zeroizing};

use super::{
    SealError,
    provider::{DEK_BYTES, Dek, KekId, KekProvider},
};

/// Length of a KEK, in bytes.
pub(super) const BYTES: usize = 32;
const NONCE: usize = 12;
const TAG: usize = 16;
/// Length of a wrapped data key: nonce, ciphertext and tag.
pub(super) const WRAPPED: usize = NONCE + DEK_BYTES + TAG;

/// A key-encryption key, as an expanded cipher that is wiped when dropped.
#[derive(Clone)]
pub(super) struct LocalKek {
    id: KekId,
    cipher: Box<Aes256Gcm>,
}

impl LocalKek {
    /// From raw bytes, which the caller wipes.
    pub(super) fn new(key: &[u8; BYTES]) -> Self {
        let hash = Sha256::new().chain_update(b"seks/v1/kek-id\0").chain_update(key).finalize();
        let mut id = [0; 8];
        id.iter_mut().zip(hash).for_each(|(to, from)| *to = from);
        Self { id: KekId(id), cipher: Box::new(Aes256Gcm::new(key.into())) }
    }

    /// From a file that is private in the sense of [`open_private`].
    pub(super) fn from_file(path: &Path) -> Result<Self, SealError> {
        let shown = || path.display().to_string();
        let failed = |source: std::io::Error| match source.raw_os_error() {
            None => SealError::KeyExposed { path: shown(), reason: source.to_string() },
            Some(_) => SealError::KeyFile { path: shown(), source },
        };
        let mut file = open_private(path).map_err(failed)?;
        // One byte more than the longest acceptable content: enough to see that it is too long.
        let mut text = Zeroizing::new([0_u8; BYTES * 2 + 3]);
        let mut length = 0;
        while let Some(rest) = text.get_mut(length..).filter(|rest| !rest.is_empty()) {
            match file.read(rest).map_err(failed)? {
                0 => break,
                n => length += n,
            }
        }
        Self::parse("seal.path", text.get(..length).unwrap_or_default(), || format!("key file `{}`", shown()))
    }

    /// From an environment variable, which stays set: see [`SealKind::Env`](super::SealKind::Env).
    pub(super) fn from_env(variable: &str) -> Result<Self, SealError> {
        let text = std::env::var_os(variable).ok_or_else(|| SealError::KeyVariable(variable.into()))?;
        let text = Zeroizing::new(text.into_encoded_bytes());
        Self::parse("seal.variable", &text, || format!("environment variable `{variable}`"))
    }

    fn parse(key: &'static str, text: &[u8], origin: impl Fn() -> String) -> Result<Self, SealError> {
        let wrong = |reason| SealError::KeyFormat { key, origin: origin(), reason };
        let text = text.strip_suffix(b"\n").map_or(text, |line| line.strip_suffix(b"\r").unwrap_or(line));
        if text.len() != BYTES * 2 {
            return Err(wrong(if text.is_empty() { "this is empty" } else { "this has another length" }));
        }
        let mut bytes = Zeroizing::new([0_u8; BYTES]);
        // Into the place that is wiped: nothing else ever holds the key.
        HEXLOWER_PERMISSIVE.decode_mut(text, bytes.as_mut_slice()).map_err(|_| wrong("this has other characters"))?;
        if bytes.iter().all(|byte| *byte == 0) {
            return Err(wrong("this is all zeros"));
        }
        Ok(Self::new(&bytes))
    }

    fn wrap_dek(&self, header: &[u8], dek: &Dek) -> Result<Vec<u8>, SealError> {
        let mut nonce = [0; NONCE];
        getrandom::fill(&mut nonce).map_err(SealError::Random)?;
        let mut wrapped = dek.clone();
        let tag = self
            .cipher
            .encrypt_inout_detached((&nonce).into(), header, wrapped.as_mut_slice().into())
            .map_err(|_| SealError::Rejected)?;
        Ok([&nonce[..], wrapped.as_slice(), &tag[..]].concat())
    }

    fn unwrap_dek(&self, header: &[u8], wrapped: &[u8]) -> Result<Dek, SealError> {
        let parts = || {
            let (nonce, rest) = wrapped.split_first_chunk::<NONCE>()?;
            let (dek, tag) = rest.split_last_chunk::<TAG>()?;
            Some((nonce, Dek::new(dek.try_into().ok()?), tag))
        };
        let (nonce, mut dek, tag) = parts().ok_or(SealError::Rejected)?;
        self.cipher
            .decrypt_inout_detached(nonce.into(), header, dek.as_mut_slice().into(), tag.into())
            .map_err(|_| SealError::Rejected)?;
        Ok(dek)
    }
}

impl KekProvider for LocalKek {
    fn id(&self) -> KekId {
        self.id
    }

    fn wrap<'a>(&'a self, header: &'a [u8], dek: &'a Dek) -> BoxFuture<'a, Result<Vec<u8>, SealError>> {
        std::future::ready(self.wrap_dek(header, dek)).boxed()
    }

    fn unwrap<'a>(&'a self, header: &'a [u8], wrapped: &'a [u8]) -> BoxFuture<'a, Result<Dek, SealError>> {
        std::future::ready(self.unwrap_dek(header, wrapped)).boxed()
    }

    fn is_local(&self) -> bool {
        true
    }

    fn unwrap_now(&self, header: &[u8], wrapped: &[u8]) -> Option<Result<Dek, SealError>> {
        Some(self.unwrap_dek(header, wrapped))
    }
}

/// Writes a new KEK beside `path` and links it there, so that an interruption leaves no partial
/// key.
pub(super) fn create_file(path: &Path) -> Result<(), SealError> {
    let mut key = Zeroizing::new([0_u8; BYTES]);
    getrandom::fill(key.as_mut_slice()).map_err(SealError::Random)?;
    let mut text = Zeroizing::new([b'\n'; BYTES * 2 + 1]);
    if let Some(digits) = text.get_mut(..BYTES * 2) {
        HEXLOWER.encode_mut(key.as_slice(), digits);
    }
    key.zeroize();
    write_new_file(path, text.as_slice())
}

/// Writes a private file whole, or not at all. It never replaces a file.
pub(super) fn write_new_file(path: &Path, content: &[u8]) -> Result<(), SealError> {
    let failed = |source| SealError::KeyFile { path: path.display().to_string(), source };
    let directory = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let draft = path.with_extension(format!("new-{}", std::process::id()));
    let written = (|| {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft)?;
        give_to_owner_of(directory, &file)?;
        file.write_all(content)?;
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
        let read =
            |content: &str| LocalKek::from_file(&file(directory.path(), "kek", content, 0o600)).map(|kek| kek.id());
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
        for mode in [0o604, 0o644, 0o601, 0o660] {
            let path = file(directory.path(), "open", HEX, mode);
            let link = directory.path().join(format!("link-{mode:o}"));
            std::os::unix::fs::symlink(&path, &link).unwrap();
            for path in [path, link] {
                let error = LocalKek::from_file(&path).err().unwrap();
                assert!(matches!(error, SealError::KeyExposed { .. }), "{mode:o}: {error}");
            }
        }
        let path = file(directory.path(), "closed", HEX, 0o400);
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(path, &link).unwrap();
        assert!(LocalKek::from_file(&link).is_ok());
        assert!(matches!(LocalKek::from_file(directory.path()).err().unwrap(), SealError::KeyExposed { .. }));
        let missing = LocalKek::from_file(&directory.path().join("missing")).err().unwrap();
        assert!(matches!(missing, SealError::KeyFile { .. }), "{missing}");
    }

    #[test]
    fn a_variable_that_is_not_set_or_not_a_key_is_named() {
        let error = |variable| LocalKek::from_env(variable).err().unwrap().to_string();
        assert_eq!(error("SEKS_TEST_NO_SUCH_KEY"), "environment variable `SEKS_TEST_NO_SUCH_KEY` is not set");
        assert!(error("PATH").starts_with("environment variable `PATH`: a key-encryption key is 64"));
    }

    #[test]
    fn a_new_key_file_is_private_complete_and_never_replaces_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("kek");
        create_file(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let id = LocalKek::from_file(&path).unwrap().id();
        assert!(matches!(create_file(&path), Err(SealError::KeyFile { .. })));
        assert_eq!(LocalKek::from_file(&path).unwrap().id(), id, "the key that was there is gone");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "a draft is left");
        let other = directory.path().join("other");
        create_file(&other).unwrap();
        assert_ne!(LocalKek::from_file(&other).unwrap().id(), id);
    }
}
