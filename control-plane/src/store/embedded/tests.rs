//! What the embedded store promises beyond the common suite.

use std::os::unix::fs::PermissionsExt as _;

use super::*;
use crate::store::conformance::{self, Subject};

/// Stores in a directory of their own, whose log forgets after some thousand revisions.
struct Fresh(tempfile::TempDir, std::sync::atomic::AtomicUsize);

const REVISIONS: u64 = 1_500;

impl Subject for Fresh {
    fn fresh(&self) -> BoxFuture<'_, Arc<dyn Store>> {
        Box::pin(async move {
            let n = self.1.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let limits = LogLimits { revisions: REVISIONS, ..LogLimits::default() };
            let store = Embedded::open_with(self.0.path().join(format!("{n}.redb")), limits).await.unwrap();
            Arc::new(store) as Arc<dyn Store>
        })
    }

    fn another<'a>(&'a self, store: &'a Arc<dyn Store>) -> BoxFuture<'a, Arc<dyn Store>> {
        Box::pin(async move { Arc::clone(store) })
    }

    fn compact<'a>(&'a self, store: &'a Arc<dyn Store>) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            let fill = (0..REVISIONS).map(|_| store.commit(put(&Key::Rotation, "filler")));
            futures_util::future::try_join_all(fill).await.unwrap();
        })
    }

    fn disturb<'a>(&'a self, _: &'a Arc<dyn Store>) -> BoxFuture<'a, ()> {
        Box::pin(async {})
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_embedded_store_keeps_the_contract() {
    conformance::run(&Fresh(tempfile::tempdir().unwrap(), 0.into())).await;
}

fn put(key: &Key, value: &str) -> Transaction {
    Transaction { checks: vec![], writes: vec![Write::Put(key.clone(), value.to_owned().into())] }
}

#[tokio::test]
async fn what_was_written_is_there_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let config = StoreConfig::embedded(dir.path().join("data/store.redb"));
    let (epoch, revision) = {
        let store = Embedded::open(&config).await.unwrap();
        let revision = store.commit(put(&Key::Rotation, "x")).await.unwrap();
        (store.epoch().to_owned(), revision)
    };
    let store = Embedded::open(&config).await.unwrap();
    assert_eq!((store.epoch(), store.revision().await.unwrap()), (epoch.as_str(), revision));
    let record = store.get(&Key::Rotation).await.unwrap().unwrap();
    assert_eq!((&record.value[..], record.modified), (&b"x"[..], revision));
    let mode = |path: std::path::PathBuf| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(dir.path().join("data")), mode(config.path.clone())), (0o700, 0o600));
}
