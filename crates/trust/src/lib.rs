//! Identity exchange: an agent proves who it is by a token of an issuer that its tenant trusts, in
//! place of a stored secret.
//!
//! [`Jwt`] reads such a token, [`KeySet`] verifies its signature, and [`TrustRule`] says which
//! agent it stands for. An [`ExchangedToken`] carries the outcome. Nothing here does I/O, and
//! nothing here reads a clock.
//!
//! Signatures and JWKs are `jsonwebtoken`'s. The crate's own validation is not used: it ignores
//! repeated JSON keys and `crit`, and a rule needs claims that it does not know.

mod algorithm;
mod exchanged;
mod glob;
mod json;
mod jwt;
mod keys;
mod rule;
mod template;

pub use self::{
    exchanged::{ExchangeKey, ExchangedToken},
    glob::Glob,
    jwt::{Jwt, Rejected, SKEW_SECONDS, looks_like_jwt},
    keys::{KeySet, KeySetError, MAX_JWKS_BYTES},
    rule::{Claim, Identity, RuleError, TrustRule, check_issuer, is_trustworthy_transport},
    template::Template,
};

/// Longest token of an issuer, in bytes. Azure's with 200 groups have 12 KiB.
pub const MAX_JWT_BYTES: usize = 16 * 1024;
/// Longest life of an issuer's token: 24 h from `iat` to `exp`.
pub const MAX_LIFE_SECONDS: i64 = 24 * 60 * 60;
/// Life of an exchanged token where a trust does not say otherwise, and the most that it can say:
/// 15 min.
pub const MAX_EXCHANGED_SECONDS: i64 = 15 * 60;

#[cfg(test)]
mod tests;
