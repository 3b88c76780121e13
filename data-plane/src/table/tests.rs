mod decided;

use std::{
    future::Future as _,
    pin::pin,
    sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    task::{Context, Poll, Waker},
    thread,
    time::Duration,
};

use seks_lease::BootInstant;
use seks_policy::GRANTED_SERVICES;
use seks_proto::wire;
use seks_service::Service;
use seks_types::{secret::Fields, secret::Secret};

use super::*;

fn name<N: for<'a> TryFrom<&'a str>>(text: &str) -> N {
    N::try_from(text).ok().unwrap()
}

fn digest(n: u64) -> Digest {
    Digest::of(&n.to_be_bytes())
}

fn service(service: &str, upstream: &str) -> Change {
    let wire = wire::Service {
        tenant: "acme".into(),
        name: service.into(),
        upstream: upstream.into(),
        fields: vec!["key".into()],
        injection: Some(wire::Injection {
            sites: vec![wire::injection::Site {
                at: Some(wire::injection::site::At::Header(wire::injection::NamedValue {
                    name: "authorization".into(),
                    value: "Bearer {key}".into(),
                })),
            }],
            ..Default::default()
        }),
        slots: vec![wire::TokenSlot { at: Some(wire::token_slot::At::Scheme("bearer".into())) }],
        ..Default::default()
    };
    Change::Service(Box::new(Service::try_from(&wire).unwrap()))
}

fn credential(version: u32, key: &str) -> Change {
    let fields = Fields::parse(&["key"], &Secret::new(key.into())).unwrap();
    Change::Credential {
        minted: false,
        tenant: name("acme"),
        name: name("main"),
        service: name("openai"),
        version,
        destination: None,
        secret: Some(Secret::new(fields.encoded().expose().to_vec())),
    }
}

fn agent(disabled: bool) -> Change {
    Change::Agent { tenant: name("acme"), name: name("bot"), attributes: Attributes::new(), disabled }
}

fn token(n: u64) -> Change {
    Change::Token(Box::new(TokenRecord {
        digest: digest(n),
        id: format!("tok-{n}"),
        tenant: name("acme"),
        agent: name("bot"),
        grants: vec![(name("openai"), name("main"))],
        issued_at: 1,
        expires_at: 0,
        cidrs: Vec::new(),
        certificate: None,
        trust: None,
    }))
}

fn revoke(n: u64) -> Change {
    Change::RevokeToken {
        digest: digest(n),
        id: format!("tok-{n}"),
        tenant: name("acme"),
        agent: name("bot"),
        until: 1000,
    }
}

fn policies() -> Change {
    let policy = wire::Policy { id: "granted-services".into(), text: GRANTED_SERVICES.into(), ..Default::default() };
    Change::Policies(name("acme"), Some(Arc::new(Policies::compile(&[policy]).unwrap())))
}

fn whole() -> Vec<Change> {
    let tenant = Change::Tenant(name("acme"));
    let service = service("openai", "https://api.openai.com");
    vec![tenant, token(1), token(2), agent(false), service, credential(1, "sk-1"), policies()]
}

fn delta(previous: u64, revision: u64, changes: Vec<Change>) -> Delta {
    Delta { epoch: "e1".into(), previous, revision, changes, marks: Vec::new() }
}

/// A table that honours the tokens 1 and 2.
pub(crate) fn loaded() -> Arc<Table> {
    let table = Arc::new(Table::new().unwrap());
    table.load("e1", 10, whole()).unwrap();
    table.lease().extend(BootInstant::now().plus(Duration::from_secs(600)));
    table
}

fn honoured(table: &Table, n: u64) -> Option<Arc<TokenEntry>> {
    match table.find(&digest(n)) {
        Found::Token(token) => Some(token),
        _ => None,
    }
}

/// A request of token `n`.
pub(crate) fn registered(table: &Arc<Table>, n: u64) -> Cut {
    let token = honoured(table, n).unwrap();
    table.register(digest(n), &token, &name("openai")).unwrap()
}

#[test]
fn a_token_leads_to_everything_that_its_request_needs() {
    let table = loaded();
    let token = honoured(&table, 1).unwrap();
    assert_eq!((token.id(), token.tenant().as_str(), token.agent_name().as_str()), ("tok-1", "acme", "bot"));
    assert!(!token.agent().unwrap().disabled && token.policies().is_some());
    assert!(token.grant("github").is_none());
    let grant = token.grant("openai").unwrap();
    assert_eq!(grant.service().unwrap().upstream.host(), "api.openai.com");
    let credential = grant.credential().unwrap();
    assert_eq!((credential.version, credential.open().unwrap().get("key")), (1, Some(&b"sk-1"[..])));
    let (acme, bot) = (name("acme"), name("bot"));
    assert!(table.agent(&acme, &bot).is_some() && table.agent(&name("other"), &bot).is_none());
    assert!(table.service(&acme, &name("openai")).is_some() && table.credential(&acme, &name("main")).is_some());
    assert!(matches!(table.find(&digest(99)), Found::Unknown));
    assert_eq!((table.revision(), &*table.epoch(), table.len()), (10, "e1", 2));
}

#[test]
fn a_delta_applies_only_where_it_follows() {
    let table = loaded();
    let gap = table.apply(delta(11, 12, vec![revoke(1)]));
    assert_eq!(gap, Err(ApplyError::Gap { applied: 10, previous: 11 }));
    let back = table.apply(delta(10, 9, vec![revoke(1)]));
    assert_eq!(back, Err(ApplyError::Backwards { applied: 10, offered: 9 }));
    let other = table.apply(Delta { epoch: "e2".into(), ..delta(10, 12, vec![revoke(1)]) });
    assert!(matches!(other, Err(ApplyError::Epoch { .. })));
    assert!(honoured(&table, 1).is_some() && table.revision() == 10, "a refused delta changes nothing");
    table.apply(delta(10, 15, vec![revoke(1)])).unwrap();
    assert!(matches!(table.find(&digest(1)), Found::Revoked(r) if r.id == "tok-1"));
    assert_eq!(table.revision(), 15);
}

#[test]
fn a_change_to_a_shared_record_is_seen_through_every_token() {
    let table = loaded();
    let before = honoured(&table, 1).unwrap();
    table.apply(delta(10, 11, vec![agent(true), credential(2, "sk-2")])).unwrap();
    for token in [before, honoured(&table, 2).unwrap()] {
        assert!(token.agent().unwrap().disabled);
        let credential = token.grant("openai").unwrap().credential().unwrap();
        assert_eq!((credential.version, credential.open().unwrap().get("key")), (2, Some(&b"sk-2"[..])));
    }
    table.apply(delta(11, 12, vec![Change::RemoveService(name("acme"), name("openai"))])).unwrap();
    assert!(honoured(&table, 1).unwrap().grant("openai").unwrap().service().is_none());
}

#[test]
fn a_revoked_token_does_not_come_back_by_a_late_put() {
    let table = loaded();
    table.apply(delta(10, 11, vec![revoke(1)])).unwrap();
    table.apply(delta(11, 12, vec![token(1)])).unwrap();
    assert!(matches!(table.find(&digest(1)), Found::Revoked(_)));
    table.sweep(999);
    assert!(matches!(table.find(&digest(1)), Found::Revoked(_)), "remembered until it would have expired");
    table.sweep(1000);
    assert!(matches!(table.find(&digest(1)), Found::Unknown));
}

#[test]
fn a_snapshot_replaces_everything_and_merges_nothing() {
    let table = loaded();
    table.load("e1", 20, vec![token(2), agent(false)]).unwrap();
    assert!(honoured(&table, 1).is_none() && honoured(&table, 2).is_some());
    assert!(table.service(&name("acme"), &name("openai")).is_none());
    assert_eq!(table.load("e1", 19, whole()), Err(ApplyError::Backwards { applied: 20, offered: 19 }));
    assert_eq!(table.revision(), 20);
    table.load("e2", 3, Vec::new()).unwrap();
    assert_eq!((&*table.epoch(), table.revision(), table.len()), ("e2", 3, 0), "another epoch counts anew");
}

#[test]
fn an_unfinished_snapshot_is_never_seen() {
    let table = loaded();
    let mut staging = table.stage("e1", 20, 1);
    staging.put(token(3)).unwrap();
    assert!(honoured(&table, 3).is_none() && honoured(&table, 1).is_some());
    table.narrow(&[revoke(1), token(4), agent(true)]);
    assert!(honoured(&table, 1).is_none() && honoured(&table, 4).is_none(), "only what takes rights away");
    assert!(honoured(&table, 2).unwrap().agent().unwrap().disabled && table.revision() == 10);
    staging.apply(delta(20, 21, vec![token(4)])).unwrap();
    table.swap(staging).unwrap();
    assert!(honoured(&table, 3).is_some() && honoured(&table, 4).is_some() && table.revision() == 21);
}

#[test]
fn a_removed_tenant_leaves_nothing_and_nobody_elses_goes_with_it() {
    let table = loaded();
    let other =
        Change::Agent { tenant: name("acme2"), name: name("bot"), attributes: Attributes::new(), disabled: false };
    let mut cut = registered(&table, 1);
    table.apply(delta(10, 11, vec![other, Change::RemoveTenant(name("acme"))])).unwrap();
    assert_eq!((table.len(), cut.reason()), (0, Some(CutReason::TokenRevoked)));
    assert!(table.policies(&name("acme")).is_none() && table.agent(&name("acme2"), &name("bot")).is_some());
}

#[test]
fn equal_services_keep_their_number_and_new_credentials_get_one() {
    let table = loaded();
    let of = |table: &Table| {
        let (tenant, openai, main) = (name("acme"), name("openai"), name("main"));
        let credential = table.credential(&tenant, &main).unwrap();
        (table.service(&tenant, &openai).unwrap().generation, credential.generation)
    };
    let before = of(&table);
    table.load("e1", 20, whole()).unwrap();
    assert_eq!(of(&table).0, before.0);
    table.apply(delta(20, 21, vec![service("openai", "https://eu.openai.com"), credential(1, "sk-other")])).unwrap();
    assert!(of(&table).0 != before.0 && of(&table).1 != before.1);
}

#[test]
fn what_may_cut_a_request_cuts_it_and_nothing_else() {
    let gone = |change: fn() -> Change| {
        let table = loaded();
        let mut cut = registered(&table, 1);
        assert_eq!(cut.reason(), None);
        table.apply(delta(10, 11, vec![change()])).unwrap();
        cut.reason()
    };
    assert_eq!(gone(|| revoke(1)), Some(CutReason::TokenRevoked));
    assert_eq!(gone(|| revoke(2)), None);
    assert_eq!(gone(|| agent(true)), Some(CutReason::AgentDisabled));
    assert_eq!(gone(|| agent(false)), None);
    assert_eq!(gone(|| Change::RemoveAgent(name("acme"), name("bot"))), Some(CutReason::AgentDisabled));
    assert_eq!(gone(|| Change::RemoveService(name("acme"), name("openai"))), Some(CutReason::ServiceRemoved));
    assert_eq!(gone(|| Change::RemoveCredential(name("acme"), name("main"))), Some(CutReason::CredentialRemoved));
    assert_eq!(gone(|| credential(2, "sk-2")), None, "a rotation lets requests in flight finish");
}

#[test]
fn an_agent_that_was_disabled_for_a_moment_is_cut_all_the_same() {
    let table = loaded();
    let mut cut = registered(&table, 1);
    table.apply(delta(10, 11, vec![agent(true)])).unwrap();
    table.apply(delta(11, 12, vec![agent(false)])).unwrap();
    assert_eq!(cut.reason(), Some(CutReason::AgentDisabled));
    assert_eq!(registered(&table, 1).reason(), None);
}

#[test]
fn a_request_follows_its_token_into_a_new_snapshot_or_is_cut_by_it() {
    let table = loaded();
    let (mut kept, mut lost) = (registered(&table, 1), registered(&table, 2));
    let without = whole().into_iter().filter(|c| !matches!(c, Change::Token(t) if t.id == "tok-2")).collect();
    table.load("e1", 20, without).unwrap();
    assert_eq!((kept.reason(), lost.reason()), (None, Some(CutReason::TokenRevoked)));
    table.apply(delta(20, 21, vec![revoke(1)])).unwrap();
    assert_eq!(kept.reason(), Some(CutReason::TokenRevoked), "what it follows to can cut it too");
}

#[test]
fn a_request_that_registers_with_a_token_of_the_old_table_is_checked_against_the_new() {
    let table = loaded();
    let old = honoured(&table, 1).unwrap();
    table.load("e1", 20, vec![agent(false)]).unwrap();
    let mut cut = table.register(digest(1), &old, &name("openai")).unwrap();
    assert_eq!(cut.reason(), Some(CutReason::TokenRevoked));
}

#[test]
fn a_cut_wakes_its_task_also_after_a_swap_and_at_the_end_of_the_lease() {
    struct Flag(AtomicBool);
    impl std::task::Wake for Flag {
        fn wake(self: Arc<Self>) {
            self.0.store(true, SeqCst);
        }
    }
    let flag = Arc::new(Flag(false.into()));
    let waker = Waker::from(flag.clone());
    let mut context = Context::from_waker(&waker);
    let woken = || flag.0.swap(false, SeqCst);

    let table = loaded();
    let mut cut = pin!(registered(&table, 1));
    assert!(cut.as_mut().poll(&mut context).is_pending());
    table.apply(delta(10, 11, vec![token(7)])).unwrap();
    assert!(!woken(), "other changes don't");
    table.load("e1", 20, whole()).unwrap();
    assert!(woken() && cut.as_mut().poll(&mut context).is_pending());
    table.apply(delta(20, 21, vec![agent(true)])).unwrap();
    assert!(woken());
    assert_eq!(cut.as_mut().poll(&mut context), Poll::Ready(CutReason::AgentDisabled));

    table.load("e1", 30, whole()).unwrap();
    let mut cut = pin!(registered(&table, 1));
    assert!(cut.as_mut().poll(&mut context).is_pending());
    woken();
    table.lease().end();
    table.wake_all();
    assert!(woken());
    assert_eq!(cut.as_mut().poll(&mut context), Poll::Ready(CutReason::LeaseExpired));
}

/// The acknowledgement is sent after `apply` returned: from then on no look-up may find the token,
/// and no registered request may pass its last check.
#[test]
fn no_lookup_that_begins_after_the_ack_finds_a_revoked_token() {
    const TOKENS: u64 = 400;
    let table = loaded();
    table.apply(delta(10, 11, (100..100 + TOKENS).map(token).collect())).unwrap();
    let (acked, served, stop) = (AtomicU64::new(100), AtomicU64::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                while !stop.load(SeqCst) {
                    for n in 100..100 + TOKENS {
                        let revoked_before = acked.load(SeqCst) > n;
                        let token = honoured(&table, n);
                        assert!(!(revoked_before && token.is_some()), "token {n} was found after its ack");
                        let Some(token) = token else { continue };
                        let mut cut = table.register(digest(n), &token, &name("openai")).unwrap();
                        let revoked_before = acked.load(SeqCst) > n;
                        if cut.reason().is_none() {
                            assert!(!revoked_before, "token {n} passed the last check after its ack");
                            assert_eq!(token.id(), format!("tok-{n}"));
                            served.fetch_add(1, SeqCst);
                        }
                    }
                }
            });
        }
        for n in 0..TOKENS {
            let revision = table.revision();
            if n % 100 == 50 {
                // A snapshot among the deltas: what was revoked is absent from it.
                let mut rest = whole();
                rest.extend((100 + n..100 + TOKENS).map(token));
                table.load("e1", revision, rest).unwrap();
            }
            table.apply(delta(revision, revision + 1, vec![revoke(100 + n)])).unwrap();
            acked.store(100 + n + 1, SeqCst);
            thread::yield_now();
        }
        stop.store(true, SeqCst);
    });
    assert!(served.load(SeqCst) > 0, "the readers ran");
}

#[test]
fn sweeping_keeps_what_is_in_use() {
    let table = loaded();
    table.apply(delta(10, 11, vec![revoke(1), revoke(2), Change::RemoveAgent(name("acme"), name("bot"))])).unwrap();
    table.sweep(0);
    table.apply(delta(11, 12, vec![token(3), agent(false)])).unwrap();
    let token = honoured(&table, 3).unwrap();
    assert!(token.agent().is_some() && token.grant("openai").unwrap().credential().is_some());
}

#[test]
fn a_token_that_cannot_be_enforced_counts_as_held_and_is_not_honoured() {
    let (table, other) = (loaded(), loaded());
    let refuse = |n| Change::RefuseToken { digest: digest(n), tenant: name("acme") };
    table.apply(delta(10, 11, vec![refuse(1), refuse(3)])).unwrap();
    other.apply(delta(10, 11, vec![token(3)])).unwrap();
    assert!(matches!(table.find(&digest(1)), Found::Unknown) && matches!(table.find(&digest(3)), Found::Unknown));
    assert_eq!(table.sum(), other.sum());
    // A later version of the node, or of the record, honours it; a revocation takes it out of the
    // sum.
    table.apply(delta(11, 12, vec![token(1), revoke(3)])).unwrap();
    other.apply(delta(11, 12, vec![revoke(3)])).unwrap();
    assert!(matches!(table.find(&digest(1)), Found::Token(_)));
    assert_eq!(table.sum(), other.sum());
}
