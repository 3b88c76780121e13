//! The environment variables that are configuration.

use super::{ConfigError, Origin};

/// First words of the sections of both planes. A variable for the other plane's section is no
/// error, because both planes may share one environment file.
const SECTIONS: &[&str] = &[
    "STORE",
    "SEAL",
    "SOURCES",
    "ADMIN",
    "APPROVALS",
    "PAGE",
    "DISTRIBUTION",
    "NODE",
    "CONTROL",
    "PROXY",
    "UPSTREAM",
    "AUDIT",
    "TELEMETRY",
    "USAGE",
];

/// `SEKS_…` variables that are no configuration keys. Other code reads them.
const UNRELATED: &[&str] = &[
    "LOG",
    "CONTEXT",
    "CONTEXT_FILE",
    "TENANT",
    "TOKEN",
    "BASE_URL",
    "TIMEOUT",
    "KEK",
    "KEK_",
    "TEST_",
    "DEV_",
    "CONFIG",
    "COMMIT",
];

/// A variable that has not been assigned to a key. `rest` is its name after `SEKS_` and the
/// sections found so far.
#[derive(Clone, Debug)]
pub(super) struct Variable {
    pub(super) rest: String,
    pub(super) name: String,
    pub(super) value: String,
}

pub(super) fn config_variables(variables: Vec<(String, String)>) -> Result<Vec<Variable>, ConfigError> {
    let mut entries = Vec::new();
    for (name, value) in variables {
        let Some(rest) = name.strip_prefix("SEKS_") else { continue };
        if is_kubernetes_link(rest, &value)
            || UNRELATED.iter().any(|o| rest == *o || (o.ends_with('_') && rest.starts_with(o)))
        {
            continue;
        }
        if !SECTIONS.iter().any(|s| rest.strip_prefix(s).is_some_and(|r| r.starts_with('_'))) {
            return Err(ConfigError::new(Origin::Environment(name), "", "no such setting"));
        }
        entries.push(Variable { rest: rest.into(), value, name });
    }
    Ok(entries)
}

/// Whether Kubernetes made the variable. It adds `SEKS_CONTROL_PLANE_PORT=tcp://…`,
/// `…_SERVICE_HOST` and similar ones to each pod beside a service named `seks-control-plane`.
fn is_kubernetes_link(rest: &str, value: &str) -> bool {
    let link_port = rest.split("_PORT_").nth(1).is_some_and(|p| {
        let digits = p.trim_start_matches(|c: char| c.is_ascii_digit());
        digits.len() < p.len() && ["_TCP", "_UDP", "_SCTP"].iter().any(|s| digits.starts_with(s))
    });
    let link = rest.ends_with("_PORT") && ["tcp://", "udp://", "sctp://"].iter().any(|s| value.starts_with(s));
    link || link_port || rest.contains("_SERVICE_HOST") || rest.contains("_SERVICE_PORT")
}

/// The part of a variable's name after `field_`, or `""` when the name is the field.
pub(super) fn strip_field<'a>(rest: &'a str, field: &str) -> Option<&'a str> {
    let (head, tail) = rest.split_at_checked(field.len())?;
    if !head.bytes().zip(field.bytes()).all(|(h, f)| h == f.to_ascii_uppercase()) {
        return None;
    }
    if tail.is_empty() { Some(tail) } else { tail.strip_prefix('_').filter(|t| !t.is_empty()) }
}
