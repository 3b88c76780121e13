//! How a command fails: one line `error: WHAT: WHY`, an optional `hint:` line, and an exit code.

use std::fmt;

pub use seks_runtime::Exit;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

/// A failed command. It is printed as it is and holds no secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}: {why}")]
pub struct CliError {
    /// The exit code.
    pub exit: Exit,
    /// The attempted action, or the invalid file, key or argument.
    pub what: String,
    /// The reason.
    pub why: String,
    /// What the user can do about it.
    pub hint: Option<String>,
}

/// The result of every command.
pub type Result<T, E = CliError> = std::result::Result<T, E>;

impl CliError {
    /// A failure with its exit code.
    pub fn new(exit: Exit, what: impl Into<String>, why: impl fmt::Display) -> Self {
        Self { exit, what: what.into(), why: why.to_string(), hint: None }
    }

    /// Invalid input: exit code 2.
    pub fn usage(what: impl Into<String>, why: impl fmt::Display) -> Self {
        Self::new(Exit::Usage, what, why)
    }

    /// A file that cannot be read or written: exit code 2.
    pub fn file(path: &std::path::Path, error: &std::io::Error) -> Self {
        Self::usage(path.display().to_string(), plain_io(error))
    }

    /// Sets another exit code.
    #[must_use]
    pub fn exit(mut self, exit: Exit) -> Self {
        self.exit = exit;
        self
    }

    /// Sets what the user can do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// An error status of the control plane.
    #[must_use]
    pub fn status(what: impl Into<String>, status: &Status) -> Self {
        let error = |exit| Self::new(exit, what, reason(status));
        let mut failure = match status.code() {
            Code::NotFound => error(Exit::NotFound),
            Code::PermissionDenied => {
                error(Exit::NotPermitted).hint("`seks operator whoami` shows the roles of this context's operator")
            }
            Code::Unauthenticated => {
                error(Exit::NotPermitted).hint("the control plane does not accept the context's certificate")
            }
            Code::AlreadyExists | Code::Aborted | Code::FailedPrecondition => error(Exit::Conflict),
            Code::InvalidArgument | Code::OutOfRange => error(Exit::Usage),
            Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled => {
                error(Exit::Unreachable).hint("a change may have been made; check before you repeat it")
            }
            Code::Unimplemented => {
                error(Exit::Failed).hint("the control plane is older than this `seks`; `seks status` shows its version")
            }
            _ => error(Exit::Failed),
        };
        failure.hint = told_hint(status).or(failure.hint);
        failure
    }

    /// The lines for stderr. Line breaks and control characters in them are replaced: an answer
    /// can't forge a line.
    #[must_use]
    pub fn lines(&self) -> String {
        let mut out = format!("error: {}: {}\n", one_line(&self.what), one_line(&self.why));
        if let Some(hint) = &self.hint {
            out.push_str(&format!("hint: {}\n", one_line(hint)));
        }
        out
    }
}

/// The lines with a coloured first word, for a terminal.
#[must_use]
pub fn coloured(lines: &str) -> String {
    lines.replacen("error:", "\u{1b}[1;31merror:\u{1b}[0m", 1).replacen("\nhint:", "\n\u{1b}[1mhint:\u{1b}[0m", 1)
}

/// What the control plane itself says to do about it: `hint` in the metadata of its
/// `google.rpc.ErrorInfo`.
fn told_hint(status: &Status) -> Option<String> {
    status.get_details_error_info().and_then(|mut info| info.metadata.remove("hint"))
}

fn reason(status: &Status) -> String {
    if status.message().is_empty() { status.code().description().into() } else { status.message().into() }
}

/// An I/O error's text without Rust's "(os error 13)".
#[must_use]
pub fn plain_io(error: &std::io::Error) -> String {
    let text = error.to_string();
    let plain = text.split(" (os error ").next().unwrap_or_default();
    let mut chars = plain.chars();
    chars.next().map_or_else(String::new, |c| c.to_lowercase().chain(chars).collect())
}

/// The text on one line, without control characters.
#[must_use]
pub fn one_line(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.trim().chars() {
        match c {
            c if c.is_whitespace() && out.ends_with(' ') => {}
            c if c.is_whitespace() => out.push(' '),
            c if c.is_control() => out.extend(c.escape_default()),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_grpc_code_has_the_contracts_exit_code() {
        let cases = [
            (Code::NotFound, 3),
            (Code::PermissionDenied, 4),
            (Code::Unauthenticated, 4),
            (Code::AlreadyExists, 5),
            (Code::Aborted, 5),
            (Code::FailedPrecondition, 5),
            (Code::Unavailable, 6),
            (Code::DeadlineExceeded, 6),
            (Code::Cancelled, 6),
            (Code::InvalidArgument, 2),
            (Code::Internal, 1),
            (Code::Unknown, 1),
            (Code::Unimplemented, 1),
            (Code::ResourceExhausted, 1),
            (Code::DataLoss, 1),
        ];
        for (code, exit) in cases {
            assert_eq!(CliError::status("x", &Status::new(code, "why")).exit as u8, exit, "{code:?}");
        }
    }

    #[test]
    fn an_error_is_one_line_whatever_the_server_says() {
        let status = Status::not_found("no\nerror: forged\r\n\u{1b}[2Jx");
        let lines = CliError::status("agent a", &status).lines();
        assert_eq!(lines, "error: agent a: no error: forged \\u{1b}[2Jx\n");
    }

    #[test]
    fn the_control_planes_own_hint_comes_first() {
        let metadata = std::collections::HashMap::from([("hint".to_owned(), "revoke it first".to_owned())]);
        let details = tonic_types::ErrorDetails::with_error_info("CONFLICT", "seks", metadata);
        let status = Status::with_error_details(Code::FailedPrecondition, "in use", details);
        assert_eq!(CliError::status("a", &status).hint.as_deref(), Some("revoke it first"));
        assert!(CliError::status("a", &Status::permission_denied("no")).hint.is_some(), "ours where it says nothing");
    }

    #[test]
    fn a_hint_is_a_line_of_its_own() {
        let lines = CliError::usage("a", "b").hint("do c").lines();
        assert_eq!(lines, "error: a: b\nhint: do c\n");
    }

    #[test]
    fn io_errors_lose_their_number() {
        let error = std::io::Error::from_raw_os_error(2);
        assert_eq!(plain_io(&error), "no such file or directory");
    }
}
