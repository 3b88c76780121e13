//! `[store]`: which store, and how to reach it.

use std::{path::PathBuf, time::Duration};

use serde::Deserialize;

/// Which implementation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StoreKind {
    /// One file on this machine, for one control plane.
    #[default]
    Embedded,
    /// An etcd cluster, for any number of replicas.
    Etcd,
}

/// `[store]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StoreConfig {
    /// Default: `embedded`.
    pub kind: StoreKind,
    /// Embedded: the file. Made with mode 0600 when it isn't there, its directory with 0700. No
    /// default.
    pub path: PathBuf,
    /// The file that remembers, outside of the store, the highest revision that was seen of it: a
    /// store below it went back, and is refused. Default: beside an embedded store, with `.mark` at
    /// the end of its name; etcd: none, and then nodes alone notice.
    pub mark_file: PathBuf,
    /// Etcd: `https://host:port` of each member, nearest first; used in this order, each until it
    /// fails.
    pub endpoints: Vec<String>,
    /// Etcd: what all keys begin with. Default: `/seks/`. A slash at the end is added where it
    /// lacks.
    pub prefix: String,
    /// Etcd: accept `http://` endpoints, and so send tokens' digests, envelopes and the password in
    /// the clear. Default: false.
    pub allow_plaintext: bool,
    /// Etcd: TLS.
    pub tls: StoreTlsConfig,
    /// Etcd: the user, when authentication is on.
    pub user: String,
    /// Etcd: a file that holds the user's password; a newline at its end doesn't count.
    pub password_file: PathBuf,
    /// Etcd: longest wait for a connection. Default: 1 s.
    #[serde(with = "humantime_serde")]
    pub connect_timeout: Duration,
    /// etcd only: longest wait for one response. After that the next endpoint is used. Default: 2
    /// s.
    #[serde(with = "humantime_serde")]
    pub request_timeout: Duration,
    /// Etcd: longest time that an operation is tried before it fails. Default: 10 s.
    #[serde(with = "humantime_serde")]
    pub retry_timeout: Duration,
    /// Etcd: a peer that is silent for twice this long is given up. Default: 2 s.
    #[serde(with = "humantime_serde")]
    pub keep_alive: Duration,
}

/// `[store.tls]`: PEM files.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StoreTlsConfig {
    /// Roots that etcd's certificate must chain to. Default: none, and then `https` endpoints are
    /// an error.
    pub ca_file: PathBuf,
    /// Our certificate, when etcd asks for one.
    pub cert_file: PathBuf,
    /// Its key.
    pub key_file: PathBuf,
    /// The name in etcd's certificate, when it isn't the endpoint's.
    pub server_name: String,
}

impl Default for StoreConfig {
    fn default() -> Self {
        Self {
            kind: StoreKind::default(),
            path: PathBuf::new(),
            mark_file: PathBuf::new(),
            endpoints: Vec::new(),
            prefix: "/seks/".into(),
            allow_plaintext: false,
            tls: StoreTlsConfig::default(),
            user: String::new(),
            password_file: PathBuf::new(),
            connect_timeout: Duration::from_secs(1),
            request_timeout: Duration::from_secs(2),
            retry_timeout: Duration::from_secs(10),
            keep_alive: Duration::from_secs(2),
        }
    }
}

impl StoreConfig {
    /// The embedded store in one file.
    #[must_use]
    pub fn embedded(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), ..Self::default() }
    }

    /// The file of an embedded store.
    ///
    /// # Errors
    /// When none is named.
    pub(crate) fn embedded_path(&self) -> Result<PathBuf, OpenError> {
        if self.path.as_os_str().is_empty() {
            return Err(OpenError::Config { key: "path", reason: "is missing".into() });
        }
        Ok(self.path.clone())
    }

    /// Where the audit trail is kept when nothing else is said; `None`: nowhere.
    #[must_use]
    pub fn trail_dir(&self) -> Option<PathBuf> {
        (self.kind == StoreKind::Embedded).then(|| {
            let mut path = self.path.as_os_str().to_owned();
            path.push(".audit");
            path.into()
        })
    }

    /// Where the highest revision is remembered; `None`: nowhere.
    #[must_use]
    pub fn mark(&self) -> Option<PathBuf> {
        match self.kind {
            _ if !self.mark_file.as_os_str().is_empty() => Some(self.mark_file.clone()),
            StoreKind::Embedded => {
                let mut path = self.path.as_os_str().to_owned();
                path.push(".mark");
                Some(path.into())
            }
            StoreKind::Etcd => None,
        }
    }
}

/// Why a store can't be opened: one line for the operator, exit code 2 (configuration) or 1.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A key of `[store]` is absent or wrong.
    #[error("store.{key}: {reason}")]
    Config {
        /// The key.
        key: &'static str,
        /// What is the matter.
        reason: String,
    },
    /// A file can't be read, made or written.
    #[error("`{path}`: {source}")]
    File {
        /// Which.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// A file that a key of `[store]` names can't be read, or others could have read it.
    #[error("store.{key}: `{path}`: {source}")]
    KeyFile {
        /// The key.
        key: &'static str,
        /// Which.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// Another process has it open.
    #[error("`{0}` is in use by another process")]
    InUse(String),
    /// The file is something else, or of a newer version of SEKS.
    #[error("`{path}` is not a store that this version can read: {reason}")]
    NotAStore {
        /// Which.
        path: String,
        /// Why.
        reason: String,
    },
    /// A store is where one was to be made.
    #[error("there is a store already: {0}")]
    Exists(String),
    /// A restore was interrupted.
    #[error("a restore into it was not finished: repeat it")]
    Unfinished,
    /// The store answers, and not as it should.
    #[error(transparent)]
    Store(#[from] super::StoreError),
}

impl OpenError {
    /// The key of the configuration that is wrong, if it is one; `""`: the message names it.
    #[must_use]
    pub fn config_key(&self) -> Option<&'static str> {
        match self {
            Self::Config { .. } | Self::KeyFile { .. } => Some(""),
            Self::File { .. } | Self::InUse(_) | Self::NotAStore { .. } => Some("store.path"),
            Self::Exists(_) | Self::Unfinished | Self::Store(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_written_out_and_unknown_keys_refused() {
        let read = |text: &str| toml::from_str::<StoreConfig>(text).map_err(|e| e.message().to_owned());
        assert_eq!(read("").unwrap(), StoreConfig::default());
        let etcd =
            read("kind = \"etcd\"\nendpoints = [\"https://e:2379\"]\nkeep_alive = \"3s\"\n[tls]\nca_file = \"ca\"");
        let etcd = etcd.unwrap();
        assert_eq!((etcd.kind, etcd.keep_alive), (StoreKind::Etcd, Duration::from_secs(3)));
        assert_eq!(etcd.tls.ca_file, PathBuf::from("ca"));
        for bad in ["kind = \"redis\"", "keep_alive = 3", "paht = \"x\"", "[tls]\nca = \"x\"", "endpoints = \"x\""] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}
