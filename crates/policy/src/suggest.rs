//! Writes the narrowest policies that permit what an agent was seen to do.
//!
//! One policy for each service and method. Paths are compared as a whole; a segment that looks like
//! an id stands for any one segment.

use std::collections::{BTreeMap, BTreeSet};

use seks_types::id::{AgentName, ServiceName};

/// Paths of one policy beyond which segments that differ are generalised, too.
const MAX_PATHS: usize = 40;
/// Values of one segment that are told apart when there are too many paths.
const MAX_VALUES: usize = 3;
/// Shortest hexadecimal or mixed text that is taken for an id.
const MIN_ID: usize = 8;

/// A request that was permitted.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Observed {
    /// The service.
    pub service: ServiceName,
    /// The method.
    pub method: String,
    /// The path as policies see it, without the query.
    pub path: String,
}

/// A path, segment by segment. `None`: any segment.
type Template = Vec<Option<String>>;

/// A file of policies that permits all that was `observed`; empty when nothing was.
#[must_use]
pub fn suggest(agent: &AgentName, observed: &BTreeSet<Observed>) -> String {
    let mut paths: BTreeMap<(&ServiceName, &str), BTreeSet<Template>> = BTreeMap::new();
    for Observed { service, method, path } in observed {
        paths.entry((service, method)).or_default().insert(template(path));
    }
    let policies = paths.into_iter().map(|((service, method), templates)| {
        let conditions: Vec<String> = narrowed(templates).iter().map(condition).collect();
        let id = format!("suggested-{agent}-{service}-{}", method.to_lowercase());
        format!(
            "@id({id:?})\npermit (\n  principal == Seks::Agent::\"{agent}\",\n  action == Seks::Action::\"{method}\",\n  \
             resource == Seks::Service::\"{service}\"\n) when {{\n  context.token.services.contains(resource) && (\n    {}\n  )\n}};\n",
            conditions.join(" ||\n    ")
        )
    });
    policies.collect::<Vec<_>>().join("\n")
}

/// Ids generalised.
fn template(path: &str) -> Template {
    path.split('/').map(|segment| (!looks_like_id(segment)).then(|| segment.to_owned())).collect()
}

/// A number, a UUID, or a long word with digits, such as `run_0aBcD123` or `9f86d081`. Versions
/// such as `v1` are none.
fn looks_like_id(segment: &str) -> bool {
    let is_word = segment.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b':' | b'='));
    let digits = segment.bytes().filter(u8::is_ascii_digit).count();
    let is_number = digits > 0 && digits == segment.len();
    // The name of a model or of a dated version is a word with digits; an id has several in a row
    // of letters, or many.
    let longest = segment.split(['-', '_', '.', ':']).map(str::len).max().unwrap_or(0);
    is_number || (is_word && longest >= MIN_ID && digits >= 2)
}

/// No more than [`MAX_PATHS`]: where there are more, the segment with the most values is
/// generalised first.
fn narrowed(mut templates: BTreeSet<Template>) -> BTreeSet<Template> {
    while templates.len() > MAX_PATHS {
        let mut values: BTreeMap<(usize, usize), BTreeSet<&Option<String>>> = BTreeMap::new();
        for template in &templates {
            for (at, segment) in template.iter().enumerate() {
                values.entry((template.len(), at)).or_default().insert(segment);
            }
        }
        let most = values.iter().max_by_key(|(_, values)| values.len()).map(|(place, values)| (*place, values.len()));
        let Some(((length, at), _)) = most.filter(|(_, count)| *count > MAX_VALUES) else { break };
        let generalised = templates.into_iter().map(|mut template| {
            if template.len() == length
                && let Some(segment) = template.get_mut(at)
            {
                *segment = None;
            }
            template
        });
        templates = generalised.collect();
    }
    templates
}

/// `like "/v1/things/*"` matches further segments as well, so their number is bounded.
fn condition(template: &Template) -> String {
    if template.iter().all(Option::is_some) {
        let path: Vec<&str> = template.iter().flatten().map(String::as_str).collect();
        return format!("context.path == {}", quoted(&path.join("/"), false));
    }
    let segments: Vec<String> = template
        .iter()
        .map(|segment| segment.as_ref().map_or("*".into(), |text| quoted(text, true).trim_matches('"').to_owned()))
        .collect();
    let longer = vec!["*"; template.len() + 1].join("/");
    format!("(context.path like \"{}\" && !(context.path like \"{longer}\"))", segments.join("/"))
}

/// A Cedar string, or a pattern in which `*` stands for itself.
fn quoted(text: &str, is_pattern: bool) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            '*' if is_pattern => out.push_str("\\*"),
            c if c.is_ascii_graphic() || c == ' ' => out.push(c),
            c => out.push_str(&format!("\\u{{{:x}}}", u32::from(c))),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn suggested(requests: &[(&str, &str)]) -> String {
        let observed = requests.iter().map(|(method, path)| Observed {
            service: "api".parse().unwrap(),
            method: (*method).into(),
            path: (*path).into(),
        });
        suggest(&"bot".parse().unwrap(), &observed.collect())
    }

    #[test]
    fn ids_are_generalised_and_names_are_not() {
        for id in
            ["7", "123456", "9f86d081", "550e8400-e29b-41d4-a716-446655440000", "run_0aBcD123eF", "thread_abc12345"]
        {
            assert!(looks_like_id(id), "{id}");
        }
        for name in [
            "",
            "v1",
            "v1beta",
            "models",
            "chat",
            "gpt-4o-mini",
            "claude-3-5",
            "completions",
            "organizations",
            "a b c d e f 12",
        ] {
            assert!(!looks_like_id(name), "{name}");
        }
    }

    #[test]
    fn a_suggestion_has_one_policy_for_each_method_and_bounded_wildcards() {
        let text = suggested(&[("GET", "/v1/things/17"), ("GET", "/v1/things/18"), ("POST", "/v1/a\"*b")]);
        assert_eq!(text.matches("permit").count(), 2, "{text}");
        assert!(text.contains(r#"(context.path like "/v1/things/*" && !(context.path like "*/*/*/*/*"))"#), "{text}");
        assert!(text.contains(r#"context.path == "/v1/a\"*b""#), "{text}");
        assert!(text.contains(r#"action == Seks::Action::"POST""#), "{text}");
        assert_eq!(suggested(&[]), "");
    }

    #[test]
    fn many_paths_become_a_few() {
        let names: Vec<String> = (0..500)
            .map(|n| {
                format!("/repos/{}/issues", (0..n % 26 + 1).map(|_| 'x').collect::<String>() + &"y".repeat(n / 26))
            })
            .collect();
        let requests: Vec<(&str, &str)> = names.iter().map(|path| ("GET", path.as_str())).collect();
        let text = suggested(&requests);
        assert!(text.contains(r#"like "/repos/*/issues""#) && text.len() < 1000, "{text}");
    }
}
