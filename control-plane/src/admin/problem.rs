//! What an operator is told when a call fails.
//!
//! Every refusal is a gRPC status with `google.rpc` details: an `ErrorInfo` of domain `seks` with a stable `reason`, in its
//! metadata a `hint` where there is something to do about it; a `BadRequest` naming the field when one is wrong. The message
//! is one sentence about names and limits; it never holds a secret, and failures of ours say no more than what kind they are.

use std::collections::HashMap;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::{authority::AuthorityError, mint::MintError, registry::RegistryError, seal::SealError, store::StoreError};

/// A refusal or a failure on its way to a [`Status`].
#[derive(Debug)]
pub(super) struct Problem {
    code: Code,
    reason: &'static str,
    message: String,
    field: Option<&'static str>,
    metadata: HashMap<String, String>,
}

impl Problem {
    fn new(code: Code, reason: &'static str, message: impl Into<String>) -> Self {
        Self { code, reason, message: message.into(), field: None, metadata: HashMap::new() }
    }

    pub(super) fn denied(message: impl Into<String>) -> Self {
        Self::new(Code::PermissionDenied, "PERMISSION_DENIED", message)
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

    fn with(mut self, key: &str, value: impl Into<String>) -> Self {
        let value = value.into();
        if !value.is_empty() {
            self.metadata.insert(key.into(), value);
        }
        self
    }

    /// The code, for the audit.
    pub(super) fn code(&self) -> Code {
        self.code
    }

    pub(super) fn into_status(self) -> Status {
        let mut details = ErrorDetails::with_error_info(self.reason, "seks", self.metadata);
        if let Some(field) = self.field {
            details.add_bad_request_violation(field, self.message.clone());
        }
        Status::with_error_details(self.code, self.message, details)
    }
}

impl From<RegistryError> for Problem {
    fn from(error: RegistryError) -> Self {
        use RegistryError as E;
        let message = error.to_string();
        match error {
            E::NotFound { kind, name } => Self::not_found(kind, &name),
            E::Exists { .. } => Self::new(Code::AlreadyExists, "EXISTS", message),
            E::TokenIssued { id } => Self::new(Code::AlreadyExists, "TOKEN_ISSUED", message)
                .hint(format!("`seks token rotate {id}` gives it a new secret"))
                .with("token_id", id),
            E::Conflict { reason, hint } => Self::new(Code::FailedPrecondition, "CONFLICT", reason).hint(hint),
            E::Invalid { field, reason, hint } => Self::invalid(field, reason).hint(hint),
            E::Policies(errors) => {
                let mut problem = Self::invalid("text", message);
                for (n, error) in errors.iter().enumerate().take(20) {
                    problem = problem.with(&format!("error-{}", n + 1), error.to_string());
                }
                problem
            }
            E::OwnerOnly(reason) => Self::denied(reason),
            E::JoinRefused => Self::denied(message),
            E::NodeExists(_) => Self::new(Code::AlreadyExists, "EXISTS", message),
            E::Quota { .. } => Self::new(Code::ResourceExhausted, "QUOTA", message),
            E::Busy => Self::new(Code::Aborted, "BUSY", message),
            E::Store(error) => error.into(),
            E::Mint(MintError::Invalid(reason)) => Self::invalid("secret", reason),
            E::Mint(_) => Self::new(Code::FailedPrecondition, "NOT_MINTED", message)
                .hint("nothing was stored: a token is minted first, to see that it works"),
            E::Authority(error) => error.into(),
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
    fn internal(what: &str) -> Self {
        tracing::error!(error = what, "an admin call failed");
        Self::new(Code::Internal, "INTERNAL", "the control plane failed; its log says why")
    }
}
