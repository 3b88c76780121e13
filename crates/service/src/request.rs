//! What an agent asks for, read so that there is one reading only: [`Target`] is the path and query that policy sees and the
//! upstream gets, [`BodyFacts`] is what policies may know of a body.
//!
//! Both refuse rather than repair: a target that two servers could read in two ways never leaves the node, and a body that two
//! parsers could read in two ways counts as not inspected.

mod body;
pub mod normalize;
mod query;
mod target;
mod target_error;

pub use self::{
    body::BodyFacts,
    query::{QueryParameter, query_names},
    target::Target,
    target_error::TargetError,
};

#[cfg(test)]
mod tests;
