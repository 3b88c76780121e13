//! Key services: a KEK that is kept in a file, wrapped by a key that never leaves the service. The
//! KEK is unwrapped at start and stays in memory. From then on the service is asked only whether
//! the key may still be used.

mod aws_kms;
mod transit;

use std::path::Path;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use futures_util::future::BoxFuture;
use seks_runtime::private_file::read_private;
use zeroize::Zeroizing;

use self::{aws_kms::AwsKms, transit::Transit};
use super::{
    SealConfig, SealError, SealKind,
    local::{self, LocalKek},
};
use crate::mint::MintError;

/// The beginning of a file with a wrapped KEK: format, kind of the service, base64 of what it
/// returned.
const FORMAT: &str = "seks-kek-v1";
/// The largest such file, in bytes.
const MAX_FILE_BYTES: u64 = 64 * 1024;

/// Why a key service did not wrap or unwrap.
#[derive(Debug)]
pub(super) enum KeyServiceError {
    /// It may work later: the service is away, overloaded or sealed.
    Away(String),
    /// The service answered that this key may not be used.
    Refused(String),
}

impl From<KeyServiceError> for SealError {
    fn from(error: KeyServiceError) -> Self {
        match error {
            KeyServiceError::Away(why) => Self::KekUnavailable(why),
            KeyServiceError::Refused(why) => Self::KekRefused(why),
        }
    }
}

/// A key service with one key. Calls are bounded in time by the connection's own limits.
pub(super) trait KeyService: Send + Sync {
    /// Wraps a KEK.
    fn wrap<'a>(&'a self, kek: &'a [u8]) -> BoxFuture<'a, Result<Vec<u8>, KeyServiceError>>;

    /// Unwraps what [`wrap`](Self::wrap) returned.
    fn unwrap<'a>(&'a self, wrapped: &'a [u8]) -> BoxFuture<'a, Result<Zeroizing<Vec<u8>>, KeyServiceError>>;
}

/// The service of `config`, and its kind as wrapped files name it.
pub(super) fn of(config: &SealConfig) -> Result<(&'static str, Box<dyn KeyService>), SealError> {
    match config.kind {
        SealKind::VaultTransit => Ok(("vault-transit", Box::new(Transit::new(&config.transit)))),
        SealKind::AwsKms => Ok(("aws-kms", Box::new(AwsKms::new(&config.aws_kms)))),
        SealKind::File | SealKind::Env => {
            Err(SealError::Config { key: "kind", reason: "names no key service: `vault-transit` or `aws-kms`" })
        }
    }
}

/// Makes a KEK, has it wrapped, and writes it to a new file. The file is of no use without the
/// service.
pub(super) async fn create_file(config: &SealConfig, path: &Path) -> Result<(), SealError> {
    let (kind, service) = of(config)?;
    let mut kek = Zeroizing::new([0_u8; local::BYTES]);
    getrandom::fill(kek.as_mut_slice()).map_err(SealError::Random)?;
    let wrapped = service.wrap(kek.as_slice()).await?;
    // A key that does not unwrap must not be the one that a store is sealed with.
    if service.unwrap(&wrapped).await?.as_slice() != kek.as_slice() {
        return Err(SealError::KekRefused("it does not unwrap what it wrapped".into()));
    }
    local::write_new_file(path, format!("{FORMAT} {kind} {}\n", STANDARD.encode(wrapped)).as_bytes())
}

/// A wrapped KEK, as it is in its file.
pub(super) struct WrappedKek(Vec<u8>);

impl WrappedKek {
    /// Reads a file; `None` when it holds no wrapped KEK.
    pub(super) fn read(path: &Path, kind: &str) -> Result<Option<Self>, SealError> {
        let shown = || path.display().to_string();
        let failed = |source| SealError::KeyFile { path: shown(), source };
        let length = std::fs::metadata(path).map_err(failed)?.len();
        if length > MAX_FILE_BYTES {
            return Ok(None);
        }
        let Ok(text) = std::fs::read_to_string(path).map(Zeroizing::new) else { return Ok(None) };
        let mut words = text.split_ascii_whitespace();
        if words.next() != Some(FORMAT) {
            return Ok(None);
        }
        match (words.next(), words.next().and_then(|word| STANDARD.decode(word).ok()), words.next()) {
            (Some(of), _, _) if of != kind => {
                Err(SealError::WrappedElsewhere { path: shown(), kind: of.to_owned(), configured: kind.to_owned() })
            }
            (Some(_), Some(wrapped), None) => Ok(Some(Self(wrapped))),
            _ => Err(SealError::KeyFile { path: shown(), source: std::io::ErrorKind::InvalidData.into() }),
        }
    }

    /// The KEK.
    pub(super) async fn unwrap(&self, service: &dyn KeyService) -> Result<LocalKek, SealError> {
        let bytes = service.unwrap(&self.0).await?;
        let bytes: &[u8; local::BYTES] = bytes
            .as_slice()
            .try_into()
            .map_err(|_| SealError::KekRefused("what it unwraps is no key-encryption key".into()))?;
        Ok(LocalKek::new(bytes))
    }
}

/// The active KEK and the older ones.
pub(super) async fn load(config: &SealConfig) -> Result<(LocalKek, Vec<LocalKek>), SealError> {
    let (kind, service) = of(config)?;
    let Some(active) = WrappedKek::read(&config.path, kind)? else {
        return Err(SealError::Config { key: "path", reason: "is no file of `create-kek --wrapped`" });
    };
    let active = active.unwrap(&*service).await?;
    let mut older = Vec::with_capacity(config.older.len());
    for path in &config.older {
        older.push(match WrappedKek::read(Path::new(path), kind)? {
            Some(wrapped) => wrapped.unwrap(&*service).await?,
            None => LocalKek::from_file(Path::new(path))?,
        });
    }
    Ok((active, older))
}

/// A secret of the configuration in a file of its own.
fn read_secret(path: &Path) -> Result<Zeroizing<String>, KeyServiceError> {
    let text = read_private(path).map(Zeroizing::new);
    let text = text.map_err(|error| KeyServiceError::Away(format!("cannot read `{}`: {error}", path.display())))?;
    Ok(Zeroizing::new(text.trim().to_owned()))
}

/// PEM roots of a file; `""` without one.
fn read_roots(path: &Path) -> Result<String, KeyServiceError> {
    if path.as_os_str().is_empty() {
        return Ok(String::new());
    }
    let failed = |error| KeyServiceError::Away(format!("cannot read `{}`: {error}", path.display()));
    std::fs::read_to_string(path).map_err(failed)
}

fn away(error: &MintError) -> KeyServiceError {
    let text = error.to_string();
    KeyServiceError::Away(text.strip_prefix("the token endpoint ").map_or(text.clone(), |rest| format!("it {rest}")))
}
