use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use prost::Message as _;
use seks_proto::wire;
use seks_service::record_destination;
use seks_types::{
    id::{AgentName, CredentialName, NodeId, OperatorName, ServiceName, TenantName, TokenId},
    secret::Secret,
};
use tempfile::TempDir;

use self::counting::Counting;
use super::{Admission, Change, Issue, Issued, Joining, Registry, RegistryError, limits, record::*};
use crate::{
    policy_workers::PolicyRun,
    seal::{RecordId, SealConfig, Sealer},
    store::{Key, Revision, StoreConfig, StoreError, key::prefix},
};

mod approvals;
mod archive;
mod counting;
mod desired;
mod races;
mod tokens;

struct Fixture {
    registry: Arc<Registry>,
    tenant: TenantName,
    by: OperatorName,
    _dir: TempDir,
}

fn name<T: std::str::FromStr<Err: std::fmt::Debug>>(text: &str) -> T {
    text.parse().unwrap()
}

impl Fixture {
    /// A registry over a fresh embedded store, with the tenant `acme`.
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let kek = dir.path().join("kek");
        Sealer::create_file(&kek).unwrap();
        let sealer = Arc::new(Sealer::load(&SealConfig::file(&kek)).unwrap());
        let store = crate::store::open(&StoreConfig::embedded(dir.path().join("data/store"))).await.unwrap();
        let registry = Arc::new(Registry::new(store, sealer));
        let tenant: TenantName = name("acme");
        registry.create_tenant(&tenant, false).await.unwrap();
        Self { registry, tenant, by: name("root"), _dir: dir }
    }

    /// With the service `api`, the credential `key` and the agent `bot`.
    async fn furnished() -> Self {
        let fixture = Self::new().await;
        fixture.registry.apply_service(service("api"), false).await.unwrap();
        fixture.put("key", "api", "sk-1").await.unwrap();
        fixture.registry.create_agent(&fixture.tenant, &name("bot"), BTreeMap::new()).await.unwrap();
        fixture
    }

    async fn put(
        &self,
        credential: &str,
        service: &str,
        secret: &str,
    ) -> Result<(Credential, Revision), RegistryError> {
        let secret = Secret::new(secret.into());
        self.registry.put_credential(&self.tenant, &name(credential), &name(service), &secret, &[], &self.by).await
    }

    async fn apply(&self, text: &str) -> Result<(Vec<Policy>, Revision), RegistryError> {
        self.registry.apply_policies(&self.tenant, text.into(), &PolicyRun::Here).await
    }

    fn issue(&self) -> Issue {
        Issue {
            is_canary: false,
            agent: name("bot"),
            grants: vec![(name("api"), None)],
            ttl: None,
            cidrs: Vec::new(),
            shape: String::new(),
            request_id: String::new(),
            certificate: None,
            by: self.by.clone(),
        }
    }

    async fn token(&self) -> Issued {
        self.registry.issue_token(&self.tenant, self.issue()).await.unwrap()
    }

    async fn tokens(&self) -> Vec<Token> {
        self.registry.tokens(&self.tenant).await.unwrap()
    }
}

fn service(service: &str) -> Service {
    let site = wire::injection::Site {
        at: Some(wire::injection::site::At::Header(wire::injection::NamedValue {
            name: "authorization".into(),
            value: "Bearer {key}".into(),
        })),
    };
    Service {
        tenant: "acme".into(),
        name: service.into(),
        upstream: "https://api.example.com".into(),
        fields: vec!["key".into()],
        injection: Some(wire::Injection { sites: vec![site], ..Default::default() }),
        slots: vec![wire::TokenSlot { at: Some(wire::token_slot::At::Scheme("Bearer".into())) }],
        ..Service::default()
    }
}

#[track_caller]
fn conflict(result: Result<impl Sized, RegistryError>) -> String {
    match result {
        Err(RegistryError::Conflict { reason, .. }) => reason,
        Err(other) => panic!("{other:?}"),
        Ok(_) => panic!("not refused"),
    }
}

#[track_caller]
fn invalid(result: Result<impl Sized, RegistryError>) -> &'static str {
    match result {
        Err(RegistryError::Invalid { field, .. }) => field,
        Err(other) => panic!("{other:?}"),
        Ok(_) => panic!("not refused"),
    }
}

#[tokio::test]
async fn a_new_tenant_has_granted_services_unless_it_is_strict() {
    let f = Fixture::new().await;
    let policies = f.registry.policies(&f.tenant).await.unwrap();
    assert_eq!(policies.iter().map(|p| p.id.as_str()).collect::<Vec<_>>(), ["granted-services"]);
    f.registry.create_tenant(&name("strict"), true).await.unwrap();
    assert!(f.registry.policies(&name("strict")).await.unwrap().is_empty());
    assert!(matches!(f.registry.create_tenant(&f.tenant, false).await, Err(RegistryError::Exists { .. })));
}

#[tokio::test]
async fn nothing_is_put_into_or_read_from_a_tenant_that_is_not_there() {
    let f = Fixture::new().await;
    let ghost: TenantName = name("ghost");
    let missing = |error: RegistryError| assert_eq!(error.to_string(), "tenant `ghost` not found");
    missing(f.registry.create_agent(&ghost, &name("bot"), BTreeMap::new()).await.unwrap_err());
    missing(f.registry.agent(&ghost, &name("bot")).await.unwrap_err());
    missing(f.registry.tokens(&ghost).await.unwrap_err());
    missing(f.registry.revoke_token(&ghost, &name("tok-1")).await.unwrap_err());
    missing(f.registry.apply_service(Service { tenant: "ghost".into(), ..service("api") }, true).await.unwrap_err());
    missing(f.registry.delete_tenant(&ghost).await.unwrap_err());
}

#[tokio::test]
async fn deleting_a_tenant_leaves_nothing_of_it_and_all_of_its_neighbours() {
    let f = Fixture::furnished().await;
    for neighbour in ["acme2", "acme-x", "acm"] {
        f.registry.create_tenant(&name(neighbour), false).await.unwrap();
        f.registry.create_agent(&name(neighbour), &name("bot"), BTreeMap::new()).await.unwrap();
    }
    for _ in 0..150 {
        f.token().await; // more than one transaction takes
    }
    f.registry.delete_tenant(&f.tenant).await.unwrap();
    let (left, _) = f.registry.store().list(prefix::ALL).await.unwrap();
    assert!(!left.iter().any(|r| r.key.tenant() == Some(&f.tenant) || r.key == Key::Tenant(f.tenant.clone())));
    for neighbour in ["acme2", "acme-x", "acm"] {
        assert_eq!(f.registry.agents(&name(neighbour)).await.unwrap().len(), 1, "{neighbour}");
    }
}

#[tokio::test]
async fn a_tenants_deletion_that_was_interrupted_takes_nothing_new_and_is_finished_later() {
    let f = Fixture::furnished().await;
    f.token().await;
    f.registry.mark_tenant(&f.tenant).await.unwrap(); // and then the process was killed
    let agent = f.registry.create_agent(&f.tenant, &name("new"), BTreeMap::new()).await;
    assert!(conflict(agent).contains("being deleted"));
    assert!(conflict(f.registry.issue_token(&f.tenant, f.issue()).await).contains("being deleted"));
    f.registry.purge_expired().await.unwrap();
    assert!(matches!(f.registry.tenant(&f.tenant).await, Err(RegistryError::NotFound { .. })));
    assert!(f.registry.store().list(&prefix::tenant(&f.tenant)).await.unwrap().0.is_empty());
}

#[tokio::test]
async fn what_is_used_is_not_deleted_and_the_refusal_names_the_user() {
    let f = Fixture::furnished().await;
    let token = f.token().await.token;
    let api: ServiceName = name("api");
    let refusal = conflict(f.registry.delete_service(&f.tenant, &api).await);
    assert!(refusal.contains("`key`"), "{refusal}");
    let refusal = conflict(f.registry.delete_credential(&f.tenant, &name("key")).await);
    assert!(refusal.contains(&token.id), "{refusal}");
    assert!(!f.registry.service(&f.tenant, &api).await.unwrap().deleting, "a refused delete leaves no mark");
    assert!(!f.registry.credential(&f.tenant, &name("key")).await.unwrap().deleting);

    f.registry.revoke_token(&f.tenant, &name(&token.id)).await.unwrap();
    f.registry.delete_credential(&f.tenant, &name("key")).await.unwrap();
    let envelopes = prefix::envelopes(&f.tenant, &name("key"));
    assert!(f.registry.store().list(&envelopes).await.unwrap().0.is_empty(), "its secrets go with it");
    f.registry.delete_service(&f.tenant, &api).await.unwrap();
    assert!(matches!(f.registry.service(&f.tenant, &api).await, Err(RegistryError::NotFound { .. })));
}

#[tokio::test]
async fn nothing_new_refers_to_what_is_being_deleted() {
    let f = Fixture::furnished().await;
    let mut marked = f.registry.load_service(&f.tenant, &name("api")).await.unwrap();
    marked.value.deleting = true;
    f.registry.commit(super::Change::new().put(marked.key.clone(), &marked.value)).await.unwrap();
    assert!(conflict(f.registry.issue_token(&f.tenant, f.issue()).await).contains("being deleted"));
    assert!(conflict(f.put("other", "api", "x").await).contains("being deleted"));
    f.registry.apply_service(service("api"), false).await.unwrap(); // applying it anew takes the mark away
    f.token().await;
}

#[tokio::test]
async fn deleting_an_agent_revokes_all_its_tokens() {
    let f = Fixture::furnished().await;
    f.registry.create_agent(&f.tenant, &name("other"), BTreeMap::new()).await.unwrap();
    let kept = f.registry.issue_token(&f.tenant, Issue { agent: name("other"), ..f.issue() }).await.unwrap();
    for _ in 0..70 {
        f.token().await; // more than one transaction takes, with their tombstones
    }
    f.registry.delete_agent(&f.tenant, &name("bot")).await.unwrap();
    assert_eq!(f.tokens().await.iter().map(|t| &t.id).collect::<Vec<_>>(), [&kept.token.id]);
    let tombstones = f.registry.store().list(&prefix::kind(&f.tenant, "tombstone")).await.unwrap().0;
    assert_eq!(tombstones.len(), 70);
}

#[tokio::test]
async fn a_credential_grows_a_version_with_every_put_and_rollback() {
    let f = Fixture::furnished().await;
    let (second, _) = f.put("key", "api", "sk-2").await.unwrap();
    assert_eq!(second.version, 2);
    let key: CredentialName = name("key");
    let (third, _) = f.registry.rollback_credential(&f.tenant, &key, 0, &f.by).await.unwrap();
    assert_eq!((third.version, third.versions[0].restored_from), (3, 1));
    let epoch = f.registry.store().store_id();
    let envelope = f.registry.store().get(&Key::Envelope(f.tenant.clone(), key.clone(), 3)).await.unwrap().unwrap();
    let open = |version| {
        let id = RecordId::credential(epoch, &f.tenant, &key, version);
        let id = id.bound_to(record_destination(&service("api")).ok());
        f.registry.sealer.open_now(&id, &envelope.value)
    };
    assert!(open(3).unwrap().expose().ends_with(b"sk-1"), "the first secret is the current one again");
    assert!(open(1).is_err(), "sealed for its own version alone");
    assert!(conflict(f.registry.rollback_credential(&f.tenant, &key, 3, &f.by).await).contains("no earlier version"));
    let gone = f.registry.rollback_credential(&f.tenant, &key, 9, &f.by).await;
    assert!(matches!(gone, Err(RegistryError::NotFound { .. })));
}

#[tokio::test]
async fn ten_versions_of_a_credential_are_kept() {
    let f = Fixture::furnished().await;
    for n in 2..=13 {
        f.put("key", "api", &format!("sk-{n}")).await.unwrap();
    }
    let credential = f.registry.credential(&f.tenant, &name("key")).await.unwrap();
    assert_eq!(credential.versions.iter().map(|v| v.version).collect::<Vec<_>>(), (4..=13).rev().collect::<Vec<_>>());
    let envelopes = f.registry.store().list(&prefix::envelopes(&f.tenant, &name("key"))).await.unwrap().0;
    assert_eq!(envelopes.len(), 10);
}

#[tokio::test]
async fn a_secret_must_fit_its_service_and_its_name_stays_with_one_service() {
    let f = Fixture::furnished().await;
    assert_eq!(invalid(f.put("new", "api", "").await), "secret");
    assert_eq!(invalid(f.put("new", "api", "a\nb").await), "secret");
    f.registry.apply_service(service("other"), false).await.unwrap();
    assert!(conflict(f.put("key", "other", "x").await).contains("is for service `api`"));
    assert!(matches!(f.put("new", "ghost", "x").await, Err(RegistryError::NotFound { kind: "service", .. })));
}

#[tokio::test]
async fn a_credential_of_an_earlier_version_is_bound_to_its_services_destination_once() {
    let f = Fixture::furnished().await;
    f.put("key", "api", "sk-2").await.unwrap();
    // As an earlier version stored it: bound to nothing.
    let (key, epoch) = (name::<CredentialName>("key"), f.registry.store().store_id().to_owned());
    let api = record_destination(&service("api")).ok();
    let mut credential = f.registry.load_credential(&f.tenant, &key).await.unwrap();
    for version in &mut credential.value.versions {
        let at = Key::Envelope(f.tenant.clone(), key.clone(), version.version);
        let id = RecordId::credential(&epoch, &f.tenant, &key, version.version);
        let envelope = f.registry.store().get(&at).await.unwrap().unwrap();
        let loose = f.registry.sealer.move_to(&id.bound_to(api), &id, &envelope.value).await.unwrap();
        f.registry.commit(Change::new().put_bytes(at, loose)).await.unwrap();
        (version.destination, version.origin) = (Vec::new(), String::new());
    }
    f.registry.commit(Change::new().put(credential.key.clone(), &credential.value)).await.unwrap();
    assert_eq!(f.registry.bind_credentials().await.unwrap(), 1);
    assert_eq!(f.registry.bind_credentials().await.unwrap(), 0);
    let bound = f.registry.credential(&f.tenant, &key).await.unwrap();
    assert!(bound.version == 2 && !bound.unbound && bound.versions.iter().all(|v| !v.origin.is_empty()));
    let rolled = f.registry.rollback_credential(&f.tenant, &key, 1, &f.by).await.unwrap().0;
    assert_eq!((rolled.version, rolled.versions[0].destination.len()), (3, 32));
}

#[tokio::test]
async fn where_a_stored_credential_goes_is_changed_by_owners_alone() {
    let f = Fixture::furnished().await;
    let elsewhere = Service { upstream: "https://elsewhere.example.com".into(), ..service("api") };
    let refused = f.registry.apply_service(elsewhere.clone(), false).await;
    assert!(matches!(refused, Err(RegistryError::OwnerOnly(_))));
    f.registry.apply_service(elsewhere, true).await.unwrap();
    let titled = Service { title: "API".into(), upstream: "https://elsewhere.example.com".into(), ..service("api") };
    f.registry.apply_service(titled, false).await.unwrap();
}

#[tokio::test]
async fn applying_a_service_again_changes_nothing() {
    let f = Fixture::new().await;
    let (first, revision) = f.registry.apply_service(service("api"), false).await.unwrap();
    let (second, same) = f.registry.apply_service(service("api"), false).await.unwrap();
    assert_eq!((first, revision), (second, same));
    assert_eq!(f.registry.store().revision().await.unwrap(), revision);
}

#[tokio::test]
async fn hostile_services_are_refused_before_anything_is_written() {
    let f = Fixture::new().await;
    let before = f.registry.store().revision().await.unwrap();
    for bad in [
        Service { upstream: "https://169.254.169.254".into(), allow_private: true, ..service("api") },
        Service { upstream: "http://api.example.com".into(), ..service("api") },
        Service { upstream: "https://127.0.0.1".into(), ..service("api") },
        Service { name: "a/b".into(), ..service("api") },
        Service { slots: Vec::new(), ..service("api") },
        Service { title: "x".repeat(limits::SERVICE_BYTES), ..service("api") },
        Service {
            upstream_ca_pem: "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n".into(),
            ..service("api")
        },
        Service { upstream_ca_pem: "no PEM".into(), ..service("api") },
    ] {
        invalid(f.registry.apply_service(bad, true).await);
    }
    assert_eq!(f.registry.store().revision().await.unwrap(), before);
}

#[tokio::test]
async fn policies_are_applied_all_or_nothing() {
    let f = Fixture::new().await;
    let good = |id: &str| format!("@id(\"{id}\")\npermit (principal, action, resource);\n");
    let (applied, revision) = f.apply(&(good("a") + &good("b"))).await.unwrap();
    assert_eq!(applied.iter().map(|p| p.id.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    let (_, again) = f.apply(&good("a")).await.unwrap();
    assert!(again <= revision, "nothing was written");
    let bad = good("c") + "@id(\"d\")\npermit (principal, action, resource) when { context.nonsense == 1 };";
    assert!(matches!(f.apply(&bad).await, Err(RegistryError::Policies(_))));
    let ids: Vec<String> = f.registry.policies(&f.tenant).await.unwrap().into_iter().map(|p| p.id).collect();
    assert_eq!(ids, ["a", "b", "granted-services"]);
    f.registry.delete_policy(&f.tenant, &name("a")).await.unwrap();
    assert!(matches!(f.registry.delete_policy(&f.tenant, &name("a")).await, Err(RegistryError::NotFound { .. })));
}

#[tokio::test]
async fn over_long_policies_are_refused_before_anything_is_written() {
    let f = Fixture::new().await;
    let before = f.registry.store().revision().await.unwrap();
    let padded = |bytes: usize| format!("@id(\"a\") permit (principal, action, resource); // {}", "x".repeat(bytes));
    assert_eq!(invalid(f.apply(&padded(1_600_000)).await), "text");
    let many: String = (0..=limits::POLICIES_PER_APPLY)
        .map(|n| format!("@id(\"p{n}\") permit (principal, action, resource);"))
        .collect();
    assert_eq!(invalid(f.apply(&many).await), "text");
    assert_eq!(f.registry.store().revision().await.unwrap(), before);
}

#[tokio::test]
async fn out_of_bounds_attributes_are_refused() {
    let f = Fixture::new().await;
    let agent: AgentName = name("bot");
    let one = |k: &str, v: &str| BTreeMap::from([(k.to_string(), v.to_string())]);
    for bad in [
        one("", "v"),
        one("a b", "v"),
        one("k", &"v".repeat(257)),
        one("k", "a\nb"),
        one(&"k".repeat(64), "v"),
        (0..65).map(|n| (format!("k{n}"), String::new())).collect(),
    ] {
        assert_eq!(invalid(f.registry.create_agent(&f.tenant, &agent, bad).await), "attributes");
    }
    f.registry.create_agent(&f.tenant, &agent, one("team", "billing é")).await.unwrap();
    let twin = f.registry.create_agent(&f.tenant, &agent, BTreeMap::new()).await;
    assert!(matches!(twin, Err(RegistryError::Exists { .. })));
}

#[tokio::test]
async fn the_last_owner_of_everything_stays() {
    let f = Fixture::new().await;
    let owner = vec![RoleBinding { tenant: "*".into(), role: Role::Owner.into() }];
    let (a, b): (OperatorName, OperatorName) = (name("a"), name("b"));
    f.registry.create_operator(&a, owner.clone()).await.unwrap();
    assert!(conflict(f.registry.delete_operator(&a).await).contains("last owner"));
    f.registry.create_operator(&b, owner.clone()).await.unwrap();
    f.registry.delete_operator(&a).await.unwrap();
    assert!(conflict(f.registry.delete_operator(&b).await).contains("last owner"));
    let viewer = vec![RoleBinding { tenant: "*".into(), role: Role::Viewer.into() }];
    assert!(matches!(f.registry.create_operator(&b, viewer).await, Err(RegistryError::Exists { .. })));
    f.registry.create_operator(&b, owner).await.unwrap(); // the same again: for a new certificate
    for bad in [("a/b", 3), ("", 3), ("acme", 0), ("acme", 9)] {
        let roles = vec![RoleBinding { tenant: bad.0.into(), role: bad.1 }];
        assert_eq!(invalid(f.registry.create_operator(&name("c"), roles).await), "roles");
    }
}

#[tokio::test]
async fn a_join_token_works_once_and_only_as_it_was_made() {
    let f = Fixture::new().await;
    let admission = Admission { region: "eu-1".into(), tenants: vec![f.tenant.clone()], ..Admission::default() };
    let token = f.registry.create_join_token(admission, "00ff").await.unwrap();
    let enrol = |text: &str, node: &str, key: u8| {
        let (token, node) = (text.to_owned(), (!node.is_empty()).then(|| name(node)));
        let registry = &f.registry;
        async move { registry.enrol(&Joining { token: &token, node, key_sha256: [key; 32] }).await }
    };
    assert!(token.text.starts_with("seks_join_") && token.text.ends_with(".00ff"));
    let (record, _) = f.registry.store().list(prefix::JOINS).await.unwrap();
    let secret = token.text.split('.').nth(1).unwrap();
    assert!(!String::from_utf8_lossy(&record[0].value).contains(secret), "only a hash is stored");
    for bad in [
        "",
        "seks_join_",
        "seks_join_x.y",
        "seks_join_a/b.c.d",
        &token.text.replace(secret, "x"),
        &format!("{}.x", *token.text),
    ] {
        assert!(matches!(enrol(bad, "n-1", 1).await, Err(RegistryError::JoinRefused)), "{bad}");
    }
    let node = enrol(&token.text, "n-1", 1).await.unwrap();
    assert_eq!((node.id.as_str(), node.region.as_str(), &node.tenants[..]), ("n-1", "eu-1", &["acme".to_owned()][..]));
    assert_eq!(enrol(&token.text, "", 1).await.unwrap(), node, "its answer was lost: the same key is the same node");
    for (node, key) in [("n-1", 2), ("n-2", 1), ("", 2)] {
        assert!(matches!(enrol(&token.text, node, key).await, Err(RegistryError::JoinRefused)), "{node} {key}");
    }
}

#[tokio::test]
async fn who_has_no_join_token_costs_one_read_of_one_record() {
    let f = Fixture::new().await;
    for n in 0..20 {
        let enrolled = f.registry.create_join_token(Admission::default(), "00").await.unwrap();
        let joining = Joining { token: &enrolled.text, node: Some(name(&format!("n-{n}"))), key_sha256: [n; 32] };
        f.registry.enrol(&joining).await.unwrap();
    }
    let good = f.registry.create_join_token(Admission::default(), "00").await.unwrap();
    let (id, _) = good.text.split_once('.').unwrap();
    let counting = Arc::new(Counting { inner: f.registry.store().clone(), gets: 0.into(), lists: 0.into() });
    let registry = Registry::new(counting.clone(), Arc::clone(&f.registry.sealer));
    let counts = || (counting.gets.swap(0, Relaxed), counting.lists.swap(0, Relaxed));
    let cases = [("nonsense", 0), ("seks_join_A.b.c", 0), ("seks_join_aaaa.b.c", 1), (&*format!("{id}.wrong.00"), 1)];
    for (token, reads) in cases {
        let joining = Joining { token, node: None, key_sha256: [0; 32] };
        assert!(matches!(registry.check_join_token(token).await, Err(RegistryError::JoinRefused)), "{token}");
        assert_eq!(counts(), (reads, 0), "{token}");
        assert!(matches!(registry.enrol(&joining).await, Err(RegistryError::JoinRefused)), "{token}");
        assert_eq!(counts(), (reads, 0), "{token}");
    }
    registry.check_join_token(&good.text).await.unwrap();
    registry.enrol(&Joining { token: &good.text, node: None, key_sha256: [0; 32] }).await.unwrap();
    assert_eq!(counts().1, 0, "nobody who enrols has all nodes listed");
}

#[tokio::test]
async fn a_used_join_token_is_none_to_the_version_before_and_is_forgotten_in_time() {
    let f = Fixture::new().await;
    let token = f.registry.create_join_token(Admission::default(), "00").await.unwrap();
    f.registry.enrol(&Joining { token: &token.text, node: None, key_sha256: [0; 32] }).await.unwrap();
    let (records, _) = f.registry.store().list(prefix::JOINS).await.unwrap();
    let mut left = JoinRecord::decode(records[0].value.clone()).unwrap();
    assert!(left.hash.is_empty() && left.tenants.is_empty(), "{left:?}");
    left.expires_at = 1;
    f.registry.commit(super::Change::new().put(records[0].key.clone(), &left)).await.unwrap();
    f.registry.purge_expired().await.unwrap();
    assert!(f.registry.store().list(prefix::JOINS).await.unwrap().0.is_empty());
}

#[tokio::test]
async fn a_join_token_takes_no_name_that_a_node_has_until_that_node_is_revoked() {
    let f = Fixture::new().await;
    let (n1, n2): (NodeId, NodeId) = (name("n-1"), name("n-2"));
    let token = || async { f.registry.create_join_token(Admission::default(), "00ff").await.unwrap().text };
    let (first, second, third) = (token().await, token().await, token().await);
    let joining = |token, node: &NodeId| Joining { token, node: Some(node.clone()), key_sha256: [1; 32] };
    let old = f.registry.enrol(&joining(&first, &n1)).await.unwrap();
    let taken = f.registry.enrol(&joining(&second, &n1)).await;
    assert!(matches!(taken, Err(RegistryError::NodeExists(node)) if node == n1));
    f.registry.enrol(&joining(&second, &n2)).await.unwrap(); // a refusal has not used the token up
    f.registry.revoke_node(&n1).await.unwrap();
    for known in [None, Some((Arc::new(old.clone()), 1))] {
        let seen = f.registry.see_node(&n1, &old, known).await;
        assert!(matches!(seen, Err(RegistryError::NotFound { .. })), "it stays revoked: {seen:?}");
    }
    assert!(matches!(f.registry.revoke_node(&n1).await, Err(RegistryError::NotFound { .. })));
    assert!(matches!(f.registry.enrol(&joining(&first, &n1)).await, Err(RegistryError::JoinRefused)));
    let new = f.registry.enrol(&joining(&third, &n1)).await.unwrap();
    assert_ne!(new.enrolment, old.enrolment);
    assert!(matches!(
        f.registry.create_join_token(Admission { tenants: vec![name("nobody")], ..Admission::default() }, "00").await,
        Err(RegistryError::NotFound { .. })
    ));
}

#[tokio::test]
async fn the_past_is_forgotten_and_the_present_kept() {
    let f = Fixture::furnished().await;
    let living = f.registry.issue_token(&f.tenant, Issue { request_id: "r".into(), ..f.issue() }).await.unwrap().token;
    let old = Token { id: "tok-old".into(), expires_at: 1, ..living.clone() };
    let change = super::Change::new()
        .put(Key::Token(f.tenant.clone(), name("tok-old")), &old)
        .put(Key::Tombstone(f.tenant.clone(), name("tok-old")), &old)
        .put(Key::Request(f.tenant.clone(), "old".into()), &RequestRecord { token: "tok-old".into(), created_at: 1 });
    f.registry.commit(change).await.unwrap();
    f.registry.purge_expired().await.unwrap();
    assert_eq!(f.tokens().await, [living]);
    assert!(f.registry.store().list(&prefix::kind(&f.tenant, "tombstone")).await.unwrap().0.is_empty());
    assert_eq!(f.registry.store().list(&prefix::kind(&f.tenant, "request")).await.unwrap().0.len(), 1);
}

#[tokio::test]
async fn over_long_values_never_reach_the_store() {
    let change = super::Change::new().put_bytes(Key::StoreId, vec![0; crate::store::MAX_VALUE_BYTES + 1].into());
    assert!(matches!(change.into_transaction(), Err(RegistryError::Store(StoreError::TooLarge))));
}
