//! The loosest reading.
//!
//! Cedar compares bytes; servers don't all do. `/v1/Admin/keys` and `/v1/%61dmin/keys` are other paths to Cedar and the same
//! resource to many an upstream, so a policy about `/v1/admin/*` would be one capital letter away from useless. Escapes of
//! characters that need none never get this far; what can't be refused, because SDKs do write it (capitals, `%40` for `@`), is
//! decided twice: **a request must be allowed as it is sent, and also in its loosest reading**, in which letter case and
//! escapes are ignored in the path, in query names and in the body's model, in the request and in the policies alike. A query name is
//! there in every form in which a common server reads it ([`super::spelling`]).
//!
//! A `forbid` therefore catches every spelling, and a `permit` (or its `unless`) excludes every spelling of what it excludes.
//! What a policy compares these parts with must be visible in its text, or it couldn't be read loosely: otherwise it is refused.

use std::{borrow::Cow, sync::Arc};

use cedar_policy::pst::{BinaryOp, Expr, Literal, PatternElem, UnaryOp, Var};
use seks_service::request::normalize::{lower, model, path};

use super::{
    spelling::canonical,
    tree::{Part, QUERY_SPELLINGS, part},
};

/// A comparison that has no loose reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("compare `{0}` with text, a `like` pattern or a set of texts, written out in the policy")]
pub(super) struct NotComparable(&'static str);

/// What an agent chooses the spelling of.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Spelled {
    Path,
    QueryKeys,
    Model,
}

impl Spelled {
    fn of(expr: &Expr) -> Option<Self> {
        match part(expr)? {
            Part::Path => Some(Self::Path),
            Part::QueryKeys => Some(Self::QueryKeys),
            Part::Model => Some(Self::Model),
            Part::Services | Part::Other(_) => None,
        }
    }

    fn not_comparable(self) -> NotComparable {
        NotComparable(match self {
            Self::Path => "context.path",
            Self::QueryKeys => "context.query_keys",
            Self::Model => "context.body.model",
        })
    }

    fn loosen<'t>(self, text: &'t str) -> Cow<'t, str> {
        match self {
            Self::Path => path(text),
            Self::QueryKeys => lower(text),
            Self::Model => model(text),
        }
    }
}

/// A condition in its loosest reading.
pub(super) fn expression(expr: &Expr) -> Result<Expr, NotComparable> {
    match expr {
        Expr::Like { expr: left, pattern } if Spelled::of(left).is_some() => {
            let pattern = loosen_pattern(Spelled::of(left), pattern);
            Ok(Expr::Like { expr: left.clone(), pattern })
        }
        Expr::BinaryOp { op, left, right } => match (Spelled::of(left), Spelled::of(right)) {
            (None, None) => Ok(Expr::BinaryOp { op: *op, left: below(left)?, right: below(right)? }),
            (Some(a), Some(b)) if a == b && *op == BinaryOp::Eq => Ok(expr.clone()),
            (Some(spelled), None) => comparison(*op, left, right, spelled, true),
            (None, Some(spelled)) => comparison(*op, left, right, spelled, false),
            (Some(spelled), Some(_)) => Err(spelled.not_comparable()),
        },
        Expr::UnaryOp { op: UnaryOp::IsEmpty, expr: of } if Spelled::of(of) == Some(Spelled::QueryKeys) => {
            Ok(expr.clone())
        }
        other => elsewhere(other),
    }
}

fn below(expr: &Arc<Expr>) -> Result<Arc<Expr>, NotComparable> {
    expression(expr).map(Arc::new)
}

/// `spelled OP text`, or the reverse.
fn comparison(
    op: BinaryOp,
    left: &Arc<Expr>,
    right: &Arc<Expr>,
    spelled: Spelled,
    on_left: bool,
) -> Result<Expr, NotComparable> {
    use BinaryOp as B;
    let fits = match (op, spelled, on_left) {
        (B::Eq | B::NotEq, _, _) => true,
        (B::Contains, Spelled::QueryKeys, on_left) => on_left,
        (B::Contains, _, on_left) => !on_left,
        (B::ContainsAll | B::ContainsAny, Spelled::QueryKeys, _) => true,
        _ => false,
    };
    let other = if on_left { right } else { left };
    // Whether the call has a name: in any reading of what was sent. Whether it has no others: by the names as they stand, because
    // a list of what is permitted must not have to name every reading too.
    let has_name = spelled == Spelled::QueryKeys
        && matches!((op, on_left), (B::Contains | B::ContainsAll, true) | (B::ContainsAny, _));
    if has_name && fits {
        let names = canonical_names(other).ok_or(spelled.not_comparable())?;
        let spellings =
            Arc::new(Expr::GetAttr { expr: Arc::new(Expr::Var(Var::Context)), attr: QUERY_SPELLINGS.into() });
        let (left, right) = if on_left { (spellings, Arc::new(names)) } else { (Arc::new(names), spellings) };
        return Ok(Expr::BinaryOp { op, left, right });
    }
    let loose = text(other, spelled).filter(|_| fits).ok_or(spelled.not_comparable())?;
    let (left, right) = if on_left { (left.clone(), Arc::new(loose)) } else { (Arc::new(loose), right.clone()) };
    Ok(Expr::BinaryOp { op, left, right })
}

/// Text, or a set of texts, written out.
fn text(expr: &Expr, spelled: Spelled) -> Option<Expr> {
    match expr {
        Expr::Literal(Literal::String(s)) => Some(Expr::Literal(Literal::String(spelled.loosen(s).as_ref().into()))),
        Expr::Set(items) => {
            items.iter().map(|i| text(i, spelled).map(Arc::new)).collect::<Option<Vec<_>>>().map(Expr::Set)
        }
        _ => None,
    }
}

/// Names of query parameters, written out, each in its canonical form.
fn canonical_names(expr: &Expr) -> Option<Expr> {
    match expr {
        Expr::Literal(Literal::String(s)) => Some(Expr::Literal(Literal::String(canonical(s).as_ref().into()))),
        Expr::Set(items) => {
            items.iter().map(|i| canonical_names(i).map(Arc::new)).collect::<Option<Vec<_>>>().map(Expr::Set)
        }
        _ => None,
    }
}

/// Literal stretches of a pattern are loosened one by one; a wildcard stands for any text in either reading.
fn loosen_pattern(spelled: Option<Spelled>, pattern: &[PatternElem]) -> Vec<PatternElem> {
    let mut out = Vec::with_capacity(pattern.len());
    for (i, literal) in pattern.split(|e| matches!(e, PatternElem::Wildcard)).enumerate() {
        if i > 0 {
            out.push(PatternElem::Wildcard);
        }
        let literal: String =
            literal.iter().filter_map(|e| if let PatternElem::Char(c) = e { Some(*c) } else { None }).collect();
        let loose = if spelled == Some(Spelled::Path) { path(&literal) } else { lower(&literal) };
        out.extend(loose.chars().map(PatternElem::Char));
    }
    out
}

/// All other expressions: as they are, with their parts read loosely. A spelled part that stands anywhere but in a comparison
/// would get away.
fn elsewhere(expr: &Expr) -> Result<Expr, NotComparable> {
    if let Some(spelled) = Spelled::of(expr) {
        return Err(spelled.not_comparable());
    }
    Ok(match expr {
        Expr::Var(Var::Context) => return Err(NotComparable("context")),
        _ if matches!(part(expr), Some(Part::Other(_))) && !scalar(expr) => return Err(NotComparable("context.body")),
        Expr::Literal(_) | Expr::Var(_) | Expr::GetAttr { .. } if part(expr).is_some() => expr.clone(),
        Expr::Literal(_) | Expr::Var(_) => expr.clone(),
        // `context has body`, `context.body has model`: the chain itself is not compared with anything.
        Expr::HasAttr { expr: of, .. } if chain_of_context(of) => expr.clone(),
        Expr::HasAttr { expr: of, attrs } => Expr::HasAttr { expr: below(of)?, attrs: attrs.clone() },
        Expr::UnaryOp { op, expr } => Expr::UnaryOp { op: *op, expr: below(expr)? },
        Expr::GetAttr { expr, attr } => Expr::GetAttr { expr: below(expr)?, attr: attr.clone() },
        Expr::Like { expr, pattern } => Expr::Like { expr: below(expr)?, pattern: pattern.clone() },
        Expr::Is { expr, entity_type, in_expr } => Expr::Is {
            expr: below(expr)?,
            entity_type: entity_type.clone(),
            in_expr: in_expr.as_ref().map(below).transpose()?,
        },
        Expr::IfThenElse { cond, then_expr, else_expr } => {
            Expr::IfThenElse { cond: below(cond)?, then_expr: below(then_expr)?, else_expr: below(else_expr)? }
        }
        Expr::Set(items) => Expr::Set(items.iter().map(below).collect::<Result<_, _>>()?),
        Expr::Record(fields) => {
            let fields = fields.iter().map(|(k, v)| Ok((k.clone(), below(v)?)));
            Expr::Record(fields.collect::<Result<_, NotComparable>>()?)
        }
        // Nothing else comes out of Cedar's parser.
        _ => return Err(NotComparable("context")),
    })
}

fn chain_of_context(expr: &Expr) -> bool {
    matches!(expr, Expr::Var(Var::Context)) || part(expr).is_some()
}

/// A part of the call that isn't a record with a spelled part in it.
fn scalar(expr: &Expr) -> bool {
    !matches!(expr, Expr::GetAttr { expr: of, attr } if attr == "body" && matches!(**of, Expr::Var(Var::Context)))
}
