//! Parses and checks a policy file. The result is the checked policies, or every error in the file.

use std::{collections::HashSet, str::FromStr as _, sync::Arc, thread};

use cedar_policy::{Effect, Policy, PolicySet, ValidationMode, pst};
use http::Method;
use miette::Diagnostic;
use seks_limits::Limit;
use seks_service::{
    methods::known_group,
    request::{BodyFields, fields::BUILT_IN},
};
use seks_types::id::PolicyId;

use super::{
    approval::{self, ApprovalRole},
    condition::Condition,
    cost::Cost,
    head::Head,
    mentions,
    normalize::normalize_expression,
    scan::{end_of_line, end_of_string},
    schema::{METHODS, further_methods, vocabulary},
};

/// Longest policy, in bytes.
pub(super) const MAX_POLICY: usize = 16 * 1024;
/// Deepest nesting of brackets, and most operators (`&&`, `||`, `.`, `if`, …) of a policy.
const MAX_BRACKETS: usize = 32;
const MAX_OPERATORS: usize = 1000;
/// Cedar recurses over nesting and over operator chains, with 20 KB a step in a debug build. A
/// stack overflow ends the process, so Cedar parses on a stack of this size. Policies within the
/// limits above were measured to need less than half of it.
pub const STACK_BYTES: usize = 64 * 1024 * 1024;
/// Longest file, in bytes, and so the largest size of a tenant's policies.
const MAX_FILE: usize = 1024 * 1024;

/// Why a policy or a file of policies is not acceptable, or a warning about it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {reason}")]
pub struct PolicyError {
    /// The line in the given text, counted from 1.
    pub line: usize,
    /// The problem, in one line.
    pub reason: String,
}

/// A valid policy.
#[derive(Debug)]
pub(super) struct CheckedPolicy {
    pub(super) id: PolicyId,
    pub(super) text: String,
    pub(super) policy: Policy,
    pub(super) audit: bool,
    /// It forbids what is over this limit, and nothing else.
    pub(super) limit: Option<Limit>,
    /// It asks for approval, or is one.
    pub(super) approval: Option<ApprovalRole>,
    pub(super) as_sent: Condition,
    /// The condition in normalized form. `None` when it equals `as_sent`.
    pub(super) normalized: Option<Condition>,
    pub(super) head: Head,
    /// Methods that it names beside the standard ones, sorted.
    pub(super) further_methods: Vec<Box<str>>,
    /// The body fields that it uses.
    pub(super) body_fields: BodyFields,
    /// The line in the given text, counted from 1.
    pub(super) line: usize,
    cost: Cost,
    plan_cost: Cost,
    pub(super) warnings: Vec<PolicyError>,
}

impl CheckedPolicy {
    pub(super) fn forbids(&self) -> bool {
        self.policy.effect() == Effect::Forbid
    }

    /// Upper bound of a decision: as sent and in normalized form, and once more to find out whether
    /// the body is needed.
    pub(super) fn cost(&self) -> Cost {
        self.cost
    }

    /// Cost of folding its constants for an agent, a service and a method.
    pub(super) fn plan_cost(&self) -> Cost {
        self.plan_cost
    }

    /// Whether Cedar evaluates a part of it for each request.
    pub(super) fn uses_cedar(&self) -> bool {
        [Some(&self.as_sent), self.normalized.as_ref()].into_iter().flatten().any(Condition::uses_cedar)
    }
}

impl AsRef<Self> for CheckedPolicy {
    fn as_ref(&self) -> &Self {
        self
    }
}

/// Parses and checks a file. Policies may use these body fields.
pub(super) fn check_file(text: &str, fields: &BodyFields) -> Result<Vec<CheckedPolicy>, Vec<PolicyError>> {
    if text.len() > MAX_FILE {
        return Err(vec![PolicyError { line: 1, reason: format!("longer than {MAX_FILE} bytes") }]);
    }
    let failed = || vec![PolicyError { line: 1, reason: "the policies could not be checked".into() }];
    run_on_deep_stack(|| check_statements(text, fields)).ok_or_else(failed)?
}

/// Methods that policies of a file name as actions and that the published schema doesn't know, with
/// their lines. Some service must list them, or they are mistakes.
#[must_use]
pub fn custom_methods(text: &str) -> Vec<(usize, String)> {
    let named = statements(text).into_iter().flat_map(|statement| {
        let custom = further_methods(statement.text).into_iter().filter(|method| known_group(method).is_none());
        custom.map(move |method| (statement.line, method.to_owned()))
    });
    named.collect()
}

/// Runs `work` on a stack of [`STACK_BYTES`]. `None` when there is no memory for it, or `work`
/// panicked.
pub(super) fn run_on_deep_stack<T: Send>(work: impl FnOnce() -> T + Send) -> Option<T> {
    thread::scope(|scope| {
        let worker = thread::Builder::new().name("policy".into()).stack_size(STACK_BYTES).spawn_scoped(scope, work);
        worker.ok()?.join().ok()
    })
}

/// [`check_file`] for a caller with a deep stack.
pub(super) fn check_statements(text: &str, fields: &BodyFields) -> Result<Vec<CheckedPolicy>, Vec<PolicyError>> {
    let (mut checked, mut errors, mut seen) = (Vec::new(), Vec::new(), HashSet::new());
    for statement in statements(text) {
        match statement.check_policy(fields) {
            Ok(policy) if seen.insert(policy.id.clone()) => checked.push(policy),
            Ok(policy) => errors.push(statement.error(format!("@id(\"{}\") is used twice", policy.id))),
            Err(found) => errors.extend(found),
        }
    }
    errors.sort_by_key(|e| e.line);
    if errors.is_empty() { Ok(checked) } else { Err(errors) }
}

/// The text of one policy, and the line where it begins.
#[derive(Clone, Copy)]
struct Statement<'t> {
    text: &'t str,
    line: usize,
}

/// Splits a file at the `;` of each policy, so that an error in one policy does not hide those in
/// others. Comments between policies belong to none. A last part without `;` is passed to Cedar,
/// which refuses it.
fn statements(text: &str) -> Vec<Statement<'_>> {
    let (mut found, mut start, mut at) = (Vec::new(), None, 0);
    let bytes = text.as_bytes();
    while let Some(&byte) = bytes.get(at) {
        let next = match byte {
            b'/' if bytes.get(at + 1) == Some(&b'/') => end_of_line(bytes, at),
            b'"' => end_of_string(bytes, at),
            _ => at + 1,
        };
        if byte == b'/' && next > at + 1 || byte.is_ascii_whitespace() {
            at = next;
            continue;
        }
        let from = *start.get_or_insert(at);
        if byte == b';' {
            found.push((from, next));
            start = None;
        }
        at = next;
    }
    found.extend(start.map(|from| (from, text.len())));
    let line = |at: usize| 1 + text.get(..at).map_or(0, |before| before.matches('\n').count());
    found.into_iter().filter_map(|(a, b)| Some(Statement { text: text.get(a..b)?, line: line(a) })).collect()
}

impl Statement<'_> {
    fn error(&self, reason: impl Into<String>) -> PolicyError {
        PolicyError { line: self.line, reason: reason.into() }
    }

    fn check_policy(&self, fields: &BodyFields) -> Result<CheckedPolicy, Vec<PolicyError>> {
        if self.text.len() > MAX_POLICY {
            return Err(vec![self.error(format!("a policy of more than {MAX_POLICY} bytes"))]);
        }
        if !self.is_within_nesting_limits() {
            return Err(vec![self.error("a policy with too many operators or brackets; split it up")]);
        }
        let set =
            PolicySet::from_str(self.text).map_err(|e| e.iter().map(|e| self.located(e, None)).collect::<Vec<_>>())?;
        let policy = match (set.templates().next(), set.policies().next()) {
            (Some(_), _) => return Err(vec![self.error("a template: write the policy out")]),
            (None, Some(policy)) => policy,
            (None, None) => return Err(vec![self.error("no policy")]),
        };
        let Annotations { id, audit, limit, approval, fields } =
            annotations(policy, fields).map_err(|e| vec![self.error(e)])?;
        let mut warnings = self.validate(&id, &set, &fields)?;
        warnings.extend(undeclared_field(policy, &fields).map(|path| {
            let reason = "is declared by no service: add it to the `body_fields` of one";
            self.error(format!("policy `{id}`: the body field `{path}` {reason}"))
        }));
        let (as_sent, normalized) =
            compile_conditions(policy).map_err(|reason| vec![self.error(format!("policy `{id}`: {reason}"))])?;
        let head = vocabulary()
            .map(|v| Head::of(policy, v))
            .ok_or_else(|| vec![self.error("the built-in schema is broken")])?;
        let second = normalized.as_ref().unwrap_or(&as_sent);
        let cost = Condition::decision_cost(&as_sent, second);
        let plan_cost = as_sent.plan_cost() + second.plan_cost();
        let body_fields = used_fields(policy, &fields)
            .ok_or_else(|| vec![self.error("the declared body fields do not fit together")])?;
        let (text, line, policy) = (with_body_fields(self.text, &body_fields), self.line, policy.clone());
        let further_methods = further_methods(self.text).into_iter().map(Into::into).collect();
        Ok(CheckedPolicy {
            id,
            text,
            policy,
            audit,
            limit,
            approval,
            as_sent,
            normalized,
            head,
            further_methods,
            body_fields,
            line,
            cost,
            plan_cost,
            warnings,
        })
    }

    /// Whether Cedar can parse it within [`STACK_BYTES`]. Strings and comments are counted too,
    /// because the bound need not be exact.
    fn is_within_nesting_limits(&self) -> bool {
        let (mut depth, mut deepest, mut operators) = (0_usize, 0, 0);
        for byte in self.text.bytes() {
            match byte {
                b'(' | b'[' | b'{' => depth += 1,
                b')' | b']' | b'}' => depth = depth.saturating_sub(1),
                b'&' | b'|' | b'!' | b'+' | b'-' | b'*' | b'.' => operators += 1,
                _ => {}
            }
            deepest = deepest.max(depth);
        }
        let words = self.text.split(|c: char| !c.is_ascii_alphanumeric()).filter(|w| *w == "if").count();
        deepest <= MAX_BRACKETS && operators + words <= MAX_OPERATORS
    }

    fn validate(
        &self,
        id: &PolicyId,
        set: &PolicySet,
        fields: &BodyFields,
    ) -> Result<Vec<PolicyError>, Vec<PolicyError>> {
        let further = further_methods(self.text);
        let validator = vocabulary().and_then(|vocabulary| vocabulary.validator_with(&further, fields));
        let validator = validator.ok_or_else(|| vec![self.error("the built-in schema is broken")])?;
        let validated = validator.validate(set, ValidationMode::Strict);
        let mut errors: Vec<_> = validated.validation_errors().map(|e| self.located(e, Some(id))).collect();
        if !errors.is_empty() {
            // Cedar checks a policy once for each action that it covers, and says so each time.
            errors.sort_by(|a, b| (a.line, &a.reason).cmp(&(b.line, &b.reason)));
            errors.dedup();
            return Err(errors);
        }
        Ok(validated.validation_warnings().map(|w| self.located(w, Some(id))).collect())
    }

    /// Cedar's message with its line. Cedar calls a policy that is parsed alone `policy0`; the
    /// message names it by its id.
    fn located(&self, error: &(impl Diagnostic + ?Sized), id: Option<&PolicyId>) -> PolicyError {
        let offset = error.labels().and_then(|mut l| l.next()).map_or(0, |label| label.offset());
        let lines = self.text.get(..offset).map_or(0, |before| before.matches('\n').count());
        let mut reason = error.to_string();
        if let Some(help) = error.help() {
            reason = format!("{reason}; {help}");
        }
        if let Some(id) = id {
            reason = reason.replace("policy0", id.as_str());
        }
        for method in METHODS.iter().map(Method::as_str).chain(further_methods(self.text)) {
            reason = reason.replace(&format!(" for Seks::Action::\"{method}\" not found"), " not found");
        }
        let reason = reason.split_whitespace().collect::<Vec<_>>().join(" ");
        PolicyError { line: self.line + lines, reason: reason.chars().take(400).collect() }
    }
}

/// What a policy says of itself.
struct Annotations {
    id: PolicyId,
    audit: bool,
    limit: Option<Limit>,
    approval: Option<ApprovalRole>,
    /// The declared body fields, and those of `@body_fields`.
    fields: BodyFields,
}

fn annotations(policy: &Policy, declared: &BodyFields) -> Result<Annotations, String> {
    let id = policy.annotation("id").ok_or("a policy without @id(\"…\")")?;
    let id = PolicyId::try_from(id).map_err(|e| format!("@id: {e}"))?;
    let limit = match policy.annotation(LIMIT) {
        None => None,
        Some(_) if policy.effect() == Effect::Permit => {
            return Err(format!("policy `{id}`: @{LIMIT} belongs to a forbid: it forbids what is over the limit"));
        }
        Some(text) => Some(text.parse().map_err(|error| format!("policy `{id}`: @{LIMIT}: {error}"))?),
    };
    let audit = match policy.annotation("mode") {
        None => false,
        Some("audit") => true,
        Some("shadow") if limit.is_some() => true,
        Some(_) => return Err(format!("policy `{id}`: @mode is \"audit\" (\"shadow\" of a limit) or absent")),
    };
    let approval = approval::role_of(policy, &id)?;
    if approval.is_some() && (limit.is_some() || matches!(approval, Some(ApprovalRole::Grants(_))) && audit) {
        return Err(format!("policy `{id}`: @approval and @grant exclude @{LIMIT}, and a grant has no @mode"));
    }
    // A misspelt @mode would make an audit policy decide.
    let known = ["id", "mode", "title", "description", "owner", BODY_FIELDS, LIMIT, approval::APPROVAL];
    let of_grants = [approval::GRANT, approval::GRANT_SHA256, approval::UNTIL, approval::USES];
    let is_known = |name: &str| known.contains(&name) || of_grants.contains(&name);
    if let Some((name, _)) = policy.annotations().find(|(name, _)| !is_known(name)) {
        return Err(format!("policy `{id}`: @{name} is none of @{}", known.join(", @")));
    }
    let own = policy.annotation(BODY_FIELDS).unwrap_or_default();
    let own = own.split(',').map(str::trim).filter(|field| !field.is_empty());
    let own = own.map(|field| field.split_once(':').map_or((field, ""), |(path, kind)| (path.trim(), kind.trim())));
    let all = declared.iter().map(|(path, kind)| (path, kind.name())).chain(own);
    let fields = BodyFields::parse(all).map_err(|error| format!("policy `{id}`: @{BODY_FIELDS}: {error}"))?;
    Ok(Annotations { id, audit, limit, approval, fields })
}

/// The annotation that makes a `forbid` a limit: `@limit("100 requests/minute")`. A node or replica
/// that doesn't know it refuses the policies, and permits nothing.
const LIMIT: &str = "limit";

/// The annotation that names the body fields which a policy uses, with their types:
/// `@body_fields("amount: Long")`. The control plane adds it when a policy is applied. A node that
/// doesn't know the annotation refuses the policies, and permits nothing.
const BODY_FIELDS: &str = "body_fields";

/// The text of a policy with the annotation for the fields that it uses.
fn with_body_fields(text: &str, used: &BodyFields) -> String {
    let list: Vec<String> = used.iter().map(|(path, kind)| format!("{path}: {}", kind.name())).collect();
    let annotation = format!("@{BODY_FIELDS}(\"{}\")", list.join(", "));
    match (own_annotation(text), used.is_empty()) {
        (None, true) => text.into(),
        (None, false) => format!("{annotation}\n{text}"),
        (Some(own), is_empty) => {
            let (before, after) = (text.get(..own.start).unwrap_or_default(), text.get(own.end..).unwrap_or_default());
            format!("{before}{}{after}", if is_empty { "" } else { &annotation })
        }
    }
}

/// Where `@body_fields("…")` is in the text of a valid policy.
fn own_annotation(text: &str) -> Option<std::ops::Range<usize>> {
    let (bytes, mut at) = (text.as_bytes(), 0);
    while let Some(&byte) = bytes.get(at) {
        at = match byte {
            b'/' if bytes.get(at + 1) == Some(&b'/') => end_of_line(bytes, at),
            b'"' => end_of_string(bytes, at),
            b'@' if text.get(at + 1..).is_some_and(|rest| rest.trim_start().starts_with(BODY_FIELDS)) => {
                let value = at + text.get(at..)?.find('"')?;
                let end = end_of_string(bytes, value);
                return Some(at..end + text.get(end..)?.find(')')? + 1);
            }
            _ => at + 1,
        };
    }
    None
}

/// Of `declared`, the fields that a policy names, or that are a part of what it names.
fn used_fields(policy: &Policy, declared: &BodyFields) -> Option<BodyFields> {
    if declared.is_empty() {
        return Some(BodyFields::default());
    }
    let named = body_paths(policy)?;
    let is_used = |path: &str| {
        let below = |name: &str| path.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
        named.iter().any(|name| name.is_empty() || below(name))
    };
    let used = declared.iter().filter(|(path, _)| is_used(path));
    BodyFields::parse(used.map(|(path, kind)| (path, kind.name()))).ok()
}

/// A field that a policy names and nobody declares. Cedar takes a test for it as one that is never
/// true.
fn undeclared_field(policy: &Policy, declared: &BodyFields) -> Option<String> {
    let is_known = |path: &String| {
        let root = path.split('.').next().unwrap_or_default();
        root.is_empty()
            || BUILT_IN.contains(&root)
            || declared.iter().any(|(known, _)| {
                known == path || known.strip_prefix(path.as_str()).is_some_and(|rest| rest.starts_with('.'))
            })
    };
    body_paths(policy)?.into_iter().find(|path| !is_known(path))
}

/// The paths below `context.body` that a policy names.
fn body_paths(policy: &Policy) -> Option<Vec<String>> {
    let syntax = policy.to_pst().ok()?;
    let paths = |clause: &pst::Clause| match clause {
        pst::Clause::When(expr) | pst::Clause::Unless(expr) => mentions::body_paths(expr),
    };
    let shallow = syntax.body().clauses().iter().all(|clause| match clause {
        pst::Clause::When(expr) | pst::Clause::Unless(expr) => mentions::is_shallow(expr),
    });
    shallow.then(|| syntax.body().clauses().iter().flat_map(paths).collect())
}

/// The condition as written and in normalized form.
fn compile_conditions(policy: &Policy) -> Result<(Condition, Option<Condition>), String> {
    let syntax = policy.to_pst().map_err(|e| e.to_string())?;
    let clauses = syntax.body().clauses();
    let expression = |clause: &pst::Clause| match clause {
        pst::Clause::When(expr) | pst::Clause::Unless(expr) => Arc::clone(expr),
    };
    if !clauses.iter().all(|c| mentions::is_shallow(&expression(c))) {
        return Err("a condition nested too deep; split it into several `when` clauses".into());
    }
    let normalize = |clause: &pst::Clause| match clause {
        pst::Clause::When(expr) => normalize_expression(expr).map(|e| pst::Clause::When(Arc::new(e))),
        pst::Clause::Unless(expr) => normalize_expression(expr).map(|e| pst::Clause::Unless(Arc::new(e))),
    };
    let normalized = clauses.iter().map(normalize).collect::<Result<Vec<_>, _>>().map_err(|e| e.to_string())?;
    let compile = |clauses| Condition::compile_clauses(clauses).ok_or("a condition that can't be written out");
    Ok((compile(clauses)?, if normalized == *clauses { None } else { Some(compile(&normalized)?) }))
}
