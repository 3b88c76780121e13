//! Normalized form of policy conditions.
//!
//! Cedar compares bytes, and many servers do not. Cedar sees two different paths in
//! `/v1/Admin/keys` and `/v1/%61dmin/keys`; many upstreams serve the same resource for both. One
//! capital letter would bypass a policy about `/v1/admin/*`. Such differences cannot be refused,
//! because SDKs do send them. So each request is decided twice: **it must be allowed as it is sent
//! and in normalized form**. The normalized form ignores letter case, escapes and Unicode forms in
//! the path, in query names and in the body's model, in the request and in the policies alike. It
//! holds each query name in every form that a common server may read ([`super::query_name`]).
//!
//! A path that some servers also read as another one (`;`, `//`, `%25`, `%5C`, a dot at the end of
//! a segment) is decided a third time, in folded form. A text of a policy that holds such a thing
//! itself means itself: the third time it is compared with the normalized form.
//!
//! A `forbid` therefore covers every spelling, and a `permit` or its `unless` excludes every
//! spelling of what it excludes. These parts must be compared with text that is written out in the
//! policy. Any other comparison is refused, because it cannot be normalized.

use std::{borrow::Cow, sync::Arc};

use cedar_policy::pst::{BinaryOp, Expr, Literal, PatternElem, UnaryOp, Var};
use seks_service::request::normalize::{normalized_model, normalized_path, normalized_query_name};

use super::{
    mentions::{CallPart, QUERY_INTERPRETATIONS, call_part},
    query_name::canonical_name,
};

/// A comparison that cannot be normalized.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("compare `{0}` with text, a `like` pattern or a set of texts, written out in the policy")]
pub(super) struct NotComparable(&'static str);

/// A text of the call whose spelling the agent controls.
#[derive(Clone, Copy, PartialEq, Eq)]
enum AgentControlled {
    Path,
    QueryKeys,
    Model,
}

impl AgentControlled {
    fn from_expression(expr: &Expr) -> Option<Self> {
        match call_part(expr)? {
            CallPart::Path => Some(Self::Path),
            CallPart::QueryKeys => Some(Self::QueryKeys),
            CallPart::Model => Some(Self::Model),
            CallPart::Services | CallPart::Other(_) => None,
        }
    }

    fn not_comparable(self) -> NotComparable {
        NotComparable(match self {
            Self::Path => "context.path",
            Self::QueryKeys => "context.query_keys",
            Self::Model => "context.body.model",
        })
    }

    fn normalize_text<'t>(self, text: &'t str) -> Cow<'t, str> {
        match self {
            Self::Path => normalized_path(text),
            Self::QueryKeys => normalized_query_name(text),
            Self::Model => normalized_model(text),
        }
    }
}

/// The condition in normalized form.
pub(super) fn normalize_expression(expr: &Expr) -> Result<Expr, NotComparable> {
    match expr {
        Expr::Like { expr: left, pattern } if AgentControlled::from_expression(left).is_some() => {
            let pattern = normalize_pattern(AgentControlled::from_expression(left), pattern);
            Ok(Expr::Like { expr: left.clone(), pattern })
        }
        Expr::BinaryOp { op, left, right } => {
            match (AgentControlled::from_expression(left), AgentControlled::from_expression(right)) {
                (None, None) => {
                    Ok(Expr::BinaryOp { op: *op, left: normalize_child(left)?, right: normalize_child(right)? })
                }
                (Some(a), Some(b)) if a == b && *op == BinaryOp::Eq => Ok(expr.clone()),
                (Some(controlled), None) => normalize_comparison(*op, left, right, controlled, true),
                (None, Some(controlled)) => normalize_comparison(*op, left, right, controlled, false),
                (Some(controlled), Some(_)) => Err(controlled.not_comparable()),
            }
        }
        Expr::UnaryOp { op: UnaryOp::IsEmpty, expr: of }
            if AgentControlled::from_expression(of) == Some(AgentControlled::QueryKeys) =>
        {
            Ok(expr.clone())
        }
        other => normalize_other(other),
    }
}

fn normalize_child(expr: &Arc<Expr>) -> Result<Arc<Expr>, NotComparable> {
    normalize_expression(expr).map(Arc::new)
}

/// `controlled OP text`, or the reverse.
fn normalize_comparison(
    op: BinaryOp,
    left: &Arc<Expr>,
    right: &Arc<Expr>,
    controlled: AgentControlled,
    on_left: bool,
) -> Result<Expr, NotComparable> {
    use BinaryOp as B;
    let fits = match (op, controlled, on_left) {
        (B::Eq | B::NotEq, _, _) => true,
        (B::Contains, AgentControlled::QueryKeys, on_left) => on_left,
        (B::Contains, _, on_left) => !on_left,
        (B::ContainsAll | B::ContainsAny, AgentControlled::QueryKeys, _) => true,
        _ => false,
    };
    let other = if on_left { right } else { left };
    // "Has a name" is true for any interpretation of the query. "Has no other names" uses the names
    // as sent, because a list of permitted names must not have to list every interpretation.
    let has_name = controlled == AgentControlled::QueryKeys
        && matches!((op, on_left), (B::Contains | B::ContainsAll, true) | (B::ContainsAny, _));
    if has_name && fits {
        let names = canonical_name_literals(other).ok_or(controlled.not_comparable())?;
        let interpretations =
            Arc::new(Expr::GetAttr { expr: Arc::new(Expr::Var(Var::Context)), attr: QUERY_INTERPRETATIONS.into() });
        let (left, right) =
            if on_left { (interpretations, Arc::new(names)) } else { (Arc::new(names), interpretations) };
        return Ok(Expr::BinaryOp { op, left, right });
    }
    let normalized = normalize_literal(other, controlled).filter(|_| fits).ok_or(controlled.not_comparable())?;
    let (left, right) =
        if on_left { (left.clone(), Arc::new(normalized)) } else { (Arc::new(normalized), right.clone()) };
    Ok(Expr::BinaryOp { op, left, right })
}

/// A text or a set of texts that is written out.
fn normalize_literal(expr: &Expr, controlled: AgentControlled) -> Option<Expr> {
    match expr {
        Expr::Literal(Literal::String(s)) => {
            Some(Expr::Literal(Literal::String(controlled.normalize_text(s).as_ref().into())))
        }
        Expr::Set(items) => items
            .iter()
            .map(|i| normalize_literal(i, controlled).map(Arc::new))
            .collect::<Option<Vec<_>>>()
            .map(Expr::Set),
        _ => None,
    }
}

/// Names of query parameters that are written out, each in canonical form.
fn canonical_name_literals(expr: &Expr) -> Option<Expr> {
    match expr {
        Expr::Literal(Literal::String(s)) => Some(Expr::Literal(Literal::String(canonical_name(s).as_ref().into()))),
        Expr::Set(items) => {
            items.iter().map(|i| canonical_name_literals(i).map(Arc::new)).collect::<Option<Vec<_>>>().map(Expr::Set)
        }
        _ => None,
    }
}

/// Normalizes the literal parts of a pattern one by one. A wildcard matches any text in both forms.
fn normalize_pattern(controlled: Option<AgentControlled>, pattern: &[PatternElem]) -> Vec<PatternElem> {
    let mut out = Vec::with_capacity(pattern.len());
    for (i, literal) in pattern.split(|e| matches!(e, PatternElem::Wildcard)).enumerate() {
        if i > 0 {
            out.push(PatternElem::Wildcard);
        }
        let literal: String =
            literal.iter().filter_map(|e| if let PatternElem::Char(c) = e { Some(*c) } else { None }).collect();
        let normalized = if controlled == Some(AgentControlled::Path) {
            normalized_path(&literal)
        } else {
            normalized_query_name(&literal)
        };
        out.extend(normalized.chars().map(PatternElem::Char));
    }
    out
}

/// Normalizes the children of any other expression. An agent-controlled part outside of a
/// comparison is refused, because it could not be normalized.
fn normalize_other(expr: &Expr) -> Result<Expr, NotComparable> {
    if let Some(controlled) = AgentControlled::from_expression(expr) {
        return Err(controlled.not_comparable());
    }
    Ok(match expr {
        Expr::Var(Var::Context) => return Err(NotComparable("context")),
        _ if matches!(call_part(expr), Some(CallPart::Other(_))) && !is_scalar(expr) => {
            return Err(NotComparable("context.body"));
        }
        Expr::Literal(_) | Expr::Var(_) | Expr::GetAttr { .. } if call_part(expr).is_some() => expr.clone(),
        Expr::Literal(_) | Expr::Var(_) => expr.clone(),
        // `context has body`, `context.body has model`: the chain itself is not compared with
        // anything.
        Expr::HasAttr { expr: of, .. } if is_context_chain(of) => expr.clone(),
        Expr::HasAttr { expr: of, attrs } => Expr::HasAttr { expr: normalize_child(of)?, attrs: attrs.clone() },
        Expr::UnaryOp { op, expr } => Expr::UnaryOp { op: *op, expr: normalize_child(expr)? },
        Expr::GetAttr { expr, attr } => Expr::GetAttr { expr: normalize_child(expr)?, attr: attr.clone() },
        Expr::Like { expr, pattern } => Expr::Like { expr: normalize_child(expr)?, pattern: pattern.clone() },
        Expr::Is { expr, entity_type, in_expr } => Expr::Is {
            expr: normalize_child(expr)?,
            entity_type: entity_type.clone(),
            in_expr: in_expr.as_ref().map(normalize_child).transpose()?,
        },
        Expr::IfThenElse { cond, then_expr, else_expr } => Expr::IfThenElse {
            cond: normalize_child(cond)?,
            then_expr: normalize_child(then_expr)?,
            else_expr: normalize_child(else_expr)?,
        },
        Expr::Set(items) => Expr::Set(items.iter().map(normalize_child).collect::<Result<_, _>>()?),
        Expr::Record(fields) => {
            let fields = fields.iter().map(|(k, v)| Ok((k.clone(), normalize_child(v)?)));
            Expr::Record(fields.collect::<Result<_, NotComparable>>()?)
        }
        // Nothing else comes out of Cedar's parser.
        _ => return Err(NotComparable("context")),
    })
}

fn is_context_chain(expr: &Expr) -> bool {
    matches!(expr, Expr::Var(Var::Context)) || call_part(expr).is_some()
}

/// Whether this part of the call is no record with an agent-controlled field.
fn is_scalar(expr: &Expr) -> bool {
    !matches!(expr, Expr::GetAttr { expr: of, attr } if attr == "body" && matches!(**of, Expr::Var(Var::Context)))
}
