//! `seks audit`: the trail of requests.

mod admin;
mod export;
mod follow;
mod offline;
mod record;
mod replicas;
pub mod usage;
mod verify;

use std::{collections::VecDeque, process::ExitCode};

use clap::{Args, Subcommand, ValueEnum};
use seks_proto::wire::{SearchAuditRequest, WhoAmIRequest};

use self::{record::RecordView, replicas::Replicas};
use crate::{
    client::Client,
    error::{Exit, Result},
    global::Global,
    moment::{Moment, moment, period},
    output::notice,
};

/// Records on a page.
const PAGE: u32 = 500;

/// The verbs of `seks audit`.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Print the newest requests, and with --follow each new one
    #[command(
        after_help = "Examples:\n  seks audit tail --follow --decision deny\n  seks audit tail --agent ci-bot -n 50 -o json\n\nWith -o json each request is one line."
    )]
    Tail {
        /// Go on with new requests until interrupted
        #[arg(long, short)]
        follow: bool,
        /// How many of the newest requests to begin with
        #[arg(long, short = 'n', value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(0..=1000))]
        lines: u32,
        /// Which requests.
        #[command(flatten)]
        filter: Filter,
    },
    /// Search the requests of a time, newest first
    #[command(
        after_help = "Examples:\n  seks audit search --since 24h --agent ci-bot -o json\n  seks audit search --since 7d --reason token_revoked --source 203.0.113.0/24\n  seks audit search --since 2026-11-01 --until 2026-11-03T12:00:00Z --decision deny --limit 20"
    )]
    Search {
        /// From when on: so long ago, or a date or time in UTC
        #[arg(long, value_name = "AGO|TIME", default_value = "24h", value_parser = moment)]
        since: Moment,
        /// Until when, in the same forms [default: now]
        #[arg(long, value_name = "AGO|TIME", value_parser = moment)]
        until: Option<Moment>,
        /// Most requests to print
        #[arg(long, value_name = "N", default_value_t = 1000, value_parser = at_least_one)]
        limit: usize,
        /// Which requests.
        #[command(flatten)]
        filter: Filter,
    },
    /// Print who issued, revoked and changed what: before and after, newest first
    #[command(
        after_help = "Examples:\n  seks audit admin --since 7d\n  seks audit admin --operator alice -o json\n  seks audit admin --tenant acme --object tok-abc --since 90d\n\nReplicas with a trail keep changes as long as requests (`audit.retention`); without a trail the newest 10,000 of each tenant and of the fleet are kept. Every replica in `endpoints` of the context is asked: its archive goes back to when it was first started. Refused calls are listed as `denied`."
    )]
    Admin(admin::AdminArgs),
    /// Write records, chains and admin changes to files, signed by the control plane
    #[command(
        after_help = "Examples:\n  seks audit key > audit.pem\n  seks audit export --since 30d --out audit-2026-11\n  seks audit verify audit-2026-11 --key audit.pem\n  zstdcat audit-2026-11/records-*.zst | jq 'select(.decision == \"deny\")'\n\nOf the whole fleet for operators with a role in all tenants, otherwise of one tenant: then without the chains. With several `endpoints` in the context, each replica's export is a directory in DIR."
    )]
    Export(export::ExportArgs),
    /// Print the public key that exports are verified with, as PEM
    #[command(after_help = "Example:\n  seks audit key > audit.pem")]
    Key,
    /// Check that no record was changed or removed: of the trail, or of exports
    #[command(
        after_help = "Examples:\n  seks audit verify\n  seks audit verify --timeout 10m -o json\n  seks audit verify audit-2026-11 --key audit.pem\n\nEvery replica in `endpoints` of the context is asked. With directories the control plane is not asked, but for its key when there is no --key. Exit code 1 when something is wrong, 6 when a replica did not answer."
    )]
    Verify(offline::VerifyArgs),
}

/// Which requests. All conditions that are given must match.
#[derive(Debug, Clone, Default, Args)]
pub struct Filter {
    /// Of this agent
    #[arg(long, value_name = "NAME")]
    agent: Option<String>,
    /// To this service
    #[arg(long, value_name = "NAME")]
    service: Option<String>,
    /// Permitted or refused
    #[arg(long, value_enum)]
    decision: Option<Decision>,
    /// Refused for this reason, such as policy_denied
    #[arg(long, value_name = "CODE")]
    reason: Option<String>,
    /// With the token of this id
    #[arg(long = "token", value_name = "ID")]
    token: Option<String>,
    /// With this credential
    #[arg(long, value_name = "NAME")]
    credential: Option<String>,
    /// Decided by this policy
    #[arg(long, value_name = "ID")]
    policy: Option<String>,
    /// With this method
    #[arg(long, value_name = "METHOD")]
    method: Option<String>,
    /// Recorded by this node
    #[arg(long, value_name = "ID")]
    node: Option<String>,
    /// From this address or network
    #[arg(long, value_name = "CIDR")]
    source: Option<String>,
}

/// What was decided.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Decision {
    Allow,
    Deny,
}

impl Filter {
    fn request(self) -> SearchAuditRequest {
        let decision = match self.decision {
            None => "",
            Some(Decision::Allow) => "allow",
            Some(Decision::Deny) => "deny",
        };
        SearchAuditRequest {
            agent: self.agent.unwrap_or_default(),
            service: self.service.unwrap_or_default(),
            token: self.token.unwrap_or_default(),
            credential: self.credential.unwrap_or_default(),
            decision: decision.into(),
            reason: self.reason.unwrap_or_default(),
            policy: self.policy.unwrap_or_default(),
            method: self.method.unwrap_or_default().to_uppercase(),
            node: self.node.unwrap_or_default(),
            source: self.source.unwrap_or_default(),
            ..SearchAuditRequest::default()
        }
    }
}

/// Runs a verb.
///
/// # Errors
/// The control plane's.
pub async fn run(global: &Global, verb: Verb) -> Result<ExitCode> {
    if let Verb::Verify(args) = &verb
        && !args.directories.is_empty()
    {
        return offline::run(global, args).await;
    }
    match &verb {
        Verb::Verify(_) => return verify::run(global).await,
        Verb::Export(args) => return export::run(global, args).await,
        Verb::Admin(args) => return admin::run(global, args.clone()).await,
        Verb::Tail { follow, lines, filter } => {
            return tail(global, *follow, *lines, filter.clone().request()).await;
        }
        Verb::Search { since, until, limit, filter } => {
            let (since_us, until_us) = period(*since, *until)?;
            let request = SearchAuditRequest { since_us, until_us, page_size: PAGE, ..filter.clone().request() };
            return search(global, *limit, request).await;
        }
        Verb::Key => {}
    }
    let client = global.connect().await?; // `Key` is what is left
    export::key(global, &client).await?;
    Ok(ExitCode::SUCCESS)
}

/// Parses the most that is to be printed.
fn at_least_one(text: &str) -> std::result::Result<usize, String> {
    text.parse().ok().filter(|count| *count > 0).ok_or_else(|| "a number from 1 on".into())
}

/// Whether the question is about the fleet: no tenant was named, and the operator has a role in all
/// of them.
async fn is_about_fleet(global: &Global, client: &Client) -> Result<bool> {
    if global.tenant.is_some() {
        return Ok(false);
    }
    let operator = client.call("audit", client.rpc().who_am_i(WhoAmIRequest {})).await?;
    Ok(operator.roles.iter().any(|role| role.tenant == "*"))
}

/// Of the tenant that was named, else of the whole fleet where the operator may see it, else of the
/// context's tenant.
async fn search(global: &Global, limit: usize, request: SearchAuditRequest) -> Result<ExitCode> {
    let mut replicas = Replicas::search(global, request).await?;
    let mut stream = global.output().stream("requests");
    let (mut left, mut views) = (limit, Vec::new());
    while left > 0
        && let Some(entry) = replicas.next().await?
    {
        views.push(RecordView::from(entry));
        left -= 1;
        if views.len() >= PAGE as usize {
            stream.page(&std::mem::take(&mut views))?;
        }
    }
    stream.page(&views)?;
    if left == 0 && replicas.next().await?.is_some() {
        notice(&format!("the newest {limit} are shown; --limit shows more"));
    }
    stream.end()?;
    Ok(outcome(&replicas))
}

/// What is missing must not look like what is not there.
fn outcome(replicas: &Replicas) -> ExitCode {
    if replicas.is_incomplete { ExitCode::from(Exit::Unreachable as u8) } else { ExitCode::SUCCESS }
}

async fn tail(global: &Global, follow: bool, lines: u32, request: SearchAuditRequest) -> Result<ExitCode> {
    let first = SearchAuditRequest { page_size: lines.max(1), ..request.clone() };
    let mut replicas = Replicas::search(global, first).await?;
    let mut newest: VecDeque<RecordView> = VecDeque::new();
    while newest.len() < lines as usize
        && let Some(entry) = replicas.next().await?
    {
        newest.push_front(RecordView::from(entry));
    }
    let mut printer = record::LinePrinter::new(global.output());
    printer.print(&Vec::from(newest))?;
    if follow {
        follow::run(replicas.sources, request, &mut printer).await?;
        return Ok(ExitCode::SUCCESS);
    }
    Ok(outcome(&replicas))
}
