//! This replica's registration: it publishes its watermark, retires silent replicas and deregisters
//! at shutdown.
//!
//! The watermark is written when it has passed a change that nodes apply: once for a burst of
//! changes, and never while no other replica is there to read it. If the store refuses the write
//! (it is full or unreachable), the other replicas wait for the leases' bound.

use std::{sync::Arc, time::Duration};

use seks_lease::{BootInstant, rules::with_skew};
use seks_proto::wire;
use seks_types::id::ReplicaId;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use crate::{
    changefeed::log::ChangeLog,
    clock::{millis, unix_now},
    fleet::{Fleet, replicas::PeerCleanup},
    registry::{Registry, RegistryError},
    store::{Revision, STORE_FORMAT, StoreError},
};

/// Acknowledgements of many nodes come at the same time; one record tells of all.
const COALESCE: Duration = Duration::from_millis(1);
/// Pause after a write that failed.
const RETRY: Duration = Duration::from_millis(500);
/// How often a replica that stops checks whether its nodes have moved.
const HANDOVER_POLL: Duration = Duration::from_millis(50);
/// How long deregistering may take.
const DEREGISTER_TIMEOUT: Duration = Duration::from_secs(1);
/// Longest wait for nodes to move to another replica, be the lease ever so long.
const MAX_HANDOVER: Duration = Duration::from_secs(5);
/// Revisions between two times that a replica says that the store names all its nodes: a start
/// looks 10,000 back ([`replay`](crate::changefeed::replay)).
const RECORDED_NODES_EVERY: Revision = 2_500;
/// Departed nodes that are written down in one round: the rest can wait for the next.
const MAX_RELEASED: usize = 64;

/// What a replica registers with, and what its record tells.
pub(crate) struct Registrar {
    pub(crate) registry: Registry,
    pub(crate) log: Arc<ChangeLog>,
    pub(crate) fleet: Fleet,
    /// This replica's name.
    pub(crate) replica: String,
    /// How long its nodes' leases are.
    pub(crate) lease: Duration,
    /// This replica is about to stop.
    pub(crate) leaving: CancellationToken,
    /// Its last word among the others has been said.
    pub(crate) deregistered: CancellationToken,
}

/// A registration of this replica. If another replica retires it, this replica registers again.
pub(crate) struct ReplicaRegistration {
    id: ReplicaId,
    record: wire::Replica,
    /// The revision of the record.
    modified: Revision,
    written: Instant,
}

impl ReplicaRegistration {
    /// Registers this process as a replica of its own.
    pub(crate) async fn register(with: &Registrar) -> Result<Self, RegistryError> {
        let id = ReplicaId::generate(&with.replica).map_err(RegistryError::Random)?;
        let record = wire::Replica {
            id: id.to_string(),
            name: with.replica.clone(),
            watermark: watermark(with),
            lease_ttl_ms: millis(with.lease),
            registered_at: unix_now(),
            // It has granted nothing yet.
            named_at: with.log.head(),
            store_format: STORE_FORMAT,
            ..Default::default()
        };
        let modified = with.registry.put_replica(&id, &record, 0).await?;
        with.fleet.replicas.learn(&id, Some(record.clone()), modified);
        with.fleet.leases.register(id.clone());
        Ok(Self { id, record, modified, written: Instant::now() })
    }

    /// Whether the store says that this registration may grant no more leases.
    fn is_retired(&self, with: &Registrar) -> bool {
        with.fleet.leases.own_id().as_ref() != Some(&self.id)
            || with.fleet.replicas.is_retired(&self.id, self.modified, with.log.head())
    }

    /// Publishes the watermark if it has moved and another replica reads it.
    async fn publish_watermark(&mut self, with: &Registrar) -> Result<(), RegistryError> {
        if !with.fleet.replicas.has_others(&self.id) {
            return Ok(());
        }
        let watermark = watermark(with);
        let news = with.log.effective(watermark) > self.record.watermark;
        let due = self.written.elapsed() >= with.lease;
        if !(news || due) {
            return Ok(());
        }
        let audit_queue = with.fleet.leases.audit_queue();
        let record = wire::Replica { watermark, audit_queue, ..self.record.clone() };
        match with.registry.put_replica(&self.id, &record, self.modified).await {
            Ok(modified) => {
                (self.record, self.modified, self.written) = (record, modified, Instant::now());
                Ok(())
            }
            Err(error) => {
                // The response to the previous write may have been lost. If another replica has
                // retired this one, the watch reports it.
                if let Some((_, modified)) = with.registry.replica(&self.id).await?.filter(|(r, _)| !r.retired) {
                    self.modified = modified;
                }
                Err(error)
            }
        }
    }

    /// States again that the store names all nodes of this replica. This happens after a node has
    /// come, moved or gone, and before the store's history no longer reaches the last statement. A
    /// replica that starts after a crash then waits for no other node. It is useful only if no
    /// other replica can have granted leases to these nodes.
    async fn publish_recorded_nodes(&mut self, with: &Registrar) -> Result<(), RegistryError> {
        let (head, changed) = (with.log.head(), with.fleet.leases.changed_at());
        let due = changed > self.record.named_at || head >= self.record.named_at + RECORDED_NODES_EVERY;
        if !with.fleet.replicas.is_exclusive() || !due || !with.fleet.leases.are_all_recorded() {
            return Ok(());
        }
        let record = wire::Replica { named_at: head, ..self.record.clone() };
        let modified = with.registry.put_replica(&self.id, &record, self.modified).await?;
        (self.record, self.modified, self.written) = (record, modified, Instant::now());
        Ok(())
    }

    /// Retires silent replicas, deletes the records of retired ones whose leases have ended, and
    /// releases nodes that are gone.
    async fn expire_peers(&self, with: &Registrar) -> Result<(), RegistryError> {
        for cleanup in with.fleet.replicas.peer_cleanups(&self.id) {
            let done = match cleanup {
                PeerCleanup::Retire(id, record, at) => {
                    // An embedded store has one at a time: this is what was left of the one before.
                    if !with.fleet.replicas.is_exclusive() {
                        tracing::warn!(replica = %id, "a replica has fallen silent: its leases are waited for, then it is forgotten");
                    }
                    with.registry.put_replica(&id, &record, at).await
                }
                PeerCleanup::Forget(id, at) => with.registry.forget_replica(&id, at).await,
            };
            match done {
                // Another replica was faster, or it is alive after all.
                Ok(_) | Err(RegistryError::Store(StoreError::Conflict)) => {}
                Err(error) => return Err(error),
            }
        }
        for (node, at) in with.fleet.leases.departed_nodes(MAX_RELEASED) {
            with.registry.release_node(&node, &self.id, at).await?;
        }
        Ok(())
    }
}

impl ReplicaRegistration {
    /// The last word. With all nodes in other hands nothing of this replica is left; else its
    /// leases have to be waited for.
    async fn deregister(self, with: &Registrar) {
        let (done, named) = (!with.fleet.leases.has_leases(), with.fleet.leases.are_all_recorded());
        with.fleet.leases.resign(); // nothing is granted any more
        let word = async {
            match done {
                true => {
                    // First that nothing is left of it: a record that is deleted without this has
                    // its leases waited for.
                    let record = wire::Replica { retired: true, released: true, ..self.record };
                    let said = match with.fleet.replicas.has_others(&self.id) {
                        true => with.registry.put_replica(&self.id, &record, self.modified).await?,
                        false => self.modified,
                    };
                    with.registry.forget_replica(&self.id, said).await
                }
                false => {
                    let record = wire::Replica { watermark: watermark(with), retired: true, named, ..self.record };
                    with.registry.put_replica(&self.id, &record, self.modified).await
                }
            }
        };
        if !matches!(timeout(DEREGISTER_TIMEOUT, word).await, Ok(Ok(_))) {
            tracing::warn!(replica = %self.id, "the others were not told that this replica ends; they wait for its leases");
        }
    }
}

/// Whether nothing more is to be gained from waiting with the end, that was decided `since`.
fn may_deregister(with: &Registrar, registration: Option<&ReplicaRegistration>, since: Instant) -> bool {
    let moved = with.fleet.leases.streams() == 0 && !with.fleet.leases.has_leases();
    let alone = registration.is_none_or(|registration| !with.fleet.replicas.has_others(&registration.id));
    moved || alone || since.elapsed() >= handover_time(with.lease)
}

/// How long nodes have to move to another replica.
pub(crate) fn handover_time(lease: Duration) -> Duration {
    (lease / 2).min(MAX_HANDOVER)
}

/// Runs until this replica has deregistered.
pub(crate) async fn run_registration(with: Registrar, mut registration: Option<ReplicaRegistration>) {
    let (mut fleet, mut head) = (with.fleet.leases.subscribe(), with.log.subscribe_head());
    let period = with.lease / 2;
    let (mut expire_peers_at, mut leaving) = (Instant::now(), None);
    let _deregistered = with.deregistered.clone().drop_guard();
    loop {
        if with.leaving.is_cancelled() {
            let since = *leaving.get_or_insert_with(Instant::now);
            if may_deregister(&with, registration.as_ref(), since) {
                break;
            }
        }
        let mut done = refresh(&with, &mut registration).await;
        if let (true, Some(registration), Ok(())) = (Instant::now() >= expire_peers_at, &mut registration, &done) {
            done = registration.expire_peers(&with).await;
            if done.is_ok() {
                done = registration.publish_recorded_nodes(&with).await;
            }
            expire_peers_at = Instant::now() + period;
        }
        if let Err(error) = done {
            tracing::warn!(%error, "this replica's record can't be written; other replicas wait for leases to end");
            sleep(RETRY).await;
        }
        let expiry = with.fleet.leases.next_expiry().map_or(period, BootInstant::remaining).min(period);
        let expiry = if leaving.is_some() { expiry.min(HANDOVER_POLL) } else { expiry };
        tokio::select! {
            _ = fleet.changed() => sleep(COALESCE).await,
            _ = head.changed() => sleep(COALESCE).await,
            () = with.leaving.cancelled(), if leaving.is_none() => {}
            () = sleep_until(Instant::now() + expiry + COALESCE) => {}
        }
        fleet.mark_unchanged();
        head.mark_unchanged();
    }
    if let Some(registration) = registration {
        registration.deregister(&with).await;
    }
}

async fn refresh(with: &Registrar, registration: &mut Option<ReplicaRegistration>) -> Result<(), RegistryError> {
    match registration.take_if(|registration| registration.is_retired(with)) {
        None => {}
        Some(over) => {
            tracing::warn!(replica = %over.id, "another replica took this one for dead; it registers anew");
            with.fleet.leases.resign_if(&over.id);
        }
    }
    match registration {
        Some(registration) => registration.publish_watermark(with).await,
        None => {
            *registration = Some(ReplicaRegistration::register(with).await?);
            Ok(())
        }
    }
}

/// The lowest revision that every node has applied whose lease this replica owns.
fn watermark(with: &Registrar) -> Revision {
    let settled = BootInstant::now().minus(with_skew(with.fleet.replicas.longest_ttl()));
    let effective = |revision| with.log.effective(revision);
    // In this order: what is settled was taken in before the head was read.
    let settled = with.log.head_at(settled);
    with.fleet.leases.watermark(with.log.head(), settled, effective)
}
