//! What the embedded store promises beyond the common suite.

use std::os::unix::fs::PermissionsExt as _;

use super::*;

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
