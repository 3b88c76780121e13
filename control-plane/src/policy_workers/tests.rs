use std::sync::mpsc;

use futures_util::FutureExt as _;

use super::*;

fn of(tenant: &str, operator: &str) -> Requester {
    Requester { tenant: tenant.into(), operator: operator.into() }
}

/// A job that runs until the sender is dropped.
fn held() -> (mpsc::Sender<()>, impl FnOnce() + Send + 'static) {
    let (release, held) = mpsc::channel::<()>();
    (release, move || held.recv().unwrap_or_default())
}

#[tokio::test]
async fn a_tenant_that_fills_its_queue_holds_up_no_other() {
    let workers = PolicyWorkers::with_threads(2).unwrap();
    let (mut releases, mut calls) = (Vec::new(), Vec::new());
    for n in 0..MAX_OF_TENANT {
        let (release, work) = held();
        releases.push(release);
        let (workers, who) = (workers.clone(), of("hostile", &format!("op-{}", n / MAX_OF_OPERATOR)));
        let mut call = async move { workers.run(&who, work).await }.boxed();
        assert!((&mut call).now_or_never().is_none());
        calls.push(call);
    }
    let refused = workers.run(&of("hostile", "op-new"), || ()).await;
    assert_eq!(refused, Err(PolicyWorkError::Tenant));
    let refused = workers.run(&of("hostile", "op-0"), || ()).await;
    assert_eq!(refused, Err(PolicyWorkError::Operator));
    assert_eq!(workers.run(&of("acme", "op"), || 7).await, Ok(7));
    drop(releases);
    for call in calls {
        assert_eq!(call.await, Ok(()));
    }
    let state = workers.shared.lock();
    assert!(state.queues.is_empty() && state.of_operator.len() + state.of_tenant.len() <= 2, "slots are given back");
}

#[tokio::test]
async fn tenants_take_turns() {
    let workers = PolicyWorkers::with_threads(1).unwrap();
    let (release, work) = held();
    let first = tokio::spawn({
        let workers = workers.clone();
        async move { workers.run(&of("a", "x"), work).await }
    });
    while workers.shared.lock().running.is_empty() {
        tokio::task::yield_now().await;
    }
    let (order, ran) = mpsc::channel();
    let mut calls = Vec::new();
    for (tenant, operator) in [("a", "x"), ("a", "y"), ("a", "z"), ("b", "x")] {
        let (workers, order, who) = (workers.clone(), order.clone(), of(tenant, operator));
        let mut call = async move { workers.run(&who, move || order.send(tenant).unwrap()).await }.boxed();
        assert!((&mut call).now_or_never().is_none());
        calls.push(call);
    }
    drop((release, order));
    futures_util::future::join_all(calls).await;
    first.await.unwrap().unwrap();
    assert_eq!(ran.iter().collect::<Vec<_>>(), ["b", "a", "a", "a"]);
}

#[tokio::test]
async fn a_call_that_is_cancelled_leaves_the_queue_and_is_never_run() {
    let workers = PolicyWorkers::with_threads(1).unwrap();
    let (release, work) = held();
    let (running, who) = (workers.clone(), of("a", "x"));
    let running = tokio::spawn(async move { running.run(&who, work).await });
    while workers.shared.lock().running.is_empty() {
        tokio::task::yield_now().await;
    }
    for _ in 0..100 {
        let who = of("a", "x");
        let call = workers.run(&who, || panic!("it was cancelled"));
        assert!(call.now_or_never().is_none());
    }
    assert_eq!(count(&workers.shared.lock().of_operator, "x"), 1, "the one that runs");
    drop(release);
    running.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_panic_is_a_failure_and_costs_no_thread() {
    let workers = PolicyWorkers::with_threads(1).unwrap();
    for _ in 0..3 {
        let failed = workers.run(&of("a", "x"), || panic!("Cedar")).await;
        assert_eq!(failed, Err(PolicyWorkError::Failed));
    }
    assert_eq!(workers.run(&of("a", "x"), || 7).await, Ok(7));
}

#[tokio::test(start_paused = true)]
async fn who_waits_too_long_is_told_so() {
    let workers = PolicyWorkers::with_threads(1).unwrap();
    let (release, work) = held();
    let late = workers.run(&of("a", "x"), work).await;
    assert_eq!(late, Err(PolicyWorkError::Late));
    drop(release);
}
