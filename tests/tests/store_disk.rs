//! The embedded store on a disk that is full, and in places where it can't write.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

use std::{path::Path, process::Command, sync::Arc};

use bytes::Bytes;
use seks_control_plane::store::{self, Key, Store, StoreConfig, StoreError, Transaction, Write};
use seks_tests::{Sandbox, sandbox::Options};

/// A small file system of its own.
struct Disk(tempfile::TempDir);

impl Disk {
    fn new(bytes: usize) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={bytes}"), "tmpfs"]).arg(directory.path());
        let done = mount.output().unwrap();
        assert!(done.status.success(), "{done:?}");
        Self(directory)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        drop(Command::new("umount").arg("-l").arg(self.0.path()).status());
    }
}

fn key(n: usize) -> Key {
    Key::Agent("acme".parse().unwrap(), format!("a{n}").parse().unwrap())
}

async fn put(store: &Arc<dyn Store>, n: usize, length: usize) -> Result<u64, StoreError> {
    let value = Bytes::from(vec![7; length]);
    store.commit(Transaction { checks: vec![], writes: vec![Write::Put(key(n), value)] }).await
}

async fn delete(store: &Arc<dyn Store>, n: usize) -> Result<u64, StoreError> {
    store.commit(Transaction { checks: vec![], writes: vec![Write::Delete(key(n))] }).await
}

/// Puts until one is refused; says how many were made.
async fn fill(store: &Arc<dyn Store>) -> usize {
    for written in 0..10_000 {
        match put(store, written, 20_000).await {
            Ok(_) => {}
            Err(StoreError::Full) => return written,
            Err(error) => panic!("{error}"),
        }
    }
    panic!("never full");
}

#[tokio::test]
#[cfg_attr(not(has = "mount"), ignore = "needs mount")]
async fn a_full_disk_refuses_puts_and_takes_deletes() {
    let disk = Disk::new(16 * 1024 * 1024);
    let config = StoreConfig::embedded(disk.path().join("store.redb"));
    let store = store::open(&config).await.unwrap();
    let written = fill(&store).await;
    assert!(written > 100, "{written}");
    assert_eq!(store.list("in/").await.unwrap().0.len(), written, "half a write, or a lost one");
    drop(store);
    let store = store::open(&config).await.unwrap();
    assert_eq!(store.list("in/").await.unwrap().0.len(), written);
    for n in 0..written {
        delete(&store, n).await.unwrap();
    }
    assert_eq!(store.list("in/").await.unwrap().0.len(), 0);
}

#[tokio::test]
#[cfg_attr(not(has = "mount"), ignore = "needs mount")]
async fn when_others_fill_the_disk_to_the_last_byte_revoking_still_works() {
    let disk = Disk::new(24 * 1024 * 1024);
    let store = store::open(&StoreConfig::embedded(disk.path().join("store.redb"))).await.unwrap();
    // In few large changes, so that the file has few free pages of its own when the disk is full.
    for first in (0..1_000).step_by(100) {
        let writes = (first..first + 100).map(|n| Write::Put(key(n), Bytes::from(vec![7; 4_000])));
        store.commit(Transaction { checks: vec![], writes: writes.collect() }).await.unwrap();
    }
    let filler = disk.path().join("filler");
    let full = std::fs::write(&filler, vec![1; 24 * 1024 * 1024]).unwrap_err();
    assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
    assert!(matches!(put(&store, 5_000, 1_000).await, Err(StoreError::Full)));
    let status = seks_control_plane::status::of(store.as_ref()).await;
    assert_eq!((status.store_healthy, status.store_problem.as_str()), (false, "full"));
    let reserve = disk.path().join("store.redb.reserve");
    assert!(reserve.exists());
    for first in 0..10 {
        let writes = (0..100).map(|n| Write::Delete(key(first + n * 10))); // on every page
        store.commit(Transaction { checks: vec![], writes: writes.collect() }).await.unwrap();
        assert_eq!(store.list("in/").await.unwrap().0.len(), 900 - first * 100);
    }
    assert!(!reserve.exists(), "the disk was not full enough to show anything");
    assert!(matches!(put(&store, 5_000, 1_000).await, Err(StoreError::Full)));
    std::fs::remove_file(filler).unwrap();
    put(&store, 5_000, 1_000).await.unwrap();
    assert!(seks_control_plane::status::of(store.as_ref()).await.store_healthy, "there is room again");
    assert!(reserve.exists());
    assert_eq!(store.list("in/").await.unwrap().0.len(), 1);
}

#[tokio::test]
#[cfg_attr(not(has = "mount"), ignore = "needs mount")]
async fn a_directory_that_is_read_only_is_one_line() {
    let disk = Disk::new(24 * 1024 * 1024);
    let remount = |mode: &str| {
        let done = Command::new("mount").args(["-o", &format!("remount,{mode}")]).arg(disk.path()).output().unwrap();
        assert!(done.status.success());
    };
    let config = StoreConfig::embedded(disk.path().join("data/store.redb"));
    let refused = async |what: &str| {
        let error = store::open(&config).await.err().unwrap().to_string();
        assert!(error.starts_with('`') && error.contains(what) && !error.contains('\n'), "{error}");
    };
    remount("ro");
    refused("Read-only file system").await;
    remount("rw");
    drop(store::open(&config).await.unwrap());
    remount("ro");
    refused("Read-only file system").await;
}

#[tokio::test]
#[cfg_attr(not(has = "mount"), ignore = "needs mount")]
async fn a_disk_too_small_for_a_store_is_one_line_and_leaves_nothing() {
    let disk = Disk::new(8 * 1024);
    let config = StoreConfig::embedded(disk.path().join("store.redb"));
    let error = store::open(&config).await.err().unwrap().to_string();
    assert!(error.contains("No space left") && !error.contains('\n'), "{error}");
    assert_eq!(std::fs::read_dir(disk.path()).unwrap().count(), 0);
}

#[test]
#[cfg_attr(not(has = "mount"), ignore = "needs mount")]
fn status_says_that_the_disk_is_full() {
    let disk = Disk::new(24 * 1024 * 1024);
    let store = format!("kind = \"embedded\"\npath = \"{}\"\n", disk.path().join("store.redb").display());
    let sandbox = Sandbox::with(Options::planes(store));
    let store_status = || sandbox.cli().json(&["status"])["store"].clone();
    assert_eq!(store_status()["healthy"], true);
    std::fs::write(disk.path().join("filler"), vec![1; 24 * 1024 * 1024]).unwrap_err();
    let refused = sandbox.cli().run(&["agent", "create", "late"], "");
    assert!(refused.code == Some(1) && refused.stderr.contains("the store is full"), "{refused:?}");
    assert_eq!(store_status()["healthy"], false);
}
