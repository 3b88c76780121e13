//! Tokens: granted, bounded, issued once, rotated, revoked, also when there is no room.

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use futures_util::{future::BoxFuture, stream::BoxStream};

use super::*;
use crate::store::{Record, Store, Transaction, WatchEvent, Write};

#[tokio::test]
async fn a_grant_without_a_credential_takes_the_services_only_one() {
    let f = Fixture::furnished().await;
    assert_eq!(f.token().await.token.grants, [Grant { service: "api".into(), credential: "key".into() }]);
    f.put("second", "api", "x").await.unwrap();
    let refusal = conflict(f.registry.issue_token(&f.tenant, f.issue()).await);
    assert!(refusal.contains("`key`, `second`"), "{refusal}");
    let named = Issue { grants: vec![(name("api"), Some(name("second")))], ..f.issue() };
    assert_eq!(f.registry.issue_token(&f.tenant, named).await.unwrap().token.grants[0].credential, "second");
    f.registry.apply_service(service("bare"), false).await.unwrap();
    let bare = Issue { grants: vec![(name("bare"), None)], ..f.issue() };
    assert!(conflict(f.registry.issue_token(&f.tenant, bare).await).contains("no credential"));
    let wrong = Issue { grants: vec![(name("bare"), Some(name("key")))], ..f.issue() };
    assert_eq!(invalid(f.registry.issue_token(&f.tenant, wrong).await), "grants");
}

#[tokio::test]
async fn a_repeated_request_makes_no_second_token() {
    let f = Fixture::furnished().await;
    let issue = Issue { request_id: "r-1".into(), ..f.issue() };
    let first = f.registry.issue_token(&f.tenant, issue.clone()).await.unwrap().token.id;
    for _ in 0..3 {
        let again = f.registry.issue_token(&f.tenant, issue.clone()).await.err().unwrap();
        assert!(matches!(&again, RegistryError::TokenIssued { id } if *id == first), "{again:?}");
    }
    assert_eq!(f.tokens().await.len(), 1);
}

#[tokio::test]
async fn out_of_bounds_tokens_are_refused() {
    let f = Fixture::furnished().await;
    let many = |n: usize| (0..n).map(|i| format!("10.0.{i}.0/24")).collect::<Vec<_>>();
    for (bad, field) in [
        (Issue { cidrs: vec!["10.1.2.3/8".into()], ..f.issue() }, "cidrs"),
        (Issue { cidrs: vec!["10.0.0.0/33".into()], ..f.issue() }, "cidrs"),
        (Issue { cidrs: vec!["localhost".into()], ..f.issue() }, "cidrs"),
        (Issue { cidrs: many(limits::CIDRS + 1), ..f.issue() }, "cidrs"),
        (Issue { ttl: Some(Duration::from_secs(limits::MAX_TOKEN_TTL_SECONDS + 1)), ..f.issue() }, "ttl_seconds"),
        (Issue { ttl: Some(Duration::ZERO), ..f.issue() }, "ttl_seconds"),
        (Issue { shape: "nobody".into(), ..f.issue() }, "shape"),
        (Issue { grants: Vec::new(), ..f.issue() }, "grants"),
        (Issue { grants: vec![(name("api"), None); 2], ..f.issue() }, "grants"),
        (Issue { request_id: "a/b".into(), ..f.issue() }, "request_id"),
    ] {
        assert_eq!(invalid(f.registry.issue_token(&f.tenant, bad).await), field);
    }
    assert!(f.tokens().await.is_empty());
    let bound = Issue { cidrs: vec!["192.0.2.7".into(), "2001:db8::/32".into()], ..f.issue() };
    let bound = f.registry.issue_token(&f.tenant, bound).await.unwrap().token;
    assert_eq!(bound.cidrs, ["192.0.2.7/32", "2001:db8::/32"]);
    assert_eq!(bound.expires_at - bound.issued_at, 24 * 3600);
}

#[tokio::test]
async fn a_rotated_token_keeps_its_id_and_its_old_secret_is_revoked() {
    let f = Fixture::furnished().await;
    let first = f.token().await;
    let id: TokenId = name(&first.token.id);
    let second = f.registry.rotate_token(&f.tenant, &id, &f.by, Duration::ZERO).await.unwrap();
    assert_eq!(second.token.id, first.token.id);
    assert_ne!(second.secret.digest(), first.secret.digest());
    let tombstones = f.registry.values::<Token>(&prefix::kind(&f.tenant, "tombstone")).await.unwrap();
    assert_eq!(tombstones.iter().map(|t| &t.digest).collect::<Vec<_>>(), [&first.token.digest]);
    f.registry.revoke_token(&f.tenant, &id).await.unwrap();
    assert!(f.tokens().await.is_empty(), "its id revokes whatever it has become");
}

#[tokio::test]
async fn a_token_that_was_rotated_with_a_grace_works_beside_the_new_one_for_so_long() {
    let f = Fixture::furnished().await;
    let first = f.token().await;
    let id: TokenId = name(&first.token.id);
    let second = f.registry.rotate_token(&f.tenant, &id, &f.by, Duration::from_secs(600)).await.unwrap();
    let tokens = f.tokens().await;
    let old = tokens.iter().find(|token| token.digest == first.token.digest).unwrap();
    assert_eq!((tokens.len(), old.replaced_by.as_str()), (2, id.as_str()));
    assert_eq!(old.expires_at, second.token.issued_at + 600);
    assert_eq!((&old.agent, &old.grants, &old.cidrs), (&first.token.agent, &first.token.grants, &first.token.cidrs));
    assert_eq!(second.token.replaced_by, "");
    let old_id: TokenId = name(&old.id);
    assert!(conflict(f.registry.rotate_token(&f.tenant, &old_id, &f.by, Duration::ZERO).await).contains("replaced by"));
    let too_long =
        f.registry.rotate_token(&f.tenant, &id, &f.by, limits::ROTATION_GRACE + Duration::from_secs(1)).await;
    assert_eq!(invalid(too_long), "grace_seconds");
    f.registry.revoke_token(&f.tenant, &old_id).await.unwrap();
    assert_eq!(f.tokens().await.len(), 1);
}

#[tokio::test]
async fn the_life_of_a_token_can_only_be_shortened() {
    let f = Fixture::furnished().await;
    let token = f.token().await.token;
    let id: TokenId = name(&token.id);
    let (shorter, revision) = f.registry.shorten_token(&f.tenant, &id, token.expires_at - 60).await.unwrap();
    assert_eq!(shorter.expires_at, token.expires_at - 60);
    assert_eq!(f.registry.shorten_token(&f.tenant, &id, token.expires_at - 60).await.unwrap().1, revision);
    for bad in [token.expires_at, 1, -1] {
        assert_eq!(invalid(f.registry.shorten_token(&f.tenant, &id, bad).await), "expires_at");
    }
}

#[tokio::test]
async fn revoking_can_be_repeated_and_an_unknown_token_is_not_found() {
    let f = Fixture::furnished().await;
    let id: TokenId = name(&f.token().await.token.id);
    let revision = f.registry.revoke_token(&f.tenant, &id).await.unwrap();
    assert!(f.registry.revoke_token(&f.tenant, &id).await.unwrap() >= revision);
    let unknown = f.registry.revoke_token(&f.tenant, &name("tok-unknown")).await;
    assert!(matches!(unknown, Err(RegistryError::NotFound { kind: "token", .. })));
    assert!(matches!(
        f.registry.rotate_token(&f.tenant, &id, &f.by, Duration::ZERO).await,
        Err(RegistryError::NotFound { .. })
    ));
}

/// A store that can be full: then it takes deletes alone.
struct Fillable(Arc<dyn Store>, AtomicBool);

impl Store for Fillable {
    fn kind(&self) -> &'static str {
        self.0.kind()
    }

    fn is_exclusive(&self) -> bool {
        self.0.is_exclusive()
    }
    fn store_id(&self) -> &str {
        self.0.store_id()
    }
    fn get<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Record>, StoreError>> {
        self.0.get(key)
    }
    fn list<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<(Vec<Record>, Revision), StoreError>> {
        self.0.list(prefix)
    }
    fn list_at<'a>(
        &'a self,
        prefix: &'a str,
        revision: Revision,
    ) -> BoxFuture<'a, Result<Option<Vec<Record>>, StoreError>> {
        self.0.list_at(prefix, revision)
    }
    fn commit(&self, change: Transaction) -> BoxFuture<'_, Result<Revision, StoreError>> {
        if self.1.load(SeqCst) && change.writes.iter().any(|w| matches!(w, Write::Put(..))) {
            return Box::pin(async { Err(StoreError::Full) });
        }
        self.0.commit(change)
    }
    fn watch(&self, after: Revision) -> BoxStream<'static, WatchEvent> {
        self.0.watch(after)
    }
    fn is_full(&self) -> BoxFuture<'_, bool> {
        self.0.is_full()
    }
    fn revision(&self) -> BoxFuture<'_, Result<Revision, StoreError>> {
        self.0.revision()
    }
}

#[tokio::test]
async fn a_full_store_still_revokes_and_deletes() {
    let f = Fixture::furnished().await;
    let (first, _second) = (f.token().await.token, f.token().await.token);
    let full = Arc::new(Fillable(Arc::clone(f.registry.store()), AtomicBool::new(true)));
    let registry = Registry::new(full, Arc::clone(&f.registry.sealer));
    let refused = registry.issue_token(&f.tenant, f.issue()).await;
    assert!(matches!(refused, Err(RegistryError::Store(StoreError::Full))));
    registry.revoke_token(&f.tenant, &name(&first.id)).await.unwrap();
    assert_eq!(f.tokens().await.len(), 1);
    registry.delete_agent(&f.tenant, &name("bot")).await.unwrap();
    assert!(f.tokens().await.is_empty());
    registry.delete_credential(&f.tenant, &name("key")).await.unwrap();
    registry.delete_service(&f.tenant, &name("api")).await.unwrap();
    registry.delete_tenant(&f.tenant).await.unwrap();
    assert!(f.registry.store().list(&prefix::tenant(&f.tenant)).await.unwrap().0.is_empty());
}

/// `SEKS_LISTED_TOKENS=100000` measures a long list.
#[tokio::test]
async fn a_long_list_is_read_in_pages_of_bounded_size() {
    let count = std::env::var("SEKS_LISTED_TOKENS").ok().and_then(|text| text.parse().ok()).unwrap_or(2_500);
    let f = Fixture::furnished().await;
    let one = f.token().await.token;
    for first in (1..count).step_by(100) {
        let numbers = first..count.min(first + 100);
        let change = numbers.fold(Change::new(), |change, number| {
            let id = format!("tok-{number:016}");
            let key = crate::store::Key::Token(f.tenant.clone(), name(&id));
            change.put(key, &Token { id, ..one.clone() })
        });
        f.registry.commit(change).await.unwrap();
    }
    let (began, mut listed, mut token) = (std::time::Instant::now(), 0, String::new());
    loop {
        let page = crate::registry::PageRequest { size: 1000, token };
        let (tokens, next) = f.registry.page::<Token>(&f.tenant, "token", &page).await.unwrap();
        assert!(tokens.len() <= 1000);
        listed += tokens.len();
        if next.is_empty() {
            break;
        }
        token = next;
    }
    println!("{listed} tokens in {:?}", began.elapsed());
    assert_eq!(listed, count);
}
