//! What a request was permitted on, kept for as long as it lasts: when a record of its tenant has changed, it is decided again.

use std::{net::IpAddr, sync::Arc};

use http::Method;
use seks_proto::policy::Call;

use super::{Facts, Line};
use crate::{
    proxy::Caller,
    table::{CutReason, Decided, ServiceEntry, TokenEntry, Verdict},
};

/// The request as the policies saw it, and the service that it was permitted to call.
pub(super) struct DecidedOn {
    service: Arc<ServiceEntry>,
    method: Method,
    line: Line,
    source: IpAddr,
    websocket: bool,
    /// What is known of the body. `Opaque` where it was passed on unread: a policy that asks for it denies.
    facts: Facts,
}

impl DecidedOn {
    pub(super) fn new(
        service: &Arc<ServiceEntry>,
        method: &Method,
        line: &Line,
        caller: &Caller,
        websocket: bool,
        facts: Facts,
    ) -> Self {
        let line = Line { text: line.text.clone(), path: line.path };
        Self { service: service.clone(), method: method.clone(), line, source: caller.source, websocket, facts }
    }

    /// Whether requests to the service go somewhere else now, or may not take the way that this one took.
    fn leads_elsewhere(&self, now: &ServiceEntry) -> bool {
        let before = &self.service;
        before.upstream != now.upstream
            || before.upstream_ca_pem != now.upstream_ca_pem
            || (before.allow_private && !now.allow_private)
            || (self.websocket && !now.allow_websocket)
    }

    fn decide(&self, token: &TokenEntry, service: &ServiceEntry) -> Verdict {
        let denied = Verdict::Withdrawn(CutReason::PolicyDenied);
        let policies = match token.policies() {
            None if token.tenant_slot().is_compiling() => return Verdict::Open,
            // They may have been compiled in between.
            None => token.policies(),
            policies => policies,
        };
        let Some(policies) = policies else { return denied };
        let Some(agent) = token.agent() else { return Verdict::Withdrawn(CutReason::AgentDisabled) };
        let call = Call {
            method: &self.method,
            path: self.line.path(),
            query: self.line.query(),
            token: token.id(),
            services: token.services(),
            age_seconds: Caller::now().saturating_sub(token.issued_at()).max(0),
            source: self.source,
            body: (&self.facts).into(),
        };
        let decision = policies.scope(&agent.name, &agent.attributes, &service.name).decide(&call);
        if decision.allowed && decision.error.is_none() { Verdict::Holds } else { denied }
    }
}

impl Decided for DecidedOn {
    fn again(&self, token: &TokenEntry, service: &ServiceEntry) -> Verdict {
        if service.generation != self.service.generation {
            if self.leads_elsewhere(service) {
                return Verdict::Withdrawn(CutReason::ServiceChanged);
            }
            if service.denied_paths.iter().any(|d| d.matches(&self.method, self.line.path())) {
                return Verdict::Withdrawn(CutReason::PolicyDenied);
            }
        }
        self.decide(token, service)
    }
}
