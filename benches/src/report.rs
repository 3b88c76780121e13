//! The table: medians over the quiet rounds, their spread, and ratios within the run.

use std::fmt::Write as _;

use crate::{
    compare::{Args, Results},
    load::Measured,
};

/// The rounds that count: quiet ones, or all when fewer than three were quiet (the table then says
/// so).
fn counted<'a>(args: &Args, results: &'a Results) -> Vec<&'a Measured> {
    let quiet: Vec<_> = results.rounds.iter().filter(|m| m.noise <= args.noise).collect();
    if quiet.len() < 3 { results.rounds.iter().collect() } else { quiet }
}

/// CPU time as a multiple of the reference's in the same round, for a machine whose speed drifts:
/// median, least and greatest over the rounds in which both were quiet, or over all when there are
/// fewer than three of these.
fn ratio(args: &Args, results: &Results, reference: &Results) -> (f64, f64, f64) {
    let pairs = || results.rounds.iter().zip(&reference.rounds).filter(|(_, other)| other.cpu_us > 0.0);
    let quiet: Vec<_> = pairs().filter(|(one, other)| one.noise.max(other.noise) <= args.noise).collect();
    let rounds = if quiet.len() < 3 { pairs().collect() } else { quiet };
    spread_of(rounds.into_iter().map(|(one, other)| one.cpu_us / other.cpu_us).collect())
}

/// Median of a figure, with its least and greatest.
fn spread(rounds: &[&Measured], figure: impl Fn(&Measured) -> f64) -> (f64, f64, f64) {
    spread_of(rounds.iter().map(|m| figure(m)).collect())
}

fn spread_of(mut values: Vec<f64>) -> (f64, f64, f64) {
    values.sort_by(f64::total_cmp);
    let at = |index: usize| values.get(index).copied().unwrap_or(0.0);
    (at(values.len() / 2), at(0), at(values.len().saturating_sub(1)))
}

/// One line: the run's terms, and each contestant with all its rounds.
#[must_use]
pub fn json(args: &Args, all: &[Results]) -> serde_json::Value {
    let reference = all.iter().find(|r| r.name.ends_with("log on"));
    let contestants: Vec<_> = all
        .iter()
        .map(|results| {
            let (cpu, ..) = spread(&counted(args, results), |m| m.cpu_us);
            let ratio = reference.map(|reference| ratio(args, results, reference).0);
            let Results { name, rounds, syscalls, syncs } = results;
            serde_json::json!({"name": name, "cpu_us": cpu, "of_nginx": ratio, "syscalls": syscalls, "syncs": syncs, "rounds": rounds})
        })
        .collect();
    let Args { tokens, connections, size, events, tls, seconds, .. } = args;
    serde_json::json!({
        "tokens": tokens, "connections": connections, "size": size, "events": events, "tls": tls, "seconds": seconds,
        "contestants": contestants,
    })
}

/// Markdown.
#[must_use]
pub fn table(args: &Args, all: &[Results]) -> String {
    let answers = match args.events {
        0 => format!("answers of {} B", args.size),
        events => format!("streams of {events} events, figures of an event"),
    };
    let upstream = if args.tls { "TLS upstream" } else { "plain upstream" };
    let mut out = format!(
        "{upstream}, {} tokens, {} connections, {answers}, {} rounds of {} s\n\n",
        args.tokens, args.connections, args.rounds, args.seconds
    );
    out.push_str(
        "| | CPU µs a request | × nginx, log on | req/s | p50 µs | p99 µs | syscalls | syncs | RSS MiB | rounds counted |\n",
    );
    out.push_str("|---|---|---|---|---|---|---|---|---|---|\n");
    let reference = all.iter().find(|r| r.name.ends_with("log on"));
    for results in all {
        let rounds = counted(args, results);
        let (cpu, least, most) = spread(&rounds, |m| m.cpu_us);
        let (rate, p50) = (spread(&rounds, |m| m.rate).0, spread(&rounds, |m| m.p50 as f64).0);
        let (p99, rss) = (spread(&rounds, |m| m.p99 as f64).0, spread(&rounds, |m| m.rss_kib as f64).0 / 1024.0);
        let tested = cpu > 0.0;
        let text = |shown: bool, text: String| if shown { text } else { "–".into() };
        let ratio = reference.filter(|_| tested).map(|reference| ratio(args, results, reference));
        let syscalls = results.syscalls.map_or("–".into(), |calls| format!("{calls:.1}"));
        let syncs = results.syncs.map_or("–".into(), |syncs| format!("{syncs:.3}"));
        let noisy = results.rounds.iter().filter(|m| m.noise > args.noise).count();
        let note = if noisy > 0 && rounds.len() == results.rounds.len() { ", noisy" } else { "" };
        writeln!(
            out,
            "| {} | {} | {} | {rate:.0} | {p50:.0} | {p99:.0} | {syscalls} | {syncs} | {} | {} of {}{note} |",
            results.name,
            text(tested, format!("{cpu:.1} ({least:.1}–{most:.1})")),
            ratio.map_or("–".into(), |(ratio, least, most)| format!("{ratio:.2} ({least:.2}–{most:.2})")),
            text(tested, format!("{rss:.1}")),
            rounds.len(),
            results.rounds.len(),
        )
        .unwrap();
    }
    out
}
