//! The outcome of a change: stored, and enforced or not on every node that may serve.

use clap::Args;
use seks_proto::wire::{self, node_enforcement::State};
use serde::Serialize;

use crate::{
    error::{CliError, Exit, Result},
    output::{Output, View, notice},
};

/// `--no-wait`, on every verb that changes what nodes do.
#[derive(Debug, Clone, Copy, Default, Args)]
pub struct WaitArgs {
    /// Return when the change is stored, before it is enforced on the nodes
    #[arg(long)]
    pub no_wait: bool,
}

/// The progress of a change.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Enforced {
    /// The store's revision of the change.
    pub revision: u64,
    /// Every live node has applied it, or its lease has expired.
    pub enforced: bool,
    /// Milliseconds from the commit to that point.
    pub waited_ms: u64,
    /// The status of each node.
    pub nodes: Vec<NodeState>,
    /// Control-plane replicas that have not reported for their nodes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub replicas: Vec<String>,
}

/// The status of one node.
#[derive(Debug, Clone, Serialize)]
pub struct NodeState {
    node: String,
    region: String,
    state: &'static str,
    ms: u64,
}

impl From<Option<wire::Enforcement>> for Enforced {
    fn from(wire: Option<wire::Enforcement>) -> Self {
        let wire = wire.unwrap_or_default();
        let node = |n: wire::NodeEnforcement| NodeState {
            state: match State::try_from(n.state) {
                Ok(State::Applied) => "applied",
                Ok(State::LeaseExpired) => "lease_expired",
                _ => "outstanding",
            },
            node: n.node,
            region: n.region,
            ms: n.ms,
        };
        Self {
            revision: wire.revision,
            enforced: wire.enforced,
            waited_ms: wire.waited_ms,
            nodes: wire.nodes.into_iter().map(node).collect(),
            replicas: wire.replicas,
        }
    }
}

impl Enforced {
    /// Text for people: "enforced on 3 nodes after 12 ms".
    #[must_use]
    pub fn sentence(&self) -> String {
        let count = self.nodes.len();
        let nodes = if count == 1 { "1 node".to_owned() } else { format!("{count} nodes") };
        match (self.enforced, count) {
            (true, 0) => "enforced: no node is serving".into(),
            (true, _) => format!("enforced on {nodes} after {} ms", self.waited_ms),
            (false, _) => format!("stored at revision {}, not known to be enforced", self.revision),
        }
    }

    /// Fails with exit code 6 when the wait ended before the change was enforced. Names the
    /// outstanding nodes.
    ///
    /// # Errors
    /// In that case.
    pub fn check(&self, what: &str, wait_args: WaitArgs) -> Result<()> {
        if self.enforced || wait_args.no_wait {
            return Ok(());
        }
        let owing: Vec<_> = self.nodes.iter().filter(|n| n.state == "outstanding").map(|n| n.node.as_str()).collect();
        let nodes = match (owing.as_slice(), self.replicas.as_slice()) {
            ([], []) => "nodes".to_owned(),
            ([], replicas) => format!("the nodes of {}", replicas.join(", ")),
            (owing, _) => owing.join(", "),
        };
        let why = format!("stored at revision {}, but not enforced in time on {nodes}", self.revision);
        Err(CliError::new(Exit::Unreachable, what, why)
            .hint("`seks status` shows the nodes; a node without a control plane stops when its lease ends"))
    }
}

/// The response to a change of an object: its view and the progress.
#[derive(Serialize)]
pub struct Changed<V> {
    #[serde(flatten)]
    view: V,
    #[serde(flatten)]
    enforced: Enforced,
}

impl<V: View> View for Changed<V> {
    const COLUMNS: &'static [&'static str] = V::COLUMNS;
    fn row(&self) -> Vec<String> {
        self.view.row()
    }
    fn detail(&self) -> Vec<(&'static str, String)> {
        self.view.detail()
    }
}

/// Prints a changed object and the progress of the change.
///
/// # Errors
/// As [`Enforced::check`].
pub fn print_changed<V: View>(
    output: Output,
    what: &str,
    view: V,
    wire: Option<wire::Enforcement>,
    wait_args: WaitArgs,
) -> Result<()> {
    let enforced = Enforced::from(wire);
    let changed = Changed { view, enforced };
    output.one(&changed)?;
    changed.enforced.check(what, wait_args)?;
    if output.is_table() {
        notice(&changed.enforced.sentence());
    }
    Ok(())
}

/// An object that was revoked, disabled or deleted.
#[derive(Serialize)]
struct Named<'a> {
    id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    #[serde(flatten)]
    enforced: Enforced,
}

/// What was done to which thing: token `x` revoked.
#[derive(Clone, Copy)]
pub struct Outcome<'a> {
    /// The kind of thing, such as `token`.
    pub noun: &'a str,
    /// Its name or id.
    pub name: &'a str,
    /// A past participle, such as `revoked`.
    pub done: &'a str,
}

/// Prints "token `x` revoked: enforced on …", or `{"id", "revision", "enforced", …}`.
///
/// # Errors
/// As [`Enforced::check`].
pub fn print_outcome(
    output: Output,
    Outcome { noun, name, done }: Outcome<'_>,
    response: wire::ChangeResponse,
    wait_args: WaitArgs,
) -> Result<()> {
    let enforced = Enforced::from(response.enforcement);
    let sentence = format!("{noun} `{name}` {done}: {}", enforced.sentence());
    let checked = enforced.check(&format!("{noun} `{name}` {done}"), wait_args);
    if !output.is_table() {
        let named = Named { id: name, name: (noun != "token").then_some(name), enforced };
        output.data(&named)?;
    } else if checked.is_ok() {
        output.text(&sentence)?;
    }
    checked
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outstanding() -> Enforced {
        let node = wire::NodeEnforcement { node: "n1".into(), region: "r".into(), state: 3, ms: 5 };
        Some(wire::Enforcement { revision: 7, waited_ms: 9, nodes: vec![node], ..Default::default() }).into()
    }

    #[test]
    fn a_change_that_is_not_enforced_in_time_names_the_node_and_exits_6() {
        let error = outstanding().check("token `t` revoked", WaitArgs { no_wait: false }).unwrap_err();
        assert_eq!(error.exit, Exit::Unreachable);
        assert!(error.why.ends_with("not enforced in time on n1"), "{error}");
        assert!(outstanding().check("x", WaitArgs { no_wait: true }).is_ok());
        let silent = Enforced { replicas: vec!["cp-2".into()], ..Enforced::default() };
        let error = silent.check("x", WaitArgs { no_wait: false }).unwrap_err();
        assert!(error.why.ends_with("not enforced in time on the nodes of cp-2"), "{error}");
    }

    #[test]
    fn json_is_as_the_contract_says() {
        let named = Named { id: "tok-1", name: None, enforced: outstanding() };
        assert_eq!(
            serde_json::to_value(&named).unwrap(),
            serde_json::json!({"id": "tok-1", "revision": 7, "enforced": false, "waited_ms": 9,
                "nodes": [{"node": "n1", "region": "r", "state": "outstanding", "ms": 5}]})
        );
    }
}
