//! Minted credentials: the control plane alone holds the long-lived secret, and trades it for
//! short-lived tokens, which go to the nodes as ordinary versions of the credential.
//!
//! [`source`] is what an operator stored and how it is traded; [`endpoint`] is the one way out of
//! this process to where that is done; [`mint_refresher`](crate::mint_refresher) does it ahead of
//! time, once for the whole fleet of replicas: who refreshes has claimed it first, in the store, by
//! compare-and-set. What comes back, a rotated refresh token above all, is kept until the store has
//! it.

mod endpoint;
mod get;
mod jwt;
mod source;
mod vault;

use seks_network::address::DialRules;
use seks_types::secret::Secret;

use self::vault::VaultSource;
pub(crate) use self::{
    endpoint::EXCHANGE,
    get::IssuerKeys,
    source::{Kind, Minted, Source},
};
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
        /// OAuth's.
        code: String,
    },
}

impl MintError {
    /// Whether a person must do something about it: asking again soon is of no use.
    pub(crate) fn is_final(&self) -> bool {
        match self {
            Self::Invalid(_) => true,
            Self::Endpoint(_) => false,
            Self::Refused { status, code } => {
                matches!(code.as_str(), "invalid_grant" | "invalid_client" | "unauthorized_client" | "invalid_scope")
                    || matches!(status, 401 | 403 | 404)
            }
        }
    }
}

/// One exchange of `secret`, stored as a source of `kind`, for a token.
///
/// # Errors
/// [`MintError`].
pub(crate) async fn mint_from(kind: &str, secret: &Secret, rules: DialRules) -> Result<Minted, MintError> {
    match Kind::parse(kind)? {
        Kind::VaultKv => VaultSource::parse(secret, rules)?.read().await,
        kind => Source::parse(kind, secret, rules)?.mint(unix_now()).await,
    }
}
