//! How many connections one peer may have: whoever opens thousands costs itself, and nobody else.

use std::{
    collections::{HashMap, VecDeque},
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
};

use seks_runtime::connections::{Connections, Slot};
use tokio_util::sync::CancellationToken;

use crate::authority::Identity;

/// Connections with one certificate's name. An honest node has one, and another for a moment when it renews its certificate or comes back; those that a cut
/// link has left behind are noticed within a minute. A new one is the better one: the oldest gives way.
const MAX_OF_ONE: usize = 8;
/// Connections without a certificate, of all who enrol and of those from one source address. A fleet that comes at once has as many for a moment, and they are
/// worked off faster than they come. The oldest gives way; nobody with a certificate ever does.
const MAX_OF_NOBODY: usize = 1024;
const MAX_OF_NOBODY_FROM_ONE_SOURCE: usize = 256;

/// The connections that there are, by who has them.
#[derive(Clone)]
pub(super) struct Places {
    known: Arc<Mutex<HashMap<Identity, VecDeque<CancellationToken>>>>,
    nobody: Connections,
}

impl Default for Places {
    fn default() -> Self {
        let nobody = Connections::new(MAX_OF_NOBODY, MAX_OF_NOBODY_FROM_ONE_SOURCE);
        Self { known: Arc::default(), nobody }
    }
}

impl Places {
    /// A place for another connection of `who`, or of nobody known at `source`, until it is dropped.
    pub(super) async fn take(&self, who: Option<Identity>, source: IpAddr) -> Place {
        match who {
            Some(who) => self.take_known(who),
            None => Place::Nobody(self.nobody.admit(source).await),
        }
    }

    fn take_known(&self, who: Identity) -> Place {
        let lost = CancellationToken::new();
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let of_one = known.entry(who.clone()).or_default();
        of_one.push_back(lost.clone());
        let oldest = (of_one.len() > MAX_OF_ONE).then(|| of_one.pop_front()).flatten();
        drop(known);
        if let Some(oldest) = oldest {
            oldest.cancel();
        }
        Place::Known(Known { places: self.clone(), who, lost })
    }

    fn give_back(&self, who: &Identity, lost: &CancellationToken) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(of_one) = known.get_mut(who) {
            of_one.retain(|token| token != lost);
            if of_one.is_empty() {
                known.remove(who);
            }
        }
    }
}

/// A connection's place.
pub(super) enum Place {
    /// Of a peer with a certificate.
    Known(Known),
    /// Of a peer without one.
    Nobody(Slot),
}

/// The place of a peer with a certificate.
pub(super) struct Known {
    places: Places,
    who: Identity,
    lost: CancellationToken,
}

impl Place {
    /// Waits until a newer connection has taken it.
    pub(super) async fn lost(&self) {
        match self {
            Self::Known(known) => known.lost.cancelled().await,
            Self::Nobody(slot) => slot.evicted().await,
        }
    }

    /// Whether the peer has shown no certificate.
    pub(super) fn is_nobodys(&self) -> bool {
        matches!(self, Self::Nobody(_))
    }
}

impl Drop for Known {
    fn drop(&mut self) {
        self.places.give_back(&self.who, &self.lost);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(places: &Places, id: &str) -> Known {
        match places.take_known(Identity::Node(id.parse().unwrap())) {
            Place::Known(known) => known,
            Place::Nobody(_) => unreachable!(),
        }
    }

    #[tokio::test]
    async fn the_oldest_gives_way_and_nobody_elses() {
        let places = Places::default();
        let (other, nobody) = (take(&places, "b"), places.take(None, [127, 0, 0, 1].into()).await);
        let mut held: Vec<_> = (0..MAX_OF_ONE).map(|_| take(&places, "a")).collect();
        assert!(held.iter().all(|place| !place.lost.is_cancelled()));
        held.push(take(&places, "a"));
        let lost: Vec<bool> = held.iter().map(|place| place.lost.is_cancelled()).collect();
        assert!(lost[0] && lost.iter().filter(|&&lost| lost).count() == 1);
        held.remove(3); // one that goes makes room
        held.push(take(&places, "a"));
        assert_eq!(held.iter().filter(|place| place.lost.is_cancelled()).count(), 1);
        assert!(!other.lost.is_cancelled() && nobody.is_nobodys());
        drop((held, other, nobody));
        assert!(places.known.lock().unwrap().is_empty() && places.nobody.is_empty());
    }

    #[tokio::test]
    async fn those_who_enrol_are_bounded_together_and_by_source() {
        let places = Places::default();
        let mut held = Vec::new();
        for source in 0..8 {
            for _ in 0..=MAX_OF_NOBODY_FROM_ONE_SOURCE {
                held.push(places.take(None, [127, 0, 0, source].into()).await);
            }
        }
        assert_eq!(places.nobody.len(), MAX_OF_NOBODY);
    }
}
