//! Lists: selected by `--filter`, ordered by `--sort`, cut by `--limit`, and printed page by page.

use std::{cmp::Ordering, ops::ControlFlow};

use clap::Args;
use seks_proto::wire::{self, admin_client::AdminClient};
use seks_types::similar::closest;
use serde_json::Value;
use tonic::{Response, Status, transport::Channel};

use crate::{
    client::{Client, Page},
    error::{CliError, Result},
    output::{Output, Stream, View, notice},
};

/// The options of every `list`.
#[derive(Debug, Clone, Default, Args)]
pub struct ListArgs {
    /// Show only objects with this value: FIELD=VALUE, FIELD!=VALUE, FIELD~TEXT (holds);
    /// repeatable, all must match
    #[arg(long, value_name = "FIELD=VALUE", value_parser = Filter::parse)]
    filter: Vec<Filter>,
    /// Sort by a field of the JSON output; -FIELD sorts downwards
    #[arg(long, value_name = "FIELD", allow_hyphen_values = true)]
    sort: Option<String>,
    /// Most objects to print
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
}

/// A condition on a field of the JSON output.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Filter {
    field: String,
    test: Test,
    value: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Test {
    Is,
    IsNot,
    Holds,
}

impl Filter {
    fn parse(text: &str) -> Result<Self, String> {
        let at = text.find(['=', '~']).filter(|at| *at > 0);
        let at = at.ok_or("a filter is FIELD=VALUE, FIELD!=VALUE or FIELD~TEXT")?;
        let (field, value) = text.split_at(at);
        let (test, field) = match (value.starts_with('~'), field.strip_suffix('!')) {
            (true, _) => (Test::Holds, field),
            (false, Some(field)) => (Test::IsNot, field),
            (false, None) => (Test::Is, field),
        };
        Ok(Self { field: field.to_lowercase(), test, value: value.chars().skip(1).collect() })
    }

    fn matches(&self, object: &Value) -> Result<bool> {
        let values = texts(field(object, &self.field)?);
        Ok(match self.test {
            Test::Is => values.contains(&self.value),
            Test::IsNot => !values.contains(&self.value),
            Test::Holds => values.iter().any(|value| value.contains(&self.value)),
        })
    }
}

/// The field of this name, or of this column: `expires` is `expires_at`, `by` is `issued_by`.
/// `attributes.team` is a field of a field.
fn field<'v>(object: &'v Value, name: &str) -> Result<&'v Value> {
    let Value::Object(fields) = object else { return Ok(&Value::Null) };
    let (first, rest) = name.split_once('.').map_or((name, None), |(first, rest)| (first, Some(rest)));
    let is_alias = |key: &&String| key.strip_suffix("_at") == Some(first) || key.ends_with(&format!("_{first}"));
    let found = fields.get(first).or_else(|| fields.get(fields.keys().find(is_alias)?));
    match (found, rest) {
        (Some(Value::Object(inner)), Some(rest)) => Ok(inner.get(rest).unwrap_or(&Value::Null)),
        (Some(found), _) => Ok(found),
        (None, _) => {
            let names: Vec<&str> = fields.keys().map(String::as_str).collect();
            let error = CliError::usage(format!("field `{first}`"), "the objects have no such field");
            Err(match closest(first, names.iter().copied()) {
                Some(similar) => error.hint(format!("did you mean `{similar}`?")),
                None => error.hint(format!("they have {}", names.join(", "))),
            })
        }
    }
}

/// A value as text; of a list each element, of an object each key.
fn texts(value: &Value) -> Vec<String> {
    match value {
        Value::Null => vec![String::new()],
        Value::String(text) => vec![text.clone()],
        Value::Array(items) => items.iter().flat_map(texts).collect(),
        Value::Object(fields) => fields.keys().cloned().collect(),
        other => vec![other.to_string()],
    }
}

/// Numbers by size, texts by their characters, absent values last.
fn compare(a: &Value, b: &Value) -> Ordering {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a.as_f64().unwrap_or(0.0).total_cmp(&b.as_f64().unwrap_or(0.0)),
        (Value::Null, Value::Null) => Ordering::Equal,
        (Value::Null, _) => Ordering::Greater,
        (_, Value::Null) => Ordering::Less,
        (a, b) => texts(a).cmp(&texts(b)),
    }
}

/// A list in progress.
pub struct Listing<V> {
    args: ListArgs,
    stream: Stream,
    /// With `--sort`: all objects with their key.
    sorted: Vec<(Value, V)>,
    printed: usize,
}

impl<V: View> Listing<V> {
    /// Begins a list of this noun.
    #[must_use]
    pub fn new(args: ListArgs, output: Output, noun: &str) -> Self {
        Self { args, stream: output.stream(noun), sorted: Vec::new(), printed: 0 }
    }

    /// Adds a page. `Break`: no more is wanted.
    ///
    /// # Errors
    /// Exit code 2 for a field that the objects don't have.
    pub fn page(&mut self, views: Vec<V>) -> Result<ControlFlow<()>> {
        let mut selected = Vec::new();
        for view in views {
            if self.args.filter.is_empty() && self.args.sort.is_none() {
                selected.push(view);
                continue;
            }
            let object = serde_json::to_value(&view).map_err(|e| CliError::usage("list", e))?;
            let mut matches = true;
            for filter in &self.args.filter {
                matches &= filter.matches(&object)?;
            }
            match &self.args.sort {
                _ if !matches => {}
                Some(sort) => {
                    let key = field(&object, &sort.trim_start_matches('-').to_lowercase())?.clone();
                    self.sorted.push((key, view));
                }
                None => selected.push(view),
            }
        }
        self.print(selected)
    }

    fn print(&mut self, mut views: Vec<V>) -> Result<ControlFlow<()>> {
        let left = self.args.limit.map_or(usize::MAX, |limit| limit.saturating_sub(self.printed));
        let more = views.len() > left;
        views.truncate(left);
        self.printed += views.len();
        self.stream.page(&views)?;
        if more {
            notice(&format!("the first {} are shown; --limit shows more", self.printed));
        }
        Ok(if more { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    }

    /// Ends the list.
    ///
    /// # Errors
    /// When stdout can't be written.
    pub fn end(mut self) -> Result<()> {
        if let Some(sort) = self.args.sort.take() {
            let mut sorted = std::mem::take(&mut self.sorted);
            sorted.sort_by(|(a, _), (b, _)| compare(a, b));
            if sort.starts_with('-') {
                sorted.reverse();
            }
            let _ = self.print(sorted.into_iter().map(|(_, view)| view).collect())?;
        }
        self.stream.end()
    }
}

/// Lists objects of this tenant.
///
/// # Errors
/// See [`crate::error`].
pub async fn list<P, V>(
    client: &Client,
    output: Output,
    noun: &str,
    args: ListArgs,
    ask: impl AsyncFn(AdminClient<Channel>, wire::ListRequest) -> Result<Response<P>, Status>,
) -> Result<()>
where
    P: Page,
    V: View + From<P::Item>,
{
    let mut listing = Listing::new(args, output, noun);
    let page = |items: Vec<P::Item>| listing.page(items.into_iter().map(V::from).collect());
    client.for_each_page(noun, ask, page).await?;
    listing.end()
}

/// Lists objects that come all at once.
///
/// # Errors
/// See [`crate::error`].
pub fn list_at_once<V: View>(output: Output, noun: &str, args: ListArgs, views: Vec<V>) -> Result<()> {
    let mut listing = Listing::new(args, output, noun);
    let _ = listing.page(views)?;
    listing.end()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn matches(filter: &str, object: &Value) -> bool {
        Filter::parse(filter).unwrap().matches(object).unwrap()
    }

    #[test]
    fn filters_name_fields_columns_and_fields_of_fields() {
        let object = json!({
            "agent": "ci-bot", "services": ["openai", "github"], "expires_at": "2026-01-01", "issued_by": "dev",
            "attributes": {"team": "infra"}, "disabled": false, "version": 12, "shape": null,
        });
        for filter in [
            "agent=ci-bot",
            "AGENT=ci-bot",
            "agent!=other",
            "agent~bot",
            "services=github",
            "services!=stripe",
            "expires~2026",
            "by=dev",
            "attributes.team=infra",
            "attributes.none=",
            "disabled=false",
            "version=12",
            "shape=",
        ] {
            assert!(matches(filter, &object), "{filter}");
        }
        for filter in ["agent=ci", "services=open", "services!=openai", "attributes.team=core", "disabled=true"] {
            assert!(!matches(filter, &object), "{filter}");
        }
        let unknown = Filter::parse("agnet=x").unwrap().matches(&object).unwrap_err();
        assert_eq!((unknown.exit as u8, unknown.hint.as_deref()), (2, Some("did you mean `agent`?")));
        assert!(Filter::parse("agent").is_err() && Filter::parse("=x").is_err());
    }

    #[test]
    fn numbers_are_sorted_by_size_and_absent_values_come_last() {
        let mut values = [json!(null), json!(10), json!(9), json!("b"), json!("a")];
        values.sort_by(compare);
        assert_eq!(values.last(), Some(&json!(null)));
        assert_eq!(compare(&json!(9), &json!(10)), Ordering::Less);
        assert_eq!(compare(&json!("10"), &json!("9")), Ordering::Less);
    }
}
