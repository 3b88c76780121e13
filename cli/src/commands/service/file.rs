//! A service file in TOML, YAML or JSON.

use std::path::Path;

use seks_proto::wire;
use seks_service::spec::ServiceSpec;

use crate::{
    error::{CliError, Result},
    files::read_text,
    markup::{Syntax, parse},
};

/// Placeholder for the command's tenant, which does not affect the checks.
const ANY_TENANT: &str = "default";

/// Reads and checks a file. The caller replaces the tenant.
///
/// # Errors
/// Exit code 2. Names the file, the position or key, and the reason.
pub(super) fn read(path: &Path) -> Result<wire::Service> {
    let text = read_text(path)?;
    let name = path.display().to_string();
    if text.trim().is_empty() {
        return Err(CliError::usage(name, "the file is empty"));
    }
    let syntax =
        Syntax::of(path, &text).ok_or_else(|| CliError::usage(&name, "a service is a .toml, .yaml or .json file"))?;
    let spec: ServiceSpec = parse(syntax, &text).map_err(|why| CliError::usage(&name, why))?;
    spec.to_service(ANY_TENANT).and_then(|_| spec.to_wire(ANY_TENANT)).map_err(|e| CliError::usage(name, e))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(name: &str, text: &str) -> Result<wire::Service> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        read(&path)
    }

    #[test]
    fn the_three_forms_are_the_same_service() {
        let toml = at("a.toml", "name='acme'\nupstream='https://api.acme.test'\ninject={header='X-Key'}\n").unwrap();
        let yaml = at("a.yaml", "name: acme\nupstream: https://api.acme.test\ninject: {header: X-Key}\n").unwrap();
        let json = at("a.json", r#"{"name":"acme","upstream":"https://api.acme.test","inject":{"header":"X-Key"}}"#);
        assert_eq!((&toml, &yaml), (&json.unwrap(), &toml));
        assert_eq!((toml.name.as_str(), toml.fields.as_slice()), ("acme", &["key".to_owned()][..]));
    }

    #[test]
    fn bad_files_are_one_line_that_names_the_place() {
        let good = "name='a'\nupstream='https://h.test'\ninject='bearer'\n";
        let cases = [
            ("a.toml", " \n", "the file is empty"),
            ("a.txt", "?", "a .toml, .yaml or .json file"),
            ("a.toml", &format!("{good}nope=1\n"), "line 4: unknown field `nope`"),
            ("a.toml", "name=3\n", "line 1: invalid type"),
            ("a.toml", "name='a\n", "line 1: "),
            ("a.json", "{\"name\":\"a\",}", "line 1 column 13"),
            ("a.json", "3", "invalid type"),
            ("a.yaml", "name: [a", ""),
            ("a.yaml", "nope: a", "unknown field"),
            ("a.toml", &good.replace("'a'", "'A B'"), "a service name is 1 to 63"),
            ("a.toml", &good.replace("https://h.test", "http://127.0.0.1"), "upstream"),
        ];
        for (name, text, expect) in cases {
            let error = at(name, text).unwrap_err();
            assert_eq!(error.exit as u8, 2, "{text}");
            assert!(error.to_string().contains(expect), "{text:?}: {error}");
            assert_eq!(error.lines().lines().count(), 1);
        }
    }
}
