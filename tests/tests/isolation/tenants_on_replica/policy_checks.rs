//! Policies are parsed and validated away from the threads that leases and revocations need.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    time::{Duration, Instant},
};

use seks_proto::wire::{self, Role};
use seks_tests::{runtime, sandbox::Options};
use tonic::Code;

use super::world::{HOSTILE, World, policies};
use crate::measure::{duration, revoked_within};

#[test]
fn six_checks_at_once_cost_no_lease_and_delay_no_revocation_in_dev() {
    six_checks(&World::start(Options::default()));
}

#[test]
fn six_checks_at_once_cost_no_lease_and_delay_no_revocation_on_planes() {
    six_checks(&World::start(Options::planes("")));
}

/// The default duration is longer than a lease (10 s): a control plane that grants none is noticed.
fn six_checks(world: &World) {
    let viewer = world.operator("viewer", Role::Viewer);
    let text = policies(1024 * 1024);
    let quiet = revoked_at_most(world, Instant::now() + Duration::from_secs(1));
    let (stop, refused) = (AtomicBool::new(false), AtomicU64::new(0));
    let until = Instant::now() + duration(13);
    let slowest = std::thread::scope(|scope| {
        let _ends = OnDrop(&stop);
        for _ in 0..6 {
            scope.spawn(|| {
                let mut client = world.client(&viewer);
                while !stop.load(Relaxed) {
                    let check = wire::CheckPoliciesRequest { tenant: HOSTILE.into(), text: text.clone() };
                    let left = until.saturating_duration_since(Instant::now());
                    let call = async { tokio::time::timeout(left, client.check_policies(check)).await };
                    if let Ok(Err(status)) = runtime().block_on(call) {
                        assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
                        refused.fetch_add(1, Relaxed);
                        std::thread::sleep(Duration::from_millis(50));
                    }
                }
            });
        }
        scope.spawn(|| {
            while !stop.load(Relaxed) {
                let (status, took) = world.request();
                assert_eq!(status, 200, "a request of another tenant, after {took:?}");
            }
        });
        revoked_at_most(world, until)
    });
    println!("revocations: quiet {quiet:?}, under checks {slowest:?}; checks refused: {}", refused.load(Relaxed));
    assert!(slowest <= revoked_within(quiet), "{slowest:?}, quiet {quiet:?}");
}

/// Ends the others, also when a test fails.
struct OnDrop<'a>(&'a AtomicBool);

impl Drop for OnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

/// The slowest of all revocations until `until`; each of them is enforced.
fn revoked_at_most(world: &World, until: Instant) -> Duration {
    let mut root = world.root();
    let mut slowest = Duration::ZERO;
    loop {
        let (enforced, took) = runtime().block_on(World::revoke(&mut root));
        assert!(enforced, "not enforced after {took:?}");
        slowest = slowest.max(took);
        if Instant::now() >= until {
            return slowest;
        }
    }
}
