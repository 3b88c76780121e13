//! Clock and randomness of simulated machines, for the deterministic simulation of both planes.
//! Other crates use it only with their feature `simulation`.
//!
//! A simulated host is a tokio runtime with a paused clock. One thread runs all hosts of a
//! simulation in turn, and [`run_as`] selects the current host.

use std::{cell::RefCell, time::Duration};

use tokio::time::Instant;

thread_local! {
    static CURRENT: RefCell<Option<Host>> = const { RefCell::new(None) };
}

/// The uptime of each host when its simulation begins, so that no time is near zero.
const INITIAL_UPTIME: Duration = Duration::from_secs(3600);

/// The clock and randomness of one simulated machine.
#[derive(Clone, Debug)]
pub struct Host {
    /// The start on the clock of the host's runtime.
    started_at: Instant,
    /// Time on the boot clock alone: the uptime at the start, and the time in suspend.
    offset: Duration,
    random: u64,
}

impl Host {
    /// A host whose runtime's clock is at `started_at`. `seed` seeds its randomness.
    #[must_use]
    pub fn new(started_at: Instant, seed: u64) -> Self {
        Self { started_at, offset: INITIAL_UPTIME, random: seed }
    }

    /// Suspends the machine for `time`: the boot clock advances, the monotonic clock does not.
    pub fn suspend_for(&mut self, time: Duration) {
        self.offset += time;
    }
}

/// Runs `what` with the clock and randomness of `host`.
pub fn run_as<T>(host: &mut Host, what: impl FnOnce() -> T) -> T {
    CURRENT.with_borrow_mut(|current| *current = Some(host.clone()));
    let done = what();
    if let Some(after) = CURRENT.take() {
        *host = after;
    }
    done
}

/// Whether a host is current.
#[must_use]
pub fn is_active() -> bool {
    CURRENT.with_borrow(Option::is_some)
}

/// The boot clock of the current host; `None` outside of a simulation.
#[must_use]
pub fn boot_nanos() -> Option<u64> {
    CURRENT.with_borrow(|current| {
        let host = current.as_ref()?;
        let time = host.offset + Instant::now().saturating_duration_since(host.started_at);
        u64::try_from(time.as_nanos()).ok()
    })
}

/// The next random number of the current host (SplitMix64); `None` outside of a simulation.
#[must_use]
pub fn random() -> Option<u64> {
    CURRENT.with_borrow_mut(|current| {
        let host = current.as_mut()?;
        host.random = host.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (host.random ^ (host.random >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        Some(z ^ (z >> 31))
    })
}
