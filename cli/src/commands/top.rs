//! `seks top`: nodes, services, rates, latencies and refusals, again and again.

mod screen;
mod window;

use std::{io::IsTerminal as _, time::Duration};

use clap::Args;
use seks_proto::wire;
use serde::Serialize;
use tonic::Code;

use self::screen::{Event, Screen};
use self::window::{RefusalView, ServiceView, Window};
use super::node::NodeView;
use crate::{
    client::Client,
    duration::duration,
    error::{CliError, Exit, Result, one_line, plain_io},
    global::Global,
    output::{Output, has_colours, is_closed, notice, rfc3339, table},
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
  seks top | tee now.txt                     one table

Keys: q quits, space asks at once.

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

/// Shows frames on a terminal until `q` or Ctrl-C. Prints one table where there is no terminal.
///
/// # Errors
/// See [`crate::error`].
pub async fn run(global: &Global, args: TopArgs) -> Result<()> {
    let client = global.connect().await?;
    let output = global.output();
    let mut reader =
        Reader { client: client.clone(), is_fleet: global.tenant.is_none(), window: Window::new(args.window) };
    let first = reader.frame().await?;
    if output.is_table() && !args.once && Screen::is_possible() {
        return watch(output, reader, first, args.interval).await;
    }
    print(output, &first)?;
    while !args.once && !output.is_table() && !is_closed() {
        tokio::select! {
            () = tokio::time::sleep(args.interval) => print(output, &reader.frame().await?)?,
            _ = tokio::signal::ctrl_c() => break,
        }
    }
    Ok(())
}

/// Draws frames until the user quits. A control plane that cannot be reached is shown, and asked
/// again.
async fn watch(output: Output, mut reader: Reader, first: Frame, interval: Duration) -> Result<()> {
    let failed = |error: std::io::Error| CliError::new(Exit::Failed, "terminal", plain_io(&error));
    let mut screen = Screen::open(output).map_err(failed)?;
    let (mut frame, mut problem) = (first, None);
    loop {
        screen.draw(&live(&frame, problem.as_ref(), interval))?;
        match screen.next(interval).await {
            Event::Quit => return Ok(()),
            Event::Resized => {}
            // Whoever quits does not wait for an answer.
            Event::Due => tokio::select! {
                read = reader.frame() => match read {
                    Ok(read) => (frame, problem) = (read, None),
                    Err(error) => problem = Some(error),
                },
                () = screen.quits() => return Ok(()),
            },
        }
    }
}

/// The figures, below what keys do and what is wrong.
fn live(frame: &Frame, problem: Option<&CliError>, interval: Duration) -> String {
    let colours = has_colours(true);
    let every = humantime::format_duration(interval);
    let mut text = match problem {
        Some(error) => {
            let line = one_line(&format!("no answer since {}: {}", frame.time(), error.why));
            if colours { format!("\u{1b}[1;31m{line}\u{1b}[0m\n") } else { format!("{line}\n") }
        }
        None => format!("every {every}   q quits\n"),
    };
    text.push_str(&frame.for_people(colours));
    if let Some(note) = &frame.note {
        text.push_str(&format!("{}\n", one_line(note)));
    }
    text
}

/// Reads the trail into the window.
struct Reader {
    client: Client,
    is_fleet: bool,
    window: Window,
}

impl Reader {
    /// Reads what is new, and adds it up.
    async fn frame(&mut self) -> Result<Frame> {
        let note = self.read().await?;
        frame(&self.client, &self.window, note).await
    }

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

fn print(output: Output, frame: &Frame) -> Result<()> {
    if !output.is_table() {
        return output.data(frame);
    }
    if let Some(note) = &frame.note {
        notice(note);
    }
    output.text(&frame.for_people(has_colours(std::io::stdout().is_terminal())))
}

impl Frame {
    /// `12:03:44`.
    fn time(&self) -> &str {
        self.at.get(11..19).unwrap_or_default()
    }

    fn for_people(&self, colours: bool) -> String {
        let health = if self.store_healthy { "healthy" } else { "NOT HEALTHY" };
        let health =
            if colours && !self.store_healthy { format!("\u{1b}[31m{health}\u{1b}[0m") } else { health.into() };
        let mut text = format!(
            "{}  replica {}  store {} {health}  revision {}  {} audit records wait\n\n",
            self.time(),
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
