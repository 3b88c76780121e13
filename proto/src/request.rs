//! What an agent asks for, read so that there is one reading only: [`Target`] is the path and query that policy sees and the
//! upstream gets, [`BodyFacts`] is what policies may know of a body.
//!
//! Both refuse rather than repair: a target that two servers could read in two ways never leaves the node, and a body that two
//! parsers could read in two ways counts as not inspected.

mod body;
mod query;
mod target;

pub use self::{
    body::BodyFacts,
    query::{Pair, names},
    target::{Target, TargetError},
};

/// A path in its loosest reading, for finding what is refused in whatever spelling: escapes decoded, capitals lowered.
#[must_use]
pub fn loosest(path: &str) -> std::borrow::Cow<'_, str> {
    crate::policy::loosest_path(path)
}

#[cfg(test)]
mod tests;
