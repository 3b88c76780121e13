//! Limits that requests of all tenants share on a node, and each tenant's part of them.

use std::{net::IpAddr, ops::Deref, sync::Arc};

use bytes::Bytes;
use http::{Method, StatusCode};
use seks_policy::{Call, Decision, PolicySlice};
use seks_service::methods::MethodGroup;
use seks_types::id::TenantName;

use super::{
    body_buffers::{BodyBuffers, NoRoom},
    in_flight::InFlightLimits,
    inspected_body::InspectedBody,
    policy_pool::{Busy, INLINE, PolicyPool},
    refusal::Refusal,
};
use crate::{code::Code, config::Limits, table::TokenEntry};

/// Largest body that is looked into on a thread that serves requests: some 100 µs.
const INLINE_BYTES: usize = 16 * 1024;

/// `[proxy.limits]`, and what enforces those that hold for requests together.
pub(crate) struct SharedLimits {
    limits: Limits,
    policies: PolicyPool,
    /// Requests in flight.
    pub(crate) in_flight: Arc<InFlightLimits>,
    /// Memory for bodies.
    pub(crate) buffers: BodyBuffers,
}

impl Deref for SharedLimits {
    type Target = Limits;
    fn deref(&self) -> &Limits {
        &self.limits
    }
}

impl SharedLimits {
    pub(crate) fn new(limits: &Limits) -> Self {
        let in_flight = Arc::new(InFlightLimits::new(limits.max_in_flight, limits.max_connections));
        Self { limits: limits.clone(), policies: PolicyPool::default(), in_flight, buffers: BodyBuffers::new(limits) }
    }

    /// [`PolicySlice::needs_body`], here or, where that may take long, apart from what serves
    /// requests.
    pub(crate) async fn needs_body(
        &self,
        slice: &Arc<PolicySlice>,
        call: &Call<'_>,
        token: &Arc<TokenEntry>,
    ) -> Result<bool, Refusal> {
        if let Some(needs) = slice.needs_body_within(INLINE, call) {
            return Ok(needs);
        }
        let (own, slice) = (OwnCall::new(call, token, None), slice.clone());
        Ok(Box::pin(self.policies.run(token.tenant(), move || slice.needs_body(&own.call()))).await?)
    }

    /// [`PolicySlice::decide`], likewise. `facts` are those that `call` has.
    pub(crate) async fn decide(
        &self,
        slice: &Arc<PolicySlice>,
        call: &Call<'_>,
        token: &Arc<TokenEntry>,
        facts: Option<&InspectedBody>,
    ) -> Result<Decision, Refusal> {
        if let Some(decision) = slice.decide_within(INLINE, call) {
            return Ok(decision);
        }
        let (own, slice) = (OwnCall::new(call, token, facts), slice.clone());
        Ok(Box::pin(self.policies.run(token.tenant(), move || slice.decide(&own.call()))).await?)
    }

    /// What `look`, which takes time linear in the body, finds in it; likewise.
    pub(super) async fn look_into<T: Send + 'static>(
        &self,
        tenant: &TenantName,
        body: &Bytes,
        look: impl FnOnce(&[u8]) -> T + Send + 'static,
    ) -> Result<T, Refusal> {
        if body.len() <= INLINE_BYTES {
            return Ok(look(body));
        }
        let body = body.clone();
        Ok(Box::pin(self.policies.run(tenant, move || look(&body))).await?)
    }
}

impl From<Busy> for Refusal {
    fn from(_: Busy) -> Self {
        Self::from(Code::LimitExceeded)
            .with_detail("the tenant's policies and signatures have too much to look into at once")
    }
}

impl From<NoRoom> for Refusal {
    fn from(_: NoRoom) -> Self {
        let refusal = Self::from(Code::LimitExceeded).with_status(StatusCode::SERVICE_UNAVAILABLE);
        refusal.with_detail("too many bytes of the tenant's bodies are being looked into at once")
    }
}

/// A [`Call`] that may go to another thread.
struct OwnCall {
    method: Method,
    method_group: MethodGroup,
    path: String,
    query: String,
    token: Arc<TokenEntry>,
    age_seconds: i64,
    source: IpAddr,
    mcp: bool,
    facts: Option<InspectedBody>,
}

impl OwnCall {
    fn new(call: &Call<'_>, token: &Arc<TokenEntry>, facts: Option<&InspectedBody>) -> Self {
        Self {
            method: call.method.clone(),
            method_group: call.method_group,
            path: call.path.to_owned(),
            query: call.query.to_owned(),
            token: token.clone(),
            age_seconds: call.age_seconds,
            source: call.source,
            mcp: call.mcp,
            facts: facts.cloned(),
        }
    }

    fn call(&self) -> Call<'_> {
        Call {
            method: &self.method,
            method_group: self.method_group,
            path: &self.path,
            query: &self.query,
            token: self.token.id(),
            services: self.token.services(),
            age_seconds: self.age_seconds,
            source: self.source,
            body: self.facts.as_ref().map_or(seks_policy::Body::NotRead, Into::into),
            mcp: self.mcp,
            trust: self.token.trust_facts(),
        }
    }
}
