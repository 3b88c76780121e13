//! The fleet: which nodes and replicas there are, and how far each of them has applied the changes.
//!
//! [`membership`] is who may connect; [`leases`] is what each node has applied and until when it
//! may serve; [`replicas`] is what the other replicas say of their nodes, and [`registration`] is
//! what this one says of its own. A lease counts from a [`read_barrier`]. All of it together says
//! whether a change is enforced ([`enforcement`]).

pub(crate) mod enforcement;
pub(crate) mod high_water_mark;
pub(crate) mod leases;
pub(crate) mod membership;
pub(crate) mod metrics;
pub(crate) mod read_barrier;
pub(crate) mod registration;
pub(crate) mod replicas;

use std::sync::Arc;

use seks_proto::wire;
use seks_types::id::{NodeId, ReplicaId};

use self::{leases::Leases, membership::Members, read_barrier::ReadBarriers, replicas::Replicas};
use crate::{
    changefeed::watcher::{FleetRecords, NodeRecords, ReplicaRecords},
    store::Revision,
};

/// What this replica knows of the fleet. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Fleet {
    /// What each node has applied, and until when it may hold a lease.
    pub(crate) leases: Arc<Leases>,
    /// Who may connect.
    pub(crate) members: Arc<Members>,
    /// What the replicas say of their nodes.
    pub(crate) replicas: Arc<Replicas>,
    /// What leases count from.
    pub(crate) barriers: ReadBarriers,
}

impl FleetRecords for Fleet {
    fn node(&self, id: &NodeId, record: Option<wire::Node>, revision: Revision) {
        match &record {
            Some(record) => self.members.update(id, record, revision),
            None => self.members.revoke(id, revision),
        }
        self.leases.update_from_store(id.clone(), record, revision);
    }

    fn replica(&self, id: &ReplicaId, record: Option<wire::Replica>, revision: Revision) {
        if record.as_ref().is_none_or(|record| record.retired) {
            // Before the head moves, and with it a barrier that nothing may be granted from any
            // more.
            self.leases.resign_if(id);
        }
        self.replicas.learn(id, record, revision);
        self.leases.raise_longest_lease(self.replicas.longest_ttl());
    }

    fn reset(&self, nodes: NodeRecords, replicas: ReplicaRecords, revision: Revision) {
        self.members.reset(&nodes);
        let stands = |me| replicas.iter().any(|(id, record, _)| *id == me && !record.retired);
        if !self.leases.own_id().is_some_and(stands) {
            self.leases.resign(); // the gap may have held that we were retired
        }
        self.replicas.reset(replicas);
        self.leases.raise_longest_lease(self.replicas.longest_ttl());
        self.leases.reset(nodes, revision);
    }
}
