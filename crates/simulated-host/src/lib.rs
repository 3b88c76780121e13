//! What a deterministic simulation of both planes puts in the place of the machine: the clock that leases are counted on, and the randomness
//! of pauses. Other crates use it with their feature `simulation` alone.
//!
//! A simulated host is a tokio runtime whose clock is paused; all hosts of a simulation are run in turn by one thread, and
//! [`on`] says whose turn it is.

use std::{cell::RefCell, time::Duration};

use tokio::time::Instant;

thread_local! {
    static TURN: RefCell<Option<Host>> = const { RefCell::new(None) };
}

/// How long each host has been up when its simulation begins: no time on its clock is near zero.
const UP: Duration = Duration::from_secs(3600);

/// One simulated machine's clock and randomness.
#[derive(Clone, Debug)]
pub struct Host {
    /// The beginning on the clock of the host's runtime.
    begun: Instant,
    /// Time that passed on the boot clock alone: before the beginning, and while the machine was suspended.
    ahead: Duration,
    random: u64,
}

impl Host {
    /// A host whose runtime's clock is at `begun`, with a seed for its randomness.
    #[must_use]
    pub fn new(begun: Instant, seed: u64) -> Self {
        Self { begun, ahead: UP, random: seed }
    }

    /// The machine was suspended for that long: the boot clock has gone on, the monotonic one hasn't.
    pub fn suspended(&mut self, time: Duration) {
        self.ahead += time;
    }
}

/// Runs `what` as `host`: clock and randomness are its.
pub fn on<T>(host: &mut Host, what: impl FnOnce() -> T) -> T {
    TURN.with_borrow_mut(|turn| *turn = Some(host.clone()));
    let done = what();
    if let Some(after) = TURN.take() {
        *host = after;
    }
    done
}

/// Whether it is some host's turn.
#[must_use]
pub fn is_on() -> bool {
    TURN.with_borrow(Option::is_some)
}

/// The boot clock of the host whose turn it is; `None` outside of a simulation.
#[must_use]
pub fn boot_nanos() -> Option<u64> {
    TURN.with_borrow(|turn| {
        let host = turn.as_ref()?;
        let time = host.ahead + Instant::now().saturating_duration_since(host.begun);
        u64::try_from(time.as_nanos()).ok()
    })
}

/// The next random number of the host whose turn it is (SplitMix64); `None` outside of a simulation.
#[must_use]
pub fn random() -> Option<u64> {
    TURN.with_borrow_mut(|turn| {
        let host = turn.as_mut()?;
        host.random = host.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (host.random ^ (host.random >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        Some(z ^ (z >> 31))
    })
}
