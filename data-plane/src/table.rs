//! The table: everything that a node must know to serve a token, in memory.
//!
//! Read by every request, written by [`sync`](crate::sync) alone. A request holds handles (`Arc`s)
//! to what it found; nothing on its path waits for the control plane, and a look-up allocates
//! nothing. There are two ways to change the table: a [`Delta`] changes single records in place,
//! revocations first; a [`Staging`] is a whole new table, built beside the live one and swapped in
//! at once. Either way the change is visible to look-ups, and the requests that it concerns are
//! cut, before the call returns: what is acknowledged afterwards is never served again.

mod apply;
mod approval_questions;
mod change;
mod checksum;
mod cut;
mod entry;
mod exchanged;
mod generation;
mod lease;
mod limit_slices;
mod rejected_credentials;
mod staging;
mod state;
mod token;
mod trust;
mod waiters;
mod wall_clock;

use std::{
    collections::{BTreeMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use seks_policy::Policies;
use seks_protocol::{SessionError, SessionKey, TableChecksum};
use seks_trust::Rejected;
use seks_types::{
    id::{AgentName, CredentialName, ServiceName, TenantName},
    token::Digest,
};

pub(crate) use self::generation::Schemes;
pub use self::{
    apply::ApplyError,
    approval_questions::{ApprovalQuestions, ApprovalState, RefusedRequest},
    change::{Change, ChecksumUpdate, Delta, RecordKind, TokenRecord},
    cut::{Cut, CutReason, Reevaluate, Verdict},
    entry::{AgentEntry, CredentialEntry, OpenError, ServiceEntry},
    exchanged::Exchanged,
    lease::Lease,
    limit_slices::{ConcurrentSlot, Counted, LimitSlices, OverLimit, Taken},
    rejected_credentials::{RejectedCredential, RejectedCredentials},
    staging::Staging,
    state::{AgentState, RecordCell, StillCompiling, TenantState},
    token::{Grant, RevokedEntry, TokenEntry},
    trust::{Trust, TrustRecord, UnknownKey, UnknownKeys},
    wall_clock::WallClock,
};
use self::{exchanged::ExchangedTokens, generation::Generation};

/// What a digest is to this node.
#[derive(Clone)]
pub enum Found {
    /// A token that is honoured, as far as the table goes: expiry and bindings are the caller's to
    /// check.
    Token(Arc<TokenEntry>),
    /// It was revoked not long ago.
    Revoked(Arc<RevokedEntry>),
    /// Not in the table, revoked and expired since, or not enforceable by this node.
    Unknown,
}

/// The table of one node. Shared as `Arc<Table>`.
pub struct Table {
    current: ArcSwap<Generation>,
    /// One writer at a time; readers never take it.
    writer: Mutex<()>,
    /// Encrypts credentials in this process's memory. A new key is generated at every start.
    memory_key: Arc<SessionKey>,
    generations: AtomicU64,
    lease: Lease,
    wall: WallClock,
    rejected_credentials: RejectedCredentials,
    exchanged: ExchangedTokens,
    unknown_keys: UnknownKeys,
    limit_slices: LimitSlices,
    approvals: ApprovalQuestions,
}

impl Table {
    /// An empty table: no epoch, revision 0, no lease. It refuses everything.
    ///
    /// # Errors
    /// When the operating system has no randomness for the memory key.
    pub fn new() -> Result<Self, SessionError> {
        Ok(Self {
            current: ArcSwap::from_pointee(Generation::new(0, "", 0, 0)),
            writer: Mutex::new(()),
            memory_key: Arc::new(SessionKey::generate()?),
            generations: AtomicU64::new(1),
            lease: Lease::default(),
            wall: WallClock::default(),
            rejected_credentials: RejectedCredentials::default(),
            exchanged: ExchangedTokens::default(),
            unknown_keys: UnknownKeys::default(),
            limit_slices: LimitSlices::default(),
            approvals: ApprovalQuestions::default(),
        })
    }

    /// What `digest` is. Two atomic operations and one hash-map read; no allocation.
    #[must_use]
    pub fn find(&self, digest: &Digest) -> Found {
        self.find_in(&self.current.load(), digest)
    }

    fn find_in(&self, generation: &Generation, digest: &Digest) -> Found {
        match generation.find(digest) {
            Found::Unknown => self.exchanged.find(generation, digest),
            found => found,
        }
    }

    /// The trusts that name this issuer, of every tenant.
    #[must_use]
    pub fn trusts(&self, issuer: &str) -> Vec<Arc<TokenEntry>> {
        self.current.load().trusts(issuer)
    }

    /// Honours what was presented, whose SHA-256 is `digest`, as a token exchanged by the trust
    /// `parent`. What it says was verified by the caller.
    ///
    /// # Errors
    /// When the trust does not admit it, or there is no such agent.
    pub fn admit_exchanged(
        &self,
        digest: Digest,
        parent: &Arc<TokenEntry>,
        exchanged: Exchanged,
    ) -> Result<Arc<TokenEntry>, Rejected> {
        self.exchanged.insert(&self.current.load(), digest, parent, exchanged)
    }

    /// Keys that issuers' tokens name and no trust has.
    #[must_use]
    pub fn unknown_keys(&self) -> &UnknownKeys {
        &self.unknown_keys
    }

    /// Questions about approvals.
    #[must_use]
    pub fn approvals(&self) -> &ApprovalQuestions {
        &self.approvals
    }

    /// What this node may spend of each limit.
    #[must_use]
    pub fn limit_slices(&self) -> &LimitSlices {
        &self.limit_slices
    }

    /// An agent by name. From a [`TokenEntry`], [`TokenEntry::agent`] is the shorter way.
    #[must_use]
    pub fn agent(&self, tenant: &TenantName, name: &AgentName) -> Option<Arc<AgentEntry>> {
        self.current.load().agent(tenant, name)
    }

    /// A service by name. For one that a token grants, [`TokenEntry::grant`] is the shorter way.
    #[must_use]
    pub fn service(&self, tenant: &TenantName, name: &ServiceName) -> Option<Arc<ServiceEntry>> {
        self.current.load().service(tenant, name)
    }

    /// The schemes of `Authorization` that services of this name take, in any tenant.
    pub(crate) fn schemes(&self, service: &str) -> Option<Schemes> {
        self.current.load().schemes(service)
    }

    /// The first of a tenant's services that `is` says yes to. Looks at all of them: not for the
    /// path of a request.
    #[must_use]
    pub fn service_where(&self, tenant: &TenantName, is: impl Fn(&ServiceEntry) -> bool) -> Option<Arc<ServiceEntry>> {
        self.current.load().service_where(tenant, is)
    }

    /// A credential by name, sealed in memory.
    #[must_use]
    pub fn credential(&self, tenant: &TenantName, name: &CredentialName) -> Option<Arc<CredentialEntry>> {
        self.current.load().credential(tenant, name)
    }

    /// The names of all tenants' services.
    pub(crate) fn service_names(&self) -> HashSet<ServiceName> {
        self.current.load().service_names()
    }

    /// Whether all that it holds is of one tenant.
    #[must_use]
    pub(crate) fn is_of_one_tenant(&self) -> bool {
        self.current.load().tenants() <= 1
    }

    /// A tenant's compiled policies. `None` (no such tenant, or policies that this node can't
    /// compile) denies.
    #[must_use]
    pub fn policies(&self, tenant: &TenantName) -> Option<Arc<Policies>> {
        self.current.load().policies(tenant)
    }

    /// How long the node may serve.
    #[must_use]
    pub fn lease(&self) -> &Lease {
        &self.lease
    }

    /// What time it is, for what expires.
    #[must_use]
    pub fn wall(&self) -> &WallClock {
        &self.wall
    }

    /// Credentials that upstreams refuse.
    #[must_use]
    pub fn rejected_credentials(&self) -> &RejectedCredentials {
        &self.rejected_credentials
    }

    /// The revision that look-ups answer from.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.current.load().revision()
    }

    /// The epoch of the store that [`revision`](Self::revision) counts in; `""` before the first
    /// snapshot.
    #[must_use]
    pub fn epoch(&self) -> Arc<str> {
        self.current.load().epoch().clone()
    }

    /// What its records add up to; `None` when it isn't the table of any revision.
    #[must_use]
    pub fn sum(&self) -> Option<TableChecksum> {
        let current = self.current.load();
        if current.epoch().is_empty() { None } else { current.checksum().sum() }
    }

    /// Whether a snapshot has ever been loaded.
    #[must_use]
    pub fn is_loaded(&self) -> bool {
        !self.current.load().epoch().is_empty()
    }

    /// Tokens that are honoured.
    #[must_use]
    pub fn len(&self) -> usize {
        self.current.load().len()
    }

    /// Whether there is no token at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Registers a request for being cut: call it before the request's last check, look at
    /// [`Cut::reason`] as that last check, then poll the `Cut` beside the exchange. A revocation is
    /// either seen by the check or wakes the `Cut`.
    ///
    /// Where the request was decided on more than its token, [`Cut::with_decision`] says since
    /// when, and how it is decided again.
    ///
    /// `None` when the token doesn't grant `service` (any more).
    #[must_use]
    pub fn register(self: &Arc<Self>, digest: Digest, token: &Arc<TokenEntry>, service: &ServiceName) -> Option<Cut> {
        Cut::new(self.clone(), digest, token.clone(), service)
    }

    /// Wakes every registered request so that it looks at the lease: called when the lease ends or
    /// is taken away.
    pub fn wake_all(&self) {
        self.current.load().wake_all();
    }

    /// Applies `delta` in place.
    ///
    /// # Errors
    /// When it doesn't follow what is applied; the table is as before then.
    pub fn apply(&self, delta: Delta) -> Result<(), ApplyError> {
        let _writer = self.writer.lock();
        apply::apply(&self.current.load_full(), &self.memory_key, delta)
    }

    /// Applies only what takes rights away, without moving the revision: what a delta that
    /// overtakes a snapshot may do to the table that the snapshot will replace.
    pub fn narrow(&self, changes: &[Change]) {
        let _writer = self.writer.lock();
        apply::narrow(&self.current.load_full(), changes);
    }

    /// An empty table at (`epoch`, `revision`) to be filled and [`swap`](Self::swap)ped in, with
    /// room for `tokens`.
    #[must_use]
    pub fn stage(&self, epoch: &str, revision: u64, tokens: usize) -> Staging {
        let number = self.generations.fetch_add(1, Relaxed);
        let staged = Generation::new(number, epoch, revision, tokens);
        Staging::new(staged, self.memory_key.clone(), self.current())
    }

    /// Replaces the whole table, and cuts every request whose rights are not in the new one. The
    /// old table is returned, so that the caller can drop it where freeing for a hundred
    /// milliseconds does not delay others.
    ///
    /// # Errors
    /// [`ApplyError::Backwards`] for a lower revision of the same epoch. The table is then
    /// unchanged.
    pub fn swap(&self, staging: Staging) -> Result<impl Sized + use<>, ApplyError> {
        let _writer = self.writer.lock();
        let (old, new) = (self.current.load_full(), staging.finish());
        if old.epoch() == new.epoch() && new.revision() < old.revision() {
            return Err(ApplyError::Backwards { applied: old.revision(), offered: new.revision() });
        }
        self.current.store(Arc::new(new));
        old.superseded();
        Ok(old)
    }

    /// A whole table at once: [`stage`](Self::stage), [`Staging::put`] each, [`swap`](Self::swap).
    ///
    /// # Errors
    /// As [`swap`](Self::swap).
    pub fn load(&self, epoch: &str, revision: u64, changes: Vec<Change>) -> Result<(), ApplyError> {
        let mut staging = self.stage(epoch, revision, changes.len());
        for change in changes {
            staging.put(change)?;
        }
        self.swap(staging).map(drop)
    }

    /// Forgets tombstones older than `now` (unix seconds) and shared parts that nothing uses any
    /// more.
    pub fn sweep(&self, now: i64) {
        let _writer = self.writer.lock();
        self.current.load().sweep(now);
        self.exchanged.sweep(now);
    }

    fn current(&self) -> Arc<Generation> {
        self.current.load_full()
    }
}

/// An agent's attributes: its Cedar tags.
pub type Attributes = BTreeMap<String, String>;

/// Additional data of a credential that is sealed in this process's memory.
fn memory_aad(tenant: &TenantName, name: &CredentialName, version: u32) -> Box<[u8]> {
    seks_protocol::credential_aad("memory", tenant.as_str(), name.as_str(), version).into()
}

#[cfg(test)]
pub(crate) mod tests;
