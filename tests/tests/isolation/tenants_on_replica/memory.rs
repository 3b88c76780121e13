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

#[test]
fn many_tokens_are_listed_as_one_list_and_their_memory_is_given_back() {
    let count = std::env::var("SEKS_ISOLATION_TOKENS").ok().and_then(|text| text.parse().ok()).unwrap_or(2_500);
    let mut world = World::start(Options::planes(""));
    world.furnish_hostile();
    let plenty =
        wire::Quota { tokens: 1 << 40, writes_per_second: 1 << 30, write_burst: 1 << 30, ..Default::default() };
    let set = wire::SetTenantQuotaRequest { name: HOSTILE.into(), quota: Some(plenty), reset: false };
    runtime().block_on(world.root().set_tenant_quota(set)).unwrap();
    let before = world.control_rss();
    let began = Instant::now();
    issue(&world, count);
    let (full, issued) = (world.control_rss(), began.elapsed());

    let began = Instant::now();
    let listed = world.sandbox.cli().run(&["token", "list", "--tenant", HOSTILE, "-o", "json"], "");
    let listed_in = began.elapsed();
    assert_eq!(listed.code, Some(0), "{}", listed.stderr);
    let list: Vec<serde_json::Value> = serde_json::from_str(&listed.stdout).unwrap();
    assert_eq!(list.len(), count);
    let rows = world.sandbox.cli().run(&["token", "list", "--tenant", HOSTILE], "").stdout;
    assert_eq!(rows.lines().count(), count + 1, "one header, and a line for each");
    let listing = world.control_rss();

    let asked = world.sandbox.cli().run(&["tenant", "delete", HOSTILE], "");
    assert!(asked.code == Some(2) && asked.stderr.contains(&format!("{count} tokens")), "{}", asked.stderr);
    world.sandbox.cli().json(&["tenant", "delete", HOSTILE, "--yes", "--timeout", "10m"]);
    let until = Instant::now() + PATIENCE;
    let mut after = world.control_rss();
    while Instant::now() < until && after > before + (full - before) / 4 {
        std::thread::sleep(Duration::from_millis(200));
        after = world.control_rss();
    }
    let mib = |bytes: u64| bytes / (1024 * 1024);
    println!(
        "{count} tokens in {issued:.0?}, listed in {listed_in:.2?}: {} MiB before, {} MiB with them, {} MiB after a list, {} MiB once they are deleted",
        mib(before),
        mib(full),
        mib(listing),
        mib(after)
    );
    if count >= MEASURED {
        assert!(
            after <= before + (full - before) / 2,
            "{} of {} MiB are not given back",
            mib(after - before),
            mib(full - before)
        );
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
