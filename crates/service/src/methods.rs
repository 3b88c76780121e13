//! Methods: the seven that every service takes, and those that a service lists.

use http::Method;

use super::{Service, ServiceError, invalid};

/// The methods that every service takes.
pub const STANDARD: [Method; 7] =
    [Method::GET, Method::HEAD, Method::OPTIONS, Method::POST, Method::PUT, Method::PATCH, Method::DELETE];

/// Most further methods of one service. WebDAV with versioning (RFC 3253) has 20.
const MAX_FURTHER: usize = 32;
/// Longest name of a method, in bytes. The longest of the registry (`UPDATEREDIRECTREF`) has 17.
const MAX_NAME: usize = 24;

/// Which of the actions `read` and `write` a method belongs to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum MethodGroup {
    /// In neither. A policy covers it only by its name, or by covering every action.
    #[default]
    Neither,
    /// In `read`.
    Read,
    /// In `write`.
    Write,
}

/// Further methods that the policy schema names: those of the IANA registry without `CONNECT`,
/// `TRACE` and `PRI`, and those of Vault (`LIST`), of HTTP caches (`PURGE`, `BAN`) and of UPnP and
/// Exchange. Those that the registry calls safe, and `LIST`, are reads. In order.
pub const KNOWN: &[(&str, MethodGroup)] = {
    use MethodGroup::{Read, Write};
    &[
        ("ACL", Write),
        ("BAN", Write),
        ("BASELINE-CONTROL", Write),
        ("BIND", Write),
        ("CHECKIN", Write),
        ("CHECKOUT", Write),
        ("COPY", Write),
        ("LABEL", Write),
        ("LINK", Write),
        ("LIST", Read),
        ("LOCK", Write),
        ("MERGE", Write),
        ("MKACTIVITY", Write),
        ("MKCALENDAR", Write),
        ("MKCOL", Write),
        ("MKREDIRECTREF", Write),
        ("MKWORKSPACE", Write),
        ("MOVE", Write),
        ("NOTIFY", Write),
        ("ORDERPATCH", Write),
        ("PROPFIND", Read),
        ("PROPPATCH", Write),
        ("PURGE", Write),
        ("QUERY", Read),
        ("REBIND", Write),
        ("REPORT", Read),
        ("SEARCH", Read),
        ("SUBSCRIBE", Write),
        ("UNBIND", Write),
        ("UNCHECKOUT", Write),
        ("UNLINK", Write),
        ("UNLOCK", Write),
        ("UNSUBSCRIBE", Write),
        ("UPDATE", Write),
        ("UPDATEREDIRECTREF", Write),
        ("VERSION-CONTROL", Write),
    ]
};

/// A method that a service accepts beside [`STANDARD`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FurtherMethod {
    /// Compared with case, as methods are (RFC 9110, 9.1).
    pub method: Method,
    /// Fixed for [`KNOWN`] methods.
    pub group: MethodGroup,
}

impl Service {
    /// The group of a method that the service takes. `None`: it doesn't take it.
    #[must_use]
    pub fn method_group(&self, method: &Method) -> Option<MethodGroup> {
        match *method {
            Method::GET | Method::HEAD | Method::OPTIONS => Some(MethodGroup::Read),
            Method::POST | Method::PUT | Method::PATCH | Method::DELETE => Some(MethodGroup::Write),
            _ => self.methods.iter().find(|further| further.method == *method).map(|further| further.group),
        }
    }
}

/// Whether no service can have the method. `CONNECT` is the proxy's own, `TRACE` and `TRACK` return
/// the request with its credential, and `PRI` begins an HTTP/2 connection.
#[must_use]
pub fn is_never_sent(method: &str) -> bool {
    ["CONNECT", "TRACE", "TRACK", "PRI"].iter().any(|never| method.eq_ignore_ascii_case(never))
}

/// The group of a [`KNOWN`] method.
#[must_use]
pub fn known_group(method: &str) -> Option<MethodGroup> {
    let at = KNOWN.binary_search_by(|(name, _)| (*name).cmp(method)).ok()?;
    KNOWN.get(at).map(|(_, group)| *group)
}

/// Whether a policy may name the method as an action: upper case, so that a typo of a standard
/// method in lower case stays an error.
#[must_use]
pub fn is_action(method: &str) -> bool {
    let upper = |b: u8| b.is_ascii_uppercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_');
    (2..=MAX_NAME).contains(&method.len())
        && method.bytes().all(upper)
        && method.starts_with(|c: char| c.is_ascii_uppercase())
        && !is_never_sent(method)
}

/// Parses the key `methods`.
pub(super) fn parse(texts: &[String]) -> Result<Vec<FurtherMethod>, ServiceError> {
    if texts.len() > MAX_FURTHER {
        return Err(invalid("methods", format!("at most {MAX_FURTHER}")));
    }
    let mut methods: Vec<FurtherMethod> = Vec::with_capacity(texts.len());
    for text in texts {
        let further = parse_one(text)?;
        if methods.iter().any(|have| have.method == further.method) {
            return Err(invalid("methods", format!("`{}` is listed twice", further.method)));
        }
        methods.push(further);
    }
    Ok(methods)
}

fn parse_one(text: &str) -> Result<FurtherMethod, ServiceError> {
    let wrong = |reason: String| Err(invalid("methods", reason));
    let shown: String = text.chars().take(40).flat_map(char::escape_debug).collect();
    let (name, said) = match text.split_once(':') {
        None => (text, None),
        Some((name, "read")) => (name, Some(MethodGroup::Read)),
        Some((name, "write")) => (name, Some(MethodGroup::Write)),
        Some(_) => return wrong(format!("`{shown}`: the group is `read` or `write`")),
    };
    if is_never_sent(name) {
        return wrong(format!("`{shown}` is never sent to a service"));
    }
    let Some(method) = Method::from_bytes(name.as_bytes()).ok().filter(|_| is_action(name)) else {
        return wrong(format!(
            "`{shown}` is not a method of 2 to {MAX_NAME} capital letters, digits, `-` and `_`, such as \"PROPFIND\""
        ));
    };
    if STANDARD.contains(&method) {
        return wrong(format!("`{shown}` is always accepted: list only further methods, and restrict by policy"));
    }
    match (known_group(name), said) {
        (Some(group), Some(said)) if group != said => wrong(format!("`{name}` belongs to another group")),
        (Some(group), _) => Ok(FurtherMethod { method, group }),
        (None, said) => Ok(FurtherMethod { method, group: said.unwrap_or_default() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(texts: &[&str]) -> Result<Vec<(String, MethodGroup)>, String> {
        let texts: Vec<String> = texts.iter().map(|t| (*t).to_owned()).collect();
        let methods = parse(&texts).map_err(|e| e.to_string())?;
        Ok(methods.into_iter().map(|m| (m.method.to_string(), m.group)).collect())
    }

    #[test]
    fn known_methods_have_their_group_and_others_have_none_unless_it_is_said() {
        let methods = parsed(&["LIST", "LOCK", "FETCH", "FIND:read", "STORE:write", "PURGE:write"]).unwrap();
        let groups: Vec<MethodGroup> = methods.iter().map(|(_, group)| *group).collect();
        use MethodGroup as G;
        assert_eq!(groups, [G::Read, G::Write, G::Neither, G::Read, G::Write, G::Write]);
    }

    #[test]
    fn what_no_service_may_have_is_named() {
        for (method, says) in [
            ("TRACE", "never sent"),
            ("connect", "never sent"),
            ("Track", "never sent"),
            ("PRI", "never sent"),
            ("GET", "always accepted"),
            ("list", "not a method"),
            ("LI ST", "not a method"),
            ("", "not a method"),
            ("A\r\nB", "not a method"),
            ("LOCK:read", "another group"),
            ("LIST:admin", "the group is"),
        ] {
            let error = parsed(&[method]).expect_err(method);
            assert!(error.starts_with("methods: ") && error.contains(says) && !error.contains('\n'), "{error}");
        }
        assert!(parsed(&["LIST", "LIST:read"]).unwrap_err().contains("twice"));
    }

    #[test]
    fn the_known_ones_are_in_order_and_can_be_listed() {
        assert!(KNOWN.is_sorted_by_key(|(name, _)| *name));
        assert!(
            KNOWN
                .iter()
                .all(|(name, group)| is_action(name) && parsed(&[name]).unwrap() == [((*name).to_owned(), *group)])
        );
    }
}
