//! What is counted of one service.

use std::{
    fmt::Write as _,
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use http::StatusCode;

use super::histogram::{self, Histogram};
use crate::code::Code;

/// Kinds of headers that are not forwarded: the label `header`.
pub(crate) const DROPPED_KINDS: [&str; 8] =
    ["credential", "cookie", "range", "trace", "forwarded", "underscore", "connection", "token"];
/// The same of what comes behind a body.
const TRAILER: &str = "trailer";

/// How a request ended.
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    /// What was decided.
    pub allowed: bool,
    /// Why it was refused, or why an allowed one failed.
    pub reason: Option<Code>,
    /// The status of the answer; `None`: there was none, or it broke off.
    pub status: Option<StatusCode>,
}

/// How long a request took, and its upstream.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// The whole request.
    pub whole: Duration,
    /// From sending it to the head of the upstream's answer; `None`: there was none.
    pub upstream: Option<Duration>,
}

/// Index 0 is "no reason".
const REASONS: usize = Code::ALL.len() + 1;
const CLASSES: [&str; 6] = ["aborted", "1xx", "2xx", "3xx", "4xx", "5xx"];

/// Classes of an upstream's answers: the label `class`.
const UPSTREAM_CLASSES: [&str; 8] = ["1xx", "2xx", "3xx", "4xx", "5xx", "401", "403", "429"];

/// Counters of one service, resolved once a request.
pub struct ServiceMetrics {
    name: Box<str>,
    duration: Histogram,
    upstream_duration: Histogram,
    upstream: [AtomicU64; UPSTREAM_CLASSES.len()],
    audited: AtomicU64,
    requests: [[[AtomicU64; CLASSES.len()]; REASONS]; 2],
    scrubbed: AtomicU64,
    headers_dropped: [AtomicU64; DROPPED_KINDS.len()],
    trailers_dropped: AtomicU64,
    /// Times that a request was sent again.
    resends: AtomicU64,
    active: AtomicI64,
    idle: AtomicI64,
}

impl ServiceMetrics {
    pub(super) fn new(name: &str) -> Self {
        let zeros = || std::array::from_fn(|_| std::array::from_fn(|_| AtomicU64::new(0)));
        Self {
            name: name.into(),
            duration: Histogram::new(),
            upstream_duration: Histogram::new(),
            upstream: Default::default(),
            audited: AtomicU64::new(0),
            requests: [zeros(), zeros()],
            scrubbed: AtomicU64::new(0),
            headers_dropped: Default::default(),
            trailers_dropped: AtomicU64::new(0),
            resends: AtomicU64::default(),
            active: AtomicI64::new(0),
            idle: AtomicI64::new(0),
        }
    }

    /// Its label.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Counts a request that has ended, and how often something was scrubbed from its answer.
    pub fn count(&self, outcome: Outcome, scrubbed: u32) {
        let reason = outcome.reason.map_or(0, |r| 1 + r as usize);
        let class = outcome.status.map_or(0, |s| usize::from(s.as_u16() / 100).min(5));
        let reasons = self.requests.get(usize::from(outcome.allowed));
        if let Some(counter) = reasons.and_then(|r| r.get(reason)).and_then(|c| c.get(class)) {
            counter.fetch_add(1, Relaxed);
        }
        if scrubbed > 0 {
            self.scrubbed.fetch_add(scrubbed.into(), Relaxed);
        }
    }

    /// Adds how long a request took. `trace` is its trace, and when it ended.
    pub fn took(&self, times: Times, trace: Option<(&[u8; 16], Duration)>) {
        match trace {
            Some((id, now)) => self.duration.observe_traced(times.whole, id, now),
            None => self.duration.observe(times.whole),
        }
        match (times.upstream, trace) {
            (Some(upstream), Some((id, now))) => self.upstream_duration.observe_traced(upstream, id, now),
            (Some(upstream), None) => self.upstream_duration.observe(upstream),
            (None, _) => {}
        }
    }

    /// Counts an answer of the upstream.
    pub fn upstream_answered(&self, status: StatusCode) {
        let class = match status.as_u16() {
            401 => 5,
            403 => 6,
            429 => 7,
            other => usize::from(other / 100).clamp(1, 5) - 1,
        };
        if let Some(counter) = self.upstream.get(class) {
            counter.fetch_add(1, Relaxed);
        }
    }

    /// Counts a request that policies in audit mode would have decided otherwise.
    pub fn audited(&self) {
        self.audited.fetch_add(1, Relaxed);
    }

    /// Counts a request that is sent again.
    pub(crate) fn resent(&self) {
        self.resends.fetch_add(1, Relaxed);
    }

    /// Counts headers of a request that were not forwarded, in the order of [`DROPPED_KINDS`].
    pub(crate) fn headers_dropped(&self, counts: &[u16; DROPPED_KINDS.len()]) {
        for (total, count) in self.headers_dropped.iter().zip(counts).filter(|(_, count)| **count > 0) {
            total.fetch_add((*count).into(), Relaxed);
        }
    }

    /// Counts trailers of a request that were not forwarded.
    pub(crate) fn trailers_dropped(&self, count: u16) {
        if count > 0 {
            self.trailers_dropped.fetch_add(count.into(), Relaxed);
        }
    }

    /// Whether anything was counted.
    pub(super) fn is_used(&self) -> bool {
        self.requests.iter().flatten().flatten().any(|count| count.load(Relaxed) > 0)
    }

    /// Whether there are connections to its upstream.
    pub(super) fn has_connections(&self) -> bool {
        self.active.load(Relaxed) != 0 || self.idle.load(Relaxed) != 0
    }

    /// Upstream connections in use (`active`) or kept for the next request, more or fewer by
    /// `change`.
    pub fn connections(&self, active: bool, change: i64) {
        if active { &self.active } else { &self.idle }.fetch_add(change, Relaxed);
    }
}

pub(super) fn render(services: &[Arc<ServiceMetrics>], out: &mut String) {
    let name = "seks_proxy_requests_total";
    let _ = write!(out, "# HELP {name} Requests, refused ones included.\n# TYPE {name} counter\n");
    for service in services {
        render_requests(service, name, out);
    }
    let name = "seks_scrubbed_total";
    let _ = write!(out, "# HELP {name} Occurrences of a credential removed from answers.\n# TYPE {name} counter\n");
    for service in services {
        let _ = writeln!(out, "{name}{{service=\"{}\"}} {}", service.name, service.scrubbed.load(Relaxed));
    }
    render_headers_dropped(services, out);
    let name = "seks_policy_audited_total";
    let help = "Requests that policies in audit mode would have decided otherwise.";
    let _ = write!(out, "# HELP {name} {help}\n# TYPE {name} counter\n");
    for service in services {
        let _ = writeln!(out, "{name}{{service=\"{}\"}} {}", service.name, service.audited.load(Relaxed));
    }
    render_upstream(services, out);
    let name = "seks_upstream_resends_total";
    let _ = write!(out, "# HELP {name} Requests that were sent to an upstream again.\n# TYPE {name} counter\n");
    for service in services.iter().filter(|s| !s.name.is_empty()) {
        let _ = writeln!(out, "{name}{{service=\"{}\"}} {}", service.name, service.resends.load(Relaxed));
    }
    let name = "seks_upstream_connections";
    let _ = write!(out, "# HELP {name} Connections to upstreams.\n# TYPE {name} gauge\n");
    for service in services.iter().filter(|s| !s.name.is_empty()) {
        for (state, count) in [("active", &service.active), ("idle", &service.idle)] {
            let count = count.load(Relaxed);
            let _ = writeln!(out, "{name}{{service=\"{}\",state=\"{state}\"}} {count}", service.name);
        }
    }
}

/// Answers of upstreams, and how long everything took.
fn render_upstream(services: &[Arc<ServiceMetrics>], out: &mut String) {
    let name = "seks_upstream_responses_total";
    let help = "Answers of upstreams, by class of status; 401, 403 and 429 by themselves.";
    let _ = write!(out, "# HELP {name} {help}\n# TYPE {name} counter\n");
    for service in services {
        for (class, count) in UPSTREAM_CLASSES.iter().zip(&service.upstream) {
            let count = count.load(Relaxed);
            if count > 0 {
                let _ = writeln!(out, "{name}{{service=\"{}\",class=\"{class}\"}} {count}", service.name);
            }
        }
    }
    let labels = |service: &ServiceMetrics| format!("service=\"{}\",", service.name);
    let whole = services.iter().map(|service| (labels(service), &service.duration));
    histogram::render("seks_proxy_request_duration_seconds", "Whole requests.", whole, out);
    let upstream = services.iter().map(|service| (labels(service), &service.upstream_duration));
    let help = "From sending a request to the head of the upstream's answer.";
    histogram::render("seks_upstream_duration_seconds", help, upstream, out);
}

/// Kinds that have occurred.
fn render_headers_dropped(services: &[Arc<ServiceMetrics>], out: &mut String) {
    let name = "seks_request_headers_dropped_total";
    let _ = write!(out, "# HELP {name} Headers of agents that were not forwarded, by kind.\n# TYPE {name} counter\n");
    for service in services {
        let trailers = std::iter::once((&TRAILER, &service.trailers_dropped));
        for (kind, count) in DROPPED_KINDS.iter().zip(&service.headers_dropped).chain(trailers) {
            let count = count.load(Relaxed);
            if count > 0 {
                let _ = writeln!(out, "{name}{{service=\"{}\",header=\"{kind}\"}} {count}", service.name);
            }
        }
    }
}

/// Combinations that have occurred; the others would be some 200 lines of zeros a service.
fn render_requests(service: &ServiceMetrics, name: &str, out: &mut String) {
    let reasons = || std::iter::once("").chain(Code::ALL.iter().map(|c| c.as_str()));
    for (decision, by_reason) in ["deny", "allow"].iter().zip(&service.requests) {
        for (reason, by_class) in reasons().zip(by_reason) {
            for (class, count) in CLASSES.iter().zip(by_class) {
                let count = count.load(Relaxed);
                if count > 0 {
                    let labels = format_args!(
                        "service=\"{}\",decision=\"{decision}\",reason=\"{reason}\",status_class=\"{class}\"",
                        service.name
                    );
                    let _ = writeln!(out, "{name}{{{labels}}} {count}");
                }
            }
        }
    }
}
