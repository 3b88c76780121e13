//! A policy file: text in, checked policies out, or every error in it.

use std::{collections::HashMap, str::FromStr as _};

use cedar_policy::{Policy, PolicySet, ValidationMode, Validator};

use super::schema::vocabulary;
use crate::id::PolicyId;

/// Why a policy or a file of policies is not acceptable.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {reason}")]
pub struct PolicyError {
    /// Counted from 1, in the text that was given.
    pub line: usize,
    /// What is wrong, in a line.
    pub reason: String,
}

impl PolicyError {
    pub(super) fn new(line: usize, reason: impl Into<String>) -> Self {
        Self { line, reason: reason.into() }
    }
}

/// Reads a file of policies and checks it against the schema: each has an `@id` of its own, in the grammar of names.
/// Gives the policies in order, each as its id and its own text.
///
/// # Errors
/// Every error in the file, in order.
pub fn parse_file(text: &str) -> Result<Vec<(PolicyId, String)>, Vec<PolicyError>> {
    let checked = check(text)?;
    Ok(checked.into_iter().map(|c| (c.id, c.policy.to_string())).collect())
}

/// One policy that passed.
pub(super) struct Checked {
    pub(super) id: PolicyId,
    pub(super) policy: Policy,
    pub(super) audit: bool,
}

pub(super) fn check(text: &str) -> Result<Vec<Checked>, Vec<PolicyError>> {
    let set = PolicySet::from_str(text)
        .map_err(|e| e.iter().map(|e| PolicyError::new(1, e.to_string())).collect::<Vec<_>>())?;
    let vocabulary = vocabulary().ok_or_else(|| vec![PolicyError::new(1, "the built-in schema is broken")])?;
    let mut errors: Vec<PolicyError> =
        set.templates().map(|_| PolicyError::new(1, "a template: write the policy out")).collect();
    let validated = Validator::new(vocabulary.schema.clone()).validate(&set, ValidationMode::default());
    errors.extend(validated.validation_errors().map(|e| PolicyError::new(1, e.to_string())));
    let (mut checked, mut seen) = (Vec::new(), HashMap::new());
    for policy in set.policies() {
        match check_annotations(policy) {
            Ok((id, audit)) if seen.insert(id.clone(), ()).is_none() => {
                checked.push(Checked { id, policy: policy.clone(), audit });
            }
            Ok((id, _)) => errors.push(PolicyError::new(1, format!("@id `{id}` stands twice"))),
            Err(reason) => errors.push(PolicyError::new(1, reason)),
        }
    }
    if errors.is_empty() { Ok(checked) } else { Err(errors) }
}

fn check_annotations(policy: &Policy) -> Result<(PolicyId, bool), String> {
    let id = policy.annotation("id").ok_or("a policy without @id(\"…\")")?;
    let id = PolicyId::try_from(id).map_err(|e| format!("@id: {e}"))?;
    match policy.annotation("mode") {
        None => Ok((id, false)),
        Some("audit") => Ok((id, true)),
        Some(_) => Err(format!("policy `{id}`: @mode is \"audit\" or absent")),
    }
}
