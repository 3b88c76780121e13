//! The store on a real etcd: the common suite over a wire that is cut again and again, and what
//! only a cluster can do to us.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::{FutureExt as _, StreamExt as _, future::BoxFuture, stream::BoxStream};
use parking_lot::Mutex;
use seks_control_plane::store::{
    self, Key, OpenError, Revision, Store, StoreConfig, StoreError, StoreKind, StoreTlsConfig, Transaction, WatchEvent,
    Write, conformance::Subject,
};
use seks_tests::{Etcd, Forwarder, etcd::Tls, forwarder::Mode, install_crypto_provider};
use serde_json::json;

fn config(endpoints: &[String], prefix: &str) -> StoreConfig {
    StoreConfig {
        kind: StoreKind::Etcd,
        endpoints: endpoints.to_vec(),
        prefix: prefix.into(),
        allow_plaintext: true,
        keep_alive: Duration::from_millis(300),
        request_timeout: Duration::from_millis(500),
        ..StoreConfig::default()
    }
}

async fn open(etcd: &Etcd) -> Arc<dyn Store> {
    install_crypto_provider();
    store::open(&config(&[etcd.url()], "/seks")).await.unwrap()
}

fn key(n: usize) -> Key {
    Key::Agent("acme".parse().unwrap(), format!("a{n}").parse().unwrap())
}

fn put(n: usize, value: &str) -> Transaction {
    Transaction { checks: vec![], writes: vec![Write::Put(key(n), Bytes::from(value.to_owned()))] }
}

async fn next(watch: &mut BoxStream<'static, WatchEvent>) -> (Revision, Vec<Write>) {
    loop {
        let event = tokio::time::timeout(Duration::from_secs(30), watch.next())
            .await
            .unwrap_or_else(|_| panic!("no event in 30 s"));
        match event {
            Some(WatchEvent::Changes { revision, changes }) => return (revision, changes),
            Some(WatchEvent::Progress(_)) => {}
            other => panic!("{other:?}"),
        }
    }
}

/// Every store has a prefix of its own in one etcd, behind a wire that
/// [`disturb`](Subject::disturb) cuts.
struct Wired {
    etcd: Etcd,
    wire: Forwarder,
    count: AtomicUsize,
    prefixes: Mutex<HashMap<String, String>>,
}

impl Wired {
    async fn open(&self, prefix: &str) -> Arc<dyn Store> {
        store::open(&config(&[format!("http://{}", self.wire.address())], prefix)).await.unwrap()
    }
}

impl Subject for Wired {
    fn fresh(&self) -> BoxFuture<'_, Arc<dyn Store>> {
        async move {
            let prefix = format!("/test/{}", self.count.fetch_add(1, Ordering::Relaxed));
            let store = self.open(&prefix).await;
            self.prefixes.lock().insert(store.store_id().to_owned(), prefix);
            store
        }
        .boxed()
    }

    fn another<'a>(&'a self, store: &'a Arc<dyn Store>) -> BoxFuture<'a, Arc<dyn Store>> {
        let prefix = self.prefixes.lock()[store.store_id()].clone();
        async move { self.open(&prefix).await }.boxed()
    }

    fn compact<'a>(&'a self, store: &'a Arc<dyn Store>) -> BoxFuture<'a, ()> {
        async move { self.etcd.compact(store.revision().await.unwrap()).await }.boxed()
    }

    fn disturb<'a>(&'a self, _: &'a Arc<dyn Store>) -> BoxFuture<'a, ()> {
        async move {
            self.etcd.call("kv/put", json!({"key": "L290aGVy", "value": "eA=="})).await; // "/other"
            self.wire.cut();
        }
        .boxed()
    }
}

impl Wired {
    async fn start() -> Self {
        install_crypto_provider();
        let etcd = Etcd::start().await;
        let wire = Forwarder::to(etcd.address()).await;
        Self { etcd, wire, count: AtomicUsize::new(0), prefixes: Mutex::default() }
    }
}

mod contract {
    use super::Wired;

    seks_control_plane::store_conformance!(
        Wired::start().await,
        #[cfg_attr(not(has = "etcd"), ignore = "needs etcd")]
    );
}

#[tokio::test]
#[cfg_attr(not(has = "etcd"), ignore = "needs etcd")]
async fn a_watch_survives_kill_9_and_a_frozen_peer() {
    let mut etcd = Etcd::start().await;
    let store = open(&etcd).await;
    let mut watch = store.watch(store.revision().await.unwrap());
    store.commit(put(0, "before")).await.unwrap();
    assert_eq!(next(&mut watch).await.1, put(0, "before").writes);

    etcd.kill();
    etcd.restart().await;
    store.commit(put(0, "after the crash")).await.unwrap();
    assert_eq!(next(&mut watch).await.1, put(0, "after the crash").writes);

    etcd.freeze();
    let outcome = store.get(&key(0)).now_or_never();
    assert!(outcome.is_none());
    tokio::time::sleep(Duration::from_secs(2)).await; // several times the keep-alive: the watch is given up meanwhile
    etcd.thaw();
    store.commit(put(0, "after the freeze")).await.unwrap();
    assert_eq!(next(&mut watch).await.1, put(0, "after the freeze").writes);
}

#[tokio::test]
#[cfg_attr(not(has = "etcd"), ignore = "needs etcd")]
async fn a_compaction_while_the_wire_is_cut_is_noticed() {
    install_crypto_provider();
    let etcd = Etcd::start().await;
    let wire = Forwarder::to(etcd.address()).await;
    let far = store::open(&config(&[format!("http://{}", wire.address())], "/seks")).await.unwrap();
    let near = open(&etcd).await;
    let mut watch = far.watch(far.revision().await.unwrap());
    near.commit(put(0, "seen")).await.unwrap();
    assert_eq!(next(&mut watch).await.1, put(0, "seen").writes);

    wire.set(Mode::Closed);
    wire.cut();
    for n in 0..5 {
        near.commit(put(0, &n.to_string())).await.unwrap();
    }
    etcd.compact(near.revision().await.unwrap()).await;
    wire.set(Mode::Open);
    let event = tokio::time::timeout(Duration::from_secs(30), watch.next()).await.unwrap();
    assert_eq!(event, Some(WatchEvent::Compacted));
    assert_eq!(watch.next().await, None);
}

#[tokio::test]
#[cfg_attr(not(has = "etcd"), ignore = "needs etcd")]
async fn a_commit_whose_answer_was_lost_is_made_once() {
    install_crypto_provider();
    let etcd = Etcd::start().await;
    let wire = Forwarder::to(etcd.address()).await;
    let store = store::open(&config(&[format!("http://{}", wire.address())], "/seks")).await.unwrap();
    let other = open(&etcd).await;
    let start = store.revision().await.unwrap();
    let mut watch = other.watch(start);
    let create = |n, value| Transaction { checks: vec![(key(n), 0)], ..put(n, value) };
    for (n, value, transaction) in [
        (0, "checked", create(0, "checked")),
        (1, "unchecked", put(1, "unchecked")), // and so guarded: the answer to the guard's read still arrives
        (2, "elsewhere", Transaction { checks: vec![(key(9), 0)], ..put(2, "elsewhere") }),
    ] {
        wire.mute_after(value);
        let commit = tokio::spawn({
            let (store, transaction) = (Arc::clone(&store), transaction.clone());
            async move { store.commit(transaction).await }
        });
        let seen = next(&mut watch).await; // it is made, and nobody tells the one who made it
        wire.cut();
        wire.set(Mode::Open);
        let at = commit.await.unwrap().unwrap();
        assert_eq!(seen, (at, transaction.writes));
        assert_eq!(other.get(&key(n)).await.unwrap().unwrap().modified, at, "written twice");
    }
    // Nothing else has happened.
    let at = other.commit(put(3, "end")).await.unwrap();
    assert_eq!(next(&mut watch).await.0, at);
}

#[tokio::test]
#[cfg_attr(not(has = "etcd"), ignore = "needs etcd")]
async fn a_watch_keeps_level_where_others_write() {
    install_crypto_provider();
    let etcd = Etcd::start().await;
    let store = open(&etcd).await;
    let mut watch = store.watch(store.revision().await.unwrap());
    for _ in 0..3 {
        for _ in 0..5 {
            etcd.call("kv/put", json!({"key": "L290aGVy", "value": "eA=="})).await; // "/other"
        }
        let at = store.revision().await.unwrap();
        let level = async {
            loop {
                match watch.next().await {
                    Some(WatchEvent::Progress(reached)) if reached >= at => break,
                    Some(WatchEvent::Progress(_)) => {}
                    other => panic!("{other:?}"),
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(10), level).await.unwrap_or_else(|_| panic!("the watch stays behind"));
    }
    // Level, it is quiet.
    let at = store.revision().await.unwrap();
    assert!(tokio::time::timeout(Duration::from_secs(2), watch.next()).await.is_err());
    assert_eq!(store.revision().await.unwrap(), at);
    assert_eq!(store.list("").await.unwrap().0.len(), 1, "a pulse is no record");
}

#[tokio::test]
#[cfg_attr(not(has = "etcd"), ignore = "needs etcd")]
async fn an_unreachable_store_is_said_to_be_and_in_time() {
    install_crypto_provider();
    let mut etcd = Etcd::start().await;
    let mut config = config(&[etcd.url()], "/seks");
    config.retry_timeout = Duration::from_millis(500);
    let store = store::open(&config).await.unwrap();
    etcd.kill();
    let began = Instant::now();
    assert!(matches!(store.get(&key(0)).await, Err(StoreError::Unavailable(_))));
    assert!(matches!(store.commit(put(0, "x")).await, Err(StoreError::Unavailable(_))));
    assert!(matches!(store.revision().await, Err(StoreError::Unavailable(_))));
    assert!(began.elapsed() < Duration::from_secs(20));
    let error = store::open(&config).await.err().unwrap().to_string();
    assert!(error.starts_with("the store is unreachable: http://127.0.0.1:") && !error.contains('\n'), "{error}");
}

#[tokio::test]
#[cfg_attr(not(has = "etcd"), ignore = "needs etcd")]
async fn the_next_endpoint_takes_over() {
    install_crypto_provider();
    let etcd = Etcd::start().await;
    let wire = Forwarder::to(etcd.address()).await;
    let endpoints = [format!("http://{}", wire.address()), etcd.url()];
    let store = store::open(&config(&endpoints, "/seks")).await.unwrap();
    let mut watch = store.watch(store.revision().await.unwrap());
    for n in 0..20 {
        if n == 10 {
            wire.set(Mode::Closed);
            wire.cut();
        }
        store.commit(put(0, &n.to_string())).await.unwrap();
        assert_eq!(next(&mut watch).await.1, put(0, &n.to_string()).writes);
    }
}

#[tokio::test]
#[cfg_attr(not(has = "etcd"), ignore = "needs etcd")]
async fn a_full_store_refuses_puts_and_takes_deletes() {
    install_crypto_provider();
    let etcd = Etcd::with(None, &["--quota-backend-bytes=4194304"]).await;
    let store = open(&etcd).await;
    let token = store.commit(put(0, "a token that must be revocable")).await.unwrap();
    let filler = "x".repeat(500_000);
    let full = async {
        for n in 1..100 {
            if let Err(error) = store.commit(put(n, &filler)).await {
                return error;
            }
        }
        panic!("never full");
    };
    assert!(seks_control_plane::status::of(store.as_ref()).await.store_healthy);
    assert!(matches!(full.await, StoreError::Full));
    let status = seks_control_plane::status::of(store.as_ref()).await;
    assert_eq!((status.store_healthy, status.store_problem.as_str()), (false, "full"));
    let delete = |at| Transaction { checks: vec![(key(0), at)], writes: vec![Write::Delete(key(0))] };
    assert!(matches!(store.commit(delete(token + 1)).await, Err(StoreError::Conflict)));
    let mut watch = store.watch(store.revision().await.unwrap());
    let at = store.commit(delete(token)).await.unwrap();
    assert_eq!(next(&mut watch).await, (at, vec![Write::Delete(key(0))]));
    assert_eq!(store.get(&key(0)).await.unwrap(), None);
    assert!(matches!(store.commit(put(0, "again")).await, Err(StoreError::Full)));
}

#[tokio::test]
#[cfg_attr(not(has = "etcd"), ignore = "needs etcd")]
async fn a_wrong_password_is_denied_and_an_expired_login_renewed() {
    install_crypto_provider();
    let etcd = Etcd::with(None, &["--auth-token-ttl=1"]).await;
    etcd.call("auth/user/add", json!({"name": "root", "password": "right"})).await;
    etcd.call("auth/user/grant", json!({"user": "root", "role": "root"})).await;
    etcd.call("auth/enable", json!({})).await;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("password");
    let write = |password: &str| {
        std::fs::write(&file, password).unwrap();
        std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    };
    let config = StoreConfig { user: "root".into(), password_file: file.clone(), ..config(&[etcd.url()], "/seks") };
    for (wrong, user) in [("wrong", "root"), ("right", "nobody")] {
        write(wrong);
        let error = store::open(&StoreConfig { user: user.into(), ..config.clone() }).await.err().unwrap();
        assert!(matches!(error, OpenError::Store(StoreError::Denied(_))), "{error}");
        assert!(!error.to_string().contains(wrong), "{error}");
    }
    let error = store::open(&StoreConfig { user: String::new(), password_file: "".into(), ..config.clone() }).await;
    assert!(matches!(error.err().unwrap(), OpenError::Store(StoreError::Denied(_))));

    write("right\n");
    let store = store::open(&config).await.unwrap();
    let mut watch = store.watch(store.revision().await.unwrap());
    for n in 0..3 {
        store.commit(put(0, &n.to_string())).await.unwrap();
        assert_eq!(next(&mut watch).await.1, put(0, &n.to_string()).writes);
        tokio::time::sleep(Duration::from_millis(1500)).await; // longer than a login lasts
    }
}

#[tokio::test]
#[cfg_attr(not(has = "etcd"), ignore = "needs etcd")]
async fn tls_checks_both_sides() {
    install_crypto_provider();
    let files = Certificates::new();
    let tls = Tls { ca: files.path("ca.pem"), cert: files.path("server.pem"), key: files.path("server.key") };
    let etcd = Etcd::with(Some(&tls), &[]).await;
    let ours = StoreTlsConfig {
        ca_file: files.path("ca.pem"),
        cert_file: files.path("client.pem"),
        key_file: files.path("client.key"),
        server_name: String::new(),
    };
    let config = |tls: &StoreTlsConfig| StoreConfig {
        tls: tls.clone(),
        allow_plaintext: false,
        retry_timeout: Duration::from_millis(500),
        ..config(&[etcd.tls_url()], "/seks")
    };
    let store = store::open(&config(&ours)).await.unwrap();
    let mut watch = store.watch(store.revision().await.unwrap());
    store.commit(put(0, "over TLS")).await.unwrap();
    assert_eq!(next(&mut watch).await.1, put(0, "over TLS").writes);

    let anonymous = StoreTlsConfig { cert_file: "".into(), key_file: "".into(), ..ours.clone() };
    let stranger =
        StoreTlsConfig { cert_file: files.path("stranger.pem"), key_file: files.path("stranger.key"), ..ours.clone() };
    let wrong_roots = StoreTlsConfig { ca_file: files.path("stranger-ca.pem"), ..ours.clone() };
    let wrong_name = StoreTlsConfig { server_name: "elsewhere.example".into(), ..ours.clone() };
    for refused in [anonymous, stranger, wrong_roots, wrong_name] {
        let error = store::open(&config(&refused)).await.err().unwrap();
        assert!(matches!(error, OpenError::Store(StoreError::Unavailable(_))), "{error}");
    }
    let wrong_roots = StoreTlsConfig { ca_file: files.path("stranger-ca.pem"), ..ours };
    let error = store::open(&config(&wrong_roots)).await.err().unwrap().to_string();
    assert!(error.contains("certificate") && !error.contains('\n'), "it does not say why: {error}");
}

/// A CA with a server and a client, and a stranger of another CA, as PEM files.
struct Certificates(tempfile::TempDir);

impl Certificates {
    fn new() -> Self {
        let files = Self(tempfile::tempdir().unwrap());
        files.authority("ca", &["server", "client"]);
        files.authority("stranger-ca", &["stranger"]);
        files
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.0.path().join(name)
    }

    fn authority(&self, name: &str, leaves: &[&str]) {
        let mut params = rcgen::CertificateParams::new([]).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        let ca = rcgen::CertifiedIssuer::self_signed(params, rcgen::KeyPair::generate().unwrap()).unwrap();
        std::fs::write(self.path(&format!("{name}.pem")), ca.pem()).unwrap();
        for leaf in leaves {
            let key = rcgen::KeyPair::generate().unwrap();
            let mut params = rcgen::CertificateParams::new(["127.0.0.1".to_owned(), "localhost".into()]).unwrap();
            params.distinguished_name.push(rcgen::DnType::CommonName, *leaf);
            let certificate = params.signed_by(&key, &ca).unwrap();
            std::fs::write(self.path(&format!("{leaf}.pem")), certificate.pem()).unwrap();
            let path = self.path(&format!("{leaf}.key"));
            std::fs::write(&path, key.serialize_pem()).unwrap();
            std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        }
    }
}
