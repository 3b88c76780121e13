//! One generation of the table: from one snapshot to the next. Its maps are changed in place by
//! deltas; a snapshot makes a new one.

use std::{
    collections::{HashMap, HashSet},
    hash::{BuildHasherDefault, Hash, Hasher},
    sync::{
        Arc, Weak,
        atomic::{
            AtomicU64,
            Ordering::{Acquire, Release, SeqCst},
        },
    },
};

use dashmap::DashMap;
use ipnet::IpNet;
use parking_lot::{Mutex, MutexGuard, RwLock};
use seks_policy::Policies;
use seks_runtime::memory_release::records_deleted;
use seks_service::Service;
use seks_types::{
    id::{AgentName, CredentialName, ServiceName, TenantName},
    token::Digest,
};

use super::{
    Found, TokenRecord,
    checksum::Checksum,
    entry::{AgentEntry, CredentialEntry, ServiceEntry},
    state::{AgentState, RecordCell, Requests, TenantState},
    token::{Grant, Id, Origin, RevokedEntry, SharedGrants, TokenEntry},
    trust::Trust,
};

/// A digest is a hash, so its first bytes are used as the map's hash. An attacker cannot choose
/// them without breaking SHA-256, and only issued tokens are inserted.
#[derive(Default)]
pub(super) struct DigestHasher(u64);

impl Hasher for DigestHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        if let Some(first) = bytes.first_chunk::<8>() {
            self.0 = u64::from_ne_bytes(*first);
        }
    }
}

/// [`Digest`] with a `Hash` that hands its bytes to the hasher once and plainly.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(transparent)]
pub(super) struct DigestKey(pub(super) Digest);

impl Hash for DigestKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write(&self.0.0);
    }
}

pub(super) type DigestMap<T> = DashMap<DigestKey, Arc<T>, BuildHasherDefault<DigestHasher>>;

/// An empty one with few shards, for what is seldom written.
pub(super) fn digest_map<T>() -> DigestMap<T> {
    DashMap::with_hasher_and_shard_amount(BuildHasherDefault::default(), 4)
}

/// Enough that a writer and many readers seldom meet; a power of two.
const SHARDS: usize = 64;

type TermsKey = (Vec<(ServiceName, CredentialName)>, Vec<IpNet>);
/// Names are looked up with every token that is put: the standard library's hasher would cost three
/// times as much.
type Map<K, V> = HashMap<K, V, foldhash::quality::RandomState>;
type Names<N, T> = RwLock<Map<N, Arc<T>>>;

/// Schemes of `Authorization`.
pub(crate) type Schemes = Arc<[Box<str>]>;

/// What a tenant holds, by name.
pub(super) struct Directory {
    pub(super) tenant: Arc<TenantState>,
    agents: Names<AgentName, AgentState>,
    services: Names<ServiceName, RecordCell<ServiceName, ServiceEntry>>,
    credentials: Names<CredentialName, RecordCell<CredentialName, CredentialEntry>>,
    terms: Mutex<Map<TermsKey, Arc<SharedGrants>>>,
}

pub(super) struct Generation {
    number: u64,
    epoch: Arc<str>,
    revision: AtomicU64,
    tokens: DigestMap<TokenEntry>,
    revoked: DigestMap<RevokedEntry>,
    /// Tokens that this node can't enforce, and whose they are.
    refused: DigestMap<TenantName>,
    /// Trusts by their issuer.
    trusts: RwLock<Map<Box<str>, Vec<Arc<TokenEntry>>>>,
    directories: RwLock<Map<TenantName, Arc<Directory>>>,
    schemes: RwLock<Map<Box<str>, Schemes>>,
    checksum: Mutex<Checksum>,
}

impl Generation {
    pub(super) fn new(number: u64, epoch: &str, revision: u64, tokens: usize) -> Self {
        let map = |capacity| {
            DashMap::with_capacity_and_hasher_and_shard_amount(capacity, BuildHasherDefault::default(), SHARDS)
        };
        Self {
            number,
            epoch: epoch.into(),
            revision: AtomicU64::new(revision),
            tokens: map(tokens),
            revoked: DashMap::with_hasher_and_shard_amount(BuildHasherDefault::default(), SHARDS),
            refused: DashMap::with_hasher_and_shard_amount(BuildHasherDefault::default(), SHARDS),
            trusts: RwLock::default(),
            directories: RwLock::default(),
            schemes: RwLock::default(),
            checksum: Mutex::default(),
        }
    }

    /// What it adds up to. For the writer: no request comes near it.
    pub(super) fn checksum(&self) -> MutexGuard<'_, Checksum> {
        self.checksum.lock()
    }

    /// Distinguishes generations within a process.
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    pub(super) fn epoch(&self) -> &Arc<str> {
        &self.epoch
    }

    pub(super) fn revision(&self) -> u64 {
        self.revision.load(Acquire)
    }

    /// The last step of a delta: everything that it did is visible before.
    pub(super) fn advance(&self, revision: u64) {
        self.revision.store(revision, Release);
    }

    pub(super) fn len(&self) -> usize {
        self.tokens.len()
    }

    pub(super) fn find(&self, digest: &Digest) -> Found {
        let place = DigestKey(*digest);
        if let Some(token) = self.tokens.get(&place) {
            return Found::Token(Arc::clone(token.value()));
        }
        self.revoked.get(&place).map_or(Found::Unknown, |r| Found::Revoked(Arc::clone(r.value())))
    }

    pub(super) fn directory(&self, tenant: &TenantName) -> Option<Arc<Directory>> {
        self.directories.read().get(tenant).cloned()
    }

    /// The directory of `tenant`, made when there is none: records may arrive in any order.
    pub(super) fn directory_or_new(&self, tenant: &TenantName) -> Arc<Directory> {
        if let Some(known) = self.directory(tenant) {
            return known;
        }
        self.directories.write().entry(tenant.clone()).or_insert_with(|| Directory::new(tenant)).clone()
    }

    pub(super) fn service_names(&self) -> HashSet<ServiceName> {
        let directories: Vec<_> = self.directories.read().values().cloned().collect();
        let names = |directory: &Arc<Directory>| -> Vec<ServiceName> {
            let services = directory.services.read();
            services.iter().filter(|(_, slot)| !slot.is_empty()).map(|(name, _)| name.clone()).collect()
        };
        directories.iter().flat_map(names).collect()
    }

    pub(super) fn tenants(&self) -> usize {
        self.directories.read().len()
    }

    pub(super) fn agent(&self, tenant: &TenantName, name: &AgentName) -> Option<Arc<AgentEntry>> {
        self.directory(tenant)?.agents.read().get(name)?.agent.get()
    }

    pub(super) fn service(&self, tenant: &TenantName, name: &ServiceName) -> Option<Arc<ServiceEntry>> {
        self.directory(tenant)?.services.read().get(name)?.get()
    }

    /// The schemes that services of this name accept, across tenants: without a token the tenant is
    /// unknown. Deleted services count until the next snapshot.
    pub(super) fn schemes(&self, service: &str) -> Option<Schemes> {
        self.schemes.read().get(service).cloned()
    }

    /// Remembers what a service takes.
    pub(super) fn add_schemes(&self, service: &Service) {
        let known = self.schemes(service.name.as_str()).unwrap_or_default();
        let new = service.auth_schemes().into_iter().filter(|new| !known.iter().any(|k| k.eq_ignore_ascii_case(new)));
        let new: Vec<Box<str>> = new.map(Into::into).collect();
        if !new.is_empty() {
            let all = known.iter().cloned().chain(new).collect();
            self.schemes.write().insert(service.name.as_str().into(), all);
        }
    }

    pub(super) fn service_where(
        &self,
        tenant: &TenantName,
        is: impl Fn(&ServiceEntry) -> bool,
    ) -> Option<Arc<ServiceEntry>> {
        self.directory(tenant)?.services.read().values().filter_map(|slot| slot.get()).find(|service| is(service))
    }

    pub(super) fn credential(&self, tenant: &TenantName, name: &CredentialName) -> Option<Arc<CredentialEntry>> {
        self.directory(tenant)?.credentials.read().get(name)?.get()
    }

    pub(super) fn policies(&self, tenant: &TenantName) -> Option<Arc<Policies>> {
        self.directory(tenant)?.tenant.policies.get()
    }

    /// Honours a token from now on. One that was revoked stays so: a digest is never issued twice.
    pub(super) fn put_token(&self, record: TokenRecord) {
        let place = DigestKey(record.digest);
        if self.revoked.contains_key(&place) {
            return;
        }
        let directory = self.directory_or_new(&record.tenant);
        let origin = match record.trust {
            Some(trust) => Origin::Trust(Box::new(Trust::new(record.digest, *trust))),
            None => Origin::Issued,
        };
        let terms = match (&origin, record.certificate) {
            (Origin::Issued, None) => directory.terms(record.grants, record.cidrs),
            _ => directory.own_terms(&record.grants, &record.cidrs, record.certificate, origin),
        };
        let entry = Arc::new(TokenEntry {
            agent: directory.agent_slot(&record.agent),
            terms,
            issued_at: record.issued_at,
            expires_at: record.expires_at,
            id: Id::new(&record.id),
            in_flight: 0.into(),
            cut: false.into(),
        });
        if entry.trust().is_some() && !self.put_trust(&place, &entry) {
            return;
        }
        // Grants and networks of a token never change after issue; should they, requests under the
        // old ones end.
        match self.tokens.insert(place, entry) {
            Some(old) => cut_token(&old),
            None if self.refused.remove(&place).is_some() => {} // it is in the sum
            None => self.checksum().add(&record.tenant, &place.0),
        }
    }

    /// Puts a trust into the index. `false`: the one in force has taken its new keys, and stays.
    fn put_trust(&self, place: &DigestKey, new: &Arc<TokenEntry>) -> bool {
        let old = self.tokens.get(place).map(|old| Arc::clone(old.value()));
        if let (Some(old), Some(trust)) = (&old, new.trust())
            && old.has_terms_of(new)
            && old.trust().is_some_and(|old| old.take_keys(trust))
        {
            return false;
        }
        if let Some(old) = &old {
            self.remove_trust(old);
        }
        if let Some(trust) = new.trust() {
            self.trusts.write().entry(trust.rule.issuer.clone()).or_default().push(new.clone());
        }
        true
    }

    fn remove_trust(&self, old: &Arc<TokenEntry>) {
        let Some(trust) = old.trust() else { return };
        let mut trusts = self.trusts.write();
        if let Some(of_issuer) = trusts.get_mut(&trust.rule.issuer) {
            of_issuer.retain(|known| !Arc::ptr_eq(known, old));
            if of_issuer.is_empty() {
                trusts.remove(&trust.rule.issuer);
            }
        }
    }

    /// The trusts that name this issuer, of every tenant.
    pub(super) fn trusts(&self, issuer: &str) -> Vec<Arc<TokenEntry>> {
        self.trusts.read().get(issuer).cloned().unwrap_or_default()
    }

    /// Holds a token that this node can't enforce: it is in the sum, and is not honoured.
    pub(super) fn refuse_token(&self, digest: Digest, tenant: &TenantName) {
        let place = DigestKey(digest);
        if self.revoked.contains_key(&place) {
            return;
        }
        let held = self.refused.insert(place, Arc::new(tenant.clone())).is_some();
        match self.tokens.remove(&place) {
            Some((_, token)) => {
                self.remove_trust(&token);
                cut_token(&token);
            }
            None if held => {}
            None => self.checksum().add(tenant, &place.0),
        }
    }

    /// Stops honouring a token, and says so in `revoked` before it disappears from `tokens`: a
    /// look-up in between still finds it and is cut.
    pub(super) fn revoke_token(&self, digest: Digest, revoked: RevokedEntry) {
        let place = DigestKey(digest);
        if revoked.until != 0 {
            self.revoked.insert(place, Arc::new(revoked));
        }
        if let Some((_, token)) = self.tokens.remove(&place) {
            self.checksum().remove(token.tenant(), &place.0);
            self.remove_trust(&token);
            cut_token(&token);
            records_deleted(1);
        } else if let Some((_, tenant)) = self.refused.remove(&place) {
            self.checksum().remove(&tenant, &place.0);
        }
    }

    pub(super) fn remove_tenant(&self, tenant: &TenantName) {
        let directory = self.directories.write().remove(tenant);
        self.checksum().remove_tenant(tenant);
        let held = self.tokens.len();
        self.tokens.retain(|_, token| {
            let keep = token.tenant() != tenant;
            if !keep {
                token.cut.store(true, SeqCst);
            }
            keep
        });
        self.trusts.write().retain(|_, of_issuer| {
            of_issuer.retain(|trust| trust.tenant() != tenant);
            !of_issuer.is_empty()
        });
        self.revoked.retain(|_, revoked| revoked.tenant != *tenant);
        self.refused.retain(|_, of| **of != *tenant);
        records_deleted(held.saturating_sub(self.tokens.len()) as u64);
        if let Some(directory) = directory {
            directory.tenant.remove_policies();
            directory.tenant.changed();
        }
    }

    /// Another generation has taken its place: every request in flight looks there for what it was
    /// decided on.
    pub(super) fn superseded(&self) {
        records_deleted(self.tokens.len() as u64);
        let directories: Vec<_> = self.directories.read().values().cloned().collect();
        directories.iter().for_each(|d| d.tenant.changed());
    }

    pub(super) fn wake_all(&self) {
        let directories: Vec<_> = self.directories.read().values().cloned().collect();
        directories.iter().for_each(|d| d.wake_all());
    }

    /// Forgets tombstones that have run out, and slots and terms that nothing uses.
    pub(super) fn sweep(&self, now: i64) {
        let held = self.revoked.len();
        self.revoked.retain(|_, revoked| revoked.until > now);
        records_deleted(held.saturating_sub(self.revoked.len()) as u64);
        shrink_if_sparse(&self.tokens);
        shrink_if_sparse(&self.revoked);
        let directories: Vec<_> = self.directories.read().values().cloned().collect();
        for directory in directories {
            directory.sweep();
        }
    }
}

/// Capacity up to which a map keeps its room: 64 shards of 256 entries.
const KEPT_CAPACITY: usize = SHARDS * 256;

/// Gives back the room of what was removed, once that is most of it.
fn shrink_if_sparse<T>(map: &DigestMap<T>) {
    let capacity = map.capacity();
    if capacity > KEPT_CAPACITY && map.len() < capacity / 8 {
        map.shrink_to_fit();
    }
}

fn cut_token(token: &TokenEntry) {
    token.cut.store(true, SeqCst);
    token.agent.waiters.wake_all();
    if token.trust().is_some() {
        // Its tokens are those of any agent of the tenant.
        token.agent.tenant.changed();
    }
}

impl Directory {
    fn new(tenant: &TenantName) -> Arc<Self> {
        let new = Arc::new(Self {
            tenant: Arc::new(TenantState::new(tenant.clone())),
            agents: RwLock::default(),
            services: RwLock::default(),
            credentials: RwLock::default(),
            terms: Mutex::default(),
        });
        let requests: Weak<dyn Requests> = Arc::downgrade(&(new.clone() as Arc<dyn Requests>));
        let _ = new.tenant.requests.set(requests); // it was made just now
        new
    }

    /// The place of an agent that exists.
    pub(super) fn known_agent(&self, name: &AgentName) -> Option<Arc<AgentState>> {
        self.agents.read().get(name).filter(|state| !state.agent.is_empty()).cloned()
    }

    pub(super) fn agent_slot(&self, name: &AgentName) -> Arc<AgentState> {
        slot(&self.agents, name, || AgentState::new(self.tenant.clone(), name.clone()))
    }

    pub(super) fn service_slot(&self, name: &ServiceName) -> Arc<RecordCell<ServiceName, ServiceEntry>> {
        slot(&self.services, name, || RecordCell::new(name.clone()))
    }

    pub(super) fn credential_slot(&self, name: &CredentialName) -> Arc<RecordCell<CredentialName, CredentialEntry>> {
        slot(&self.credentials, name, || RecordCell::new(name.clone()))
    }

    fn terms(&self, grants: Vec<(ServiceName, CredentialName)>, cidrs: Vec<IpNet>) -> Arc<SharedGrants> {
        let key = (grants, cidrs);
        let mut terms = self.terms.lock();
        if let Some(known) = terms.get(&key) {
            return known.clone();
        }
        let new = self.own_terms(&key.0, &key.1, None, Origin::Issued);
        terms.entry(key).or_insert(new).clone()
    }

    /// Terms that no other token shares.
    fn own_terms(
        &self,
        grants: &[(ServiceName, CredentialName)],
        cidrs: &[IpNet],
        certificate: Option<[u8; 32]>,
        origin: Origin,
    ) -> Arc<SharedGrants> {
        let grant = |(service, credential): &(ServiceName, CredentialName)| Grant {
            service: self.service_slot(service),
            credential: self.credential_slot(credential),
        };
        Arc::new(SharedGrants {
            grants: grants.iter().map(grant).collect(),
            services: grants.iter().map(|(service, _)| service.clone()).collect(),
            cidrs: cidrs.into(),
            certificate,
            origin,
        })
    }

    fn sweep(&self) {
        self.terms.lock().retain(|_, terms| Arc::strong_count(terms) > 1);
        self.agents.write().retain(|_, s| Arc::strong_count(s) > 1 || !s.agent.is_empty());
        self.services.write().retain(|_, s| Arc::strong_count(s) > 1 || !s.is_empty());
        self.credentials.write().retain(|_, s| Arc::strong_count(s) > 1 || !s.is_empty());
    }
}

impl Requests for Directory {
    /// All of the tenant: a service or a credential doesn't know which agents use it.
    fn wake_all(&self) {
        let agents: Vec<_> = self.agents.read().values().cloned().collect();
        agents.iter().for_each(|a| a.waiters.wake_all());
    }
}

fn slot<N: Clone + Eq + Hash, T>(names: &Names<N, T>, name: &N, new: impl FnOnce() -> T) -> Arc<T> {
    if let Some(known) = names.read().get(name) {
        return known.clone();
    }
    names.write().entry(name.clone()).or_insert_with(|| Arc::new(new())).clone()
}
