//! The handshake of a stream: validates the Hello, and decides whether the node resumes with deltas
//! or loads a snapshot.

use std::time::Duration;

use seks_proto::wire::{self, node_message::Message as FromNode};
use seks_protocol::{PROTOCOL, SessionKey};
use seks_types::id::NodeId;
use tokio::time::timeout;

use super::{Shared, StreamEnd, checksum_tracker::ChecksumTracker};
use crate::{
    changefeed::{recipient::Recipient, scope::NodeScope},
    clock::millis,
    node_api::grpc_stream::Inbound,
    store::Revision,
    trail::Trail,
};

/// A node says Hello at once.
const HELLO_LIMIT: Duration = Duration::from_secs(5);
/// How long a replica may take to catch up with a node that has heard more from another.
const CATCH_UP_LIMIT: Duration = Duration::from_secs(2);
const MAX_FEATURES: usize = 64;
const MAX_TEXT_BYTES: usize = 128;

/// A Hello that was accepted, and its answer.
pub(super) struct AcceptedHello {
    pub(super) hello: wire::Hello,
    pub(super) key: SessionKey,
    pub(super) welcome: wire::Welcome,
    pub(super) tracker: ChecksumTracker,
}

pub(super) async fn accept_hello(
    shared: &Shared,
    node: &NodeId,
    region: String,
    scope: NodeScope,
    inbound: &mut Inbound,
) -> Result<AcceptedHello, StreamEnd> {
    let first = timeout(HELLO_LIMIT, inbound.message()).await.map_err(|_| StreamEnd::Protocol("no Hello"))??;
    let Some(FromNode::Hello(mut hello)) = first.message else {
        return Err(StreamEnd::Protocol("the first message is Hello"));
    };
    validate_hello(&hello, node)?;
    if !region.is_empty() {
        hello.region = region; // enrolment's word counts
    }
    if shared.fleet.barriers.is_cut_off(shared.lease) {
        return Err(StreamEnd::Store); // it is better off with another replica
    }
    let mut tracker = ChecksumTracker::new(Recipient::new(scope, &hello.features));
    let resumed = can_resume(shared, &hello).await? && holds_its_table(shared, node, &hello, &mut tracker);
    let (key, session_enc, session_sealed) = SessionKey::offer(&hello.session_key)
        .map_err(|_| StreamEnd::Protocol("the session key is not an X25519 key"))?;
    let welcome = wire::Welcome {
        replica: shared.replica.clone(),
        epoch: shared.epoch.name().to_owned(),
        superseded: shared.epoch.superseded().to_vec(),
        session_enc,
        session_sealed,
        audit_key: shared.trail.as_ref().map(Trail::public_key).unwrap_or_default(),
        lease_ttl_ms: millis(shared.lease),
        resumed,
    };
    Ok(AcceptedHello { hello, key, welcome, tracker })
}

fn validate_hello(hello: &wire::Hello, node: &NodeId) -> Result<(), StreamEnd> {
    let short = |text: &str| text.len() <= MAX_TEXT_BYTES && !text.chars().any(char::is_control);
    if hello.protocol != PROTOCOL {
        return Err(StreamEnd::Protocol("unknown protocol version"));
    }
    if hello.node != node.as_str() {
        return Err(StreamEnd::Protocol("the Hello names another node than the certificate"));
    }
    let texts = [&hello.region, &hello.version, &hello.epoch, &hello.seen_epoch];
    let texts = texts.into_iter().chain(&hello.features).all(|t| short(t));
    if !texts || hello.features.len() > MAX_FEATURES || hello.instance.len() > MAX_TEXT_BYTES {
        return Err(StreamEnd::Protocol("the Hello is too long"));
    }
    Ok(())
}

/// Waits until this replica has taken in `revision`.
pub(super) async fn wait_for_revision(shared: &Shared, revision: Revision) -> Result<(), StreamEnd> {
    let mut head = shared.changes.log.subscribe_head();
    let caught_up = timeout(CATCH_UP_LIMIT, head.wait_for(|head| *head >= revision)).await;
    caught_up.map_err(|_| StreamEnd::Store)?.map_err(|_| StreamEnd::Store).map(drop)
}

/// Whether the node holds what it should at its revision, as far as that is known. If not, it
/// starts again from a snapshot.
fn holds_its_table(shared: &Shared, node: &NodeId, hello: &wire::Hello, tracker: &mut ChecksumTracker) -> bool {
    let revision = hello.applied_revision;
    if let Some(sums) = shared.changes.snapshots.checksum_at(revision, tracker.scope(), &shared.changes.log) {
        tracker.restart(revision, &sums);
    }
    let agrees = tracker.matches(revision, &hello.table_hash);
    if !agrees {
        shared.changes.metrics.diverged("node");
        if let Some(count) = shared.limits.divergences.count() {
            tracing::error!(seks.node = %node, revision, count, "a node came with a table that differs from what it should hold");
        }
    }
    agrees
}

/// Whether deltas can continue from the table that the node has. A node that has seen a revision
/// which this store cannot have had is refused, unless an operator has accepted the rollback.
async fn can_resume(shared: &Shared, hello: &wire::Hello) -> Result<bool, StreamEnd> {
    let (name, superseded) = (shared.epoch.name(), shared.epoch.superseded());
    for (epoch, revision) in [(&hello.epoch, hello.applied_revision), (&hello.seen_epoch, hello.seen_revision)] {
        let diverged = |now| StreamEnd::Diverged {
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
            let now = shared.store.revision().await.map_err(|_| StreamEnd::Store)?;
            if revision > now {
                return Err(diverged(now));
            }
            wait_for_revision(shared, revision).await?;
        }
    }
    Ok(hello.epoch == name && shared.changes.log.reaches(hello.applied_revision))
}
