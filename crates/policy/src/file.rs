//! Policy files: each policy is checked alone, and all together against the budget.

use seks_service::request::BodyFields;
use seks_types::id::PolicyId;

use super::{
    AppliedLimit,
    approval::ApprovalRole,
    budget::check_budget,
    parse::{CheckedPolicy, PolicyError, check_file, custom_methods},
};

/// A policy of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParsedPolicy {
    /// Its `@id`.
    pub id: PolicyId,
    /// Its text, without comments around it. Where it uses body fields, the annotation
    /// `@body_fields` says which, with their types.
    pub text: String,
}

/// What a tenant's services declare for policies.
#[derive(Clone, Debug, Default)]
pub struct Declarations {
    /// Methods that some service lists and the published schema doesn't know.
    pub methods: Vec<String>,
    /// Fields of request bodies.
    pub body_fields: BodyFields,
}

/// [`parse_file_with`] for a tenant whose services declare nothing.
///
/// # Errors
/// Every error in the file, in order.
pub fn parse_file(text: &str) -> Result<Vec<(PolicyId, String)>, Vec<PolicyError>> {
    Ok(parse_file_with(text, &Declarations::default())?.into_iter().map(|policy| (policy.id, policy.text)).collect())
}

/// Parses a file and checks it against the schema. Each policy needs its own `@id` in the grammar
/// of names. All together may cost a request at most [`BUDGET`](super::BUDGET). An action that is
/// neither in the published schema nor declared is a mistake, and so is an undeclared body field.
///
/// # Errors
/// Every error in the file, in order.
pub fn parse_file_with(text: &str, declared: &Declarations) -> Result<Vec<ParsedPolicy>, Vec<PolicyError>> {
    let unlisted = custom_methods(text).into_iter().filter(|(_, method)| !declared.methods.contains(method));
    let mut errors: Vec<PolicyError> = unlisted.map(|(line, method)| unknown_action(line, &method)).collect();
    let checked = match check_file(text, &declared.body_fields) {
        Ok(checked) if errors.is_empty() => checked,
        Ok(_) => return Err(errors),
        Err(found) => {
            errors.extend(found);
            errors.sort_by_key(|error| error.line);
            return Err(errors);
        }
    };
    let is_grant = |policy: &&CheckedPolicy| matches!(policy.approval, Some(ApprovalRole::Grants(_)));
    let grants = checked.iter().filter(is_grant).map(|policy| {
        let reason = format!("policy `{}`: @grant is written by `seks approval approve` alone", policy.id);
        PolicyError { line: policy.line, reason }
    });
    let grants: Vec<PolicyError> = grants.collect();
    if !grants.is_empty() {
        return Err(grants);
    }
    check_budget(checked.iter()).map_err(|error| vec![error])?;
    let parsed = |c: CheckedPolicy| ParsedPolicy { id: c.id, text: c.text };
    Ok(checked.into_iter().map(parsed).collect())
}

fn unknown_action(line: usize, method: &str) -> PolicyError {
    let reason = format!("unknown action `{method}`: a method of no service; list it in a service's `methods` first");
    PolicyError { line, reason }
}

/// Warnings about a valid file, such as a policy that never applies or look-alike characters. Empty
/// when [`parse_file`] refuses the file.
#[must_use]
pub fn warnings(text: &str, declared: &Declarations) -> Vec<PolicyError> {
    check_file(text, &declared.body_fields).unwrap_or_default().into_iter().flat_map(|c| c.warnings).collect()
}

/// The limits of valid policies, in their order. Empty when [`parse_file`] refuses the text.
#[must_use]
pub fn limits_of(text: &str, declared: &Declarations) -> Vec<AppliedLimit> {
    let applied = |c: CheckedPolicy| Some(AppliedLimit { limit: c.limit?, id: c.id, shadow: c.audit });
    check_file(text, &declared.body_fields).unwrap_or_default().into_iter().filter_map(applied).collect()
}
