//! `seks status`: the state of the control plane, its store and its nodes.

use seks_proto::wire;
use serde::Serialize;

use super::node::NodeView;
use crate::{error::Result, global::Global, output::View};

#[derive(Serialize)]
struct StatusView {
    control_plane: ReplicaView,
    store: StoreView,
    epoch: String,
    revision: u64,
    tokens: u64,
    audit_backlog: u64,
    replicas: Vec<PeerView>,
    nodes: Vec<NodeView>,
}

#[derive(Serialize)]
struct ReplicaView {
    replica: String,
    version: String,
}

/// A replica on the same store.
#[derive(Serialize)]
struct PeerView {
    id: String,
    name: String,
    watermark: u64,
    serving: bool,
}

impl View for PeerView {
    const COLUMNS: &'static [&'static str] = &["replica", "name", "watermark", "state"];
    fn row(&self) -> Vec<String> {
        let state = if self.serving { "serving" } else { "retired" };
        vec![self.id.clone(), self.name.clone(), self.watermark.to_string(), state.into()]
    }
}

#[derive(Serialize)]
struct StoreView {
    kind: String,
    healthy: bool,
    /// `unreachable` or `full`.
    problem: Option<String>,
}

impl From<wire::StatusResponse> for StatusView {
    fn from(s: wire::StatusResponse) -> Self {
        Self {
            control_plane: ReplicaView { replica: s.replica, version: s.version },
            store: StoreView {
                kind: s.store,
                healthy: s.store_healthy,
                problem: Some(s.store_problem).filter(|problem| !problem.is_empty()),
            },
            epoch: s.epoch,
            revision: s.revision,
            tokens: s.tokens,
            audit_backlog: s.audit_backlog,
            replicas: s.replicas.into_iter().map(PeerView::from).collect(),
            nodes: s.nodes.into_iter().map(NodeView::from).collect(),
        }
    }
}

impl From<wire::Replica> for PeerView {
    fn from(r: wire::Replica) -> Self {
        Self { id: r.id, name: r.name, watermark: r.watermark, serving: !r.retired }
    }
}

impl View for StatusView {
    const COLUMNS: &'static [&'static str] =
        &["control plane", "store", "epoch", "revision", "tokens", "audit backlog", "nodes"];
    fn row(&self) -> Vec<String> {
        let healthy = match (&self.store.problem, self.store.healthy) {
            (Some(problem), _) => format!("NOT HEALTHY ({problem})"),
            (None, healthy) => if healthy { "healthy" } else { "NOT HEALTHY" }.into(),
        };
        vec![
            format!("{} {}", self.control_plane.replica, self.control_plane.version).trim().into(),
            format!("{}, {healthy}", self.store.kind),
            self.epoch.clone(),
            self.revision.to_string(),
            self.tokens.to_string(),
            self.audit_backlog.to_string(),
            self.nodes.len().to_string(),
        ]
    }
}

/// Prints the status.
///
/// # Errors
/// See [`crate::error`].
pub async fn run(global: &Global) -> Result<()> {
    let client = global.connect().await?;
    let status = client.call("status", client.rpc().status(wire::StatusRequest {})).await?;
    let view = StatusView::from(status);
    let output = global.output();
    output.one(&view)?;
    if output.is_table() && view.replicas.len() > 1 {
        output.text("")?;
        output.list("replicas", &view.replicas)?;
    }
    if output.is_table() && !view.nodes.is_empty() {
        output.text("")?;
        output.list("nodes", &view.nodes)?;
    }
    Ok(())
}
