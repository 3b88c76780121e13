//! What the policies of a slice say about one form of a call, and the decision from all forms.

use std::sync::Arc;

use seks_types::id::PolicyId;

use super::{Approval, CallEvaluator, Plan, TextForm};
use crate::{
    AppliedLimit, Decision, EvaluateError,
    approval::Approvals,
    condition::{Evaluator, Truth},
};

/// The results of a slice's policies for one form of a call.
#[derive(Default)]
pub(super) struct SliceOutcome {
    permits: Ids,
    forbids: Ids,
    /// Policies in force whose result depends on a body that cannot be inspected.
    unknown: Ids,
    audited: Ids,
    failed: Option<PolicyId>,
    audit_failed: Option<PolicyId>,
    limits: Vec<Arc<AppliedLimit>>,
    approvals: Approvals,
}

impl SliceOutcome {
    pub(super) fn of_plan(plan: &Plan, evaluator: &CallEvaluator<'_>) -> Self {
        Self::of_plan_in(plan, evaluator, evaluator.form)
    }

    pub(super) fn of_plan_in(plan: &Plan, evaluator: &impl Evaluator, form: TextForm) -> Self {
        let mut outcome = Self::default();
        for policy in &plan.policies {
            let (id, truth) = (&policy.id, policy.condition(form).evaluate(evaluator));
            if let Some(limit) = &policy.limit {
                // What can't be told counts.
                outcome.limits.extend((truth != Truth::False).then(|| Arc::clone(limit)));
                continue;
            }
            match &policy.approval {
                // What can't be told needs approval.
                Some(Approval::Requires(required)) => {
                    outcome.approvals.required.extend((truth != Truth::False).then(|| Arc::clone(required)));
                    continue;
                }
                Some(Approval::Grants(grant)) => {
                    outcome.approvals.grants.extend((truth == Truth::True).then(|| Arc::clone(grant)));
                    continue;
                }
                None => {}
            }
            match (truth, policy.audit) {
                (Truth::True, true) => outcome.audited.add(id),
                (Truth::True, false) if policy.forbids => outcome.forbids.add(id),
                (Truth::True, false) => outcome.permits.add(id),
                (Truth::Unknown, false) => outcome.unknown.add(id),
                (Truth::Failed, false) => outcome.failed = outcome.failed.or_else(|| id.first().cloned()),
                (Truth::Failed, true) => outcome.audit_failed = outcome.audit_failed.or_else(|| id.first().cloned()),
                (Truth::False, _) | (Truth::Unknown, true) => {}
            }
        }
        outcome
    }

    /// With the limits and the required approvals of another form as well.
    pub(super) fn and_counts_of(mut self, other: Option<Self>) -> Self {
        if let Some(other) = other {
            self.limits.extend(other.limits);
            self.approvals.required.extend(other.approvals.required);
        }
        self
    }

    pub(super) fn allows(&self) -> bool {
        self.failed.is_none() && self.unknown.is_empty() && self.forbids.is_empty() && !self.permits.is_empty()
    }

    /// The decision from the call as sent (`self`) and from its normalized form, when that differs.
    pub(super) fn decision(mut self, normalized: Option<Self>) -> Decision {
        let allowed = self.allows();
        // A request counts in each form: another spelling of a path is no way around a limit.
        for limit in normalized.iter().flat_map(|normalized| &normalized.limits) {
            if !self.limits.iter().any(|known| Arc::ptr_eq(known, limit)) {
                self.limits.push(Arc::clone(limit));
            }
        }
        // The same holds for approvals. A grant is one for the bytes that are sent.
        for required in normalized.iter().flat_map(|normalized| &normalized.approvals.required) {
            if !self.approvals.required.iter().any(|known| Arc::ptr_eq(known, required)) {
                self.approvals.required.push(Arc::clone(required));
            }
        }
        let limits = (!self.limits.is_empty()).then(|| self.limits.into());
        let approvals = (!self.approvals.required.is_empty()).then(|| Arc::new(self.approvals));
        let audited = self.audited.into_arc();
        let (error, audit_error) = (self.failed.map(EvaluateError), self.audit_failed.map(EvaluateError));
        match normalized {
            Some(normalized) if allowed && !normalized.allows() => {
                Decision { audited, audit_error, ..normalized.decision(None) }
            }
            _ => {
                let ids = match allowed {
                    true => self.permits,
                    false if self.forbids.is_empty() => self.unknown,
                    false => self.forbids,
                };
                Decision { allowed, policy_ids: ids.into_arc(), audited, error, audit_error, limits, approvals }
            }
        }
    }
}

/// Policy ids. One id is the common case and needs no allocation.
#[derive(Default)]
enum Ids {
    #[default]
    None,
    One(Arc<[PolicyId]>),
    Many(Vec<PolicyId>),
}

impl Ids {
    fn add(&mut self, id: &Arc<[PolicyId]>) {
        match self {
            Self::None => *self = Self::One(Arc::clone(id)),
            Self::One(first) => *self = Self::Many(first.iter().chain(id.iter()).cloned().collect()),
            Self::Many(ids) => ids.extend(id.iter().cloned()),
        }
    }

    fn is_empty(&self) -> bool {
        matches!(self, Self::None)
    }

    fn into_arc(self) -> Arc<[PolicyId]> {
        match self {
            Self::None => Arc::default(),
            Self::One(id) => id,
            Self::Many(ids) => ids.into(),
        }
    }
}
