//! A rotation that is killed anywhere loses nothing and finishes when it is run again.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use futures_util::{FutureExt as _, future::BoxFuture, stream::BoxStream};
use seks_types::secret::Secret;

use super::*;
use crate::{
    seal::{
        KekProvider,
        local::{self, LocalKek},
    },
    store::{self, Revision, StoreConfig, WatchEvent},
};

const CREDENTIALS: u32 = 40;

fn ring(active: u8, older: &[u8]) -> Sealer {
    let kek = |byte: &u8| Arc::new(LocalKek::new(&[*byte; local::BYTES])) as Arc<dyn KekProvider>;
    Sealer::with_keys(kek(&active), older.iter().map(kek).collect())
}

fn envelope_key(n: u32) -> Key {
    Key::Envelope("acme".parse().unwrap(), "openai".parse().unwrap(), n)
}

fn secret(n: u32) -> Secret {
    Secret::new(format!("secret {n}").into_bytes())
}

async fn seal(sealer: &Sealer, store: &dyn Store, key: &Key, secret: &Secret) {
    let envelope = sealer.seal(&RecordId::of(key, store.store_id()).unwrap(), secret).await.unwrap();
    store.commit(Transaction { checks: vec![], writes: vec![Write::Put(key.clone(), envelope)] }).await.unwrap();
}

/// A store whose every envelope is under KEK 1.
async fn sealed() -> (tempfile::TempDir, Arc<dyn Store>) {
    let directory = tempfile::tempdir().unwrap();
    let store = store::open(&StoreConfig::embedded(directory.path().join("s.redb"))).await.unwrap();
    let old = ring(1, &[]);
    old.verify(&*store).await.unwrap();
    seal(&old, &*store, &Key::Authority, &secret(0)).await;
    let seals = (1..=CREDENTIALS).map(|n| {
        let (old, store) = (&old, &store);
        async move { seal(old, &**store, &envelope_key(n), &secret(n)).await }
    });
    futures_util::future::join_all(seals).await;
    (directory, store)
}

async fn all_open(sealer: &Sealer, store: &dyn Store) -> bool {
    let keys = (1..=CREDENTIALS).map(|n| (envelope_key(n), n)).chain([(Key::Authority, 0)]);
    for (key, n) in keys {
        let record = store.get(&key).await.unwrap().unwrap();
        match sealer.open(&RecordId::of(&key, store.store_id()).unwrap(), &record.value).await {
            Ok(opened) => assert_eq!(opened.expose(), secret(n).expose()),
            Err(SealError::UnknownKek(_)) => return false,
            Err(error) => panic!("{key:?}: {error}"),
        }
    }
    sealer.verify(store).await.is_ok()
}

/// Passes commits on until they run out; the last one fails, before or after it was made.
struct Dying {
    store: Arc<dyn Store>,
    left: AtomicUsize,
    made: bool,
}

impl Store for Dying {
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
        self.store.list_at(prefix, revision)
    }
    fn commit(&self, transaction: Transaction) -> BoxFuture<'_, Result<Revision, StoreError>> {
        if self.left.fetch_sub(1, Ordering::Relaxed) > 1 {
            return self.store.commit(transaction);
        }
        async move {
            if self.made {
                self.store.commit(transaction).await?;
            }
            Err(StoreError::Unknown("killed".into()))
        }
        .boxed()
    }
    fn watch(&self, after: Revision) -> BoxStream<'static, WatchEvent> {
        self.store.watch(after)
    }
    fn is_full(&self) -> BoxFuture<'_, bool> {
        self.store.is_full()
    }
    fn revision(&self) -> BoxFuture<'_, Result<Revision, StoreError>> {
        self.store.revision()
    }
}

#[tokio::test]
async fn a_rotation_leaves_nothing_under_the_old_key() {
    let (_directory, store) = sealed().await;
    let (old, both, new) = (ring(1, &[]), ring(2, &[1]), ring(2, &[]));
    assert_eq!(Progress::read(&*store).await.unwrap(), None);
    let report = rotate(&both, &*store).await.unwrap();
    assert_eq!((report.rewrapped, report.left.len()), (u64::from(CREDENTIALS) + 2, 0));
    assert!(all_open(&new, &*store).await && !all_open(&old, &*store).await);
    let progress = Progress::read(&*store).await.unwrap().unwrap();
    assert_eq!((progress.to, progress.done), (new.active().to_string(), true));

    let at = store.revision().await.unwrap();
    assert_eq!(rotate(&new, &*store).await.unwrap().rewrapped, 0);
    assert_eq!(store.revision().await.unwrap(), at, "a rotation with nothing to do writes nothing");
}

#[tokio::test]
async fn a_rotation_that_is_killed_anywhere_is_finished_by_the_next() {
    let mut died = 0;
    for made in [false, true] {
        for commits in 1.. {
            let (_directory, store) = sealed().await;
            let dying = Dying { store: Arc::clone(&store), left: commits.into(), made };
            let (both, new) = (ring(2, &[1]), ring(2, &[]));
            let killed = rotate(&both, &dying).await.is_err();
            assert!(all_open(&both, &*store).await, "something was lost");
            if !killed {
                break;
            }
            died += 1;
            assert!(!Progress::read(&*store).await.unwrap().is_some_and(|p| p.done && !made));
            assert_eq!(rotate(&both, &*store).await.unwrap().left.len(), 0);
            assert!(all_open(&new, &*store).await);
            let progress = Progress::read(&*store).await.unwrap().unwrap();
            assert_eq!((progress.rewrapped, progress.done), (u64::from(CREDENTIALS) + 2, true));
        }
    }
    assert!(died >= 6, "only {died} places to die at");
}

#[tokio::test]
async fn a_rotation_yields_to_those_who_work_meanwhile() {
    let (_directory, store) = sealed().await;
    let both = ring(2, &[1]);
    let (stale, _) = stale(&both, &*store).await.unwrap();
    // Between the rotation's look and its write one credential is replaced, another deleted.
    seal(&both, &*store, &envelope_key(3), &secret(333)).await;
    store.commit(Transaction { checks: vec![], writes: vec![Write::Delete(envelope_key(4))] }).await.unwrap();
    let mut progress = Progress { to: both.active().to_string(), rewrapped: 0, done: false };
    for batch in stale.chunks(BATCH) {
        rewrap(&*store, batch, &mut progress).await.unwrap();
    }
    assert_eq!(progress.rewrapped, u64::from(CREDENTIALS)); // all but those two
    assert_eq!(store.get(&envelope_key(4)).await.unwrap(), None);
    let record = store.get(&envelope_key(3)).await.unwrap().unwrap();
    let opened = both.open(&RecordId::of(&envelope_key(3), store.store_id()).unwrap(), &record.value).await.unwrap();
    assert_eq!(opened.expose(), secret(333).expose());
}

#[tokio::test]
async fn an_envelope_that_can_not_be_rewrapped_is_named_and_keeps_the_rotation_open() {
    let (_directory, store) = sealed().await;
    seal(&ring(9, &[]), &*store, &envelope_key(7), &secret(7)).await;
    let damaged = Transaction { checks: vec![], writes: vec![Write::Put(envelope_key(8), "damaged".into())] };
    store.commit(damaged).await.unwrap();
    let report = rotate(&ring(2, &[1]), &*store).await.unwrap();
    let left: Vec<String> = report.left.iter().map(|(key, error)| format!("{key:?}: {error}")).collect();
    assert_eq!(left.len(), 2, "{left:?}");
    assert!(
        left[0].contains("0000000007`: the envelope needs the key-encryption key") && left[1].contains("0000000008")
    );
    assert!(!Progress::read(&*store).await.unwrap().unwrap().done);
}

#[tokio::test]
async fn a_wrong_kek_is_noticed_before_anything_is_written() {
    let (_directory, store) = sealed().await;
    let at = store.revision().await.unwrap();
    ring(1, &[]).verify(&*store).await.unwrap();
    ring(2, &[1]).verify(&*store).await.unwrap();
    let error = ring(2, &[3]).verify(&*store).await.unwrap_err();
    assert!(matches!(error, SealError::WrongKek { want, .. } if want == ring(1, &[]).active()), "{error}");
    // A store of before the check record is known by its CA's key.
    store.commit(Transaction { checks: vec![], writes: vec![Write::Delete(Key::Canary)] }).await.unwrap();
    assert!(matches!(ring(2, &[]).verify(&*store).await, Err(SealError::WrongKek { .. })));
    assert_eq!(store.revision().await.unwrap(), at + 1);
    ring(1, &[]).verify(&*store).await.unwrap();
    assert!(store.get(&Key::Canary).await.unwrap().is_some());
}
