//! Named contexts in a file, as in `kubectl`: the address of a control plane, and the operator's
//! identity.
//!
//! ```toml
//! current = "dev"
//!
//! [contexts.dev]
//! endpoint = "https://127.0.0.1:8301"
//! endpoints = ["https://127.0.0.2:8301"] # further replicas, tried in this order
//! proxy = "http://127.0.0.1:8300"
//! ca = "ca.pem"                  # PEM, or a file beside this one
//! certificate = "operator.pem"
//! key = "operator.key"
//! ```

use std::{
    collections::BTreeMap,
    fmt,
    fs::{self, File},
    io::Read as _,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{
    error::{CliError, Result},
    output::notice,
    registration, user,
};

/// Largest context file, in bytes.
const MAX_BYTES: u64 = 1024 * 1024;

/// A context file.
#[derive(Debug, Default, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct ContextFile {
    /// The default context.
    pub current: String,
    /// The contexts by name.
    pub contexts: BTreeMap<String, Context>,
}

/// One control plane and one operator.
#[derive(Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Context {
    /// `https://HOST:PORT` of the admin API. May be left out beside `endpoints`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub endpoint: String,
    /// Further replicas. A command uses the first that it can connect to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub endpoints: Vec<String>,
    /// Where agents reach the proxy, for `env` and `run`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxy: Option<String>,
    /// The address for agents' `HTTPS_PROXY`, if it is offered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forward_proxy: Option<String>,
    /// The tenant without `--tenant`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// The control plane's certificate authority: PEM, or a path.
    pub ca: String,
    /// The operator's certificate: PEM, or a path.
    pub certificate: String,
    /// The certificate's private key: PEM, or a path.
    pub key: String,
}

impl Context {
    /// The addresses of the admin API, in the order in which they are tried.
    pub fn all_endpoints(&self) -> impl Iterator<Item = &str> {
        let first = Some(&self.endpoint).filter(|endpoint| !endpoint.is_empty());
        first.into_iter().chain(self.endpoints.iter().filter(|other| **other != self.endpoint)).map(String::as_str)
    }
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context").field("endpoint", &self.endpoint).finish_non_exhaustive() // the key is a secret
    }
}

/// The selection of a context.
#[derive(Debug, Default, Clone)]
pub struct ContextSelector {
    /// `--context-file` or `SEKS_CONTEXT_FILE`.
    pub file: Option<PathBuf>,
    /// `--context`.
    pub name: Option<String>,
}

/// The environment variable that names a context file.
pub(crate) const FILE_VARIABLE: &str = "SEKS_CONTEXT_FILE";

/// How the context file was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    /// `--context-file`.
    Flag,
    /// `SEKS_CONTEXT_FILE`.
    Variable,
    /// The user's own file.
    User,
    /// The file of a running `seks dev` of this user.
    Registered,
}

impl ContextSelector {
    /// Finds and reads the context with its PEM files. Prints the file's name to stderr, unless it
    /// is the user's own or from the command line.
    ///
    /// # Errors
    /// Exit code 2. Names the file and the problem.
    pub fn load(&self) -> Result<Context> {
        let (path, origin) = self.find()?;
        match origin {
            Origin::Flag | Origin::User => {}
            Origin::Variable => notice(&format!("context: {} ({FILE_VARIABLE})", path.display())),
            Origin::Registered => notice(&format!("context: {} (the running `seks dev`)", path.display())),
        }
        self.read(&path)
    }

    /// [`Self::load`] without a word on stderr, for completions.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub(crate) fn load_quietly(&self) -> Result<Context> {
        self.read(&self.find()?.0)
    }

    fn read(&self, path: &Path) -> Result<Context> {
        let mut file = ContextFile::read(path)?;
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
        if context.all_endpoints().next().is_none() {
            return Err(CliError::usage(format!("{at}: contexts.{name}"), "missing field `endpoint`"));
        }
        let folder = path.parent().unwrap_or(Path::new("."));
        for (key, value, private) in [
            ("ca", &mut context.ca, false),
            ("certificate", &mut context.certificate, false),
            ("key", &mut context.key, true),
        ] {
            inline(folder, value, private).map_err(|mut e| {
                e.why = format!("{}: {}", e.what, e.why);
                e.what = format!("{at}: contexts.{name}.{key}");
                e
            })?;
        }
        Ok(context)
    }

    /// The context file in use, and the PEM files of all its contexts.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub(crate) fn files(&self) -> Result<Vec<PathBuf>> {
        let (path, _) = self.find()?;
        let file = ContextFile::read(&path)?;
        let folder = path.parent().unwrap_or(Path::new("."));
        let values = file.contexts.values().flat_map(|context| [&context.ca, &context.certificate, &context.key]);
        let mut files: Vec<_> = values.filter(|value| !is_pem(value)).map(|value| folder.join(value)).collect();
        files.push(path);
        Ok(files)
    }

    /// Whether a command without options uses this file.
    pub(crate) fn is_default(path: &Path) -> bool {
        let variable = std::env::var_os(FILE_VARIABLE).map(PathBuf::from);
        Self { file: variable, name: None }.find().is_ok_and(|(found, _)| found == path)
    }

    /// Never looks in the current folder. Otherwise the folder's author would administer this
    /// user's SEKS.
    fn find(&self) -> Result<(PathBuf, Origin)> {
        if let Some(file) = &self.file {
            let variable = std::env::var_os(FILE_VARIABLE).is_some_and(|value| value == *file);
            return Ok((file.clone(), if variable { Origin::Variable } else { Origin::Flag }));
        }
        if let Some(file) = user::context_file().filter(|path| path.exists()) {
            return Ok((file, Origin::User));
        }
        let mut running = user::state_dir().map(|state| registration::running(&state)).unwrap_or_default();
        if let Some(usual) =
            running.iter().position(|r| user::dev_data_dir().is_some_and(|dir| is_same(&dir, &r.data_dir)))
        {
            return Ok((running.swap_remove(usual).context_file, Origin::Registered));
        }
        match (running.pop(), running.len()) {
            (Some(only), 0) => Ok((only.context_file, Origin::Registered)),
            (Some(_), _) => Err(CliError::usage("context", "several `seks dev` are running")
                .hint("say which with --context-file DATA_DIR/context.toml")),
            (None, _) if Path::new(OLD_CONTEXT_FILE).exists() => Err(CliError::usage("context", "no context file")
                .hint(format!(
                    "{OLD_CONTEXT_FILE} is not used by itself; if it is yours: --context-file {OLD_CONTEXT_FILE}"
                ))),
            (None, _) => Err(CliError::usage("context", "no context file")
                .hint("start `seks dev`, or name a file with --context-file or SEKS_CONTEXT_FILE")),
        }
    }
}

/// The file that versions before 0.2 tried first, in the current folder.
const OLD_CONTEXT_FILE: &str = "./.seks-data/context.toml";

fn is_same(a: &Path, b: &Path) -> bool {
    fs::canonicalize(a).is_ok_and(|a| a == b)
}

fn is_pem(value: &str) -> bool {
    value.trim_start().starts_with("-----BEGIN ")
}

/// Replaces a path by the file's content. A `private` file must be closed to others.
fn inline(folder: &Path, value: &mut String, private: bool) -> Result<()> {
    if !is_pem(value) {
        let path = folder.join(&*value);
        let mut file = File::open(&path).map_err(|e| CliError::file(&path, &e))?;
        if private {
            user::check_private_file(&file, &path)?;
        }
        let mut text = String::new();
        file.read_to_string(&mut text).map_err(|e| CliError::file(&path, &e))?;
        *value = text;
    }
    if value.contains("-----BEGIN ") { Ok(()) } else { Err(CliError::usage("PEM", "not PEM")) }
}

impl ContextFile {
    /// Reads a file that this user owns and that is closed to others.
    ///
    /// # Errors
    /// Exit code 2. Names the file, and for an invalid one the line and the reason. The text is
    /// never repeated, because it holds a key.
    pub fn read(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|e| CliError::file(path, &e))?;
        user::check_private_file(&file, path)?;
        let mut text = String::new();
        file.take(MAX_BYTES + 1).read_to_string(&mut text).map_err(|e| CliError::file(path, &e))?;
        if text.len() as u64 > MAX_BYTES {
            return Err(CliError::usage(path.display().to_string(), "too large for a context file"));
        }
        toml::from_str(&text).map_err(|e| {
            let line = e.span().map_or(0, |s| text.get(..s.start).unwrap_or_default().matches('\n').count() + 1);
            CliError::usage(format!("{}: line {line}", path.display()), e.message())
        })
    }

    /// Writes the file atomically, readable by its owner only.
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
        crate::files::write_private(&path, text.as_bytes()).unwrap();
        (dir, path)
    }

    fn load(path: &Path, name: Option<&str>) -> Result<Context> {
        ContextSelector { file: Some(path.into()), name: name.map(Into::into) }.load()
    }

    #[test]
    fn a_file_round_trips_and_is_private() {
        use std::os::unix::fs::PermissionsExt as _;
        let (_dir, path) = file("");
        let context = Context {
            endpoint: "https://h:1".into(),
            endpoints: vec!["https://h:2".into()],
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
            crate::files::write_private(&dir.path().join(name), PEM.as_bytes()).unwrap();
        }
        assert_eq!(load(&path, None).unwrap().key, PEM);
        let selector = ContextSelector { file: Some(path.clone()), name: None };
        assert_eq!(selector.files().unwrap().len(), 4, "the context and its three files");
        fs::write(dir.path().join("k.pem"), "hunter2").unwrap();
        let error = load(&path, None).unwrap_err();
        assert!(error.to_string().ends_with("contexts.a.key: PEM: not PEM"), "{error}");
        crate::files::write_public(&dir.path().join("k.pem"), PEM.as_bytes()).unwrap();
        let error = load(&path, None).unwrap_err();
        assert!(error.to_string().contains("contexts.a.key: ") && error.why.contains("mode 0644"), "{error}");
    }

    #[test]
    fn a_context_has_one_endpoint_or_several() {
        let more = format!("ca={PEM:?}\ncertificate={PEM:?}\nkey={PEM:?}\n");
        for (endpoints, expect) in [
            ("endpoint='https://a'", vec!["https://a"]),
            ("endpoint='https://a'\nendpoints=['https://b','https://a']", vec!["https://a", "https://b"]),
            ("endpoints=['https://b','https://c']", vec!["https://b", "https://c"]),
        ] {
            let (_dir, path) = file(&format!("current='a'\n[contexts.a]\n{endpoints}\n{more}"));
            let context = load(&path, None).unwrap();
            assert_eq!(context.all_endpoints().collect::<Vec<_>>(), expect);
        }
        let (_dir, path) = file(&format!("current='a'\n[contexts.a]\n{more}"));
        assert!(load(&path, None).unwrap_err().to_string().contains("missing field `endpoint`"));
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
