//! The admin API over the wire: who may call it, what a stranger can learn from it, what hostile
//! messages do to it.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

mod certificates;
mod chain;

use rcgen::{CertificateParams, KeyPair};
use seks_control_plane::store::{Key, Record};
use seks_proto::wire::{self, Role, admin_client::AdminClient};
use seks_tests::{Control, control::send_bytes};
use seks_types::token::FreshToken;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tonic::{Code, Status, transport::Channel};

/// What a service of this file looks like.
fn service(tenant: &str) -> wire::Service {
    let value = wire::injection::NamedValue { name: "authorization".into(), value: "Bearer {key}".into() };
    let site = wire::injection::Site { at: Some(wire::injection::site::At::Header(value)) };
    wire::Service {
        tenant: tenant.into(),
        name: "acme".into(),
        upstream: "https://api.example.com".into(),
        fields: vec!["key".into()],
        injection: Some(wire::Injection { sites: vec![site], ..Default::default() }),
        slots: vec![wire::TokenSlot { at: Some(wire::token_slot::At::Scheme("Bearer".into())) }],
        ..Default::default()
    }
}

/// Fills a tenant and gives the id of its token.
async fn seed_fixtures(root: &mut AdminClient<Channel>, tenant: &str) -> String {
    let tenant = || tenant.to_owned();
    root.create_tenant(wire::CreateTenantRequest { name: tenant(), strict: false }).await.unwrap();
    root.apply_service(wire::ApplyServiceRequest { service: Some(service(&tenant())), wait: None }).await.unwrap();
    let (name, service) = ("key".into(), "acme".into());
    let (secret, mint) = (SECRET.into(), String::new());
    let put = wire::PutCredentialRequest {
        tenant: tenant(),
        name,
        service,
        secret,
        mint,
        pools: Vec::new(),
        wait: no_wait(),
    };
    root.put_credential(put).await.unwrap();
    let agent = wire::CreateAgentRequest { tenant: tenant(), name: "bot".into(), attributes: Default::default() };
    root.create_agent(agent).await.unwrap();
    let grants = vec![wire::Grant { service: "acme".into(), credential: String::new() }];
    let issue = wire::IssueTokenRequest {
        tenant: tenant(),
        agent: "bot".into(),
        grants,
        wait: no_wait(),
        ..Default::default()
    };
    root.issue_token(issue).await.unwrap().into_inner().token.unwrap().id
}

const SECRET: &str = "sk-REAL-9f3c-DEADBEEF0123456789";

fn no_wait() -> Option<wire::Wait> {
    Some(wire::Wait { no_wait: true, timeout_ms: 0 })
}

/// A trust with the public key of RFC 7517, A.1, and an audience that no other tenant has.
fn trust(tenant: &str) -> wire::Trust {
    let jwks = r#"{"keys":[{"kty":"EC","crv":"P-256","kid":"1","x":"MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4","y":"4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM"}]}"#;
    wire::Trust {
        name: "ci".into(),
        issuer: "https://issuer.example".into(),
        audiences: vec![tenant.into()],
        matches: vec!["sub ci".into()],
        agent: "bot".into(),
        jwks: jwks.into(),
        ..Default::default()
    }
}

/// Calls every method about things of `tenant`, in an order in which each finds what it needs and
/// the last leave nothing.
async fn call_all(client: &mut AdminClient<Channel>, tenant: &str, token: &str) -> Vec<(&'static str, Option<Status>)> {
    let t = || tenant.to_owned();
    let named = |name: &str| wire::NameRequest { tenant: t(), name: name.into() };
    let delete = |name: &str| wire::DeleteRequest { tenant: t(), name: name.into(), wait: no_wait() };
    let list = || wire::ListRequest { tenant: t(), ..Default::default() };
    let policy = "@id(\"all\") permit (principal, action, resource);";
    let grants = || vec![wire::Grant { service: "acme".into(), credential: "key".into() }];
    let csr = || {
        let key = KeyPair::generate().unwrap();
        CertificateParams::default().serialize_request(&key).unwrap().der().to_vec()
    };
    let everywhere = || vec![wire::RoleBinding { tenant: "*".into(), role: Role::Viewer.into() }];
    let agents_token = FreshToken::generate().unwrap();
    let mut ends = Vec::new();
    macro_rules! call {
        ($($name:literal $method:ident($message:expr);)*) => {$(
            ends.push(($name, client.$method($message).await.err()));
        )*};
    }
    call! {
        "Status" status(wire::StatusRequest {});
        "WhoAmI" who_am_i(wire::WhoAmIRequest {});
        "ListTenants" list_tenants(wire::ListTenantsRequest {});
        "CreatePageLink" create_page_link(wire::CreatePageLinkRequest {});
        "ListCatalogue" list_catalogue(wire::ListCatalogueRequest { search: String::new() });
        "GetTenant" get_tenant(wire::NameRequest { tenant: String::new(), name: t() });
        "ListServices" list_services(list());
        "GetService" get_service(named("acme"));
        "ListCredentials" list_credentials(list());
        "GetCredential" get_credential(named("key"));
        "WhereCredential" where_credential(named("key"));
        "ListAgents" list_agents(list());
        "GetAgent" get_agent(named("bot"));
        "ListTokens" list_tokens(list());
        "GetToken" get_token(named(token));
        "ListTrusts" list_trusts(list());
        "ListPolicies" list_policies(list());
        "GetPolicy" get_policy(named("granted-services"));
        "CheckPolicies" check_policies(wire::CheckPoliciesRequest { tenant: t(), text: policy.into() });
        "Simulate" simulate(wire::SimulateRequest {
            tenant: t(), agent: "bot".into(), service: "acme".into(), method: "GET".into(), path: "/v1".into(), ..Default::default()
        });
        "SimulateTrail" simulate_trail(wire::SimulateTrailRequest { tenant: t(), text: policy.into(), ..Default::default() });
        "SuggestPolicies" suggest_policies(wire::SuggestPoliciesRequest { tenant: t(), agent: "bot".into(), since_us: 0 });
        "GetAuditKey" get_audit_key(wire::AuditKeyRequest {});
        "ExportAudit" export_audit(wire::ExportAuditRequest { tenant: t(), ..Default::default() });
        "FollowAudit" follow_audit(wire::SearchAuditRequest { tenant: t(), ..Default::default() });
        "ListAdminChanges" list_admin_changes(wire::AdminChangesRequest { tenant: t(), ..Default::default() });
        "EnableService" enable_service(wire::EnableServiceRequest {
            tenant: t(), catalogue: "openai".into(), wait: no_wait(), ..Default::default()
        });
        "ApplyService" apply_service(wire::ApplyServiceRequest { service: Some(service(&t())), wait: no_wait() });
        "PutCredential" put_credential(wire::PutCredentialRequest {
            tenant: t(), name: "key".into(), service: "acme".into(), secret: b"x".to_vec(), wait: no_wait(), ..Default::default()
        });
        "AssignCredential" assign_credential(wire::AssignCredentialRequest {
            tenant: t(), name: "key".into(), pools: vec!["eu".into()], wait: no_wait()
        });
        "RollbackCredential" rollback_credential(wire::RollbackCredentialRequest {
            tenant: t(), name: "key".into(), version: 0, wait: no_wait()
        });
        "RebindCredential" rebind_credential(wire::RebindCredentialRequest {
            tenant: t(), name: "key".into(), wait: no_wait(), ..Default::default()
        });
        "CreateAgent" create_agent(wire::CreateAgentRequest { tenant: t(), name: "new".into(), attributes: Default::default() });
        "SetAgentDisabled" set_agent_disabled(wire::SetAgentDisabledRequest {
            tenant: t(), name: "new".into(), disabled: true, wait: no_wait()
        });
        "UpdateAgent" update_agent(wire::UpdateAgentRequest {
            tenant: t(), name: "new".into(), set_attributes: [("team".into(), "x".into())].into(), wait: no_wait(), ..Default::default()
        });
        "IssueToken" issue_token(wire::IssueTokenRequest {
            tenant: t(), agent: "bot".into(), grants: grants(), wait: no_wait(), ..Default::default()
        });
        "AwsKeyPair" aws_key_pair(wire::AwsKeyPairRequest { tenant: t(), token: agents_token.as_str().into() });
        "CreateTrust" create_trust(wire::CreateTrustRequest {
            tenant: t(), trust: Some(trust(tenant)), grants: grants(), cidrs: Vec::new(), wait: no_wait(),
        });
        "GetTrust" get_trust(named("ci"));
        "UpdateTrust" update_trust(wire::UpdateTrustRequest {
            tenant: t(), name: "ci".into(), ttl_seconds: 60, wait: no_wait(), ..Default::default()
        });
        "DeleteTrust" delete_trust(delete("ci"));
        "LookupToken" lookup_token(wire::LookupTokenRequest { tenant: t(), digest: agents_token.digest().0.to_vec() });
        "RotateToken" rotate_token(wire::RotateTokenRequest { tenant: t(), name: token.into(), wait: no_wait(), ..Default::default() });
        "ApplyPolicies" apply_policies(wire::ApplyPoliciesRequest { tenant: t(), text: policy.into(), wait: no_wait() });
        "ListApprovals" list_approvals(list());
        "GetApproval" get_approval(named("apr-1"));
        "GrantApproval" grant_approval(wire::GrantApprovalRequest {
            tenant: t(), name: "apr-1".into(), for_seconds: 60, wait: no_wait(), ..Default::default()
        });
        "DenyApproval" deny_approval(wire::DenyApprovalRequest {
            tenant: t(), name: "apr-1".into(), for_seconds: 60, ..Default::default()
        });
        "RevokeApproval" revoke_approval(delete("apr-1"));
        "SetApprovalRules" set_approval_rules(wire::SetApprovalRulesRequest { tenant: t(), approval_by_another: true });
        "DeletePolicy" delete_policy(delete("all"));
        "RevokeToken" revoke_token(delete(token));
        "DeleteAgent" delete_agent(delete("bot"));
        "DeleteCredential" delete_credential(delete("key"));
        "DeleteService" delete_service(delete("acme"));
        "ExportFleetAudit" export_fleet_audit(wire::ExportAuditRequest::default());
        "FollowFleetAudit" follow_fleet_audit(wire::SearchAuditRequest::default());
        "ListFleetAdminChanges" list_fleet_admin_changes(wire::AdminChangesRequest::default());
        "ListNodes" list_nodes(wire::ListNodesRequest {});
        "GetNode" get_node(wire::NameRequest { tenant: String::new(), name: "n-1".into() });
        "ListOperators" list_operators(wire::ListOperatorsRequest {});
        "EnrollNode" enroll_node(wire::EnrollNodeRequest { region: "eu-1".into(), ..Default::default() });
        "RevokeNode" revoke_node(wire::DeleteRequest { tenant: String::new(), name: "n-1".into(), wait: no_wait() });
        "CreateOperator" create_operator(wire::CreateOperatorRequest {
            name: "made".into(), roles: everywhere(), csr_der: csr(), ttl_seconds: 0
        });
        "UpdateOperator" update_operator(wire::UpdateOperatorRequest { name: "made".into(), roles: everywhere() });
        "DeleteOperator" delete_operator(wire::DeleteRequest { tenant: String::new(), name: "made".into(), wait: None });
        "CreateTenant" create_tenant(wire::CreateTenantRequest { name: "made".into(), strict: false });
        "UpdateTenant" update_tenant(wire::UpdateTenantRequest {
            name: "made".into(), private_networks: vec!["10.0.0.0/8".into()], wait: no_wait()
        });
        "SetTenantQuota" set_tenant_quota(wire::SetTenantQuotaRequest { name: "made".into(), ..Default::default() });
        "DeleteTenant" delete_tenant(wire::DeleteRequest { tenant: String::new(), name: "made".into(), wait: no_wait() });
    }
    ends
}

/// All that the store holds, but that calls were refused.
async fn records(control: &Control) -> Vec<Record> {
    let (mut records, _) = control.plane.registry().store().list("").await.unwrap();
    records.retain(|record| !matches!(record.key, Key::AdminHead(_) | Key::AdminChange(..) | Key::AdminArchive(_)));
    records
}

/// Denied, or told that the tenant doesn't exist.
fn is_refused(status: &Status) -> bool {
    status.code() == Code::PermissionDenied
        || (status.code() == Code::NotFound && status.message().starts_with("tenant"))
}

const ANYONE: &[&str] =
    &["Status", "WhoAmI", "ListTenants", "ListCatalogue", "ListOperators", "GetAuditKey", "CreatePageLink"];
const FLEET_READS: &[&str] = &["ListNodes", "GetNode", "ListFleetAdminChanges", "ExportFleetAudit", "FollowFleetAudit"];
const FLEET_WRITES: &[&str] = &[
    "EnrollNode",
    "RevokeNode",
    "CreateOperator",
    "UpdateOperator",
    "DeleteOperator",
    "CreateTenant",
    "UpdateTenant",
    "SetTenantQuota",
    "DeleteTenant",
];
const READS: &[&str] = &[
    "ListTrusts",
    "GetTrust",
    "PolicySchema",
    "ExplainPolicies",
    "PlanTenant",
    "GetTenant",
    "ListServices",
    "GetService",
    "ListCredentials",
    "GetCredential",
    "WhereCredential",
    "ListAgents",
    "GetAgent",
    "ListTokens",
    "GetToken",
    "ListPolicies",
    "ListApprovals",
    "GetApproval",
    "GetPolicy",
    "CheckPolicies",
    "Simulate",
    "LookupToken",
    "ListAdminChanges",
    "ExportAudit",
    "FollowAudit",
    "SimulateTrail",
    "SuggestPolicies",
];

/// Calls about something that is not there.
const NOTHING_THERE: &[&str] = &[
    "GetNode",
    "RevokeNode",
    "LookupToken",
    "SuggestPolicies",
    "GetTrust",
    "CreatePageLink",
    "GetApproval",
    "GrantApproval",
    "DenyApproval",
    "RevokeApproval",
];

fn may(tenant_role: Role, fleet_role: Role, method: &str) -> bool {
    let here = tenant_role.max(fleet_role);
    match method {
        m if ANYONE.contains(&m) => true,
        m if FLEET_READS.contains(&m) => fleet_role >= Role::Viewer,
        m if FLEET_WRITES.contains(&m) => fleet_role >= Role::Owner,
        m if READS.contains(&m) => here >= Role::Viewer,
        "RebindCredential" | "SetApprovalRules" => here >= Role::Owner,
        _ => here >= Role::Editor,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_role_can_do_over_the_wire_what_the_matrix_says_and_nothing_else() {
    let control = Control::start().await;
    let mut root = control.root();
    let roles = [Role::Viewer, Role::Editor, Role::Owner];
    let mut cases: Vec<(String, Role, Role)> = vec![("stranger".into(), Role::Unspecified, Role::Unspecified)];
    cases.extend(roles.iter().map(|r| (format!("t{}", *r as i32), *r, Role::Unspecified)));
    cases.extend(roles.iter().map(|r| (format!("f{}", *r as i32), Role::Unspecified, *r)));
    for (name, here, everywhere) in cases {
        let token = seed_fixtures(&mut root, &name).await;
        let mut bindings = vec![("somewhere-else", Role::Owner)];
        if here != Role::Unspecified {
            bindings.push((name.as_str(), here));
        }
        if everywhere != Role::Unspecified {
            bindings.push(("*", everywhere));
        }
        let operator = control.operator(&format!("op-{name}"), &bindings).await;
        for (method, end) in call_all(&mut control.client(&operator), &name, &token).await {
            let allowed = may(here, everywhere, method);
            // An operator that the caller may not administer does not exist for it.
            let is_hidden = |end: &Status| method.ends_with("eOperator") && end.code() == Code::NotFound;
            let refused = end.as_ref().is_some_and(|end| is_refused(end) || is_hidden(end));
            assert_eq!(!refused, allowed, "{name} {method}: {end:?}");
            // What is allowed works, too: only there is no node to get or revoke, no request to
            // suggest policies from or to approve, no trust yet, no page, and the digest is of a
            // token that nobody issued.
            let works = end.is_none() || NOTHING_THERE.contains(&method);
            assert!(!allowed || works, "{name} {method}: {end:?}");
        }
    }
    control.plane.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_tenants_things_read_like_things_that_do_not_exist() {
    let control = Control::start().await;
    let token = seed_fixtures(&mut control.root(), "globex").await;
    let operator = control.operator("acme-admin", &[("acme", Role::Owner)]).await;
    let before = records(&control).await;
    let mut client = control.client(&operator);
    let real = call_all(&mut client, "globex", &token).await;
    let imagined = call_all(&mut client, "nobody", &token).await;
    let mut compared = 0;
    for ((method, real), (_, imagined)) in real.into_iter().zip(imagined) {
        let (Some(real), Some(imagined)) = (real, imagined) else {
            assert!(ANYONE.contains(&method), "{method} was answered");
            continue;
        };
        let same = |s: &Status, name: &str| {
            (
                s.code(),
                s.message().replace(name, "TENANT"),
                String::from_utf8_lossy(s.details()).replace(name, "TENANT"),
            )
        };
        assert_eq!(same(&real, "globex"), same(&imagined, "nobody"), "{method}");
        compared += 1;
    }
    assert!(compared > 30);
    let tenants = client.list_tenants(wire::ListTenantsRequest {}).await.unwrap().into_inner().tenants;
    assert!(tenants.is_empty(), "{tenants:?}");
    assert_eq!(records(&control).await, before, "something was written");
    // By id within the caller's own tenant: another tenant's token is as unknown as a guessed one.
    control.root().create_tenant(wire::CreateTenantRequest { name: "acme".into(), strict: false }).await.unwrap();
    let mut get = async |id: &str| {
        let name = wire::NameRequest { tenant: "acme".into(), name: id.into() };
        let status = client.get_token(name).await.unwrap_err();
        (status.code(), status.message().replace(id, "ID"))
    };
    assert_eq!(get(&token).await, get("tok-0123456789abcdef").await);
    control.plane.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_answer_holds_a_credential_or_a_digest() {
    let control = Control::start().await;
    let mut root = control.root();
    let token = seed_fixtures(&mut root, "acme").await;
    let messages: Vec<(&str, Vec<u8>)> = {
        use prost::Message as _;
        let list = wire::ListRequest { tenant: "acme".into(), ..Default::default() }.encode_to_vec();
        let named = |name: &str| wire::NameRequest { tenant: "acme".into(), name: name.into() }.encode_to_vec();
        let text = "@id(\"x\") permit (principal, action, resource) when { 1 };".to_owned();
        let check = wire::CheckPoliciesRequest { tenant: "acme".into(), text }.encode_to_vec();
        let bad = wire::PutCredentialRequest {
            tenant: "acme".into(),
            name: "key".into(),
            service: "acme".into(),
            secret: format!("{SECRET}\n{SECRET}").into(),
            ..Default::default()
        };
        let rollback =
            wire::RollbackCredentialRequest { tenant: "acme".into(), name: "key".into(), version: 9, wait: None };
        vec![
            ("ListCredentials", list.clone()),
            ("GetCredential", named("key")),
            ("WhereCredential", named("key")),
            ("ListTokens", list.clone()),
            ("GetToken", named(&token)),
            ("ListServices", list),
            ("CheckPolicies", check),
            ("PutCredential", bad.encode_to_vec()),
            ("RollbackCredential", rollback.encode_to_vec()),
            ("Status", Vec::new()),
        ]
    };
    let digest = control.plane.registry().tokens(&"acme".parse().unwrap()).await.unwrap()[0].digest.clone();
    for (method, message) in messages {
        let answer = match send_bytes(control.channel(&control.root), method, message).await {
            Ok(bytes) => bytes,
            Err(status) => [status.message().as_bytes(), status.details()].concat(),
        };
        for (what, needle) in [("credential", SECRET.as_bytes()), ("digest", &digest)] {
            assert!(!answer.windows(needle.len()).any(|w| w == needle), "{method} shows a {what}");
        }
    }
    control.plane.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_messages_are_named_for_what_they_are_and_the_api_goes_on() {
    let control = Control::start().await;
    let varint = |n: usize| {
        let (mut n, mut out) = (n, Vec::new());
        while n >= 0x80 {
            out.push((n & 0x7f) as u8 | 0x80);
            n >>= 7;
        }
        out.push(n as u8);
        out
    };
    let long = |field: u8, bytes: usize| [vec![field << 3 | 2], varint(bytes), vec![b'x'; bytes]].concat();
    let mut deep = Vec::new();
    for _ in 0..10_000 {
        deep = [vec![0x1a], varint(deep.len()), deep].concat(); // a group inside a group of an unknown field
        deep.truncate(60_000);
    }
    let huge = [vec![0x0a], vec![0xff; 9], vec![0x01]].concat();
    let cases: Vec<(&str, &str, Vec<u8>)> = vec![
        ("5 MiB of policy", "ApplyPolicies", long(2, 5 << 20)),
        ("1.6 MiB of policy", "ApplyPolicies", [long(1, 0), b"\x0a\x07default".to_vec(), long(2, 1_600_000)].concat()),
        ("a million empty grants", "IssueToken", [b"\x0a\x07default".to_vec(), b"\x1a\x00".repeat(1_000_000)].concat()),
        (
            "eight thousand empty grants",
            "IssueToken",
            [b"\x0a\x07default\x12\x03bot".to_vec(), b"\x1a\x00".repeat(8_000)].concat(),
        ),
        ("a million networks", "IssueToken", [b"\x0a\x07default".to_vec(), b"\x2a\x00".repeat(1_000_000)].concat()),
        ("a length of 2^64", "GetAgent", huge),
        ("nonsense", "GetAgent", vec![0xff; 100]),
        ("unknown roles", "CreateOperator", [b"\x0a\x01x\x12\x05\x0a\x01*\x10\x63".to_vec(), long(3, 10)].concat()),
        ("text that isn't UTF-8", "GetAgent", vec![0x0a, 2, 0xff, 0xfe]),
        ("nesting", "ApplyService", deep),
    ];
    let before = control.plane.registry().store().revision().await.unwrap();
    for (what, method, message) in cases {
        let status = send_bytes(control.channel(&control.root), method, message).await.unwrap_err();
        let named = matches!(status.code(), Code::InvalidArgument | Code::ResourceExhausted);
        assert!(named, "{what}: {status:?}");
        if what == "1.6 MiB of policy" {
            assert_eq!(status.code(), Code::InvalidArgument, "{what}: {status:?}");
        }
    }
    control.root().status(wire::StatusRequest {}).await.unwrap();
    assert_eq!(control.plane.registry().store().revision().await.unwrap(), before);
    control.plane.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tools_find_health_and_reflection_and_scrapers_find_metrics() {
    let control = Control::start().await;
    control.root().status(wire::StatusRequest {}).await.unwrap();
    let get = async |path: &str| {
        let mut tcp = TcpStream::connect(control.plane.metrics_addr().unwrap()).await.unwrap();
        tcp.write_all(format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes()).await.unwrap();
        let mut text = String::new();
        tcp.read_to_string(&mut text).await.unwrap();
        text
    };
    assert!(get("/healthz").await.starts_with("HTTP/1.1 200"));
    assert!(get("/readyz").await.starts_with("HTTP/1.1 200"));
    let metrics = get("/metrics").await;
    assert!(metrics.contains("seks_admin_requests_total{outcome=\"ok\",verb=\"Status\"} 1"), "{metrics}");
    control.plane.shutdown().await;
}
