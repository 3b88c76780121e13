//! A policy's condition, compiled.
//!
//! What most policies ask about a request (the path, query names, whether the token grants the service) is answered here in
//! nanoseconds; Cedar itself answers the rest, as leaves of the same tree. `&&`, `||`, `!` and `if` are evaluated from left to
//! right as Cedar does, so a condition has one meaning however it is split. A property test holds the two against each other.

use std::sync::Arc;

use cedar_policy::{
    Expression,
    pst::{BinaryOp, Clause, Expr, Literal, UnaryOp, Var},
};

use super::{
    pattern::Pattern,
    tree::{Mentions, Part, mentions, part},
    work::Work,
};

/// What a condition comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Truth {
    True,
    False,
    /// It hangs on a body that wasn't inspected.
    Unknown,
    /// Cedar couldn't evaluate it.
    Failed,
}

impl From<bool> for Truth {
    fn from(value: bool) -> Self {
        if value { Self::True } else { Self::False }
    }
}

/// A condition that is compiled.
#[derive(Clone, Debug)]
pub(super) enum Condition {
    Const(Truth),
    /// `context.path like "…"`.
    PathLike(Arc<Pattern>),
    /// `context.path == "…"`, `["…", …].contains(context.path)`.
    PathIn(Arc<[String]>),
    /// `context.query_keys.contains("…")`.
    QueryHas(Arc<str>),
    /// `context.token.services.contains(resource)`.
    Granted,
    Not(Box<Condition>),
    All(Vec<Condition>),
    Any(Vec<Condition>),
    If(Box<[Condition; 3]>),
    /// Anything else: Cedar evaluates it.
    Leaf(Arc<Leaf>),
}

/// A piece of a condition that Cedar evaluates.
#[derive(Debug)]
pub(super) struct Leaf {
    pub(super) expression: Expression,
    pub(super) mentions: Mentions,
    /// What evaluating it costs.
    work: Work,
}

/// Who answers what a condition asks.
pub(super) trait Answers {
    fn path(&self) -> &str;
    fn has_query(&self, name: &str) -> bool;
    fn granted(&self) -> bool;
    fn leaf(&self, leaf: &Leaf) -> Truth;
}

impl Condition {
    /// The conjunction of a policy's clauses. `None`: an expression that can't be written out again, which doesn't happen to
    /// what was parsed.
    pub(super) fn of_clauses(clauses: &[Clause]) -> Option<Self> {
        let one = |clause: &Clause| match clause {
            Clause::When(expr) => Self::of(expr),
            Clause::Unless(expr) => Self::of(expr).map(|c| Self::Not(Box::new(c))),
        };
        clauses.iter().map(one).collect::<Option<Vec<_>>>().map(all)
    }

    fn of(expr: &Expr) -> Option<Self> {
        Some(match expr {
            Expr::Literal(Literal::Bool(value)) => Self::Const((*value).into()),
            Expr::UnaryOp { op: UnaryOp::Not, expr } => Self::Not(Box::new(Self::of(expr)?)),
            Expr::BinaryOp { op: BinaryOp::And, left, right } => all(vec![Self::of(left)?, Self::of(right)?]),
            Expr::BinaryOp { op: BinaryOp::Or, left, right } => any(vec![Self::of(left)?, Self::of(right)?]),
            Expr::IfThenElse { cond, then_expr, else_expr } => {
                Self::If(Box::new([Self::of(cond)?, Self::of(then_expr)?, Self::of(else_expr)?]))
            }
            Expr::Like { expr, pattern } if part(expr) == Some(Part::Path) => {
                Self::PathLike(Arc::new(Pattern::new(pattern)))
            }
            Expr::BinaryOp { op, left, right } => match Self::comparison(*op, left, right) {
                Some(condition) => condition,
                None => Self::leaf(expr)?,
            },
            other => Self::leaf(other)?,
        })
    }

    /// The comparisons that are answered without Cedar.
    fn comparison(op: BinaryOp, left: &Expr, right: &Expr) -> Option<Self> {
        match (op, part(left), part(right)) {
            (BinaryOp::Eq, Some(Part::Path), None) => Some(Self::PathIn(Arc::new([literal(right)?]))),
            (BinaryOp::Eq, None, Some(Part::Path)) => Some(Self::PathIn(Arc::new([literal(left)?]))),
            (BinaryOp::NotEq, ..) => Self::comparison(BinaryOp::Eq, left, right).map(|c| Self::Not(Box::new(c))),
            (BinaryOp::Contains, None, Some(Part::Path)) => match left {
                Expr::Set(items) => items.iter().map(|i| literal(i)).collect::<Option<_>>().map(Self::PathIn),
                _ => None,
            },
            (BinaryOp::Contains, Some(Part::QueryKeys), None) => literal(right).map(|n| Self::QueryHas(n.into())),
            (BinaryOp::Contains, Some(Part::Services), None) => {
                matches!(right, Expr::Var(Var::Resource)).then_some(Self::Granted)
            }
            _ => None,
        }
    }

    fn leaf(expr: &Expr) -> Option<Self> {
        let expression = expr.to_string().parse().ok()?;
        Some(Self::Leaf(Arc::new(Leaf { expression, mentions: mentions(expr), work: Work::of_leaf(expr) })))
    }

    /// What it mentions.
    pub(super) fn mentions(&self) -> Mentions {
        match self {
            Self::Const(Truth::Failed) => Mentions::FAILURE,
            Self::Const(_) => Mentions::NOTHING,
            Self::PathLike(_) | Self::PathIn(_) => Mentions::PATH,
            Self::QueryHas(_) => Mentions::QUERY,
            Self::Granted => Mentions::TOKEN,
            Self::Not(of) => of.mentions(),
            Self::All(of) | Self::Any(of) => union(of),
            Self::If(of) => union(of.as_slice()),
            Self::Leaf(leaf) => leaf.mentions,
        }
    }

    /// What evaluating it costs at most, once it is [settled](Self::settled).
    pub(super) fn work(&self) -> Work {
        let own = match self {
            Self::PathLike(pattern) => Work::pattern(pattern.stretches()),
            Self::PathIn(texts) => Work::texts(texts.len()),
            Self::QueryHas(_) => Work::QUERY_NAME,
            Self::Leaf(leaf) if leaf.mentions.any(Mentions::CALL) => leaf.work,
            _ => Work::NOTHING,
        };
        self.children().iter().map(Self::work).sum::<Work>() + own + Work::STEP
    }

    /// What deciding on one policy costs: as the request is sent (`strict`) and in normalized form (`loose`). Both are decided
    /// twice where it has to be known first whether the body is needed.
    pub(super) fn decision_work(strict: &Self, loose: &Self) -> Work {
        let once = strict.work() + loose.work();
        let body = strict.mentions().any(Mentions::BODY) || loose.mentions().any(Mentions::BODY);
        if body { once.times(2) } else { once }
    }

    /// What settling it costs.
    pub(super) fn plan_work(&self) -> Work {
        let own = match self {
            Self::Leaf(leaf) if !leaf.mentions.any(Mentions::CALL) => leaf.work,
            _ => Work::NOTHING,
        };
        self.children().iter().map(Self::plan_work).sum::<Work>() + own + Work::plan(1)
    }

    /// How many nodes it has.
    pub(super) fn nodes(&self) -> usize {
        1 + self.children().iter().map(Self::nodes).sum::<usize>()
    }

    /// Whether Cedar evaluates a part of it.
    pub(super) fn asks_cedar(&self) -> bool {
        matches!(self, Self::Leaf(leaf) if leaf.mentions.any(Mentions::CALL))
            || self.children().iter().any(Self::asks_cedar)
    }

    fn children(&self) -> &[Self] {
        match self {
            Self::Not(of) => std::slice::from_ref(of),
            Self::All(of) | Self::Any(of) => of,
            Self::If(of) => of.as_slice(),
            _ => &[],
        }
    }

    /// Evaluates it.
    pub(super) fn evaluate(&self, answers: &impl Answers) -> Truth {
        match self {
            Self::Const(truth) => *truth,
            Self::PathLike(pattern) => pattern.matches(answers.path()).into(),
            Self::PathIn(paths) => paths.iter().any(|p| p == answers.path()).into(),
            Self::QueryHas(name) => answers.has_query(name).into(),
            Self::Granted => answers.granted().into(),
            Self::Not(of) => not(of.evaluate(answers)),
            Self::All(of) => series(of, Truth::True, answers),
            Self::Any(of) => series(of, Truth::False, answers),
            Self::If(of) => {
                let [condition, then, otherwise] = &**of;
                match condition.evaluate(answers) {
                    Truth::True => then.evaluate(answers),
                    Truth::False => otherwise.evaluate(answers),
                    undecided => undecided,
                }
            }
            Self::Leaf(leaf) => answers.leaf(leaf),
        }
    }

    /// The same condition for one agent, service, method and grant, with everything that is settled by them settled.
    /// `settle` answers for a leaf that mentions nothing of the call.
    pub(super) fn settled(&self, granted: bool, settle: &impl Fn(&Leaf) -> Truth) -> Self {
        let each = |of: &[Self]| of.iter().map(|c| c.settled(granted, settle)).collect::<Vec<_>>();
        match self {
            Self::Granted => Self::Const(granted.into()),
            Self::Leaf(leaf) if !leaf.mentions.any(Mentions::CALL) => Self::Const(settle(leaf)),
            Self::Not(of) => match of.settled(granted, settle) {
                Self::Const(truth) => Self::Const(not(truth)),
                open => Self::Not(Box::new(open)),
            },
            Self::All(of) => all(each(of)),
            Self::Any(of) => any(each(of)),
            Self::If(of) => {
                let [condition, then, otherwise] = &**of;
                match condition.settled(granted, settle) {
                    Self::Const(Truth::True) => then.settled(granted, settle),
                    Self::Const(Truth::False) => otherwise.settled(granted, settle),
                    Self::Const(truth) => Self::Const(truth),
                    open => {
                        Self::If(Box::new([open, then.settled(granted, settle), otherwise.settled(granted, settle)]))
                    }
                }
            }
            other => other.clone(),
        }
    }
}

fn literal(expr: &Expr) -> Option<String> {
    match expr {
        Expr::Literal(Literal::String(text)) => Some(text.to_string()),
        _ => None,
    }
}

fn union(of: &[Condition]) -> Mentions {
    of.iter().fold(Mentions::NOTHING, |m, c| m | c.mentions())
}

fn not(truth: Truth) -> Truth {
    match truth {
        Truth::True => Truth::False,
        Truth::False => Truth::True,
        other => other,
    }
}

fn all(of: Vec<Condition>) -> Condition {
    joined(of, Truth::True)
}

fn any(of: Vec<Condition>) -> Condition {
    joined(of, Truth::False)
}

/// A conjunction (`neutral` is true) or disjunction, flat and without what can't change it.
fn joined(of: Vec<Condition>, neutral: Truth) -> Condition {
    let mut flat = Vec::with_capacity(of.len());
    for condition in of {
        match condition {
            Condition::All(inner) if neutral == Truth::True => flat.extend(inner),
            Condition::Any(inner) if neutral == Truth::False => flat.extend(inner),
            Condition::Const(truth) if truth == neutral => {}
            other => flat.push(other),
        }
    }
    // What stands behind a constant is never reached. What stands before it may still fail, and then that is the result.
    if let Some(end) = flat.iter().position(|c| matches!(c, Condition::Const(_))) {
        flat.truncate(end + 1);
        if let Some(Condition::Const(last)) = flat.last()
            && !union(&flat).any(Mentions::FAILURE)
        {
            return Condition::Const(*last);
        }
    }
    match flat.len() {
        0 => Condition::Const(neutral),
        1 => flat.swap_remove(0),
        _ if neutral == Truth::True => Condition::All(flat),
        _ => Condition::Any(flat),
    }
}

/// From left to right until one decides, as Cedar does. With an unknown among them the rest is looked at too: whatever the
/// unknown turns out to be, a later member that decides still decides, unless the unknown could have failed instead.
fn series(of: &[Condition], neutral: Truth, answers: &impl Answers) -> Truth {
    let decides = not(neutral);
    let mut unknown = false;
    for condition in of {
        match condition.evaluate(answers) {
            Truth::Failed if unknown => return Truth::Unknown,
            Truth::Failed => return Truth::Failed,
            Truth::Unknown if condition.mentions().any(Mentions::FAILURE) => return Truth::Unknown,
            Truth::Unknown => unknown = true,
            truth if truth == decides => return decides,
            _ => {}
        }
    }
    if unknown { Truth::Unknown } else { neutral }
}
