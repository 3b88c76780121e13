//! Policy files: each policy is checked alone, and all together against the budget.

use seks_types::id::PolicyId;

use super::{
    budget::check_budget,
    parse::{PolicyError, check_file, custom_methods},
};

/// Parses a file and checks it against the schema. Each policy needs its own `@id` in the grammar
/// of names. Returns the id and text of each policy, in order. All together may cost a request at
/// most [`BUDGET`](super::BUDGET).
///
/// # Errors
/// Every error in the file, in order.
pub fn parse_file(text: &str) -> Result<Vec<(PolicyId, String)>, Vec<PolicyError>> {
    parse_file_with(text, |_| false)
}

/// [`parse_file`] where services list methods that the published schema doesn't know. An action that
/// is none of these is a mistake.
///
/// # Errors
/// Every error in the file, in order.
pub fn parse_file_with(
    text: &str,
    is_listed: impl Fn(&str) -> bool,
) -> Result<Vec<(PolicyId, String)>, Vec<PolicyError>> {
    let unlisted = custom_methods(text).into_iter().filter(|(_, method)| !is_listed(method));
    let mut errors: Vec<PolicyError> = unlisted.map(|(line, method)| unknown_action(line, &method)).collect();
    let checked = match check_file(text) {
        Ok(checked) if errors.is_empty() => checked,
        Ok(_) => return Err(errors),
        Err(found) => {
            errors.extend(found);
            errors.sort_by_key(|error| error.line);
            return Err(errors);
        }
    };
    check_budget(checked.iter()).map_err(|error| vec![error])?;
    Ok(checked.into_iter().map(|c| (c.id, c.text)).collect())
}

fn unknown_action(line: usize, method: &str) -> PolicyError {
    let reason = format!("unknown action `{method}`: a method of no service; list it in a service's `methods` first");
    PolicyError { line, reason }
}

/// Warnings about a valid file, such as a policy that never applies or look-alike characters. Empty
/// when [`parse_file`] refuses the file.
#[must_use]
pub fn warnings(text: &str) -> Vec<PolicyError> {
    check_file(text).unwrap_or_default().into_iter().flat_map(|c| c.warnings).collect()
}
