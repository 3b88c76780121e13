//! On the embedded store; `tests/tests/isolation/store_writer` has etcd, and every kind of record.

use tempfile::TempDir;

use super::*;
use crate::{
    seal::SealConfig,
    store::{self, StoreConfig, key::prefix},
};

struct World {
    dir: TempDir,
    sealer: Arc<Sealer>,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let kek = dir.path().join("kek");
        Sealer::create_file(&kek).unwrap();
        let sealer = Arc::new(Sealer::load(&SealConfig::file(&kek)).unwrap());
        Self { dir, sealer }
    }

    /// The store as it is, without anything that checks it.
    async fn raw(&self) -> Arc<dyn Store> {
        store::open(&StoreConfig::embedded(self.dir.path().join("data/store"))).await.unwrap()
    }

    async fn open(&self) -> Authenticated {
        let store = self.raw().await;
        self.sealer.verify(&*store).await.unwrap();
        Authenticated::open(store, Arc::clone(&self.sealer), 0).await.unwrap()
    }

    async fn fails(&self) -> SealError {
        let store = self.raw().await;
        Authenticated::open(store, Arc::clone(&self.sealer), 0).await.err().unwrap()
    }
}

fn agent(n: usize) -> Key {
    Key::Agent("acme".parse().unwrap(), format!("a{n}").parse().unwrap())
}

fn put(n: usize, value: &str) -> Write {
    Write::Put(agent(n), Bytes::from(value.to_owned()))
}

async fn write(store: &dyn Store, writes: Vec<Write>) -> Revision {
    store.commit(Transaction { checks: vec![], writes }).await.unwrap()
}

async fn values(store: &dyn Store) -> Vec<String> {
    let agents = store.list("in/acme/agent/").await.unwrap().0;
    agents.into_iter().map(|record| String::from_utf8_lossy(&record.value).into_owned()).collect()
}

#[tokio::test]
async fn a_new_store_takes_no_record_without_a_frame_and_none_that_was_put_back() {
    let world = World::new();
    let store = world.open().await;
    assert!(store.is_complete() && store.is_authenticated());
    write(&store, vec![put(1, "one"), put(2, "two"), put(3, "three")]).await;
    assert_eq!(values(&store).await, ["one", "two", "three"]);
    drop(store);
    let raw = world.raw().await;
    let was = raw.get(&agent(3)).await.unwrap().unwrap().value;
    write(&*raw, vec![put(1, "forged"), Write::Delete(agent(3))]).await;
    write(&*raw, vec![Write::Put(agent(3), was)]).await;
    drop(raw);
    let store = world.open().await;
    assert_eq!(values(&store).await, ["two"]);
    assert_eq!(store.unauthenticated(), 2);
    let create = Transaction { checks: vec![(agent(1), 0)], writes: vec![put(1, "anew")] };
    store.commit(create.clone()).await.unwrap();
    assert!(matches!(store.commit(create).await, Err(StoreError::Conflict)), "now it is there");
    assert_eq!(values(&store).await, ["anew", "two"]);
}

#[tokio::test]
async fn a_store_of_an_earlier_version_is_upgraded_wherever_it_was_interrupted() {
    let world = World::new();
    let raw = world.raw().await;
    world.sealer.verify(&*raw).await.unwrap();
    for n in 0..200 {
        write(&*raw, vec![put(n, "old")]).await;
    }
    drop(raw);
    let store = world.open().await;
    assert!(!store.is_complete());
    assert_eq!(values(&store).await.len(), 200, "until it is upgraded, what is there counts");
    write(&store, vec![put(7, "new")]).await; // framed already, as by an upgrade that was killed
    drop(store);
    let store = world.open().await;
    assert_eq!(store.upgrade().await.unwrap(), 199);
    assert!(store.is_complete() && store.upgrade().await.unwrap() == 0);
    assert_eq!(values(&store).await.len(), 200);
    assert!(store.list_at(prefix::ALL, 10).await.unwrap().is_none(), "what was before can't be checked");
    drop(store);
    let raw = world.raw().await;
    assert!(raw.list("in/").await.unwrap().0.iter().all(|record| store::is_framed(&record.value)));
    write(&*raw, vec![put(8, "old")]).await;
    drop(raw);
    let store = world.open().await;
    assert!(store.is_complete() && store.get(&agent(8)).await.unwrap().is_none());
    assert_eq!(values(&store).await.len(), 199);
}

#[tokio::test]
async fn the_key_of_the_records_is_not_made_anew_where_it_is_gone() {
    let world = World::new();
    drop(world.open().await);
    let raw = world.raw().await;
    write(&*raw, vec![Write::Delete(Key::RecordKey)]).await;
    drop(raw);
    assert!(matches!(world.fails().await, SealError::RecordKeyGone));
    // Not even where every frame is taken off.
    let raw = world.raw().await;
    write(&*raw, vec![put(1, "forged")]).await;
    drop(raw);
    assert!(matches!(world.fails().await, SealError::RecordKeyGone));
}
