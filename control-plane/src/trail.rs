//! The audit trail of this replica: what its nodes have handed in.
//!
//! One thread writes ([`seks_audit::trail`]); arrivals of all nodes that wait at the same time
//! share one sync. Searches run on blocking threads, a few at a time. The ends of the nodes' chains
//! come with their lease renewals.

mod follow;
mod last_used;
pub(crate) mod metrics;
pub mod object_storage;
pub mod tripwires;

use std::{
    collections::HashMap,
    io,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::Duration,
};

use self::{
    follow::Followers,
    metrics::Counters,
    object_storage::{Bucket, BucketDisk, ObjectStorageConfig, ObjectStorageError},
    tripwires::{Alarm, AlarmKind, Facts, Watch},
};
use parking_lot::Mutex;
use seks_audit::{
    admin::archive::{Archive, ArchiveError, ArchiveOptions},
    chain::{ChainId, Digest, Head},
    disk::{Directory, DirectoryLock, Disk},
    seal::AuditKeys,
    signing::SigningKey,
    spool::unix_micros,
    trail::{
        Arrival, BlockError, IngestError, KnownHead, Page, Query, Trail as Blocks, TrailError, TrailOptions, TrailSize,
        Verification,
    },
};
use seks_runtime::{alloc::release_freed_memory, lower_thread_priority};
use serde::Deserialize;
use tokio::{
    runtime::Handle,
    sync::{Semaphore, SemaphorePermit, broadcast, mpsc, oneshot, watch},
};

pub use self::follow::{Follow, NewRecords};
pub(crate) use self::last_used::LastUsed;

/// The archive's directory in the trail's.
const ARCHIVE: &str = "admin";
/// Groups of arrivals that wait for the thread. A node's upload waits when there are more.
const QUEUE: usize = 8;
/// Arrivals that are written together at most.
const MAX_GROUP: usize = 4096;
/// Searches and verifications at a time. Each reads and decompresses.
const SEARCHES: usize = 2;
/// Groups of arrivals that are decrypted or wait for the thread, over all nodes. Each holds 2 MiB
/// as received, and as much decrypted.
const UPLOADS: usize = 16;
/// Records of earlier processes that are read at the start, for [`LastUsed`].
const RECALLED: usize = 20_000;
/// Nodes whose chains are remembered.
const MAX_NODES: usize = 100_000;
/// Earlier chains of a node whose ends are remembered: one for each start of its process.
const MAX_PAST: usize = 16;

/// `[audit]` of the control plane.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrailConfig {
    /// Where the trail is kept, for this process alone. Default: beside an embedded store, with
    /// `.audit` at the end of its name; with etcd: nowhere, and no trail is kept.
    pub dir: PathBuf,
    /// How long records are kept. Default: 90 days; 1 hour to 20 years.
    #[serde(with = "humantime_serde")]
    pub retention: Duration,
    /// Most bytes of records; beyond that the oldest are removed. Default: 20 GiB, some 400 million
    /// requests.
    pub max_bytes: u64,
    /// Tripwires that revoke the token: `canary`, `service_not_granted`, `new_network`,
    /// `token_in_path`. Default: none.
    pub revoke_on: Vec<AlarmKind>,
    /// A bucket for the files of the trail, of which `dir` is then a cache. Default: none.
    pub object_storage: Option<ObjectStorageConfig>,
}

impl Default for TrailConfig {
    fn default() -> Self {
        let TrailOptions { max_age, max_bytes, .. } = TrailOptions::default();
        Self { dir: PathBuf::new(), retention: max_age, max_bytes, revoke_on: Vec::new(), object_storage: None }
    }
}

/// Why there is no trail.
#[derive(Debug, thiserror::Error)]
pub enum OpenTrailError {
    /// A value of the configuration.
    #[error("audit.{key}: {reason}")]
    Config {
        /// Which.
        key: &'static str,
        /// What is the matter.
        reason: &'static str,
    },
    /// The directory.
    #[error("audit.dir: `{path}`: {source}")]
    Directory {
        /// Which.
        path: PathBuf,
        /// What the operating system says.
        source: io::Error,
    },
    /// What is in it.
    #[error("audit.dir: {0}")]
    Trail(#[from] TrailError),
    /// The archive of admin changes in it.
    #[error("audit.dir: admin changes: {0}")]
    Archive(#[from] ArchiveError),
    /// `[audit] object_storage`.
    #[error("audit.object_storage.{0}")]
    ObjectStorage(#[from] ObjectStorageError),
    /// The bucket.
    #[error("audit.object_storage: {0}")]
    Bucket(#[source] io::Error),
}

impl TrailConfig {
    /// Whether the values are within bounds.
    ///
    /// # Errors
    /// [`OpenTrailError::Config`] names the key.
    pub fn check(&self) -> Result<(), OpenTrailError> {
        if !(Duration::from_secs(3600)..=Duration::from_secs(20 * 366 * 24 * 3600)).contains(&self.retention) {
            return Err(OpenTrailError::Config { key: "retention", reason: "1 hour to 20 years" });
        }
        if self.max_bytes < 16 << 20 {
            return Err(OpenTrailError::Config { key: "max_bytes", reason: "at least 16 MiB, in bytes" });
        }
        if let Some(storage) = &self.object_storage {
            storage.check()?;
        }
        Ok(())
    }
}

/// What a trail is opened with.
pub struct TrailIdentity {
    /// What records are sealed to.
    pub keys: AuditKeys,
    /// What exports are signed with.
    pub signing: SigningKey,
    /// This replica's name.
    pub replica: String,
    /// Where requests to a bucket run.
    pub runtime: Handle,
}

type Reply = oneshot::Sender<Vec<Result<Head, IngestError>>>;

/// The trail. Cheap to clone.
#[derive(Clone)]
pub struct Trail(Arc<Inner>);

struct Inner {
    blocks: Arc<Blocks>,
    archive: Arc<Archive>,
    arrivals: mpsc::Sender<(Vec<Arrival>, Reply)>,
    /// Changes when records have arrived.
    grown: watch::Sender<()>,
    new_records: broadcast::Sender<Arc<NewRecords>>,
    searches: Semaphore,
    uploads: Semaphore,
    signing: SigningKey,
    id: String,
    counters: Arc<Counters>,
    last_used: Arc<LastUsed>,
    /// Until somebody takes them.
    alarms: Mutex<Option<mpsc::Receiver<Alarm>>>,
    heads: Mutex<HashMap<String, Reports>>,
    key_changes: watch::Sender<()>,
    /// Directories whose files go to a bucket.
    in_bucket: Vec<BucketDisk>,
    _lock: DirectoryLock,
}

/// What a node has said of its chain.
struct Reports {
    newest: KnownHead,
    /// The oldest that the trail has not reached yet, or the newest that it has.
    awaited: KnownHead,
    /// The ends of its earlier chains, oldest first.
    past: Vec<KnownHead>,
    /// Not in the store yet.
    is_new: bool,
}

/// Why a search gives no answer.
#[derive(Debug, thiserror::Error)]
pub enum SearchError {
    /// The disk.
    #[error(transparent)]
    Block(#[from] BlockError),
    /// The process stops.
    #[error("the control plane is about to stop")]
    Stopping,
}

impl Trail {
    /// Opens the trail. Blocks.
    ///
    /// # Errors
    /// [`OpenTrailError`].
    pub fn open(config: &TrailConfig, identity: TrailIdentity) -> Result<Self, OpenTrailError> {
        config.check()?;
        let TrailIdentity { keys, signing, replica, runtime } = identity;
        let failed = |source| OpenTrailError::Directory { path: config.dir.clone(), source };
        let disk = Directory::open(&config.dir).map_err(failed)?;
        let lock = disk.lock().map_err(failed)?;
        let storage = config.object_storage.as_ref();
        let bucket =
            storage.map(|storage| Ok::<_, OpenTrailError>((Bucket::new(storage, &replica, runtime)?, storage)));
        let bucket = bucket.transpose()?;
        let mut in_bucket = Vec::new();
        let mut open_disk = |path: &Path, name: &str| -> Result<Arc<dyn Disk>, OpenTrailError> {
            let local = Directory::open(path).map_err(failed)?;
            let Some((bucket, storage)) = &bucket else { return Ok(Arc::new(local)) };
            let disk = BucketDisk::open(path, local, bucket.below(name), storage.bounds());
            let disk = disk.map_err(OpenTrailError::Bucket)?;
            in_bucket.push(disk.clone());
            Ok(Arc::new(disk))
        };
        let disk = open_disk(&config.dir, "records")?;
        let archive = open_disk(&config.dir.join(ARCHIVE), ARCHIVE)?;
        let options =
            TrailOptions { max_age: config.retention, max_bytes: config.max_bytes, ..TrailOptions::default() };
        let keys = Arc::new(keys);
        let blocks = Arc::new(Blocks::open(disk, Arc::clone(&keys), options)?);
        let (arrivals, queue) = mpsc::channel(QUEUE);
        let (writer, grown) = (blocks.clone(), watch::Sender::new(()));
        let on_growth = grown.clone();
        let counters = Arc::new(Counters::new().map_err(|error| failed(io::Error::other(error)))?);
        let last_used = Arc::new(LastUsed::default());
        let (watch, alarms) = Watch::new(last_used.clone());
        let followers = Followers::new();
        let new_records = followers.sender();
        let observer = Observer { grown: on_growth, counters: counters.clone(), watch, followers };
        thread::Builder::new()
            .name("seks-trail".into())
            .spawn(move || {
                // Blocks are sorted and compressed in bursts. Leases, the feed and, in `seks dev`,
                // requests come first.
                lower_thread_priority();
                recall_last_used(&writer, &observer.watch);
                write_arrivals(&writer, queue, observer);
            })
            .map_err(failed)?;
        let options = ArchiveOptions { max_age: config.retention, max_bytes: config.max_bytes };
        let archive = Arc::new(Archive::open(archive, keys, options)?);
        let id = ChainId::generate().map_err(|error| failed(io::Error::other(error)))?.to_string();
        let (searches, uploads) = (Semaphore::new(SEARCHES), Semaphore::new(UPLOADS));
        let (heads, alarms) = (Mutex::default(), Mutex::new(Some(alarms)));
        Ok(Self(Arc::new(Inner {
            blocks,
            archive,
            arrivals,
            grown,
            new_records,
            searches,
            uploads,
            heads,
            signing,
            id,
            counters,
            last_used,
            alarms,
            key_changes: watch::Sender::new(()),
            in_bucket,
            _lock: lock,
        })))
    }

    /// The key that nodes seal to.
    #[must_use]
    pub fn public_key(&self) -> Vec<u8> {
        self.0.blocks.public_key().as_bytes().to_vec()
    }

    /// Takes over the audit keys as the store has them. Nodes that hand in records are told of a
    /// new one.
    pub fn replace_keys(&self, keys: AuditKeys) {
        if self.0.blocks.keys().replace(keys) {
            tracing::info!(key = %self.0.blocks.public_key().id(), "audit records are sealed to another key");
            self.0.key_changes.send_replace(());
        }
    }

    /// Changes whenever nodes shall seal to another key.
    #[must_use]
    pub fn key_changes(&self) -> watch::Receiver<()> {
        self.0.key_changes.subscribe()
    }

    /// What reads segments and frames.
    #[must_use]
    pub fn blocks(&self) -> &Arc<Blocks> {
        &self.0.blocks
    }

    /// Admin changes that have left the store, or will.
    #[must_use]
    pub fn archive(&self) -> &Arc<Archive> {
        &self.0.archive
    }

    /// The directories whose files are to be uploaded.
    #[must_use]
    pub fn in_bucket(&self) -> &[BucketDisk] {
        &self.0.in_bucket
    }

    /// Room for one group of arrivals. A node that waits for it is held up by flow control, with
    /// one message in memory.
    pub(crate) async fn upload_turn(&self) -> Option<SemaphorePermit<'_>> {
        self.0.uploads.acquire().await.ok()
    }

    /// Writes arrivals. What has an `Ok` is durable when this returns.
    pub async fn ingest(&self, arrivals: Vec<Arrival>) -> Vec<Result<Head, IngestError>> {
        let (reply, written) = oneshot::channel();
        if self.0.arrivals.send((arrivals, reply)).await.is_err() {
            return Vec::new();
        }
        written.await.unwrap_or_default() // the thread has panicked, which has been reported
    }

    /// Gives memory back that making blocks took, unless a block was made since the last call. To
    /// be called from time to time.
    pub fn release_memory(&self) {
        let (reply, _) = oneshot::channel();
        let _ = self.0.arrivals.try_send((Vec::new(), reply)); // a full queue is no time for it
    }

    /// Looks for records.
    ///
    /// # Errors
    /// [`SearchError`].
    pub async fn search(&self, query: Query) -> Result<Page, SearchError> {
        let _permit = self.0.searches.acquire().await.map_err(|_| SearchError::Stopping)?;
        let blocks = self.0.blocks.clone();
        let page = tokio::task::spawn_blocking(move || blocks.search(&query)).await;
        Ok(page.map_err(|_| SearchError::Stopping)??)
    }

    /// Recomputes every chain.
    ///
    /// # Errors
    /// [`SearchError`].
    pub async fn verify(&self) -> Result<Verification, SearchError> {
        let _permit = self.0.searches.acquire().await.map_err(|_| SearchError::Stopping)?;
        let (blocks, known) = (self.0.blocks.clone(), self.known_heads());
        let verified = tokio::task::spawn_blocking(move || blocks.verify(&known, unix_micros())).await;
        Ok(verified.map_err(|_| SearchError::Stopping)??)
    }

    /// Changes whenever records have arrived.
    #[must_use]
    pub fn growth(&self) -> watch::Receiver<()> {
        self.0.grown.subscribe()
    }

    /// Requests that trip a wire, for one receiver.
    #[must_use]
    pub fn take_alarms(&self) -> Option<mpsc::Receiver<Alarm>> {
        self.0.alarms.lock().take()
    }

    fn counters(&self) -> &Counters {
        &self.0.counters
    }

    /// When tokens were last used.
    pub(crate) fn last_used(&self) -> &LastUsed {
        &self.0.last_used
    }

    /// Random, and new with each start of the process.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.0.id
    }

    /// The key that exports are signed with.
    #[must_use]
    pub fn signing_key(&self) -> &SigningKey {
        &self.0.signing
    }

    /// Its sizes.
    #[must_use]
    pub fn size(&self) -> TrailSize {
        self.0.blocks.size()
    }

    /// A node says where its chain ends.
    pub fn report(&self, node: &str, head: Head, kept_from: u64) {
        let report = KnownHead { node: node.to_owned(), head, kept_from, reported_us: unix_micros() };
        let have = self.0.blocks.heads(node, &[head.chain]).first().map_or(0, |head| head.sequence);
        let mut heads = self.0.heads.lock();
        if let Some(known) = heads.get_mut(node) {
            let is_reached = known.awaited.head.chain != head.chain || have >= known.awaited.head.sequence;
            if is_reached {
                known.awaited = report.clone();
            }
            known.is_new |= known.newest.head != report.head;
            let before = std::mem::replace(&mut known.newest, report);
            if before.head.chain != head.chain {
                known.remember(before);
            }
        } else if heads.len() < MAX_NODES {
            let (awaited, past) = (report.clone(), Vec::new());
            heads.insert(node.to_owned(), Reports { newest: report, awaited, past, is_new: true });
        }
    }

    /// The trail has taken a node's records: from now on they are missed when they are gone.
    pub fn acknowledged(&self, node: &str, head: Head) {
        let (node, kept_from) = (node.to_owned(), head.sequence + 1);
        let known = KnownHead { node, head, kept_from, reported_us: unix_micros() };
        let mut heads = self.0.heads.lock();
        if let Some(reports) = heads.get_mut(&known.node) {
            reports.acknowledged(known);
        } else if heads.len() < MAX_NODES {
            let (awaited, past) = (known.clone(), Vec::new());
            heads.insert(known.node.clone(), Reports { newest: known, awaited, past, is_new: true });
        }
    }

    /// What is known from the store of a node that has not said anything to this process yet: the
    /// ends of its chains, oldest first.
    pub fn recall(&self, mut past: Vec<KnownHead>) {
        let Some(newest) = past.pop() else { return };
        let known = Reports { newest: newest.clone(), awaited: newest.clone(), past, is_new: false };
        self.0.heads.lock().entry(newest.node).or_insert(known);
    }

    /// What is to be stored: of each node the ends of its chains, oldest first.
    #[must_use]
    pub fn take_new_heads(&self) -> Vec<Vec<KnownHead>> {
        let mut heads = self.0.heads.lock();
        let new = heads.values_mut().filter_map(|known| std::mem::take(&mut known.is_new).then(|| known.all()));
        new.collect()
    }

    /// What nodes have reported of their chains.
    #[must_use]
    pub fn known_heads(&self) -> Vec<KnownHead> {
        let heads = self.0.heads.lock();
        heads.values().flat_map(|known| [known.all(), vec![known.awaited.clone()]].concat()).collect()
    }
}

impl Reports {
    fn acknowledged(&mut self, known: KnownHead) {
        let chain = known.head.chain;
        let place = std::iter::once(&mut self.newest).chain(&mut self.past).find(|place| place.head.chain == chain);
        match place {
            Some(place) if place.head.sequence >= known.head.sequence => return,
            Some(place) => *place = known,
            None => self.remember(known), // of an earlier process, whose records come late
        }
        self.is_new = true;
    }

    fn remember(&mut self, known: KnownHead) {
        self.past.push(known);
        let surplus = self.past.len().saturating_sub(MAX_PAST);
        self.past.drain(..surplus);
    }

    fn all(&self) -> Vec<KnownHead> {
        self.past.iter().chain([&self.newest]).cloned().collect()
    }
}

/// The head of a message; `None` when it is none.
#[must_use]
pub fn head_of(chain: &[u8], sequence: u64, digest: &[u8]) -> Option<Head> {
    Some(Head { chain: ChainId::from_bytes(chain)?, sequence, digest: Digest(digest.try_into().ok()?) })
}

/// Notes what a lease renewal says of the node's chain: its id, the last sequence and the digest.
pub fn note_head(trail: Option<&Trail>, node: &str, head: Option<(&[u8], u64, &[u8])>, kept_from: u64) {
    let head = head.and_then(|(chain, sequence, digest)| head_of(chain, sequence, digest));
    if let (Some(trail), Some(head)) = (trail, head) {
        trail.report(node, head, kept_from);
    }
}

/// What is told of records that are stored.
struct Observer {
    grown: watch::Sender<()>,
    counters: Arc<Counters>,
    watch: Watch,
    followers: Followers,
}

impl Observer {
    /// `before` are the ends of the arrivals' chains before they were stored: what was here already
    /// is not looked at again.
    fn stored(&mut self, group: &[Arrival], results: &[Result<Head, IngestError>], before: &HashMap<ChainId, u64>) {
        let (mut records, mut newest_us) = (0, 0);
        let is_followed = self.followers.begin();
        for (arrival, result) in group.iter().zip(results) {
            let known = before.get(&arrival.chain()).copied().unwrap_or(0);
            if result.is_err() || arrival.last() <= known {
                continue;
            }
            for record in arrival.records() {
                let facts = Facts::of(record);
                (records, newest_us) = (records + 1, newest_us.max(facts.began_us));
                if facts.is_intent() {
                    continue; // the outcome follows
                }
                if let Some(tripwire) = self.watch.look(arrival.node(), &facts) {
                    self.counters.tripped(tripwire);
                }
                if is_followed {
                    self.followers.add(record);
                }
            }
        }
        self.followers.send();
        self.counters.dropped_alarms.inc_by(self.watch.take_dropped());
        if records > 0 {
            self.counters.stored(records, newest_us);
        }
        self.grown.send_replace(());
    }
}

/// Reads the newest records of earlier processes for the times of tokens' last uses.
fn recall_last_used(blocks: &Blocks, watch: &Watch) {
    let query = Query { until_us: u64::MAX, newest_first: true, limit: RECALLED, ..Query::default() };
    match blocks.search(&query) {
        Ok(page) => page.entries.iter().for_each(|entry| watch.note_use(&entry.record)),
        Err(error) => tracing::warn!(%error, "the last uses of tokens cannot be read from the audit trail"),
    }
}

/// Writes what has arrived, in groups, until nobody sends any more.
fn write_arrivals(blocks: &Blocks, mut queue: mpsc::Receiver<(Vec<Arrival>, Reply)>, mut observer: Observer) {
    // Columns of a block take several times the memory of its records. Under load the next block
    // needs it again: it goes back to the system when no block was made between two calls of
    // `release_memory`.
    let mut blocks_made = 0;
    while let Some((mut group, reply)) = queue.blocking_recv() {
        let mut replies = vec![(group.len(), reply)];
        while group.len() < MAX_GROUP
            && let Ok((more, reply)) = queue.try_recv()
        {
            replies.push((more.len(), reply));
            group.extend(more);
        }
        let number = blocks.end().block;
        if group.is_empty() {
            // Nobody has handed in anything for a while, or this is one of the calls in between.
            if std::mem::take(&mut blocks_made) == 0 {
                release_freed_memory();
            }
            continue;
        }
        let heads = group.iter().flat_map(|arrival| blocks.heads(arrival.node(), &[arrival.chain()]));
        let before: HashMap<ChainId, u64> = heads.map(|head| (head.chain, head.sequence)).collect();
        let results = blocks.ingest(&group);
        blocks_made += blocks.end().block - number;
        observer.stored(&group, &results, &before);
        let mut results = results.into_iter();
        for (count, reply) in replies {
            let _ = reply.send(results.by_ref().take(count).collect()); // the stream has ended
        }
    }
}
