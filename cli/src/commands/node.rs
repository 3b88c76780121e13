//! `seks node`: the proxy nodes.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{Subcommand, builder::NonEmptyStringValueParser};
use seks_proto::wire;
use serde::Serialize;

use super::change::{self, WaitArgs};
use crate::{
    confirm::Confirm,
    duration::duration,
    error::{CliError, Result},
    global::Global,
    listing::{self, ListArgs},
    output::{View, notice, rfc3339_or_null},
};

/// The verbs of `seks node`.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// List the nodes and the revision that each has applied
    #[command(alias = "ls", after_help = "Example:\n  seks node list -o json")]
    List {
        /// Selection and order.
        #[command(flatten)]
        list: ListArgs,
    },
    /// Show a node
    #[command(after_help = "Example:\n  seks node show node-1")]
    Show {
        /// Id of the node
        id: String,
    },
    /// Remove a node from the fleet: it is fenced at once, and its certificate is no longer
    /// accepted
    #[command(after_help = "Example:\n  seks node revoke node-1")]
    Revoke {
        /// Id of the node
        id: String,
        /// Confirmation.
        #[command(flatten)]
        confirm: Confirm,
        /// Waiting for enforcement.
        #[command(flatten)]
        wait_args: WaitArgs,
    },
    /// Print a join token, with which one new node can enrol once
    #[command(
        after_help = "Examples:\n  seks node enroll --region eu-1 > join-token\n  seks node enroll --region eu-1 --tenant acme --tenant globex\n  seks node enroll --region eu-1 --pool payments"
    )]
    Enroll {
        /// The new node's region
        #[arg(long, value_parser = NonEmptyStringValueParser::new())]
        region: String,
        /// A tenant whose tokens and credentials the node may hold (repeatable) [default: every
        /// tenant]
        #[arg(id = "tenant", long = "tenant", value_name = "NAME")]
        tenants: Vec<String>,
        /// A pool of the node; the node may hold credentials assigned to it (repeatable) [default:
        /// none]
        #[arg(id = "pool", long = "pool", value_name = "NAME")]
        pools: Vec<String>,
        /// Admit a node that presents the mesh's certificate for this SPIFFE ID; no token is needed
        #[arg(long, value_name = "ID", requires = "name")]
        spiffe_id: Option<String>,
        /// The name of that node
        #[arg(long, requires = "spiffe_id")]
        name: Option<String>,
        /// How long the join token is valid
        #[arg(long, default_value = "10m", value_parser = duration)]
        ttl: Duration,
        /// Write the join token to this file (mode 0600) instead of printing it
        #[arg(long, value_name = "FILE", conflicts_with = "spiffe_id")]
        out: Option<PathBuf>,
    },
}

/// A node.
#[derive(Debug, Serialize)]
pub struct NodeView {
    id: String,
    region: String,
    version: String,
    connected: bool,
    applied_revision: u64,
    lag: u64,
    lease_remaining_ms: u64,
    tokens: u64,
    tenants: Vec<String>,
    pools: Vec<String>,
    enrolled_at: Option<String>,
    first_seen_at: Option<String>,
    last_seen_at: Option<String>,
    features: Vec<String>,
}

impl From<wire::Node> for NodeView {
    fn from(n: wire::Node) -> Self {
        Self {
            id: n.id,
            region: n.region,
            version: n.version,
            connected: n.connected,
            applied_revision: n.applied_revision,
            lag: n.lag,
            lease_remaining_ms: n.lease_remaining_ms,
            tokens: n.tokens,
            tenants: n.tenants,
            pools: n.pools,
            enrolled_at: rfc3339_or_null(n.enrolled_at),
            first_seen_at: rfc3339_or_null(n.first_seen_at),
            last_seen_at: rfc3339_or_null(n.last_seen_at),
            features: n.features,
        }
    }
}

impl View for NodeView {
    const COLUMNS: &'static [&'static str] =
        &["node", "region", "tenants", "pools", "state", "applied", "lag", "tokens", "version", "seen"];
    fn row(&self) -> Vec<String> {
        vec![
            self.id.clone(),
            self.region.clone(),
            if self.tenants.is_empty() { "all".into() } else { self.tenants.join(",") },
            self.pools.join(","),
            match (self.connected, &self.first_seen_at) {
                (true, _) => "connected",
                (false, Some(_)) => "gone",
                (false, None) => "enrolled",
            }
            .into(),
            self.applied_revision.to_string(),
            self.lag.to_string(),
            self.tokens.to_string(),
            self.version.clone(),
            self.last_seen_at.clone().unwrap_or_default(),
        ]
    }
}

impl NodeView {
    /// The columns of `seks top`.
    pub const COLUMNS_OF_TOP: [&'static str; 7] = ["node", "region", "state", "lag", "lease", "tokens", "version"];

    /// A cell for each of them.
    #[must_use]
    pub fn row_of_top(&self) -> Vec<String> {
        vec![
            self.id.clone(),
            self.region.clone(),
            if self.connected { "connected" } else { "gone" }.into(),
            self.lag.to_string(),
            format!("{:.1}s", self.lease_remaining_ms as f64 / 1000.0),
            self.tokens.to_string(),
            self.version.split(' ').next().unwrap_or_default().to_owned(),
        ]
    }
}

#[derive(Serialize)]
struct JoinView {
    join_token: String,
    region: String,
    tenants: Vec<String>,
    pools: Vec<String>,
    expires_at: Option<String>,
}

/// Runs a verb.
///
/// # Errors
/// See [`crate::error`].
pub async fn run(global: &Global, verb: Verb) -> Result<()> {
    let output = global.output();
    let client = global.connect().await?;
    match verb {
        Verb::List { list } => {
            let nodes = client.call("nodes", client.rpc().list_nodes(wire::ListNodesRequest {})).await?.nodes;
            listing::list_at_once(output, "nodes", list, nodes.into_iter().map(NodeView::from).collect())
        }
        Verb::Show { id } => {
            let request = wire::NameRequest { tenant: String::new(), name: id.clone() };
            let node = client.call(&format!("node `{id}`"), client.rpc().get_node(request)).await?;
            output.one(&NodeView::from(node))
        }
        Verb::Revoke { id, confirm, wait_args } => {
            confirm.ask_if_possible(&format!("revoke node `{id}`"))?;
            let wait = Some(client.wait(wait_args.no_wait));
            let request = wire::DeleteRequest { tenant: String::new(), name: id.clone(), wait };
            let response = client.change(&format!("node `{id}`"), client.rpc().revoke_node(request)).await?;
            change::print_outcome(
                output,
                change::Outcome { noun: "node", name: &id, done: "revoked" },
                response,
                wait_args,
            )
        }
        Verb::Enroll { region, tenants, pools, spiffe_id, name, ttl, out } => {
            out.as_deref().map_or(Ok(()), check_writable)?; // a token that cannot be kept is lost
            let request = wire::EnrollNodeRequest {
                region: region.clone(),
                tenants: tenants.clone(),
                pools: pools.clone(),
                ttl_seconds: ttl.as_secs(),
                spiffe_id: spiffe_id.unwrap_or_default(),
                node: name.clone().unwrap_or_default(),
            };
            let answer = client.call("node enroll", client.rpc().enroll_node(request)).await?;
            if let Some(id) = name {
                let request = wire::NameRequest { tenant: String::new(), name: id.clone() };
                let node = client.call(&format!("node `{id}`"), client.rpc().get_node(request)).await?;
                return output.one(&NodeView::from(node));
            }
            let expires_at = rfc3339_or_null(answer.expires_at);
            if let Some(out) = out {
                crate::files::write_private(&out, format!("{}\n", answer.join_token).as_bytes())?;
                notice(&format!(
                    "{} is valid once, until {}",
                    out.display(),
                    expires_at.as_deref().unwrap_or_default()
                ));
                return Ok(());
            }
            let view = JoinView { join_token: answer.join_token, region, tenants, pools, expires_at };
            if output.is_table() {
                output.text(&view.join_token)?; // alone on stdout: it goes into a file
                notice(&format!("valid once, until {}", view.expires_at.as_deref().unwrap_or_default()));
                return Ok(());
            }
            output.data(&view)
        }
    }
}

/// Refuses a file that could not be written.
fn check_writable(path: &Path) -> Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let is_folder = if path.is_dir() { Err(std::io::ErrorKind::IsADirectory.into()) } else { Ok(()) };
    is_folder.and_then(|()| std::fs::read_dir(folder).map(drop)).map_err(|error| CliError::file(path, &error))
}
