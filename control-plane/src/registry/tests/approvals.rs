//! Nodes that lie about approvals, and those who race for them.

use seks_policy::sha256_of;
use seks_types::id::PolicyId;

use super::*;
use crate::registry::{ApprovalState, Approve, Asked, RefusedRequest};

const POLICY: &str = "@id(\"ask\") @approval(\"payments\") forbid (principal, action, resource);";

struct World {
    f: Fixture,
    token: Token,
}

impl World {
    async fn new() -> Self {
        let f = Fixture::furnished().await;
        let token = f.token().await.token;
        f.registry.apply_policies(&f.tenant, POLICY.into(), &PolicyRun::Here).await.unwrap();
        Self { f, token }
    }

    fn request(&self) -> RefusedRequest {
        RefusedRequest {
            agent: name("bot"),
            token: self.token.id.clone(),
            service: "api".into(),
            method: "POST".into(),
            path: "/v1/refunds".into(),
            query_names: Vec::new(),
            request_sha256: sha256_of("").to_vec(),
            policy: name("ask"),
            policy_sha256: sha256_of(POLICY).to_vec(),
            mcp_method: String::new(),
            mcp_name: String::new(),
        }
    }

    async fn ask(&self, request: &RefusedRequest) -> Asked {
        self.f.registry.ask_approval(&self.f.tenant, (&name("n-1"), "cp"), request).await.unwrap()
    }

    async fn id(&self, request: &RefusedRequest) -> PolicyId {
        match self.ask(request).await {
            Asked::Known(approval) => name(&approval.id),
            other => panic!("{other:?}"),
        }
    }

    async fn approve(&self, id: &PolicyId, limit: u32) -> Result<(Approval, Revision), RegistryError> {
        let approve = Approve { by: name("ann"), seconds: 60, limit, any_values: false, reason: String::new() };
        self.f.registry.grant_approval(&self.f.tenant, id, &approve, &PolicyRun::Here).await
    }

    async fn take(&self, id: &PolicyId) -> bool {
        self.f.registry.use_approval(&self.f.tenant, &name("bot"), id).await.unwrap()
    }
}

#[tokio::test]
async fn a_report_that_does_not_fit_the_records_opens_nothing() {
    let world = World::new().await;
    let f = &world.f;
    f.registry.create_agent(&f.tenant, &name("other"), BTreeMap::new()).await.unwrap();
    let good = world.request();
    let lies = [
        RefusedRequest { agent: name("other"), ..good.clone() },
        RefusedRequest { agent: name("nobody"), ..good.clone() },
        RefusedRequest { token: "tok-0000000000000000".into(), ..good.clone() },
        RefusedRequest { token: String::new(), ..good.clone() },
        RefusedRequest { service: "other".into(), ..good.clone() },
        RefusedRequest { policy: name("granted-services"), ..good.clone() },
        RefusedRequest { policy: name("none"), ..good.clone() },
        RefusedRequest { policy_sha256: sha256_of("another text").to_vec(), ..good.clone() },
        RefusedRequest { request_sha256: Vec::new(), ..good.clone() },
        RefusedRequest { path: "/a\u{202e}b".into(), ..good.clone() },
        RefusedRequest { path: "/\u{1b}[2J".into(), ..good.clone() },
        RefusedRequest { path: format!("/{}", "a".repeat(1024)), ..good.clone() },
        RefusedRequest { query_names: vec!["a b".into()], ..good.clone() },
    ];
    for lie in &lies {
        assert_eq!(world.ask(lie).await, Asked::Unfounded, "{lie:?}");
    }
    assert!(f.registry.approvals(&f.tenant).await.unwrap().is_empty());
    let elsewhere = f.registry.ask_approval(&name("ghost"), (&name("n-1"), "cp"), &good).await.unwrap();
    assert_eq!(elsewhere, Asked::Unfounded);
    assert!(matches!(world.ask(&good).await, Asked::Known(_)));
}

#[tokio::test]
async fn a_use_takes_an_approval_that_holds_and_its_own_agent() {
    let world = World::new().await;
    let id = world.id(&world.request()).await;
    assert!(!world.take(&id).await, "it waits");
    assert!(!world.take(&name("apr-forged")).await);
    assert!(!world.take(&name("granted-services")).await, "another policy");
    world.approve(&id, 2).await.unwrap();
    let f = &world.f;
    f.registry.create_agent(&f.tenant, &name("other"), BTreeMap::new()).await.unwrap();
    assert!(!f.registry.use_approval(&f.tenant, &name("other"), &id).await.unwrap());
    assert!(world.take(&id).await);
    f.registry.revoke_approval(&f.tenant, &id).await.unwrap();
    assert!(!world.take(&id).await, "it was revoked");
    assert!(matches!(world.approve(&id, 2).await, Err(RegistryError::Conflict { .. })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_last_use_is_taken_once_however_many_nodes_want_it() {
    let world = Arc::new(World::new().await);
    for round in 0..5 {
        let id = world.id(&RefusedRequest { path: format!("/{round}"), ..world.request() }).await;
        world.approve(&id, 3).await.unwrap();
        let takers: Vec<_> = (0..8)
            .map(|_| {
                let (world, id) = (Arc::clone(&world), id.clone());
                tokio::spawn(async move { world.take(&id).await })
            })
            .collect();
        let mut taken = 0;
        for taker in takers {
            taken += usize::from(taker.await.unwrap());
        }
        assert_eq!(taken, 3, "round {round}");
        assert_eq!(world.f.registry.approval(&world.f.tenant, &id).await.unwrap().state(), ApprovalState::UsedUp);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_use_is_taken_after_a_revocation() {
    let world = Arc::new(World::new().await);
    for round in 0..10 {
        let id = world.id(&RefusedRequest { path: format!("/{round}"), ..world.request() }).await;
        world.approve(&id, 1000).await.unwrap();
        let takers: Vec<_> = (0..4)
            .map(|_| {
                let (world, id) = (Arc::clone(&world), id.clone());
                tokio::spawn(async move { while world.take(&id).await {} })
            })
            .collect();
        world.f.registry.revoke_approval(&world.f.tenant, &id).await.unwrap();
        let used = world.f.registry.approval(&world.f.tenant, &id).await.unwrap().used;
        for taker in takers {
            taker.await.unwrap();
        }
        assert_eq!(world.f.registry.approval(&world.f.tenant, &id).await.unwrap().used, used, "round {round}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn equal_requests_have_one_approval_and_an_agent_ten_that_wait() {
    let world = Arc::new(World::new().await);
    let askers: Vec<_> = (0..8)
        .map(|_| {
            let world = Arc::clone(&world);
            tokio::spawn(async move { world.id(&world.request()).await })
        })
        .collect();
    let mut ids = Vec::new();
    for asker in askers {
        ids.push(asker.await.unwrap());
    }
    ids.dedup();
    assert_eq!(ids.len(), 1, "{ids:?}");
    let askers: Vec<_> = (0..30)
        .map(|at| {
            let world = Arc::clone(&world);
            let request = RefusedRequest { path: format!("/{at}"), ..world.request() };
            tokio::spawn(async move { matches!(world.ask(&request).await, Asked::Known(_)) })
        })
        .collect();
    let mut opened = 0;
    for asker in askers {
        opened += usize::from(asker.await.unwrap());
    }
    assert_eq!(opened, limits::WAITING_APPROVALS_OF_AGENT - 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn two_operators_decide_once() {
    let world = Arc::new(World::new().await);
    for round in 0..5 {
        let id = world.id(&RefusedRequest { path: format!("/{round}"), ..world.request() }).await;
        let (approver, denier) = (Arc::clone(&world), Arc::clone(&world));
        let (first, second) = (id.clone(), id.clone());
        let approved = tokio::spawn(async move { approver.approve(&first, 0).await.is_ok() });
        let by = name("bob");
        let denied = tokio::spawn(async move {
            denier.f.registry.deny_approval(&denier.f.tenant, &second, (&by, 60, "")).await.is_ok()
        });
        let (approved, denied) = (approved.await.unwrap(), denied.await.unwrap());
        assert!(approved != denied, "round {round}");
        let granted = world.f.registry.policy(&world.f.tenant, &id).await.is_ok();
        assert_eq!(granted, approved, "round {round}");
    }
}
