//! Cache of decisions.
//!
//! A decision is cached only when it provably depends on nothing but its key. A plan belongs to one
//! agent with its attributes, one service, one method and one set of policies. Cedar receives only
//! those parts of a call that the plan's policies mention. So the key is the plan and these parts:
//! path, query, source and body facts. Plans that mention the token's id or age, or its trust, are
//! never cached.
//!
//! A lookup costs 100 to 200 ns, so only plans that cost more than [`MIN_CACHED_COST`] are cached.

use std::{
    hash::{BuildHasher as _, Hash, Hasher},
    net::IpAddr,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    time::Duration,
};

use dashmap::DashMap;
use seks_service::request::BodyFacts;

use super::{Body, Call, Decision, identity_hasher::IdentityHasher, mentions::Mentions};

/// Cheaper decisions are computed again.
pub(super) const MIN_CACHED_COST: Duration = Duration::from_micros(2);
/// Most bytes of a tenant's cached decisions. Above the limit all are dropped.
const MAX_BYTES: usize = 1024 * 1024;
/// Bytes of an entry, without the texts in its key.
const ENTRY_BYTES: usize = 256;

/// Identifies one plan. No two plans of a process have the same one.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct PlanId(pub(super) u64);

/// A tenant's cached decisions.
#[derive(Default)]
pub(super) struct DecisionCache {
    /// Entries by a keyed hash of the key. An entry holds its key, so a hash collision is harmless.
    entries: DashMap<u64, Entry, std::hash::BuildHasherDefault<IdentityHasher>>,
    bytes: AtomicUsize,
    hasher: foldhash::quality::RandomState,
}

/// The question that a cached answer belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Question {
    Decide,
    NeedsBody,
}

/// The answer to a [`Question`].
#[derive(Clone)]
pub(super) enum Answer {
    Decision(Decision),
    NeedsBody(bool),
}

struct Entry {
    plan: PlanId,
    question: Question,
    path: Box<str>,
    query: Box<str>,
    source: Option<IpAddr>,
    body: CachedBody,
    mcp: bool,
    answer: Answer,
}

#[derive(PartialEq, Eq, Hash)]
enum CachedBody {
    NotRead,
    Absent,
    Opaque,
    Inspected(BodyFacts),
}

/// A key that borrows from a call.
pub(super) struct Key<'a> {
    plan: PlanId,
    question: Question,
    path: &'a str,
    query: &'a str,
    source: Option<IpAddr>,
    body: Body<'a>,
    mcp: bool,
}

impl<'a> Key<'a> {
    /// `None` when the decision depends on more than a key holds.
    pub(super) fn new(plan: PlanId, question: Question, mentions: Mentions, call: &Call<'a>) -> Option<Self> {
        if mentions.any(Mentions::TOKEN) || mentions.any(Mentions::TRUST) {
            return None;
        }
        let mentioned = |part, text: &'a str| if mentions.any(part) { text } else { "" };
        Some(Self {
            plan,
            question,
            path: mentioned(Mentions::PATH, call.path),
            query: mentioned(Mentions::QUERY, call.query),
            source: mentions.any(Mentions::SOURCE).then_some(call.source),
            body: if mentions.any(Mentions::BODY) || mentions.any(Mentions::MCP) { call.body } else { Body::NotRead },
            mcp: call.mcp && mentions.any(Mentions::MCP),
        })
    }

    fn matches(&self, entry: &Entry) -> bool {
        let body = match (self.body, &entry.body) {
            (Body::NotRead, CachedBody::NotRead)
            | (Body::Absent, CachedBody::Absent)
            | (Body::Opaque, CachedBody::Opaque) => true,
            (Body::Inspected(facts), CachedBody::Inspected(cached)) => facts == cached,
            _ => false,
        };
        let own = (self.plan, self.question, self.path, self.query, self.source, self.mcp);
        body && own == (entry.plan, entry.question, &*entry.path, &*entry.query, entry.source, entry.mcp)
    }
}

impl Hash for Key<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.plan, self.question, self.path, self.query, self.source, self.mcp).hash(state);
        std::mem::discriminant(&self.body).hash(state);
        if let Body::Inspected(facts) = self.body {
            facts.hash(state);
        }
    }
}

/// Bytes of a body's texts in an entry.
fn text_bytes(body: Body<'_>) -> usize {
    let Body::Inspected(facts) = body else { return 0 };
    let mcp = facts.mcp.as_ref().map_or(0, |mcp| mcp.method.len() + mcp.name.as_ref().map_or(0, String::len));
    facts.model.as_ref().map_or(0, String::len) + mcp + facts.fields.text_bytes()
}

impl DecisionCache {
    pub(super) fn get(&self, key: &Key<'_>) -> Option<Answer> {
        let entry = self.entries.get(&self.hasher.hash_one(key))?;
        key.matches(&entry).then(|| entry.answer.clone())
    }

    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        self.entries.iter().map(|e| ENTRY_BYTES + e.path.len() + e.query.len()).sum()
    }

    pub(super) fn insert(&self, key: &Key<'_>, answer: Answer) {
        let bytes = ENTRY_BYTES + key.path.len() + key.query.len() + text_bytes(key.body);
        if self.bytes.fetch_add(bytes, Relaxed) + bytes > MAX_BYTES {
            self.entries.clear();
            self.bytes.store(bytes, Relaxed);
        }
        let body = match key.body {
            Body::NotRead => CachedBody::NotRead,
            Body::Absent => CachedBody::Absent,
            Body::Opaque => CachedBody::Opaque,
            Body::Inspected(facts) => CachedBody::Inspected(facts.clone()),
        };
        let (path, query) = (key.path.into(), key.query.into());
        let (plan, question, source, mcp) = (key.plan, key.question, key.source, key.mcp);
        let entry = Entry { plan, question, path, query, source, body, mcp, answer };
        self.entries.insert(self.hasher.hash_one(key), entry);
    }
}
