//! Where the control plane is and who the operator is: named contexts in a file, as in `kubectl`.
//!
//! ```toml
//! current = "dev"
//!
//! [contexts.dev]
//! endpoint = "https://127.0.0.1:8301"
//! proxy = "http://127.0.0.1:8300"
//! ca = "ca.pem"                  # PEM, or a file beside this one
//! certificate = "operator.pem"
//! key = "operator.key"
//! ```

use std::{
    collections::BTreeMap,
    fmt, fs,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::error::{CliError, Result};

/// Largest context file, in bytes.
const MAX_BYTES: u64 = 1024 * 1024;

/// The file.
#[derive(Debug, Default, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct ContextFile {
    /// The context that is used when none is named.
    pub current: String,
    /// The contexts by name.
    pub contexts: BTreeMap<String, Context>,
}

/// One control plane and one operator.
#[derive(Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Context {
    /// `https://HOST:PORT` of the admin API.
    pub endpoint: String,
    /// Where agents reach the proxy, for `env` and `run`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxy: Option<String>,
    /// Where their `HTTPS_PROXY` points, where that is offered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forward_proxy: Option<String>,
    /// The tenant when `--tenant` says none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// The control plane's certificate authority: PEM, or a path.
    pub ca: String,
    /// The operator's certificate: PEM, or a path.
    pub certificate: String,
    /// Its private key: PEM, or a path.
    pub key: String,
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context").field("endpoint", &self.endpoint).finish_non_exhaustive() // the key is a secret
    }
}

/// Which context is meant.
#[derive(Debug, Default, Clone)]
pub struct Choice {
    /// `--context-file` or `SEKS_CONTEXT_FILE`.
    pub file: Option<PathBuf>,
    /// `--context`.
    pub name: Option<String>,
}

/// Where `seks dev` keeps its data unless it is told otherwise: `seks` looks there for a context.
pub const DEV_FOLDER: &str = ".seks-data";

impl Choice {
    /// Finds and reads the context, its PEM files included.
    ///
    /// # Errors
    /// Exit code 2, naming the file and what is wrong with it.
    pub fn load(&self) -> Result<Context> {
        let path = self.path()?;
        let mut file = ContextFile::read(&path)?;
        let at = path.display();
        let name = self.name.clone().unwrap_or_else(|| file.current.clone());
        let mut context = file.contexts.remove(&name).ok_or_else(|| {
            let known: Vec<_> = file.contexts.keys().chain([&name]).map(|n| format!("`{n}`")).collect();
            let why = if name.is_empty() { "no `current` context".into() } else { format!("no context `{name}`") };
            CliError::usage(at.to_string(), why).hint(match known.len() {
                0 | 1 => "`seks dev` writes one".into(),
                _ => format!("it has {}", known.get(..known.len() - 1).unwrap_or_default().join(", ")),
            })
        })?;
        let folder = path.parent().unwrap_or(Path::new("."));
        for (key, value) in
            [("ca", &mut context.ca), ("certificate", &mut context.certificate), ("key", &mut context.key)]
        {
            inline(folder, value).map_err(|e| CliError::usage(format!("{at}: contexts.{name}.{key}"), e))?;
        }
        Ok(context)
    }

    fn path(&self) -> Result<PathBuf> {
        if let Some(file) = &self.file {
            return Ok(file.clone());
        }
        let dev = Path::new(DEV_FOLDER).join("context.toml");
        if dev.exists() {
            return Ok(dev);
        }
        let user = user_file();
        user.filter(|p| p.exists()).ok_or_else(|| {
            CliError::usage("context", "no context file")
                .hint("`seks dev` in this folder makes one; or name one with --context-file or SEKS_CONTEXT_FILE")
        })
    }
}

/// `$XDG_CONFIG_HOME/seks/context.toml`, by default `~/.config/seks/context.toml`.
fn user_file() -> Option<PathBuf> {
    let config = std::env::var_os("XDG_CONFIG_HOME").filter(|v| !v.is_empty()).map(PathBuf::from);
    let home = || std::env::var_os("HOME").map(|h| PathBuf::from(h).join(".config"));
    Some(config.or_else(home)?.join("seks/context.toml"))
}

/// Puts a file's contents in place of its path.
fn inline(folder: &Path, value: &mut String) -> Result<(), String> {
    if !value.trim_start().starts_with("-----BEGIN ") {
        let path = folder.join(&*value);
        *value =
            fs::read_to_string(&path).map_err(|e| format!("{}: {}", path.display(), crate::error::plain_io(&e)))?;
    }
    if value.contains("-----BEGIN ") { Ok(()) } else { Err("not PEM".into()) }
}

impl ContextFile {
    /// Reads a file.
    ///
    /// # Errors
    /// Exit code 2, naming the file and, in a broken one, the line and the reason; never its text, which holds a key.
    pub fn read(path: &Path) -> Result<Self> {
        let size = fs::metadata(path).map_err(|e| CliError::file(path, &e))?.len();
        if size > MAX_BYTES {
            return Err(CliError::usage(path.display().to_string(), "too large for a context file"));
        }
        let text = fs::read_to_string(path).map_err(|e| CliError::file(path, &e))?;
        toml::from_str(&text).map_err(|e| {
            let line = e.span().map_or(0, |s| text.get(..s.start).unwrap_or_default().matches('\n').count() + 1);
            CliError::usage(format!("{}: line {line}", path.display()), e.message())
        })
    }

    /// Writes it whole or not at all, readable by its owner only.
    ///
    /// # Errors
    /// Exit code 2, naming the file.
    pub fn write(&self, path: &Path) -> Result<()> {
        let text = toml::to_string(self).map_err(|e| CliError::usage(path.display().to_string(), e))?;
        crate::files::write_private(path, text.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEM: &str = "-----BEGIN X-----\nAA==\n-----END X-----\n";

    fn file(text: &str) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("context.toml");
        fs::write(&path, text).unwrap();
        (dir, path)
    }

    fn load(path: &Path, name: Option<&str>) -> Result<Context> {
        Choice { file: Some(path.into()), name: name.map(Into::into) }.load()
    }

    #[test]
    fn a_file_round_trips_and_is_private() {
        use std::os::unix::fs::PermissionsExt as _;
        let (_dir, path) = file("");
        let context = Context {
            endpoint: "https://h:1".into(),
            proxy: Some("http://p".into()),
            forward_proxy: Some("http://f".into()),
            tenant: None,
            ca: PEM.into(),
            certificate: PEM.into(),
            key: PEM.into(),
        };
        let written = ContextFile { current: "dev".into(), contexts: [("dev".into(), context.clone())].into() };
        written.write(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(load(&path, None).unwrap(), context);
        assert_eq!(load(&path, Some("dev")).unwrap(), context);
    }

    #[test]
    fn pem_may_stand_in_files_beside_it() {
        let (dir, path) =
            file("current='a'\n[contexts.a]\nendpoint='https://h'\nca='ca.pem'\ncertificate='c.pem'\nkey='k.pem'\n");
        let error = load(&path, None).unwrap_err();
        assert!(error.what.ends_with("contexts.a.ca") && error.why.ends_with("no such file or directory"), "{error}");
        for name in ["ca.pem", "c.pem", "k.pem"] {
            fs::write(dir.path().join(name), PEM).unwrap();
        }
        assert_eq!(load(&path, None).unwrap().key, PEM);
        fs::write(dir.path().join("k.pem"), "hunter2").unwrap();
        let error = load(&path, None).unwrap_err();
        assert!(error.to_string().ends_with("contexts.a.key: not PEM"), "{error}");
    }

    #[test]
    fn a_broken_file_is_one_line_that_names_the_place_and_never_the_key() {
        let cases = [
            ("current = 3", "line 1: invalid type"),
            ("current='a'\nkey='SECRET'", "line 2: unknown field `key`"),
            ("[contexts.a]\nendpoint='x'\nkey='SECRET\n", "line 3: "),
            ("[contexts.a]\nendpoint='x'\nkey='SECRET'", "missing field `ca`"),
            ("", "no `current` context"),
            ("current='b'", "no context `b`"),
        ];
        for (text, expect) in cases {
            let (_dir, path) = file(text);
            let error = load(&path, None).unwrap_err();
            assert_eq!(error.exit, crate::error::Exit::Usage);
            assert!(error.to_string().contains(expect), "{text:?}: {error}");
            assert!(!format!("{error:?}").contains("SECRET"), "{error:?}");
        }
    }
}
