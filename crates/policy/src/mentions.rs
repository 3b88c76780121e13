//! The parts of a call that a condition mentions, found in its syntax tree.

use std::{cell::RefCell, collections::BTreeSet, ops::BitOr, sync::Arc};

use cedar_policy::pst::{BinaryOp, Expr, Literal, UnaryOp, Var};

/// Deepest nesting of a condition. Bounds the stack of every recursion over conditions, here and in
/// Cedar.
const MAX_DEPTH: usize = 512;

/// The context attribute with every form in which a server may read a query name. It exists in
/// normalized form only, and policies cannot name it.
pub(super) const QUERY_INTERPRETATIONS: &str = "query_interpretations";

/// The parts of a call that a condition mentions, and whether evaluating it can fail.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Mentions(u16);

impl Mentions {
    pub(super) const NOTHING: Self = Self(0);
    pub(super) const PATH: Self = Self(1);
    pub(super) const QUERY: Self = Self(1 << 1);
    pub(super) const TOKEN: Self = Self(1 << 2);
    pub(super) const SOURCE: Self = Self(1 << 3);
    pub(super) const BODY: Self = Self(1 << 4);
    /// Evaluation can fail: arithmetic can overflow, and an extension's constructor can receive
    /// invalid text.
    pub(super) const FAILURE: Self = Self(1 << 5);
    /// Known from the body, in requests to MCP servers.
    pub(super) const MCP: Self = Self(1 << 6);
    /// The trust that the token was exchanged by.
    pub(super) const TRUST: Self = Self(1 << 7);
    /// All parts of a call.
    pub(super) const CALL: Self = Self(0b1101_1111);

    pub(super) fn any(self, of: Self) -> bool {
        self.0 & of.0 != 0
    }
}

impl BitOr for Mentions {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// A part of the call that an attribute chain names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CallPart {
    Path,
    QueryKeys,
    Services,
    Model,
    /// Any other part, or several: their mentions.
    Other(Mentions),
}

/// The part that an attribute chain from `context` names. `None` for any other expression.
pub(super) fn call_part(expr: &Expr) -> Option<CallPart> {
    attribute_chain(expr).map(|names| classify_names(&names))
}

fn classify_names(names: &[&str]) -> CallPart {
    match names {
        ["path", ..] => CallPart::Path,
        // The second exists in normalized form only, beside the names as sent.
        ["query_keys" | QUERY_INTERPRETATIONS, ..] => CallPart::QueryKeys,
        ["token", "services", ..] => CallPart::Services,
        ["token", ..] => CallPart::Other(Mentions::TOKEN),
        ["source", ..] => CallPart::Other(Mentions::SOURCE),
        ["body", "model", ..] => CallPart::Model,
        ["body" | "body_inspected", ..] => CallPart::Other(Mentions::BODY),
        ["mcp", ..] => CallPart::Other(Mentions::MCP),
        ["trust", ..] => CallPart::Other(Mentions::TRUST),
        _ => CallPart::Other(Mentions::CALL),
    }
}

impl CallPart {
    fn mentions(self) -> Mentions {
        match self {
            Self::Path => Mentions::PATH,
            Self::QueryKeys => Mentions::QUERY,
            Self::Services => Mentions::TOKEN,
            Self::Model => Mentions::BODY,
            Self::Other(mentions) => mentions,
        }
    }
}

fn attribute_chain(expr: &Expr) -> Option<Vec<&str>> {
    match expr {
        Expr::Var(Var::Context) => Some(Vec::new()),
        Expr::GetAttr { expr, attr } => {
            let mut names = attribute_chain(expr)?;
            names.push(attr.as_str());
            Some(names)
        }
        _ => None,
    }
}

/// What `expr` mentions. `expr` must be [shallow](is_shallow).
pub(super) fn mentions(expr: &Expr) -> Mentions {
    expr.reduce(&mentions_of_node, &|a, b| a | b, Mentions::NOTHING)
}

/// The paths below `context.body` that `expr` names: `amount`, `card.number`. `""` where the body
/// as a whole is a value. `expr` must be [shallow](is_shallow).
pub(super) fn body_paths(expr: &Expr) -> BTreeSet<String> {
    let paths = RefCell::new(BTreeSet::new());
    let visit = |expr: &Expr| {
        let names = match expr {
            Expr::HasAttr { expr, attrs } => {
                let mut names = attribute_chain(expr)?;
                names.extend(attrs.iter().map(|a| a.as_str()));
                if names == ["body"] {
                    return Some(());
                }
                names
            }
            other => attribute_chain(other)?,
        };
        if let Some((&"body", path)) = names.split_first() {
            paths.borrow_mut().insert(path.join("."));
        }
        Some(())
    };
    expr.reduce(&visit, &|(), ()| (), ());
    paths.into_inner()
}

/// The mentions of a node whose children need no visit.
fn mentions_of_node(expr: &Expr) -> Option<Mentions> {
    match expr {
        Expr::HasAttr { expr, attrs } => {
            let mut names = attribute_chain(expr)?;
            names.extend(attrs.iter().map(|a| a.as_str()));
            Some(classify_names(&names).mentions())
        }
        Expr::UnaryOp { op, expr } if unary_can_fail(*op, expr) => Some(mentions(expr) | Mentions::FAILURE),
        Expr::BinaryOp { op, left, right } if binary_can_fail(*op) => {
            Some(mentions(left) | mentions(right) | Mentions::FAILURE)
        }
        other => call_part(other).map(CallPart::mentions),
    }
}

/// Validation has checked literals. A computed operand can have any value.
fn unary_can_fail(op: UnaryOp, operand: &Arc<Expr>) -> bool {
    match op {
        UnaryOp::Not | UnaryOp::IsEmpty | UnaryOp::IsIPv4 | UnaryOp::IsIPV6 => false,
        UnaryOp::IsLoopback | UnaryOp::IsMulticast => false,
        UnaryOp::Ip | UnaryOp::Decimal | UnaryOp::Datetime | UnaryOp::Duration => {
            !matches!(**operand, Expr::Literal(Literal::String(_)))
        }
        _ => true,
    }
}

fn binary_can_fail(op: BinaryOp) -> bool {
    use BinaryOp as B;
    !matches!(
        op,
        B::Eq
            | B::NotEq
            | B::Less
            | B::LessEq
            | B::Greater
            | B::GreaterEq
            | B::And
            | B::Or
            | B::In
            | B::Contains
            | B::ContainsAll
            | B::ContainsAny
            | B::GetTag
            | B::HasTag
            | B::IsInRange
    )
}

/// Whether `expr` is nested at most [`MAX_DEPTH`] deep and holds only known kinds of expressions. A
/// kind that a newer Cedar adds is refused.
pub(super) fn is_shallow(expr: &Expr) -> bool {
    depth_within(expr, MAX_DEPTH)
}

fn depth_within(expr: &Expr, left: usize) -> bool {
    let Some(left) = left.checked_sub(1) else { return false };
    let within = |e: &Arc<Expr>| depth_within(e, left);
    match expr {
        Expr::UnaryOp { expr, .. }
        | Expr::GetAttr { expr, .. }
        | Expr::HasAttr { expr, .. }
        | Expr::Like { expr, .. } => within(expr),
        Expr::BinaryOp { left, right, .. } => within(left) && within(right),
        Expr::Is { expr, in_expr, .. } => within(expr) && in_expr.as_ref().is_none_or(within),
        Expr::IfThenElse { cond, then_expr, else_expr } => within(cond) && within(then_expr) && within(else_expr),
        Expr::Set(items) => items.iter().all(within),
        Expr::Record(fields) => fields.values().all(within),
        Expr::Literal(_) | Expr::Var(_) => true,
        _ => false,
    }
}
