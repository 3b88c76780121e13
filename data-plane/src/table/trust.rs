//! Trusts: records of the table with a digest that is nobody's token.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering::Relaxed},
    },
};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use seks_trust::{KeySet, TrustRule};
use seks_types::{id::TenantName, token::Digest};
use tokio::sync::Notify;

/// How often a node reports a key that a trust does not have, for each trust.
const REPORT_SECONDS: i64 = 60;
/// Reports that wait for the stream.
const MAX_REPORTS: usize = 64;

/// A trust as it arrives.
pub struct TrustRecord {
    /// What it accepts.
    pub rule: TrustRule,
    /// The issuer's keys.
    pub keys: KeySet,
}

/// A trust that is in force.
pub struct Trust {
    /// The digest of its record.
    pub digest: Digest,
    /// What it accepts.
    pub rule: TrustRule,
    /// The issuer's keys. New ones are added in place, so that requests in flight are not
    /// disturbed.
    keys: ArcSwap<KeySet>,
    /// When an unknown key was last reported, in Unix seconds.
    reported_at: AtomicI64,
}

impl Trust {
    pub(super) fn new(digest: Digest, record: TrustRecord) -> Self {
        Self { digest, rule: record.rule, keys: ArcSwap::from_pointee(record.keys), reported_at: AtomicI64::new(0) }
    }

    /// The issuer's keys.
    #[must_use]
    pub fn keys(&self) -> Arc<KeySet> {
        self.keys.load_full()
    }

    /// Takes the keys of `new` if that differs in nothing else and takes no key away.
    pub(super) fn take_keys(&self, new: &Self) -> bool {
        let keys = new.keys();
        let more = self.rule == new.rule && keys.has_all_of(&self.keys());
        if more {
            self.keys.store(keys);
        }
        more
    }
}

/// A key that a token named and its trust does not have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownKey {
    /// The tenant of the trust.
    pub tenant: TenantName,
    /// The id of the trust's record.
    pub trust: String,
}

/// What is to be reported to the control plane, so that it fetches an issuer's keys.
#[derive(Default)]
pub struct UnknownKeys {
    waiting: Mutex<VecDeque<UnknownKey>>,
    news: Notify,
}

impl UnknownKeys {
    /// A token named a key that `trust` does not have. Each trust is reported once a minute at
    /// most.
    pub fn report(&self, (tenant, id): (&TenantName, &str), trust: &Trust, now: i64) {
        if now.saturating_sub(trust.reported_at.load(Relaxed)) < REPORT_SECONDS {
            return;
        }
        trust.reported_at.store(now, Relaxed);
        let mut waiting = self.waiting.lock();
        if waiting.len() < MAX_REPORTS {
            waiting.push_back(UnknownKey { tenant: tenant.clone(), trust: id.to_owned() });
            self.news.notify_one();
        }
    }

    /// The next one; waits for it. Dropped while it waits, it has taken nothing.
    pub async fn next(&self) -> UnknownKey {
        loop {
            let news = self.news.notified();
            if let Some(unknown) = self.waiting.lock().pop_front() {
                return unknown;
            }
            news.await;
        }
    }
}
