//! The key `slots` of a service file.

use seks_proto::wire::{
    Injection, TokenSlot,
    injection::{NamedValue, site},
    token_slot::{At, BasicPart},
};

use super::super::{ServiceError, invalid};

fn slot(at: At) -> TokenSlot {
    TokenSlot { at: Some(at) }
}

/// Parses one slot.
pub(super) fn parse_slot(text: &str) -> Result<TokenSlot, ServiceError> {
    let (kind, name) = text.split_once(':').unwrap_or((text, ""));
    let at = match (kind, name) {
        ("bearer", "") => At::Scheme("Bearer".into()),
        ("raw", "") => At::Scheme(String::new()),
        ("basic", "" | "either") => At::Basic(BasicPart::Either.into()),
        ("basic", "user") => At::Basic(BasicPart::User.into()),
        ("basic", "password") => At::Basic(BasicPart::Password.into()),
        ("scheme", name) if !name.is_empty() => At::Scheme(name.into()),
        ("header", name) if !name.is_empty() => At::Header(name.into()),
        ("query", name) if !name.is_empty() => At::Query(name.into()),
        ("path", name) if !name.is_empty() => At::Path(name.into()),
        ("subprotocol", name) if !name.is_empty() => At::Subprotocol(name.into()),
        ("aws_sigv4", "") => At::AwsSigv4(true),
        _ => {
            let text: String = text.chars().take(60).collect();
            let forms = "bearer, raw, scheme:NAME, header:NAME, query:NAME, basic:user|password|either, \
                         path:/…{token}…, subprotocol:PREFIX, aws_sigv4";
            return Err(invalid("slots", format!("`{}` is not one of {forms}", text.escape_debug())));
        }
    };
    Ok(slot(at))
}

/// The inverse of [`parse_slot`].
pub(super) fn format_slot(slot: &TokenSlot) -> String {
    match slot.at.as_ref() {
        Some(At::Scheme(s)) if s.is_empty() => "raw".into(),
        Some(At::Scheme(s)) if s == "Bearer" => "bearer".into(),
        Some(At::Scheme(s)) => format!("scheme:{s}"),
        Some(At::Header(name)) => format!("header:{name}"),
        Some(At::Query(name)) => format!("query:{name}"),
        Some(At::Basic(part)) => match BasicPart::try_from(*part) {
            Ok(BasicPart::User) => "basic:user".into(),
            Ok(BasicPart::Password) => "basic:password".into(),
            _ => "basic:either".into(),
        },
        Some(At::Path(path)) => format!("path:{path}"),
        Some(At::Subprotocol(prefix)) => format!("subprotocol:{prefix}"),
        Some(At::AwsSigv4(_)) => "aws_sigv4".into(),
        None => String::new(),
    }
}

/// The slots that follow from the injection. An SDK that is given the token as its key sends the
/// token there.
pub(super) fn infer_slots(injection: &Injection) -> Vec<TokenSlot> {
    if injection.aws_sigv4.is_some() {
        return vec![slot(At::AwsSigv4(true))];
    }
    let sites = &injection.sites;
    let places = sites.iter().filter_map(|s| s.at.as_ref()).map(|at| match at {
        site::At::Header(NamedValue { name, value }) if name.eq_ignore_ascii_case("authorization") => {
            At::Scheme(value.split_once(' ').map_or("", |(scheme, _)| scheme).into())
        }
        site::At::Header(named) => At::Header(named.name.clone()),
        site::At::Query(named) => At::Query(named.name.clone()),
        site::At::Basic(template) => At::Basic(basic_part(template).into()),
        site::At::Path(template) => At::Path(with_token(template)),
    });
    places.map(slot).collect()
}

/// The part of Basic credentials that holds a field. A literal part (`x-access-token:{key}`) is no
/// place for a key.
fn basic_part(template: &str) -> BasicPart {
    let (user, password) = template.split_once(':').unwrap_or((template, ""));
    match (user.contains('{'), password.contains('{')) {
        (true, false) => BasicPart::User,
        (false, true) => BasicPart::Password,
        _ => BasicPart::Either,
    }
}

/// `/bot{key}` → `/bot{token}`.
fn with_token(template: &str) -> String {
    match (template.split_once('{'), template.split_once('}')) {
        (Some((before, _)), Some((_, after))) => format!("{before}{{token}}{after}"),
        _ => template.into(),
    }
}
