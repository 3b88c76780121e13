//! Configuration: file (TOML) < environment (`SEKS_SECTION_KEY`) < command line, merged into any
//! `Deserialize` struct.
//!
//! Unknown keys are errors. An environment variable that names a section but no key of it is an
//! error too. An error is one line with the origin (file, variable or command line), the key and
//! the reason. Values are repeated only where that helps, and never for a key that may hold a
//! secret.

mod environment;
mod value;

use std::{
    fmt,
    path::{Path, PathBuf},
};

use serde::de::DeserializeOwned;

use self::value::{ConfigValue, ValueError};

/// The origin of a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The key is absent.
    Absent,
    /// A configuration file.
    File(PathBuf),
    /// An environment variable.
    Environment(String),
    /// The command line.
    CommandLine,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent => f.write_str("configuration"),
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Environment(name) => f.write_str(name),
            Self::CommandLine => f.write_str("command line"),
        }
    }
}

/// Why a configuration is invalid, as one line: `ORIGIN: KEY: REASON`. Exit code
/// [`Usage`](super::Exit::Usage).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct ConfigError {
    /// The file, variable or command line with the error.
    pub origin: Origin,
    /// The key in dotted form, `proxy.listen`. Empty when the file as a whole is invalid.
    pub key: String,
    /// The problem.
    pub reason: String,
}

impl ConfigError {
    /// An error that only the program can detect, such as a port in use or a missing path.
    #[must_use]
    pub fn new(origin: Origin, key: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { origin, key: key.into(), reason: reason.into() }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.origin)?;
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        // Parser messages may have several lines.
        let reason = self.reason.split_ascii_whitespace().collect::<Vec<_>>().join(" ");
        f.write_str(&reason)
    }
}

/// Collects the sources, weakest first.
///
/// ```
/// # use seks_runtime::config::Loader;
/// #[derive(Default, serde::Deserialize)]
/// #[serde(deny_unknown_fields, default)]
/// struct Config { proxy: Proxy }
/// #[derive(Default, serde::Deserialize)]
/// #[serde(deny_unknown_fields, default)]
/// struct Proxy { listen: Option<std::net::SocketAddr> }
///
/// let environment = [("SEKS_PROXY_LISTEN".to_owned(), "127.0.0.1:8300".to_owned())];
/// let config: Config = Loader::new().environment(environment).load()?;
/// assert_eq!(config.proxy.listen.unwrap().port(), 8300);
/// # Ok::<(), seks_runtime::config::ConfigError>(())
/// ```
#[derive(Clone, Default)]
pub struct Loader {
    file: Option<PathBuf>,
    environment: Vec<(String, String)>,
    flags: toml::Table,
}

impl Loader {
    /// A loader without sources: every key has its default.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Reads this file, if one is given. It must exist.
    #[must_use]
    pub fn file(mut self, path: Option<&Path>) -> Self {
        self.file = path.map(Into::into);
        self
    }

    /// Uses these variables. Those without the prefix `SEKS_` are ignored.
    /// [`Loader::process_environment`] passes the process's own.
    #[must_use]
    pub fn environment(mut self, variables: impl IntoIterator<Item = (String, String)>) -> Self {
        self.environment = variables.into_iter().filter(|(name, _)| name.starts_with("SEKS_")).collect();
        self
    }

    /// Uses the process's environment.
    #[must_use]
    pub fn process_environment(self) -> Self {
        let text = |s: std::ffi::OsString| s.into_string().ok();
        self.environment(std::env::vars_os().filter_map(|(name, value)| Some((text(name)?, text(value)?))))
    }

    /// Sets the values of the command line, in the form of a file.
    #[must_use]
    pub fn flags(mut self, flags: toml::Table) -> Self {
        self.flags = flags;
        self
    }

    /// Sets one dotted key from the command line, `proxy.listen`.
    #[must_use]
    pub fn flag(mut self, key: &str, value: Option<impl Into<toml::Value>>) -> Self {
        let Some(value) = value else { return self };
        let mut table = &mut self.flags;
        let mut parts = key.split('.').peekable();
        while let Some(part) = parts.next() {
            if parts.peek().is_none() {
                table.insert(part.into(), value.into());
                break;
            }
            let entry = table.entry(part).or_insert_with(|| toml::Value::Table(toml::Table::new()));
            match entry {
                toml::Value::Table(inner) => table = inner,
                _ => break,
            }
        }
        self
    }

    /// Merges the sources and deserializes `T`.
    ///
    /// # Errors
    /// When the file cannot be read or is no TOML, a key is unknown or missing, or a value has a
    /// wrong type.
    pub fn load<T: DeserializeOwned>(self) -> Result<T, ConfigError> {
        let mut root = ConfigValue::empty();
        if let Some(path) = &self.file {
            let origin = Origin::File(path.clone());
            root.merge(ConfigValue::from_table(read_table(path)?, &origin));
        }
        root.merge(ConfigValue::from_table(self.flags, &Origin::CommandLine));
        root.variables = environment::config_variables(self.environment)?;
        T::deserialize(root).map_err(|error| error.located(self.file.as_deref()))
    }
}

fn read_table(path: &Path) -> Result<toml::Table, ConfigError> {
    let wrong = |reason: String| ConfigError::new(Origin::File(path.into()), "", reason);
    let text = std::fs::read_to_string(path).map_err(|e| wrong(describe_io_error(&e)))?;
    // The error's own Display quotes the line, and the line may hold a secret.
    text.parse::<toml::Table>().map_err(|e| {
        let line = e.span().map_or(1, |s| 1 + text.bytes().take(s.start).filter(|b| *b == b'\n').count());
        wrong(format!("line {line}: {}", e.message()))
    })
}

fn describe_io_error(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::NotFound => "no such file".into(),
        std::io::ErrorKind::PermissionDenied => "permission denied".into(),
        std::io::ErrorKind::InvalidData => "not UTF-8 text".into(),
        std::io::ErrorKind::IsADirectory => "is a directory".into(),
        _ => error.to_string(),
    }
}

impl ValueError {
    fn located(self, file: Option<&Path>) -> ConfigError {
        let origin = match (self.origin, file) {
            (Origin::Absent, Some(file)) => Origin::File(file.into()),
            (origin, _) => origin,
        };
        ConfigError::new(origin, self.path.join("."), self.reason)
    }
}

#[cfg(test)]
mod tests;
