//! Bounds the streams of a node that have not sent their Hello yet. A node that opens thousands
//! delays only itself.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;

use crate::authority::Identity;

/// Streams of one node that may wait for their Hello. An honest one has one, and for a moment
/// another that it has just given up.
const MAX_OPENING: usize = 4;

/// The streams that have not said Hello yet, by node.
#[derive(Clone, Default)]
pub(crate) struct HandshakeLimiter(Arc<Mutex<HashMap<Identity, usize>>>);

impl HandshakeLimiter {
    /// A place for one more stream of the node that `who` names, until it is dropped.
    pub(crate) fn try_acquire(&self, who: &Identity) -> Option<HandshakePermit> {
        let mut opening = self.0.lock();
        let count = opening.entry(who.clone()).or_default();
        (*count < MAX_OPENING).then(|| {
            *count += 1;
            HandshakePermit { limiter: self.clone(), who: who.clone() }
        })
    }
}

/// One stream that is beginning.
pub(crate) struct HandshakePermit {
    limiter: HandshakeLimiter,
    who: Identity,
}

impl Drop for HandshakePermit {
    fn drop(&mut self) {
        let mut opening = self.limiter.0.lock();
        if let Some(count) = opening.get_mut(&self.who) {
            *count -= 1;
            if *count == 0 {
                opening.remove(&self.who);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(id: &str) -> Identity {
        Identity::Node(id.parse().unwrap())
    }

    #[test]
    fn each_node_has_a_few_places_of_its_own_and_gets_them_back() {
        let (limiter, a, b) = (HandshakeLimiter::default(), node("a"), node("b"));
        let mut held: Vec<_> = (0..MAX_OPENING).map(|_| limiter.try_acquire(&a).unwrap()).collect();
        assert!(limiter.try_acquire(&a).is_none() && limiter.try_acquire(&b).is_some());
        held.pop();
        assert!(limiter.try_acquire(&a).is_some());
        held.clear();
        assert!(limiter.0.lock().is_empty());
    }
}
