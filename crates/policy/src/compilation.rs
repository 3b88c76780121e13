//! Compiling a tenant's policies, one policy at a time: whoever compiles for many tenants can take turns between them.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    vec,
};

use seks_proto::wire;
use seks_types::id::PolicyId;

use super::{
    PolicyError,
    parse::{Checked, check_all, on_deep_stack},
    slice::Policies,
};

/// A tenant's policies on their way to being compiled.
pub struct Compilation {
    left: vec::IntoIter<wire::Policy>,
    /// By id: compiled for the policies before. A policy whose text is the same is taken over.
    known: HashMap<String, Arc<Checked>>,
    compiled: Vec<Arc<Checked>>,
    seen: HashSet<PolicyId>,
}

impl Compilation {
    /// Begins one. What `before` has of the same policies is taken over, so a change costs what it changes.
    #[must_use]
    pub fn new(policies: Vec<wire::Policy>, before: Option<&Policies>) -> Self {
        let known = before.map_or(&[][..], Policies::all).iter().map(|p| (p.id.to_string(), Arc::clone(p))).collect();
        let compiled = Vec::with_capacity(policies.len());
        Self { left: policies.into_iter(), known, compiled, seen: HashSet::new() }
    }

    /// Compiles the next policy: at most [`MAX_POLICY`](super::parse::MAX_POLICY) bytes of text, some milliseconds. `None`: there are more.
    ///
    /// Needs [`STACK_BYTES`](super::STACK_BYTES) of stack.
    ///
    /// # Errors
    /// The policy that doesn't pass: a tenant's policies hold together or not at all.
    pub fn step(&mut self) -> Result<Option<Policies>, PolicyError> {
        let Some(policy) = self.left.next() else { return Ok(Some(self.whole())) };
        let one = match self.known.get(policy.id.as_str()).filter(|known| known.text == policy.text) {
            Some(known) => Arc::clone(known),
            None => Arc::new(compile(&policy)?),
        };
        if !self.seen.insert(one.id.clone()) {
            return Err(not_one(&policy));
        }
        self.compiled.push(one);
        Ok(if self.left.as_slice().is_empty() { Some(self.whole()) } else { None })
    }

    fn whole(&mut self) -> Policies {
        Policies::of(std::mem::take(&mut self.compiled))
    }
}

impl Policies {
    /// Checks and compiles a tenant's policies, by the same rules as [`super::parse_file`].
    ///
    /// # Errors
    /// The first policy that doesn't pass: a tenant's policies hold together or not at all.
    pub fn compile(policies: &[wire::Policy]) -> Result<Self, PolicyError> {
        let failed = || PolicyError { line: 1, reason: "the policies could not be checked".into() };
        let mut compilation = Compilation::new(policies.to_vec(), None);
        on_deep_stack(|| {
            loop {
                if let Some(whole) = compilation.step()? {
                    return Ok(whole);
                }
            }
        })
        .ok_or_else(failed)?
    }

    /// Whether these are exactly `policies`: compiling them would give the same again.
    #[must_use]
    pub fn are(&self, policies: &[wire::Policy]) -> bool {
        let own = self.all();
        own.len() == policies.len() && own.iter().zip(policies).all(|(a, b)| a.id.as_str() == b.id && a.text == b.text)
    }
}

fn compile(policy: &wire::Policy) -> Result<Checked, PolicyError> {
    let wrong = |reason: &str| PolicyError { line: 1, reason: format!("policy `{}`: {reason}", policy.id) };
    let mut checked = check_all(&policy.text)
        .map_err(|e| e.into_iter().next().map_or_else(|| wrong("not acceptable"), |e| wrong(&e.reason)))?;
    match (checked.pop(), checked.is_empty()) {
        (Some(one), true) if one.id.as_str() == policy.id => Ok(one),
        _ => Err(not_one(policy)),
    }
}

fn not_one(policy: &wire::Policy) -> PolicyError {
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
        assert!(before.are(&[policy("a", "/a"), policy("b", "/b")]));
        assert!(!before.are(&[policy("a", "/a"), policy("b", "/c")]) && !before.are(&[policy("a", "/a")]));
        let mut compilation = Compilation::new(vec![policy("b", "/c"), policy("a", "/a")], Some(&before));
        assert!(compilation.step().unwrap().is_none());
        let after = compilation.step().unwrap().unwrap();
        let (a, b) = (&after.all()[1], &after.all()[0]);
        assert!(Arc::ptr_eq(a, &before.all()[0]), "the same text");
        assert!(!Arc::ptr_eq(b, &before.all()[1]), "another text");
        assert!(Compilation::new(Vec::new(), None).step().unwrap().unwrap().are(&[]));
    }
}
