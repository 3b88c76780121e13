//! `seks audit admin`: what operators have changed, before and after.

mod archives;

use std::process::ExitCode;

use clap::Args;
use seks_control_plane::admin::audit_view::{ChangeView, ObjectView};
use seks_proto::wire::{AdminChangeEntry, AdminChangesRequest, AdminChangesResponse};
use serde_json::Value;

use self::archives::Archives;
use super::{PAGE, at_least_one};
use crate::{
    client::Client,
    error::{CliError, Exit, Result},
    global::Global,
    moment::{Moment, moment, period},
    output::{View, notice},
};

/// Longest value in a table, in characters.
const SHOWN: usize = 60;

/// The arguments of `seks audit admin`.
#[derive(Debug, Clone, Args)]
pub struct AdminArgs {
    /// From when on: so long ago, or a date or time in UTC
    #[arg(long, value_name = "AGO|TIME", default_value = "7d", value_parser = moment)]
    since: Moment,
    /// Until when, in the same forms [default: now]
    #[arg(long, value_name = "AGO|TIME", value_parser = moment)]
    until: Option<Moment>,
    /// By this operator
    #[arg(long, value_name = "NAME")]
    operator: Option<String>,
    /// By this call, such as IssueToken
    #[arg(long, value_name = "METHOD")]
    verb: Option<String>,
    /// To the token, policy, service or other object of this name
    #[arg(long, value_name = "NAME")]
    object: Option<String>,
    /// Most changes to print
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = at_least_one)]
    limit: usize,
}

/// A value in one cell, such as `upstream=https://a.example`.
fn cell(value: &Value) -> String {
    let one = |value: &Value| match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let line = match value {
        Value::Null => return String::new(),
        Value::Object(values) => {
            values.iter().map(|(key, value)| format!("{key}={}", one(value))).collect::<Vec<_>>().join(" ")
        }
        other => one(other),
    };
    let line: String = line.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(SHOWN) {
        Some((at, _)) => format!("{}...", line.get(..at).unwrap_or_default()),
        None => line,
    }
}

impl View for ChangeView {
    const COLUMNS: &'static [&'static str] =
        &["time", "outcome", "operator", "verb", "tenant", "object", "before", "after"];
    fn row(&self) -> Vec<String> {
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        let objects = self.objects.iter().map(|object| match &object.kind {
            Some(kind) => format!("{kind}/{}", object.name),
            None => object.name.clone(),
        });
        let more = (self.more_objects > 0).then(|| format!("and {} more", self.more_objects));
        let lines = |value: fn(&ObjectView) -> &Value| {
            self.objects.iter().map(|object| cell(value(object))).collect::<Vec<_>>().join("\n")
        };
        vec![
            self.time.clone(),
            self.outcome.clone(),
            text(&self.operator),
            self.verb.clone(),
            text(&self.tenant),
            objects.chain(more).collect::<Vec<_>>().join("\n"),
            lines(|object| &object.before),
            lines(|object| &object.after),
        ]
    }
}

/// Prints changes, newest first. Exit code 6 when a replica did not answer that alone has some.
pub(super) async fn run(global: &Global, args: AdminArgs) -> Result<ExitCode> {
    let (since_us, until_us) = period(args.since, args.until)?;
    let request = AdminChangesRequest {
        tenant: String::new(),
        operator: args.operator.unwrap_or_default(),
        verb: args.verb.unwrap_or_default(),
        object: args.object.unwrap_or_default(),
        since_us,
        until_us,
        page_size: PAGE,
        page_token: String::new(),
    };
    let mut archives = Archives::open(global, request).await?;
    let (mut stream, mut left, mut views) = (global.output().stream("changes"), args.limit, Vec::new());
    while left > 0
        && let Some(entry) = archives.next().await?
    {
        views.push(view(entry)?);
        left -= 1;
        if views.len() >= PAGE as usize {
            stream.page(&std::mem::take(&mut views))?;
        }
    }
    stream.page(&views)?;
    if left == 0 && archives.next().await?.is_some() {
        notice(&format!("the newest {} are shown; --limit shows more", args.limit));
    }
    stream.end()?;
    Ok(if archives.is_incomplete() { ExitCode::from(Exit::Unreachable as u8) } else { ExitCode::SUCCESS })
}

fn view(entry: AdminChangeEntry) -> Result<ChangeView> {
    ChangeView::new(entry.chain, entry.revision, &entry.change)
        .ok_or_else(|| CliError::new(Exit::Failed, "audit", "the answer has a change that is not readable"))
}

pub(super) async fn page(
    client: &Client,
    is_fleet: bool,
    request: AdminChangesRequest,
) -> Result<AdminChangesResponse> {
    let mut rpc = client.rpc();
    if is_fleet {
        client.call("audit", rpc.list_fleet_admin_changes(request)).await
    } else {
        client.call("audit", rpc.list_admin_changes(request)).await
    }
}
