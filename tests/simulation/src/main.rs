//! `seks-simulation SEED [DEFECT] [--trace]`: one seed, in a process of its own, so that nothing
//! which ran before it has a part in it. Prints the report as JSON, in the last line; with
//! `--trace` it says what happens, and fails where a promise was broken.
#![allow(clippy::print_stdout, clippy::expect_used, reason = "a program for tests")]

use std::process::ExitCode;

use seks_simulation::{Defect, Plan, run};

const USAGE: &str = "usage: seks-simulation SEED [DEFECT] [--trace]";

fn main() -> ExitCode {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    let trace = arguments.iter().position(|argument| argument == "--trace").map(|at| arguments.remove(at)).is_some();
    if trace {
        let filter = tracing_subscriber::EnvFilter::from_default_env();
        tracing_subscriber::fmt().with_env_filter(filter).without_time().init();
    }
    let mut arguments = arguments.into_iter();
    let seed = arguments.next().and_then(|seed| seed.parse().ok()).expect(USAGE);
    let defect = arguments.next().map(|name| Defect::named(&name).expect(USAGE));
    let report = run(Plan { seed, defect, trace });
    println!("{}", serde_json::to_string(&report).expect("numbers and text"));
    ExitCode::from(u8::from(trace && !report.broken.is_empty()))
}
