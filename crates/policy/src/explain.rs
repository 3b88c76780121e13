//! Why a call is permitted or denied, and what an agent can reach at all: for operators, never on
//! the path of a request.

use std::{collections::BTreeMap, sync::Arc};

use cedar_policy::pst::{BinaryOp, Clause, Expr};
use http::Method;
use seks_service::{methods::MethodGroup, request};
use seks_types::id::{AgentName, PolicyId, ServiceName};

use super::{
    Body, Call, Policies, PolicySlice,
    condition::{Condition, Truth},
    decide::{Plan, Reach},
    head::{Agents, Services},
    mentions::{Mentions, mentions},
    normalize::normalize_expression,
    parse::CheckedPolicy,
};

/// What became of one policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyTrace {
    /// Its id.
    pub id: PolicyId,
    /// It is a `forbid`.
    pub forbids: bool,
    /// It is in audit mode, a limit, or about approval, and decides nothing by itself.
    pub audit: bool,
    /// It applies to the call.
    pub applies: bool,
    /// It depends on a body that was not inspected, or fails to evaluate.
    pub undecided: bool,
    /// What of it the call does not meet, as Cedar text with the call's values.
    pub unmet: Vec<String>,
    /// How far the call is from it. 0: it applies.
    pub distance: usize,
}

/// How much further away a policy is whose head names another service, agent or action, than one
/// with an unmet condition.
const OTHER_SERVICE: usize = 100;
const OTHER_AGENT: usize = 40;
const OTHER_ACTION: usize = 10;

impl Policies {
    /// What each policy makes of a call: first those that apply, then permits by how close the call
    /// comes to them, then forbids. Takes some microseconds for each condition of each policy.
    #[must_use]
    pub fn explain(
        &self,
        agent: &AgentName,
        attributes: &BTreeMap<String, String>,
        service: &ServiceName,
        call: &Call<'_>,
    ) -> Vec<PolicyTrace> {
        let slice = PolicySlice::new(self, agent, attributes, service);
        let Some(plan) = slice.plan_of_all(call) else { return Vec::new() };
        let explainer = Explainer { slice: &slice, plan: &plan, call, attributes };
        let mut traces: Vec<PolicyTrace> = self.checked().iter().map(|policy| explainer.trace(policy)).collect();
        traces.sort_by_key(|trace| (!trace.applies, trace.audit, !trace.applies && trace.forbids, trace.distance));
        traces
    }

    /// Which calls of `method` are permitted to a token that grants the service.
    #[must_use]
    pub fn reach(
        &self,
        agent: &AgentName,
        attributes: &BTreeMap<String, String>,
        service: &ServiceName,
        method: &Method,
    ) -> Reach {
        let call = Call {
            method,
            method_group: MethodGroup::Neither,
            path: "",
            query: "",
            token: "",
            services: std::slice::from_ref(service),
            age_seconds: 0,
            source: std::net::IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED),
            body: Body::NotRead,
            mcp: false,
            trust: None,
        };
        PolicySlice::new(self, agent, attributes, service).reach(&call)
    }
}

struct Explainer<'a> {
    slice: &'a PolicySlice,
    plan: &'a Plan,
    call: &'a Call<'a>,
    attributes: &'a BTreeMap<String, String>,
}

/// A part of a policy's conditions, and whether it must be true.
struct Part {
    expr: Arc<Expr>,
    wanted: bool,
}

impl Explainer<'_> {
    fn trace(&self, policy: &CheckedPolicy) -> PolicyTrace {
        let (mut unmet, mut distance) = self.head(policy);
        let mut undecided = false;
        for part in parts(policy) {
            let (truth, normalized_only) = self.truth(&part, policy.forbids());
            let is_met = truth == Truth::from(part.wanted);
            undecided |= matches!(truth, Truth::Unknown | Truth::Failed);
            if !is_met {
                unmet.push(self.describe(&part, truth, normalized_only));
                distance += 1;
            }
        }
        PolicyTrace {
            id: policy.id.clone(),
            forbids: policy.forbids(),
            audit: policy.audit || policy.limit.is_some() || policy.approval.is_some(),
            applies: unmet.is_empty(),
            undecided,
            unmet,
            distance,
        }
    }

    fn head(&self, policy: &CheckedPolicy) -> (Vec<String>, usize) {
        let (head, mut unmet, mut distance) = (&policy.head, Vec::new(), 0);
        let subject = self.slice.subject();
        if !self.slice.has_service(policy) {
            let service = match &head.services {
                Services::One(name) => format!("resource == Seks::Service::\"{name}\""),
                Services::Any | Services::None => "a resource that no service is".into(),
            };
            unmet.push(format!("{service} (the service is `{}`)", subject.service));
            distance += OTHER_SERVICE;
        }
        if !self.slice.has_agent(policy) {
            let groups: Vec<&str> = subject.groups().collect();
            unmet.push(match &head.agents {
                Agents::One(name) => {
                    format!("principal == Seks::Agent::\"{name}\" (the agent is `{}`)", subject.agent)
                }
                Agents::Group(name) if groups.is_empty() => {
                    format!("principal in Seks::Group::\"{name}\" (agent `{}` is in no group)", subject.agent)
                }
                Agents::Group(name) => format!(
                    "principal in Seks::Group::\"{name}\" (agent `{}` is in {})",
                    subject.agent,
                    groups.join(", ")
                ),
                Agents::Any | Agents::None => "a principal that no agent is".into(),
            });
            distance += OTHER_AGENT;
        }
        if !self.slice.has_action(policy, self.call) {
            let actions = head.action_names();
            let actions = match actions.as_slice() {
                [one] => format!("action == {one}"),
                several => format!("action in [{}]", several.join(", ")),
            };
            unmet.push(format!("{actions} (the method is {})", self.call.method));
            distance += OTHER_ACTION;
        }
        (unmet, distance)
    }

    /// The worst truth in all forms of the call: for a permit a part must hold in each, for a
    /// forbid in one. And whether it is only another form than the one that is sent which makes it
    /// so.
    fn truth(&self, part: &Part, forbids: bool) -> (Truth, bool) {
        let compiled = Condition::compile_expression(&part.expr);
        let normalized = normalize_expression(&part.expr).ok().and_then(|expr| Condition::compile_expression(&expr));
        let (Some(as_sent), Some(normalized)) = (compiled, normalized) else { return (Truth::Failed, false) };
        let truths = self.plan.truths(self.slice.subject(), self.call, &as_sent, &normalized);
        let wanted = Truth::from(part.wanted);
        let first = truths.first().copied().unwrap_or(Truth::Failed);
        let other = match forbids {
            true if first != wanted => truths.iter().find(|truth| **truth == wanted),
            false if first == wanted => truths.iter().find(|truth| **truth != wanted),
            _ => None,
        };
        other.map_or((first, false), |other| (*other, true))
    }

    fn describe(&self, part: &Part, truth: Truth, normalized_only: bool) -> String {
        let keyword = if part.wanted { "when" } else { "unless" };
        let mut text = format!("{keyword} {{ {} }}", part.expr);
        let values = self.values(&part.expr);
        let state = match truth {
            Truth::Unknown => "the body is not known",
            Truth::Failed => "it cannot be evaluated",
            _ if normalized_only => "in the form that ignores case, escapes and `.`, `;`, `//` in paths",
            Truth::True | Truth::False => "",
        };
        let notes: Vec<&str> = [values.as_str(), state].into_iter().filter(|note| !note.is_empty()).collect();
        if !notes.is_empty() {
            text = format!("{text} ({})", notes.join("; "));
        }
        text
    }

    /// The call's values of what an expression mentions.
    fn values(&self, expr: &Expr) -> String {
        let (call, mentioned, text) = (self.call, mentions(expr), expr.to_string());
        let mut values = Vec::new();
        if text.contains("principal") {
            let tags: Vec<String> = self.attributes.iter().map(|(k, v)| format!("{k}={v}")).collect();
            let tags = if tags.is_empty() { "no attributes".into() } else { tags.join(" ") };
            values.push(format!("the agent has {tags}"));
        }
        if mentioned.any(Mentions::PATH) {
            values.push(format!("the path is `{}`", call.path));
        }
        if mentioned.any(Mentions::QUERY) {
            let mut names: Vec<_> = request::query_names(call.query).collect();
            names.sort_unstable();
            let names = if names.is_empty() { "no parameters".into() } else { names.join(", ") };
            values.push(format!("the query has {names}"));
        }
        if mentioned.any(Mentions::TOKEN) {
            let services: Vec<&str> = call.services.iter().map(ServiceName::as_str).collect();
            values.push(format!("the token grants {} and is {} s old", services.join(", "), call.age_seconds));
        }
        if mentioned.any(Mentions::SOURCE) {
            values.push(format!("the source is {}", call.source));
        }
        if mentioned.any(Mentions::BODY) || mentioned.any(Mentions::MCP) {
            values.extend(body_values(call.body));
        }
        if mentioned.any(Mentions::TRUST) {
            values.push(call.trust.map_or_else(
                || "the token was not exchanged by a trust".into(),
                |trust| format!("the trust is `{}`, and the subject `{}`", trust.name, trust.subject),
            ));
        }
        values.join(", ")
    }
}

/// A body as an operator sees it. The operator has sent it.
fn body_values(body: Body<'_>) -> Option<String> {
    let facts = match body {
        Body::NotRead | Body::Opaque => return None,
        Body::Absent => return Some("there is no body".into()),
        Body::Inspected(facts) => facts,
    };
    let mut values = Vec::new();
    values.extend(facts.model.as_ref().map(|model| format!("model `{model}`")));
    values.extend(facts.stream.map(|stream| format!("stream {stream}")));
    values.extend(facts.max_tokens.map(|tokens| format!("max_tokens {tokens}")));
    values.extend(facts.fields.iter().map(|(path, value)| format!("{path} {value}")));
    if let Some(mcp) = &facts.mcp {
        values.push(format!("MCP method `{}`, name `{}`", mcp.method, mcp.name.as_deref().unwrap_or_default()));
    }
    let values = if values.is_empty() { "none of the known fields".into() } else { values.join(", ") };
    Some(format!("the body has {values}"))
}

/// The clauses of a policy, split at `&&`.
fn parts(policy: &CheckedPolicy) -> Vec<Part> {
    let Ok(syntax) = policy.policy.to_pst() else { return Vec::new() };
    let mut parts = Vec::new();
    for clause in syntax.body().clauses() {
        match clause {
            Clause::When(expr) => split(expr, &mut parts),
            Clause::Unless(expr) => parts.push(Part { expr: Arc::clone(expr), wanted: false }),
        }
    }
    parts
}

fn split(expr: &Arc<Expr>, parts: &mut Vec<Part>) {
    match &**expr {
        Expr::BinaryOp { op: BinaryOp::And, left, right } => {
            split(left, parts);
            split(right, parts);
        }
        _ => parts.push(Part { expr: Arc::clone(expr), wanted: true }),
    }
}
