//! How many streams a node may be opening at a time: one that opens thousands and says nothing costs itself, and nobody else.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use seks_proto::id::NodeId;

/// Streams of one node that may wait for their Hello. An honest one has one, and for a moment another that it has just given up.
const MAX_OPENING: usize = 4;

/// The streams that have not said Hello yet, by node.
#[derive(Clone, Default)]
pub(super) struct Doors(Arc<Mutex<HashMap<NodeId, usize>>>);

impl Doors {
    /// A place for one more stream of `node`, until it is dropped.
    pub(super) fn enter(&self, node: &NodeId) -> Option<Opening> {
        let mut opening = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = opening.entry(node.clone()).or_default();
        (*count < MAX_OPENING).then(|| {
            *count += 1;
            Opening { doors: self.clone(), node: node.clone() }
        })
    }
}

/// One stream that is beginning.
pub(super) struct Opening {
    doors: Doors,
    node: NodeId,
}

impl Drop for Opening {
    fn drop(&mut self) {
        let mut opening = self.doors.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = opening.get_mut(&self.node) {
            *count -= 1;
            if *count == 0 {
                opening.remove(&self.node);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_node_has_a_few_places_of_its_own_and_gets_them_back() {
        let (doors, a, b) = (Doors::default(), "a".parse().unwrap(), "b".parse().unwrap());
        let mut held: Vec<_> = (0..MAX_OPENING).map(|_| doors.enter(&a).unwrap()).collect();
        assert!(doors.enter(&a).is_none() && doors.enter(&b).is_some());
        held.pop();
        assert!(doors.enter(&a).is_some());
        held.clear();
        assert!(doors.0.lock().unwrap().is_empty());
    }
}
