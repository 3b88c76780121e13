//! Minted credentials: the control plane alone holds the long-lived secret, and trades it for
//! short-lived tokens, which go to the nodes as ordinary versions of the credential.
//!
//! [`source`] is what an operator stored and how it is traded; [`endpoint`] is the one way out of
//! this process to where that is done; [`mint_refresher`](crate::mint_refresher) does it ahead of
//! time, once for the whole fleet of replicas: who refreshes has claimed it first, in the store, by
//! compare-and-set. What comes back, a rotated refresh token above all, is kept until the store has
//! it.

pub(crate) mod aws;
mod command;
mod config;
pub(crate) mod endpoint;
mod file;
mod gcp;
mod get;
mod jwt;
mod onepassword;
mod reference;
mod source;
mod vault;

use std::sync::Arc;

use seks_network::address::{DialGuard, DialRules, Networks};
use seks_types::{id::TenantName, secret::Secret};

pub use self::config::{CommandConfig, SourcesConfig, VaultLoginConfig};
pub(crate) use self::{
    endpoint::EXCHANGE,
    get::IssuerKeys,
    reference::public_part,
    source::{Kind, Minted, Source},
};
use self::{reference::Selection, vault::VaultSource};
use crate::clock::unix_now;

/// Why there is no token. The text is for operators, and of a token endpoint's answer it holds a
/// code at most.
#[derive(Debug, thiserror::Error)]
pub enum MintError {
    /// What the operator stored can't work.
    #[error("{0}")]
    Invalid(String),
    /// The endpoint can't be asked: it may be back later.
    #[error("the token endpoint {0}")]
    Endpoint(&'static str),
    /// The endpoint answered something else: status and, where it gives one, the code of the error
    /// (RFC 6749, 5.2).
    #[error("the token endpoint answered {status}{}", if code.is_empty() { String::new() } else { format!(" ({code})") })]
    Refused {
        /// HTTP's.
        status: u16,
        /// OAuth's, or the name of AWS's exception.
        code: String,
    },
    /// A source of secrets can't be read. The text names the source, and what it answered with a
    /// code at most.
    #[error("{text}")]
    Source {
        /// What is the matter.
        text: String,
        /// A person must do something about it.
        is_final: bool,
    },
}

impl MintError {
    /// Whether a person must do something about it: asking again soon is of no use.
    pub(crate) fn is_final(&self) -> bool {
        match self {
            Self::Invalid(_) => true,
            Self::Endpoint(_) => false,
            Self::Source { is_final, .. } => *is_final,
            Self::Refused { status, code } => {
                matches!(code.as_str(), "invalid_grant" | "invalid_client" | "unauthorized_client" | "invalid_scope")
                    || matches!(status, 401 | 403 | 404)
            }
        }
    }
}

impl MintError {
    /// The same of a source of secrets, where it speaks of a token endpoint.
    fn of_source(self, kind: &str) -> Self {
        let is_final = self.is_final();
        let named = |text: String| match text.strip_prefix("the token endpoint") {
            Some(rest) => format!("the source `{kind}`{rest}"),
            None => text,
        };
        match self {
            Self::Invalid(text) => Self::Invalid(named(text)),
            other => Self::Source { text: named(other.to_string()), is_final },
        }
    }
}

/// What the process lets references and token endpoints reach.
#[derive(Default)]
pub struct Reach {
    /// The addresses that it dials.
    pub guard: Arc<DialGuard>,
    /// What references read on this machine.
    pub sources: Arc<SourcesConfig>,
}

impl Reach {
    /// The same for one credential of a tenant with these private networks.
    pub(crate) fn of(&self, tenant: &TenantName, tenant_networks: Networks, has_several_fields: bool) -> Access {
        let rules = DialRules { guard: Arc::clone(&self.guard), tenant_networks };
        Access { rules, tenant: tenant.clone(), has_several_fields, sources: Arc::clone(&self.sources) }
    }
}

/// What one credential's exchange or read may reach.
pub(crate) struct Access {
    /// Which addresses its endpoint may have.
    pub(crate) rules: DialRules,
    pub(crate) tenant: TenantName,
    /// The service's credentials have several fields, and a source holds an object with all.
    pub(crate) has_several_fields: bool,
    pub(crate) sources: Arc<SourcesConfig>,
}

impl Access {
    fn select<'a>(&self, field: &'a str, refresh_seconds: u64) -> Selection<'a> {
        Selection { field, has_several_fields: self.has_several_fields, refresh_seconds }
    }

    #[cfg(test)]
    pub(crate) fn of_tenant(tenant: TenantName) -> Self {
        Reach::default().of(&tenant, Networks::default(), false)
    }
}

/// One exchange of `secret`, stored as a source of `kind`, for a token; or one read of what it
/// refers to.
///
/// # Errors
/// [`MintError`].
pub(crate) async fn mint_from(kind: &str, secret: &Secret, access: &Access) -> Result<Minted, MintError> {
    let read = match Kind::parse(kind)? {
        Kind::VaultKv => async { VaultSource::parse(secret, access)?.read().await }.await,
        Kind::File => file::read(secret, access).await,
        Kind::Command => command::read(secret, access).await,
        Kind::AwsSecretsManager => aws::read(secret, access).await,
        Kind::GcpSecretManager => gcp::read(secret, access).await,
        Kind::OnePasswordConnect => onepassword::read(secret, access).await,
        kind => return Source::parse(kind, secret, access.rules.clone())?.mint(unix_now()).await,
    };
    read.map_err(|error| error.of_source(kind))
}

/// Segments of letters, digits, `-`, `_` and `.`.
pub(crate) fn is_path(text: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    let is_segment = |s: &str| !s.is_empty() && s != "." && s != ".." && s.bytes().all(plain);
    text.len() <= 512 && text.split('/').all(is_segment)
}
