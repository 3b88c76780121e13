//! A file of policies: checked one by one, and all together against the budget.

use seks_types::id::PolicyId;

use super::{
    budget::check_budget,
    parse::{PolicyError, check_file},
};

/// Reads a file of policies and checks it against the schema: each has an `@id` of its own, in the grammar of names.
/// Gives the policies in order, each as its id and its own text. All of them together cost a request at most [`BUDGET`](super::BUDGET).
///
/// # Errors
/// Every error in the file, in order.
pub fn parse_file(text: &str) -> Result<Vec<(PolicyId, String)>, Vec<PolicyError>> {
    let checked = check_file(text)?;
    check_budget(checked.iter()).map_err(|error| vec![error])?;
    Ok(checked.into_iter().map(|c| (c.id, c.text)).collect())
}

/// What is odd about a file that is acceptable: a policy that can never apply, look-alike characters. Empty when
/// [`parse_file`] refuses it.
#[must_use]
pub fn warnings(text: &str) -> Vec<PolicyError> {
    check_file(text).unwrap_or_default().into_iter().flat_map(|c| c.warnings).collect()
}
