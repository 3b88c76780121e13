//! The members of the fleet: every node that has a record in the store, as this replica's watch has
//! brought it.
//!
//! A node is served and granted leases only while its record exists and names the enrolment of its
//! certificate. The record also says which tenants' records the node may hold. It is written at
//! enrolment alone; unlike a claim in a certificate it ends at once.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use parking_lot::{Mutex, MutexGuard};
use seks_proto::wire;
use seks_types::id::NodeId;
use tokio_util::sync::CancellationToken;

use crate::{
    authority::{Identity, Peer},
    store::Revision,
};

/// One node's membership.
#[derive(Clone)]
pub(crate) struct Member {
    /// Its record.
    pub(crate) record: Arc<wire::Node>,
    /// The revision that wrote it.
    stored: Revision,
    /// Cancelled when the record is gone, or is another enrolment's.
    pub(crate) revoked: CancellationToken,
    /// The revision that took the record away, once that is known.
    revoked_at: Arc<AtomicU64>,
}

impl Member {
    /// The revision of its revocation; 0 if it is not revoked, or if the revision is unknown.
    pub(crate) fn revoked_at(&self) -> Revision {
        self.revoked_at.load(Relaxed)
    }
}

/// Every member, by id.
#[derive(Default)]
pub(crate) struct Members(Mutex<BTreeMap<NodeId, Member>>);

impl Members {
    /// The store holds exactly these.
    pub(crate) fn reset(&self, records: &[(NodeId, wire::Node, Revision)]) {
        let mut members = self.lock();
        members.retain(|id, member| {
            let stays = records.iter().any(|(known, ..)| known == id);
            if !stays {
                member.revoked.cancel();
            }
            stays
        });
        drop(members);
        records.iter().for_each(|(id, record, revision)| self.update(id, record, *revision));
    }

    /// The store says this of a node since `revision`.
    pub(crate) fn update(&self, id: &NodeId, record: &wire::Node, revision: Revision) {
        let mut members = self.lock();
        let known = members.remove(id);
        let (record, stored) = (Arc::new(record.clone()), revision);
        let member = match known {
            Some(member) if member.record.enrolment == record.enrolment => Member { record, stored, ..member },
            other => {
                if let Some(member) = other {
                    member.revoked.cancel();
                }
                Member { record, stored, revoked: CancellationToken::new(), revoked_at: Arc::default() }
            }
        };
        members.insert(id.clone(), member);
    }

    /// The store has no record of a node any more since `revision`.
    pub(crate) fn revoke(&self, id: &NodeId, revision: Revision) {
        if let Some(member) = self.lock().remove(id) {
            member.revoked_at.store(revision, Relaxed);
            member.revoked.cancel();
        }
    }

    /// A node's record as the watch has brought it, and the revision that wrote it.
    pub(crate) fn record_of(&self, id: &NodeId) -> Option<(Arc<wire::Node>, Revision)> {
        self.lock().get(id).map(|member| (member.record.clone(), member.stored))
    }

    /// The node that `peer` is, if its certificate is of the enrolment that counts.
    pub(crate) fn admit(&self, peer: &Peer) -> Option<(NodeId, Member)> {
        let members = self.lock();
        let found = match &peer.identity {
            Identity::Operator(_) => None,
            Identity::Node(id) => members.get_key_value(id),
            Identity::Workload(_) => members.iter().find(|(_, member)| member.record.enrolment == peer.enrolment),
        };
        let (id, member) = found.filter(|(_, member)| member.record.enrolment == peer.enrolment)?;
        Some((id.clone(), member.clone()))
    }

    /// Adds the data of enrolment to `nodes`, adds nodes that were never connected, and removes
    /// nodes that are no longer members.
    pub(crate) fn merge_into(&self, nodes: &mut Vec<wire::Node>) {
        let members = self.lock();
        for (id, member) in members.iter() {
            let record = &member.record;
            match nodes.iter_mut().find(|node| node.id == id.as_str()) {
                Some(node) => {
                    node.tenants.clone_from(&record.tenants);
                    node.pools.clone_from(&record.pools);
                    node.enrolment.clone_from(&record.enrolment);
                    node.enrolled_at = record.enrolled_at;
                    node.key_sha256.clone_from(&record.key_sha256);
                }
                None => nodes.push(wire::Node::clone(record)),
            }
        }
        nodes.retain(|node| node.id.parse::<NodeId>().is_ok_and(|id| members.contains_key(&id)));
        nodes.sort_by(|a, b| a.id.cmp(&b.id));
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<NodeId, Member>> {
        self.0.lock()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id() -> NodeId {
        "n1".parse().unwrap()
    }

    fn of(enrolment: &str) -> (wire::Node, Peer) {
        let record = wire::Node { id: "n1".into(), enrolment: enrolment.into(), ..Default::default() };
        (
            record,
            Peer { identity: Identity::Node(id()), enrolment: enrolment.into(), signed_at: 0, expires_at: i64::MAX },
        )
    }

    #[test]
    fn a_certificate_is_worth_as_much_as_the_record_of_its_enrolment() {
        let members = Members::default();
        let ((first, peer), (second, other)) = (of("a"), of("b"));
        assert!(members.admit(&peer).is_none());
        members.update(&id(), &first, 1);
        let (_, member) = members.admit(&peer).unwrap();
        assert!(members.admit(&other).is_none());
        members.update(&id(), &wire::Node { version: "2".into(), ..first.clone() }, 2);
        assert_eq!(members.record_of(&id()).unwrap().1, 2);
        assert!(!member.revoked.is_cancelled(), "the same enrolment, seen again");
        members.update(&id(), &second, 3);
        assert!(member.revoked.is_cancelled() && members.admit(&peer).is_none());
        let (_, member) = members.admit(&other).unwrap();
        members.revoke(&id(), 4);
        assert!(member.revoked.is_cancelled() && member.revoked_at() == 4 && members.admit(&other).is_none());
    }

    #[test]
    fn a_listing_revokes_who_is_not_in_it() {
        let members = Members::default();
        let (record, peer) = of("a");
        members.reset(&[(id(), record.clone(), 1)]);
        let (_, member) = members.admit(&peer).unwrap();
        members.reset(&[(id(), record, 1)]);
        assert!(!member.revoked.is_cancelled());
        members.reset(&[]);
        assert!(member.revoked.is_cancelled());
    }
}
