//! What a request needs an operator's approval for.

use std::{fmt, sync::Arc};

use seks_policy::ApprovalGrant;
use seks_types::id::PolicyId;

use crate::table::{RefusedRequest, TokenEntry};

/// A request that needs an approval, as it is reported.
pub(crate) struct NeededApproval {
    pub(super) token: Arc<TokenEntry>,
    pub(super) refused: RefusedRequest,
}

impl fmt::Debug for NeededApproval {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.refused.policy.fmt(f)
    }
}

/// A required approval of which one use must be taken: from the first of these that has one left.
#[derive(Clone, Debug)]
pub(crate) struct PendingUse {
    pub(super) grants: Vec<Arc<ApprovalGrant>>,
    pub(super) needed: Arc<NeededApproval>,
}

impl PendingUse {
    /// Whether a use of this approval is what it needs.
    pub(crate) fn names(&self, approval: &PolicyId) -> bool {
        self.grants.iter().any(|grant| grant.id == *approval)
    }
}
