//! One machine: a tokio runtime on a clock of its own, that may be slow or fast, paused, suspended,
//! or gone.

use std::time::Duration;

use seks_data_plane::sync::simulation::{Dial, set_dial};
use seks_simulated_host as simulation;
use tokio::{
    runtime::{Builder, Runtime},
    time::{Instant, advance, sleep_until},
};

/// How a host is held up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hold {
    /// SIGSTOP: its clocks go on.
    Stopped,
    /// The machine sleeps: only the boot clock goes on.
    Suspended,
}

/// See the module.
pub(crate) struct Host {
    runtime: Runtime,
    clock: simulation::Host,
    begun: Instant,
    /// How far the runtime's clock has come.
    local: Duration,
    /// What its clocks count for a second.
    rate: f64,
    dial: Dial,
    hold: Option<Hold>,
    /// Time that passed, by its clocks, while it was held up.
    missed: Duration,
}

impl Host {
    pub(crate) fn new(seed: u64, rate: f64, dial: Dial) -> Self {
        let runtime = Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let begun = runtime.block_on(async { Instant::now() });
        let clock = simulation::Host::new(begun, seed);
        let (local, missed) = (Duration::ZERO, Duration::ZERO);
        Self { runtime, clock, begun, local, rate, dial, hold: None, missed }
    }

    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.runtime.spawn(task);
    }

    pub(crate) fn hold(&mut self, hold: Option<Hold>) {
        self.hold = self.hold.and(hold).or(hold);
    }

    pub(crate) fn release(&mut self) {
        if self.hold.take() == Some(Hold::Suspended) {
            self.clock.suspend_for(std::mem::take(&mut self.missed));
        }
    }

    /// Lets it run for `span`. `look` is called before anything of it runs, with what its clocks
    /// are still behind, and afterwards.
    pub(crate) fn run(&mut self, span: Duration, mut look: impl FnMut(Duration)) {
        let span = span.mul_f64(self.rate);
        if self.hold.is_some() {
            self.missed += span;
            return;
        }
        let missed = std::mem::take(&mut self.missed);
        self.local += missed + span;
        let target = self.begun + self.local;
        set_dial(Some(self.dial.clone()));
        let runtime = &self.runtime;
        simulation::run_as(&mut self.clock, || {
            runtime.block_on(async {
                look(missed);
                if !missed.is_zero() {
                    advance(missed).await;
                }
                sleep_until(target).await;
                look(Duration::ZERO);
            });
        });
        set_dial(None);
    }

    /// Does `what` with its clocks.
    pub(crate) fn ask<T>(&mut self, what: impl FnOnce() -> T) -> T {
        let runtime = &self.runtime;
        simulation::run_as(&mut self.clock, || {
            let _in = runtime.enter();
            what()
        })
    }
}
