//! What the embedded store promises beyond the common suite.

use std::os::unix::fs::PermissionsExt as _;

use super::*;
use crate::store::conformance::Subject;

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

mod contract {
    use super::Fresh;

    crate::store_conformance!(Fresh(tempfile::tempdir().unwrap(), 0.into()));
}

fn put(key: &Key, value: &str) -> Transaction {
    Transaction { checks: vec![], writes: vec![Write::Put(key.clone(), value.to_owned().into())] }
}

#[tokio::test]
async fn what_was_written_is_there_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let config = StoreConfig::embedded(dir.path().join("data/store.redb"));
    let (store_id, revision) = {
        let store = Embedded::open(&config).await.unwrap();
        let revision = store.commit(put(&Key::Rotation, "x")).await.unwrap();
        (store.store_id().to_owned(), revision)
    };
    let store = Embedded::open(&config).await.unwrap();
    assert_eq!((store.store_id(), store.revision().await.unwrap()), (store_id.as_str(), revision));
    let record = store.get(&Key::Rotation).await.unwrap().unwrap();
    assert_eq!((&record.value[..], record.modified), (&b"x"[..], revision));
    let mode = |path: std::path::PathBuf| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(dir.path().join("data")), mode(config.path.clone())), (0o700, 0o600));
}

#[tokio::test]
async fn a_second_opener_is_told_and_the_next_one_after_it_gets_in() {
    let directory = tempfile::tempdir().unwrap();
    let config = StoreConfig::embedded(directory.path().join("s.redb"));
    let first = Embedded::open(&config).await.unwrap();
    let forgotten = first.watch(0);
    let error = Embedded::open(&config).await.err().unwrap();
    assert_eq!(error.to_string(), format!("`{}` is in use by another process", config.path.display()));
    drop((first, forgotten));
    Embedded::open(&config).await.unwrap();
}

#[tokio::test]
async fn a_watcher_that_outlives_the_store_does_not_hold_its_file() {
    let directory = tempfile::tempdir().unwrap();
    let config = StoreConfig::embedded(directory.path().join("s.redb"));
    let store = Embedded::open(&config).await.unwrap();
    let mut watch = store.watch(store.revision().await.unwrap());
    let task = tokio::spawn(async move { watch.next().await });
    drop(store);
    Embedded::open(&config).await.unwrap();
    assert!(!task.is_finished(), "a watch ends with nothing but a compaction");
    task.abort();
}

#[tokio::test]
async fn what_is_not_a_store_is_refused_and_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let open = |name: &str| Embedded::open_with(directory.path().join(name), LogLimits::default());
    std::fs::write(directory.path().join("text"), "not a store".repeat(1000)).unwrap();
    std::fs::create_dir(directory.path().join("directory")).unwrap();
    let db = redb::Database::create(directory.path().join("other")).unwrap();
    drop(db);
    {
        drop(open("newer").await.unwrap());
        let db = redb::Database::open(directory.path().join("newer")).unwrap();
        let tx = db.begin_write().unwrap();
        tx.open_table(META).unwrap().insert("format", 3).unwrap();
        tx.commit().unwrap();
    }
    for name in ["text", "directory", "other", "newer"] {
        let error = open(name).await.err().unwrap();
        let known = matches!(error, OpenError::NotAStore { .. } | OpenError::File { .. });
        assert!(known && !error.to_string().contains('\n'), "{name}: {error:?}");
    }
    assert_eq!(std::fs::read(directory.path().join("text")).unwrap(), "not a store".repeat(1000).into_bytes());
    let empty = Embedded::open(&StoreConfig::embedded("")).await.err().unwrap();
    assert_eq!(empty.to_string(), "store.path: is missing");
}

#[tokio::test]
async fn a_truncated_file_is_an_error_and_not_a_panic() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s.redb");
    drop(Embedded::open_with(path.clone(), LogLimits::default()).await.unwrap());
    let whole = std::fs::read(&path).unwrap();
    for length in [1, 100, 4095, 4096, 8192, whole.len() / 2, whole.len() - 1] {
        std::fs::write(&path, &whole[..length]).unwrap();
        let opened = Embedded::open_with(path.clone(), LogLimits::default()).await;
        let error = opened.err().unwrap_or_else(|| panic!("{length} bytes of {}", whole.len())).to_string();
        assert!(!error.contains('\n'), "{length}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_and_so_the_file_stop_growing() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s.redb");
    let limits = LogLimits { revisions: 200, bytes: 400 * 1024 };
    let store = Embedded::open_with(path.clone(), limits).await.unwrap();
    let value = "x".repeat(4_000);
    let mut sizes = Vec::new();
    for _ in 0..6 {
        let round = (0..300).map(|_| store.commit(put(&Key::Rotation, &value)));
        futures_util::future::try_join_all(round).await.unwrap();
        sizes.push(std::fs::metadata(&path).unwrap().len());
    }
    assert_eq!(sizes[2], sizes[5], "{sizes:?}");
    let kept = store
        .read(Cost::Point, |tx| Ok(redb::ReadableTableMetadata::len(&tx.open_table(database::LOG)?)?))
        .await
        .unwrap();
    assert_eq!(kept, 50, "400 KiB of entries of 8 KB each, the old value and the new, and never more than 200");
    // One change that is larger than the whole log is still handed to those who watch.
    let at = store.revision().await.unwrap();
    let mut watch = store.watch(at);
    store.commit(put(&Key::Rotation, &"y".repeat(500 * 1024))).await.unwrap();
    assert!(matches!(watch.next().await, Some(WatchEvent::Changes { revision, .. }) if revision == at + 1));
}

/// As a build before this one wrote the log.
#[tokio::test]
async fn a_store_of_an_older_build_is_opened_and_its_past_begins_there() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s.redb");
    let (before, at) = {
        let store = Embedded::open_with(path.clone(), LogLimits::default()).await.unwrap();
        let before = store.commit(put(&Key::Rotation, "1")).await.unwrap();
        (before, store.commit(put(&Key::Rotation, "2")).await.unwrap())
    };
    {
        let db = redb::Database::open(&path).unwrap();
        let tx = db.begin_write().unwrap();
        tx.open_table(META).unwrap().insert("format", 1).unwrap();
        let path = Key::Rotation.to_string();
        let entry = [&[1, path.len() as u8, 0], path.as_bytes(), &[1, 0, 0, 0], b"2"].concat();
        tx.open_table(database::LOG).unwrap().insert(at, &entry[..]).unwrap();
        tx.commit().unwrap();
    }
    let store = Embedded::open_with(path.clone(), LogLimits::default()).await.unwrap();
    assert_eq!(store.list_at("", before).await.unwrap(), None);
    let mut watch = store.watch(before);
    assert!(matches!(watch.next().await, Some(WatchEvent::Changes { revision, .. }) if revision == at));
    store.commit(put(&Key::Rotation, "3")).await.unwrap();
    let records = store.list_at("", at).await.unwrap().unwrap();
    assert_eq!((records.len(), &records[1].value[..], records[1].modified), (2, &b"2"[..], at));
    let format = store.read(Cost::Point, |tx| Ok(tx.open_table(META)?.get("format")?.unwrap().value())).await.unwrap();
    assert_eq!(format, 2, "and an older build doesn't read what this one writes");
}

#[tokio::test]
async fn what_replaces_too_much_at_once_ends_the_past() {
    let directory = tempfile::tempdir().unwrap();
    let store = Embedded::open_with(directory.path().join("s.redb"), LogLimits::default()).await.unwrap();
    let small = store.commit(put(&Key::Rotation, "small")).await.unwrap();
    let large = store.commit(put(&Key::Rotation, &"x".repeat(200_000))).await.unwrap();
    assert!(store.list_at("", small).await.unwrap().is_some());
    store.commit(put(&Key::Rotation, "small again")).await.unwrap();
    assert_eq!(store.list_at("", large).await.unwrap(), None);
    assert!(store.list_at("", small).await.unwrap().is_some(), "what it was before is known all the same");
}

#[test]
fn a_full_pool_of_blocking_calls_and_many_listings_hold_up_no_read() {
    let runtime = tokio::runtime::Builder::new_current_thread().max_blocking_threads(1).enable_all().build().unwrap();
    runtime.block_on(async {
        let dir = tempfile::tempdir().unwrap();
        let store = Embedded::open(&StoreConfig::embedded(dir.path().join("store.redb"))).await.unwrap();
        let (release, held) = std::sync::mpsc::channel::<()>();
        tokio::task::spawn_blocking(move || held.recv().unwrap_or_default()); // a name server that is silent, say
        let (listings, listing) = std::sync::mpsc::channel::<()>();
        let listing = Arc::new(parking_lot::Mutex::new(listing));
        let busy: Vec<_> = (0..20)
            .map(|_| {
                let listing = listing.clone();
                let mut read = Box::pin(store.read(Cost::Listing, move |_| {
                    listing.lock().recv().unwrap_or_default();
                    Ok(())
                }));
                assert!(futures_util::FutureExt::now_or_never(&mut read).is_none());
                read
            })
            .collect();
        let mut watch = store.watch(store.revision().await.unwrap());
        let served = async {
            let revision = store.commit(put(&Key::Rotation, "x")).await.unwrap();
            assert_eq!(store.revision().await.unwrap(), revision);
            assert!(store.get(&Key::Rotation).await.unwrap().is_some());
            while !matches!(watch.next().await, Some(WatchEvent::Changes { revision: at, .. }) if at == revision) {}
        };
        tokio::time::timeout(std::time::Duration::from_secs(30), served).await.expect("the store is held up");
        drop((listings, release));
        for read in busy {
            read.await.unwrap();
        }
    });
}
