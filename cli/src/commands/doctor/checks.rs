//! The checks: each says what it found, and what to do when that is wrong.

use std::time::UNIX_EPOCH;

use seks_proto::wire;
use serde::Serialize;

use crate::output::rfc3339;

const HOUR: i64 = 3600;
const DAY: i64 = 24 * HOUR;
/// A certificate that ends within this is worth a warning.
const CERTIFICATE_WARNING: i64 = 7 * DAY;
/// Clocks may differ by this much: expiries are counted in seconds.
const CLOCK_WARNING_MS: i64 = 2_000;
const CLOCK_FAILURE_MS: i64 = 30_000;
/// A node that is further behind is slow or stuck.
const LAG_WARNING: u64 = 100;
/// Records that wait for longer than a node needs to hand them in.
const BACKLOG_WARNING: u64 = 10_000;
/// Shares of a disk that are free, and bytes: a large disk may be nearly full and still have room
/// for long.
const DISK_WARNING: (f64, u64) = (0.15, 10 << 30);
const DISK_FAILURE: (f64, u64) = (0.05, 1 << 30);
/// Shares of a limit that are used.
const LIMIT_WARNING: f64 = 0.9;

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum State {
    Ok,
    Warning,
    Failed,
}

/// One check.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Check {
    pub(super) name: String,
    pub(super) state: State,
    /// What was found.
    pub(super) detail: String,
    /// What to do about it; empty when nothing is wrong.
    pub(super) advice: String,
}

impl Check {
    fn new(state: State, name: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { name: name.into(), state, detail: detail.into(), advice: String::new() }
    }

    pub(super) fn good(name: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::new(State::Ok, name, detail)
    }

    pub(super) fn warning(name: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::new(State::Warning, name, detail)
    }

    pub(super) fn failed(name: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::new(State::Failed, name, detail)
    }

    pub(super) fn advise(self, advice: impl Into<String>) -> Self {
        Self { advice: advice.into(), ..self }
    }
}

/// Unix milliseconds.
pub(super) fn now_ms() -> i64 {
    i64::try_from(UNIX_EPOCH.elapsed().unwrap_or_default().as_millis()).unwrap_or(i64::MAX)
}

pub(super) fn own_certificate(until: Option<i64>, now: i64) -> Check {
    let name = "operator certificate";
    match until {
        None => Check::failed(name, "is not a certificate").advise("an owner makes a new one: seks operator create"),
        Some(until) if until <= now => Check::failed(name, format!("expired at {}", rfc3339(until)))
            .advise("an owner renews it: seks operator renew NAME"),
        Some(until) if until - now < CERTIFICATE_WARNING => {
            Check::warning(name, format!("expires at {}", rfc3339(until))).advise("renew it: seks operator renew NAME")
        }
        Some(until) => Check::good(name, format!("valid until {}", rfc3339(until))),
    }
}

pub(super) fn server_certificate(until: Option<i64>, now: i64) -> Check {
    let name = "admin certificate";
    match until {
        None => Check::warning(name, "could not be looked at"),
        // Of our own CA it is renewed when a third of its life is left.
        Some(until) if until - now < DAY => Check::failed(name, format!("expires at {}", rfc3339(until)))
            .advise("renew admin.tls.cert_file; one of SEKS's own CA is renewed by itself while the replica runs"),
        Some(until) if until - now < CERTIFICATE_WARNING => {
            Check::warning(name, format!("expires at {}", rfc3339(until))).advise("renew admin.tls.cert_file")
        }
        Some(until) => Check::good(name, format!("valid until {}", rfc3339(until))),
    }
}

/// The replica's clock was read between the question and the answer.
pub(super) fn clock(server_ms: i64, asked_ms: i64, answered_ms: i64) -> Check {
    let name = "clocks";
    if server_ms == 0 {
        return Check::good(name, "not compared: the control plane is older than this command");
    }
    let off = if server_ms < asked_ms { server_ms - asked_ms } else { (server_ms - answered_ms).max(0) };
    let detail = match off {
        0 => "this machine and the control plane agree".to_owned(),
        off => format!(
            "the control plane is {:.1} s {}",
            off.abs() as f64 / 1000.0,
            if off > 0 { "ahead" } else { "behind" }
        ),
    };
    let advice = "run NTP (chrony, systemd-timesyncd) on both: tokens and certificates expire by these clocks";
    match off.abs() {
        off if off >= CLOCK_FAILURE_MS => Check::failed(name, detail).advise(advice),
        off if off >= CLOCK_WARNING_MS => Check::warning(name, detail).advise(advice),
        _ => Check::good(name, detail),
    }
}

pub(super) fn version(server: &str, own: &str) -> Check {
    if server == own {
        return Check::good("versions", format!("control plane and command line are both {own}"));
    }
    Check::warning("versions", format!("control plane {server}, command line {own}"))
        .advise("use one version: an older control plane lacks calls that this command line has")
}

pub(super) fn store(status: &wire::StatusResponse) -> Check {
    let detail = format!("{}, revision {}", status.store, status.revision);
    match (status.store_healthy, status.store_problem.as_str()) {
        (true, _) => Check::good("store", format!("{detail}, healthy")),
        (false, "full") => Check::failed("store", format!("{detail}: full, and takes only deletions"))
            .advise("etcd: compact, defragment, raise --quota-backend-bytes; embedded: make room on the disk"),
        (false, problem) => Check::failed("store", format!("{detail}: {problem}")).advise(
            "etcd: look at `etcdctl endpoint status` and the network; nodes refuse requests when their leases end",
        ),
    }
}

pub(super) fn replicas(status: &wire::StatusResponse) -> Option<Check> {
    let serving: Vec<&wire::Replica> = status.replicas.iter().filter(|replica| !replica.retired).collect();
    let formats: Vec<u32> = serving.iter().map(|replica| replica.store_format).collect();
    let (first, last) = (formats.iter().min()?, formats.iter().max()?);
    let names: Vec<&str> = serving.iter().map(|replica| replica.name.as_str()).collect();
    Some(match (first == last, serving.len()) {
        (false, _) => Check::warning("replicas", format!("{} have different versions", names.join(", ")))
            .advise("finish the upgrade: new kinds of records are refused while an older replica serves"),
        (true, 1) if status.store == "etcd" => Check::warning("replicas", "only one serves")
            .advise("start a second one: nodes keep their leases when one is lost"),
        _ => Check::good("replicas", format!("{} serving: {}", serving.len(), names.join(", "))),
    })
}

pub(super) fn nodes(status: &wire::StatusResponse) -> Vec<Check> {
    if status.nodes.is_empty() {
        return vec![Check::warning("nodes", "none is enrolled").advise("seks node enroll --region R")];
    }
    status.nodes.iter().map(|node| one_node(node, &status.version)).collect()
}

fn one_node(node: &wire::Node, version: &str) -> Check {
    let name = format!("node {}", node.id);
    if !node.connected && node.first_seen_at == 0 {
        return Check::warning(name, "enrolled, and never seen").advise("start it with its join token, or revoke it");
    }
    if !node.connected {
        let seen = rfc3339(node.last_seen_at);
        return Check::failed(name.as_str(), format!("gone since {seen}: it serves nothing without a lease"))
            .advise(format!("look at its log; when it is gone for good: seks node revoke {}", node.id));
    }
    if node.lag > LAG_WARNING {
        return Check::warning(name, format!("{} revisions behind", node.lag))
            .advise("changes are not enforced there yet: look at its CPU and its network");
    }
    if node.version != version {
        return Check::warning(name, format!("has version {}, the control plane {version}", node.version))
            .advise("upgrade replicas first, then nodes");
    }
    Check::good(
        name,
        format!(
            "{}, {} revisions behind, lease {:.1} s",
            node.region,
            node.lag,
            node.lease_remaining_ms as f64 / 1000.0
        ),
    )
}

pub(super) fn disks(disks: &[wire::Disk]) -> Vec<Check> {
    let one = |disk: &wire::Disk| {
        let share = disk.free_bytes as f64 / (disk.total_bytes as f64).max(1.0);
        let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
        let name = format!("disk of the {}", disk.r#use);
        let detail = format!("{:.1} of {:.1} GiB are free", gib(disk.free_bytes), gib(disk.total_bytes));
        let advice = "make room: a full disk stops changes, and with audit.mode = \"required\" requests too";
        let is_below = |(of, bytes): (f64, u64)| share < of && disk.free_bytes < bytes;
        match (is_below(DISK_FAILURE), is_below(DISK_WARNING)) {
            (true, _) => Check::failed(name, detail).advise(advice),
            (false, true) => Check::warning(name, detail).advise(advice),
            (false, false) => Check::good(name, detail),
        }
    };
    disks.iter().map(one).collect()
}

pub(super) fn open_files(status: &wire::StatusResponse) -> Option<Check> {
    let (open, limit) = (status.open_files, status.open_files_limit);
    if open == 0 || limit == 0 {
        return None;
    }
    let detail = format!("{open} of {limit}");
    Some(if open as f64 > limit as f64 * LIMIT_WARNING {
        Check::failed("open files", detail).advise("raise LimitNOFILE of the control plane")
    } else {
        Check::good("open files", detail)
    })
}

pub(super) fn backlog(status: &wire::StatusResponse) -> Check {
    let detail = format!("{} audit spans wait at the nodes", status.audit_backlog);
    if status.audit_backlog > BACKLOG_WARNING {
        return Check::warning("audit", detail)
            .advise("is the collector (OTEL_EXPORTER_OTLP_ENDPOINT) reachable, and fast enough?");
    }
    Check::good("audit", detail)
}

/// Only a tenant with a quota of its own says how much it may have.
pub(super) fn quota(tenant: &wire::Tenant) -> Vec<Check> {
    let (Some(quota), Some(usage)) = (&tenant.quota, &tenant.usage) else { return Vec::new() };
    let parts = [
        ("tokens", usage.tokens, quota.tokens),
        ("agents", usage.agents, quota.agents),
        ("services", usage.services, quota.services),
        ("credentials", usage.credentials, quota.credentials),
        ("policies", usage.policies, quota.policies),
    ];
    let is_near = |(_, used, limit): &(&str, u64, u64)| *limit > 0 && *used as f64 >= *limit as f64 * LIMIT_WARNING;
    let warning = |(what, used, limit): (&str, u64, u64)| {
        Check::warning(format!("quota of {what}"), format!("{used} of {limit} in tenant {}", tenant.name))
            .advise(format!("delete some, or raise it: seks tenant quota {} --{what} N", tenant.name))
    };
    parts.into_iter().filter(is_near).map(warning).collect()
}

pub(super) fn credentials(credentials: &[wire::Credential]) -> Vec<Check> {
    let mut found = Vec::new();
    for credential in credentials {
        let name = format!("credential {}", credential.name);
        if credential.unbound {
            let advice =
                format!("store it again: seks credential put {} --service {}", credential.name, credential.service);
            found.push(
                Check::failed(name.as_str(), "is bound to a former destination of its service, and not used")
                    .advise(advice),
            );
        }
        if let Some(mint) = credential.mint.as_ref().filter(|mint| mint.failing_since > 0) {
            let detail = format!("cannot be minted since {}: {}", rfc3339(mint.failing_since), mint.error);
            found.push(
                Check::failed(name, detail).advise("store what it is minted from again: seks credential put --mint"),
            );
        }
    }
    if found.is_empty() {
        found.push(Check::good("credentials", format!("{} stored, all in use as they are", credentials.len())));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_are_judged_by_what_is_left_of_them() {
        let now = 1_700_000_000;
        for (until, state) in [
            (None, State::Failed),
            (Some(now), State::Failed),
            (Some(now + DAY), State::Warning),
            (Some(now + 30 * DAY), State::Ok),
        ] {
            assert_eq!(own_certificate(until, now).state, state, "{until:?}");
        }
        assert_eq!(server_certificate(Some(now + HOUR), now).state, State::Failed);
        assert_eq!(server_certificate(None, now).state, State::Warning);
    }

    #[test]
    fn clocks_are_compared_within_the_time_of_the_call() {
        for (server, asked, answered, state) in [
            (1_000_500, 1_000_000, 1_001_000, State::Ok),
            (1_004_000, 1_000_000, 1_001_000, State::Warning),
            (900_000, 1_000_000, 1_001_000, State::Failed),
            (0, 1_000_000, 1_001_000, State::Ok),
        ] {
            assert_eq!(clock(server, asked, answered).state, state, "{server}");
        }
        assert!(clock(900_000, 1_000_000, 1_001_000).detail.contains("100.0 s behind"));
    }

    #[test]
    fn what_is_wrong_comes_with_advice() {
        let node = wire::Node { id: "n".into(), first_seen_at: 1, ..wire::Node::default() };
        let status = wire::StatusResponse {
            store: "etcd".into(),
            store_problem: "full".into(),
            nodes: vec![node],
            disks: vec![wire::Disk { r#use: "store".into(), free_bytes: 1, total_bytes: 100 }],
            open_files: 99,
            open_files_limit: 100,
            audit_backlog: 1_000_000,
            ..wire::StatusResponse::default()
        };
        let mut all = vec![store(&status), backlog(&status)];
        all.extend(nodes(&status));
        all.extend(disks(&status.disks));
        all.extend(open_files(&status));
        assert_eq!(all.len(), 5);
        assert!(all.iter().all(|check| check.state != State::Ok && !check.advice.is_empty()), "{all:?}");
        let credential = wire::Credential { name: "k".into(), unbound: true, ..wire::Credential::default() };
        assert_eq!(credentials(&[credential])[0].state, State::Failed);
        let quota_of = |tokens| wire::Tenant {
            quota: Some(wire::Quota { tokens: 10, ..wire::Quota::default() }),
            usage: Some(wire::Usage { tokens, ..wire::Usage::default() }),
            ..wire::Tenant::default()
        };
        assert_eq!((quota(&quota_of(9)).len(), quota(&quota_of(8)).len()), (1, 0));
    }
}
