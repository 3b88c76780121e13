//! `seks top`: nodes, services, rates, latencies and refusals, again and again.

mod window;

use std::{io::IsTerminal as _, time::Duration};

use clap::Args;
use seks_proto::wire;
use serde::Serialize;
use tonic::Code;

use self::window::{RefusalView, ServiceView, Window};
use super::node::NodeView;
use crate::{
    client::Client,
    duration::duration,
    error::Result,
    global::Global,
    output::{Output, has_colours, notice, rfc3339, table},
};

/// Records on a page of the trail, and most pages for one frame.
const PAGE: u32 = 1000;
const PAGES: usize = 20;
/// Most lines of refusals.
const REFUSALS: usize = 8;

/// How often, and over which time.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  seks top
  seks top --once -o json | jq .services
  seks top --window 5m --interval 10s

Rates, latencies and refusals come from the audit trail of the replica that answers, of the whole fleet where this operator may
see it, otherwise of the tenant.")]
pub struct TopArgs {
    /// Print once and end
    #[arg(long)]
    once: bool,
    /// Time between two prints
    #[arg(long, value_name = "DURATION", default_value = "2s", value_parser = duration)]
    interval: Duration,
    /// The time over which rates and latencies are computed, at most 1h
    #[arg(long, value_name = "DURATION", default_value = "1m", value_parser = window)]
    window: Duration,
}

fn window(text: &str) -> Result<Duration, String> {
    duration(text).and_then(|window| match window {
        window if window <= Duration::from_secs(3600) => Ok(window),
        _ => Err("at most 1h".into()),
    })
}

#[derive(Serialize)]
struct Frame {
    at: String,
    replica: String,
    store: String,
    store_healthy: bool,
    revision: u64,
    window_seconds: u64,
    nodes: Vec<NodeView>,
    services: Vec<ServiceView>,
    refusals: Vec<RefusalView>,
    /// Audit records that wait at the nodes.
    audit_backlog: u64,
    /// There were more requests than were read: rates are too low.
    cut: bool,
    /// Why there are no rates.
    #[serde(skip_serializing_if = "Option::is_none")]
    note: Option<String>,
}

/// Prints frames until it is interrupted.
///
/// # Errors
/// See [`crate::error`].
pub async fn run(global: &Global, args: TopArgs) -> Result<()> {
    let client = global.connect().await?;
    let output = global.output();
    let mut reader =
        Reader { client: client.clone(), is_fleet: global.tenant.is_none(), window: Window::new(args.window) };
    let clears = output.is_table() && !args.once && std::io::stdout().is_terminal();
    loop {
        let note = reader.read().await?;
        let frame = frame(&client, &reader.window, note).await?;
        print(output, &frame, clears)?;
        if args.once {
            return Ok(());
        }
        tokio::select! {
            () = tokio::time::sleep(args.interval) => {}
            _ = tokio::signal::ctrl_c() => return Ok(()),
        }
    }
}

/// Reads the trail into the window.
struct Reader {
    client: Client,
    is_fleet: bool,
    window: Window,
}

impl Reader {
    /// Reads what is new. Says why nothing can be read.
    async fn read(&mut self) -> Result<Option<String>> {
        let now = window::now_us();
        self.window.forget_before(now);
        let mut request = wire::SearchAuditRequest {
            tenant: self.client.tenant(),
            since_us: self.window.since_us(now),
            page_size: PAGE,
            ..wire::SearchAuditRequest::default()
        };
        for page in 0..PAGES {
            let answer = match self.page(request.clone()).await {
                Ok(answer) => answer,
                // Without a trail there are still nodes to show.
                Err(error) if page == 0 && error.why.contains("no audit trail") => return Ok(Some(error.why)),
                Err(error) => return Err(error),
            };
            let known = answer.entries.iter().any(|entry| !self.window.add(entry));
            if known || answer.next_page_token.is_empty() {
                return Ok(None);
            }
            request.page_token = answer.next_page_token;
        }
        self.window.is_cut = true;
        Ok(None)
    }

    async fn page(&mut self, request: wire::SearchAuditRequest) -> Result<wire::SearchAuditResponse> {
        let mut rpc = self.client.rpc();
        if self.is_fleet {
            match rpc.search_fleet_audit(request.clone()).await {
                Err(status) if status.code() == Code::PermissionDenied => self.is_fleet = false,
                answer => return self.client.call("top", async { answer }).await,
            }
        }
        self.client.call("top", rpc.search_audit(request)).await
    }
}

async fn frame(client: &Client, window: &Window, note: Option<String>) -> Result<Frame> {
    let status = client.call("status", client.rpc().status(wire::StatusRequest {})).await?;
    Ok(Frame {
        at: rfc3339(crate::duration::unix_now()),
        replica: status.replica,
        store: status.store,
        store_healthy: status.store_healthy,
        revision: status.revision,
        window_seconds: window.length().as_secs(),
        nodes: status.nodes.into_iter().map(NodeView::from).collect(),
        services: window.services(),
        refusals: window.refusals(),
        audit_backlog: status.audit_backlog,
        cut: window.is_cut,
        note,
    })
}

fn print(output: Output, frame: &Frame, clears: bool) -> Result<()> {
    if !output.is_table() {
        return output.data(frame);
    }
    let mut text = frame.for_people(has_colours(clears));
    if clears {
        text = format!("\u{1b}[H\u{1b}[2J{text}");
    }
    if let Some(note) = &frame.note {
        notice(note);
    }
    output.text(&text)
}

impl Frame {
    fn for_people(&self, colours: bool) -> String {
        let health = if self.store_healthy { "healthy" } else { "NOT HEALTHY" };
        let health =
            if colours && !self.store_healthy { format!("\u{1b}[31m{health}\u{1b}[0m") } else { health.into() };
        let mut text = format!(
            "{}  replica {}  store {} {health}  revision {}  {} audit records wait\n\n",
            self.at.get(11..19).unwrap_or_default(),
            self.replica,
            self.store,
            self.revision,
            self.audit_backlog
        );
        text.push_str(&table(&NodeView::COLUMNS_OF_TOP, self.nodes.iter().map(NodeView::row_of_top)));
        let window = humantime::format_duration(Duration::from_secs(self.window_seconds));
        text.push_str(&format!("\n\nlast {window}:\n"));
        if self.services.is_empty() {
            text.push_str("no requests\n");
            return text;
        }
        text.push_str(&table(&ServiceView::COLUMNS, self.services.iter().map(ServiceView::row)));
        if !self.refusals.is_empty() {
            text.push_str("\n\n");
            text.push_str(&table(&["refused_for", "count"], self.refusals.iter().take(REFUSALS).map(RefusalView::row)));
        }
        text.push('\n');
        if self.cut {
            text.push_str("more requests than are counted: a shorter --window is exact\n");
        }
        text
    }
}
