//! An agent's request, parsed so that it has one interpretation only. [`Target`] is the path and
//! query that policies see and the upstream receives. [`BodyFacts`] are the body's fields that
//! policies may use.
//!
//! Both refuse instead of repairing. A target that two servers could read differently leaves the
//! node only for a service that allows it, and policies are decided on every reading. A body that
//! two parsers could read differently counts as not inspected.

mod body;
pub mod fields;
mod form;
mod form_error;
mod form_override;
#[cfg(test)]
mod fuzz;
mod json_names;
mod json_override;
mod mcp;
pub mod normalize;
mod path_rules;
mod query;
mod strict;
mod target;
mod target_error;

pub use self::{
    body::{BodyFacts, BodyFormat},
    fields::{BodyFields, FieldValue},
    form_error::FormError,
    form_override::{FormKind, FormScan},
    mcp::{McpCall, UnreadableMcp},
    path_rules::PathRules,
    query::{QueryParameter, overriding_method, query_names},
    target::{Target, without_base_slash},
    target_error::TargetError,
};

#[cfg(test)]
mod tests;
