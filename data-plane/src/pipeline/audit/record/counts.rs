//! What a request counts for: limits, and approvals of which it takes a use.

use std::sync::Arc;

use seks_policy::AppliedLimit;
use seks_types::id::PolicyId;

use super::Record;
use crate::{pipeline::needed_approval::PendingUse, table::ConcurrentSlot};

impl Record {
    /// Limits that a decision has named. One that an earlier decision named counts once.
    pub(crate) fn limited_by(&mut self, limits: &[Arc<AppliedLimit>]) {
        for limit in limits {
            if !self.open.limits.contains(limit) {
                self.open.limits.push(Arc::clone(limit));
            }
        }
    }

    /// Whether the request has to be counted for a limit.
    pub(crate) fn has_uncounted_limits(&self) -> bool {
        self.open.counted < self.open.limits.len()
    }

    /// The next limit that the request was not counted for.
    pub(crate) fn next_limit(&mut self) -> Option<Arc<AppliedLimit>> {
        let next = self.open.limits.get(self.open.counted).cloned()?;
        self.open.counted += 1;
        Some(next)
    }

    /// The request is permitted by one of these approvals, which are counted.
    pub(crate) fn uses(&mut self, pending: PendingUse) {
        match self.open.used.iter().find(|id| pending.names(id)).cloned() {
            Some(id) => self.decided(true, &[id]), // an earlier decision on this request has taken it
            None => self.open.uses.push(pending),
        }
    }

    /// Whether the request has to take a use of an approval.
    pub(crate) fn has_pending_uses(&self) -> bool {
        !self.open.uses.is_empty()
    }

    /// The next approval of which the request has to take a use.
    pub(crate) fn next_use(&mut self) -> Option<PendingUse> {
        loop {
            let pending = self.open.uses.pop()?;
            if !self.open.used.iter().any(|id| pending.names(id)) {
                return Some(pending);
            }
        }
    }

    /// The request has taken a use of this approval.
    pub(crate) fn used(&mut self, approval: PolicyId) {
        self.decided(true, std::slice::from_ref(&approval));
        self.open.used.push(approval);
    }

    /// The request has a place among concurrent ones until the record closes.
    pub(crate) fn holds(&mut self, slot: ConcurrentSlot) {
        self.open.slots.push(slot);
    }
}
