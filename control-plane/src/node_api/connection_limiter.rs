//! Bounds the connections of one peer. A peer that opens thousands evicts only its own.

use std::{
    collections::{HashMap, VecDeque},
    net::IpAddr,
    sync::Arc,
};

use parking_lot::Mutex;
use seks_runtime::connections::{Connections, ListenerSlot};
use tokio_util::sync::CancellationToken;

use crate::authority::Identity;

/// Connections with one certificate's name. An honest node has one, and another for a moment when
/// it renews its certificate or comes back; those that a cut link has left behind are noticed
/// within a minute. A new one is the better one: the oldest gives way.
const MAX_IDENTIFIED: usize = 8;
/// Connections without a certificate, in total and from one source address. A fleet that enrols at
/// once needs many for a moment, and they end faster than they arrive. The oldest one is evicted.
/// Connections with a certificate never are.
const MAX_ANONYMOUS: usize = 1024;
const MAX_ANONYMOUS_PER_SOURCE: usize = 256;

/// The open connections, by peer.
#[derive(Clone)]
pub(super) struct ConnectionLimiter {
    identified: Arc<Mutex<HashMap<Identity, VecDeque<CancellationToken>>>>,
    anonymous: Connections,
}

impl Default for ConnectionLimiter {
    fn default() -> Self {
        let anonymous = Connections::new(MAX_ANONYMOUS, MAX_ANONYMOUS_PER_SOURCE);
        Self { identified: Arc::default(), anonymous }
    }
}

impl ConnectionLimiter {
    /// A slot for another connection of `who`, or of an unknown peer at `source`. The slot is
    /// released when it is dropped.
    pub(super) async fn admit(&self, who: Option<Identity>, source: IpAddr) -> ConnectionSlot {
        match who {
            Some(who) => self.admit_identified(who),
            None => ConnectionSlot::Anonymous(self.anonymous.admit(source).await),
        }
    }

    fn admit_identified(&self, who: Identity) -> ConnectionSlot {
        let evicted = CancellationToken::new();
        let mut known = self.identified.lock();
        let of_one = known.entry(who.clone()).or_default();
        of_one.push_back(evicted.clone());
        let oldest = (of_one.len() > MAX_IDENTIFIED).then(|| of_one.pop_front()).flatten();
        drop(known);
        if let Some(oldest) = oldest {
            oldest.cancel();
        }
        ConnectionSlot::Identified(IdentifiedSlot { limiter: self.clone(), who, evicted })
    }

    fn release(&self, who: &Identity, evicted: &CancellationToken) {
        let mut known = self.identified.lock();
        if let Some(of_one) = known.get_mut(who) {
            of_one.retain(|token| token != evicted);
            if of_one.is_empty() {
                known.remove(who);
            }
        }
    }
}

/// A connection's slot.
pub(super) enum ConnectionSlot {
    /// Of a peer with a certificate.
    Identified(IdentifiedSlot),
    /// Of a peer without one.
    Anonymous(ListenerSlot),
}

/// The slot of a peer with a certificate.
pub(super) struct IdentifiedSlot {
    limiter: ConnectionLimiter,
    who: Identity,
    evicted: CancellationToken,
}

impl ConnectionSlot {
    /// Waits until a newer connection has taken it.
    pub(super) async fn evicted(&self) {
        match self {
            Self::Identified(known) => known.evicted.cancelled().await,
            Self::Anonymous(slot) => slot.evicted().await,
        }
    }

    /// Whether the peer has shown no certificate.
    pub(super) fn is_anonymous(&self) -> bool {
        matches!(self, Self::Anonymous(_))
    }
}

impl Drop for IdentifiedSlot {
    fn drop(&mut self) {
        self.limiter.release(&self.who, &self.evicted);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(limiter: &ConnectionLimiter, id: &str) -> IdentifiedSlot {
        match limiter.admit_identified(Identity::Node(id.parse().unwrap())) {
            ConnectionSlot::Identified(known) => known,
            ConnectionSlot::Anonymous(_) => unreachable!(),
        }
    }

    #[tokio::test]
    async fn the_oldest_gives_way_and_nobody_elses() {
        let limiter = ConnectionLimiter::default();
        let (other, nobody) = (take(&limiter, "b"), limiter.admit(None, [127, 0, 0, 1].into()).await);
        let mut held: Vec<_> = (0..MAX_IDENTIFIED).map(|_| take(&limiter, "a")).collect();
        assert!(held.iter().all(|slot| !slot.evicted.is_cancelled()));
        held.push(take(&limiter, "a"));
        let evicted: Vec<bool> = held.iter().map(|slot| slot.evicted.is_cancelled()).collect();
        assert!(evicted[0] && evicted.iter().filter(|&&evicted| evicted).count() == 1);
        held.remove(3); // one that goes makes room
        held.push(take(&limiter, "a"));
        assert_eq!(held.iter().filter(|slot| slot.evicted.is_cancelled()).count(), 1);
        assert!(!other.evicted.is_cancelled() && nobody.is_anonymous());
        drop((held, other, nobody));
        assert!(limiter.identified.lock().is_empty() && limiter.anonymous.is_empty());
    }

    #[tokio::test]
    async fn those_who_enrol_are_bounded_together_and_by_source() {
        let limiter = ConnectionLimiter::default();
        let mut held = Vec::new();
        for source in 0..8 {
            for _ in 0..=MAX_ANONYMOUS_PER_SOURCE {
                held.push(limiter.admit(None, [127, 0, 0, source].into()).await);
            }
        }
        assert_eq!(limiter.anonymous.len(), MAX_ANONYMOUS);
    }
}
