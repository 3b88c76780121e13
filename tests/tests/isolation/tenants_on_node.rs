//! A hostile tenant does not slow down or read other tenants on the same node.

mod aws;
mod bodies;
mod names;
mod neighbour;
mod policies;
mod shares;
mod world;
