//! `seks audit admin`: what operators have changed, before and after.

use std::time::Duration;

use clap::Args;
use seks_control_plane::admin::audit_view::{ChangeView, ObjectView};
use seks_proto::wire::{AdminChangeEntry, AdminChangesRequest, AdminChangesResponse};
use serde_json::Value;

use super::{PAGE, ago, is_about_fleet};
use crate::{
    client::Client,
    duration::duration,
    error::{CliError, Exit, Result},
    global::Global,
    output::{View, notice},
};

/// Longest value in a table, in characters.
const SHOWN: usize = 60;

/// The arguments of `seks audit admin`.
#[derive(Debug, Args)]
pub struct AdminArgs {
    /// How far back
    #[arg(long, value_name = "DURATION", default_value = "7d", value_parser = duration)]
    since: Duration,
    /// How far back the list ends [default: now]
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    until: Option<Duration>,
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
    #[arg(long, value_name = "N", default_value_t = 1000)]
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

/// Prints changes, newest first.
pub(super) async fn run(global: &Global, client: Client, args: AdminArgs) -> Result<()> {
    let is_fleet = is_about_fleet(global, &client).await?;
    let mut request = AdminChangesRequest {
        tenant: client.tenant(),
        operator: args.operator.unwrap_or_default(),
        verb: args.verb.unwrap_or_default(),
        object: args.object.unwrap_or_default(),
        since_us: ago(args.since),
        until_us: args.until.map_or(0, ago),
        page_size: PAGE,
        page_token: String::new(),
    };
    let (mut stream, mut left) = (global.output().stream("changes"), args.limit);
    loop {
        let answer = page(&client, is_fleet, request.clone()).await?;
        let view = |entry: AdminChangeEntry| {
            ChangeView::new(entry.chain, entry.revision, &entry.change)
                .ok_or_else(|| CliError::new(Exit::Failed, "audit", "the answer has a change that is not readable"))
        };
        let views: Vec<ChangeView> = answer.entries.into_iter().take(left).map(view).collect::<Result<_>>()?;
        left -= views.len();
        stream.page(&views)?;
        if answer.next_page_token.is_empty() || left == 0 {
            if !answer.next_page_token.is_empty() {
                notice(&format!("the newest {} are shown; --limit shows more", args.limit));
            }
            return stream.end();
        }
        request.page_token = answer.next_page_token;
    }
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
