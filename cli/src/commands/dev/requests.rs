//! A line for each request, on stderr: what happened to it, why, and how long it took. The lines
//! come from the audit trail, so they hold no secret. Under load most requests have no line, and
//! are counted instead.

use std::{
    io::IsTerminal as _,
    time::{Duration, UNIX_EPOCH},
};

use prost::Message as _;
use seks_control_plane::trail::Trail;
use seks_proto::wire::{AuditRecord, audit_record::Decision};
use seks_runtime::logs;
use tokio::time::{Instant, timeout_at};

use crate::{error::one_line, output};

/// Longest path in a line, in characters.
const PATH: usize = 60;

/// How often it is said how many requests have no line.
const COUNT_EVERY: Duration = Duration::from_secs(1);

/// Prints requests until the task is dropped.
pub(super) async fn print(trail: Trail) {
    let mut follow = trail.follow();
    let colours = output::has_colours(std::io::stderr().is_terminal());
    let (mut left_out, mut since) = (0, Instant::now());
    loop {
        let new = match left_out {
            0 => follow.next().await,
            _ => match timeout_at(since + COUNT_EVERY, follow.next()).await {
                Ok(new) => new,
                Err(_) => {
                    logs::write_stderr_line(&format!("… and {left_out} more (`seks audit search` shows all)"));
                    left_out = 0;
                    continue;
                }
            },
        };
        let Some(new) = new else { return };
        for record in new.records.iter().filter_map(|record| AuditRecord::decode(&**record).ok()) {
            logs::write_stderr_line(&line(&record, colours));
        }
        if left_out == 0 {
            since = Instant::now();
        }
        left_out += new.left_out;
    }
}

/// `12:03:44 200 POST /api/openai/v1/chat  ci-bot  123 ms`.
fn line(record: &AuditRecord, colours: bool) -> String {
    let began = UNIX_EPOCH.checked_add(Duration::from_micros(record.began_us)).unwrap_or(UNIX_EPOCH);
    let time = humantime::format_rfc3339_seconds(began).to_string();
    let time = time.get(11..19).unwrap_or_default();
    let mut path: String = record.path.chars().take(PATH).collect();
    if path.len() < record.path.len() {
        path.push('…');
    }
    let agent = if record.agent.is_empty() { "-" } else { &record.agent };
    let mut text = format!(
        "{time} {} {} {path}  {agent}  {:.1} ms",
        record.status,
        record.method,
        record.whole_us as f64 / 1000.0
    );
    if !record.reason.is_empty() {
        text.push_str(&format!("  {}", record.reason));
    }
    if record.decision() == Decision::Deny && !record.policies.is_empty() {
        text.push_str(&format!(" by {}", record.policies.join(", ")));
    }
    if !record.upstream_error.is_empty() && record.upstream_error != record.reason {
        text.push_str(&format!("  {}", record.upstream_error));
    }
    let text = one_line(&text);
    let colour = match record.status {
        _ if !colours => return text,
        200..=399 => "32",
        400..=499 => "33",
        _ => "31",
    };
    format!("\u{1b}[{colour}m{text}\u{1b}[0m")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_what_happened_and_why() {
        let mut record = AuditRecord {
            began_us: 1_700_000_000_000_000,
            method: "POST".into(),
            path: "/api/openai/v1/x\u{1b}[2J".into(),
            agent: "bot".into(),
            reason: "policy_denied".into(),
            policies: vec!["no-x".into()],
            status: 403,
            whole_us: 1500,
            ..AuditRecord::default()
        };
        record.set_decision(Decision::Deny);
        let text = line(&record, false);
        assert_eq!(text, "22:13:20 403 POST /api/openai/v1/x\\u{1b}[2J bot 1.5 ms policy_denied by no-x");
        assert!(line(&record, true).starts_with("\u{1b}[33m22:13:20"));
    }
}
