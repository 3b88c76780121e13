//! A hostile tenant does not slow down or read other tenants on the same control plane.

mod errors;
mod memory;
mod namesakes;
mod noisy_neighbour;
mod policy_checks;
mod quotas;
mod world;
