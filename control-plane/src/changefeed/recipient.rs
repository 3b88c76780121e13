//! What one node is sent: whose records, and of those what it can enforce.

use std::{collections::BTreeSet, sync::Arc};

use seks_protocol::features;

use super::scope::NodeScope;

/// A node, as far as it decides what the node is sent. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Recipient {
    /// What enrolment said of it.
    pub(crate) scope: NodeScope,
    /// What its Hello said that it can do.
    features: Arc<BTreeSet<String>>,
    /// It has every feature that any credential needs.
    takes_credentials: bool,
    /// It compares what a credential is bound to with its service.
    checks_binding: bool,
}

impl Recipient {
    /// A node of `scope` that has said that it has `features`.
    pub(crate) fn new(scope: NodeScope, features: &[String]) -> Self {
        let features: BTreeSet<String> = features.iter().cloned().collect();
        Self {
            takes_credentials: takes_credentials(&features),
            checks_binding: features.contains(features::BINDING_V1),
            features: Arc::new(features),
            scope,
        }
    }

    /// Whether it compares what a credential is bound to with its service.
    pub(crate) fn checks_binding(&self) -> bool {
        self.checks_binding
    }

    /// Whether it is sent credentials that are assigned to `pools`, of a tenant whose records it is
    /// sent.
    pub(crate) fn takes_pools(&self, pools: &[String]) -> bool {
        self.takes_credentials && self.scope.includes_pools(pools)
    }

    /// Whether it can enforce a record that `requires` these features. One that it can't is
    /// withheld, and no other with it.
    pub(crate) fn can_enforce(&self, requires: &[String]) -> bool {
        requires.iter().all(|feature| self.features.contains(feature))
    }

    /// What the node can do, for sharing what is sent to nodes that can do the same.
    pub(crate) fn features(&self) -> &Arc<BTreeSet<String>> {
        &self.features
    }
}

/// Whether a node can evaluate and inject whatever every version can ask for. These features are
/// closed: what a later version adds is required by the records that need it.
pub(crate) fn takes_credentials<'a>(known: impl IntoIterator<Item = &'a String>) -> bool {
    let known: BTreeSet<&str> = known.into_iter().map(String::as_str).collect();
    features::ALL.iter().all(|feature| known.contains(feature))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_withheld_from_nodes_that_lack_what_it_requires_and_nothing_else_is() {
        let features: Vec<String> = features::ALL.iter().map(|feature| (*feature).to_owned()).collect();
        let older = Recipient::new(NodeScope::default(), &features);
        let newer = Recipient::new(NodeScope::default(), &[features, vec!["later-v1".into()]].concat());
        let requires = ["later-v1".to_owned()];
        assert!(newer.can_enforce(&requires) && !older.can_enforce(&requires));
        assert!(older.can_enforce(&[]) && older.takes_pools(&[]) && newer.takes_pools(&[]));
        assert!(!Recipient::new(NodeScope::default(), &[]).takes_pools(&[]));
    }
}
