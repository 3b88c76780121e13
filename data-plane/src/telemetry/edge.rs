//! What the listeners and the HTTP libraries refuse before there is a request.

use std::{
    fmt::Write as _,
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use seks_runtime::{connections::Connections, http2::Http2Rejection};

use crate::http::server::Balancers;

/// Names of HTTP/2's error codes (RFC 9113, 7), by number.
const CODES: [&str; 14] = [
    "no_error",
    "protocol_error",
    "internal_error",
    "flow_control_error",
    "settings_timeout",
    "stream_closed",
    "frame_size_error",
    "refused_stream",
    "cancel",
    "compression_error",
    "connect_error",
    "enhance_your_calm",
    "inadequate_security",
    "http_1_1_required",
];

/// Counters of the edge.
#[derive(Default)]
pub struct Edge {
    header_list: AtomicU64,
    flood: AtomicU64,
    streams: [AtomicU64; CODES.len()],
    connections: [AtomicU64; CODES.len()],
    listeners: OnceLock<Vec<(&'static str, Connections)>>,
    balancers: OnceLock<Balancers>,
}

impl Edge {
    /// Counts what the HTTP/2 library, or the frame budget, has refused.
    pub fn refused(&self, refused: Http2Rejection) {
        let of = |counters: &[AtomicU64; CODES.len()], code: u32| {
            let code = usize::try_from(code).unwrap_or_default();
            if let Some(counter) = counters.get(code).or(counters.get(1)) {
                counter.fetch_add(1, Relaxed);
            }
        };
        match refused {
            Http2Rejection::HeaderList => drop(self.header_list.fetch_add(1, Relaxed)),
            Http2Rejection::Flood => drop(self.flood.fetch_add(1, Relaxed)),
            Http2Rejection::Stream(code) => of(&self.streams, code),
            Http2Rejection::Connection(code) => of(&self.connections, code),
        }
    }

    /// Shows the connections of these listeners. The first call counts.
    pub fn listeners(&self, listeners: Vec<(&'static str, Connections)>) {
        let _ = self.listeners.set(listeners); // Err: they are known
    }

    /// Shows how many connections of balancers were refused. The first call counts.
    pub fn balancers(&self, balancers: Balancers) {
        let _ = self.balancers.set(balancers); // Err: they are known
    }

    pub(super) fn render(&self, out: &mut String) {
        let name = "seks_http2_refused_total";
        let help = "Streams and connections that were refused before there was a request.";
        let _ = write!(out, "# HELP {name} {help}\n# TYPE {name} counter\n");
        let mut line = |what: &str, reason: &str, count: &AtomicU64| {
            let count = count.load(Relaxed);
            if count > 0 || reason == "flood" {
                let _ = writeln!(out, "{name}{{refused=\"{what}\",reason=\"{reason}\"}} {count}");
            }
        };
        line("connection", "flood", &self.flood);
        line("stream", "header_list_too_large", &self.header_list);
        for (reason, count) in CODES.iter().zip(&self.streams) {
            line("stream", reason, count);
        }
        for (reason, count) in CODES.iter().zip(&self.connections) {
            line("connection", reason, count);
        }
        let rejected = self.balancers.get().map_or(0, Balancers::rejected);
        let name = "seks_proxy_protocol_rejected_total";
        let help = "Connections of balancers that did not begin with a PROXY protocol header.";
        let _ = write!(out, "# HELP {name} {help}\n# TYPE {name} counter\n{name} {rejected}\n");
        let listeners = self.listeners.get().map(Vec::as_slice).unwrap_or_default();
        let name = "seks_connections";
        let _ = write!(out, "# HELP {name} Agents' connections.\n# TYPE {name} gauge\n");
        for (listener, connections) in listeners {
            let _ = writeln!(out, "{name}{{listener=\"{listener}\"}} {}", connections.len());
        }
        let name = "seks_connections_evicted_total";
        let help = "Silent or idle connections that were closed to make room for others.";
        let _ = write!(out, "# HELP {name} {help}\n# TYPE {name} counter\n");
        for (listener, connections) in listeners {
            let _ = writeln!(out, "{name}{{listener=\"{listener}\"}} {}", connections.evicted());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_is_counted_under_its_reason() {
        let edge = Edge::default();
        let connections = Connections::new(1, 1);
        edge.listeners(vec![("proxy", connections.clone())]);
        for refused in [
            Http2Rejection::HeaderList,
            Http2Rejection::Stream(1),
            Http2Rejection::Connection(11),
            Http2Rejection::Connection(99),
        ] {
            edge.refused(refused);
        }
        let mut text = String::new();
        edge.render(&mut text);
        for line in [
            r#"seks_http2_refused_total{refused="stream",reason="header_list_too_large"} 1"#,
            r#"seks_http2_refused_total{refused="stream",reason="protocol_error"} 1"#,
            r#"seks_http2_refused_total{refused="connection",reason="enhance_your_calm"} 1"#,
            r#"seks_http2_refused_total{refused="connection",reason="protocol_error"} 1"#,
            r#"seks_http2_refused_total{refused="connection",reason="flood"} 0"#,
            r#"seks_connections{listener="proxy"} 0"#,
            r#"seks_connections_evicted_total{listener="proxy"} 0"#,
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
    }
}
