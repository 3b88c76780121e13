//! How many connections one peer may have: whoever opens thousands costs itself, and nobody else.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
};

use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use crate::authority::Identity;

/// Connections with one certificate's name. An honest node has one, and another for a moment when it renews its certificate or comes back; those that a cut
/// link has left behind are noticed within a minute. A new one is the better one: the oldest gives way.
const MAX_OF_ONE: usize = 8;
/// Connections without a certificate, of all who enrol: a fleet that comes at once has as many for a moment, and they are worked off faster than they come.
const MAX_OF_NOBODY: usize = 1024;

/// The connections that there are, by who has them.
#[derive(Clone, Default)]
pub(super) struct Places(Arc<Mutex<HashMap<Option<Identity>, VecDeque<CancellationToken>>>>);

impl Places {
    /// A place for another connection of `who`, until it is dropped.
    pub(super) fn take(&self, who: Option<Identity>) -> Place {
        let most = if who.is_some() { MAX_OF_ONE } else { MAX_OF_NOBODY };
        let lost = CancellationToken::new();
        let mut places = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let of_one = places.entry(who.clone()).or_default();
        of_one.push_back(lost.clone());
        let oldest = (of_one.len() > most).then(|| of_one.pop_front()).flatten();
        drop(places);
        if let Some(oldest) = oldest {
            oldest.cancel();
        }
        Place { places: self.clone(), who, lost }
    }

    fn give_back(&self, who: &Option<Identity>, lost: &CancellationToken) {
        let mut places = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(of_one) = places.get_mut(who) {
            of_one.retain(|token| token != lost);
            if of_one.is_empty() {
                places.remove(who);
            }
        }
    }
}

/// A connection's place.
pub(super) struct Place {
    places: Places,
    who: Option<Identity>,
    lost: CancellationToken,
}

impl Place {
    /// Waits until a newer connection has taken it.
    pub(super) fn lost(&self) -> WaitForCancellationFutureOwned {
        self.lost.clone().cancelled_owned()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.give_back(&self.who, &self.lost);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(id: &str) -> Option<Identity> {
        Some(Identity::Node(id.parse().unwrap()))
    }

    #[test]
    fn the_oldest_gives_way_and_nobody_elses() {
        let places = Places::default();
        let (other, nobody) = (places.take(node("b")), places.take(None));
        let mut held: Vec<_> = (0..MAX_OF_ONE).map(|_| places.take(node("a"))).collect();
        assert!(held.iter().all(|place| !place.lost.is_cancelled()));
        held.push(places.take(node("a")));
        let lost: Vec<bool> = held.iter().map(|place| place.lost.is_cancelled()).collect();
        assert!(lost[0] && lost.iter().filter(|&&lost| lost).count() == 1);
        held.remove(3); // one that goes makes room
        held.push(places.take(node("a")));
        assert_eq!(held.iter().filter(|place| place.lost.is_cancelled()).count(), 1);
        assert!(!other.lost.is_cancelled() && !nobody.lost.is_cancelled());
        drop((held, other, nobody));
        assert!(places.0.lock().unwrap().is_empty());
    }

    #[test]
    fn those_who_enrol_are_bounded_together() {
        let places = Places::default();
        let held: Vec<_> = (0..=MAX_OF_NOBODY).map(|_| places.take(None)).collect();
        assert_eq!(held.iter().filter(|place| place.lost.is_cancelled()).count(), 1);
    }
}
