//! `seks-bench`: the parts of the whole-system benchmark, and the driver that runs them.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a benchmark that can't go on stops")]

use clap::{Parser, Subcommand};
use seks_benches::{collector, compare, load, stub};

#[derive(Parser)]
#[command(about = "What a request costs through SEKS, through nginx, and directly")]
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
    /// OTLP sink: counts spans and forgets them
    Collector,
}

fn main() {
    seks_proto::runtime::install_crypto_provider();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    match Args::parse().part {
        Part::Compare(args) => compare::run(&args),
        Part::Stub(args) => runtime.block_on(stub::run(args)),
        Part::Load(args) => {
            let result = runtime.block_on(load::run(args));
            println!("{}", serde_json::to_string(&result).unwrap());
        }
        Part::Collector => runtime.block_on(collector::run()),
    }
}
