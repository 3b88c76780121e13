//! Files in TOML, YAML or JSON, with errors of one line that name the place.

use std::path::Path;

use serde::de::DeserializeOwned;

/// How a file is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Syntax {
    /// `.toml`.
    Toml,
    /// `.yaml` or `.yml`.
    Yaml,
    /// `.json`.
    Json,
}

impl Syntax {
    /// By the file's extension. Standard input has none, and is recognized by its text.
    #[must_use]
    pub fn of(path: &Path, text: &str) -> Option<Self> {
        match path.extension().and_then(|e| e.to_str()) {
            Some("toml") => Some(Self::Toml),
            Some("yaml" | "yml") => Some(Self::Yaml),
            Some("json") => Some(Self::Json),
            None if is_stream(path) => Some(match text.trim_start() {
                t if t.starts_with('{') => Self::Json,
                t if t.starts_with("[[") || t.lines().any(is_toml_key) => Self::Toml,
                _ => Self::Yaml,
            }),
            _ => None,
        }
    }
}

/// Standard input, also as a shell's `<(…)` writes it.
fn is_stream(path: &Path) -> bool {
    path == Path::new("-") || path.starts_with("/dev") || path.starts_with("/proc")
}

/// `name =` and `revision =` begin the files of this command line.
fn is_toml_key(line: &str) -> bool {
    line.split_once('=').is_some_and(|(key, _)| matches!(key.trim(), "name" | "revision"))
}

/// Reads a value.
///
/// # Errors
/// One line with the position and the reason.
pub fn parse<T: DeserializeOwned>(syntax: Syntax, text: &str) -> Result<T, String> {
    match syntax {
        Syntax::Json => serde_json::from_str(text).map_err(|e| e.to_string()),
        Syntax::Toml => toml::from_str(text).map_err(|e| {
            let line = e.span().map_or(0, |s| text.get(..s.start).unwrap_or_default().matches('\n').count() + 1);
            format!("line {line}: {}", e.message())
        }),
        Syntax::Yaml => serde_saphyr::from_str(text).map_err(|e| {
            let text = e.to_string();
            let first = text.lines().next().unwrap_or_default(); // the other lines quote the file
            first.strip_prefix("error: ").unwrap_or(first).to_owned()
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn standard_input_is_recognised_by_what_is_in_it() {
        let of = |text| Syntax::of(Path::new("-"), text).unwrap();
        assert_eq!(of(" {\"name\": 1}"), Syntax::Json);
        assert_eq!(of("title = 'x'\nname = 'a'"), Syntax::Toml);
        assert_eq!(of("[[agents]]\nname = 'a'"), Syntax::Toml);
        assert_eq!(of("name: a\nbase_path: /x=name"), Syntax::Yaml);
        assert_eq!(of(""), Syntax::Yaml);
        assert_eq!(Syntax::of(Path::new("a.txt"), ""), None);
    }
}
