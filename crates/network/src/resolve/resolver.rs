//! Resolves names over UDP and TCP with `hickory-resolver`, by the system's configuration files.
//!
//! `getaddrinfo` would block one thread for each lookup, for as long as a name server is silent.
//! Here a lookup is a task with bounds: one lookup of a name at a time for all callers
//! ([`Resolver::addresses`] joins it), [`OWNER_LOOKUPS`] for an owner, [`ALL_LOOKUPS`] in all, and
//! a deadline for each.
//!
//! `/etc/resolv.conf` and `/etc/hosts` are read as the system reads them, and again when they
//! change. Other name sources of glibc (`nsswitch.conf`: mDNS, LDAP, NIS, `myhostname`) are not
//! used.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    path::Path,
    sync::{Arc, LazyLock, Weak},
    time::{Duration, Instant, SystemTime},
};

use hickory_resolver::{
    TokioResolver,
    config::{ConnectionConfig, LookupIpStrategy, NameServerConfig, ResolverConfig, ResolverOpts},
    net::{DnsError, NetError, runtime::TokioRuntimeProvider},
    system_conf,
};
use parking_lot::Mutex;
use tokio::{
    sync::{Semaphore, watch},
    time::timeout,
};

/// Most concurrent lookups of this process.
const ALL_LOOKUPS: usize = 256;
/// Most concurrent lookups of one owner. An owner is a tenant.
const OWNER_LOOKUPS: usize = 16;
/// Most cached names. Above it, expired names are dropped first, then any.
const MAX_NAMES: usize = 4096;
/// Bounds of an answer's time in the cache, whatever its TTL.
const FOUND_TTL: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(300));
/// The same for the answer that the name does not exist.
const ABSENT_TTL: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// Time in the cache of a lookup without an answer.
const UNANSWERED_TTL: Duration = Duration::from_secs(1);
/// Time for one name server before the next is tried, where `resolv.conf` allows more.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(2);
/// How often the system's files are checked for changes.
const FILE_CHECK_INTERVAL: Duration = Duration::from_secs(5);
/// Most requests to a name server over one connection.
const MAX_ACTIVE_REQUESTS: usize = 1024;

const RESOLV_CONF: &str = "/etc/resolv.conf";
const HOSTS: &str = "/etc/hosts";

/// Options of a [`Resolver`].
#[derive(Clone, Debug)]
pub struct ResolverOptions {
    /// Used instead of those in `/etc/resolv.conf`, unless empty.
    pub name_servers: Vec<SocketAddr>,
    /// Deadline of a lookup. Default: 5 s.
    pub timeout: Duration,
}

impl Default for ResolverOptions {
    fn default() -> Self {
        Self { name_servers: Vec::new(), timeout: Duration::from_secs(5) }
    }
}

/// Resolves names and caches the answers.
pub struct Resolver {
    options: ResolverOptions,
    client: Mutex<Option<Client>>,
    names: Mutex<HashMap<Box<str>, Entry>>,
    owners: Mutex<HashMap<Box<str>, Weak<Semaphore>>>,
    all: Semaphore,
}

struct Client {
    resolver: Arc<TokioResolver>,
    files: [Option<SystemTime>; 2],
    checked_at: Instant,
}

enum Entry {
    Cached(Answer, Instant),
    /// A lookup in progress. All callers wait for its answer.
    Pending(watch::Receiver<Option<Answer>>),
}

/// The addresses of a name; `None` when it has none.
type Answer = Option<Arc<[IpAddr]>>;

static SYSTEM: LazyLock<Arc<Resolver>> = LazyLock::new(|| Arc::new(Resolver::new(ResolverOptions::default())));

impl Resolver {
    /// A resolver with its own cache.
    #[must_use]
    pub fn new(options: ResolverOptions) -> Self {
        let (names, owners) = (Mutex::default(), Mutex::default());
        Self { options, client: Mutex::default(), names, owners, all: Semaphore::new(ALL_LOOKUPS) }
    }

    /// The resolver of this process, with default options.
    #[must_use]
    pub fn system() -> &'static Arc<Self> {
        &SYSTEM
    }

    /// The addresses of `host`. `None` when it has none, or no name server answered. The lookup
    /// counts for `owner`.
    pub async fn addresses(self: &Arc<Self>, owner: &str, host: &str) -> Option<Arc<[IpAddr]>> {
        let mut answer = match self.cached_or_start_lookup(owner, host) {
            Ok(known) => return known,
            Err(pending) => pending,
        };
        // Err: the task has panicked, or the runtime ends.
        answer.wait_for(Option::is_some).await.ok().and_then(|answer| answer.clone()).flatten()
    }

    fn cached_or_start_lookup(
        self: &Arc<Self>,
        owner: &str,
        host: &str,
    ) -> Result<Answer, watch::Receiver<Option<Answer>>> {
        let mut names = self.names.lock();
        match names.get(host) {
            Some(Entry::Cached(answer, until)) if Instant::now() < *until => return Ok(answer.clone()),
            // A look-up that was dropped with its runtime has no sender any more.
            Some(Entry::Pending(pending)) if pending.has_changed().is_ok() => return Err(pending.clone()),
            _ => {}
        }
        evict_names(&mut names);
        let (sender, pending) = watch::channel(None);
        names.insert(host.into(), Entry::Pending(pending.clone()));
        drop(names);
        let (own, owner, host) = (Arc::clone(self), self.owner(owner), Box::<str>::from(host));
        // A task of its own: the first caller may have gone before the answer comes.
        tokio::spawn(async move {
            let (answer, keep) = own.look_up(&owner, &host).await;
            own.names.lock().insert(host, Entry::Cached(answer.clone(), Instant::now() + keep));
            sender.send_replace(Some(answer));
        });
        Err(pending)
    }

    async fn look_up(&self, owner: &Semaphore, host: &str) -> (Answer, Duration) {
        let work = async {
            // The deadline includes the wait for a permit. Err: never closed.
            let _own = owner.acquire().await.ok()?;
            let _any = self.all.acquire().await.ok()?;
            Some(self.client()?.lookup_ip(host).await)
        };
        match timeout(self.options.timeout, work).await {
            Ok(Some(Ok(found))) => {
                let keep = found.valid_until().saturating_duration_since(Instant::now());
                let addresses: Arc<[IpAddr]> = found.iter().collect();
                let answer = if addresses.is_empty() { None } else { Some(addresses) };
                (answer, keep.clamp(FOUND_TTL.0, FOUND_TTL.1))
            }
            Ok(Some(Err(NetError::Dns(DnsError::NoRecordsFound(none))))) => {
                let keep = Duration::from_secs(none.negative_ttl.unwrap_or_default().into());
                (None, keep.clamp(ABSENT_TTL.0, ABSENT_TTL.1))
            }
            Ok(_) | Err(_) => (None, UNANSWERED_TTL),
        }
    }

    fn owner(&self, owner: &str) -> Arc<Semaphore> {
        let mut owners = self.owners.lock();
        if let Some(known) = owners.get(owner).and_then(Weak::upgrade) {
            return known;
        }
        if owners.len() >= 64 {
            owners.retain(|_, bound| bound.strong_count() > 0); // as many stay as look up names now
        }
        let new = Arc::new(Semaphore::new(OWNER_LOOKUPS));
        owners.insert(owner.into(), Arc::downgrade(&new));
        new
    }

    /// The client for the current content of the system's files.
    fn client(&self) -> Option<Arc<TokioResolver>> {
        let mut client = self.client.lock();
        if let Some(known) = client.as_mut() {
            if known.checked_at.elapsed() < FILE_CHECK_INTERVAL {
                return Some(known.resolver.clone());
            }
            known.checked_at = Instant::now();
            if known.files == files_modified() {
                return Some(known.resolver.clone());
            }
        }
        let files = files_modified();
        let resolver = Arc::new(self.build()?);
        let (new, checked_at) = (resolver.clone(), Instant::now());
        *client = Some(Client { resolver: new, files, checked_at });
        Some(resolver)
    }

    fn build(&self) -> Option<TokioResolver> {
        let (config, mut options) = match self.options.name_servers.as_slice() {
            [] => system_conf::read_system_conf().unwrap_or_else(|_| {
                // As resolv.conf(5) says: without a file, or without a server in it, the one on
                // this machine.
                let local = NameServerConfig::udp_and_tcp(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST));
                (ResolverConfig::from_parts(None, Vec::new(), vec![local]), ResolverOpts::default())
            }),
            servers => {
                let servers = servers.iter().map(|at| name_server(*at)).collect();
                (ResolverConfig::from_parts(None, Vec::new(), servers), ResolverOpts::default())
            }
        };
        options.timeout = options.timeout.min(ATTEMPT_TIMEOUT);
        options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
        options.cache_size = 0; // names are remembered here
        options.max_active_requests = MAX_ACTIVE_REQUESTS;
        let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
        *builder.options_mut() = options;
        builder.build().inspect_err(|error| tracing::error!(%error, "no resolver: names cannot be looked up")).ok()
    }
}

fn name_server(at: SocketAddr) -> NameServerConfig {
    let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(|mut connection| {
        connection.port = at.port();
        connection
    });
    NameServerConfig::new(at.ip(), true, connections.into())
}

/// The modification times of the system's files.
fn files_modified() -> [Option<SystemTime>; 2] {
    [RESOLV_CONF, HOSTS].map(|path| std::fs::metadata(Path::new(path)).and_then(|file| file.modified()).ok())
}

fn evict_names(names: &mut HashMap<Box<str>, Entry>) {
    if names.len() < MAX_NAMES {
        return;
    }
    let now = Instant::now();
    names.retain(|_, entry| !matches!(entry, Entry::Cached(_, until) if *until <= now));
    while names.len() >= MAX_NAMES {
        let Some(any) = names.keys().next().cloned() else { return };
        names.remove(&any);
    }
}

#[cfg(test)]
mod tests;
