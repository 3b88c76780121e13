//! What becomes of a chain of admin changes that is longer than what the store keeps.

use seks_audit::admin::{KEPT, digest};
use seks_proto::wire::AdminChange;

use super::*;
use crate::{
    registry::{Actor, AdminHead},
    store::{Transaction, Write, key::AdminChainName},
};

/// Appends changes up to `last`, as earlier calls have made them, without their cost.
async fn fill(fixture: &Fixture, chain: &AdminChainName, last: u64) {
    let store = fixture.registry.store();
    let key = Key::AdminHead(chain.clone());
    let head = store.get(&key).await.unwrap().map(|record| AdminHead::decode(record.value).unwrap());
    let mut head = head.unwrap_or_default();
    while head.sequence < last {
        let mut writes = Vec::new();
        for sequence in head.sequence + 1..=last.min(head.sequence + 100) {
            let operator = "earlier".to_owned();
            let change = AdminChange { sequence, operator, previous: head.digest.clone(), ..AdminChange::default() };
            let encoded = change.encode_to_vec();
            head = AdminHead { sequence, digest: digest(&encoded).0.to_vec(), at_us: 1 };
            writes.push(Write::Put(Key::AdminChange(chain.clone(), sequence), encoded.into()));
        }
        writes.push(Write::Put(key.clone(), head.encode_to_vec().into()));
        store.commit(Transaction { checks: Vec::new(), writes }).await.unwrap();
    }
}

fn actor() -> Actor {
    Actor { operator: "eve".into(), verb: "CreateAgent".into(), tenant: "acme".into(), replica: "here".into() }
}

async fn create(fixture: &Fixture, agent: &str) -> Result<(), RegistryError> {
    let (registry, tenant, agent) = (fixture.registry.clone(), fixture.tenant.clone(), name(agent));
    actor().run(async move { registry.create_agent(&tenant, &agent, BTreeMap::new()).await.map(drop) }).await
}

/// The oldest and the newest sequence in the store.
async fn range(fixture: &Fixture, chain: &AdminChainName) -> (u64, u64) {
    let mut sequences = Vec::new();
    let each = |sequence, _, _| {
        sequences.push(sequence);
        true
    };
    fixture.registry.admin_changes(chain, each).await.unwrap();
    (*sequences.last().unwrap(), sequences[0])
}

#[tokio::test]
async fn a_change_leaves_the_store_only_when_it_is_in_an_archive() {
    let fixture = Fixture::furnished().await;
    let (registry, chain) = (&fixture.registry, AdminChainName::Tenant(fixture.tenant.clone()));
    create(&fixture, "victim").await.unwrap();
    let limit = KEPT + 10_000;
    registry.begin_admin_archive(&AdminChainName::Fleet, "here").await.unwrap();
    registry.begin_admin_archive(&chain, "here").await.unwrap();
    fill(&fixture, &chain, limit).await;
    // An editor that writes faster than the archive takes is refused, and removes nothing.
    let refused = create(&fixture, "one-more").await;
    assert!(matches!(refused, Err(RegistryError::Store(StoreError::Full))), "{refused:?}");
    assert_eq!(range(&fixture, &chain).await, (1, limit));
    let victim = name("victim");
    actor().run(registry.delete_agent(&fixture.tenant, &victim)).await.unwrap();
    let (oldest, newest) = range(&fixture, &chain).await;
    assert!(oldest == 1 && newest > limit, "a revocation is taken, and recorded: {oldest} to {newest}");

    // What is archived makes room, and only that.
    let changes = registry.admin_changes_after(&chain, 0, newest).await.unwrap();
    assert_eq!((changes[0].sequence, changes.len()), (1, 256));
    registry.note_admin_archive(&chain, "here", 256).await.unwrap();
    assert_eq!(range(&fixture, &chain).await, (257, newest));
    create(&fixture, "one-more").await.unwrap();
    registry.note_admin_archive(&chain, "here", newest).await.unwrap();
    let (oldest, newest) = range(&fixture, &chain).await;
    assert_eq!(newest - oldest + 1, KEPT, "the newest stay in the store");
    let archive = registry.admin_archive(&chain).await.unwrap().unwrap();
    assert_eq!((archive.kept_from, archive.oldest_at("here"), archive.oldest_at("other")), (oldest, 1, oldest));
    // A replica that comes later has what the store has.
    assert_eq!(registry.begin_admin_archive(&chain, "other").await.unwrap().first, oldest);
    registry.note_admin_retention(&chain, "here", 100).await.unwrap();
    assert_eq!(registry.admin_archive(&chain).await.unwrap().unwrap().oldest_at("here"), 101);
}

#[tokio::test]
async fn without_an_archive_the_oldest_go_as_before() {
    let fixture = Fixture::furnished().await;
    let chain = AdminChainName::Tenant(fixture.tenant.clone());
    fill(&fixture, &chain, KEPT).await;
    create(&fixture, "a").await.unwrap();
    create(&fixture, "b").await.unwrap();
    assert_eq!(range(&fixture, &chain).await, (3, KEPT + 2));
}
