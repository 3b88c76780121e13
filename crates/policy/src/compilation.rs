//! Compiles a tenant's policies one at a time, so that a caller can take turns between tenants.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    vec,
};

use seks_proto::wire;
use seks_service::request::BodyFields;
use seks_types::id::PolicyId;

use super::{
    PolicyError,
    approval::ApprovalRole,
    parse::{CheckedPolicy, check_statements, run_on_deep_stack},
    slice::Policies,
};

/// The compilation of one tenant's policies, in progress.
pub struct Compilation {
    left: vec::IntoIter<wire::Policy>,
    /// Compiled policies by id. A policy with unchanged text is reused.
    known: HashMap<String, Arc<CheckedPolicy>>,
    compiled: Vec<Arc<CheckedPolicy>>,
    seen: HashSet<PolicyId>,
}

impl Compilation {
    /// Starts a compilation. Policies of `before` with unchanged text are reused, so the cost
    /// depends on the size of the change.
    #[must_use]
    pub fn new(policies: Vec<wire::Policy>, before: Option<&Policies>) -> Self {
        let known =
            before.map_or(&[][..], Policies::checked).iter().map(|p| (p.id.to_string(), Arc::clone(p))).collect();
        let compiled = Vec::with_capacity(policies.len());
        Self { left: policies.into_iter(), known, compiled, seen: HashSet::new() }
    }

    /// Compiles the next policy: at most [`MAX_POLICY`](super::parse::MAX_POLICY) bytes, some
    /// milliseconds. Returns `None` while policies remain.
    ///
    /// Needs [`STACK_BYTES`](super::STACK_BYTES) of stack.
    ///
    /// # Errors
    /// The first invalid policy. A tenant's policies are accepted together or not at all.
    pub fn compile_next(&mut self) -> Result<Option<Policies>, PolicyError> {
        let Some(policy) = self.left.next() else { return Ok(Some(self.take_policies())) };
        let is_same = |known: &&Arc<CheckedPolicy>| known.text == policy.text && known.is_bound_as(&policy);
        let one = match self.known.get(policy.id.as_str()).filter(is_same) {
            Some(known) => Arc::clone(known),
            None => Arc::new(compile_policy(&policy)?),
        };
        if !self.seen.insert(one.id.clone()) {
            return Err(not_a_single_policy(&policy));
        }
        self.compiled.push(one);
        Ok(if self.left.as_slice().is_empty() { Some(self.take_policies()) } else { None })
    }

    fn take_policies(&mut self) -> Policies {
        Policies::from_checked(std::mem::take(&mut self.compiled))
    }
}

impl Policies {
    /// Checks and compiles a tenant's policies by the same rules as [`super::parse_file`].
    ///
    /// # Errors
    /// The first invalid policy. A tenant's policies are accepted together or not at all.
    pub fn compile(policies: &[wire::Policy]) -> Result<Self, PolicyError> {
        let failed = || PolicyError { line: 1, reason: "the policies could not be checked".into() };
        let mut compilation = Compilation::new(policies.to_vec(), None);
        run_on_deep_stack(|| {
            loop {
                if let Some(policies) = compilation.compile_next()? {
                    return Ok(policies);
                }
            }
        })
        .ok_or_else(failed)?
    }

    /// Whether these policies were compiled from exactly `policies`.
    #[must_use]
    pub fn have_same_text(&self, policies: &[wire::Policy]) -> bool {
        let own = self.checked();
        let is_same = |(a, b): (&Arc<CheckedPolicy>, &wire::Policy)| {
            a.id.as_str() == b.id && a.text == b.text && a.is_bound_as(b)
        };
        own.len() == policies.len() && own.iter().zip(policies).all(is_same)
    }
}

fn compile_policy(policy: &wire::Policy) -> Result<CheckedPolicy, PolicyError> {
    let wrong = |reason: &str| PolicyError { line: 1, reason: format!("policy `{}`: {reason}", policy.id) };
    // Which fields it uses is written in its text.
    let mut checked = check_statements(&policy.text, &BodyFields::default())
        .map_err(|e| e.into_iter().next().map_or_else(|| wrong("not acceptable"), |e| wrong(&e.reason)))?;
    match (checked.pop(), checked.is_empty()) {
        (Some(mut one), true) if one.id.as_str() == policy.id => {
            one.bind_to_request(policy).map_err(wrong)?;
            Ok(one)
        }
        _ => Err(not_a_single_policy(policy)),
    }
}

impl CheckedPolicy {
    /// The digest of a grant's request is beside its text, because operators see the text.
    fn bind_to_request(&mut self, record: &wire::Policy) -> Result<(), &'static str> {
        let digest = match record.request_sha256.as_slice() {
            [] => None,
            sha256 => Some(sha256.try_into().map_err(|_| "its request's digest is not one")?),
        };
        match (&mut self.approval, digest) {
            (Some(ApprovalRole::Grants(grant)), digest) => grant.request_sha256 = digest,
            (_, None) => {}
            (_, Some(_)) => return Err("a request's digest belongs to a grant"),
        }
        Ok(())
    }

    fn is_bound_as(&self, record: &wire::Policy) -> bool {
        match &self.approval {
            Some(ApprovalRole::Grants(grant)) => {
                grant.request_sha256.as_ref().map_or(&[][..], |sha256| sha256) == record.request_sha256
            }
            _ => record.request_sha256.is_empty(),
        }
    }
}

fn not_a_single_policy(policy: &wire::Policy) -> PolicyError {
    PolicyError { line: 1, reason: format!("policy `{}`: not one policy with this @id", policy.id) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(id: &str, path: &str) -> wire::Policy {
        let text =
            format!("@id(\"{id}\") permit (principal, action, resource) when {{ context.path like \"{path}\" }};");
        wire::Policy { id: id.into(), text, ..wire::Policy::default() }
    }

    #[test]
    fn what_has_not_changed_is_not_compiled_again() {
        let before = Policies::compile(&[policy("a", "/a"), policy("b", "/b")]).unwrap();
        assert!(before.have_same_text(&[policy("a", "/a"), policy("b", "/b")]));
        assert!(
            !before.have_same_text(&[policy("a", "/a"), policy("b", "/c")])
                && !before.have_same_text(&[policy("a", "/a")])
        );
        let mut compilation = Compilation::new(vec![policy("b", "/c"), policy("a", "/a")], Some(&before));
        assert!(compilation.compile_next().unwrap().is_none());
        let after = compilation.compile_next().unwrap().unwrap();
        let (a, b) = (&after.checked()[1], &after.checked()[0]);
        assert!(Arc::ptr_eq(a, &before.checked()[0]), "the same text");
        assert!(!Arc::ptr_eq(b, &before.checked()[1]), "another text");
        assert!(Compilation::new(Vec::new(), None).compile_next().unwrap().unwrap().have_same_text(&[]));
    }
}
