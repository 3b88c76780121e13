//! Cedar policies decide which agent may do what to which service. The default is deny, `forbid`
//! wins over `permit`, and an evaluation error denies.
//!
//! The control plane uses this code to check files and to simulate requests. Nodes use it to
//! decide, on exactly the bytes that they send.
//!
//! A tenant's policies are compiled once ([`Policies::compile`]). The first request of an agent to
//! a service makes their slice ([`Policies::slice_for`]), and [`PolicySlice::decide`] decides each
//! request.

mod approval;
mod budget;
mod cache;
mod compilation;
mod condition;
mod cost;
mod decide;
mod entities;
mod explain;
mod field_values;
mod file;
mod head;
mod identity_hasher;
mod mentions;
mod normalize;
mod parse;
mod pattern;
mod query_name;
mod scan;
mod schema;
mod slice;
mod subject;
mod suggest;
mod trust;

use std::{net::IpAddr, sync::Arc};

use http::Method;
use seks_service::request::BodyFacts;
use seks_types::id::{PolicyId, ServiceName};

pub use seks_limits::{Limit, LimitError};
pub use seks_service::methods::MethodGroup;

pub use self::{
    approval::{
        ApprovalGrant, Approvals, GrantText, RequiredApproval, approval_scope, grant_text, request_digest, sha256_of,
        sha256_of_bytes,
    },
    budget::BUDGET,
    compilation::Compilation,
    decide::Reach,
    entities::{EntityKind, NamedEntity, named_entities},
    explain::PolicyTrace,
    file::{Declarations, ParsedPolicy, limits_of, parse_file, parse_file_with, warnings},
    parse::{PolicyError, STACK_BYTES, custom_methods},
    schema::schema_text,
    slice::{Policies, PolicySlice},
    suggest::{Observed, suggest},
    trust::TrustFacts,
};

/// The policy of a new tenant, unless it was created with `--strict`. It can be deleted like any
/// other policy.
pub const GRANTED_SERVICES: &str = r#"@id("granted-services")
permit (principal, action, resource) when { context.token.services.contains(resource) };"#;

/// One request, with the values that policies can use.
#[derive(Clone, Debug)]
pub struct Call<'a> {
    /// The action.
    pub method: &'a Method,
    /// The group that the service gives to a method which the schema doesn't know. Ignored for
    /// others.
    pub method_group: MethodGroup,
    /// [`seks_service::request::Target::path`]: the path as it is sent, without the query.
    pub path: &'a str,
    /// [`seks_service::request::Target::query`], or `""`. Policies see the parameter names only.
    pub query: &'a str,
    /// The token's id.
    pub token: &'a str,
    /// The services that the token grants.
    pub services: &'a [ServiceName],
    /// Seconds since the token was issued.
    pub age_seconds: i64,
    /// The agent's address.
    pub source: IpAddr,
    /// The result of the body inspection.
    pub body: Body<'a>,
    /// The service is an MCP server: policies about `context.mcp` need the body.
    pub mcp: bool,
    /// The trust that the token was exchanged by; `None`: an operator issued it.
    pub trust: Option<TrustFacts<'a>>,
}

/// The inspection state of a request's body.
#[derive(Clone, Copy, Debug)]
pub enum Body<'a> {
    /// Not inspected, because [`PolicySlice::needs_body`] returned `false`.
    NotRead,
    /// The request has no body.
    Absent,
    /// The whole body was inspected.
    Inspected(&'a BodyFacts),
    /// The body cannot be inspected: it is too long, encoded, not JSON or ambiguous. A request is
    /// denied when a policy needs such a body.
    Opaque,
}

/// The result of a decision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// A permit applied, and no forbid did.
    pub allowed: bool,
    /// The policies that determined the result: the permits that applied, or the forbids that did.
    /// Empty when no policy permits the request.
    pub policy_ids: Arc<[PolicyId]>,
    /// Policies in audit mode that would have applied.
    pub audited: Arc<[PolicyId]>,
    /// The policy that failed to evaluate. The request is denied.
    pub error: Option<EvaluateError>,
    /// The policy in audit mode that failed to evaluate. The failure is only reported.
    pub audit_error: Option<EvaluateError>,
    /// Limits that the request counts for, if it is allowed. `None`: there is none.
    pub limits: Option<Arc<[Arc<AppliedLimit>]>>,
    /// What it needs an operator's approval for, if it is allowed. `None`: nothing.
    pub approvals: Option<Arc<Approvals>>,
}

/// A policy with `@limit`, as it applies to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AppliedLimit {
    /// The policy's id, which is the limit's name.
    pub id: PolicyId,
    /// How much of what.
    pub limit: Limit,
    /// It is counted and reported, and refuses nothing.
    pub shadow: bool,
}

/// A policy failed to evaluate. The error names the policy and nothing of the request.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot evaluate policy `{0}`")]
pub struct EvaluateError(pub PolicyId);

#[cfg(test)]
mod tests;
