//! Many operators at once: what was revoked stays revoked, what is used is there.

use futures_util::{future::BoxFuture, stream::BoxStream};
use prost::Message as _;

use super::{counting::Counting, *};
use crate::store::{Record, Store, StoreError, Transaction, WatchEvent, Write};

/// Small and repeatable: which of the writers does what, and when it yields.
fn dice(seed: u64) -> impl FnMut(u64) -> u64 {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    move |sides| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % sides
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_rotation_brings_a_revoked_token_back() {
    let f = Fixture::furnished().await;
    for round in 0..25 {
        let id: TokenId = name(&f.token().await.token.id);
        let writers: Vec<_> = (0..8_u64)
            .map(|writer| {
                let (registry, tenant, id, by) = (Arc::clone(&f.registry), f.tenant.clone(), id.clone(), f.by.clone());
                tokio::spawn(async move {
                    let mut dice = dice(round * 8 + writer);
                    for _ in 0..dice(6) {
                        tokio::task::yield_now().await;
                    }
                    if writer == 0 {
                        registry.revoke_token(&tenant, &id).await.unwrap();
                        // From here on it must not be there, whatever the others still do.
                        let gone = registry.token(&tenant, &id).await;
                        assert!(matches!(gone, Err(RegistryError::NotFound { .. })), "{gone:?}");
                    } else {
                        match registry.rotate_token(&tenant, &id, &by, Duration::ZERO).await {
                            Ok(_) | Err(RegistryError::NotFound { .. } | RegistryError::Busy) => {}
                            Err(error) => panic!("{error:?}"),
                        }
                    }
                })
            })
            .collect();
        for writer in writers {
            writer.await.unwrap();
        }
        assert!(f.tokens().await.is_empty(), "round {round}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_editor_sends_a_service_elsewhere_while_its_first_credential_is_stored() {
    let f = Fixture::new().await;
    for round in 0..25 {
        let api = format!("api-{round}");
        f.registry.apply_service(service(&api), false).await.unwrap();
        let registry = Arc::clone(&f.registry);
        let elsewhere = Service { upstream: "https://elsewhere.example.com".into(), ..service(&api) };
        let redirect = tokio::spawn(async move { registry.apply_service(elsewhere, false).await });
        let put = f.put(&format!("key-{round}"), &api, "sk").await;
        let redirected = redirect.await.unwrap();
        // One of them was first. The other knew it: who came second is refused, or bound to what
        // was there already.
        match (put, redirected) {
            (Ok((credential, _)), Err(RegistryError::OwnerOnly(_))) => assert!(!credential.unbound),
            (Ok((credential, _)), Ok(_)) => {
                let now = f.registry.credential(&f.tenant, &name(&credential.name)).await.unwrap();
                assert!(!now.unbound, "redirected with a credential, by an editor");
            }
            (Err(RegistryError::Conflict { .. }), Ok(_)) => {}
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_service_is_never_deleted_from_under_a_credential() {
    let f = Fixture::new().await;
    for round in 0..25 {
        f.registry.apply_service(service("api"), false).await.unwrap();
        let (registry, tenant) = (Arc::clone(&f.registry), f.tenant.clone());
        let delete = tokio::spawn(async move { registry.delete_service(&tenant, &name("api")).await });
        let put = f.put("key", "api", "sk").await;
        let deleted = delete.await.unwrap();
        let there = f.registry.service(&f.tenant, &name("api")).await.is_ok();
        let credential = f.registry.credential(&f.tenant, &name("key")).await.is_ok();
        assert_eq!((deleted.is_ok(), put.is_ok()), (!there, credential), "round {round}: {deleted:?} {put:?}");
        assert!(there || !credential, "round {round}: a credential without its service");
        if credential {
            f.registry.delete_credential(&f.tenant, &name("key")).await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn retries_at_once_with_one_request_id_make_one_token() {
    let f = Fixture::furnished().await;
    let issue = Issue { request_id: "once".into(), ..f.issue() };
    let tries: Vec<_> = (0..8)
        .map(|_| {
            let (registry, tenant, issue) = (Arc::clone(&f.registry), f.tenant.clone(), issue.clone());
            tokio::spawn(async move { registry.issue_token(&tenant, issue).await })
        })
        .collect();
    let mut made = 0;
    for attempt in tries {
        match attempt.await.unwrap() {
            Ok(_) => made += 1,
            Err(RegistryError::TokenIssued { .. }) => {}
            Err(error) => panic!("{error:?}"),
        }
    }
    assert_eq!((made, f.tokens().await.len()), (1, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn versions_of_a_credential_are_never_lost_or_doubled() {
    let f = Arc::new(Fixture::furnished().await);
    let puts: Vec<_> = (0..8)
        .map(|n| {
            let f = Arc::clone(&f);
            tokio::spawn(async move { f.put("key", "api", &format!("sk-{n}")).await.unwrap().0.version })
        })
        .collect();
    let mut versions = Vec::new();
    for put in puts {
        versions.push(put.await.unwrap());
    }
    versions.sort_unstable();
    assert_eq!(versions, (2..=9).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn two_first_operators_are_impossible() {
    let f = Fixture::new().await;
    let sealed = bytes::Bytes::from_static(b"the authority's record");
    f.registry.commit(super::super::Change::new().put_bytes(Key::Authority, sealed)).await.unwrap();
    let tries: Vec<_> = (0..8)
        .map(|n| {
            let registry = Arc::clone(&f.registry);
            tokio::spawn(async move { registry.create_first_operator(&name(&format!("op-{n}")), "e").await.unwrap() })
        })
        .collect();
    let mut made = 0;
    for attempt in tries {
        made += usize::from(attempt.await.unwrap().is_some());
    }
    assert_eq!((made, f.registry.operators().await.unwrap().len()), (1, 1));
}

#[tokio::test]
async fn a_node_is_given_back_only_as_it_was_when_that_was_decided() {
    let f = Fixture::new().await;
    let (id, me) = (name::<NodeId>("n"), name("me"));
    let ours = Node { id: "n".into(), replica: "me".into(), ..Default::default() };
    let enrolled = Write::Put(Key::Node(id.clone()), ours.encode_to_vec().into());
    let store = Arc::clone(f.registry.store());
    let before = store.commit(Transaction { checks: Vec::new(), writes: vec![enrolled] }).await.unwrap();
    let replica = async || f.registry.node(&id).await.unwrap().unwrap().replica;
    let back = f.registry.see_node(&id, &ours, None).await.unwrap();
    f.registry.release_node(&id, &me, before).await.unwrap();
    assert_eq!(replica().await, "me", "it has come back since");
    f.registry.release_node(&id, &name("other"), back).await.unwrap();
    assert_eq!(replica().await, "me");
    f.registry.release_node(&id, &me, back).await.unwrap();
    assert_eq!(replica().await, "");
}

#[tokio::test]
async fn what_is_known_of_a_node_is_believed_only_while_it_is_so() {
    let f = Fixture::new().await;
    let id = name::<NodeId>("n");
    let enrolled = Node { id: "n".into(), tenants: vec!["acme".into()], lease_ttl_ms: 5, ..Default::default() };
    let put = async |node: &Node| {
        let write = Write::Put(Key::Node(id.clone()), node.encode_to_vec().into());
        f.registry.store().commit(Transaction { checks: Vec::new(), writes: vec![write] }).await.unwrap()
    };
    let known = (Arc::new(enrolled.clone()), put(&enrolled).await);
    let seen = Node { replica: "me".into(), lease_ttl_ms: 3, ..enrolled.clone() };
    f.registry.see_node(&id, &seen, Some(known.clone())).await.unwrap();
    let read = async || f.registry.node(&id).await.unwrap().unwrap();
    assert_eq!((read().await.replica.as_str(), read().await.lease_ttl_ms), ("me", 5), "the longest lease counts");
    let since = Node { tenants: vec!["globex".into()], ..enrolled };
    put(&since).await;
    f.registry.see_node(&id, &seen, Some(known)).await.unwrap();
    assert_eq!((read().await.replica.as_str(), &read().await.tenants[..]), ("me", &["globex".to_owned()][..]));
}

/// A store in which another operator's policy is committed after each of the first reads of the
/// list of policies.
struct Interposed {
    inner: Counting,
    others: parking_lot::Mutex<Vec<Transaction>>,
}

impl Store for Interposed {
    fn kind(&self) -> &'static str {
        self.inner.kind()
    }
    fn is_exclusive(&self) -> bool {
        self.inner.is_exclusive()
    }
    fn store_id(&self) -> &str {
        self.inner.store_id()
    }
    fn get<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Record>, StoreError>> {
        Box::pin(async move {
            let found = self.inner.get(key).await;
            let other = matches!(key, Key::PolicySet(_)).then(|| self.others.lock().pop()).flatten();
            if let Some(other) = other {
                self.inner.commit(other).await.unwrap();
            }
            found
        })
    }
    fn list<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<(Vec<Record>, Revision), StoreError>> {
        self.inner.list(prefix)
    }
    fn list_at<'a>(
        &'a self,
        prefix: &'a str,
        revision: Revision,
    ) -> BoxFuture<'a, Result<Option<Vec<Record>>, StoreError>> {
        self.inner.list_at(prefix, revision)
    }
    fn commit(&self, transaction: Transaction) -> BoxFuture<'_, Result<Revision, StoreError>> {
        self.inner.commit(transaction)
    }
    fn watch(&self, after: Revision) -> BoxStream<'static, WatchEvent> {
        self.inner.watch(after)
    }
    fn is_full(&self) -> BoxFuture<'_, bool> {
        self.inner.is_full()
    }
    fn revision(&self) -> BoxFuture<'_, Result<Revision, StoreError>> {
        self.inner.revision()
    }
}

#[tokio::test]
async fn policies_that_another_operator_commits_between_two_reads_are_no_tampering() {
    let f = Fixture::new().await;
    let policy = |id: &str| Policy {
        tenant: f.tenant.to_string(),
        id: id.into(),
        text: format!("@id(\"{id}\")\npermit (principal, action, resource);"),
        updated_at: 1,
        ..Policy::default()
    };
    let default = f.registry.policies(&f.tenant).await.unwrap();
    let commits = |ids: &[&str]| {
        let all: Vec<Policy> = default.iter().cloned().chain(ids.iter().map(|id| policy(id))).collect();
        let last = all.last().unwrap();
        let writes = vec![
            Write::Put(Key::Policy(f.tenant.clone(), name(&last.id)), last.encode_to_vec().into()),
            Write::Put(Key::PolicySet(f.tenant.clone()), PolicySet::of(&all).encode_to_vec().into()),
        ];
        Transaction { writes, ..Transaction::default() }
    };
    // The last is committed first.
    let others = vec![commits(&["one", "two", "three"]), commits(&["one", "two"]), commits(&["one"])];
    let inner = Counting { inner: f.registry.store().clone(), gets: 0.into(), lists: 0.into() };
    let store = Arc::new(Interposed { inner, others: others.into() });
    let registry = Registry::new(store, Arc::clone(&f.registry.sealer));
    let text = "@id(\"own\")\npermit (principal, action, resource);";
    registry.apply_policies(&f.tenant, text.into(), &PolicyRun::Here).await.unwrap();
    let ids: Vec<String> = registry.policies(&f.tenant).await.unwrap().into_iter().map(|policy| policy.id).collect();
    assert_eq!(ids, ["granted-services", "one", "own", "three", "two"]);
    // What no operator has committed is told.
    let foreign = policy("foreign");
    let put = Write::Put(Key::Policy(f.tenant.clone(), name(&foreign.id)), foreign.encode_to_vec().into());
    f.registry.store().commit(Transaction { writes: vec![put], ..Transaction::default() }).await.unwrap();
    let refused = registry.apply_policies(&f.tenant, text.into(), &PolicyRun::Here).await.unwrap_err();
    assert!(matches!(&refused, RegistryError::Conflict { reason, .. } if reason.contains("foreign")), "{refused:?}");
}
