//! Data keys that a key service has unwrapped, so that a credential that goes to a thousand nodes
//! costs one call.
//!
//! Only keys of providers that can't answer at once are kept; a local key is faster than the cache.
//! What is kept is what nodes hold anyway: keys of credentials that are being sent. It is wiped
//! when it is evicted.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{sync::Semaphore, time::Instant};

use super::{SealError, provider::Dek};

/// Most data keys that are kept. The oldest goes first.
const MAX_KEYS: usize = 16 * 1024;
/// Most calls of the key service at a time.
const CONCURRENT_CALLS: usize = 8;
/// How long a failure is remembered. Until then no call waits for the key service.
const FAILURE_TTL: Duration = Duration::from_secs(10);

/// The cache. Keys are the wrapped data keys, which are unique.
pub(super) struct DekCache {
    keys: Mutex<Keys>,
    pub(super) calls: Semaphore,
}

#[derive(Default)]
struct Keys {
    known: HashMap<Box<[u8]>, Entry>,
    /// In the order in which they came.
    order: VecDeque<Box<[u8]>>,
}

enum Entry {
    Unwrapped(Dek),
    /// The key service failed, and isn't asked before then.
    Failed {
        until: Instant,
        reason: String,
    },
}

impl Default for DekCache {
    fn default() -> Self {
        Self { keys: Mutex::default(), calls: Semaphore::new(CONCURRENT_CALLS) }
    }
}

impl DekCache {
    /// What is known of a wrapped key; `None`: ask the key service.
    pub(super) fn get(&self, wrapped: &[u8]) -> Option<Result<Dek, SealError>> {
        match self.keys.lock().known.get(wrapped)? {
            Entry::Unwrapped(dek) => Some(Ok(dek.clone())),
            Entry::Failed { until, reason } => {
                (Instant::now() < *until).then(|| Err(SealError::KekUnavailable(reason.clone())))
            }
        }
    }

    /// Remembers what the key service has said.
    pub(super) fn put(&self, wrapped: &[u8], answer: &Result<Dek, SealError>) {
        let entry = match answer {
            Ok(dek) => Entry::Unwrapped(dek.clone()),
            Err(error) => Entry::Failed { until: Instant::now() + FAILURE_TTL, reason: error.to_string() },
        };
        let mut keys = self.keys.lock();
        if keys.known.insert(wrapped.into(), entry).is_none() {
            keys.order.push_back(wrapped.into());
            if keys.order.len() > MAX_KEYS
                && let Some(oldest) = keys.order.pop_front()
            {
                keys.known.remove(&oldest);
            }
        }
    }
}
