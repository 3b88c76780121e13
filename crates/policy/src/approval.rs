//! Approvals: a `forbid` with `@approval` forbids what no operator has approved. A `permit` with
//! `@grant` is such an approval. It lifts that one forbid, and permits nothing by itself.
//!
//! A decision names both, and does not depend on time. Its user checks expiry, query and uses.

use std::sync::Arc;

use cedar_policy::{Effect, Policy};
use seks_types::id::PolicyId;
use sha2::{Digest as _, Sha256};

use super::{
    Body, Call,
    scan::{end_of_line, end_of_string},
};

/// The annotation that makes a `forbid` ask for approval. Its value is a label for operators. A
/// node or replica that doesn't know it refuses the policies, and permits nothing.
pub(super) const APPROVAL: &str = "approval";
/// The annotations of a grant: the policy that it lifts, the SHA-256 of that policy's text, when it
/// ends, and how often it may be used.
pub(super) const GRANT: &str = "grant";
pub(super) const GRANT_SHA256: &str = "grant_sha256";
pub(super) const UNTIL: &str = "until";
pub(super) const USES: &str = "uses";
/// Longest label, in bytes.
const MAX_SCOPE: usize = 63;

/// A policy with `@approval`, as it applies to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequiredApproval {
    /// The policy's id.
    pub policy: PolicyId,
    /// Its label.
    pub scope: Box<str>,
    /// SHA-256 of its text. A grant for an earlier text lifts nothing.
    pub sha256: [u8; 32],
}

/// An operator's approval, as it applies to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApprovalGrant {
    /// The id of the approval, and of the policy that it is.
    pub id: PolicyId,
    /// The policy that it lifts.
    pub lifts: PolicyId,
    /// SHA-256 of that policy's text.
    pub sha256: [u8; 32],
    /// When it ends, in Unix seconds.
    pub expires_at: i64,
    /// It may be used a limited number of times. The control plane counts them.
    pub is_counted: bool,
    /// [`request_digest`] of the requests that it is for. `None`: of any.
    pub request_sha256: Option<[u8; 32]>,
}

impl ApprovalGrant {
    /// Whether it lifts `required` for a request at `now`, in Unix seconds.
    #[must_use]
    pub fn lifts(&self, required: &RequiredApproval, call: &Call<'_>, now: i64) -> bool {
        self.lifts == required.policy
            && self.sha256 == required.sha256
            && now < self.expires_at
            && self.request_sha256.is_none_or(|sha256| sha256 == request_digest(call))
    }
}

/// What a decision says of approvals.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Approvals {
    /// Policies that forbid the request unless it is approved.
    pub required: Vec<Arc<RequiredApproval>>,
    /// Approvals whose policy applies to the request as it is sent.
    pub grants: Vec<Arc<ApprovalGrant>>,
}

impl Approvals {
    /// The grants that lift `required`; without a count first.
    #[must_use]
    pub fn grants_for(&self, required: &RequiredApproval, call: &Call<'_>, now: i64) -> Vec<Arc<ApprovalGrant>> {
        let lifting = self.grants.iter().filter(|grant| grant.lifts(required, call, now));
        let mut lifting: Vec<_> = lifting.cloned().collect();
        lifting.sort_by_key(|grant| grant.is_counted);
        lifting
    }

    /// Whether each required approval was given. Uses are not looked at.
    #[must_use]
    pub fn are_granted(&self, call: &Call<'_>, now: i64) -> bool {
        self.required.iter().all(|required| self.grants.iter().any(|grant| grant.lifts(required, call, now)))
    }
}

/// What an approval is bound to beside the path, and what nobody sees: SHA-256 of the query, and of
/// the body's fields where the body was inspected, because a policy uses it.
#[must_use]
pub fn request_digest(call: &Call<'_>) -> [u8; 32] {
    let mut hash = Sha256::new();
    let mut add = |name: &str, value: &str| {
        for text in [name, value] {
            hash.update((text.len() as u64).to_be_bytes());
            hash.update(text);
        }
    };
    add("query", call.query);
    if let Body::Inspected(facts) = call.body {
        // The names of declared fields cannot hold `/`.
        let mut fixed = |name: &str, value: Option<String>| value.into_iter().for_each(|value| add(name, &value));
        fixed("/model", facts.model.clone());
        fixed("/stream", facts.stream.map(|stream| stream.to_string()));
        fixed("/max_tokens", facts.max_tokens.map(|most| most.to_string()));
        fixed("/mcp/method", facts.mcp.as_ref().map(|mcp| mcp.method.clone()));
        fixed("/mcp/name", facts.mcp.as_ref().and_then(|mcp| mcp.name.clone()));
        for (path, value) in facts.fields.iter() {
            add(path, &value.to_string());
        }
    }
    hash.finalize().into()
}

/// The digest that a grant has of a policy's text.
#[must_use]
pub fn sha256_of(text: &str) -> [u8; 32] {
    sha256_of_bytes(text.as_bytes())
}

/// The same of bytes.
#[must_use]
pub fn sha256_of_bytes(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

/// The label of the `@approval` of a valid policy.
#[must_use]
pub fn approval_scope(text: &str) -> Option<String> {
    let (bytes, mut at) = (text.as_bytes(), 0);
    while let Some(&byte) = bytes.get(at) {
        at = match byte {
            b'/' if bytes.get(at + 1) == Some(&b'/') => end_of_line(bytes, at),
            b'"' => end_of_string(bytes, at),
            b'@' => {
                let rest = text.get(at + 1..)?.trim_start();
                let value = rest.strip_prefix(APPROVAL).map(str::trim_start).and_then(|rest| rest.strip_prefix('('));
                if let Some(value) = value.map(str::trim_start).and_then(|rest| rest.strip_prefix('"')) {
                    return Some(value.split('"').next()?.to_owned());
                }
                at + 1
            }
            _ => at + 1,
        };
    }
    None
}

/// What a grant is written from.
#[derive(Clone, Debug)]
pub struct GrantText<'a> {
    /// The approval's id.
    pub id: &'a PolicyId,
    /// The policy that it lifts.
    pub lifts: &'a PolicyId,
    /// SHA-256 of that policy's text.
    pub sha256: &'a [u8; 32],
    /// When it ends, in Unix seconds.
    pub expires_at: i64,
    /// How often it may be used. 0: any number of times.
    pub uses: u32,
    /// The agent.
    pub agent: &'a str,
    /// The method.
    pub method: &'a str,
    /// The service.
    pub service: &'a str,
    /// The path, exactly.
    pub path: &'a str,
    /// The method of an MCP message, and the name of what it is about. `""`: it is none.
    pub mcp: (&'a str, &'a str),
    /// The token that it is for. `""`: every token of the agent.
    pub token: &'a str,
}

/// The Cedar text of a grant.
#[must_use]
pub fn grant_text(grant: &GrantText<'_>) -> String {
    let GrantText {
        id,
        lifts,
        sha256,
        expires_at,
        uses,
        agent,
        method,
        service,
        path,
        mcp: (mcp_method, mcp_name),
        token,
    } = grant;
    let sha256 = data_encoding::HEXLOWER.encode(*sha256);
    let uses = if *uses == 0 { String::new() } else { format!("@{USES}(\"{uses}\")\n") };
    let token = if token.is_empty() { String::new() } else { format!(" && context.token.id == {token:?}") };
    let mcp = match (*mcp_method, *mcp_name) {
        ("", _) => String::new(),
        (method, "") => format!(" && context has mcp && context.mcp.method == {method:?}"),
        (method, name) => format!(
            " && context has mcp && context.mcp.method == {method:?} && context.mcp has name && context.mcp.name == {name:?}"
        ),
    };
    format!(
        "@id(\"{id}\")\n@{GRANT}(\"{lifts}\")\n@{GRANT_SHA256}(\"{sha256}\")\n@{UNTIL}(\"{expires_at}\")\n{uses}\
         permit (principal == Seks::Agent::{agent:?}, action == Seks::Action::{method:?}, resource == Seks::Service::{service:?})\n\
         when {{ context.path == {path:?}{token}{mcp} }};"
    )
}

/// What a policy is to approvals.
#[derive(Clone, Debug)]
pub(super) enum ApprovalRole {
    /// The label of a policy that asks for approval.
    Requires(Box<str>),
    /// An approval.
    Grants(Box<ApprovalGrant>),
}

/// The role that the annotations of a policy give it.
pub(super) fn role_of(policy: &Policy, id: &PolicyId) -> Result<Option<ApprovalRole>, String> {
    let wrong = |name: &str, reason: &str| format!("policy `{id}`: @{name}{reason}");
    if let Some(lifts) = policy.annotation(GRANT) {
        let grant = grant_of(policy, id, lifts).ok_or_else(|| wrong(GRANT, " is not one that an approval wrote"))?;
        return Ok(Some(ApprovalRole::Grants(Box::new(grant))));
    }
    if let Some(name) = [GRANT_SHA256, UNTIL, USES].into_iter().find(|name| policy.annotation(name).is_some()) {
        return Err(wrong(name, " belongs to a grant"));
    }
    match policy.annotation(APPROVAL) {
        None => Ok(None),
        Some(_) if policy.effect() == Effect::Permit => {
            Err(wrong(APPROVAL, " belongs to a forbid: it forbids what is not approved"))
        }
        Some(scope) if is_scope(scope) => Ok(Some(ApprovalRole::Requires(scope.into()))),
        Some(_) => Err(wrong(APPROVAL, ": a label of 1 to 63 letters, digits and `-_.:/ `, such as \"payments\"")),
    }
}

fn is_scope(scope: &str) -> bool {
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.:/ ".contains(&b);
    (1..=MAX_SCOPE).contains(&scope.len()) && scope.trim() == scope && scope.bytes().all(is_plain)
}

fn grant_of(policy: &Policy, id: &PolicyId, lifts: &str) -> Option<ApprovalGrant> {
    let sha256 = data_encoding::HEXLOWER.decode(policy.annotation(GRANT_SHA256)?.as_bytes()).ok()?;
    let uses: Option<u32> = policy.annotation(USES).map(str::parse).transpose().ok()?;
    (policy.effect() == Effect::Permit && policy.annotation(APPROVAL).is_none()).then_some(())?;
    Some(ApprovalGrant {
        id: id.clone(),
        lifts: lifts.parse().ok()?,
        sha256: sha256.try_into().ok()?,
        expires_at: policy.annotation(UNTIL)?.parse().ok()?,
        is_counted: uses.is_some(),
        request_sha256: None,
    })
}
