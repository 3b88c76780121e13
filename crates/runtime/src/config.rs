//! Configuration: file (TOML) < environment (`SEKS_SECTION_KEY`) < command line, merged into any `Deserialize` struct.
//!
//! Unknown keys are errors; so is an environment variable that names a section of the configuration and no key in it.
//! An error is one line that says where (file, variable or command line), which key and why. Values are repeated only
//! where that helps, and never for a key that could hold a secret.

mod environment;
mod value;

use std::{
    fmt,
    path::{Path, PathBuf},
};

use serde::de::DeserializeOwned;

use self::value::{ConfigValue, ValueError};

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Nowhere: a key that is absent.
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

/// Why a configuration is not acceptable, as one line: `WHERE: KEY: REASON`. Exit code [`Usage`](super::Exit::Usage).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct ConfigError {
    /// The file, variable or command line that is wrong.
    pub origin: Origin,
    /// The key in dotted form, `proxy.listen`; empty when the file as a whole can't be read.
    pub key: String,
    /// What is wrong with it.
    pub reason: String,
}

impl ConfigError {
    /// For what only the program knows to be wrong (a port in use, a path that isn't there).
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
        // One line whatever a parser below says.
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
#[derive(Default)]
pub struct Loader {
    file: Option<PathBuf>,
    environment: Vec<(String, String)>,
    flags: toml::Table,
}

impl Loader {
    /// No source at all: every key has its default.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Reads this file, if one is given. A file that is named must be there.
    #[must_use]
    pub fn file(mut self, path: Option<&Path>) -> Self {
        self.file = path.map(Into::into);
        self
    }

    /// Takes these variables; those that don't begin with `SEKS_` are ignored. Usually [`std::env::vars_os`], through
    /// [`Loader::process_environment`].
    #[must_use]
    pub fn environment(mut self, variables: impl IntoIterator<Item = (String, String)>) -> Self {
        self.environment = variables.into_iter().filter(|(name, _)| name.starts_with("SEKS_")).collect();
        self
    }

    /// Takes the process's environment.
    #[must_use]
    pub fn process_environment(self) -> Self {
        let text = |s: std::ffi::OsString| s.into_string().ok();
        self.environment(std::env::vars_os().filter_map(|(name, value)| Some((text(name)?, text(value)?))))
    }

    /// Takes what the command line sets, in the form of a file.
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

    /// Merges the sources and reads `T` from them.
    ///
    /// # Errors
    /// When the file can't be read or isn't TOML, a key is unknown or missing, or a value doesn't fit.
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
