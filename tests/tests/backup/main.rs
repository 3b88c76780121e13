//! Backup, restore, and a store that went back: what an operator sees of them, process by process.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

mod embedded;
mod etcd;

use seks_proto::wire::{self, admin_client::AdminClient};
use seks_tests::runtime;
use tonic::transport::Channel;

/// Makes an agent.
fn make_agent(client: &mut AdminClient<Channel>, name: &str) {
    let agent =
        wire::CreateAgentRequest { tenant: "default".into(), name: name.into(), attributes: Default::default() };
    runtime().block_on(client.create_agent(agent)).unwrap();
}

/// The agents' names.
fn agents(client: &mut AdminClient<Channel>) -> Vec<String> {
    let list = wire::ListRequest { tenant: "default".into(), ..Default::default() };
    let listed = runtime().block_on(client.list_agents(list)).unwrap().into_inner();
    listed.agents.into_iter().map(|agent| agent.name).collect()
}
