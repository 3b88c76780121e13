//! What the node's table costs: `cargo bench -p seks-benches --bench table`.
//!
//! First two figures that no timer gives: how long a million tokens take from records to a table in
//! use, and how much memory each takes. Then look-ups: of one token again and again (hot) and of
//! tokens at random (cold: the cache holds none of them).

#![expect(clippy::expect_used, reason = "a benchmark that can't be set up has nothing to say")]
#![allow(missing_docs, clippy::print_stdout, reason = "divan makes items of its own; a benchmark prints")]

use std::{fs, hint::black_box, sync::OnceLock, time::Instant};

use divan::Bencher;
use seks_data_plane::table::{Change, Found, Table, TokenRecord};
use seks_types::{
    id::{AgentName, CredentialName, ServiceName, TenantName},
    token::Digest,
};

const SIZES: [u64; 2] = [10_000, 1_000_000];
/// Tokens an agent, so that agents are many too.
const TOKENS_AN_AGENT: u64 = 10;

fn main() {
    let before = resident_bytes();
    let started = Instant::now();
    let table = load(1_000_000);
    let took = started.elapsed();
    let each = resident_bytes().saturating_sub(before) / 1_000_000;
    println!(
        "1,000,000 tokens of 100,000 agents: staged and swapped in after {took:.2?}, {each} bytes each (resident)"
    );
    drop(table);
    divan::main();
}

fn token(n: u64) -> Change {
    let name = |prefix: &str, n: u64| format!("{prefix}-{n}");
    Change::Token(Box::new(TokenRecord {
        digest: digest(n),
        id: format!("tok-{n:016}"),
        tenant: tenant(),
        agent: AgentName::try_from(name("agent", n / TOKENS_AN_AGENT)).expect("a name"),
        grants: vec![(service(), CredentialName::try_from("main").expect("a name"))],
        issued_at: 1,
        expires_at: i64::MAX,
        cidrs: Vec::new(),
        certificate: None,
        trust: None,
    }))
}

fn digest(n: u64) -> Digest {
    Digest::of(&n.to_be_bytes())
}

fn tenant() -> TenantName {
    TenantName::try_from("acme").expect("a name")
}

fn service() -> ServiceName {
    ServiceName::try_from("api").expect("a name")
}

fn load(tokens: u64) -> Table {
    let table = Table::new().expect("randomness");
    let mut staging = table.stage("epoch", 1, usize::try_from(tokens).expect("64 bits"));
    for n in 0..tokens {
        staging.put(token(n)).expect("room");
    }
    table.swap(staging).expect("the first snapshot");
    table
}

fn tables() -> &'static [(u64, Table)] {
    static TABLES: OnceLock<Vec<(u64, Table)>> = OnceLock::new();
    TABLES.get_or_init(|| SIZES.map(|tokens| (tokens, load(tokens))).into())
}

fn of(tokens: u64) -> &'static Table {
    &tables().iter().find(|(size, _)| *size == tokens).expect("one of the sizes").1
}

fn resident_bytes() -> u64 {
    let statm = fs::read_to_string("/proc/self/statm").expect("Linux");
    statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or_default() * 4096
}

#[divan::bench(args = SIZES)]
fn find_hot(bencher: Bencher, tokens: u64) {
    let (table, digest) = (of(tokens), digest(tokens / 2));
    bencher.bench(|| matches!(black_box(table.find(black_box(&digest))), Found::Token(_)));
}

#[divan::bench(args = SIZES, sample_size = 1000)]
fn find_cold(bencher: Bencher, tokens: u64) {
    let table = of(tokens);
    let mut n = 1_u64;
    let next = || {
        // A full-period generator: no token comes again before all have.
        n = n.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        digest((n >> 33) % tokens)
    };
    bencher.with_inputs(next).bench_local_refs(|digest| matches!(black_box(table.find(digest)), Found::Token(_)));
}

#[divan::bench(args = SIZES, sample_size = 1000)]
fn find_unknown(bencher: Bencher, tokens: u64) {
    let table = of(tokens);
    let mut n = tokens;
    let next = || {
        n += 1;
        digest(n)
    };
    bencher.with_inputs(next).bench_local_refs(|digest| matches!(black_box(table.find(digest)), Found::Unknown));
}

/// Everything that a request takes from the table.
#[divan::bench(args = SIZES)]
fn find_and_follow(bencher: Bencher, tokens: u64) {
    let (table, digest) = (of(tokens), digest(tokens / 2));
    bencher.bench(|| {
        let Found::Token(token) = table.find(black_box(&digest)) else { return false };
        let grant = token.grant("api");
        black_box((token.agent(), token.policies(), grant.map(|g| (g.service(), g.credential())))).0.is_some()
    });
}
