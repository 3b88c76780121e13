//! An agent's request, parsed so that it has one interpretation only. [`Target`] is the path and
//! query that policies see and the upstream receives. [`BodyFacts`] are the body's fields that
//! policies may use.
//!
//! Both refuse instead of repairing. A target that two servers could read differently never leaves
//! the node. A body that two parsers could read differently counts as not inspected.

mod body;
#[cfg(test)]
mod fuzz;
mod json_names;
mod mcp;
pub mod normalize;
mod query;
mod target;
mod target_error;

pub use self::{
    body::BodyFacts,
    mcp::{McpCall, UnreadableMcp},
    query::{QueryParameter, query_names},
    target::Target,
    target_error::TargetError,
};

#[cfg(test)]
mod tests;
