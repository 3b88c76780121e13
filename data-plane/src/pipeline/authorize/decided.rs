//! What a request was permitted on, kept for as long as it lasts: when a record of its tenant has
//! changed, it is decided again.

use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use http::Method;
use seks_policy::{Approvals, Call};

use super::{
    UpstreamTarget,
    further_readings::{copying, on, overridden},
};
use crate::{
    pipeline::{caller::Caller, inspected_body::InspectedBody},
    table::{CredentialEntry, CutReason, Grant, Reevaluate, ServiceEntry, TokenEntry, Verdict},
};

/// The request as the policies saw it, and the service that it was permitted to call.
pub(super) struct DecidedOn {
    service: Arc<ServiceEntry>,
    method: Method,
    /// The method that the request asks for instead.
    overriding: Option<Method>,
    line: UpstreamTarget,
    /// What a COPY or MOVE writes.
    second: Option<UpstreamTarget>,
    source: IpAddr,
    /// When it was decided first, in unix seconds, and on a clock that isn't set.
    at: (i64, Instant),
    websocket: bool,
    /// What is known of the body. `Opaque` where it was passed on unread: a policy that asks for it
    /// denies.
    facts: InspectedBody,
    /// The credential that it was permitted to use, and how long it may finish with it when that
    /// was replaced.
    credential: u64,
    grace: Option<Duration>,
}

impl DecidedOn {
    pub(super) fn new(
        service: &Arc<ServiceEntry>,
        (method, overriding): (Method, Option<Method>),
        line: &UpstreamTarget,
        caller: &Caller,
        facts: InspectedBody,
        (credential, grace): (&CredentialEntry, Option<Duration>),
        websocket: bool,
    ) -> Self {
        let credential = credential.generation;
        let line = line.clone();
        Self {
            service: service.clone(),
            method,
            overriding,
            line,
            second: None,
            source: caller.source,
            at: (caller.now, Instant::now()),
            websocket,
            facts,
            credential,
            grace,
        }
    }

    /// The same, which names a second resource.
    pub(super) fn and_on(mut self, second: UpstreamTarget) -> Self {
        self.second = Some(second);
        self
    }

    /// Whether requests to the service go somewhere else now, or may not take the way that this one
    /// took.
    fn leads_elsewhere(&self, now: &ServiceEntry) -> bool {
        let before = &self.service;
        before.upstream != now.upstream
            || before.upstream_ca_pem != now.upstream_ca_pem
            || (before.allow_private && !now.allow_private)
            || (self.websocket && !now.allow_websocket)
    }

    fn now(&self) -> i64 {
        self.at.0.saturating_add(i64::try_from(self.at.1.elapsed().as_secs()).unwrap_or(i64::MAX))
    }

    fn decide(&self, token: &TokenEntry, service: &ServiceEntry) -> Verdict {
        let denied = Verdict::Withdrawn(CutReason::PolicyDenied);
        let policies = match token.policies() {
            None if token.tenant_state().is_compiling() => return Verdict::Undecided,
            // They may have been compiled in between.
            None => token.policies(),
            policies => policies,
        };
        let Some(policies) = policies else { return denied };
        let Some(agent) = token.agent() else { return Verdict::Withdrawn(CutReason::AgentDisabled) };
        let Some(method_group) = service.method_group(&self.method) else { return denied };
        let call = Call {
            method: &self.method,
            method_group,
            path: self.line.path(),
            query: self.line.query(),
            token: token.id(),
            services: token.services(),
            age_seconds: self.now().saturating_sub(token.issued_at()).max(0),
            source: self.source,
            body: (&self.facts).into(),
            mcp: service.mcp.is_some(),
            trust: token.trust_facts(),
        };
        let slice = policies.slice_for(&agent.name, &agent.attributes, &service.name);
        let permits = |call: &Call<'_>| {
            let decision = slice.decide(call);
            let is_approved = |approvals: &Arc<Approvals>| approvals.are_granted(call, self.now());
            decision.allowed && decision.error.is_none() && decision.approvals.as_ref().is_none_or(is_approved)
        };
        if !permits(&call) {
            return denied;
        }
        if self.second.as_ref().is_some_and(|second| !permits(&on(&call, second))) {
            return denied;
        }
        if let Some(overriding) = &self.overriding {
            let call = overridden(&call, service, overriding);
            if !service.allow_method_override || !call.is_ok_and(|call| !slice.asks_for_query(&call) && permits(&call))
            {
                return denied;
            }
        }
        if let Some(copied) = &self.line.copied
            && !copying(&call, copied, service).is_ok_and(|call| permits(&call))
        {
            return denied;
        }
        let current = token.grant(service.name.as_str()).and_then(Grant::credential);
        match self.grace {
            Some(grace) if current.is_none_or(|current| current.generation != self.credential) => {
                Verdict::HoldsFor(grace)
            }
            _ => Verdict::Holds,
        }
    }
}

impl Reevaluate for DecidedOn {
    fn reevaluate(&self, token: &TokenEntry, service: &ServiceEntry) -> Verdict {
        if service.generation != self.service.generation {
            if self.leads_elsewhere(service) {
                return Verdict::Withdrawn(CutReason::ServiceChanged);
            }
            let mut methods = std::iter::once(&self.method).chain(&self.overriding);
            let lines = std::iter::once(&self.line).chain(&self.second);
            let denied = |method: &Method| {
                lines.clone().any(|line| seks_service::is_denied(&service.denied_paths, method, line.path()))
            };
            if methods.any(denied) {
                return Verdict::Withdrawn(CutReason::PolicyDenied);
            }
        }
        self.decide(token, service)
    }
}
