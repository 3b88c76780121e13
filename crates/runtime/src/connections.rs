//! Limits the connections of a listener, in total and by source address. The oldest unauthenticated
//! connection is closed first.
//!
//! A connection is *unauthenticated* until its peer has authenticated, *busy* while this process
//! works for it, and *idle* when an authenticated peer requests nothing. The unauthenticated
//! connections of one source are limited. Above that limit the oldest of the source is closed. When
//! the listener is full, it closes the oldest unauthenticated connection of any source, then the
//! oldest idle one, then the oldest unauthenticated one that is busy. A busy connection of an
//! authenticated peer is never closed. While all are such, new connections wait in the kernel's
//! queue.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    io,
    net::{IpAddr, Ipv6Addr},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;

/// Most connections that are checked for eviction, oldest first. Busy ones are moved to the end.
const MAX_PROBES: usize = 1024;
/// Age at which an unauthenticated connection may be evicted from a full listener, so that each one
/// is served at least briefly. Faster arrivals wait in the kernel's queue.
const MIN_AGE: Duration = Duration::from_millis(50);
/// How often a full listener checks again, besides when a connection ends.
const FULL_PAUSE: Duration = Duration::from_millis(50);
/// Pause after a failed `accept`, most likely without free file descriptors. The pause doubles
/// after each failure.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// The connections of a listener. Cheap to clone.
#[derive(Clone)]
pub struct Connections(Arc<Inner>);

struct Inner {
    min_age: Duration,
    total: usize,
    per_source: usize,
    evicted: AtomicU64,
    table: Mutex<Table>,
    /// A connection has ended.
    ended: Notify,
}

#[derive(Default)]
struct Table {
    /// The next number. Numbers order connections by the time at which they were accepted or last
    /// found busy.
    next: u64,
    /// Connections of unauthenticated peers.
    unauthenticated: BTreeMap<u64, Arc<Connection>>,
    /// Connections of authenticated peers.
    authenticated: BTreeMap<u64, Arc<Connection>>,
    /// The numbers in `unauthenticated`, by source.
    sources: HashMap<IpAddr, BTreeSet<u64>>,
}

struct Connection {
    accepted_at: Instant,
    /// Changed under the table's lock.
    source: Mutex<IpAddr>,
    /// Changed under the table's lock.
    number: AtomicU64,
    /// Number of works in progress.
    busy: AtomicU32,
    authenticated: AtomicBool,
    evicted: Notify,
}

/// The slot of one connection. Dropping it frees the slot.
pub struct ListenerSlot {
    connections: Connections,
    connection: Arc<Connection>,
}

impl Connections {
    /// At most `total` connections, and at most `per_source` unauthenticated ones of one source
    /// address. Both are at least 1.
    #[must_use]
    pub fn new(total: usize, per_source: usize) -> Self {
        Self::with_min_age(total, per_source, MIN_AGE)
    }

    fn with_min_age(total: usize, per_source: usize, min_age: Duration) -> Self {
        Self(Arc::new(Inner {
            min_age,
            total: total.max(1),
            per_source: per_source.max(1),
            evicted: AtomicU64::new(0),
            table: Mutex::default(),
            ended: Notify::new(),
        }))
    }

    /// A slot for a connection from `source`. Waits while no connection of the full listener may be
    /// evicted.
    pub async fn admit(&self, source: IpAddr) -> ListenerSlot {
        loop {
            let ended = self.0.ended.notified();
            if let Some(slot) = self.try_admit(source) {
                return slot;
            }
            let _ = tokio::time::timeout(FULL_PAUSE, ended).await;
        }
    }

    /// A slot for a connection from `source`. `None` when no connection of the full listener may be
    /// evicted.
    #[must_use]
    pub fn try_admit(&self, source: IpAddr) -> Option<ListenerSlot> {
        let source = source_network(source);
        let mut table = self.lock();
        if table.sources.get(&source).is_some_and(|numbers| numbers.len() >= self.0.per_source) {
            let oldest = table.oldest_unauthenticated_of(source);
            self.evict(&mut table, oldest);
        }
        if table.len() >= self.0.total {
            let oldest = table.eviction_candidate().filter(|oldest| oldest.accepted_at.elapsed() >= self.0.min_age);
            if !self.evict(&mut table, oldest) {
                return None;
            }
        }
        let connection = Arc::new(Connection::new(source));
        table.insert(&connection);
        Some(ListenerSlot { connections: self.clone(), connection })
    }

    /// Closes the oldest connection that may be evicted, for a process without file descriptors.
    /// Returns whether there was one.
    pub fn evict_one(&self) -> bool {
        let mut table = self.lock();
        let oldest = table.eviction_candidate();
        self.evict(&mut table, oldest)
    }

    /// Connections evicted since the start.
    #[must_use]
    pub fn evicted(&self) -> u64 {
        self.0.evicted.load(Relaxed)
    }

    /// Open connections.
    #[must_use]
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    /// Whether no connection is open.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn evict(&self, table: &mut Table, connection: Option<Arc<Connection>>) -> bool {
        let Some(connection) = connection else { return false };
        table.remove(&connection);
        connection.evicted.notify_one();
        self.0.evicted.fetch_add(1, Relaxed);
        true
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.0.table.lock()
    }
}

impl Table {
    fn len(&self) -> usize {
        self.unauthenticated.len() + self.authenticated.len()
    }

    /// Adds a connection as the newest.
    fn insert(&mut self, connection: &Arc<Connection>) {
        self.next += 1;
        connection.number.store(self.next, Relaxed);
        if connection.authenticated.load(Relaxed) {
            self.authenticated.insert(self.next, connection.clone());
        } else {
            self.unauthenticated.insert(self.next, connection.clone());
            self.sources.entry(connection.source()).or_default().insert(self.next);
        }
    }

    /// Returns whether the connection was there.
    fn remove(&mut self, connection: &Connection) -> bool {
        let number = connection.number.load(Relaxed);
        if self.unauthenticated.remove(&number).is_none() {
            return self.authenticated.remove(&number).is_some();
        }
        let source = connection.source();
        if let Some(numbers) = self.sources.get_mut(&source) {
            numbers.remove(&number);
            if numbers.is_empty() {
                self.sources.remove(&source);
            }
        }
        true
    }

    fn oldest_unauthenticated_of(&mut self, source: IpAddr) -> Option<Arc<Connection>> {
        for _ in 0..MAX_PROBES.min(self.sources.get(&source)?.len()) {
            let number = self.sources.get(&source)?.first()?;
            let connection = self.unauthenticated.get(number)?.clone();
            if connection.busy.load(Relaxed) == 0 {
                return Some(connection);
            }
            self.requeue(&connection);
        }
        self.unauthenticated.get(self.sources.get(&source)?.first()?).cloned()
    }

    /// The oldest unauthenticated connection that is not busy, else the oldest idle one, else the
    /// oldest busy unauthenticated one.
    fn eviction_candidate(&mut self) -> Option<Arc<Connection>> {
        for is_proved in [false, true] {
            let of = |table: &Self| if is_proved { table.authenticated.len() } else { table.unauthenticated.len() };
            for _ in 0..MAX_PROBES.min(of(self)) {
                let class = if is_proved { &self.authenticated } else { &self.unauthenticated };
                let Some(connection) = class.values().next().cloned() else { break };
                if connection.busy.load(Relaxed) == 0 {
                    return Some(connection);
                }
                self.requeue(&connection);
            }
        }
        self.unauthenticated.values().next().cloned()
    }

    fn requeue(&mut self, connection: &Arc<Connection>) {
        if self.remove(connection) {
            self.insert(connection);
        }
    }
}

impl Connection {
    fn new(source: IpAddr) -> Self {
        Self {
            accepted_at: Instant::now(),
            source: Mutex::new(source),
            number: AtomicU64::new(0),
            busy: AtomicU32::new(0),
            authenticated: AtomicBool::new(false),
            evicted: Notify::new(),
        }
    }
}

impl Connection {
    fn source(&self) -> IpAddr {
        *self.source.lock()
    }
}

impl ListenerSlot {
    /// The connection comes from `source`, as a balancer says. It counts as one of that source from
    /// now on.
    pub fn comes_from(&self, source: IpAddr) {
        let source = source_network(source);
        let mut table = self.connections.lock();
        if !table.remove(&self.connection) {
            return; // it was evicted
        }
        if table.sources.get(&source).is_some_and(|numbers| numbers.len() >= self.connections.0.per_source) {
            let oldest = table.oldest_unauthenticated_of(source);
            self.connections.evict(&mut table, oldest);
        }
        *self.connection.source.lock() = source;
        table.insert(&self.connection);
    }

    /// Work for the connection starts. Other connections are evicted first until it ends, and an
    /// authenticated connection is not evicted at all.
    pub fn mark_busy(&self) {
        self.connection.busy.fetch_add(1, Relaxed);
    }

    /// Work that [`mark_busy`](Self::mark_busy) started has ended.
    pub fn mark_idle(&self) {
        self.connection.busy.fetch_sub(1, Relaxed);
    }

    /// The peer has authenticated.
    pub fn mark_authenticated(&self) {
        if self.connection.authenticated.load(Relaxed) {
            return;
        }
        let mut table = self.connections.lock();
        if table.remove(&self.connection) {
            self.connection.authenticated.store(true, Relaxed);
            table.insert(&self.connection);
        } // otherwise it was evicted
    }

    /// Completes when the connection is evicted.
    pub async fn evicted(&self) {
        self.connection.evicted.notified().await;
    }
}

impl Drop for ListenerSlot {
    fn drop(&mut self) {
        self.connections.lock().remove(&self.connection);
        self.connections.0.ended.notify_one();
    }
}

/// The unit of the source limit: an IPv4 address, or the /64 network of an IPv6 address, because
/// one host can use the whole network.
fn source_network(source: IpAddr) -> IpAddr {
    match source.to_canonical() {
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
        v4 => v4,
    }
}

/// The pauses after failed calls of `accept`.
#[derive(Debug, Default)]
pub struct AcceptPause(Duration);

impl AcceptPause {
    /// `accept` succeeded.
    pub fn reset(&mut self) {
        self.0 = Duration::ZERO;
    }

    /// `accept` failed. Evicts one connection, logs the failure and waits.
    pub async fn wait(&mut self, listener: &'static str, error: &io::Error, connections: &Connections) {
        let made_room = connections.evict_one();
        tracing::warn!(listener, %error, made_room, "cannot accept a connection");
        self.0 = (self.0 * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE);
        tokio::time::sleep(self.0).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    fn is_evicted(slot: &ListenerSlot) -> bool {
        let number = slot.connection.number.load(Relaxed);
        let table = slot.connections.lock();
        !table.unauthenticated.contains_key(&number) && !table.authenticated.contains_key(&number)
    }

    #[test]
    fn one_source_cannot_evict_another() {
        let connections = Connections::with_min_age(100, 4, Duration::ZERO);
        let other = connections.try_admit(ip(2)).unwrap();
        let mine: Vec<_> = (0..20).map(|_| connections.try_admit(ip(1)).unwrap()).collect();
        let evicted: Vec<bool> = mine.iter().map(is_evicted).collect();
        assert_eq!(evicted, [[true; 16].as_slice(), &[false; 4]].concat(), "the oldest of that source, and no more");
        assert!(!is_evicted(&other));
        assert_eq!((connections.len(), connections.evicted()), (5, 16));
    }

    #[test]
    fn authenticated_connections_are_not_limited_by_source() {
        let connections = Connections::with_min_age(100, 4, Duration::ZERO);
        let nodes: Vec<_> = (0..50)
            .map(|_| {
                let slot = connections.try_admit(ip(1)).unwrap();
                slot.mark_authenticated();
                slot
            })
            .collect();
        let unauthenticated: Vec<_> = (0..60).map(|_| connections.try_admit(ip(1)).unwrap()).collect();
        assert!(!nodes.iter().any(is_evicted));
        assert_eq!(unauthenticated.iter().filter(|slot| !is_evicted(slot)).count(), 4);
    }

    #[test]
    fn when_it_is_full_the_silent_go_before_the_idle_and_the_busy_stay() {
        let connections = Connections::with_min_age(3, 3, Duration::ZERO);
        let [busy, idle, unauthenticated] = [1, 2, 3].map(|n| connections.try_admit(ip(n)).unwrap());
        busy.mark_busy();
        busy.mark_authenticated();
        idle.mark_authenticated();
        let first = connections.try_admit(ip(4)).unwrap();
        assert!(is_evicted(&unauthenticated) && !is_evicted(&idle));
        first.mark_authenticated();
        first.mark_busy();
        let second = connections.try_admit(ip(5)).unwrap();
        assert!(is_evicted(&idle) && !is_evicted(&busy));
        second.mark_busy();
        let third = connections.try_admit(ip(6)).unwrap();
        assert!(is_evicted(&second), "busy, but unauthenticated");
        third.mark_busy();
        third.mark_authenticated();
        assert!(connections.try_admit(ip(7)).is_none(), "all are busy");
        third.mark_idle();
        assert!(connections.try_admit(ip(7)).is_some());
    }

    #[test]
    fn a_freed_slot_leaves_nothing() {
        let connections = Connections::with_min_age(8, 2, Duration::ZERO);
        drop((0..50).map(|n| connections.try_admit(ip(n)).unwrap()).collect::<Vec<_>>());
        let table = connections.lock();
        assert!(table.len() == 0 && table.sources.is_empty());
    }

    #[test]
    fn a_source_is_an_ipv4_address_or_an_ipv6_network() {
        let of = |text: &str| source_network(text.parse().unwrap());
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:2"));
        assert_ne!(of("2001:db8:0:1::1"), of("2001:db8::1"));
        assert_ne!(of("10.0.0.1"), of("10.0.0.2"));
        assert_eq!(of("::ffff:10.0.0.1"), of("10.0.0.1"));
    }

    #[tokio::test]
    async fn a_waiting_connection_gets_the_next_free_slot() {
        let connections = Connections::with_min_age(1, 1, Duration::ZERO);
        let only = connections.admit(ip(1)).await;
        only.mark_busy();
        only.mark_authenticated();
        let waiting = tokio::spawn({
            let connections = connections.clone();
            async move { drop(connections.admit(ip(2)).await) }
        });
        tokio::task::yield_now().await;
        drop(only);
        waiting.await.unwrap();
    }
}
