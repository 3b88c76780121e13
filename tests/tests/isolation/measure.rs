//! How long attacks last, and how much of them another tenant or client may notice.
//!
//! A release build (`tests/run isolation --strict`) is held to the bounds of the requirement. A
//! debug build wipes, copies and parses byte by byte, and shares its cores with other tests, so
//! there only stalls fail.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    thread,
    time::{Duration, Instant},
};

use seks_runtime::lower_thread_priority;
use seks_tests::raw::Connection;

/// Whether the bounds of the requirement hold as they stand.
pub const STRICT: bool = !cfg!(debug_assertions);

/// The longest that a revocation may take to be enforced while somebody attacks.
const REVOKE: Duration = Duration::from_millis(250);

/// How long an attack lasts: `SEKS_ISOLATION_SECONDS`, or `default_seconds`.
pub fn duration(default_seconds: u64) -> Duration {
    let asked = std::env::var("SEKS_ISOLATION_SECONDS").ok().and_then(|text| text.parse().ok());
    Duration::from_secs(asked.unwrap_or(default_seconds))
}

/// The largest 99th percentile of another client's requests: three times the quiet one. `stall` is
/// what a debug build may take.
pub fn p99_within(quiet: Duration, stall: Duration) -> Duration {
    if STRICT { (quiet * 3).max(TIMESLICE) } else { (quiet * 3).max(stall) }
}

/// The longest that a revocation may take. `quiet` is what it took before the attack.
pub fn revoked_within(quiet: Duration) -> Duration {
    if STRICT { REVOKE } else { (quiet * 3).max(4 * REVOKE) }
}

/// A thread that wakes on a busy core waits for the one that runs there: up to a slice of the
/// scheduler (EEVDF: 2.8 ms on two cores) for each of the four threads that a request passes. No
/// smaller latency is compared.
const TIMESLICE: Duration = Duration::from_millis(12);

/// The value that 99 of 100 don't exceed; zero where there are none.
pub fn p99(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times.get(times.len() * 99 / 100).copied().unwrap_or_default()
}

/// Threads that repeat something until they are dropped. They yield to others: a real attacker uses
/// no core of the node.
pub struct Repeating {
    stop: Arc<AtomicBool>,
    threads: Vec<thread::JoinHandle<()>>,
    /// How often it was done.
    pub done: Arc<AtomicUsize>,
}

impl Repeating {
    pub fn start(count: usize, work: impl Fn(usize) + Send + Sync + 'static) -> Self {
        let (stop, work, done) = (Arc::new(AtomicBool::new(false)), Arc::new(work), Arc::new(AtomicUsize::new(0)));
        let threads = (0..count).map(|n| {
            let (stop, work, done) = (stop.clone(), work.clone(), done.clone());
            thread::spawn(move || {
                lower_thread_priority();
                while !stop.load(SeqCst) {
                    work(n);
                    done.fetch_add(1, SeqCst);
                }
            })
        });
        Self { threads: threads.collect(), stop, done }
    }
}

impl Drop for Repeating {
    fn drop(&mut self) {
        self.stop.store(true, SeqCst);
        for thread in self.threads.drain(..) {
            drop(thread.join());
        }
    }
}

/// What a client that asks one request after the other sees.
#[derive(Debug, Default)]
pub struct Seen {
    pub latencies: Vec<Duration>,
    pub refused: Vec<(u16, String)>,
}

impl Seen {
    /// Adds what was seen later.
    pub fn add(&mut self, later: Self) {
        self.latencies.extend(later.latencies);
        self.refused.extend(later.refused);
    }

    pub fn p99(&self) -> Duration {
        p99(self.latencies.clone())
    }
}

/// Asks over one connection, again and again for `time`.
pub fn ask_for(time: Duration, proxy: SocketAddr, token: &str) -> Seen {
    let request = format!("GET /api/model/v1/x HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n\r\n");
    let (mut seen, begun) = (Seen::default(), Instant::now());
    let mut connection = Connection::open(proxy);
    while begun.elapsed() < time {
        let asked = Instant::now();
        connection.send(&request);
        let reply = connection.read_reply(false);
        seen.latencies.push(asked.elapsed());
        connection.forget();
        if reply.status != 200 {
            seen.refused.push((reply.status, reply.code()));
            connection = Connection::open(proxy);
        }
    }
    seen
}
