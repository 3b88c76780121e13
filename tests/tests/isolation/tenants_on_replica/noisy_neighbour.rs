//! A hostile tenant's operators do each thing that they may at full speed; another tenant's
//! requests and revocations go on.
//!
//! `SEKS_ISOLATION_SECONDS` says how long each attack lasts: 2 s in the suite, 60 s with
//! `tests/run isolation --strict`.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    time::{Duration, Instant},
};

use seks_proto::wire::{self, Role, admin_client::AdminClient};
use seks_tests::{control::Pair, runtime, sandbox::Options};
use tonic::{Code, Status, transport::Channel};

use super::world::{HOSTILE, World, policies};
use crate::measure::{duration, p99_within, revoked_within};

/// Operators that attack at the same time, each on a connection of its own.
const OPERATORS: usize = 3;
/// Calls of each that are under way.
const CALLS: usize = 4;

/// How often the other tenant issues and revokes a token: within its own rate of writes (100 a
/// second).
const REVOKE_EVERY: Duration = Duration::from_millis(50);

/// What came of the other tenant meanwhile.
#[derive(Debug, Default)]
struct Seen {
    requests: usize,
    p50: Duration,
    p99: Duration,
    revocations: usize,
    slowest_revocation: Duration,
}

impl std::fmt::Display for Seen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { requests, p50, p99, revocations, slowest_revocation } = self;
        write!(f, "{requests} requests, 0 refused, p50 {p50:.1?}, p99 {p99:.1?}; ")?;
        write!(f, "{revocations} revocations, the slowest {slowest_revocation:.1?}")
    }
}

/// One thing that the hostile tenant does, time after time.
type Attack = fn(AdminClient<Channel>, usize) -> futures_util::future::BoxFuture<'static, Result<(), Status>>;

const ATTACKS: &[(&str, Attack)] = &[
    ("checks of 1 MiB", |mut client, _| {
        Box::pin(async move {
            let check = wire::CheckPoliciesRequest { tenant: HOSTILE.into(), text: large() };
            client.check_policies(check).await.map(drop)
        })
    }),
    ("policies applied and deleted", |mut client, n| {
        Box::pin(async move {
            let text =
                format!("@id(\"n{n}\") forbid (principal, action, resource) when {{ context.path like \"/{n}/*\" }};");
            let applied =
                client.apply_policies(wire::ApplyPoliciesRequest { tenant: HOSTILE.into(), text, wait: no_wait() });
            applied.await?;
            client.delete_policy(delete(format!("n{n}"))).await.map(drop)
        })
    }),
    ("tokens issued", |mut client, _| {
        Box::pin(async move {
            let grants = vec![wire::Grant { service: "openai".into(), credential: String::new() }];
            let issue = wire::IssueTokenRequest {
                tenant: HOSTILE.into(),
                agent: "bot".into(),
                grants,
                wait: no_wait(),
                ..Default::default()
            };
            client.issue_token(issue).await.map(drop)
        })
    }),
    ("lists", |mut client, _| {
        Box::pin(async move {
            let list = wire::ListRequest { tenant: HOSTILE.into(), page_size: 1000, ..Default::default() };
            client.list_tokens(list.clone()).await?;
            client.list_policies(list).await?;
            client.list_tenants(wire::ListTenantsRequest {}).await.map(drop)
        })
    }),
    ("simulations", |mut client, _| {
        Box::pin(async move {
            let simulate = wire::SimulateRequest {
                tenant: HOSTILE.into(),
                agent: "bot".into(),
                service: "openai".into(),
                method: "POST".into(),
                path: "/v1/chat/completions".into(),
                body: vec![b' '; 900_000],
                has_body: true,
                ..Default::default()
            };
            client.simulate(simulate).await.map(drop)
        })
    }),
    ("services enabled and deleted", |mut client, n| {
        Box::pin(async move {
            let enable = wire::EnableServiceRequest {
                tenant: HOSTILE.into(),
                catalogue: "github".into(),
                name: format!("s{n}"),
                wait: no_wait(),
                ..Default::default()
            };
            client.enable_service(enable).await?;
            client.delete_service(delete(format!("s{n}"))).await.map(drop)
        })
    }),
];

fn large() -> String {
    static TEXT: std::sync::OnceLock<String> = std::sync::OnceLock::new();
    TEXT.get_or_init(|| policies(1024 * 1024)).clone()
}

fn no_wait() -> Option<wire::Wait> {
    Some(wire::Wait { no_wait: true, timeout_ms: 0 })
}

fn delete(name: String) -> wire::DeleteRequest {
    wire::DeleteRequest { tenant: HOSTILE.into(), name, wait: no_wait() }
}

#[test]
fn another_tenants_requests_and_revocations_go_on_whatever_a_hostile_tenant_does() {
    let world = World::start(Options::default());
    world.furnish_hostile();
    let editors: Vec<Pair> = (0..OPERATORS).map(|n| world.operator(&format!("editor-{n}"), Role::Editor)).collect();
    large();
    let each = duration(2);
    let quiet = watch(&world, each);
    println!("quiet: {quiet}");
    let (bound, revoked) =
        (p99_within(quiet.p99, Duration::from_millis(250)), revoked_within(quiet.slowest_revocation));
    for (name, attack) in ATTACKS {
        let (stop, done, refused, given_up) =
            (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
        let seen = std::thread::scope(|scope| {
            let _ends = Ends(&stop);
            for (at, editor) in editors.iter().enumerate() {
                for call in 0..CALLS {
                    let client = world.client(editor);
                    let (stop, counts) = (&stop, (&done, &refused, &given_up));
                    scope.spawn(move || hammer(client, *attack, at * CALLS + call, stop, counts));
                }
            }
            watch(&world, each)
        });
        let tried = (done.load(Relaxed), refused.load(Relaxed), given_up.load(Relaxed));
        println!("{name}: {} done, {} refused, {} given up; {seen}", tried.0, tried.1, tried.2);
        assert!(tried.0 + tried.1 + tried.2 > 0, "{name}: nothing was tried");
        assert!(seen.p99 <= bound, "{name}: {seen}; quiet: {quiet}");
        assert!(seen.slowest_revocation <= revoked, "{name}: {seen}; quiet: {quiet}");
    }
}

fn hammer(
    client: AdminClient<Channel>,
    attack: Attack,
    worker: usize,
    stop: &AtomicBool,
    (done, refused, given_up): (&AtomicU64, &AtomicU64, &AtomicU64),
) {
    let mut n = worker * 1_000_000;
    while !stop.load(Relaxed) {
        n += 1;
        let call = attack(client.clone(), n);
        // A call that isn't answered by the end is given up, which must cost nobody anything
        // either.
        let over = async {
            while !stop.load(Relaxed) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let outcome = runtime().block_on(async {
            tokio::select! {
                outcome = call => Some(outcome),
                () = over => None,
            }
        });
        match outcome {
            Some(Ok(())) => drop(done.fetch_add(1, Relaxed)),
            Some(Err(status)) => {
                let known = [Code::ResourceExhausted, Code::Aborted, Code::DeadlineExceeded, Code::Unavailable];
                assert!(known.contains(&status.code()), "{status:?}");
                refused.fetch_add(1, Relaxed);
            }
            None => drop(given_up.fetch_add(1, Relaxed)),
        }
    }
}

struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

/// What the tenant `default` sees for a while: each request is served, each revocation enforced.
fn watch(world: &World, duration: Duration) -> Seen {
    let until = Instant::now() + duration;
    let (mut times, mut revocations, mut slowest) = (Vec::new(), 0, Duration::ZERO);
    std::thread::scope(|scope| {
        let requests = scope.spawn(|| {
            let mut times = Vec::new();
            while Instant::now() < until {
                let (status, took) = world.request();
                assert_eq!(status, 200, "a request of another tenant, after {took:?}");
                times.push(took);
            }
            times
        });
        let mut root = world.root();
        while revocations == 0 || Instant::now() < until {
            let (enforced, took) = runtime().block_on(World::revoke(&mut root));
            assert!(enforced, "not enforced after {took:?}");
            slowest = slowest.max(took);
            revocations += 1;
            std::thread::sleep(REVOKE_EVERY);
        }
        times = requests.join().unwrap();
    });
    times.sort_unstable();
    let at = |share: usize| times[(times.len() - 1) * share / 100];
    Seen { requests: times.len(), p50: at(50), p99: at(99), revocations, slowest_revocation: slowest }
}
