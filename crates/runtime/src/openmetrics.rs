//! Prometheus' text format as OpenMetrics 1.0, which is the form that carries exemplars.
//!
//! Metrics are written once, in the older format. An exemplar stands behind its bucket there, where
//! the older format has a comment ([`EXEMPLAR`]). The older form leaves these out.

use std::fmt::Write as _;

/// Separates a sample and its exemplar. No label of ours can contain it: labels are names.
const EXEMPLAR: &str = " # {";

/// The media type of OpenMetrics.
pub const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// The media type of Prometheus' text format.
pub const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Whether a client that sends this `Accept` wants OpenMetrics.
#[must_use]
pub fn is_wanted(accept: &str) -> bool {
    accept.split(',').any(|range| {
        let mut parts = range.split(';').map(str::trim);
        let is_open = parts.next() == Some("application/openmetrics-text");
        is_open && !parts.any(|part| matches!(part, "q=0" | "q=0.0"))
    })
}

/// The page without its exemplars.
#[must_use]
pub fn without_exemplars(page: &str) -> String {
    let mut out = String::with_capacity(page.len());
    for line in page.lines() {
        let sample = if line.starts_with('#') { line } else { line.split(EXEMPLAR).next().unwrap_or(line) };
        let _ = writeln!(out, "{sample}"); // a String takes everything
    }
    out
}

/// Two pages as one. A family that both have is in it once.
#[must_use]
pub fn merge(page: &str, other: &str) -> String {
    let mut families: Vec<(&str, Vec<&str>)> = Vec::new();
    for text in [page, other] {
        let mut current = None;
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                let name = rest.split(' ').next().unwrap_or(rest);
                let known = families.iter().position(|(known, _)| *known == name);
                current = Some((known.unwrap_or(families.len()), known.is_some()));
                if known.is_none() {
                    families.push((name, Vec::new()));
                }
            }
            let Some((at, is_known)) = current else { continue };
            if let Some((_, lines)) = families.get_mut(at)
                && !(is_known && line.starts_with('#'))
            {
                lines.push(line);
            }
        }
    }
    let lines = families.iter().flat_map(|(_, lines)| lines);
    lines.fold(String::with_capacity(page.len() + other.len()), |page, line| page + line + "\n")
}

/// The page in OpenMetrics. The family of a counter is named without `_total`, and the page has an
/// end.
#[must_use]
pub fn from_text(page: &str) -> String {
    let mut out = String::with_capacity(page.len() + 16);
    // HELP comes before TYPE, which says whether its name is a counter's.
    let mut help: Option<&str> = None;
    for line in page.lines().filter(|line| !line.is_empty()) {
        if let Some(text) = line.strip_prefix("# HELP ") {
            help = Some(text);
        } else if let Some(text) = line.strip_prefix("# TYPE ") {
            let (name, kind) = text.split_once(' ').unwrap_or((text, "unknown"));
            let (family, kind) = match (kind, name.strip_suffix("_total")) {
                ("counter", Some(family)) => (family, kind),
                ("counter", None) | ("untyped", _) => (name, "unknown"),
                _ => (name, kind),
            };
            let _ = writeln!(out, "# TYPE {family} {kind}");
            let text = help.take().and_then(|help| help.strip_prefix(name));
            if let Some(text) = text.map(str::trim).filter(|text| !text.is_empty()) {
                let _ = writeln!(out, "# HELP {family} {text}");
            }
        } else if !line.starts_with('#') {
            let _ = writeln!(out, "{line}");
        }
    }
    out.push_str("# EOF\n");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "# HELP seks_a_total Things.\n# TYPE seks_a_total counter\nseks_a_total{x=\"y\"} 3\n\
                        # HELP seks_b Some.\n# TYPE seks_b gauge\nseks_b -1.5\n\
                        # HELP seks_c_seconds Times.\n# TYPE seks_c_seconds histogram\n\
                        seks_c_seconds_bucket{le=\"1\"} 2 # {trace_id=\"ab\"} 0.5 1700000000.5\n\
                        seks_c_seconds_bucket{le=\"+Inf\"} 2\nseks_c_seconds_sum 1\nseks_c_seconds_count 2\n";

    #[test]
    fn a_page_is_translated() {
        let expected = "# TYPE seks_a counter\n# HELP seks_a Things.\nseks_a_total{x=\"y\"} 3\n\
                        # TYPE seks_b gauge\n# HELP seks_b Some.\nseks_b -1.5\n\
                        # TYPE seks_c_seconds histogram\n# HELP seks_c_seconds Times.\n\
                        seks_c_seconds_bucket{le=\"1\"} 2 # {trace_id=\"ab\"} 0.5 1700000000.5\n\
                        seks_c_seconds_bucket{le=\"+Inf\"} 2\nseks_c_seconds_sum 1\nseks_c_seconds_count 2\n# EOF\n";
        assert_eq!(from_text(PAGE), expected);
        assert_eq!(without_exemplars(PAGE), PAGE.replace(" # {trace_id=\"ab\"} 0.5 1700000000.5", ""));
    }

    #[test]
    fn a_family_of_both_pages_is_there_once() {
        let other = "# HELP seks_b Some.\n# TYPE seks_b gauge\nseks_b{x=\"y\"} 2\n# HELP d D.\n# TYPE d gauge\nd 1\n";
        let expected =
            PAGE.replace("seks_b -1.5\n", "seks_b -1.5\nseks_b{x=\"y\"} 2\n") + "# HELP d D.\n# TYPE d gauge\nd 1\n";
        assert_eq!(merge(PAGE, other), expected);
    }

    #[test]
    fn clients_choose_by_accept() {
        let prometheus = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,\
                          text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        assert!(is_wanted(prometheus) && is_wanted("application/openmetrics-text"));
        assert!(!is_wanted("text/plain") && !is_wanted("*/*") && !is_wanted(""));
        assert!(!is_wanted("application/openmetrics-text;q=0, text/plain"));
    }
}
