//! Policy: which agent may do what to which service. Cedar, default deny, `forbid` wins, an error denies.
//!
//! The same code checks a file at the control plane, simulates there, and decides at the node, on exactly the bytes that are sent.
//!
//! A tenant's policies are compiled once ([`Policies::compile`]), sliced for an agent and a service when they first meet
//! ([`Policies::slice_for`]), and asked for every request ([`PolicySlice::decide`]).

mod budget;
mod cache;
mod compilation;
mod condition;
mod cost;
mod decide;
mod file;
mod head;
mod identity_hasher;
mod mentions;
mod normalize;
mod parse;
mod pattern;
mod query_name;
mod schema;
mod slice;
mod subject;

use std::{net::IpAddr, sync::Arc};

use http::Method;
use seks_service::request::BodyFacts;
use seks_types::id::{PolicyId, ServiceName};

pub use self::{
    budget::BUDGET,
    compilation::Compilation,
    file::{parse_file, warnings},
    parse::{PolicyError, STACK_BYTES},
    slice::{Policies, PolicySlice},
};

/// The policy that every tenant starts with unless it is strict: visible, and deletable like any other.
pub const GRANTED_SERVICES: &str = r#"@id("granted-services")
permit (principal, action, resource) when { context.token.services.contains(resource) };"#;

/// One request, as policy sees it.
#[derive(Clone, Debug)]
pub struct Call<'a> {
    /// The action. A method that the schema doesn't name is denied.
    pub method: &'a Method,
    /// [`seks_service::request::Target::path`]: exactly what is sent, without the query.
    pub path: &'a str,
    /// [`seks_service::request::Target::query`], or `""`. Policy sees the names only.
    pub query: &'a str,
    /// The token's id.
    pub token: &'a str,
    /// What the token was issued for.
    pub services: &'a [ServiceName],
    /// Seconds since the token was issued.
    pub age_seconds: i64,
    /// The agent's address.
    pub source: IpAddr,
    /// What is known of the body.
    pub body: Body<'a>,
}

/// A request's body, as policy sees it.
#[derive(Clone, Copy, Debug)]
pub enum Body<'a> {
    /// Not looked at, because [`PolicySlice::needs_body`] says so.
    NotRead,
    /// The request has none.
    Absent,
    /// Inspected whole.
    Inspected(&'a BodyFacts),
    /// It can't be inspected whole (too long, encoded, not JSON, ambiguous): denied when a policy needs it.
    Opaque,
}

/// What came of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// A permit applied and no forbid did.
    pub allowed: bool,
    /// The policies that determined it: the permits that applied, or the forbids that did. Empty: nothing permits.
    pub policy_ids: Arc<[PolicyId]>,
    /// Policies in audit mode that would have applied.
    pub audited: Arc<[PolicyId]>,
    /// A policy that couldn't be evaluated: the request is denied.
    pub error: Option<EvaluateError>,
    /// A policy in audit mode that couldn't be evaluated: it is only reported.
    pub audit_error: Option<EvaluateError>,
}

/// A policy could not be evaluated. Names the policy and nothing of the request.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot evaluate policy `{0}`")]
pub struct EvaluateError(pub PolicyId);

#[cfg(test)]
mod tests;
