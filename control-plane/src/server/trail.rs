//! Opens the audit trail, and stores the ends of nodes' chains from time to time.

use std::{sync::Arc, time::Duration};

use seks_audit::trail::KnownHead;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::{Components, ControlPlane, StartError, archiver::Archiver, tripwires};
use crate::{
    authority::audit_key,
    config::Config,
    registry::{
        Registry,
        audit_head::{AuditHead, AuditHeads},
    },
    seal::Sealer,
    store::Store,
    trail::{Trail, TrailIdentity, head_of, object_storage::synchronize_until},
};

/// How often the ends of chains are stored, of nodes whose chain has grown. Records that are
/// removed from a trail within this time of their recording, while the node and this process forget
/// them too, are not missed.
const STORE_HEADS: Duration = Duration::from_secs(30);
/// In a large fleet they are stored less often: each is a revision, and nodes resume from the last
/// 10,000 of those.
const PAUSE_PER_NODE: Duration = Duration::from_secs(1);

/// How often the store is asked for the audit keys. A rotation is in force after this time.
const READ_KEYS: Duration = Duration::from_secs(5);

/// Where the audit keys are.
pub(super) struct AuditKeySource {
    pub(super) store: Arc<dyn Store>,
    pub(super) sealer: Arc<Sealer>,
}

/// The trail, if one is kept.
///
/// # Errors
/// [`StartError::Trail`], [`StartError::Authority`], [`StartError::Registry`].
pub(super) async fn open(
    config: &Config,
    components: &Components,
    replica: String,
    runtime: Handle,
) -> Result<Option<Trail>, StartError> {
    let Some(config) = config.trail() else {
        return Ok(None);
    };
    config.check()?;
    let keys = audit_key::load_or_create(components.store.as_ref(), &components.sealer).await?;
    let signing = audit_key::load_or_create_signing(components.store.as_ref(), &components.sealer).await?;
    let identity = TrailIdentity { keys, signing, replica, runtime };
    let trail = tokio::task::spawn_blocking(move || Trail::open(&config, identity)).await??;
    for (node, stored) in components.registry.audit_heads().await? {
        let known = |AuditHead { chain, sequence, digest, kept_from, reported_us }: AuditHead| {
            let head = head_of(&chain, sequence, &digest)?;
            Some(KnownHead { node: node.to_string(), head, kept_from, reported_us })
        };
        trail.recall(stored.heads.into_iter().filter_map(known).collect());
    }
    Ok(Some(trail))
}

/// Logs what the trail holds, or that there is none. Called when the listeners serve: a start that
/// fails logs its reason alone.
pub(super) fn log_state(trail: Option<&Trail>) {
    let Some(size) = trail.map(Trail::size) else {
        tracing::warn!("no audit trail is kept here: set audit.dir; nodes record to their collector or log alone");
        return;
    };
    tracing::info!(records = size.records, bytes = size.bytes, "the audit trail is open");
}

impl ControlPlane {
    /// Starts what the trail needs beside itself, if there is one.
    pub(super) fn keep_trail(&self, config: &Config, replica: String, keys: AuditKeySource) {
        let Some(trail) = self.distribution.trail().cloned() else { return };
        let (registry, stop, admin) = (Arc::clone(&self.registry), self.stop.clone(), self.runtimes.admin());
        if let Some(alarms) = trail.take_alarms() {
            let revoke_on = config.trail().map(|trail| trail.revoke_on).unwrap_or_default();
            let run = tripwires::run(alarms, Arc::clone(&registry), replica.clone(), revoke_on, stop.clone());
            self.tasks.spawn_on(run, &admin);
        }
        let archiver = Archiver { trail: trail.clone(), registry: Arc::clone(&registry), replica };
        self.tasks.spawn_on(archiver.run(stop.clone()), &admin);
        let in_bucket = trail.in_bucket().to_vec();
        if !in_bucket.is_empty() {
            self.tasks.spawn_on(synchronize_until(in_bucket, stop.clone()), &admin);
        }
        self.tasks.spawn_on(follow_keys(trail.clone(), keys, stop.clone()), &admin);
        self.tasks.spawn_on(store_heads(trail, registry, stop), &admin);
    }
}

/// Takes over rotated audit keys until `stop`.
async fn follow_keys(trail: Trail, source: AuditKeySource, stop: CancellationToken) {
    let mut is_failing = false;
    while tokio::time::timeout(READ_KEYS, stop.cancelled()).await.is_err() {
        match audit_key::load_or_create(source.store.as_ref(), &source.sealer).await {
            Ok(keys) => {
                trail.replace_keys(keys);
                is_failing = false;
            }
            Err(error) if !is_failing => {
                tracing::warn!(%error, "the audit keys cannot be read: a rotation is not taken over");
                is_failing = true;
            }
            Err(_) => {}
        }
    }
}

/// Stores the ends of chains until `stop`, and then once more.
async fn store_heads(trail: Trail, registry: Arc<Registry>, stop: CancellationToken) {
    let mut pause = STORE_HEADS;
    loop {
        let is_last = tokio::time::timeout(pause, stop.cancelled()).await.is_ok();
        trail.release_memory();
        let heads = trail.take_new_heads();
        pause = STORE_HEADS.max(PAUSE_PER_NODE.saturating_mul(u32::try_from(heads.len()).unwrap_or(u32::MAX)));
        for known in heads {
            let Some(Ok(node)) = known.first().map(|known| known.node.parse()) else { continue };
            let head = |known: &KnownHead| AuditHead {
                chain: known.head.chain.0.to_vec(),
                sequence: known.head.sequence,
                digest: known.head.digest.0.to_vec(),
                kept_from: known.kept_from,
                reported_us: known.reported_us,
            };
            let heads = AuditHeads { heads: known.iter().map(head).collect() };
            if let Err(error) = registry.put_audit_heads(&node, &heads).await {
                tracing::warn!(seks.node = %node, %error, "the end of a node's audit chain cannot be stored");
            }
        }
        if is_last {
            return;
        }
    }
}
