//! What a fleet costs: a thousand nodes on one replica, on one machine.
//!
//! The replica is `seks-control-plane` itself. The nodes are the data plane's own
//! [`Sync`](seks_data_plane::sync::Sync) and [`Table`](seks_data_plane::table::Table), each with
//! its own certificate, TLS connection and stream, many in this process; what they lack is a proxy
//! in front. `benches/run-fleet` builds and runs it; `benches/README.md` has the last figures.

pub mod churn;
pub mod fan_out;
pub mod light;
pub mod load;
pub mod nodes;
pub mod replica;
pub mod restart;

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use clap::Subcommand;
use seks_proto::wire::admin_client::AdminClient;
use tonic::transport::Channel;

/// What to measure.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    #[command(subcommand)]
    what: What,
    /// The `seks-control-plane` binary under test
    #[arg(long, global = true, default_value = "seks-control-plane")]
    control_plane: PathBuf,
    /// The `seks-data-plane` binary under test
    #[arg(long, global = true, default_value = "seks-data-plane")]
    data_plane: PathBuf,
    /// Nodes in this process
    #[arg(long, global = true, default_value_t = 1000)]
    nodes: usize,
    /// `fan-out` and `churn`: nodes that acknowledge everything and apply nothing
    #[arg(long, global = true)]
    light: bool,
}

#[derive(Subcommand, Clone, Debug)]
enum What {
    /// From `token revoke` to the last node's acknowledgement
    FanOut(fan_out::Args),
    /// Time and memory to load many tokens, at a replica and at a node
    Load(load::Args),
    /// Many changes a second to all nodes: does their lag grow?
    Churn(churn::Args),
    /// A replica is killed and started again: when is every node back, and did a lease lapse?
    Restart(restart::Args),
}

/// Measures, and prints lines of a table.
pub async fn run(args: Args) {
    let fleet = FleetUnderTest {
        control_plane: args.control_plane,
        data_plane: args.data_plane,
        nodes: args.nodes,
        light: args.light,
    };
    match args.what {
        What::FanOut(args) => fan_out::run(&fleet, args).await,
        What::Load(args) => load::run(&fleet, args).await,
        What::Churn(args) => churn::run(&fleet, args).await,
        What::Restart(args) => restart::run(&fleet, args).await,
    }
}

/// What is under test.
#[derive(Clone, Debug)]
pub struct FleetUnderTest {
    /// `seks-control-plane`.
    pub control_plane: PathBuf,
    /// `seks-data-plane`.
    pub data_plane: PathBuf,
    /// How many nodes.
    pub nodes: usize,
    /// Whether they are [`light`].
    pub light: bool,
}

/// Whatever follows the replica.
pub enum Nodes {
    /// The data plane's own, with a table each.
    Whole(Vec<nodes::Node>),
    /// Streams alone.
    Light(Vec<light::Light>),
}

impl FleetUnderTest {
    /// Nodes that are enrolled with `replica` and follow it; each has a lease.
    pub async fn populate(&self, client: &AdminClient<Channel>, replica: SocketAddr, home: &Path) -> Nodes {
        let identities = nodes::enrol(client, replica, self.nodes, home).await;
        if self.light {
            return Nodes::Light(light::start(self.nodes, home, replica).await);
        }
        Nodes::Whole(nodes::start(identities, replica).await)
    }
}

impl Nodes {
    /// The revision that all of them are at.
    #[must_use]
    pub fn revision(&self) -> u64 {
        let slowest = match self {
            Self::Whole(nodes) => nodes.iter().map(|node| node.table.revision()).min(),
            Self::Light(nodes) => nodes.iter().map(light::Light::revision).min(),
        };
        slowest.unwrap_or(0)
    }

    /// Snapshots that they have taken beyond their first; light ones take no other.
    #[must_use]
    pub fn snapshots(&self) -> u64 {
        match self {
            Self::Whole(nodes) => nodes.iter().map(|node| node.sync.status().snapshots - 1).sum(),
            Self::Light(_) => 0,
        }
    }

    /// For the table's title.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Whole(_) => "nodes",
            Self::Light(_) => "light nodes",
        }
    }
}

/// The value below which a share of all lies.
#[must_use]
pub fn percentile(values: &mut [f64], share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let at = (values.len() as f64 * share).ceil() as usize;
    values.get(at.saturating_sub(1)).copied().unwrap_or(0.0)
}
