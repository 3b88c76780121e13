//! Refusal codes in words, for whoever looks for the cause.

/// What a code means and what to do about it. `None`: the code is not known here.
pub(super) fn explained(code: &str) -> Option<(&'static str, &'static str)> {
    Some(match code {
        "token_missing" => ("The request had no token.", "Give the agent's SDK its token as the API key."),
        "token_malformed" => ("The value in the token's place is no SEKS token.", "Look for a real key or a typo."),
        "token_unknown" => ("No tenant has this token.", "Look for a token of another installation, or a guess."),
        "token_expired" => ("The token has expired.", "Issue a new one: seks token issue."),
        "token_revoked" => {
            ("The token was revoked.", "Find out who still holds it, and issue a new one if it is needed.")
        }
        "token_ambiguous" => ("The request had more than one credential.", "Remove the second one from the client."),
        "token_binding" => {
            ("The token is bound to other networks or another certificate.", "See the token's networks.")
        }
        "agent_disabled" => ("The agent is disabled.", "seks agent enable lets it continue."),
        "service_not_granted" => ("The token does not grant this service.", "Issue a token with --service."),
        "policy_denied" => {
            ("No policy permits this request, or one forbids it.", "The policies below say what is missing.")
        }
        "service_unknown" => ("The tenant has no service of this name.", "seks service enable adds one."),
        "request_invalid" => ("The request is not acceptable HTTP for this service.", "Correct the client."),
        "request_too_large" => ("The head or the body of the request is too large.", "See [proxy] limits of the node."),
        "limit_exceeded" => ("There were too many requests at once.", "See [proxy] limits of the node."),
        "upstream_unreachable" => {
            ("The upstream could not be reached.", "Check the service's address and the network.")
        }
        "upstream_tls" => ("The upstream's certificate could not be verified.", "Check the service's CA."),
        "upstream_timeout" => ("The upstream did not answer in time.", "Check the upstream."),
        "node_stale" => ("The node had no valid lease.", "Check the node's connection to the control plane."),
        "audit_unavailable" => ("The node could not record the request.", "Check the disk of the node."),
        "credential_unbound" => (
            "The service's destination changed after its credential was stored.",
            "seks credential put stores it again.",
        ),
        "approval_required" => (
            "A policy asks for an operator's approval.",
            "seks approval list --waiting shows what waits, and seks approval approve decides.",
        ),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_has_a_cause_and_an_advice() {
        assert!(explained("policy_denied").is_some_and(|(cause, advice)| !cause.is_empty() && !advice.is_empty()));
        assert_eq!(explained("no_such_code"), None);
    }
}
