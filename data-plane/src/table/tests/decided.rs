//! What was decided on records of a tenant, and changes of these.

use std::{
    future::Future as _,
    pin::pin,
    sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    task::{Context, Poll, Waker},
};

use super::*;

#[derive(Default)]
struct Woken(AtomicBool);

impl std::task::Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, SeqCst);
    }
}

/// Permits as long as the service has this upstream.
struct While(&'static str, Arc<AtomicU64>);

impl Reevaluate for While {
    fn reevaluate(&self, _: &TokenEntry, service: &ServiceEntry) -> Verdict {
        self.1.fetch_add(1, SeqCst);
        match service.upstream.host() == self.0 {
            true => Verdict::Holds,
            false => Verdict::Withdrawn(CutReason::ServiceChanged),
        }
    }
}

#[test]
fn what_was_decided_is_decided_again_once_for_every_change_and_for_no_other() {
    let (table, asked) = (loaded(), Arc::new(AtomicU64::new(0)));
    let version = honoured(&table, 1).unwrap().tenant_state().version();
    let mut cut = registered(&table, 1).with_decision(version, Box::new(While("api.openai.com", asked.clone())));
    assert!(cut.is_latest() && cut.reason().is_none() && asked.load(SeqCst) == 0, "nothing has changed");
    let mut revision = 10;
    let mut apply = |changes| {
        table.apply(delta(revision, revision + 1, changes)).unwrap();
        revision += 1;
    };
    // Of another tenant, a token, a new agent, and the same service once more.
    let other =
        Change::Agent { tenant: name("other"), name: name("bot"), attributes: Attributes::new(), disabled: true };
    let new = Change::Agent { tenant: name("acme"), name: name("new"), attributes: Attributes::new(), disabled: false };
    apply(vec![other, new, token(3), revoke(2), service("openai", "https://api.openai.com")]);
    assert!(cut.is_latest() && cut.reason().is_none() && asked.load(SeqCst) == 0);
    for (n, change) in [policies(), credential(2, "sk-2"), agent(false)].into_iter().enumerate() {
        apply(vec![change]);
        assert!(!cut.is_latest());
        assert_eq!((cut.reason(), cut.reason(), cut.is_latest()), (None, None, true));
        assert_eq!(asked.load(SeqCst), n as u64 + 1);
    }
    apply(vec![service("openai", "https://elsewhere.test")]);
    assert_eq!(cut.reason(), Some(CutReason::ServiceChanged));
    assert_eq!(cut.reason(), Some(CutReason::ServiceChanged), "and stays so");
}

#[test]
fn a_change_wakes_whoever_was_decided_on_what_it_changes_and_so_does_a_snapshot() {
    for change in [policies(), service("openai", "https://elsewhere.test"), credential(2, "sk-2"), agent(false)] {
        let (table, asked) = (loaded(), Arc::new(AtomicU64::new(0)));
        let version = honoured(&table, 1).unwrap().tenant_state().version();
        let mut cut = pin!(registered(&table, 1).with_decision(version, Box::new(While("api.openai.com", asked))));
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(woken.clone());
        assert!(cut.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        table.apply(delta(10, 11, vec![change])).unwrap();
        assert!(woken.0.swap(false, SeqCst));
        let _ = cut.as_mut().poll(&mut Context::from_waker(&waker));
        let mut all = whole();
        all.push(service("openai", "https://elsewhere.test"));
        table.load("e1", 12, all).unwrap();
        assert!(woken.0.load(SeqCst), "a snapshot");
        assert_eq!(cut.as_mut().poll(&mut Context::from_waker(&waker)), Poll::Ready(CutReason::ServiceChanged));
    }
}
