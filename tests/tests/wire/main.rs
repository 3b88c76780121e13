//! What the protocol of real clients and real upstreams asks for: `tests/run wire`.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test")]

mod answers_of_real_servers;
mod answers_that_name_the_upstream;
mod bodies_that_name_the_upstream;
mod clients;
mod differential;
mod failing_upstreams;
mod heads;
mod keyless_urls;
mod kubectl;
mod mcp;
mod meaning;
mod methods;
mod paths;
mod public_fields;
mod ranges;
mod recorded_paths;
mod refusals;
mod rig;
mod shapes_of_vendors;
