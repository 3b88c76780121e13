//! A decision: every policy of a slice on one call, as it is sent and in its loosest reading.

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
use seks_service::request::{self, BodyFacts, normalize};
use seks_types::id::PolicyId;

use super::{
    Body, Call, Decision, EvaluateError,
    cache::{Key, Question},
    condition::{Answers, Condition, Leaf, Truth},
    parse::Checked,
    schema::{action_index, vocabulary},
    spelling::readings,
    subject::Subject,
    tree::{Mentions, QUERY_SPELLINGS},
    work::Work,
};

pub(super) fn denied() -> Decision {
    Decision { allowed: false, policy_ids: Arc::default(), audited: Arc::default(), error: None, audit_error: None }
}

/// Asks Cedar.
pub(super) fn truth_of(leaf: &Leaf, request: &Request, entities: &Entities) -> Truth {
    match eval_expression(request, entities, &leaf.expression) {
        Ok(EvalResult::Bool(value)) => value.into(),
        Ok(_) | Err(_) => Truth::Failed,
    }
}

/// A policy whose head covers the slice.
pub(super) struct Member {
    /// Its id, ready to be put into a decision.
    id: Arc<[PolicyId]>,
    forbids: bool,
    audit: bool,
    strict: Condition,
    /// `None`: reads the same.
    loose: Option<Condition>,
}

impl Member {
    pub(super) fn new(policy: &Checked, strict: Condition, loose: Option<Condition>) -> Self {
        Self { id: Arc::new([policy.id.clone()]), forbids: policy.forbids(), audit: policy.audit, strict, loose }
    }

    fn condition(&self, loose: bool) -> &Condition {
        self.loose.as_ref().filter(|_| loose).unwrap_or(&self.strict)
    }

    fn mentions(&self) -> Mentions {
        self.strict.mentions() | self.loose.as_ref().map_or(Mentions::NOTHING, Condition::mentions)
    }

    fn work(&self) -> Work {
        Condition::decision_work(&self.strict, self.condition(true))
    }

    fn asks_cedar(&self) -> bool {
        self.strict.asks_cedar() || self.condition(true).asks_cedar()
    }

    fn is_settled(&self) -> bool {
        matches!((&self.strict, &self.loose), (Condition::Const(_), None | Some(Condition::Const(_))))
    }
}

/// What is to be done for a call of one method, by one agent, to one service.
pub(super) struct Plan {
    /// Settled: it depends on nothing else. Most requests end here.
    decided: Option<Decision>,
    members: Vec<Member>,
    granted: bool,
    mentions: Mentions,
    /// A policy's loosest reading is not its text.
    loose_differs: bool,
    /// Never used twice in this process.
    number: u64,
    work: Work,
}

static NEXT: AtomicU64 = AtomicU64::new(0);

impl Plan {
    pub(super) fn new(members: Vec<Member>, granted: bool) -> Self {
        let mut plan = Self {
            decided: None,
            granted,
            mentions: members.iter().fold(Mentions::NOTHING, |m, p| m | p.mentions()),
            loose_differs: members.iter().any(|m| m.loose.is_some()),
            number: NEXT.fetch_add(1, Relaxed),
            work: members.iter().map(Member::work).sum(),
            members,
        };
        if plan.members.iter().any(Member::asks_cedar) {
            // As it is sent, and in its loosest reading.
            let request = Work::request(plan.mentions.any(Mentions::QUERY));
            plan.work = plan.work + request + request;
        }
        plan.decided = plan.settled();
        plan
    }

    /// The decision, when nothing of a call can change it: everything is settled, or a forbid is.
    fn settled(&self) -> Option<Decision> {
        let forbidden = |m: &&Member| m.forbids && !m.audit && matches!(m.strict, Condition::Const(Truth::True));
        if self.members.iter().all(Member::is_settled) {
            let (strict, loose) = (Tally::of(self, &Settled, false), Tally::of(self, &Settled, true));
            return Some(strict.decision(Some(loose)));
        }
        let ids: Vec<PolicyId> = self.members.iter().filter(forbidden).flat_map(|m| m.id.iter().cloned()).collect();
        (!ids.is_empty()).then(|| Decision { policy_ids: ids.into(), ..denied() })
    }

    /// The decision, when nothing of a call changes it.
    pub(super) fn decided(&self) -> Option<&Decision> {
        self.decided.as_ref()
    }

    /// What deciding on `call` takes at most.
    pub(super) fn work(&self, call: &Call<'_>) -> Duration {
        if self.decided.is_some() { Duration::ZERO } else { self.work.at(call.path.len(), call.query.len()) }
    }

    /// How many nodes its conditions have.
    pub(super) fn nodes(&self) -> usize {
        let loose = |m: &Member| m.loose.as_ref().map_or(0, Condition::nodes);
        self.members.iter().map(|m| 4 + m.strict.nodes() + loose(m)).sum()
    }

    /// What an answer to `call` depends on; `None`: on more than is worth keeping.
    pub(super) fn key<'a>(&self, question: Question, call: &Call<'a>) -> Option<Key<'a>> {
        Key::new(self.number, question, self.mentions, call)
    }

    pub(super) fn may_need_body(&self) -> bool {
        self.decided.is_none() && self.mentions.any(Mentions::BODY)
    }

    /// `call`'s body is [`Body::NotRead`].
    pub(super) fn needs_body(&self, subject: &Subject, call: &Call<'_>) -> bool {
        let unknown = |loose: bool| {
            let asked = Asked::new(subject, self, call, loose);
            self.members.iter().any(|m| m.condition(loose).evaluate(&asked) == Truth::Unknown)
        };
        unknown(false) || unknown(true)
    }

    pub(super) fn decide(&self, subject: &Subject, call: &Call<'_>) -> Decision {
        let strict = Tally::of(self, &Asked::new(subject, self, call, false), false);
        if !strict.allows() || !(self.loose_differs || self.spelled_otherwise(call)) {
            return strict.decision(None);
        }
        strict.decision(Some(Tally::of(self, &Asked::new(subject, self, call, true), true)))
    }

    /// Whether the call's loosest reading is another than the call.
    fn spelled_otherwise(&self, call: &Call<'_>) -> bool {
        let odd = |text: &str| text.bytes().any(|b| b == b'%' || b.is_ascii_uppercase());
        let model = |m: &String| normalize::model(m) != m.as_str();
        self.mentions.any(Mentions::PATH) && odd(call.path)
            || self.mentions.any(Mentions::QUERY) && !call.query.bytes().all(read_alike)
            || matches!(call.body, Body::Inspected(facts) if facts.model.as_ref().is_some_and(model))
    }
}

/// A character of a query whose parameters are named alike by every server: plain names and values, and what separates them.
fn read_alike(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'=' | b'&')
}

/// Answers where every condition is a constant.
struct Settled;

impl Answers for Settled {
    fn path(&self) -> &str {
        ""
    }
    fn has_query(&self, _: &str) -> bool {
        false
    }
    fn granted(&self) -> bool {
        false
    }
    fn leaf(&self, _: &Leaf) -> Truth {
        Truth::Failed
    }
}

/// One reading of a call.
struct Asked<'a> {
    subject: &'a Subject,
    plan: &'a Plan,
    call: &'a Call<'a>,
    path: Cow<'a, str>,
    loose: bool,
    /// Every reading of every query name; made when a policy asks for one for the first time.
    spellings: OnceCell<HashSet<String>>,
    /// Made when Cedar is asked for the first time.
    request: OnceCell<Option<Request>>,
    /// Names of the query in order, made when one is asked for.
    names: OnceCell<Vec<Cow<'a, str>>>,
}

impl<'a> Asked<'a> {
    fn new(subject: &'a Subject, plan: &'a Plan, call: &'a Call<'a>, loose: bool) -> Self {
        let path = if loose { normalize::path(call.path) } else { Cow::Borrowed(call.path) };
        Self {
            subject,
            plan,
            call,
            path,
            loose,
            spellings: OnceCell::new(),
            request: OnceCell::new(),
            names: OnceCell::new(),
        }
    }

    fn names(&self) -> impl Iterator<Item = Cow<'a, str>> {
        let loose = self.loose;
        request::names(self.call.query)
            .map(move |n| if loose { Cow::Owned(normalize::lower(&n).into_owned()) } else { n })
    }

    fn spellings(&self) -> &HashSet<String> {
        self.spellings.get_or_init(|| {
            let mut all = HashSet::new();
            for name in request::names(self.call.query) {
                readings(&name, |reading| {
                    all.insert(reading.into_owned());
                });
            }
            all
        })
    }

    /// The request as the schema has it, but for what no policy of the slice mentions.
    fn request(&self) -> Option<Request> {
        let (v, entities) = (vocabulary()?, self.subject.entities()?);
        let action = v.action(action_index(self.call.method)?)?.method.clone();
        let mentions = self.plan.mentions;
        let mut context = Vec::with_capacity(6);
        if mentions.any(Mentions::PATH) {
            context.push(("path", Value::new_string(self.path.clone().into_owned())));
        }
        if mentions.any(Mentions::QUERY) {
            let names = self.names().map(|n| Value::new_string(n.into_owned()));
            context.push(("query_keys", Value::new_set(names)));
            if self.loose {
                let spellings = self.spellings().iter().map(|n| Value::new_string(n.clone()));
                context.push((QUERY_SPELLINGS, Value::new_set(spellings)));
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
        let context = Context::from_pairs(context.into_iter().map(|(k, v)| (k.to_owned(), v))).ok()?;
        Request::new(entities.agent.clone(), action, entities.service.clone(), context, None).ok()
    }

    fn body(&self, facts: &BodyFacts) -> Option<Value> {
        let model =
            facts.model.as_deref().map(|m| if self.loose { normalize::model(m).into_owned() } else { m.to_owned() });
        let fields = [
            model.map(|m| ("model".to_owned(), Value::new_string(m))),
            facts.stream.map(|s| ("stream".to_owned(), Value::new_bool(s))),
            facts.max_tokens.map(|n| ("max_tokens".to_owned(), Value::new_long(n))),
        ];
        Value::new_record(fields.into_iter().flatten()).ok()
    }
}

impl Answers for Asked<'_> {
    fn path(&self) -> &str {
        &self.path
    }

    fn has_query(&self, name: &str) -> bool {
        if self.loose {
            return self.spellings().contains(name);
        }
        let names = self.names.get_or_init(|| {
            let mut names: Vec<_> = self.names().collect();
            names.sort_unstable();
            names
        });
        names.binary_search_by(|known| (**known).cmp(name)).is_ok()
    }

    fn granted(&self) -> bool {
        self.plan.granted
    }

    fn leaf(&self, leaf: &Leaf) -> Truth {
        if leaf.mentions.any(Mentions::BODY) && matches!(self.call.body, Body::NotRead | Body::Opaque) {
            return Truth::Unknown;
        }
        match (self.request.get_or_init(|| self.request()), self.subject.entities()) {
            (Some(request), Some(entities)) => truth_of(leaf, request, &entities.entities),
            _ => Truth::Failed,
        }
    }
}

/// What the policies of a slice say to one reading of a call.
#[derive(Default)]
struct Tally {
    permits: Ids,
    forbids: Ids,
    /// In force, and hanging on a body that can't be inspected.
    unknown: Ids,
    audited: Ids,
    failed: Option<PolicyId>,
    audit_failed: Option<PolicyId>,
}

impl Tally {
    fn of(plan: &Plan, answers: &impl Answers, loose: bool) -> Self {
        let mut tally = Self::default();
        for member in &plan.members {
            let id = &member.id;
            match (member.condition(loose).evaluate(answers), member.audit) {
                (Truth::True, true) => tally.audited.add(id),
                (Truth::True, false) if member.forbids => tally.forbids.add(id),
                (Truth::True, false) => tally.permits.add(id),
                (Truth::Unknown, false) => tally.unknown.add(id),
                (Truth::Failed, false) => tally.failed = tally.failed.or_else(|| id.first().cloned()),
                (Truth::Failed, true) => tally.audit_failed = tally.audit_failed.or_else(|| id.first().cloned()),
                (Truth::False, _) | (Truth::Unknown, true) => {}
            }
        }
        tally
    }

    fn allows(&self) -> bool {
        self.failed.is_none() && self.unknown.is_empty() && self.forbids.is_empty() && !self.permits.is_empty()
    }

    /// The decision on a call as it was sent (`self`) and in its loosest reading, where that is another.
    fn decision(self, loose: Option<Self>) -> Decision {
        let (allowed, audited) = (self.allows(), self.audited.arc());
        let (error, audit_error) = (self.failed.map(EvaluateError), self.audit_failed.map(EvaluateError));
        match loose {
            Some(loose) if allowed && !loose.allows() => Decision { audited, audit_error, ..loose.decision(None) },
            _ => {
                let ids = match allowed {
                    true => self.permits,
                    false if self.forbids.is_empty() => self.unknown,
                    false => self.forbids,
                };
                Decision { allowed, policy_ids: ids.arc(), audited, error, audit_error }
            }
        }
    }
}

/// Ids of policies. One is the common case, and costs nothing to hand out.
#[derive(Default)]
enum Ids {
    #[default]
    None,
    One(Arc<[PolicyId]>),
    Many(Vec<PolicyId>),
}

impl Ids {
    fn add(&mut self, id: &Arc<[PolicyId]>) {
        match self {
            Self::None => *self = Self::One(Arc::clone(id)),
            Self::One(first) => *self = Self::Many(first.iter().chain(id.iter()).cloned().collect()),
            Self::Many(ids) => ids.extend(id.iter().cloned()),
        }
    }

    fn is_empty(&self) -> bool {
        matches!(self, Self::None)
    }

    fn arc(self) -> Arc<[PolicyId]> {
        match self {
            Self::None => Arc::default(),
            Self::One(id) => id,
            Self::Many(ids) => ids.into(),
        }
    }
}
