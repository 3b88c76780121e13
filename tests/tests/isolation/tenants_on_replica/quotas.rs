//! A tenant has what its quotas allow, writes as fast as its rate allows, and can be listed however
//! much it has.

use seks_proto::wire::{self, Role};
use seks_tests::{Control, control::Pair};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

fn service(tenant: &str, name: &str) -> wire::Service {
    let value = wire::injection::NamedValue { name: "authorization".into(), value: "Bearer {key}".into() };
    let at = Some(wire::injection::site::At::Header(value));
    wire::Service {
        tenant: tenant.into(),
        name: name.into(),
        upstream: "https://api.example.com".into(),
        fields: vec!["key".into()],
        injection: Some(wire::Injection { sites: vec![wire::injection::Site { at }], ..Default::default() }),
        slots: vec![wire::TokenSlot { at: Some(wire::token_slot::At::Scheme("Bearer".into())) }],
        ..Default::default()
    }
}

fn no_wait() -> Option<wire::Wait> {
    Some(wire::Wait { no_wait: true, timeout_ms: 0 })
}

/// A tenant with a service, a credential and an agent; an editor of it.
pub async fn furnish(control: &Control, tenant: &str) -> Pair {
    let mut root = control.root();
    let made = wire::CreateTenantRequest { name: tenant.into(), strict: true };
    root.create_tenant(made).await.unwrap();
    root.apply_service(wire::ApplyServiceRequest { service: Some(service(tenant, "upstream")), wait: no_wait() })
        .await
        .unwrap();
    let put = wire::PutCredentialRequest {
        tenant: tenant.into(),
        name: "key".into(),
        service: "upstream".into(),
        secret: b"sk-REAL-quotas".to_vec(),
        wait: no_wait(),
        ..Default::default()
    };
    root.put_credential(put).await.unwrap();
    let bot = wire::CreateAgentRequest { tenant: tenant.into(), name: "bot".into(), ..Default::default() };
    root.create_agent(bot).await.unwrap();
    control.operator(&format!("editor-of-{tenant}"), &[(tenant, Role::Editor)]).await
}

fn issue(tenant: &str) -> wire::IssueTokenRequest {
    let grants = vec![wire::Grant { service: "upstream".into(), credential: "key".into() }];
    wire::IssueTokenRequest {
        tenant: tenant.into(),
        agent: "bot".into(),
        grants,
        wait: no_wait(),
        ..Default::default()
    }
}

async fn set(control: &Control, tenant: &str, quota: wire::Quota) {
    let set = wire::SetTenantQuotaRequest { name: tenant.into(), quota: Some(quota), reset: false };
    control.root().set_tenant_quota(set).await.unwrap();
}

/// What a refusal for a quota says: which, and how to raise it.
#[track_caller]
fn assert_quota(status: &Status, noun: &str) {
    let info = status.get_details_error_info().unwrap();
    assert_eq!((status.code(), info.reason.as_str()), (Code::ResourceExhausted, "QUOTA"), "{status:?}");
    assert!(status.message().contains(noun) && status.message().contains("quota"), "{status:?}");
    let hint = &info.metadata["hint"];
    assert!(hint.contains("seks tenant quota acme") && hint.contains(&format!("--{noun}")), "{hint}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_quota_is_kept_names_itself_and_is_raised_for_one_tenant() {
    let control = Control::start().await;
    let editor = furnish(&control, "acme").await;
    furnish(&control, "other").await;
    let (mut client, mut root) = (control.client(&editor), control.root());
    let three = wire::Quota {
        tokens: 3,
        agents: 3,
        services: 3,
        credentials: 3,
        policies: 3,
        operators: 3,
        ..Default::default()
    };
    set(&control, "acme", three).await;

    let mut tokens = Vec::new();
    for _ in 0..3 {
        tokens.push(client.issue_token(issue("acme")).await.unwrap().into_inner().token.unwrap().id);
    }
    assert_quota(&client.issue_token(issue("acme")).await.unwrap_err(), "tokens");
    let agent =
        |n: usize| wire::CreateAgentRequest { tenant: "acme".into(), name: format!("a{n}"), ..Default::default() };
    let apply =
        |n: usize| wire::ApplyServiceRequest { service: Some(service("acme", &format!("s{n}"))), wait: no_wait() };
    let put = |n: usize| wire::PutCredentialRequest {
        tenant: "acme".into(),
        name: format!("c{n}"),
        service: "upstream".into(),
        secret: b"x".to_vec(),
        wait: no_wait(),
        ..Default::default()
    };
    for n in 0..2 {
        client.create_agent(agent(n)).await.unwrap();
        client.apply_service(apply(n)).await.unwrap();
        client.put_credential(put(n)).await.unwrap();
    }
    assert_quota(&client.create_agent(agent(2)).await.unwrap_err(), "agents");
    assert_quota(&client.apply_service(apply(2)).await.unwrap_err(), "services");
    assert_quota(&client.put_credential(put(2)).await.unwrap_err(), "credentials");
    let policies = |count: usize| {
        let policy = |n| format!("@id(\"p{n}\") permit (principal, action, resource);\n");
        wire::ApplyPoliciesRequest { tenant: "acme".into(), text: (0..count).map(policy).collect(), wait: no_wait() }
    };
    client.apply_policies(policies(3)).await.unwrap();
    assert_quota(&client.apply_policies(policies(4)).await.unwrap_err(), "policies");
    for n in 0..2 {
        control.operator(&format!("op{n}"), &[("acme", Role::Viewer)]).await;
    }
    let csr_der = {
        let key = rcgen::KeyPair::generate().unwrap();
        rcgen::CertificateParams::default().serialize_request(&key).unwrap().der().to_vec()
    };
    let roles = vec![wire::RoleBinding { tenant: "acme".into(), role: Role::Viewer.into() }];
    let another = wire::CreateOperatorRequest { name: "op2".into(), roles, csr_der, ttl_seconds: 0 };
    assert_quota(&root.create_operator(another).await.unwrap_err(), "operators");

    // What is there goes on, what takes away is free, and makes room.
    client.put_credential(put(0)).await.unwrap();
    let revoke = wire::DeleteRequest { tenant: "acme".into(), name: tokens.pop().unwrap(), wait: no_wait() };
    client.revoke_token(revoke).await.unwrap();
    tokens.push(client.issue_token(issue("acme")).await.unwrap().into_inner().token.unwrap().id);
    assert_quota(&client.issue_token(issue("acme")).await.unwrap_err(), "tokens");
    set(&control, "acme", wire::Quota { tokens: 4, ..Default::default() }).await;
    client.issue_token(issue("acme")).await.unwrap();
    assert_quota(&client.issue_token(issue("acme")).await.unwrap_err(), "tokens");

    let get = |name: &str| wire::NameRequest { tenant: String::new(), name: name.into() };
    let tenant = root.get_tenant(get("acme")).await.unwrap().into_inner();
    let (quota, usage) = (tenant.quota.unwrap(), tenant.usage.unwrap());
    assert_eq!(
        (quota.tokens, quota.agents, quota.writes_per_second),
        (4, 3, 100),
        "one was raised, the rest is as it was"
    );
    assert_eq!((usage.tokens, usage.agents, usage.services, usage.credentials), (4, 3, 3, 3), "{usage:?}");
    assert_eq!((usage.policies, usage.operators, usage.revoked), (3, 3, 1), "{usage:?}");
    let other = root.get_tenant(get("other")).await.unwrap().into_inner();
    assert_eq!(other.quota.unwrap().tokens, 100_000, "the default");
    control.plane.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_that_come_and_go_leave_no_more_behind_than_the_quota() {
    let control = Control::start().await;
    let mut client = control.client(&furnish(&control, "acme").await);
    set(&control, "acme", wire::Quota { tokens: 5, ..Default::default() }).await;
    for _ in 0..20 {
        let id = client.issue_token(issue("acme")).await.unwrap().into_inner().token.unwrap().id;
        let name = client.rotate_token(wire::RotateTokenRequest {
            tenant: "acme".into(),
            name: id,
            wait: no_wait(),
            ..Default::default()
        });
        let name = name.await.unwrap().into_inner().token.unwrap().id;
        client.revoke_token(wire::DeleteRequest { tenant: "acme".into(), name, wait: no_wait() }).await.unwrap();
    }
    let get = wire::NameRequest { tenant: String::new(), name: "acme".into() };
    let usage = client.get_tenant(get).await.unwrap().into_inner().usage.unwrap();
    assert!(usage.tokens == 0 && usage.revoked <= 6, "{usage:?}");
    control.plane.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_that_writes_without_end_is_slowed_down_and_nothing_that_takes_away_is() {
    let control = Control::start().await;
    let mut hostile = control.client(&furnish(&control, "acme").await);
    let mut other = control.client(&furnish(&control, "other").await);
    set(&control, "acme", wire::Quota { writes_per_second: 1, write_burst: 20, ..Default::default() }).await;
    let (mut ids, mut refused) = (Vec::new(), None);
    for _ in 0..200 {
        match hostile.issue_token(issue("acme")).await {
            Ok(issued) => ids.push(issued.into_inner().token.unwrap().id),
            Err(status) => {
                refused = Some(status);
                break;
            }
        }
    }
    let refused = refused.expect("there is no rate");
    let info = refused.get_details_error_info().unwrap();
    assert_eq!((refused.code(), info.reason.as_str()), (Code::ResourceExhausted, "WRITE_RATE"), "{refused:?}");
    assert!(info.metadata["hint"].contains("--writes-per-second"), "{info:?}");
    assert!(refused.get_details_retry_info().unwrap().retry_delay.is_some());
    other.issue_token(issue("other")).await.unwrap();
    for name in ids {
        let revoke = wire::DeleteRequest { tenant: "acme".into(), name, wait: no_wait() };
        hostile.revoke_token(revoke).await.unwrap();
    }
    let disable =
        wire::SetAgentDisabledRequest { tenant: "acme".into(), name: "bot".into(), disabled: true, wait: no_wait() };
    hostile.set_agent_disabled(disable).await.unwrap();
    control.plane.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_comes_in_pages_and_never_cut_off_without_a_word() {
    let control = Control::start().await;
    let mut root = control.root();
    furnish(&control, "acme").await;
    const TOKENS: usize = 10_500;
    super::world::put_tokens(&control, "acme", TOKENS).await;
    let list = |page_size, page_token| wire::ListRequest { tenant: "acme".into(), page_size, page_token };
    for (size, most) in [(4000, 1000), (333, 333)] {
        let (mut seen, mut token) = (std::collections::BTreeSet::new(), String::new());
        loop {
            let page = root.list_tokens(list(size, token)).await.unwrap().into_inner();
            assert!(!page.tokens.is_empty() && page.tokens.len() <= most, "{}", page.tokens.len());
            assert!(page.tokens.iter().all(|t| t.digest.is_empty()));
            for found in page.tokens {
                assert!(seen.insert(found.id), "twice");
            }
            token = page.next_page_token;
            if token.is_empty() {
                break;
            }
        }
        assert_eq!(seen.len(), TOKENS);
    }
    let status = root.list_tokens(list(0, String::new())).await.unwrap_err();
    assert!(status.code() == Code::ResourceExhausted && status.message().contains("10000 tokens"), "{status:?}");
    for token in ["../other/token/x", "a\nb", &"x".repeat(9999)] {
        let status = root.list_tokens(list(10, token.into())).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{token}");
    }
    let agents = root.list_agents(list(0, String::new())).await.unwrap().into_inner();
    assert!(agents.agents.len() == 1 && agents.next_page_token.is_empty());
    control.plane.shutdown().await;
}
