//! What a tenant's tokens took is given back when they are gone, and all of them can be listed.
//!
//! `SEKS_ISOLATION_TOKENS` says how many: 2,500 in the suite, 100,000 for the figures in
//! SECURITY.md.

use std::time::{Duration, Instant};

use seks_proto::wire::{self, Role};
use seks_tests::{process::PATIENCE, runtime, sandbox::Options};

use super::world::{HOSTILE, World};

/// Calls that are under way.
const CALLS: usize = 16;
/// From here on what tokens take stands out from what else a process does.
const MEASURED: usize = 50_000;
/// What a process may keep in any case: caches of connections and of the allocator's threads.
const SPARE_BYTES: u64 = 24 << 20;

#[test]
fn many_tokens_are_listed_as_one_list_and_their_memory_is_given_back() {
    let count = std::env::var("SEKS_ISOLATION_TOKENS").ok().and_then(|text| text.parse().ok()).unwrap_or(2_500);
    let mut world = World::start(Options::planes(""));
    world.furnish_hostile();
    let plenty =
        wire::Quota { tokens: 1 << 40, writes_per_second: 1 << 30, write_burst: 1 << 30, ..Default::default() };
    let set = wire::SetTenantQuotaRequest { name: HOSTILE.into(), quota: Some(plenty), reset: false };
    runtime().block_on(world.root().set_tenant_quota(set)).unwrap();
    let before = Resident::of(&mut world);
    let began = Instant::now();
    issue(&world, count);
    let (full, issued) = (Resident::of(&mut world), began.elapsed());

    let began = Instant::now();
    let listed = world.sandbox.cli().run(&["token", "list", "--tenant", HOSTILE, "-o", "json"], "");
    let listed_in = began.elapsed();
    assert_eq!(listed.code, Some(0), "{}", listed.stderr);
    let list: Vec<serde_json::Value> = serde_json::from_str(&listed.stdout).unwrap();
    assert_eq!(list.len(), count);
    let rows = world.sandbox.cli().run(&["token", "list", "--tenant", HOSTILE], "").stdout;
    assert_eq!(rows.lines().count(), count + 1, "one header, and a line for each");
    let listing = Resident::of(&mut world);

    let asked = world.sandbox.cli().run(&["tenant", "delete", HOSTILE], "");
    assert!(asked.code == Some(2) && asked.stderr.contains(&format!("{count} tokens")), "{}", asked.stderr);
    world.sandbox.cli().json(&["tenant", "delete", HOSTILE, "--yes", "--timeout", "10m"]);
    let until = Instant::now() + PATIENCE;
    let mut after = Resident::of(&mut world);
    while Instant::now() < until && !after.is_given_back(&before, &full) {
        std::thread::sleep(Duration::from_millis(200));
        after = Resident::of(&mut world);
    }
    println!(
        "{count} tokens in {issued:.0?}, listed in {listed_in:.2?}: before {before}, with them {full}, after a list \
         {listing}, once they are deleted {after}"
    );
    if count >= MEASURED {
        assert!(after.is_given_back(&before, &full), "before {before}, with them {full}, after {after}");
    }
}

/// Resident memory of both planes, in bytes.
struct Resident {
    replica: u64,
    node: u64,
}

impl Resident {
    fn of(world: &mut World) -> Self {
        Self { replica: world.control_rss(), node: world.node_rss() }
    }

    /// Whether each process has given back at least half of what it took, or all but `SPARE_BYTES`.
    fn is_given_back(&self, before: &Self, full: &Self) -> bool {
        let at_most = |before: u64, full: u64| before + (full.saturating_sub(before) / 2).max(SPARE_BYTES);
        self.replica <= at_most(before.replica, full.replica) && self.node <= at_most(before.node, full.node)
    }
}

impl std::fmt::Display for Resident {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "replica {} MiB and node {} MiB", self.replica >> 20, self.node >> 20)
    }
}

/// Issues `count` tokens, many at a time.
fn issue(world: &World, count: usize) {
    let editor = world.operator("editor", Role::Editor);
    let clients: Vec<_> = (0..4).map(|_| world.client(&editor)).collect();
    runtime().block_on(async {
        let mut tasks = tokio::task::JoinSet::new();
        for call in 0..CALLS {
            let mut client = clients[call % clients.len()].clone();
            tasks.spawn(async move {
                for _ in (call..count).step_by(CALLS) {
                    let grants = vec![wire::Grant { service: "openai".into(), credential: String::new() }];
                    let wait = Some(wire::Wait { no_wait: true, timeout_ms: 0 });
                    let issue = wire::IssueTokenRequest {
                        tenant: HOSTILE.into(),
                        agent: "bot".into(),
                        grants,
                        wait,
                        ..Default::default()
                    };
                    client.issue_token(issue).await.unwrap();
                }
            });
        }
        tasks.join_all().await;
    });
}
