//! The outcome of each admin call: a `seks.admin` span, a log line and a counter.
//!
//! The fields are an allow-list of names and codes. Of a message, only the tenant and the object's
//! name are recorded, and only if they match the grammar of names.

use std::time::Instant;

use seks_types::id::is_name;
use tonic::{Code, Response, Status};
use tracing::{Span, field};

use super::{Admin, auth::Method, message::Message, problem::Problem};
use crate::{
    registry::{Actor, Rebound},
    telemetry::Metrics,
};

/// A call that isn't over.
pub(super) struct Call {
    method: Method,
    operator: String,
    tenant: String,
    object: String,
    span: Span,
    metrics: Metrics,
    began: Instant,
    over: bool,
}

impl Call {
    pub(super) fn begin(admin: &Admin, method: Method, message: &impl Message) -> Self {
        let name = |text: &str| if is_name(text) || text == "*" { text.to_owned() } else { String::new() };
        let (tenant, object) = (name(message.scope()), name(message.object()));
        let span = admin.0.telemetry.create_span(|| {
            tracing::info_span!(
                "seks.admin",
                otel.kind = "server",
                seks.operator = field::Empty,
                seks.verb = method.name(),
                seks.tenant = tenant,
                seks.object = object,
                seks.outcome = field::Empty,
                // Of a credential that is bound to another destination: the origins.
                seks.origin.before = field::Empty,
                seks.origin.after = field::Empty,
            )
        });
        let (metrics, began) = (admin.0.metrics.clone(), Instant::now());
        Self { method, operator: String::new(), tenant, object, span, metrics, began, over: false }
    }

    pub(super) fn span(&self) -> Span {
        self.span.clone()
    }

    /// Notes the name in the caller's certificate, so that a refused call has it, too.
    pub(super) fn operator(&mut self, name: String) {
        self.operator = name;
        self.span.record("seks.operator", self.operator.as_str());
    }

    /// On whose behalf the registry is called.
    pub(super) fn actor(&self, admin: &Admin) -> Actor {
        Actor {
            operator: self.operator.clone(),
            verb: self.method.name().into(),
            tenant: self.tenant.clone(),
            replica: admin.0.replica.clone(),
        }
    }

    /// The name of the object that the call is about; may be empty.
    pub(super) fn object(&self) -> &str {
        &self.object
    }

    pub(super) fn method(&self) -> Method {
        self.method
    }

    /// Closes the record and turns the outcome into tonic's.
    pub(super) fn end<T>(mut self, outcome: Result<T, Problem>) -> Result<Response<T>, Status> {
        let code = outcome.as_ref().err().map_or(Code::Ok, Problem::code);
        self.close(outcome_name(code));
        outcome.map(Response::new).map_err(Problem::into_status)
    }

    fn close(&mut self, outcome: &'static str) {
        self.over = true;
        self.span.record("seks.outcome", outcome);
        self.metrics.admin_request(self.method.name(), outcome, self.began.elapsed());
        let Self { operator, tenant, object, .. } = self;
        let verb = self.method.name();
        tracing::info!(target: "seks.admin", operator, verb, tenant, object, outcome, "admin call");
    }
}

/// A caller that went away still leaves a record: the change may have been made.
impl Drop for Call {
    fn drop(&mut self) {
        if !self.over {
            self.close("cancelled");
        }
    }
}

/// Records, in the span of the call that is being handled, that a credential was bound to another
/// destination.
pub(super) fn rebound(rebound: &Rebound) {
    let span = Span::current();
    span.record("seks.origin.before", rebound.from.as_str());
    span.record("seks.origin.after", rebound.to.as_str());
    tracing::info!(target: "seks.admin", before = rebound.from, after = rebound.to, "a credential is bound to another destination");
}

fn outcome_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "ok",
        Code::InvalidArgument => "invalid",
        Code::NotFound => "not_found",
        Code::AlreadyExists | Code::FailedPrecondition | Code::Aborted => "conflict",
        Code::PermissionDenied | Code::Unauthenticated => "denied",
        Code::ResourceExhausted => "exhausted",
        Code::Unavailable | Code::DeadlineExceeded => "unavailable",
        _ => "failed",
    }
}
