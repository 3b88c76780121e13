//! What else a request may mean to its upstream. Policies must permit every reading.

use std::sync::Arc;

use http::{Method, request::Parts};
use seks_policy::{Body, Call, PolicySlice};

use super::{
    super::{
        audit::Record,
        inspected_body::InspectedBody,
        refusal::Refusal,
        second_target::{self, SecondTarget},
        shared_limits::SharedLimits,
        upstream_target::UpstreamTarget,
    },
    decide,
};
use crate::{
    code::Code,
    table::{ServiceEntry, TokenEntry},
};

/// Google's clients send a GET whose URL is too long as a POST, and its query as a form.
const QUERY_IN_BODY: &str =
    "a policy asks for the query, which a request with an overridden method may hold in its body";

/// Said of endpoints in `denied_paths`.
const HANDS_OUT_KEYS: &str = "the service refuses endpoints that hand out keys";

/// Said when a policy denies what a request copies from.
const OF_COPY_SOURCE: &str = "; this was decided on a GET of the copy source, which the request reads";

/// What decisions are made with.
pub(super) struct DecidedWith<'a> {
    pub(super) bounds: &'a SharedLimits,
    pub(super) slice: &'a Arc<PolicySlice>,
    pub(super) token: &'a Arc<TokenEntry>,
    pub(super) service: &'a ServiceEntry,
    /// Unix seconds.
    pub(super) now: i64,
}

/// The readings of a request beside the plain one.
pub(super) struct FurtherReadings<'a> {
    /// The method that an override asks for.
    pub(super) method: Option<&'a Method>,
    /// The target of a WebDAV `Destination`.
    pub(super) second: Option<&'a SecondTarget>,
    /// What the request copies from.
    pub(super) copied: Option<&'a UpstreamTarget>,
}

impl FurtherReadings<'_> {
    /// Nearly every request has one reading.
    pub(super) fn is_none(&self) -> bool {
        self.method.is_none() && self.second.is_none() && self.copied.is_none()
    }

    /// What holds whatever the policies say: the methods that the service takes, and the endpoints
    /// that it denies.
    pub(super) fn check(&self, service: &ServiceEntry, parts: &Parts, line: &UpstreamTarget) -> Result<(), Refusal> {
        if self.method.is_some_and(|method| service.method_group(method).is_none()) {
            return Err(Refusal::method_not_listed(service));
        }
        second_target::check_override(self.method, &parts.headers)?;
        let lines = || std::iter::once(line).chain(self.second.map(|second| &second.line));
        let is_denied =
            |method: &Method| lines().any(|line| seks_service::is_denied(&service.denied_paths, method, line.path()));
        if is_denied(&parts.method) || self.method.is_some_and(is_denied) {
            return Err(hands_out_keys());
        }
        Ok(())
    }

    /// Whether a policy asks for the body of one of them.
    pub(super) async fn need_body(&self, call: &Call<'_>, with: &DecidedWith<'_>) -> Result<bool, Refusal> {
        let DecidedWith { bounds, slice, token, service, .. } = *with;
        if let Some(method) = self.method
            && bounds.needs_body(slice, &overridden(call, service, method)?, token).await?
        {
            return Ok(true);
        }
        match self.second {
            Some(second) => bounds.needs_body(slice, &on(call, &second.line), token).await,
            None => Ok(false),
        }
    }

    /// Permits them, or says why not.
    pub(super) async fn decide(
        &self,
        call: &Call<'_>,
        facts: Option<&InspectedBody>,
        with: &DecidedWith<'_>,
        record: &mut Record,
    ) -> Result<(), Refusal> {
        let DecidedWith { bounds, slice, token, service, .. } = *with;
        if let Some(method) = self.method {
            let call = overridden(call, service, method)?;
            if slice.asks_for_query(&call) {
                return Err(Refusal::from(Code::PolicyDenied).with_detail(QUERY_IN_BODY));
            }
            decide(bounds.decide(slice, &call, token, facts).await?, &call, with, record)?;
        }
        if let Some(second) = self.second {
            let call = on(call, &second.line);
            decide(bounds.decide(slice, &call, token, facts).await?, &call, with, record)?;
        }
        if let Some(copied) = self.copied {
            let call = copying(call, copied, service)?;
            decide(bounds.decide(slice, &call, token, Some(&InspectedBody::Absent)).await?, &call, with, record)
                .map_err(|refusal| refusal.with_more_detail(OF_COPY_SOURCE))?;
        }
        Ok(())
    }
}

fn hands_out_keys() -> Refusal {
    Refusal::from(Code::PolicyDenied).with_detail(HANDS_OUT_KEYS)
}

/// The call by which the object would be read that the request copies from.
pub(super) fn copying<'a>(
    call: &Call<'a>,
    copied: &'a UpstreamTarget,
    service: &ServiceEntry,
) -> Result<Call<'a>, Refusal> {
    if seks_service::is_denied(&service.denied_paths, &Method::GET, copied.path()) {
        return Err(hands_out_keys());
    }
    let (path, query) = (copied.path(), copied.query());
    let call = Call { path, query, body: Body::Absent, ..call.clone() };
    overridden(&call, service, &Method::GET)
}

/// The call as a server reads it that honours the overriding method.
pub(super) fn overridden<'a>(call: &Call<'a>, service: &ServiceEntry, method: &'a Method) -> Result<Call<'a>, Refusal> {
    let method_group = service.method_group(method).ok_or_else(|| Refusal::method_not_listed(service))?;
    Ok(Call { method, method_group, ..call.clone() })
}

/// The call on another target.
pub(super) fn on<'a>(call: &Call<'a>, line: &'a UpstreamTarget) -> Call<'a> {
    Call { path: line.path(), query: line.query(), ..call.clone() }
}
