//! What a node says of credentials counts for those that it was sent, and only so often.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use futures_util::{future::BoxFuture, stream::BoxStream};
use seks_control_plane::{
    registry::Admission,
    store::{Key, Record, Revision, Store, StoreError, Transaction, WatchEvent},
};
use seks_proto::wire::{self, node_message::Message as ToReplica};
use seks_tests::wait::wait_until;
use seks_types::id::TenantName;

use super::{
    peer::{Peer, hello},
    replica::{Issued, ReplicaHost, tenant},
};

/// A store that counts how often it is asked how a minted credential is doing, in the tenant
/// `default` and in others.
struct Asked {
    store: Arc<dyn Store>,
    here: Arc<AtomicU64>,
    elsewhere: Arc<AtomicU64>,
}

impl Store for Asked {
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
        if let Key::Mint(of, _) = key {
            if *of == tenant() { &self.here } else { &self.elsewhere }.fetch_add(1, SeqCst);
        }
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
        self.store.commit(transaction)
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

fn refused(tenant: &str, credential: &str) -> ToReplica {
    ToReplica::Refused(wire::Refused { tenant: tenant.into(), credential: credential.into(), version: 1 })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_may_only_name_credentials_that_it_was_sent_and_only_so_often() {
    let host = ReplicaHost::new();
    let (here, elsewhere) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let wrap =
        |store| -> Arc<dyn Store> { Arc::new(Asked { store, here: here.clone(), elsewhere: elsewhere.clone() }) };
    let replica = host.start_on(wrap, Duration::from_secs(60)).await;
    let acme: TenantName = "acme".parse().unwrap();
    replica.foundation.registry.create_tenant(&acme, false).await.unwrap();
    replica.seed_fixtures().await;
    replica.seed_fixtures_in(&acme).await;
    replica.issue_in(&acme).await;
    let admission = Admission { tenants: vec![tenant()], ..Admission::default() };
    let (certificate, key, _) = replica.pems_for("narrow", admission).await;
    let mut peer = Peer::say_as(&replica, (certificate, key), hello("narrow")).await.unwrap();
    let loaded = peer.load().await;
    peer.ack(loaded).await;

    // Another tenant's, one that no token reaches, one that isn't there, and what are no names.
    for _ in 0..50 {
        for (tenant, credential) in
            [("acme", "main"), ("default", "main"), ("default", "none"), ("", "main"), ("A B", "/")]
        {
            peer.send(refused(tenant, credential)).await;
        }
    }
    peer.lease().await; // what was said before it has been heard
    assert_eq!((here.load(SeqCst), elsewhere.load(SeqCst)), (0, 0), "of what it was not sent nothing is looked up");

    let Issued { revision, .. } = replica.issue().await;
    peer.load_to(revision).await;
    for _ in 0..5000 {
        peer.send(refused("default", "main")).await;
    }
    peer.lease().await;
    wait_until("its own counts", || here.load(SeqCst) > 0).await;
    let asked = here.load(SeqCst);
    assert!(asked <= 400 && elsewhere.load(SeqCst) == 0, "{asked} of 5000 were looked up");
    replica.stop().await;
}
