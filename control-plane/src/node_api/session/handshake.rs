//! The beginning of a stream: who is there, what does it hold, and can we go on from that.

use std::time::Duration;

use seks_proto::wire::{self, node_message::Message as FromNode};
use seks_protocol::{PROTOCOL, SessionKey, features};
use seks_types::id::NodeId;
use tokio::time::timeout;

use super::{End, Shared, checksum_tracker::Check};
use crate::{
    changefeed::scope::{Scope, is_whole},
    clock::millis,
    node_api::grpc_stream::Inbound,
    store::Revision,
};

/// A node says Hello at once.
const HELLO_LIMIT: Duration = Duration::from_secs(5);
/// How long a replica may take to catch up with a node that has heard more from another.
const CATCH_UP: Duration = Duration::from_secs(2);
const MAX_FEATURES: usize = 64;
const MAX_TEXT_BYTES: usize = 128;

/// A Hello that was accepted, and its answer.
pub(super) struct Greeting {
    pub(super) hello: wire::Hello,
    pub(super) key: SessionKey,
    pub(super) welcome: wire::Welcome,
    pub(super) check: Check,
}

pub(super) async fn greet(
    shared: &Shared,
    node: &NodeId,
    region: String,
    scope: Scope,
    inbound: &mut Inbound,
) -> Result<Greeting, End> {
    let first = timeout(HELLO_LIMIT, inbound.message()).await.map_err(|_| End::Protocol("no Hello"))??;
    let Some(FromNode::Hello(mut hello)) = first.message else {
        return Err(End::Protocol("the first message is Hello"));
    };
    check(&hello, node)?;
    if !region.is_empty() {
        hello.region = region; // enrolment's word counts
    }
    if shared.fleet.barriers.is_cut_off(shared.lease) {
        return Err(End::Store); // it is better off with another replica
    }
    let checks_binding = hello.features.iter().any(|feature| feature == features::BINDING_V1);
    let mut check = Check::new(scope, !is_whole(&hello.features), checks_binding);
    let resumed = can_resume(shared, &hello).await? && holds_its_table(shared, node, &hello, &mut check);
    let (key, session_enc, session_sealed) =
        SessionKey::offer(&hello.session_key).map_err(|_| End::Protocol("the session key is not an X25519 key"))?;
    let welcome = wire::Welcome {
        replica: shared.replica.clone(),
        epoch: shared.lifetime.name().to_owned(),
        superseded: shared.lifetime.superseded().to_vec(),
        session_enc,
        session_sealed,
        lease_ttl_ms: millis(shared.lease),
        resumed,
    };
    Ok(Greeting { hello, key, welcome, check })
}

fn check(hello: &wire::Hello, node: &NodeId) -> Result<(), End> {
    let short = |text: &str| text.len() <= MAX_TEXT_BYTES && !text.chars().any(char::is_control);
    if hello.protocol != PROTOCOL {
        return Err(End::Protocol("unknown protocol version"));
    }
    if hello.node != node.as_str() {
        return Err(End::Protocol("the Hello names another node than the certificate"));
    }
    let texts = [&hello.region, &hello.version, &hello.epoch, &hello.seen_epoch];
    let texts = texts.into_iter().chain(&hello.features).all(|t| short(t));
    if !texts || hello.features.len() > MAX_FEATURES || hello.instance.len() > MAX_TEXT_BYTES {
        return Err(End::Protocol("the Hello is too long"));
    }
    Ok(())
}

/// Waits until this replica has taken in `revision`.
pub(super) async fn catch_up(shared: &Shared, revision: Revision) -> Result<(), End> {
    let mut head = shared.changes.log.subscribe();
    let caught_up = timeout(CATCH_UP, head.wait_for(|head| *head >= revision)).await;
    caught_up.map_err(|_| End::Store)?.map_err(|_| End::Store).map(drop)
}

/// Whether the node holds what it should at its revision, as far as that is known. If not, it starts again from a snapshot.
fn holds_its_table(shared: &Shared, node: &NodeId, hello: &wire::Hello, check: &mut Check) -> bool {
    let revision = hello.applied_revision;
    if let Some(sums) = shared.changes.snapshots.sums_at(revision, check.scope(), &shared.changes.log) {
        check.restart(revision, &sums);
    }
    let agrees = check.agrees(revision, &hello.table_hash);
    if !agrees {
        shared.changes.metrics.diverged("node");
        if let Some(count) = shared.limits.differing.count() {
            tracing::error!(seks.node = %node, revision, count, "a node came with a table that differs from what it should hold");
        }
    }
    agrees
}

/// Whether deltas lead on from what the node holds. A node that has seen what this store can't have brought is turned away,
/// unless somebody has accepted that the store went back.
async fn can_resume(shared: &Shared, hello: &wire::Hello) -> Result<bool, End> {
    let (name, superseded) = (shared.lifetime.name(), shared.lifetime.superseded());
    for (epoch, revision) in [(&hello.epoch, hello.applied_revision), (&hello.seen_epoch, hello.seen_revision)] {
        let diverged = |now| End::Diverged {
            node_epoch: epoch.clone(),
            node_revision: revision,
            epoch: name.to_owned(),
            revision: now,
        };
        if epoch.is_empty() || superseded.contains(epoch) {
            continue;
        }
        if epoch != name {
            return Err(diverged(shared.changes.log.head()));
        }
        if revision > shared.changes.log.head() {
            // Another replica was faster, or the store has gone back. The store itself knows.
            let now = shared.store.revision().await.map_err(|_| End::Store)?;
            if revision > now {
                return Err(diverged(now));
            }
            catch_up(shared, revision).await?;
        }
    }
    Ok(hello.epoch == name && shared.changes.log.reaches(hello.applied_revision))
}
