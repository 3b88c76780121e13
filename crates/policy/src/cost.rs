//! Upper bounds of what evaluating policies costs, computed from conditions and not measured on
//! requests.
//!
//! The weights are nanoseconds of a release build of Cedar 4.14 on one core (2 cores, both busy).
//! Each construct was measured at its worst and rounded up. `and` of 100 comparisons takes 73 µs, a
//! set of 1,000 texts 590 µs, a set of 1,000 sets 1.6 ms. Cedar's `like` of 100 characters against
//! 8 KiB takes 2.4 ms, our own against a periodic text 49 µs. A request with 4,000 query names
//! takes 3.1 ms, with none 6 µs. The weights need not be exact. They decide which policies `policy
//! apply` refuses, and whether a node evaluates on the threads that serve requests or on others.

use std::{iter::Sum, ops::Add, sync::Arc, time::Duration};

use cedar_policy::pst::{BinaryOp, Expr, PatternElem, UnaryOp};

use super::mentions::{CallPart, call_part};

/// Path and query, in bytes, of the request that [`BUDGET`](super::BUDGET) refers to. Longer
/// requests cost more and are decided on other threads.
const TARGET_BYTES: u64 = 1024;
/// Longest text other than the path, in bytes: an attribute's value, a model's name.
const TEXT_BYTES: u64 = 256;

/// A node of Cedar's syntax tree.
const NODE_NS: u64 = 150;
/// A member of a literal set, or a field of a record.
const MEMBER_NS: u64 = 600;
/// One step of Cedar's `like`: one byte of the text against one of the pattern.
const LIKE_STEP_PS: u64 = 5_000;
/// Our own `like`: each literal part of the pattern, and each byte of the path.
const STRETCH_NS: u64 = 25;
const PATTERN_BYTE_PS: u64 = 6_000;
/// One comparison of the path with a text.
const TEXT_NS: u64 = 5;
/// One lookup of a query name.
const QUERY_NAME_NS: u64 = 80;
/// A query name that Cedar compares with a set: at most one for two bytes of the query.
const QUERY_BYTE_PS: u64 = 2_000;
/// Parsing or comparing an IP address.
const ADDRESS_NS: u64 = 400;
/// Building Cedar's request for a call without query, and for each query byte: at most one name for
/// two bytes.
const REQUEST_NS: u64 = 6_500;
const REQUEST_QUERY_BYTE_PS: u64 = 400_000;
/// Building a plan: the agent's entity, and each copied node.
pub(super) const PLAN_NS: u64 = 40_000;
const PLAN_NODE_NS: u64 = 60;

/// An upper bound of evaluation time, as a function of the request's lengths.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Cost {
    /// Picoseconds.
    fixed: u64,
    /// Picoseconds a byte of the path.
    path: u64,
    /// Picoseconds a byte of the query.
    query: u64,
}

impl Cost {
    pub(super) const NOTHING: Self = Self { fixed: 0, path: 0, query: 0 };

    const fn from_nanos(fixed: u64) -> Self {
        Self { fixed: fixed.saturating_mul(1000), path: 0, query: 0 }
    }

    pub(super) fn times(self, n: u64) -> Self {
        let times = |each: u64| each.saturating_mul(n);
        Self { fixed: times(self.fixed), path: times(self.path), query: times(self.query) }
    }

    /// The bound for a path and a query of these lengths, in bytes.
    pub(super) fn for_request(self, path: usize, query: usize) -> Duration {
        let of = |each: u64, bytes: usize| each.saturating_mul(u64::try_from(bytes).unwrap_or(u64::MAX));
        from_picos(self.fixed.saturating_add(of(self.path, path)).saturating_add(of(self.query, query)))
    }

    /// The bound for the costliest request of [`TARGET_BYTES`], in picoseconds.
    pub(super) fn worst_case(self) -> u64 {
        self.fixed.saturating_add(self.path.max(self.query).saturating_mul(TARGET_BYTES))
    }

    /// Looking up one name in the sorted query names.
    pub(super) const QUERY_NAME: Self = Self::from_nanos(QUERY_NAME_NS);
    /// Reading a constant.
    pub(super) const STEP: Self = Self::from_nanos(2);

    /// Building a request for Cedar.
    pub(super) fn request(with_query: bool) -> Self {
        let query = if with_query { REQUEST_QUERY_BYTE_PS } else { 0 };
        Self { path: 100, query, ..Self::from_nanos(REQUEST_NS) }
    }

    /// Matching with our own `like`.
    pub(super) fn pattern(stretches: usize) -> Self {
        // The first and the last stretch are at the ends; only those between are searched for.
        Self {
            path: if stretches > 2 { PATTERN_BYTE_PS } else { 0 },
            ..Self::from_nanos(STRETCH_NS.saturating_mul(count(stretches)))
        }
    }

    /// Comparing the path with `texts` texts.
    pub(super) fn texts(texts: usize) -> Self {
        Self::from_nanos(TEXT_NS.saturating_mul(count(texts)))
    }

    /// Copying `nodes` nodes of a condition into a plan.
    pub(super) fn plan(nodes: usize) -> Self {
        Self::from_nanos(PLAN_NODE_NS.saturating_mul(count(nodes)))
    }

    /// Evaluating an expression with Cedar.
    pub(super) fn of_leaf(expr: &Expr) -> Self {
        let own = match expr {
            Expr::Like { expr: text, pattern } => Self::like(text, pattern),
            Expr::Set(members) => Self::from_nanos(MEMBER_NS.saturating_mul(count(members.len()))),
            Expr::Record(fields) => Self::from_nanos(MEMBER_NS.saturating_mul(count(fields.len()))),
            Expr::UnaryOp { op: UnaryOp::Ip | UnaryOp::Decimal | UnaryOp::Datetime | UnaryOp::Duration, .. } => {
                Self::from_nanos(ADDRESS_NS)
            }
            Expr::BinaryOp { op: BinaryOp::IsInRange, .. } => Self::from_nanos(ADDRESS_NS),
            Expr::BinaryOp { left, right, .. } => {
                let names = [left, right].iter().any(|e| call_part(e) == Some(CallPart::QueryKeys));
                Self { query: if names { QUERY_BYTE_PS } else { 0 }, ..Self::NOTHING }
            }
            _ => Self::NOTHING,
        };
        child_expressions(expr).map(Self::of_leaf).sum::<Self>() + own + Self::from_nanos(NODE_NS)
    }

    fn like(text: &Expr, pattern: &[PatternElem]) -> Self {
        // Cedar backtracks to the last wildcard for every byte: pattern length times text length.
        let steps = LIKE_STEP_PS.saturating_mul(count(pattern.len()) + 1);
        match call_part(text) {
            Some(CallPart::Path) => Self { path: steps, ..Self::NOTHING },
            _ => Self { fixed: steps.saturating_mul(TEXT_BYTES), ..Self::NOTHING },
        }
    }
}

impl Add for Cost {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self {
            fixed: self.fixed.saturating_add(other.fixed),
            path: self.path.saturating_add(other.path),
            query: self.query.saturating_add(other.query),
        }
    }
}

impl Sum for Cost {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::NOTHING, Add::add)
    }
}

pub(super) fn count(n: usize) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}

pub(super) fn from_picos(picos: u64) -> Duration {
    Duration::from_nanos(picos / 1000)
}

fn child_expressions(expr: &Expr) -> Box<dyn Iterator<Item = &Expr> + '_> {
    fn all<'e>(of: impl IntoIterator<Item = &'e Arc<Expr>>) -> Vec<&'e Expr> {
        of.into_iter().map(|e| &**e).collect()
    }
    let children = match expr {
        Expr::UnaryOp { expr, .. }
        | Expr::GetAttr { expr, .. }
        | Expr::HasAttr { expr, .. }
        | Expr::Like { expr, .. } => all([expr]),
        Expr::BinaryOp { left, right, .. } => all([left, right]),
        Expr::Is { expr, in_expr, .. } => all(std::iter::once(expr).chain(in_expr)),
        Expr::IfThenElse { cond, then_expr, else_expr } => all([cond, then_expr, else_expr]),
        Expr::Set(items) => all(items),
        Expr::Record(fields) => all(fields.values()),
        _ => Vec::new(),
    };
    Box::new(children.into_iter())
}
