//! Tokens of issuers that were exchanged: each is exchanged once at a node.
//!
//! The memory is the node's own: a fleet exchanges a token once at each node. It is bounded for
//! each tenant, and a tenant whose part is full exchanges nothing until entries expire. Forgetting
//! one would allow a replay.

use std::collections::HashMap;

use parking_lot::Mutex;
use seks_trust::SKEW_SECONDS;
use seks_types::{id::TenantName, token::Digest};

use super::Failure;
use crate::code::Code;

/// Tokens that are remembered for a tenant: 16 an hour for each of 1000 workflows.
const MAX_OF_TENANT: usize = 16 * 1024;
/// Tokens that are remembered in all: 16 MiB.
const MAX: usize = 256 * 1024;

/// What was exchanged, by tenant: when each token ends.
#[derive(Default)]
pub(crate) struct SeenTokens(Mutex<Seen>);

#[derive(Default)]
struct Seen {
    tenants: HashMap<TenantName, HashMap<Digest, i64>>,
    total: usize,
}

impl SeenTokens {
    /// Remembers a token until it ends at `expires_at`. Both times are in Unix seconds.
    ///
    /// # Errors
    /// It was exchanged before, or there is no room.
    pub(super) fn see(&self, tenant: &TenantName, token: Digest, expires_at: i64, now: i64) -> Result<(), Failure> {
        let mut seen = self.0.lock();
        let of_tenant = seen.tenants.get(tenant);
        if of_tenant.is_some_and(|of_tenant| of_tenant.contains_key(&token)) {
            let detail = "the subject token was exchanged before".into();
            return Err(Failure { error: "invalid_grant", code: Code::TokenUnknown, detail });
        }
        if of_tenant.map_or(0, HashMap::len) >= MAX_OF_TENANT || seen.total >= MAX {
            seen.forget(now);
            if seen.tenants.get(tenant).map_or(0, HashMap::len) >= MAX_OF_TENANT || seen.total >= MAX {
                let detail =
                    "too many subject tokens are remembered at this node: try another node, or again later".into();
                return Err(Failure { error: "temporarily_unavailable", code: Code::LimitExceeded, detail });
            }
        }
        let ends = expires_at.saturating_add(SKEW_SECONDS);
        seen.tenants.entry(tenant.clone()).or_default().insert(token, ends);
        seen.total += 1;
        Ok(())
    }
}

impl Seen {
    fn forget(&mut self, now: i64) {
        self.tenants.retain(|_, of_tenant| {
            of_tenant.retain(|_, ends| *ends > now);
            !of_tenant.is_empty()
        });
        self.total = self.tenants.values().map(HashMap::len).sum();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_exchanged_once_until_it_ends_and_a_full_memory_forgets_none() {
        let (seen, tenant, other) = (SeenTokens::default(), "acme".parse().unwrap(), "other".parse().unwrap());
        let digest = |n: usize| Digest::of(&n.to_be_bytes());
        let error = |result: Result<(), Failure>| result.err().map(|failure| failure.error);
        assert_eq!(error(seen.see(&tenant, digest(0), 100, 10)), None);
        assert_eq!(error(seen.see(&tenant, digest(0), 100, 10)), Some("invalid_grant"));
        assert_eq!(error(seen.see(&tenant, digest(0), 100, 159)), Some("invalid_grant"), "the skew counts");
        for n in 1..MAX_OF_TENANT {
            assert_eq!(error(seen.see(&tenant, digest(n), 100, 10)), None);
        }
        assert_eq!(error(seen.see(&tenant, digest(MAX_OF_TENANT), 100, 10)), Some("temporarily_unavailable"));
        assert_eq!(error(seen.see(&tenant, digest(1), 100, 10)), Some("invalid_grant"), "none is forgotten");
        assert_eq!(error(seen.see(&other, digest(1), 100, 10)), None, "tenants apart");
        assert_eq!(error(seen.see(&tenant, digest(MAX_OF_TENANT), 300, 160)), None, "all have ended");
    }
}
