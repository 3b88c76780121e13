//! From `[store]` to clients: what is refused, and how each connection is set up.

use std::{
    fs::File,
    io::Read as _,
    path::Path,
    sync::{Arc, atomic::AtomicU64, atomic::AtomicUsize},
};

use etcd_client::{Certificate, ConnectOptions, Identity, TlsOptions};
use seks_runtime::private_file::open_private;
use zeroize::Zeroizing;

use super::link::{Endpoint, Link};
use crate::store::{OpenError, StoreConfig, StoreError};

/// Larger than any key or password file.
const MAX_FILE_BYTES: u64 = 1024 * 1024;

/// Checks the configuration and reads its files. Connections are made when they are needed.
pub(super) fn link(config: &StoreConfig) -> Result<Link, OpenError> {
    let options = options(config)?;
    let endpoints = config.endpoints.iter().map(|url| Ok(Endpoint::new(checked(url, config)?, options.clone())));
    let endpoints: Vec<Endpoint> = endpoints.collect::<Result<_, OpenError>>()?;
    if endpoints.is_empty() {
        return wrong("endpoints", "is missing");
    }
    let mut writer = [0; 8];
    getrandom::fill(&mut writer).map_err(|e| StoreError::Unavailable(e.to_string()))?;
    let prefix = config.prefix.trim_end_matches('/');
    Ok(Link {
        endpoints: endpoints.into(),
        at: Arc::new(AtomicUsize::new(0)),
        prefix: format!("{prefix}/").into(),
        writer: u64::from_be_bytes(writer),
        count: Arc::new(AtomicU64::new(0)),
        retry: config.retry_timeout,
    })
}

/// Checks the endpoints, and reads nothing.
pub(in crate::store) fn check(config: &StoreConfig) -> Result<(), OpenError> {
    if config.endpoints.is_empty() {
        return wrong("endpoints", "is missing");
    }
    config.endpoints.iter().try_for_each(|url| checked(url, config).map(drop))
}

fn wrong<T>(key: &'static str, reason: impl Into<String>) -> Result<T, OpenError> {
    Err(OpenError::Config { key, reason: reason.into() })
}

fn checked<'a>(url: &'a str, config: &StoreConfig) -> Result<&'a str, OpenError> {
    let tls = !config.tls.ca_file.as_os_str().is_empty();
    match url.split_once("://") {
        Some(("https", host)) if !host.is_empty() && tls => Ok(url),
        Some(("https", host)) if !host.is_empty() => wrong("tls.ca_file", format!("is missing, and `{url}` needs it")),
        Some(("http", host)) if !host.is_empty() && config.allow_plaintext => Ok(url),
        Some(("http", _)) => wrong(
            "endpoints",
            format!("`{url}` is not encrypted: use https, or set store.allow_plaintext where nobody listens"),
        ),
        _ => wrong("endpoints", format!("`{url}` is not of the form https://host:port")),
    }
}

fn options(config: &StoreConfig) -> Result<ConnectOptions, OpenError> {
    // `new()` keeps idle connections alive, `default()` doesn't: a frozen peer would go unnoticed.
    let mut options = ConnectOptions::new()
        .with_keep_alive(config.keep_alive, config.keep_alive)
        .with_connect_timeout(config.connect_timeout)
        .with_timeout(config.request_timeout)
        .with_require_leader(true) // a member that is cut off from the others ends our watch instead of going silent
        .with_auto_token_refresh(true);
    if config.endpoints.iter().any(|url| url.starts_with("https://")) && !config.tls.ca_file.as_os_str().is_empty() {
        options = options.with_tls(tls(config)?);
    }
    match (config.user.is_empty(), config.password_file.as_os_str().is_empty()) {
        (true, true) => Ok(options),
        (true, false) => wrong("user", "is missing, and store.password_file is set"),
        (false, true) => wrong("password_file", "is missing, and store.user is set"),
        (false, false) => {
            let password = read("password_file", &config.password_file, Access::Private)?;
            let Ok(password) = std::str::from_utf8(&password) else { return wrong("password_file", "is not UTF-8") };
            // The library keeps the password as a plain string for as long as it has to refresh
            // tokens.
            Ok(options.with_user(config.user.as_str(), password.trim_end_matches(['\r', '\n'])))
        }
    }
}

fn tls(config: &StoreConfig) -> Result<TlsOptions, OpenError> {
    let files = &config.tls;
    let mut tls = TlsOptions::new()
        .ca_certificate(Certificate::from_pem(read("tls.ca_file", &files.ca_file, Access::Public)?.as_slice()));
    if !files.server_name.is_empty() {
        tls = tls.domain_name(files.server_name.as_str());
    }
    match (files.cert_file.as_os_str().is_empty(), files.key_file.as_os_str().is_empty()) {
        (true, true) => Ok(tls),
        (true, false) => wrong("tls.cert_file", "is missing, and store.tls.key_file is set"),
        (false, true) => wrong("tls.key_file", "is missing, and store.tls.cert_file is set"),
        (false, false) => {
            let certificate = read("tls.cert_file", &files.cert_file, Access::Public)?;
            let key = read("tls.key_file", &files.key_file, Access::Private)?;
            Ok(tls.identity(Identity::from_pem(certificate.as_slice(), key.as_slice())))
        }
    }
}

enum Access {
    Public,
    Private,
}

fn read(key: &'static str, path: &Path, access: Access) -> Result<Zeroizing<Vec<u8>>, OpenError> {
    let failed = |source| OpenError::KeyFile { key, path: path.display().to_string(), source };
    let file = match access {
        Access::Public => File::open(path),
        Access::Private => open_private(path),
    };
    let file = file.map_err(failed)?;
    let meta = file.metadata().map_err(failed)?;
    let length = meta.len().min(MAX_FILE_BYTES);
    let mut bytes = Zeroizing::new(Vec::with_capacity(usize::try_from(length).unwrap_or_default() + 1));
    file.take(MAX_FILE_BYTES).read_to_end(&mut bytes).map_err(failed)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::PermissionsExt as _, path::PathBuf};

    use super::*;
    use crate::store::{StoreKind, StoreTlsConfig};

    fn config(endpoints: &[&str]) -> StoreConfig {
        let endpoints = endpoints.iter().map(|&url| url.to_owned()).collect();
        StoreConfig { kind: StoreKind::Etcd, endpoints, ..StoreConfig::default() }
    }

    fn refusal(config: &StoreConfig) -> String {
        let text = link(config).err().unwrap().to_string();
        assert!(!text.contains('\n'), "{text}");
        text
    }

    fn file(directory: &tempfile::TempDir, name: &str, mode: u32) -> PathBuf {
        let path = directory.path().join(name);
        std::fs::write(&path, "content").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    #[test]
    fn an_endpoint_without_encryption_needs_leave() {
        assert_eq!(refusal(&config(&[])), "store.endpoints: is missing");
        assert!(refusal(&config(&["http://127.0.0.1:2379"])).contains("is not encrypted"));
        assert!(refusal(&config(&["https://127.0.0.1:2379"])).starts_with("store.tls.ca_file: is missing"));
        for odd in ["127.0.0.1:2379", "https://", "ftp://127.0.0.1", ""] {
            assert!(refusal(&config(&[odd])).contains("is not of the form https://host:port"), "{odd}");
        }
        let allowed = StoreConfig { allow_plaintext: true, ..config(&["http://127.0.0.1:2379"]) };
        assert!(link(&allowed).is_ok());
    }

    #[test]
    fn keys_that_belong_together_are_asked_for_together() {
        let directory = tempfile::tempdir().unwrap();
        let path = file(&directory, "private", 0o600);
        let plain = StoreConfig { allow_plaintext: true, ..config(&["http://127.0.0.1:2379"]) };
        assert!(
            refusal(&StoreConfig { user: "u".into(), ..plain.clone() }).starts_with("store.password_file: is missing")
        );
        assert!(
            refusal(&StoreConfig { password_file: path.clone(), ..plain.clone() })
                .starts_with("store.user: is missing")
        );
        let tls = |tls: StoreTlsConfig| StoreConfig { tls, ..config(&["https://127.0.0.1:2379"]) };
        let ca = StoreTlsConfig { ca_file: path.clone(), ..StoreTlsConfig::default() };
        let half = tls(StoreTlsConfig { cert_file: path.clone(), ..ca.clone() });
        assert!(refusal(&half).starts_with("store.tls.key_file: is missing"));
        let half = tls(StoreTlsConfig { key_file: path, ..ca });
        assert!(refusal(&half).starts_with("store.tls.cert_file: is missing"));
    }

    #[test]
    fn a_password_file_must_be_there_and_private() {
        let directory = tempfile::tempdir().unwrap();
        let with = |password_file: PathBuf| StoreConfig {
            user: "u".into(),
            password_file,
            allow_plaintext: true,
            ..config(&["http://127.0.0.1:2379"])
        };
        assert!(refusal(&with(file(&directory, "open", 0o644))).starts_with("store.password_file: `"));
        assert!(refusal(&with(file(&directory, "open", 0o644))).contains("readable by others"));
        assert!(refusal(&with(directory.path().join("missing"))).contains("No such file"));
        let key = file(&directory, "client.key", 0o644);
        let tls =
            StoreTlsConfig { ca_file: key.clone(), cert_file: key.clone(), key_file: key, ..StoreTlsConfig::default() };
        let exposed = refusal(&StoreConfig { tls, ..config(&["https://127.0.0.1:2379"]) });
        assert!(exposed.starts_with("store.tls.key_file: `") && exposed.contains("client.key"), "{exposed}");
        assert!(link(&with(file(&directory, "private", 0o600))).is_ok());
    }

    #[test]
    fn a_prefix_ends_with_one_slash() {
        for (given, used) in [("/seks/", "/seks/"), ("/seks", "/seks/"), ("a//", "a/"), ("", "/")] {
            let plain = StoreConfig { allow_plaintext: true, ..config(&["http://127.0.0.1:2379"]) };
            assert_eq!(&*link(&StoreConfig { prefix: given.into(), ..plain }).unwrap().prefix, used);
        }
    }
}
