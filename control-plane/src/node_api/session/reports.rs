//! What nodes report of their requests: credentials that upstreams refuse, and keys of issuers that
//! trusts lack, limits whose slice is spent, and requests that need an approval.

use seks_proto::wire::{self, replica_message::Message as ToNode};

use super::{Session, Sessions};
use crate::{
    node_api::{approvals::ApprovalQuestion, limit_shares::LimitQuestion},
    rate::Rate,
    registry::{Budget, Registry},
};

/// Refused credentials that one node may report. Each of a few hundred minted credentials may be
/// refused at the same time.
const REFUSALS: Rate = Rate { per_second: 5.0, burst: 300.0 };

/// Questions about limits of one node. A node asks once at a time for each limit, and about 20
/// times in a window.
const LIMIT_QUESTIONS: Rate = Rate { per_second: 500.0, burst: 2000.0 };

/// Refused requests that one node may report. Each lists the approvals of a tenant, or adds one.
const APPROVAL_QUESTIONS: Rate = Rate { per_second: 10.0, burst: 100.0 };

/// Uses of counted approvals that one node may take. Each is a write.
const APPROVAL_USES: Rate = Rate { per_second: 50.0, burst: 200.0 };

impl Sessions {
    /// The registry that the reports arrive at.
    pub(crate) fn registry(&self) -> &Registry {
        &self.0.registry
    }
}

impl Session {
    /// An upstream refuses a minted token: the next one is due now. Nothing here waits for that. A
    /// node may only name a credential that it was sent, and only so often: each costs reads of the
    /// store, and perhaps an exchange with an identity provider.
    pub(super) fn credential_refused(&self, refused: wire::Refused) {
        let (shared, node) = (self.shared.clone(), self.node.clone());
        let (Ok(tenant), Ok(credential)) = (refused.tenant.parse(), refused.credential.parse()) else { return };
        let pools = self.shared.changes.snapshots.assigned(&tenant, &credential);
        if !self.tracker.scope().includes_tenant(&tenant)
            || !pools.is_some_and(|pools| self.tracker.node().takes_pools(&pools))
        {
            if let Some(count) = self.shared.limits.unsent_reports.count() {
                tracing::warn!(seks.node = %node, count, "a node names a credential that it was not sent");
            }
            return;
        }
        if self.shared.limits.refusals.try_acquire(&node, REFUSALS).is_err() {
            return; // whatever is minted is renewed in time without it
        }
        self.shared.lifecycle.spawn(async move {
            match shared.registry.force_mint(&tenant, &credential, refused.version).await {
                Ok(true) => {
                    tracing::info!(seks.node = %node, seks.tenant = %tenant, seks.credential = %credential, version = refused.version, "an upstream refuses a minted token: another is due");
                }
                Ok(false) => {}
                Err(error) => tracing::warn!(seks.node = %node, %error, "a refused token can't be renewed"),
            }
        });
    }

    /// A node needs more of a limit's budget. It may only ask for a limit of a tenant that it
    /// serves.
    pub(super) fn limit_asked(&self, question: wire::LimitQuestion) {
        let Some(question) = LimitQuestion::read(question) else { return };
        let Budget { tenant, limit, agent } = question.budget();
        let snapshots = &self.shared.changes.snapshots;
        if !self.tracker.scope().includes_tenant(tenant)
            || !snapshots.has_limit(tenant, limit, agent.as_ref())
            || self.shared.limits.limit_questions.try_acquire(&self.node, LIMIT_QUESTIONS).is_err()
        {
            return; // the node asks again
        }
        let (shared, stream, answers) = (self.shared.clone(), self.stream, self.answers.clone());
        self.shared.lifecycle.spawn(async move {
            let slice = shared.limit_shares.answer(&shared.registry, stream, question).await;
            let _ = answers.try_send(ToNode::LimitSlice(slice)); // the stream has ended, or is full: it counts as spent
        });
    }

    /// A request needs an operator's approval, or uses one. A node may only ask for tenants that it
    /// serves. What it says of the request is checked against the store.
    pub(super) fn approval_asked(&self, question: wire::ApprovalQuestion) {
        let Some(question) = ApprovalQuestion::read(question) else { return };
        let rate = if question.is_use() { APPROVAL_USES } else { APPROVAL_QUESTIONS };
        let key = (self.node.clone(), question.is_use());
        if !self.tracker.scope().includes_tenant(&question.tenant)
            || self.shared.limits.approval_questions.try_acquire(&key, rate).is_err()
        {
            return; // the request stays refused
        }
        let (shared, node, answers) = (self.shared.clone(), self.node.clone(), self.answers.clone());
        self.shared.lifecycle.spawn(async move {
            let answer = question.answer(&shared.registry, &node, &shared.replica).await;
            let _ = answers.try_send(ToNode::ApprovalAnswer(answer)); // the stream has ended: the node asks again
        });
    }

    /// An issuer has signed with a key that its trust lacks. The refresher limits how often it asks
    /// the issuer.
    pub(super) fn key_unknown(&self, unknown: &wire::UnknownKey) {
        let (Ok(tenant), Ok(trust)) = (unknown.tenant.parse(), unknown.trust.parse()) else { return };
        if self.tracker.scope().includes_tenant(&tenant) {
            self.shared.registry.unknown_keys().add(tenant, trust);
        }
    }
}
