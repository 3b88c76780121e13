//! The fleet: which nodes and replicas there are, and how far each of them has applied the changes.
//!
//! [`membership`] is who may connect; [`leases`] is what each node has applied and until when it may serve; [`replicas`] is what
//! the other replicas say of their nodes, and [`registration`] is what this one says of its own. A lease counts from a
//! [`read_barrier`]. All of it together says whether a change is enforced ([`enforcement`]).

pub(crate) mod enforcement;
pub(crate) mod high_water_mark;
pub(crate) mod leases;
pub(crate) mod membership;
pub(crate) mod read_barrier;
pub(crate) mod registration;
pub(crate) mod replicas;
