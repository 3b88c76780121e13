//! Decides one call by all policies of a slice, as it is sent and in normalized form.

mod outcome;

use std::{
    borrow::Cow,
    cell::OnceCell,
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use cedar_policy::{Context, Entities, EvalResult, Request, RestrictedExpression as Value, eval_expression};
use seks_service::request::{self, BodyFacts, BodyFields, normalize};
use seks_types::id::PolicyId;

use self::outcome::SliceOutcome;
use super::{
    AppliedLimit, Body, Call, Decision,
    approval::{ApprovalGrant, ApprovalRole, RequiredApproval, sha256_of},
    cache::{Key, PlanId, Question},
    condition::{Condition, Evaluator, Leaf, Truth},
    cost::Cost,
    field_values::nested_fields,
    mentions::{Mentions, QUERY_INTERPRETATIONS},
    parse::CheckedPolicy,
    query_name::for_each_interpretation,
    schema::{Action, vocabulary},
    subject::Subject,
};

pub(super) fn denied() -> Decision {
    Decision {
        allowed: false,
        policy_ids: Arc::default(),
        audited: Arc::default(),
        error: None,
        audit_error: None,
        limits: None,
        approvals: None,
    }
}

/// Evaluates a leaf with Cedar.
pub(super) fn evaluate_with_cedar(leaf: &Leaf, request: &Request, entities: &Entities) -> Truth {
    match eval_expression(request, entities, &leaf.expression) {
        Ok(EvalResult::Bool(value)) => value.into(),
        Ok(_) | Err(_) => Truth::Failed,
    }
}

/// The form in which the texts of a call and of a policy are compared.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum TextForm {
    /// The bytes that are sent.
    AsSent,
    /// Without the differences that servers ignore; see [`super::normalize`].
    Normalized,
    /// The same, with the path as the laxest server reads it; see
    /// [`folded_paths`](normalize::folded_paths).
    Folded,
}

/// Which calls of one method, by one agent to one service, are permitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reach {
    /// None.
    Never,
    /// Those that a condition selects, by path, body, source and so on.
    Sometimes,
    /// All.
    Always,
}

/// A policy whose head covers the slice, with its conditions folded for the slice.
pub(super) struct SlicedPolicy {
    /// The policy's id, in the form in which a decision shares it.
    id: Arc<[PolicyId]>,
    forbids: bool,
    audit: bool,
    limit: Option<Arc<AppliedLimit>>,
    approval: Option<Approval>,
    as_sent: Condition,
    /// `None` when it equals `as_sent`.
    normalized: Option<Condition>,
}

/// What a policy is to approvals, in the form in which a decision shares it.
enum Approval {
    Requires(Arc<RequiredApproval>),
    Grants(Arc<ApprovalGrant>),
}

impl Approval {
    fn of(policy: &CheckedPolicy) -> Option<Self> {
        match policy.approval.as_ref()? {
            ApprovalRole::Grants(grant) => Some(Self::Grants(Arc::new((**grant).clone()))),
            // It counts and reports.
            ApprovalRole::Requires(_) if policy.audit => None,
            ApprovalRole::Requires(scope) => {
                let (policy, sha256) = (policy.id.clone(), sha256_of(&policy.text));
                Some(Self::Requires(Arc::new(RequiredApproval { policy, scope: scope.clone(), sha256 })))
            }
        }
    }
}

impl SlicedPolicy {
    pub(super) fn new(policy: &CheckedPolicy, as_sent: Condition, normalized: Option<Condition>) -> Self {
        let applied = |limit| Arc::new(AppliedLimit { id: policy.id.clone(), limit, shadow: policy.audit });
        Self {
            id: Arc::new([policy.id.clone()]),
            forbids: policy.forbids(),
            audit: policy.audit,
            limit: policy.limit.map(applied),
            approval: Approval::of(policy),
            as_sent,
            normalized,
        }
    }

    /// Whether it may decide whether a request is allowed.
    fn is_in_force(&self) -> bool {
        !self.audit && self.limit.is_none() && self.approval.is_none()
    }

    fn condition(&self, form: TextForm) -> &Condition {
        self.normalized.as_ref().filter(|_| form != TextForm::AsSent).unwrap_or(&self.as_sent)
    }

    fn mentions(&self) -> Mentions {
        self.as_sent.mentions() | self.normalized.as_ref().map_or(Mentions::NOTHING, Condition::mentions)
    }

    fn cost(&self) -> Cost {
        Condition::decision_cost(&self.as_sent, self.condition(TextForm::Normalized))
    }

    fn uses_cedar(&self) -> bool {
        self.as_sent.uses_cedar() || self.condition(TextForm::Normalized).uses_cedar()
    }

    fn is_constant(&self) -> bool {
        matches!((&self.as_sent, &self.normalized), (Condition::Const(_), None | Some(Condition::Const(_))))
    }
}

/// The method of a plan.
pub(super) struct PlanAction {
    pub(super) action: Action,
    /// With the method's entity, for one that the schema's entities don't include.
    pub(super) entities: Option<Entities>,
}

impl PlanAction {
    /// The entities of a decision.
    pub(super) fn entities<'a>(&'a self, subject: &'a Subject) -> Option<&'a Entities> {
        match &self.entities {
            Some(entities) => Some(entities),
            None => subject.entities().map(|entities| &entities.entities),
        }
    }
}

/// The policies that decide calls of one method, by one agent, to one service.
pub(super) struct Plan {
    /// The decision when it depends on nothing of the call. Most requests end here.
    constant: Option<Decision>,
    policies: Vec<SlicedPolicy>,
    action: PlanAction,
    granted: bool,
    /// The body fields that must be known; `None`: none can be.
    body_fields: Option<Arc<BodyFields>>,
    mentions: Mentions,
    /// The normalized form of a policy differs from its text.
    differs_when_normalized: bool,
    /// Part of the keys of cached decisions.
    id: PlanId,
    cost: Cost,
}

static NEXT_PLAN_ID: AtomicU64 = AtomicU64::new(0);

impl Plan {
    pub(super) fn new(
        action: PlanAction,
        policies: Vec<SlicedPolicy>,
        granted: bool,
        body_fields: Option<Arc<BodyFields>>,
    ) -> Self {
        let mut mentions = policies.iter().fold(Mentions::NOTHING, |m, p| m | p.mentions());
        if mentions.any(Mentions::BODY) && body_fields.as_ref().is_none_or(|fields| !fields.is_empty()) {
            mentions = mentions | Mentions::QUERY; // see `has_field_in_query`
        }
        let mut plan = Self {
            constant: None,
            action,
            granted,
            body_fields,
            mentions,
            differs_when_normalized: policies.iter().any(|m| m.normalized.is_some()),
            id: PlanId(NEXT_PLAN_ID.fetch_add(1, Relaxed)),
            cost: policies.iter().map(SlicedPolicy::cost).sum(),
            policies,
        };
        if plan.policies.iter().any(SlicedPolicy::uses_cedar) {
            // One request as sent, one in normalized form.
            let request = Cost::request(plan.mentions.any(Mentions::QUERY));
            plan.cost = plan.cost + request + request;
        }
        plan.constant = plan.constant_decision();
        plan
    }

    /// The decision when nothing of a call can change it: all conditions are constant, or a forbid
    /// is.
    fn constant_decision(&self) -> Option<Decision> {
        let forbidden =
            |m: &&SlicedPolicy| m.forbids && m.is_in_force() && matches!(m.as_sent, Condition::Const(Truth::True));
        if self.policies.iter().all(SlicedPolicy::is_constant) {
            let (as_sent, normalized) = (
                SliceOutcome::of_plan_in(self, &ConstantEvaluator, TextForm::AsSent),
                SliceOutcome::of_plan_in(self, &ConstantEvaluator, TextForm::Normalized),
            );
            return Some(as_sent.decision(Some(normalized)));
        }
        let ids: Vec<PolicyId> = self.policies.iter().filter(forbidden).flat_map(|m| m.id.iter().cloned()).collect();
        (!ids.is_empty()).then(|| Decision { policy_ids: ids.into(), ..denied() })
    }

    /// The decision when nothing of a call changes it.
    pub(super) fn constant(&self) -> Option<&Decision> {
        self.constant.as_ref()
    }

    /// Which calls it permits.
    pub(super) fn reach(&self) -> Reach {
        let is = |policy: &SlicedPolicy, truth: Truth| {
            [&policy.as_sent, policy.condition(TextForm::Normalized)]
                .into_iter()
                .all(|condition| matches!(condition, Condition::Const(constant) if *constant == truth))
        };
        let in_force = || self.policies.iter().filter(|policy| policy.is_in_force());
        let permits = || in_force().filter(|policy| !policy.forbids && !is(policy, Truth::False));
        let forbids = || {
            let restricts =
                |policy: &&SlicedPolicy| policy.forbids && (policy.is_in_force() || policy.approval.is_some());
            self.policies.iter().filter(restricts).filter(|policy| !is(policy, Truth::False))
        };
        match &self.constant {
            Some(decision) if decision.allowed && decision.approvals.is_none() => Reach::Always,
            Some(decision) if decision.allowed => Reach::Sometimes,
            Some(_) => Reach::Never,
            None if permits().next().is_none() => Reach::Never,
            None if forbids().next().is_none() && permits().any(|policy| is(policy, Truth::True)) => Reach::Always,
            None => Reach::Sometimes,
        }
    }

    /// The truth of a condition in each form of the call, first as it is sent.
    pub(super) fn truths(
        &self,
        subject: &Subject,
        call: &Call<'_>,
        as_sent: &Condition,
        normalized: &Condition,
    ) -> Vec<Truth> {
        let first = as_sent.evaluate(&CallEvaluator::new(subject, self, call, TextForm::AsSent));
        let second = normalized.evaluate(&CallEvaluator::new(subject, self, call, TextForm::Normalized));
        let folded = self.folded(subject, call).map(|evaluator| normalized.evaluate(&evaluator));
        [first, second].into_iter().chain(folded).collect()
    }

    /// Upper bound of the time to decide on `call`.
    pub(super) fn cost(&self, call: &Call<'_>) -> Duration {
        if self.constant.is_some() {
            return Duration::ZERO;
        }
        let cost = self.cost.for_request(call.path.len(), call.query.len());
        // The cost is that of two forms.
        let folded = if self.folds(call) { normalize::folded_paths(call.path).len() } else { 0 };
        cost * (2 + u32::try_from(folded).unwrap_or(u32::MAX - 2)).div_ceil(2)
    }

    /// The number of nodes of its conditions.
    pub(super) fn node_count(&self) -> usize {
        let normalized = |m: &SlicedPolicy| m.normalized.as_ref().map_or(0, Condition::node_count);
        self.policies.iter().map(|m| 4 + m.as_sent.node_count() + normalized(m)).sum()
    }

    /// The cache key for `call`. `None` when the answer depends on more than a key holds.
    pub(super) fn key<'a>(&self, question: Question, call: &Call<'a>) -> Option<Key<'a>> {
        Key::new(self.id, question, self.mentions, call)
    }

    pub(super) fn asks_for_query(&self) -> bool {
        self.constant.is_none() && self.mentions.any(Mentions::QUERY)
    }

    pub(super) fn may_need_body(&self) -> bool {
        self.constant.is_none() && (self.mentions.any(Mentions::BODY) || self.mentions.any(Mentions::MCP))
    }

    /// Whether a condition depends on the body. `call`'s body is [`Body::NotRead`].
    pub(super) fn needs_body(&self, subject: &Subject, call: &Call<'_>) -> bool {
        let unknown = |evaluator: &CallEvaluator<'_>| {
            let truth = |m: &SlicedPolicy| m.condition(evaluator.form).evaluate(evaluator);
            self.policies.iter().any(|m| truth(m) == Truth::Unknown)
        };
        unknown(&CallEvaluator::new(subject, self, call, TextForm::AsSent))
            || unknown(&CallEvaluator::new(subject, self, call, TextForm::Normalized))
            || self.folded(subject, call).any(|evaluator| unknown(&evaluator))
    }

    pub(super) fn decide(&self, subject: &Subject, call: &Call<'_>) -> Decision {
        let as_sent = SliceOutcome::of_plan(self, &CallEvaluator::new(subject, self, call, TextForm::AsSent));
        if !as_sent.allows() {
            return as_sent.decision(None);
        }
        let mut others = None;
        if self.differs_when_normalized || self.changes_when_normalized(call) {
            let normalized = CallEvaluator::new(subject, self, call, TextForm::Normalized);
            others = Some(SliceOutcome::of_plan(self, &normalized));
        }
        for folded in self.folded(subject, call) {
            if others.as_ref().is_some_and(|others| !others.allows()) {
                break;
            }
            let earlier = others.take();
            others = Some(SliceOutcome::of_plan(self, &folded).and_counts_of(earlier));
        }
        as_sent.decision(others)
    }

    /// Whether the call's path may have folded forms, and a policy mentions it.
    fn folds(&self, call: &Call<'_>) -> bool {
        self.mentions.any(Mentions::PATH)
            && (call.path.bytes().any(|b| b == b'%') || normalize::has_foldable(call.path))
    }

    /// The call in each folded form of its path.
    fn folded<'a>(
        &'a self,
        subject: &'a Subject,
        call: &'a Call<'a>,
    ) -> impl Iterator<Item = CallEvaluator<'a>> + use<'a> {
        let forms = if self.folds(call) { normalize::folded_paths(call.path) } else { Vec::new() };
        forms.into_iter().map(move |path| {
            let normalized = CallEvaluator::new(subject, self, call, TextForm::Normalized);
            let unfolded_path = Some(normalized.path);
            CallEvaluator { path: Cow::Owned(path), unfolded_path, form: TextForm::Folded, ..normalized }
        })
    }

    /// Whether the call's normalized form may differ from the call.
    fn changes_when_normalized(&self, call: &Call<'_>) -> bool {
        let odd = |text: &str| text.bytes().any(|b| b == b'%' || b.is_ascii_uppercase());
        let model = |m: &String| normalize::normalized_model(m) != m.as_str();
        self.mentions.any(Mentions::PATH) && odd(call.path)
            || self.mentions.any(Mentions::QUERY) && !call.query.bytes().all(is_unambiguous_query_byte)
            || matches!(call.body, Body::Inspected(facts) if facts.model.as_ref().is_some_and(model))
    }
}

/// A byte of a query whose parameter names every server reads in the same way.
fn is_unambiguous_query_byte(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'=' | b'&')
}

/// Evaluates plans whose conditions are all constants.
struct ConstantEvaluator;

impl Evaluator for ConstantEvaluator {
    fn path(&self, _: bool) -> &str {
        ""
    }
    fn has_query_name(&self, _: &str) -> bool {
        false
    }
    fn is_granted(&self) -> bool {
        false
    }
    fn evaluate_leaf(&self, _: &Leaf) -> Truth {
        Truth::Failed
    }
}

/// One call in one form. Derived values are computed when a policy first needs them.
struct CallEvaluator<'a> {
    subject: &'a Subject,
    plan: &'a Plan,
    call: &'a Call<'a>,
    path: Cow<'a, str>,
    /// In folded form: the path in normalized form.
    unfolded_path: Option<Cow<'a, str>>,
    form: TextForm,
    /// Every interpretation of every query name.
    interpretations: OnceCell<HashSet<String>>,
    /// Cedar's request.
    request: OnceCell<Option<Request>>,
    /// The sorted query names.
    names: OnceCell<Vec<Cow<'a, str>>>,
    /// See [`Self::has_field_in_query`].
    field_in_query: OnceCell<bool>,
}

impl<'a> CallEvaluator<'a> {
    fn new(subject: &'a Subject, plan: &'a Plan, call: &'a Call<'a>, form: TextForm) -> Self {
        let path =
            if form == TextForm::AsSent { Cow::Borrowed(call.path) } else { normalize::normalized_path(call.path) };
        Self {
            subject,
            plan,
            call,
            path,
            unfolded_path: None,
            form,
            interpretations: OnceCell::new(),
            request: OnceCell::new(),
            names: OnceCell::new(),
            field_in_query: OnceCell::new(),
        }
    }

    /// Whether the body is known as far as the policies need it.
    fn is_body_known(&self) -> bool {
        let Some(fields) = &self.plan.body_fields else { return false };
        let is_read = match self.call.body {
            Body::NotRead | Body::Opaque => false,
            Body::Absent => true,
            Body::Inspected(facts) => facts.fields.cover(fields),
        };
        is_read && !self.has_field_in_query(fields)
    }

    /// Whether the query has a parameter that servers may merge with a body field (Stripe, PHP).
    fn has_field_in_query(&self, fields: &BodyFields) -> bool {
        if fields.is_empty() || self.call.query.is_empty() {
            return false;
        }
        *self.field_in_query.get_or_init(|| {
            request::query_names(self.call.query).any(|name| fields.may_be_named(&name))
                || self.interpretations().iter().any(|name| fields.may_be_named(name))
        })
    }

    fn names(&self) -> impl Iterator<Item = Cow<'a, str>> {
        let normalized = self.form != TextForm::AsSent;
        request::query_names(self.call.query)
            .map(move |n| if normalized { Cow::Owned(normalize::normalized_query_name(&n).into_owned()) } else { n })
    }

    fn interpretations(&self) -> &HashSet<String> {
        self.interpretations.get_or_init(|| {
            let mut all = HashSet::new();
            for name in request::query_names(self.call.query) {
                for_each_interpretation(&name, |interpretation| {
                    all.insert(interpretation.into_owned());
                });
            }
            all
        })
    }

    /// The request in the schema's form, with the parts only that some policy of the slice
    /// mentions.
    fn request(&self) -> Option<Request> {
        let (v, entities) = (vocabulary()?, self.subject.entities()?);
        let action = self.plan.action.action.method.clone();
        let mentions = self.plan.mentions;
        let mut context = Vec::with_capacity(8);
        if mentions.any(Mentions::PATH) {
            context.push(("path", Value::new_string(self.path.clone().into_owned())));
        }
        if mentions.any(Mentions::QUERY) {
            let names = self.names().map(|n| Value::new_string(n.into_owned()));
            context.push(("query_keys", Value::new_set(names)));
            if self.form != TextForm::AsSent {
                let interpretations = self.interpretations().iter().map(|n| Value::new_string(n.clone()));
                context.push((QUERY_INTERPRETATIONS, Value::new_set(interpretations)));
            }
        }
        if mentions.any(Mentions::TOKEN) {
            let services = self.call.services.iter().map(|s| Value::new_entity_uid(v.service(s.as_str())));
            let token = [
                ("id".to_owned(), Value::new_string(self.call.token.into())),
                ("services".to_owned(), Value::new_set(services)),
                ("age_seconds".to_owned(), Value::new_long(self.call.age_seconds)),
            ];
            context.push(("token", Value::new_record(token).ok()?));
        }
        if mentions.any(Mentions::SOURCE) {
            context.push(("source", Value::new_ip(self.call.source.to_canonical().to_string())));
        }
        if mentions.any(Mentions::BODY) {
            context.push(("body_inspected", Value::new_bool(true)));
            if let Body::Inspected(facts) = self.call.body {
                context.push(("body", self.body(facts)?));
            }
        }
        if mentions.any(Mentions::MCP)
            && let Body::Inspected(BodyFacts { mcp: Some(mcp), .. }) = self.call.body
        {
            let name = mcp.name.clone().map(|name| ("name".to_owned(), Value::new_string(name)));
            let fields = [("method".to_owned(), Value::new_string(mcp.method.clone()))].into_iter().chain(name);
            context.push(("mcp", Value::new_record(fields).ok()?));
        }
        if mentions.any(Mentions::TRUST)
            && let Some(trust) = &self.call.trust
        {
            context.push(("trust", trust.record()?));
        }
        let context = Context::from_pairs(context.into_iter().map(|(k, v)| (k.to_owned(), v))).ok()?;
        Request::new(entities.agent.clone(), action, entities.service.clone(), context, None).ok()
    }

    fn body(&self, facts: &BodyFacts) -> Option<Value> {
        let model = facts.model.as_deref().map(|m| {
            if self.form != TextForm::AsSent { normalize::normalized_model(m).into_owned() } else { m.to_owned() }
        });
        let fields = [
            model.map(|m| ("model".to_owned(), Value::new_string(m))),
            facts.stream.map(|s| ("stream".to_owned(), Value::new_bool(s))),
            facts.max_tokens.map(|n| ("max_tokens".to_owned(), Value::new_long(n))),
        ];
        let declared =
            nested_fields(facts.fields.iter().map(|(path, value)| (path.split('.').collect(), value)).collect())?;
        Value::new_record(fields.into_iter().flatten().chain(declared)).ok()
    }
}

impl Evaluator for CallEvaluator<'_> {
    fn path(&self, has_foldable: bool) -> &str {
        self.unfolded_path.as_deref().filter(|_| has_foldable).unwrap_or(&self.path)
    }

    fn has_query_name(&self, name: &str) -> bool {
        if self.form != TextForm::AsSent {
            return self.interpretations().contains(name);
        }
        let names = self.names.get_or_init(|| {
            let mut names: Vec<_> = self.names().collect();
            names.sort_unstable();
            names
        });
        names.binary_search_by(|known| (**known).cmp(name)).is_ok()
    }

    fn is_granted(&self) -> bool {
        self.plan.granted
    }

    fn evaluate_leaf(&self, leaf: &Leaf) -> Truth {
        let depends_on_body = leaf.mentions.any(Mentions::BODY) || (self.call.mcp && leaf.mentions.any(Mentions::MCP));
        if depends_on_body && !self.is_body_known() {
            return Truth::Unknown;
        }
        match (self.request.get_or_init(|| self.request()), self.plan.action.entities(self.subject)) {
            (Some(request), Some(entities)) => evaluate_with_cedar(leaf, request, entities),
            _ => Truth::Failed,
        }
    }
}
