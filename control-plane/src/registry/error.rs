//! Why the registry refuses.

use seks_policy::PolicyError;
use seks_types::id::NodeId;

use crate::{mint::MintError, policy_workers::PolicyWorkError, seal::SealError, store::StoreError};

/// A refusal or a failure. The text is for operators: it holds names and limits, never a secret.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// Nothing of this name, or nothing that the caller may see.
    #[error("{kind} `{name}` not found")]
    NotFound {
        /// The noun.
        kind: &'static str,
        /// The object that was requested.
        name: String,
        /// A name that was probably meant; may be empty.
        similar: String,
    },
    /// Something of this name is there already.
    #[error("{kind} `{name}` exists already")]
    Exists {
        /// The noun.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// The request id has been used.
    #[error("this request has issued token `{id}` already, whose secret is shown once")]
    TokenIssued {
        /// The token that it made.
        id: String,
    },
    /// The state of something else forbids it.
    #[error("{reason}")]
    Conflict {
        /// What prevents the change.
        reason: String,
        /// What to do about it; may be empty.
        hint: String,
    },
    /// A value is not acceptable.
    #[error("{field}: {reason}")]
    Invalid {
        /// The request's field.
        field: &'static str,
        /// What is wrong with it.
        reason: String,
        /// What to do about it; may be empty.
        hint: String,
    },
    /// A file of policies is not acceptable: all that is wrong with it.
    #[error("{}", list(.0))]
    Policies(Vec<PolicyError>),
    /// A join token that doesn't exist, was used, has expired or is wrong: it doesn't say which.
    #[error("the join token is not valid: it may have been used or have expired")]
    JoinRefused,
    /// A join token is good, but the name that it was presented with is taken.
    #[error("node `{0}` exists already")]
    NodeExists(NodeId),
    /// Allowed to owners of the tenant alone.
    #[error("{0}")]
    OwnerOnly(String),
    /// A tenant has as much as it may.
    #[error("tenant `{tenant}` has {limit} {}, which is its quota", plural(kind))]
    Quota {
        /// Whose.
        tenant: String,
        /// Of what.
        kind: &'static str,
        /// How many.
        limit: u64,
    },
    /// Policies were not looked at.
    #[error(transparent)]
    PolicyWork(#[from] PolicyWorkError),
    /// The list is too long to be returned without pages.
    #[error("there are over {limit} {}", plural(kind))]
    TooMany {
        /// Of what.
        kind: &'static str,
        /// How many a whole list may have.
        limit: usize,
    },
    /// Other writers were faster every time.
    #[error("the record changes too fast: try again")]
    Busy,
    /// A record that doesn't decode.
    #[error("the record `{key}` is not readable")]
    Corrupt {
        /// Which.
        key: String,
    },
    /// The operating system has no randomness to give.
    #[error("no randomness")]
    Random(#[source] getrandom::Error),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The sealing.
    #[error("sealing: {0}")]
    Seal(#[from] SealError),
    /// No token could be minted.
    #[error(transparent)]
    Mint(#[from] MintError),
}

impl RegistryError {
    pub(super) fn not_found(kind: &'static str, name: impl ToString) -> Self {
        Self::NotFound { kind, name: name.to_string(), similar: String::new() }
    }

    pub(super) fn exists(kind: &'static str, name: impl ToString) -> Self {
        Self::Exists { kind, name: name.to_string() }
    }

    pub(crate) fn conflict(reason: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Conflict { reason: reason.into(), hint: hint.into() }
    }

    /// A field that is not acceptable, without a hint.
    pub(crate) fn invalid(field: &'static str, reason: impl Into<String>) -> Self {
        Self::Invalid { field, reason: reason.into(), hint: String::new() }
    }

    pub(super) fn being_deleted(kind: &'static str, name: impl ToString) -> Self {
        let name = name.to_string();
        Self::conflict(
            format!("{kind} `{name}` is being deleted"),
            format!("delete {kind} `{name}` again to finish it"),
        )
    }
}

/// The noun for many.
pub(crate) fn plural(kind: &str) -> String {
    kind.strip_suffix('y').map_or_else(|| format!("{kind}s"), |stem| format!("{stem}ies"))
}

fn list(errors: &[PolicyError]) -> String {
    errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}
