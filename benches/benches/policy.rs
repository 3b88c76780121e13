//! What a policy decision costs: `cargo bench -p seks-benches --bench policy`.
//!
//! Beside ours, Cedar alone: the whole policy set and the whole request for each call, as the
//! library is usually used.

#![expect(clippy::expect_used, reason = "a benchmark that can't be set up has nothing to say")]
#![allow(missing_docs, reason = "divan makes items of its own")]

use std::{collections::BTreeMap, hint::black_box, sync::Arc};

use divan::Bencher;
use http::Method;
use seks_policy::{Body, Call, GRANTED_SERVICES, MethodGroup, Policies, PolicySlice, parse_file};
use seks_proto::wire;
use seks_types::id::{AgentName, ServiceName, TokenId};

const COUNTS: [usize; 4] = [1, 5, 20, 100];

fn main() {
    divan::main();
}

/// One permit for everything granted, and `n - 1` forbids that don't apply.
fn text(n: usize, forbid: impl Fn(usize) -> String) -> String {
    let forbids = (1..n).map(|i| format!("@id(\"f{i}\") forbid (principal, action, resource) {};\n", forbid(i)));
    forbids.fold(GRANTED_SERVICES.to_owned(), |text, forbid| text + &forbid)
}

fn by_path(i: usize) -> String {
    format!("when {{ context.path like \"/v1/admin{i}/*\" }}")
}

fn by_age(i: usize) -> String {
    format!("when {{ context.token.age_seconds > {} }}", 1_000_000 + i)
}

fn by_group(i: usize) -> String {
    format!("when {{ principal in Seks::Group::\"team{i}\" }}")
}

struct Fixture {
    policies: Policies,
    agent: AgentName,
    attributes: BTreeMap<String, String>,
    service: ServiceName,
    token: TokenId,
}

impl Fixture {
    fn new(text: &str) -> Self {
        let parsed = parse_file(text).expect("policies");
        let records: Vec<_> = parsed
            .into_iter()
            .map(|(id, text)| wire::Policy { id: id.to_string(), text, ..wire::Policy::default() })
            .collect();
        Self {
            policies: Policies::compile(&records).expect("policies"),
            agent: "ci-bot".parse().expect("name"),
            attributes: BTreeMap::from([("team".to_owned(), "billing".to_owned())]),
            service: "openai".parse().expect("name"),
            token: "tok-1".parse().expect("name"),
        }
    }

    fn slice(&self) -> Arc<PolicySlice> {
        self.policies.slice_for(&self.agent, &self.attributes, &self.service)
    }

    fn call<'a>(&'a self, path: &'a str) -> Call<'a> {
        Call {
            mcp: false,
            trust: None,
            method: &Method::POST,
            method_group: MethodGroup::Write,
            path,
            query: "",
            token: self.token.as_str(),
            services: std::slice::from_ref(&self.service),
            age_seconds: 60,
            source: [10, 1, 2, 3].into(),
            body: Body::NotRead,
        }
    }
}

const PATH: &str = "/v1/chat/completions";

fn decide(bencher: Bencher<'_, '_>, text: &str, path: &str) {
    let fixture = Fixture::new(text);
    let (slice, call) = (fixture.slice(), fixture.call(path));
    assert!(slice.decide(&call).allowed);
    bencher.bench(|| black_box(&slice).decide(black_box(&call)));
}

/// As on a node: the slice is found first.
#[divan::bench]
fn granted_services_with_look_up(bencher: Bencher<'_, '_>) {
    let fixture = Fixture::new(GRANTED_SERVICES);
    let call = fixture.call(PATH);
    bencher.bench(|| black_box(&fixture).slice().decide(black_box(&call)));
}

/// Constant once the slice is made: groups, attributes, services, methods.
#[divan::bench(args = COUNTS)]
fn settled(bencher: Bencher<'_, '_>, n: usize) {
    decide(bencher, &text(n, by_group), PATH);
}

/// Answered without Cedar.
#[divan::bench(args = COUNTS)]
fn paths(bencher: Bencher<'_, '_>, n: usize) {
    decide(bencher, &text(n, by_path), PATH);
}

/// The same with capitals in the path: decided twice.
#[divan::bench(args = COUNTS)]
fn paths_in_both_readings(bencher: Bencher<'_, '_>, n: usize) {
    decide(bencher, &text(n, by_path), "/v1/files/README.md");
}

/// Answered by Cedar.
#[divan::bench(args = COUNTS)]
fn leaves(bencher: Bencher<'_, '_>, n: usize) {
    decide(bencher, &text(n, by_age), PATH);
}

/// Making a slice and its first decision: once for an agent and a service after a change of
/// policies.
#[divan::bench(args = COUNTS)]
fn first_decision(bencher: Bencher<'_, '_>, n: usize) {
    let text = text(n, by_group);
    bencher.with_inputs(|| Fixture::new(&text)).bench_refs(|fixture| fixture.slice().decide(&fixture.call(PATH)));
}

/// Compiling a tenant's policies: once for a change.
#[divan::bench(args = COUNTS)]
fn compile(bencher: Bencher<'_, '_>, n: usize) {
    let text = text(n, by_path);
    bencher.bench(|| Fixture::new(black_box(&text)));
}

mod cedar_alone {
    use std::str::FromStr as _;

    use cedar_policy::{
        Authorizer, Context, Decision, Entities, Entity, EntityUid, PolicySet, Request, RestrictedExpression as Value,
    };

    use super::{Bencher, COUNTS, black_box, by_path, text};

    fn uid(kind: &str, name: &str) -> EntityUid {
        format!("Seks::{kind}::\"{name}\"").parse().expect("uid")
    }

    fn request() -> Request {
        let token = [
            ("id".to_owned(), Value::new_string("tok-1".into())),
            ("services".to_owned(), Value::new_set([Value::new_entity_uid(uid("Service", "openai"))])),
            ("age_seconds".to_owned(), Value::new_long(60)),
        ];
        let pairs = [
            ("path".to_owned(), Value::new_string(super::PATH.into())),
            ("query_keys".to_owned(), Value::new_set([])),
            ("token".to_owned(), Value::new_record(token).expect("record")),
            ("source".to_owned(), Value::new_ip("10.1.2.3")),
            ("body_inspected".to_owned(), Value::new_bool(false)),
        ];
        let context = Context::from_pairs(pairs).expect("context");
        let (agent, action) = (uid("Agent", "ci-bot"), uid("Action", "POST"));
        Request::new(agent, action, uid("Service", "openai"), context, None).expect("request")
    }

    #[divan::bench(args = COUNTS)]
    fn paths(bencher: Bencher<'_, '_>, n: usize) {
        let policies = PolicySet::from_str(&text(n, by_path)).expect("policies");
        let known = [Entity::with_uid(uid("Agent", "ci-bot")), Entity::with_uid(uid("Service", "openai"))];
        let entities = Entities::from_entities(known, None).expect("entities");
        let authorizer = Authorizer::new();
        bencher.bench(|| {
            let response = authorizer.is_authorized(&request(), black_box(&policies), &entities);
            assert_eq!(response.decision(), Decision::Allow);
        });
    }
}
