//! The addresses of a running `seks dev`, for other processes and for the terminal.

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::{
    error::{CliError, Result},
    files::write_public,
};

/// The content of `--ready-file`.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Ready {
    /// Base URL for agents.
    pub(crate) proxy: String,
    /// HTTPS_PROXY mode, where it is offered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) forward_proxy: Option<String>,
    /// The admin API.
    pub(crate) admin: String,
    /// `/metrics`, `/healthz`, `/readyz`.
    pub(crate) metrics: String,
    /// The page for browsers: its origin. The link to it is only printed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) page: Option<String>,
    /// The CLI's context.
    pub(crate) context_file: PathBuf,
    /// Whether this user's `seks` finds the context without options.
    #[serde(skip)]
    pub(crate) found_by_default: bool,
}

/// Refuses a file whose folder is not there, before anything is started.
pub(super) fn check_folder(path: &Path) -> Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::read_dir(folder).map(drop).map_err(|e| CliError::file(path, &e))
}

impl Ready {
    /// Writes the file atomically.
    ///
    /// # Errors
    /// Exit code 2, naming the file.
    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        let json = serde_json::to_vec(self).map_err(|e| CliError::usage(path.display().to_string(), e))?;
        write_public(path, &json)
    }

    /// The text for the terminal.
    pub(crate) fn greeting(&self, page_link: Option<&str>) -> String {
        let context = self.context_file.display();
        let mut text = format!(
            "SEKS is serving.\n  proxy    {}/api/SERVICE\n  admin    {}\n  metrics  {}/metrics\n  context  {context}\n",
            self.proxy, self.admin, self.metrics,
        );
        if let Some(link) = page_link {
            text.push_str(&format!("  page     {link}  (opens once, within 10 minutes; `seks page` prints another)\n"));
        }
        if !self.found_by_default {
            text.push_str(&format!(
                "Another context comes first: export SEKS_CONTEXT_FILE='{context}' to use this one.\n"
            ));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ready_file_is_one_json_object_with_the_contracts_keys() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ready.json");
        let ready = Ready {
            proxy: "http://127.0.0.1:1".into(),
            forward_proxy: None,
            admin: "https://127.0.0.1:2".into(),
            metrics: "http://127.0.0.1:3".into(),
            page: Some("http://127.0.0.1:4".into()),
            context_file: "/x/context.toml".into(),
            found_by_default: false,
        };
        ready.write(&path).unwrap();
        let json: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        assert_eq!(
            json,
            serde_json::json!({"proxy": "http://127.0.0.1:1", "admin": "https://127.0.0.1:2",
                "metrics": "http://127.0.0.1:3", "page": "http://127.0.0.1:4", "context_file": "/x/context.toml"})
        );
    }
}
