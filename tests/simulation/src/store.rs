//! etcd, as a replica sees it: one total order, linearizable, behind a network that delays and
//! loses, with an outage now and then.

mod cluster;

use std::{collections::VecDeque, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{
    future::BoxFuture,
    stream::{self, BoxStream},
};
use seks_control_plane::store::{Key, Record, Revision, Store, StoreError, Transaction, WatchEvent, Write};
use tokio::time::{sleep, timeout};

pub(crate) use self::cluster::{Cluster, Contents};
use crate::network::{HostId, Network};

/// What a client of etcd waits for an answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often somebody who waits for a cut or an outage to end looks again.
const LOOK: Duration = Duration::from_millis(40);

/// Something that must never be done, by a store or beside it: planted, to see that the simulation
/// notices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Defect {
    /// A watch skips a deletion now and then, and goes on as if nothing had been.
    WatchLosesDeletes,
    /// A read of the revision is answered from memory, by a member that is cut off from the others.
    StaleReads,
    /// Not the store's: a clone passes itself off as the process that it was cloned from.
    ClonesUnnamed,
    /// A node's: a request is sent as it was decided when it began, however long it waited for its
    /// body.
    DecidesOnce,
    /// A node's: an answer that its agent doesn't read isn't cut.
    CutUnpolled,
}

impl Defect {
    /// As a program is told of it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::WatchLosesDeletes => "watch-loses-deletes",
            Self::StaleReads => "stale-reads",
            Self::ClonesUnnamed => "clones-unnamed",
            Self::DecidesOnce => "decides-once",
            Self::CutUnpolled => "cut-unpolled",
        }
    }

    /// The one of that name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        [Self::WatchLosesDeletes, Self::StaleReads, Self::ClonesUnnamed, Self::DecidesOnce, Self::CutUnpolled]
            .into_iter()
            .find(|defect| defect.name() == name)
    }
}

/// One replica's client.
pub(crate) struct Client {
    pub(crate) host: HostId,
    pub(crate) network: Network,
    pub(crate) cluster: Cluster,
}

impl Client {
    /// The way there or back.
    async fn cross(&self, from: HostId, to: HostId) {
        sleep(self.network.delay(from, to)).await;
        while self.network.is_cut(from, to) {
            sleep(LOOK).await;
        }
    }

    /// There, until the cluster has a leader.
    async fn reach(&self) {
        self.cross(self.host, self.cluster.host()).await;
        while !self.cluster.is_up() {
            sleep(LOOK).await;
        }
    }

    async fn read<T>(&self, read: impl FnOnce(&Contents) -> T) -> Result<T, StoreError> {
        let there_and_back = async {
            self.reach().await;
            let found = self.cluster.read(read);
            self.cross(self.cluster.host(), self.host).await;
            found
        };
        timeout(PATIENCE, there_and_back).await.map_err(|_| StoreError::Unavailable("no answer".into()))
    }

    async fn write(&self, transaction: Transaction) -> Result<Revision, StoreError> {
        if timeout(PATIENCE, self.reach()).await.is_err() {
            return Err(StoreError::Unavailable("no answer".into()));
        }
        let done = self.cluster.commit(transaction);
        match timeout(PATIENCE, self.cross(self.cluster.host(), self.host)).await {
            Ok(()) => done,
            Err(_) => Err(StoreError::Unknown("the answer was lost".into())),
        }
    }
}

impl Store for Client {
    fn kind(&self) -> &'static str {
        "etcd"
    }

    fn is_exclusive(&self) -> bool {
        false
    }

    fn store_id(&self) -> &str {
        "simulated"
    }

    fn get<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Record>, StoreError>> {
        Box::pin(self.read(|contents| contents.get(key)))
    }

    fn list<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<(Vec<Record>, Revision), StoreError>> {
        Box::pin(self.read(|contents| contents.list(prefix)))
    }

    fn list_at<'a>(
        &'a self,
        prefix: &'a str,
        revision: Revision,
    ) -> BoxFuture<'a, Result<Option<Vec<Record>>, StoreError>> {
        Box::pin(self.read(move |contents| contents.list_at(prefix, revision)))
    }

    fn commit(&self, transaction: Transaction) -> BoxFuture<'_, Result<Revision, StoreError>> {
        Box::pin(self.write(transaction))
    }

    fn watch(&self, after: Revision) -> BoxStream<'static, WatchEvent> {
        let client = Self { host: self.host, network: self.network.clone(), cluster: self.cluster.clone() };
        let watch = Watch { client: Arc::new(client), after, arrived: VecDeque::new(), over: false };
        Box::pin(stream::unfold(watch, |mut watch| async {
            let event = watch.next().await?;
            Some((event, watch))
        }))
    }

    fn is_full(&self) -> BoxFuture<'_, bool> {
        Box::pin(std::future::ready(false)) // the simulated store has no quota
    }

    fn revision(&self) -> BoxFuture<'_, Result<Revision, StoreError>> {
        if let Some(revision) = self.cluster.stale_revision(self.host) {
            return Box::pin(async move { Ok(revision) });
        }
        Box::pin(self.read(|contents| contents.revision))
    }
}

struct Watch {
    client: Arc<Client>,
    after: Revision,
    /// What came in one message with the event before.
    arrived: VecDeque<(Revision, Vec<Write>)>,
    over: bool,
}

impl Watch {
    async fn next(&mut self) -> Option<WatchEvent> {
        if self.over {
            return None;
        }
        if let Some((revision, changes)) = self.arrived.pop_front() {
            return Some(WatchEvent::Changes { revision, changes });
        }
        let (client, cluster) = (self.client.clone(), self.client.cluster.clone());
        let mut moved = cluster.subscribe();
        loop {
            // A stalled watch brings nothing, however well everything else goes; the one that
            // replaces it does.
            let away = client.network.is_cut(cluster.host(), client.host) || !cluster.is_up();
            if !away && !cluster.is_stalled(client.host, self.after) {
                if self.after < cluster.read(|contents| contents.compacted) {
                    self.over = true;
                    return Some(WatchEvent::Compacted);
                }
                // All that there is comes in one message: who is far behind doesn't wait for each.
                while !cluster.is_stalled(client.host, self.after)
                    && let Some((revision, changes)) = cluster.next_change(self.after)
                {
                    self.after = revision;
                    self.arrived.push_back((revision, changes));
                }
                if let Some((revision, changes)) = self.arrived.pop_front() {
                    sleep(client.network.delay(cluster.host(), client.host)).await;
                    return Some(WatchEvent::Changes { revision, changes });
                }
                // The sender lives as long as the cluster.
                moved.mark_unchanged();
                if cluster.next_change(self.after).is_none() {
                    tokio::select! {
                        biased;
                        _ = moved.changed() => {}
                        () = sleep(LOOK * 25) => {}
                    }
                }
            } else {
                sleep(LOOK).await;
            }
        }
    }
}

/// A value's bytes, for [`Contents`].
pub(crate) type Value = (Bytes, Revision);
