//! Policy files: each policy is checked alone, and all together against the budget.

use seks_types::id::PolicyId;

use super::{
    budget::check_budget,
    parse::{PolicyError, check_file},
};

/// Parses a file and checks it against the schema. Each policy needs its own `@id` in the grammar
/// of names. Returns the id and text of each policy, in order. All together may cost a request at
/// most [`BUDGET`](super::BUDGET).
///
/// # Errors
/// Every error in the file, in order.
pub fn parse_file(text: &str) -> Result<Vec<(PolicyId, String)>, Vec<PolicyError>> {
    let checked = check_file(text)?;
    check_budget(checked.iter()).map_err(|error| vec![error])?;
    Ok(checked.into_iter().map(|c| (c.id, c.text)).collect())
}

/// Warnings about a valid file, such as a policy that never applies or look-alike characters. Empty
/// when [`parse_file`] refuses the file.
#[must_use]
pub fn warnings(text: &str) -> Vec<PolicyError> {
    check_file(text).unwrap_or_default().into_iter().flat_map(|c| c.warnings).collect()
}
