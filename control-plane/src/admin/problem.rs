//! The error that an operator gets when a call fails.
//!
//! Every refusal is a gRPC status with `google.rpc` details: an `ErrorInfo` of domain `seks` with a
//! stable `reason`, and in its metadata a `hint` if the operator can do something about it; a
//! `BadRequest` that names the field if one is wrong. The message is one sentence about names and
//! limits. It never contains a secret. Internal failures state only their kind.
//!
//! A status is sent in HTTP/2 trailers. A client that gets larger trailers than it accepts (16 KiB
//! in most clients, 8 KiB in some) reports a protocol error in place of the status. So every text
//! here has a limit.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use seks_policy::PolicyError;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::{
    authority::AuthorityError,
    mint::MintError,
    policy_workers::{self, PolicyWorkError},
    registry::{EVERYWHERE, RegistryError, plural},
    seal::SealError,
    store::StoreError,
};

/// Most bytes of a message, counted as the trailer has them: gRPC escapes each byte that isn't
/// printable ASCII as three.
const MESSAGE_BYTES: usize = 1024;
/// Most bytes of one of the details' texts, and how many texts there are at most. With base64 all
/// details are below 5 KiB.
const DETAIL_BYTES: usize = 256;
const DETAILS: usize = 8;
/// Errors of a file that a message names.
const ERRORS_SHOWN: usize = 4;

/// A refusal or a failure on its way to a [`Status`].
#[derive(Debug)]
pub(super) struct Problem {
    code: Code,
    reason: &'static str,
    message: String,
    field: Option<&'static str>,
    metadata: BTreeMap<String, String>,
    retry_after: Option<Duration>,
}

impl Problem {
    fn new(code: Code, reason: &'static str, message: impl Into<String>) -> Self {
        Self { code, reason, message: message.into(), field: None, metadata: BTreeMap::new(), retry_after: None }
    }

    pub(super) fn denied(message: impl Into<String>) -> Self {
        Self::new(Code::PermissionDenied, "PERMISSION_DENIED", message)
    }

    /// The caller's certificate has ended, before the call or during it.
    pub(super) fn certificate_expired() -> Self {
        Self::denied("the certificate has expired: connect with a new one")
    }

    /// The only way to say that something isn't there: absent and out of sight must read the same.
    pub(super) fn not_found(kind: &'static str, name: &str) -> Self {
        Self::new(Code::NotFound, "NOT_FOUND", format!("{kind} `{name}` not found"))
    }

    pub(super) fn invalid(field: &'static str, reason: impl std::fmt::Display) -> Self {
        let problem = Self::new(Code::InvalidArgument, "INVALID", format!("{field}: {reason}"));
        Self { field: Some(field), ..problem }
    }

    pub(super) fn hint(self, hint: impl Into<String>) -> Self {
        self.with("hint", hint)
    }

    /// The same, with what it is about in front of the message.
    pub(super) fn about(self, what: &str) -> Self {
        Self { message: format!("{what}: {}", self.message), ..self }
    }

    fn with(mut self, key: &str, value: impl Into<String>) -> Self {
        let value = value.into();
        if !value.is_empty() && self.metadata.len() < DETAILS {
            self.metadata.insert(key.into(), shortened(value, DETAIL_BYTES));
        }
        self
    }

    pub(super) fn exhausted(reason: &'static str, message: impl Into<String>) -> Self {
        Self::new(Code::ResourceExhausted, reason, message)
    }

    /// Something else has to be done first.
    pub(super) fn precondition(reason: &'static str, message: impl Into<String>) -> Self {
        Self::new(Code::FailedPrecondition, reason, message)
    }

    /// It may work later.
    pub(super) fn unavailable(reason: &'static str, message: impl Into<String>) -> Self {
        Self::new(Code::Unavailable, reason, message)
    }

    /// The caller may try again then.
    pub(super) fn retry_after(self, pause: Duration) -> Self {
        Self { retry_after: Some(pause), ..self }
    }

    /// The code, for the audit.
    pub(super) fn code(&self) -> Code {
        self.code
    }

    /// Whether it says that this object is not there.
    pub(super) fn is_missing(&self, kind: &'static str, name: &str) -> bool {
        let missing = Self::not_found(kind, name);
        (self.code, &self.message) == (missing.code, &missing.message)
    }

    pub(super) fn into_status(self) -> Status {
        let mut details = ErrorDetails::with_error_info(self.reason, "seks", HashMap::from_iter(self.metadata));
        if let Some(field) = self.field {
            details.add_bad_request_violation(field, shortened(self.message.clone(), DETAIL_BYTES));
        }
        if self.retry_after.is_some() {
            details.set_retry_info(self.retry_after);
        }
        Status::with_error_details(self.code, shortened(self.message, MESSAGE_BYTES), details)
    }
}

/// `text` within `most` bytes of a trailer, and a mark where the rest was.
fn shortened(mut text: String, most: usize) -> String {
    const MARK: &str = " ...";
    let size = |c: char| if matches!(c, ' '..='~') && c != '%' { 1 } else { 3 * c.len_utf8() };
    let mut used = 0;
    let mut within = 0; // what fits together with the mark
    for (at, c) in text.char_indices() {
        if used <= most - MARK.len() {
            within = at;
        }
        used += size(c);
        if used > most {
            text.truncate(within);
            text.push_str(MARK);
            return text;
        }
    }
    text
}

/// The first of many errors, and how many more there are.
fn summary(errors: &[PolicyError]) -> String {
    let shown: Vec<String> = errors.iter().take(ERRORS_SHOWN).map(|e| shortened(e.to_string(), DETAIL_BYTES)).collect();
    match errors.len() - shown.len() {
        0 => shown.join("; "),
        more => format!("{}; and {more} more", shown.join("; ")),
    }
}

impl From<RegistryError> for Problem {
    fn from(error: RegistryError) -> Self {
        use RegistryError as E;
        // That of many errors can be as long as a file.
        let message = if let E::Policies(_) = error { String::new() } else { error.to_string() };
        match error {
            E::NotFound { kind, name, similar } if similar.is_empty() => Self::not_found(kind, &name),
            E::NotFound { kind, name, similar } => {
                Self::not_found(kind, &name).hint(format!("did you mean `{similar}`?"))
            }
            E::Exists { .. } => Self::new(Code::AlreadyExists, "EXISTS", message),
            E::TokenIssued { id } => Self::new(Code::AlreadyExists, "TOKEN_ISSUED", message)
                .hint(format!("`seks token rotate {id}` gives it a new secret"))
                .with("token_id", id),
            E::Conflict { reason, hint } => Self::new(Code::FailedPrecondition, "CONFLICT", reason).hint(hint),
            E::Invalid { field, reason, hint } => Self::invalid(field, reason).hint(hint),
            E::Policies(errors) => {
                let mut problem = Self::invalid("text", summary(&errors));
                for (n, error) in errors.iter().enumerate().take(ERRORS_SHOWN) {
                    problem = problem.with(&format!("error-{}", n + 1), error.to_string());
                }
                match errors.len() {
                    0..=ERRORS_SHOWN => problem,
                    _ => problem.hint("`seks policy check -f FILE` lists all of them"),
                }
            }
            E::PolicyWork(error) => {
                let (code, reason) = match error {
                    PolicyWorkError::Late => (Code::DeadlineExceeded, "POLICY_WORK_LATE"),
                    PolicyWorkError::Failed => return Self::internal(&message),
                    _ => (Code::ResourceExhausted, "POLICY_WORK_LIMIT"),
                };
                let wait = policy_workers::RETRY_AFTER;
                Self::new(code, reason, message)
                    .hint(format!("nothing was changed: try again in {} s", wait.as_secs()))
                    .retry_after(wait)
            }
            E::OwnerOnly(reason) => Self::denied(reason),
            E::JoinRefused => Self::denied(message),
            E::NodeExists(_) => Self::new(Code::AlreadyExists, "EXISTS", message),
            E::Quota { tenant, kind, .. } => {
                let problem = Self::exhausted("QUOTA", message);
                match tenant.as_str() {
                    EVERYWHERE => problem,
                    _ if kind == "request id" => {
                        problem.hint("they are forgotten after a day; --tokens of the tenant's quota raises it")
                    }
                    tenant => problem.hint(format!(
                        "delete some, or a fleet owner raises it: seks tenant quota {tenant} --{} N",
                        plural(kind)
                    )),
                }
            }
            E::TooMany { .. } => Self::exhausted("PAGES_NEEDED", message)
                .hint("ask for pages (`page_size`), as a `seks` of this version does"),
            E::Busy => Self::new(Code::Aborted, "BUSY", message),
            E::Store(error) => error.into(),
            E::Mint(MintError::Invalid(reason)) => Self::invalid("secret", reason),
            E::Mint(_) => Self::new(Code::FailedPrecondition, "NOT_MINTED", message)
                .hint("nothing was stored: the token or secret is fetched first, to see that it works"),
            E::Seal(error) => error.into(),
            E::Corrupt { .. } | E::Random(_) => Self::internal(&message),
        }
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        use StoreError as E;
        let message = error.to_string();
        match error {
            E::Conflict => Self::new(Code::Aborted, "BUSY", message),
            E::Full => Self::new(Code::ResourceExhausted, "STORE_FULL", message)
                .hint("deleting and revoking still work; then make room in the store"),
            E::TooLarge => Self::new(Code::InvalidArgument, "TOO_LARGE", message),
            E::Unavailable(_) => {
                tracing::warn!(error = message, "the store is unreachable");
                Self::new(Code::Unavailable, "STORE_UNAVAILABLE", "the store is unreachable: nothing was changed")
            }
            E::Unknown(_) => {
                tracing::warn!(error = message, "the outcome of a write is unknown");
                Self::new(Code::Unavailable, "OUTCOME_UNKNOWN", "the store's answer was lost: look whether it was done")
            }
            E::Denied(_) | E::Corrupt(_) | E::Replaced => Self::internal(&message),
        }
    }
}

impl From<AuthorityError> for Problem {
    fn from(error: AuthorityError) -> Self {
        match error {
            AuthorityError::Request(_) => Self::invalid("csr_der", error),
            AuthorityError::Lifetime(_) => Self::invalid("ttl_seconds", error),
            AuthorityError::Store(error) => error.into(),
            error => Self::internal(&error.to_string()),
        }
    }
}

impl From<SealError> for Problem {
    fn from(error: SealError) -> Self {
        match error {
            SealError::Store(error) => error.into(),
            SealError::KekUnavailable(_) => {
                tracing::warn!(%error, "the key service is not available");
                Self::new(
                    Code::Unavailable,
                    "KEY_SERVICE_UNAVAILABLE",
                    "the key service does not answer: nothing was changed",
                )
            }
            SealError::Rejected | SealError::Malformed(_) | SealError::UnknownKek(_) => {
                tracing::error!(%error, "a sealed record does not open");
                Self::new(Code::DataLoss, "SEALED_RECORD_DAMAGED", "the stored secret does not open")
                    .hint("put the credential again")
            }
            error => Self::internal(&error.to_string()),
        }
    }
}

impl Problem {
    /// A failure of ours: the operator hears that, the log hears what.
    pub(super) fn internal(what: &str) -> Self {
        tracing::error!(error = what, "an admin call failed");
        Self::new(Code::Internal, "INTERNAL", "the control plane failed; its log says why")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a status takes of the trailers, with their names and HPACK's 32 bytes each (RFC 7541,
    /// 4.1).
    fn trailer_bytes(status: &Status) -> usize {
        let mut trailers = http::HeaderMap::new();
        status.add_header(&mut trailers).unwrap();
        trailers.iter().map(|(name, value)| name.as_str().len() + value.len() + 32).sum()
    }

    #[test]
    fn no_text_however_long_makes_a_status_that_clients_refuse() {
        for text in ["x".repeat(1 << 20), "\u{1f511}".repeat(1 << 18), "%\n".repeat(1 << 18), "\u{e9}x".repeat(9999)] {
            let errors = |n| (0..n).map(|line| PolicyError { line, reason: text.clone() }).collect();
            let problems: Vec<Problem> = vec![
                RegistryError::Policies(errors(1)).into(),
                RegistryError::Policies(errors(7)).into(),
                RegistryError::Conflict { reason: text.clone(), hint: text.clone() }.into(),
                RegistryError::Invalid { field: "text", reason: text.clone(), hint: text.clone() }.into(),
                RegistryError::NotFound { kind: "agent", name: text.clone(), similar: text.clone() }.into(),
                RegistryError::OwnerOnly(text.clone()).into(),
                StoreError::Denied(text.clone()).into(),
                AuthorityError::Request(text.clone()).into(),
                (0..99).fold(Problem::denied(text.clone()), |p, n| p.with(&format!("key-{n}"), text.clone())),
            ];
            for problem in problems {
                let status = problem.into_status();
                assert!(trailer_bytes(&status) <= 8192, "{} bytes", trailer_bytes(&status));
                assert!(!status.message().is_empty());
            }
        }
    }

    #[test]
    fn of_hundreds_of_errors_the_first_are_told_and_the_rest_counted() {
        let errors = (1..=300).map(|line| PolicyError { line, reason: "no `@id`".into() }).collect();
        let status = Problem::from(RegistryError::Policies(errors)).into_status();
        let expected = "text: line 1: no `@id`; line 2: no `@id`; line 3: no `@id`; line 4: no `@id`; and 296 more";
        assert_eq!(status.message(), expected);
        let metadata = status.get_details_error_info().unwrap().metadata;
        assert!(metadata["hint"].contains("policy check") && metadata["error-4"] == "line 4: no `@id`");
    }

    #[test]
    fn a_text_is_cut_between_characters_and_only_where_it_must_be() {
        assert_eq!(shortened("a".repeat(20), 20), "a".repeat(20));
        assert_eq!(shortened("a".repeat(21), 20), format!("{} ...", "a".repeat(16)));
        assert_eq!(shortened("\u{e9}".repeat(9), 20), "\u{e9}\u{e9} ...");
    }
}
