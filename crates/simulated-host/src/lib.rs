//! What a deterministic simulation of both planes puts in the place of the machine: the clock that leases are counted on, and the randomness
//! of pauses. Other crates use it with their feature `simulation` alone.
//!
//! A simulated host is a tokio runtime whose clock is paused; all hosts of a simulation are run in current by one thread, and
//! [`run_as`] says whose current it is.

use std::{cell::RefCell, time::Duration};

use tokio::time::Instant;

thread_local! {
    static CURRENT: RefCell<Option<Host>> = const { RefCell::new(None) };
}

/// How long each host has been up when its simulation begins: no time on its clock is near zero.
const INITIAL_UPTIME: Duration = Duration::from_secs(3600);

/// One simulated machine's clock and randomness.
#[derive(Clone, Debug)]
pub struct Host {
    /// The beginning on the clock of the host's runtime.
    started_at: Instant,
    /// Time that passed on the boot clock alone: before the beginning, and while the machine was suspended.
    offset: Duration,
    random: u64,
}

impl Host {
    /// A host whose runtime's clock is at `started_at`, with a seed for its randomness.
    #[must_use]
    pub fn new(started_at: Instant, seed: u64) -> Self {
        Self { started_at, offset: INITIAL_UPTIME, random: seed }
    }

    /// The machine was suspended for that long: the boot clock has gone on, the monotonic one hasn't.
    pub fn suspend_for(&mut self, time: Duration) {
        self.offset += time;
    }
}

/// Runs `what` as `host`: clock and randomness are its.
pub fn run_as<T>(host: &mut Host, what: impl FnOnce() -> T) -> T {
    CURRENT.with_borrow_mut(|current| *current = Some(host.clone()));
    let done = what();
    if let Some(after) = CURRENT.take() {
        *host = after;
    }
    done
}

/// Whether it is some host's current.
#[must_use]
pub fn is_active() -> bool {
    CURRENT.with_borrow(Option::is_some)
}

/// The boot clock of the host whose current it is; `None` outside of a simulation.
#[must_use]
pub fn boot_nanos() -> Option<u64> {
    CURRENT.with_borrow(|current| {
        let host = current.as_ref()?;
        let time = host.offset + Instant::now().saturating_duration_since(host.started_at);
        u64::try_from(time.as_nanos()).ok()
    })
}

/// The next random number of the host whose current it is (SplitMix64); `None` outside of a simulation.
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
