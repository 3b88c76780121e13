//! `seks-bench`: the parts of the whole-system benchmark, and the driver that runs them.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a benchmark that can't go on stops")]

use clap::{Parser, Subcommand};
use seks_benches::{collector, compare, fleet, load, stub};
use seks_runtime::alloc::Allocator;

/// The products': `churn` runs both planes in this process.
#[global_allocator]
static ALLOCATOR: Allocator = Allocator::new();

#[derive(Parser)]
#[command(about = "What a request costs through SEKS, and what a fleet of nodes costs a replica")]
struct Args {
    #[command(subcommand)]
    part: Part,
}

#[derive(Subcommand)]
enum Part {
    /// Runs contestants in turns and prints the table
    Compare(compare::Args),
    /// Upstream: answers every request with the same bytes
    Stub(stub::Args),
    /// Closed-loop load on keep-alive connections
    Load(load::Args),
    /// A thousand nodes on one replica
    Fleet(fleet::Args),
    /// OTLP sink: counts spans and forgets them
    Collector,
}

fn main() {
    seks_runtime::install_crypto_provider();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    match Args::parse().part {
        Part::Compare(args) => compare::run(&args),
        Part::Stub(args) => runtime.block_on(stub::run(args)),
        Part::Load(args) => {
            let result = runtime.block_on(load::run(args));
            println!("{}", serde_json::to_string(&result).unwrap());
        }
        // Replica and nodes share the machine's cores: a single thread would be the bottleneck.
        Part::Fleet(args) => {
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
            runtime.block_on(fleet::run(args));
        }
        Part::Collector => runtime.block_on(collector::run()),
    }
}
