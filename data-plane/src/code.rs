//! The codes of refusals. Agents, audit records and metrics name them.

use http::StatusCode;

/// The CODEs of the contract.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "each is explained where `title` says it")]
pub enum Code {
    TokenMissing,
    TokenMalformed,
    TokenUnknown,
    TokenExpired,
    TokenRevoked,
    TokenAmbiguous,
    TokenBinding,
    AgentDisabled,
    ServiceNotGranted,
    PolicyDenied,
    ServiceUnknown,
    RequestInvalid,
    RequestTooLarge,
    LimitExceeded,
    UpstreamUnreachable,
    UpstreamTls,
    UpstreamTimeout,
    NodeStale,
    AuditUnavailable,
    CredentialUnbound,
    ApprovalRequired,
}

impl Code {
    /// Every one, in the order of their numbers: metrics are arrays over it.
    pub const ALL: [Self; 21] = [
        Self::TokenMissing,
        Self::TokenMalformed,
        Self::TokenUnknown,
        Self::TokenExpired,
        Self::TokenRevoked,
        Self::TokenAmbiguous,
        Self::TokenBinding,
        Self::AgentDisabled,
        Self::ServiceNotGranted,
        Self::PolicyDenied,
        Self::ServiceUnknown,
        Self::RequestInvalid,
        Self::RequestTooLarge,
        Self::LimitExceeded,
        Self::UpstreamUnreachable,
        Self::UpstreamTls,
        Self::UpstreamTimeout,
        Self::NodeStale,
        Self::AuditUnavailable,
        Self::CredentialUnbound,
        Self::ApprovalRequired,
    ];

    /// Its name in `urn:seks:error:CODE`, in spans and in metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        self.row().0
    }

    /// The status that it has unless a refusal says otherwise.
    #[must_use]
    pub fn status(self) -> StatusCode {
        self.row().1
    }

    pub(crate) fn row(self) -> (&'static str, StatusCode, Retry, &'static str) {
        use Retry::{Later, Unsaid, Useless};
        use StatusCode as S;
        match self {
            Self::TokenMissing => ("token_missing", S::UNAUTHORIZED, Useless, "no token was presented"),
            Self::TokenMalformed => ("token_malformed", S::UNAUTHORIZED, Useless, "what was presented is no token"),
            Self::TokenUnknown => ("token_unknown", S::UNAUTHORIZED, Useless, "the token is not known"),
            Self::TokenExpired => ("token_expired", S::UNAUTHORIZED, Useless, "the token has expired"),
            Self::TokenRevoked => ("token_revoked", S::UNAUTHORIZED, Useless, "the token was revoked"),
            Self::TokenAmbiguous => {
                ("token_ambiguous", S::UNAUTHORIZED, Useless, "more than one credential was presented")
            }
            Self::TokenBinding => ("token_binding", S::FORBIDDEN, Useless, "the token is bound to another source"),
            Self::AgentDisabled => ("agent_disabled", S::FORBIDDEN, Useless, "the agent is disabled"),
            Self::ServiceNotGranted => {
                ("service_not_granted", S::FORBIDDEN, Useless, "the token does not grant this service")
            }
            Self::PolicyDenied => ("policy_denied", S::FORBIDDEN, Useless, "policy denies this request"),
            Self::ServiceUnknown => ("service_unknown", S::NOT_FOUND, Useless, "there is no such service"),
            Self::RequestInvalid => ("request_invalid", S::BAD_REQUEST, Useless, "the request is not acceptable"),
            Self::RequestTooLarge => ("request_too_large", S::PAYLOAD_TOO_LARGE, Useless, "the request is too large"),
            Self::LimitExceeded => ("limit_exceeded", S::TOO_MANY_REQUESTS, Later, "too many requests at once"),
            Self::UpstreamUnreachable => (
                "upstream_unreachable",
                S::BAD_GATEWAY,
                Unsaid,
                "the upstream can't be reached or its answer can't be relayed",
            ),
            Self::UpstreamTls => ("upstream_tls", S::BAD_GATEWAY, Useless, "the upstream's identity can't be verified"),
            Self::UpstreamTimeout => {
                ("upstream_timeout", S::GATEWAY_TIMEOUT, Unsaid, "the upstream did not answer in time")
            }
            Self::NodeStale => {
                ("node_stale", S::SERVICE_UNAVAILABLE, Later, "this node is cut off from its control plane")
            }
            Self::AuditUnavailable => (
                "audit_unavailable",
                S::SERVICE_UNAVAILABLE,
                Later,
                "the request can't be recorded, so it is not served",
            ),
            Self::CredentialUnbound => (
                "credential_unbound",
                S::FORBIDDEN,
                Useless,
                "the service's destination has changed since its credential was stored",
            ),
            Self::ApprovalRequired => {
                ("approval_required", S::FORBIDDEN, Useless, "an operator has to approve this request")
            }
        }
    }
}

/// The advice to a client about repeating the same request. SDKs repeat requests by themselves
/// after 408, 409, 429 and every status from 500 on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Retry {
    /// In a moment: `Retry-After`.
    Later,
    /// Nothing, so that SDKs try again by themselves: no upstream has begun to process the request,
    /// and the next attempt may work.
    Unsaid,
    /// The upstream may have begun to process the request, and a second one may be paid for, too:
    /// the same header as for `Useless`. Every 502, 503 and 504 that is made after the request was
    /// sent has this in place of its code's own.
    Begun,
    /// The request cannot work before something is changed: `x-should-retry: false`, which the SDKs
    /// of OpenAI, Anthropic and others obey. Codes with this advice have a status below 500 where
    /// the contract allows it.
    Useless,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_readme_lists_every_code_with_its_status() {
        let readme = include_str!("../README.md");
        let (_, section) = readme.split_once("\n## Refusals\n").unwrap();
        let section = section.split("\n## ").next().unwrap();
        let listed: Vec<_> = section.lines().filter(|line| line.starts_with("| `")).collect();
        assert_eq!(listed.len(), Code::ALL.len(), "one row for each code");
        for code in Code::ALL {
            let row = format!("| `{}` | {} |", code.as_str(), code.status().as_u16());
            assert!(listed.iter().any(|line| line.starts_with(&row)), "no row begins with `{row}`");
        }
    }
}
