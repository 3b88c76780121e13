//! `--source KIND[:WHERE]`: a credential as a reference to a secret that is kept elsewhere.

use serde_json::json;

use crate::error::{CliError, Result};

/// The kinds, and whether all that they need fits on the command line.
const KINDS: [(&str, bool); 6] = [
    ("file", true),
    ("command", true),
    ("vault-kv", false),
    ("aws-secrets-manager", false),
    ("gcp-secret-manager", false),
    ("1password-connect", false),
];

/// A parsed option.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Source {
    pub(super) kind: String,
    /// The reference as JSON; `None`: it is read like a secret, because it holds a login.
    pub(super) reference: Option<String>,
}

impl Source {
    /// # Errors
    /// Exit code 2 for another kind, or when the kind's reference cannot be an argument.
    pub(super) fn parse(text: &str) -> Result<Self> {
        let wrong = |why: String| CliError::usage("--source", why);
        let (kind, place) = text.split_once(':').map_or((text, None), |(kind, place)| (kind, Some(place)));
        let Some((_, fits)) = KINDS.iter().find(|(known, _)| *known == kind) else {
            let known: Vec<&str> = KINDS.iter().map(|(kind, _)| *kind).collect();
            return Err(wrong(format!("`{kind}` is not one of {}", known.join(", "))));
        };
        let reference = match (kind, place) {
            (_, None) => None,
            (_, Some(_)) if !fits => {
                return Err(wrong(format!("a reference of `{kind}` holds a login, and is never an argument"))
                    .hint("pass it with --from-stdin or --from-file FILE"));
            }
            ("file", Some(path)) => Some(json!({ "path": path })),
            (_, Some(command)) => Some(match command.split_once(':') {
                Some((command, argument)) => json!({ "command": command, "argument": argument }),
                None => json!({ "command": command }),
            }),
        };
        Ok(Self { kind: kind.into(), reference: reference.map(|reference| reference.to_string()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_an_argument_only_where_it_holds_no_login() {
        for (text, kind, reference) in [
            ("file:openai.key", "file", Some(r#"{"path":"openai.key"}"#)),
            ("command:show", "command", Some(r#"{"command":"show"}"#)),
            ("command:op:op://a/b/c", "command", Some(r#"{"argument":"op://a/b/c","command":"op"}"#)),
            ("vault-kv", "vault-kv", None),
            ("file", "file", None),
        ] {
            let parsed = Source::parse(text).unwrap();
            let read = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap(); // in any order
            assert_eq!(
                (parsed.kind.as_str(), parsed.reference.as_deref().map(read)),
                (kind, reference.map(read)),
                "{text}"
            );
        }
        for (text, why) in
            [("vault:x", "not one of"), ("aws-secrets-manager:x", "never an argument"), ("", "not one of")]
        {
            let error = Source::parse(text).unwrap_err();
            assert!(error.exit as u8 == 2 && error.why.contains(why), "{error}");
        }
    }
}
