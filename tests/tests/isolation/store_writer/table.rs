//! Every kind of record, tampered with in every way that etcd's API allows: none of it is taken for
//! what a control plane wrote.

use std::{sync::Arc, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use futures_util::StreamExt as _;
use seks_control_plane::{
    authenticated::Authenticated,
    seal::{SealConfig, Sealer},
    store::{self, Key, Store, StoreConfig, StoreKind, Transaction, WatchEvent, Write, key::prefix},
};
use seks_tests::{Etcd, install_crypto_provider};
use serde_json::json;
use tempfile::TempDir;

/// One key of every kind in `tenant`. A new kind of record doesn't compile here until somebody has
/// thought about it.
fn keys(tenant: &str) -> Vec<Key> {
    let (t, name) = (tenant.parse::<seks_types::id::TenantName>().unwrap(), "one");
    let all = vec![
        Key::StoreId,
        Key::Canary,
        Key::RecordKey,
        Key::Authority,
        Key::AuditKey,
        Key::AuditSigningKey,
        Key::AuditHead(name.parse().unwrap()),
        Key::AdminHead(name.parse().unwrap()),
        Key::AdminArchive(name.parse().unwrap()),
        Key::AdminChange(name.parse().unwrap(), 1),
        Key::Epoch,
        Key::Rotation,
        Key::Operator(name.parse().unwrap()),
        Key::Node(name.parse().unwrap()),
        Key::Replica(name.parse().unwrap()),
        Key::Join(name.into()),
        Key::Tenant(t.clone()),
        Key::Agent(t.clone(), name.parse().unwrap()),
        Key::Service(t.clone(), name.parse().unwrap()),
        Key::Credential(t.clone(), name.parse().unwrap()),
        Key::Envelope(t.clone(), name.parse().unwrap(), 1),
        Key::Mint(t.clone(), name.parse().unwrap()),
        Key::MintSecret(t.clone(), name.parse().unwrap()),
        Key::AwsKey(t.clone()),
        Key::Token(t.clone(), "tok-one".parse().unwrap()),
        Key::Tombstone(t.clone(), "tok-one".parse().unwrap()),
        Key::Policy(t.clone(), name.parse().unwrap()),
        Key::PolicySet(t.clone()),
        Key::LimitWindow(t.clone(), name.parse().unwrap(), None),
        Key::Approval(t.clone(), name.parse().unwrap()),
        Key::ApprovalTurn(t.clone()),
        Key::Request(t, name.into()),
    ];
    all.into_iter().filter(is_authenticated).collect()
}

/// What a store is opened with is checked by other means: a foreign one doesn't open, see `seal`.
fn is_authenticated(key: &Key) -> bool {
    match key {
        Key::StoreId | Key::Canary | Key::RecordKey | Key::Authority => false,
        Key::AuditKey | Key::AuditSigningKey | Key::AuditHead(_) | Key::AdminHead(_) | Key::AdminChange(..) => true,
        Key::AdminArchive(_) => true,
        Key::Epoch | Key::Rotation | Key::Operator(_) | Key::Node(_) | Key::Replica(_) => true,
        Key::Join(_) | Key::Tenant(_) | Key::Agent(..) | Key::Service(..) | Key::Credential(..) => true,
        Key::Envelope(..) | Key::Mint(..) | Key::MintSecret(..) | Key::AwsKey(_) | Key::Token(..) => true,
        Key::Tombstone(..) | Key::Policy(..) | Key::PolicySet(_) | Key::LimitWindow(..) | Key::Request(..) => true,
        Key::Approval(..) | Key::ApprovalTurn(_) => true,
    }
}

struct World {
    etcd: Etcd,
    sealer: Arc<Sealer>,
    _dir: TempDir,
}

impl World {
    async fn start() -> Self {
        install_crypto_provider();
        let etcd = Etcd::start().await;
        let dir = tempfile::tempdir().unwrap();
        let kek = dir.path().join("kek");
        Sealer::create_file(&kek).unwrap();
        let sealer = Arc::new(Sealer::load(&SealConfig::file(&kek)).unwrap());
        Self { etcd, sealer, _dir: dir }
    }

    /// A replica's view of the store below `prefix`.
    async fn open(&self, prefix: &str) -> Authenticated {
        let config = StoreConfig {
            kind: StoreKind::Etcd,
            endpoints: vec![self.etcd.url()],
            prefix: prefix.into(),
            allow_plaintext: true,
            ..StoreConfig::default()
        };
        let store = store::open(&config).await.unwrap();
        self.sealer.verify(&*store).await.unwrap();
        Authenticated::open(store, Arc::clone(&self.sealer), 0).await.unwrap()
    }

    /// The bytes at `key`, as `etcdctl get` shows them.
    async fn raw(&self, prefix: &str, key: &Key) -> Vec<u8> {
        let found = self.etcd.call("kv/range", json!({ "key": STANDARD.encode(format!("{prefix}/{key}")) })).await;
        STANDARD.decode(found["kvs"][0]["value"].as_str().unwrap()).unwrap()
    }

    /// `etcdctl put`.
    async fn put(&self, key: &Key, value: &[u8]) {
        let (key, value) = (STANDARD.encode(format!("/seks/{key}")), STANDARD.encode(value));
        self.etcd.call("kv/put", json!({ "key": key, "value": value })).await;
    }

    async fn delete(&self, key: &Key) {
        self.etcd.call("kv/deleterange", json!({ "key": STANDARD.encode(format!("/seks/{key}")) })).await;
    }
}

async fn write(store: &Authenticated, key: &Key, value: &str) {
    let writes = vec![Write::Put(key.clone(), Bytes::from(value.to_owned()))];
    store.commit(Transaction { checks: vec![], writes }).await.unwrap();
}

async fn delete(store: &Authenticated, key: &Key) {
    store.commit(Transaction { checks: vec![], writes: vec![Write::Delete(key.clone())] }).await.unwrap();
}

/// The ways to tamper with one record; each leaves a value there that no control plane has written
/// there last.
const WAYS: [&str; 9] = [
    "edited",
    "put back",
    "deleted and put back",
    "written again",
    "of another record",
    "of another tenant",
    "of another store",
    "without a frame",
    "of no control plane",
];

/// Does it: `store` has written `first` and then `second` at `key`.
async fn tamper(world: &World, store: &Authenticated, way: &str, key: &Key, twin: &Key, first: &[u8], second: &[u8]) {
    match way {
        "edited" => {
            let mut edited = second.to_vec();
            *edited.last_mut().unwrap() ^= 1;
            world.put(key, &edited).await;
        }
        "put back" => world.put(key, first).await,
        "deleted and put back" => {
            delete(store, key).await;
            world.put(key, second).await;
        }
        "written again" => world.put(key, second).await,
        "of another record" => {
            let other = Key::Rotation;
            let other = if *key == other { Key::Epoch } else { other };
            write(store, &other, "another").await;
            world.put(key, &world.raw("/seks", &other).await).await;
        }
        "of another tenant" => {
            write(store, twin, "of the twin").await;
            world.put(key, &world.raw("/seks", twin).await).await;
        }
        "of another store" => {
            let other = world.open("/other").await;
            write(&other, key, "of another store").await;
            world.put(key, &world.raw("/other", key).await).await;
        }
        "without a frame" => world.put(key, &[&second[..17], b"bare"].concat()).await,
        _ => world.put(key, b"\x01 nobody's, and long enough for a stamp and a frame, to the last of its bytes").await,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[cfg_attr(not(has = "etcd"), ignore = "needs etcd")]
async fn no_record_that_somebody_else_wrote_is_read_or_watched() {
    let world = World::start().await;
    let store = world.open("/seks").await;
    let mut tampered = 0;
    for (key, twin) in keys("acme").into_iter().zip(keys("acme2")) {
        for way in WAYS {
            write(&store, &key, "first").await;
            let first = world.raw("/seks", &key).await;
            write(&store, &key, "second").await;
            let second = world.raw("/seks", &key).await;
            let mut watch = store.watch(store.revision().await.unwrap());
            tamper(&world, &store, way, &key, &twin, &first, &second).await;
            if key != twin || way != "of another tenant" {
                assert_eq!(store.get(&key).await.unwrap(), None, "{key:?} {way}");
                let listed = store.list(prefix::ALL).await.unwrap().0;
                assert!(!listed.iter().any(|record| record.key == key), "{key:?} {way}");
                tampered += 1;
            }
            // Whoever watches learns of a deletion; the twin, or what an honest writer wrote
            // meanwhile, is passed on.
            let seen = tokio::time::timeout(Duration::from_secs(10), async {
                loop {
                    match watch.next().await {
                        Some(WatchEvent::Changes { changes, .. }) if changes.contains(&Write::Delete(key.clone())) => {
                            break;
                        }
                        Some(WatchEvent::Changes { changes, .. }) => {
                            let written = |c: &&Write| matches!(c, Write::Put(at, _) if *at == key && key != twin);
                            assert!(changes.iter().find(written).is_none(), "{key:?} {way}: {changes:?}");
                            if key == twin {
                                break;
                            }
                        }
                        Some(_) => {}
                        None => panic!("the watch has ended"),
                    }
                }
            });
            assert!(seen.await.is_ok(), "{key:?} {way}: nobody was told");
            // What was tampered with is made again as if it weren't there.
            let create = Transaction {
                checks: vec![(key.clone(), store.get(&key).await.unwrap().map_or(0, |record| record.modified))],
                writes: vec![Write::Put(key.clone(), Bytes::from_static(b"anew"))],
            };
            let made = store.commit(create).await;
            assert!(made.is_ok(), "{key:?} {way}: {made:?}");
            assert_eq!(store.get(&key).await.unwrap().unwrap().value, Bytes::from_static(b"anew"), "{key:?} {way}");
        }
    }
    assert!(store.unauthenticated() >= tampered, "{} alarms for {tampered}", store.unauthenticated());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[cfg_attr(not(has = "etcd"), ignore = "needs etcd")]
async fn what_was_done_while_no_replica_ran_is_found_when_one_starts() {
    let world = World::start().await;
    for way in WAYS {
        let store = world.open("/seks").await;
        let mut written = Vec::new();
        let pairs: Vec<(Key, Key)> = keys("acme").into_iter().zip(keys("acme2")).collect();
        let pairs = pairs.into_iter().filter(|(key, twin)| key != twin || way != "of another tenant");
        let pairs = pairs.filter(|(key, _)| *key != Key::Rotation);
        let pairs: Vec<(Key, Key)> = pairs.collect();
        for (key, _) in &pairs {
            write(&store, key, "first").await;
            let first = world.raw("/seks", key).await;
            write(&store, key, "second").await;
            written.push((first, world.raw("/seks", key).await));
        }
        if way == "deleted and put back" {
            for (key, _) in &pairs {
                delete(&store, key).await;
            }
        }
        if way == "of another tenant" {
            for (_, twin) in &pairs {
                write(&store, twin, "of the twin").await;
            }
        }
        write(&store, &Key::Rotation, "another").await;
        drop(store);
        let other = world.open("/other").await;
        for ((key, twin), (first, second)) in pairs.iter().zip(&written) {
            match way {
                "deleted and put back" => world.put(key, second).await,
                "of another record" => world.put(key, &world.raw("/seks", &Key::Rotation).await).await,
                "of another tenant" => world.put(key, &world.raw("/seks", twin).await).await,
                _ => tamper(&world, &other, way, key, twin, first, second).await,
            }
        }
        let store = world.open("/seks").await;
        for (key, _) in &pairs {
            assert_eq!(store.get(key).await.unwrap(), None, "{key:?} {way}");
        }
        assert!(store.unauthenticated() >= pairs.len() as u64, "{way}");
        assert!(store.get(&Key::Rotation).await.unwrap().is_some(), "what nobody touched stays");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[cfg_attr(not(has = "etcd"), ignore = "needs etcd")]
async fn the_key_of_the_records_is_neither_replaced_nor_made_anew() {
    let world = World::start().await;
    let store = world.open("/seks").await;
    write(&store, &Key::Rotation, "first").await;
    drop(store);
    let key = world.raw("/seks", &Key::RecordKey).await;
    world.delete(&Key::RecordKey).await;
    let config = StoreConfig {
        kind: StoreKind::Etcd,
        endpoints: vec![world.etcd.url()],
        prefix: "/seks".into(),
        allow_plaintext: true,
        ..StoreConfig::default()
    };
    let raw = store::open(&config).await.unwrap();
    let refused = Authenticated::open(raw, Arc::clone(&world.sealer), 0).await.err().unwrap().to_string();
    assert!(refused.contains("meta/record-key"), "{refused}");
    world.put(&Key::RecordKey, &key).await;
    assert!(world.open("/seks").await.get(&Key::Rotation).await.unwrap().is_some(), "put back, it is good again");
}
