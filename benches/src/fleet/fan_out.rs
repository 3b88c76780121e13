//! From `token revoke` to the last node's acknowledgement.

use std::time::{Duration, Instant};

use seks_proto::wire::{self, node_enforcement::State};

use super::{FleetUnderTest, percentile, replica::ReplicaHost};
use crate::sys;

/// How often.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// Tokens to revoke, one after the other
    #[arg(long, default_value_t = 300)]
    revocations: usize,
    /// Milliseconds between two
    #[arg(long, default_value_t = 50)]
    pause: u64,
}

pub(super) async fn run(fleet: &FleetUnderTest, args: Args) {
    let mut host = ReplicaHost::with_fixtures(&fleet.control_plane).await;
    host.fill(args.revocations).await;
    let replica = host.start().await;
    let mut client = host.client(replica.admin).await;
    let begun = Instant::now();
    let nodes = fleet.populate(&client, replica.nodes, host.nodes()).await;
    println!(
        "{} {} enrolled, and with a lease each, in {:.1} s; replica {} MiB",
        fleet.nodes,
        nodes.kind(),
        begun.elapsed().as_secs_f64(),
        sys::rss_kib(replica.pid()) / 1024
    );
    let (mut last_ack, mut median_ack, mut whole) = (Vec::new(), Vec::new(), Vec::new());
    let (cpu, wall) = (sys::cpu(replica.pid()), Instant::now());
    for n in 0..args.revocations {
        tokio::time::sleep(Duration::from_millis(args.pause)).await;
        let request = wire::DeleteRequest {
            tenant: super::replica::TENANT.into(),
            name: format!("tok-{n:016x}"),
            wait: Some(wire::Wait::default()),
        };
        let begun = Instant::now();
        let answer = client.revoke_token(request).await.unwrap().into_inner().enforcement.unwrap();
        whole.push(begun.elapsed().as_secs_f64() * 1000.0);
        let applied: Vec<_> = answer.nodes.iter().filter(|node| node.state() == State::Applied).collect();
        assert!(answer.enforced && applied.len() == fleet.nodes, "{} of {} nodes", applied.len(), fleet.nodes);
        let mut each: Vec<f64> = applied.iter().map(|node| node.ms as f64).collect();
        median_ack.push(percentile(&mut each, 0.5));
        last_ack.push(percentile(&mut each, 1.0));
    }
    let cpu = (sys::cpu(replica.pid()) - cpu).as_secs_f64();
    println!("| ms | p50 | p99 | max |\n|---|---|---|---|");
    for (name, values) in [
        ("call of RevokeToken until it says enforced", &mut whole),
        ("commit seen to last node's ack", &mut last_ack),
        ("commit seen to median node's ack", &mut median_ack),
    ] {
        let at = [0.5, 0.99, 1.0].map(|share| percentile(values, share));
        println!("| {name} | {:.1} | {:.1} | {:.1} |", at[0], at[1], at[2]);
    }
    println!(
        "replica: {:.2} cores meanwhile, {:.1} us of CPU a node and revocation, {} MiB",
        cpu / wall.elapsed().as_secs_f64(),
        cpu * 1e6 / (fleet.nodes * args.revocations) as f64,
        sys::rss_kib(replica.pid()) / 1024
    );
}
