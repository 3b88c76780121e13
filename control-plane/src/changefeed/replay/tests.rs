use std::sync::Arc;

use futures_util::{
    future::BoxFuture,
    stream::{self, BoxStream},
};
use prost::Message as _;
use seks_proto::wire;
use seks_types::id::{AgentName, TenantName};
use tempfile::TempDir;

use super::*;
use crate::{
    seal::{SealConfig, Sealer},
    store::{self, StoreConfig, Transaction},
};

/// A store that keeps nothing from before a revision, and whose watch may be lost.
struct Past {
    store: Arc<dyn Store>,
    kept: Revision,
    lost: bool,
}

impl Store for Past {
    fn kind(&self) -> &'static str {
        self.store.kind()
    }

    fn is_exclusive(&self) -> bool {
        self.store.is_exclusive()
    }
    fn store_id(&self) -> &str {
        self.store.store_id()
    }
    fn get<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Record>, StoreError>> {
        self.store.get(key)
    }
    fn list<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<(Vec<Record>, Revision), StoreError>> {
        self.store.list(prefix)
    }
    fn list_at<'a>(
        &'a self,
        prefix: &'a str,
        revision: Revision,
    ) -> BoxFuture<'a, Result<Option<Vec<Record>>, StoreError>> {
        if revision < self.kept {
            return Box::pin(async { Ok(None) });
        }
        self.store.list_at(prefix, revision)
    }
    fn commit(&self, transaction: Transaction) -> BoxFuture<'_, Result<Revision, StoreError>> {
        self.store.commit(transaction)
    }
    fn watch(&self, after: Revision) -> BoxStream<'static, WatchEvent> {
        if self.lost { stream::iter([WatchEvent::Compacted]).boxed() } else { self.store.watch(after) }
    }
    fn is_full(&self) -> BoxFuture<'_, bool> {
        self.store.is_full()
    }
    fn revision(&self) -> BoxFuture<'_, Result<Revision, StoreError>> {
        self.store.revision()
    }
}

struct World {
    past: Past,
    sealer: Sealer,
    tenant: TenantName,
    _dir: TempDir,
}

impl World {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let kek = dir.path().join("kek");
        Sealer::create_file(&kek).unwrap();
        let sealer = Sealer::load(&SealConfig::file(&kek)).unwrap();
        let store = store::open(&StoreConfig::embedded(dir.path().join("data/store"))).await.unwrap();
        let world =
            Self { past: Past { store, kept: 0, lost: false }, sealer, tenant: "acme".parse().unwrap(), _dir: dir };
        let tenant = wire::Tenant { name: "acme".into(), ..Default::default() };
        world.write(vec![Write::Put(Key::Tenant(world.tenant.clone()), tenant.encode_to_vec().into())]).await;
        world
    }

    async fn write(&self, writes: Vec<Write>) -> Revision {
        self.past.commit(Transaction { checks: vec![], writes }).await.unwrap()
    }

    fn agent(&self, n: usize) -> Key {
        let name: AgentName = format!("a{n}").parse().unwrap();
        Key::Agent(self.tenant.clone(), name)
    }

    async fn put_agent(&self, n: usize) -> Revision {
        let agent = wire::Agent { tenant: "acme".into(), name: format!("a{n}"), ..Default::default() };
        self.write(vec![Write::Put(self.agent(n), agent.encode_to_vec().into())]).await
    }

    /// Writes agents at so many revisions.
    async fn agents(&self, count: usize) -> Vec<Revision> {
        futures_util::future::join_all((0..count).map(|n| self.put_agent(n % 40))).await
    }

    async fn bootstrap(&self) -> (StoreListing, ChangeLog) {
        bootstrap(&self.past, &self.sealer).await.unwrap()
    }

    /// What is begun with is what the store holds.
    async fn is_present(&self, (listing, log): &mut (StoreListing, ChangeLog)) {
        let mut present = watcher::list_store(&self.past).await.unwrap();
        assert_eq!((listing.revision, log.head()), (present.revision, present.revision));
        assert_eq!(listing.table.checksum(|_| true), present.table.checksum(|_| true));
        assert_eq!((&listing.nodes, &listing.replicas), (&present.nodes, &present.replicas));
    }
}

fn node(id: &str, version: &str) -> Write {
    let record = wire::Node { id: id.into(), version: version.into(), ..Default::default() };
    Write::Put(Key::Node(id.parse().unwrap()), record.encode_to_vec().into())
}

#[tokio::test]
async fn who_begins_can_lead_on_from_everything_that_is_kept() {
    let world = World::new().await;
    let first = world.past.revision().await.unwrap();
    let made = world.agents(60).await;
    let deleted = world.write(vec![Write::Delete(world.agent(3))]).await;
    let mut begun = world.bootstrap().await;
    world.is_present(&mut begun).await;
    let log = &begun.1;
    assert!(log.reaches(first) && log.reaches(deleted));
    let mut seen = Vec::new();
    let mut at = first;
    while let Some(delta) = log.next(at).unwrap() {
        at = delta.revision;
        seen.push(at);
    }
    let mut expected = made;
    expected.sort_unstable();
    expected.push(deleted);
    assert_eq!(seen, expected);
}

#[tokio::test]
async fn nodes_and_replicas_are_known_as_they_are_and_a_revocation_is_a_delta() {
    let world = World::new().await;
    world.write(vec![node("n1", "1"), node("n2", "1")]).await;
    let replica = wire::Replica { id: "r-1".into(), watermark: 7, ..Default::default() };
    let replica = Write::Put(Key::Replica("r-1".parse().unwrap()), replica.encode_to_vec().into());
    world.write(vec![node("n1", "2"), replica]).await;
    let revoked = world.write(vec![Write::Delete(Key::Node("n2".parse().unwrap()))]).await;
    world.put_agent(0).await;
    let mut begun = world.bootstrap().await;
    world.is_present(&mut begun).await;
    let (listing, log) = begun;
    assert_eq!((listing.nodes.len(), listing.nodes[0].1.version.as_str(), listing.replicas.len()), (1, "2", 1));
    assert_eq!(log.effective(revoked), revoked, "nodes acknowledge it, and so others know when it is enforced");
}

#[tokio::test]
async fn where_less_is_kept_it_begins_later_and_without_a_past_with_the_present() {
    let mut world = World::new().await;
    world.agents(400).await;
    let head = world.past.revision().await.unwrap();
    let least = head - HISTORY_REVISIONS / FALLBACK_DIVISORS[2];
    world.past.kept = least;
    let mut begun = world.bootstrap().await;
    world.is_present(&mut begun).await;
    assert!(begun.1.reaches(least) && !begun.1.reaches(least - 1));

    world.past.kept = head;
    let mut begun = world.bootstrap().await;
    world.is_present(&mut begun).await;
    assert!(begun.1.reaches(head) && !begun.1.reaches(head - 1));

    (world.past.kept, world.past.lost) = (0, true);
    let mut begun = world.bootstrap().await;
    world.is_present(&mut begun).await;
    assert!(!begun.1.reaches(head - 1), "the watch was lost on the way");
}

#[tokio::test]
async fn nothing_is_taken_from_another_lifetime_of_the_store() {
    let world = World::new().await;
    let before = world.put_agent(1).await;
    let renamed = world.write(vec![Write::Put(Key::Epoch, "a new name".into())]).await;
    world.put_agent(2).await;
    let mut begun = world.bootstrap().await;
    world.is_present(&mut begun).await;
    assert!(begun.1.reaches(renamed) && !begun.1.reaches(before));
}

#[tokio::test]
async fn a_start_knows_since_when_no_holder_of_a_lease_has_left_the_store() {
    let world = World::new().await;
    let key = || Key::Node("n1".parse().unwrap());
    let put = |replica: &str, instance: &[u8]| {
        let node =
            wire::Node { id: "n1".into(), replica: replica.into(), instance: instance.to_vec(), ..Default::default() };
        Write::Put(key(), node.encode_to_vec().into())
    };
    let since = async || bootstrap(&world.past, &world.sealer).await.unwrap().0.complete_since.unwrap();
    // It enrols, comes, and moves to another replica: whoever held a lease is still named.
    let enrolled = world.write(vec![put("", b"")]).await;
    world.write(vec![put("r1", b"first")]).await;
    let moved = world.write(vec![put("r2", b"first")]).await;
    assert!(since().await < enrolled);
    // Another process has taken its name; later it is revoked.
    let cloned = world.write(vec![put("r2", b"second")]).await;
    assert_eq!(since().await, cloned);
    let revoked = world.write(vec![Write::Delete(key())]).await;
    assert_eq!((since().await, moved < cloned), (revoked, true));
}
