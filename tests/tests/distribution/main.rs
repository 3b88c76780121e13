//! Distribution over real loopback TLS: every change to every node, and nothing said to be enforced
//! that isn't.
//!
//! [`replica`] is a replica on an embedded store; [`node`] a node's table and its synchronisation;
//! [`peer`] a node that speaks the protocol by hand, truthfully or not; [`impostor`] a control
//! plane that can be made to misbehave.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::expect_used, reason = "tests")]
#![allow(unreachable_pub, reason = "the modules are this test's own")]

mod clones;
mod divergence;
mod enforcement;
mod hostile_node;
mod hostile_replica;
mod impostor;
mod lifecycle;
mod membership;
mod node;
mod peer;
mod refusals;
mod replica;
mod replicas;
mod restart;
mod rollback;
mod scope;
mod versions;
