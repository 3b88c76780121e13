//! A policy's condition, compiled.
//!
//! Most policies ask about the path, query names and the token's grants. These are evaluated here
//! in nanoseconds. Cedar evaluates everything else, as leaves of the same tree. `&&`, `||`, `!` and
//! `if` are evaluated from left to right as in Cedar, so splitting a condition does not change its
//! meaning. A property test compares this evaluator with Cedar.

use std::sync::Arc;

use cedar_policy::{
    Expression,
    pst::{BinaryOp, Clause, Expr, Literal, UnaryOp, Var},
};

use seks_service::request::normalize::has_foldable;

use super::{
    cost::Cost,
    mentions::{CallPart, Mentions, call_part, mentions},
    pattern::Pattern,
};

/// The result of evaluating a condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Truth {
    True,
    False,
    /// The result depends on a body that was not inspected.
    Unknown,
    /// Cedar failed to evaluate it.
    Failed,
}

impl From<bool> for Truth {
    fn from(value: bool) -> Self {
        if value { Self::True } else { Self::False }
    }
}

/// A compiled condition.
#[derive(Clone, Debug)]
pub(super) enum Condition {
    Const(Truth),
    /// `context.path like "…"`.
    PathLike(Arc<Pattern>),
    /// `context.path == "…"`, `["…", …].contains(context.path)`.
    PathIn(Arc<[PathText]>),
    /// `context.query_keys.contains("…")`.
    QueryHas(Arc<str>),
    /// `context.token.services.contains(resource)`.
    Granted,
    Not(Box<Condition>),
    All(Vec<Condition>),
    Any(Vec<Condition>),
    If(Box<[Condition; 3]>),
    /// Any other expression, evaluated by Cedar.
    Leaf(Arc<Leaf>),
}

/// A text that a policy compares the path with.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct PathText {
    text: String,
    /// See [`Evaluator::path`].
    has_foldable: bool,
}

impl From<String> for PathText {
    fn from(text: String) -> Self {
        Self { has_foldable: has_foldable(&text), text }
    }
}

/// An expression that Cedar evaluates.
#[derive(Debug)]
pub(super) struct Leaf {
    pub(super) expression: Expression,
    pub(super) mentions: Mentions,
    /// The cost of one evaluation.
    cost: Cost,
}

/// Provides the values of the call that a condition needs.
pub(super) trait Evaluator {
    /// The path in the form of the evaluation. A text of a policy that has a folded form of its own
    /// (`has_foldable`) means itself, and is compared with the path in normalized form at most.
    fn path(&self, has_foldable: bool) -> &str;
    fn has_query_name(&self, name: &str) -> bool;
    fn is_granted(&self) -> bool;
    fn evaluate_leaf(&self, leaf: &Leaf) -> Truth;
}

impl Condition {
    /// The conjunction of a policy's clauses. `None` when an expression cannot be printed as text
    /// again. This does not happen to parsed expressions.
    pub(super) fn compile_clauses(clauses: &[Clause]) -> Option<Self> {
        let one = |clause: &Clause| match clause {
            Clause::When(expr) => Self::compile_expression(expr),
            Clause::Unless(expr) => Self::compile_expression(expr).map(|c| Self::Not(Box::new(c))),
        };
        clauses.iter().map(one).collect::<Option<Vec<_>>>().map(conjunction)
    }

    pub(super) fn compile_expression(expr: &Expr) -> Option<Self> {
        Some(match expr {
            Expr::Literal(Literal::Bool(value)) => Self::Const((*value).into()),
            Expr::UnaryOp { op: UnaryOp::Not, expr } => Self::Not(Box::new(Self::compile_expression(expr)?)),
            Expr::BinaryOp { op: BinaryOp::And, left, right } => {
                conjunction(vec![Self::compile_expression(left)?, Self::compile_expression(right)?])
            }
            Expr::BinaryOp { op: BinaryOp::Or, left, right } => {
                disjunction(vec![Self::compile_expression(left)?, Self::compile_expression(right)?])
            }
            Expr::IfThenElse { cond, then_expr, else_expr } => Self::If(Box::new([
                Self::compile_expression(cond)?,
                Self::compile_expression(then_expr)?,
                Self::compile_expression(else_expr)?,
            ])),
            Expr::Like { expr, pattern } if call_part(expr) == Some(CallPart::Path) => {
                Self::PathLike(Arc::new(Pattern::new(pattern)))
            }
            Expr::BinaryOp { op, left, right } => match Self::compile_comparison(*op, left, right) {
                Some(condition) => condition,
                None => Self::compile_leaf(expr)?,
            },
            other => Self::compile_leaf(other)?,
        })
    }

    /// The comparisons that are evaluated without Cedar.
    fn compile_comparison(op: BinaryOp, left: &Expr, right: &Expr) -> Option<Self> {
        match (op, call_part(left), call_part(right)) {
            (BinaryOp::Eq, Some(CallPart::Path), None) => Some(Self::PathIn(Arc::new([string_literal(right)?.into()]))),
            (BinaryOp::Eq, None, Some(CallPart::Path)) => Some(Self::PathIn(Arc::new([string_literal(left)?.into()]))),
            (BinaryOp::NotEq, ..) => {
                Self::compile_comparison(BinaryOp::Eq, left, right).map(|c| Self::Not(Box::new(c)))
            }
            (BinaryOp::Contains, None, Some(CallPart::Path)) => match left {
                Expr::Set(items) => {
                    let texts = items.iter().map(|i| string_literal(i).map(PathText::from));
                    texts.collect::<Option<_>>().map(Self::PathIn)
                }
                _ => None,
            },
            (BinaryOp::Contains, Some(CallPart::QueryKeys), None) => {
                string_literal(right).map(|n| Self::QueryHas(n.into()))
            }
            (BinaryOp::Contains, Some(CallPart::Services), None) => {
                matches!(right, Expr::Var(Var::Resource)).then_some(Self::Granted)
            }
            _ => None,
        }
    }

    fn compile_leaf(expr: &Expr) -> Option<Self> {
        let expression = expr.to_string().parse().ok()?;
        Some(Self::Leaf(Arc::new(Leaf { expression, mentions: mentions(expr), cost: Cost::of_leaf(expr) })))
    }

    /// The parts of the call that it mentions.
    pub(super) fn mentions(&self) -> Mentions {
        match self {
            Self::Const(Truth::Failed) => Mentions::FAILURE,
            Self::Const(_) => Mentions::NOTHING,
            Self::PathLike(_) | Self::PathIn(_) => Mentions::PATH,
            Self::QueryHas(_) => Mentions::QUERY,
            Self::Granted => Mentions::TOKEN,
            Self::Not(of) => of.mentions(),
            Self::All(of) | Self::Any(of) => union_of_mentions(of),
            Self::If(of) => union_of_mentions(of.as_slice()),
            Self::Leaf(leaf) => leaf.mentions,
        }
    }

    /// Upper bound of one evaluation, after [`fold_constants`](Self::fold_constants).
    pub(super) fn cost(&self) -> Cost {
        let own = match self {
            Self::PathLike(pattern) => Cost::pattern(pattern.stretches()),
            Self::PathIn(texts) => Cost::texts(texts.len()),
            Self::QueryHas(_) => Cost::QUERY_NAME,
            Self::Leaf(leaf) if leaf.mentions.any(Mentions::CALL) => leaf.cost,
            _ => Cost::NOTHING,
        };
        self.children().iter().map(Self::cost).sum::<Cost>() + own + Cost::STEP
    }

    /// The cost of deciding one policy, as the request is sent and in normalized form. Both are
    /// evaluated twice when the node must first find out whether it needs the body.
    pub(super) fn decision_cost(as_sent: &Self, normalized: &Self) -> Cost {
        let once = as_sent.cost() + normalized.cost();
        let body = as_sent.mentions().any(Mentions::BODY) || normalized.mentions().any(Mentions::BODY);
        if body { once.times(2) } else { once }
    }

    /// The cost of [`fold_constants`](Self::fold_constants).
    pub(super) fn plan_cost(&self) -> Cost {
        let own = match self {
            Self::Leaf(leaf) if !leaf.mentions.any(Mentions::CALL) => leaf.cost,
            _ => Cost::NOTHING,
        };
        self.children().iter().map(Self::plan_cost).sum::<Cost>() + own + Cost::plan(1)
    }

    /// The number of nodes.
    pub(super) fn node_count(&self) -> usize {
        1 + self.children().iter().map(Self::node_count).sum::<usize>()
    }

    /// Whether Cedar evaluates a part of it for each request.
    pub(super) fn uses_cedar(&self) -> bool {
        matches!(self, Self::Leaf(leaf) if leaf.mentions.any(Mentions::CALL))
            || self.children().iter().any(Self::uses_cedar)
    }

    fn children(&self) -> &[Self] {
        match self {
            Self::Not(of) => std::slice::from_ref(of),
            Self::All(of) | Self::Any(of) => of,
            Self::If(of) => of.as_slice(),
            _ => &[],
        }
    }

    /// Evaluates the condition for one call.
    pub(super) fn evaluate(&self, evaluator: &impl Evaluator) -> Truth {
        match self {
            Self::Const(truth) => *truth,
            Self::PathLike(pattern) => pattern.matches(evaluator.path(pattern.has_foldable())).into(),
            Self::PathIn(paths) => paths.iter().any(|p| p.text == evaluator.path(p.has_foldable)).into(),
            Self::QueryHas(name) => evaluator.has_query_name(name).into(),
            Self::Granted => evaluator.is_granted().into(),
            Self::Not(of) => negate(of.evaluate(evaluator)),
            Self::All(of) => evaluate_in_order(of, Truth::True, evaluator),
            Self::Any(of) => evaluate_in_order(of, Truth::False, evaluator),
            Self::If(of) => {
                let [condition, then, otherwise] = &**of;
                match condition.evaluate(evaluator) {
                    Truth::True => then.evaluate(evaluator),
                    Truth::False => otherwise.evaluate(evaluator),
                    undecided => undecided,
                }
            }
            Self::Leaf(leaf) => evaluator.evaluate_leaf(leaf),
        }
    }

    /// The condition for one agent, service, method and grant, with all parts evaluated that depend
    /// on nothing else. `evaluate_constant` evaluates a leaf that mentions nothing of the call.
    pub(super) fn fold_constants(&self, granted: bool, evaluate_constant: &impl Fn(&Leaf) -> Truth) -> Self {
        let each = |of: &[Self]| of.iter().map(|c| c.fold_constants(granted, evaluate_constant)).collect::<Vec<_>>();
        match self {
            Self::Granted => Self::Const(granted.into()),
            Self::Leaf(leaf) if !leaf.mentions.any(Mentions::CALL) => Self::Const(evaluate_constant(leaf)),
            Self::Not(of) => match of.fold_constants(granted, evaluate_constant) {
                Self::Const(truth) => Self::Const(negate(truth)),
                open => Self::Not(Box::new(open)),
            },
            Self::All(of) => conjunction(each(of)),
            Self::Any(of) => disjunction(each(of)),
            Self::If(of) => {
                let [condition, then, otherwise] = &**of;
                match condition.fold_constants(granted, evaluate_constant) {
                    Self::Const(Truth::True) => then.fold_constants(granted, evaluate_constant),
                    Self::Const(Truth::False) => otherwise.fold_constants(granted, evaluate_constant),
                    Self::Const(truth) => Self::Const(truth),
                    open => Self::If(Box::new([
                        open,
                        then.fold_constants(granted, evaluate_constant),
                        otherwise.fold_constants(granted, evaluate_constant),
                    ])),
                }
            }
            other => other.clone(),
        }
    }
}

fn string_literal(expr: &Expr) -> Option<String> {
    match expr {
        Expr::Literal(Literal::String(text)) => Some(text.to_string()),
        _ => None,
    }
}

fn union_of_mentions(of: &[Condition]) -> Mentions {
    of.iter().fold(Mentions::NOTHING, |m, c| m | c.mentions())
}

fn negate(truth: Truth) -> Truth {
    match truth {
        Truth::True => Truth::False,
        Truth::False => Truth::True,
        other => other,
    }
}

fn conjunction(of: Vec<Condition>) -> Condition {
    simplify(of, Truth::True)
}

fn disjunction(of: Vec<Condition>) -> Condition {
    simplify(of, Truth::False)
}

/// A flat conjunction (`neutral` is true) or disjunction, without the conditions that cannot change
/// it.
fn simplify(of: Vec<Condition>, neutral: Truth) -> Condition {
    let mut flat = Vec::with_capacity(of.len());
    for condition in of {
        match condition {
            Condition::All(inner) if neutral == Truth::True => flat.extend(inner),
            Condition::Any(inner) if neutral == Truth::False => flat.extend(inner),
            Condition::Const(truth) if truth == neutral => {}
            other => flat.push(other),
        }
    }
    // Conditions after a constant are never reached. One before it may fail, and then that is the
    // result.
    if let Some(end) = flat.iter().position(|c| matches!(c, Condition::Const(_))) {
        flat.truncate(end + 1);
        if let Some(Condition::Const(last)) = flat.last()
            && !union_of_mentions(&flat).any(Mentions::FAILURE)
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

/// Evaluates from left to right until one decides, as Cedar does. After an unknown result the rest
/// is evaluated too. A later condition that decides still decides, unless the unknown one could
/// have failed instead.
fn evaluate_in_order(of: &[Condition], neutral: Truth, evaluator: &impl Evaluator) -> Truth {
    let decides = negate(neutral);
    let mut unknown = false;
    for condition in of {
        match condition.evaluate(evaluator) {
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
