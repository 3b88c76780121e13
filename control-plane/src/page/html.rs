//! Parts of every page. `maud` escapes each value; addresses are made by [`path`] alone.

use std::time::{Duration, UNIX_EPOCH};

use maud::{DOCTYPE, Markup, html};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use super::stats::{BARS, Stats};
use crate::clock::unix_now;

/// The style sheet.
pub(super) const STYLE: &str = include_str!("page.css");
/// The icon.
pub(super) const ICON: &str = include_str!("icon.svg");

/// Characters of a segment or a query value that are not written as they are.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
/// Height of a chart in units of its picture, and the width of a bar with its gap.
const HEIGHT: usize = 96;
const STEP: usize = 10;

/// An address below `base`, of segments that may hold anything.
pub(super) fn path(base: &str, segments: &[&str]) -> String {
    let mut path = base.to_owned();
    for segment in segments {
        path.push('/');
        path.extend(utf8_percent_encode(segment, ESCAPED));
    }
    path
}

/// An address with a query; pairs with an empty value are left out.
pub(super) fn with_query(path: &str, pairs: &[(&str, &str)]) -> String {
    let pairs = pairs.iter().filter(|(_, value)| !value.is_empty());
    let pairs: Vec<String> =
        pairs.map(|(name, value)| format!("{name}={}", utf8_percent_encode(value, ESCAPED))).collect();
    if pairs.is_empty() { path.to_owned() } else { format!("{path}?{}", pairs.join("&")) }
}

/// Where a page is, and who reads it.
pub(super) struct Frame<'a> {
    pub(super) base: &'a str,
    pub(super) replica: &'a str,
    pub(super) operator: &'a str,
    pub(super) title: &'a str,
    /// Titles and addresses of the pages above.
    pub(super) above: Vec<(String, String)>,
    /// The address of this page, if it may load itself again; and whether it does.
    pub(super) live: Option<(String, bool)>,
}

/// Seconds between two loads of a live page.
const LIVE_SECONDS: u32 = 5;

/// A whole page.
pub(super) fn page(frame: &Frame<'_>, content: &Markup) -> Markup {
    let is_live = frame.live.as_ref().is_some_and(|(_, is_live)| *is_live);
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                @if is_live { meta http-equiv="refresh" content=(LIVE_SECONDS); }
                title { (frame.title) " · SEKS" }
                link rel="icon" href="/icon.svg" type="image/svg+xml";
                link rel="stylesheet" href="/page.css";
            }
            body {
                header {
                    a.brand href=(format!("{}/", frame.base)) { "SEKS" }
                    nav aria-label="Position" {
                        @for (title, address) in &frame.above { span.sep { "/" } a href=(address) { (title) } }
                        span.sep { "/" } span.here { (frame.title) }
                    }
                    div.who {
                        @if let Some((address, is_live)) = &frame.live {
                            @if *is_live { a.live href=(address) title="Stop loading this page again" { "live" } }
                            @else { a href=(with_query(address, &[("live", "1")])) title="Load this page again every 5 s" { "go live" } }
                        }
                        span { "replica " b { (frame.replica) } }
                        span { (frame.operator) }
                        time { (clock()) }
                    }
                }
                main { (content) }
            }
        }
    }
}

/// A page without a session: one sentence, and what to do.
fn notice(title: &str, text: &Markup) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { (title) " · SEKS" }
                link rel="icon" href="/icon.svg" type="image/svg+xml";
                link rel="stylesheet" href="/page.css";
            }
            body { main.notice { h1 { (title) } p { (text) } } }
        }
    }
}

/// Leads on to the session at `base`.
pub(super) fn opened(base: &str) -> Markup {
    notice("Opened", &html! { a href=(base) { "Continue" } })
}

/// The answer to a link that was opened before, or too late.
pub(super) fn link_is_spent() -> Markup {
    notice(
        "This link was used or has expired",
        &html! { "A link opens the page once. " code { "seks page" } " prints another." },
    )
}

/// The answer to an address of a session that has ended.
pub(super) fn session_is_over() -> Markup {
    notice("This session has ended", &html! { code { "seks page" } " prints a new link." })
}

/// The answer without certificate and session.
pub(super) fn nobody() -> Markup {
    notice("Open the page with a link", &html! { code { "seks page" } " prints a link for this browser." })
}

/// The answer to a certificate that is not an operator's.
pub(super) fn no_operator() -> Markup {
    notice(
        "The certificate is not that of an operator",
        &html! { code { "seks page" } " prints a link for this browser." },
    )
}

/// The answer to a view that cannot be shown.
pub(super) fn failed(base: &str, why: &str) -> Markup {
    notice("This cannot be shown", &html! { (why) " · " a href=(format!("{base}/")) { "Overview" } })
}

/// A number with a label.
pub(super) fn card(label: &str, value: &str, note: &str, state: State) -> Markup {
    html! {
        div class=(format!("card {}", state.class())) {
            span.label { (label) }
            span.value { (value) }
            span.note { (note) }
        }
    }
}

/// How something is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Plain,
    Good,
    Warning,
    Bad,
}

impl State {
    pub(super) fn class(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Good => "good",
            Self::Warning => "warning",
            Self::Bad => "bad",
        }
    }
}

/// A word in a coloured frame.
pub(super) fn pill(text: &str, state: State) -> Markup {
    html! { span class=(format!("pill {}", state.class())) { (text) } }
}

/// A table in a panel. Without rows it is the sentence `empty`.
pub(super) fn table(columns: &[&str], rows: &[Markup], empty: &str) -> Markup {
    if rows.is_empty() {
        return html! { p.empty { (empty) } };
    }
    html! {
        div.scroll {
            table {
                thead { tr { @for column in columns { th scope="col" class=[is_number(column).then_some("number")] { (column.trim_start_matches('#')) } } } }
                tbody { @for row in rows { tr { (row) } } }
            }
        }
    }
}

/// Columns of numbers are aligned at the right; `#` marks them.
fn is_number(column: &str) -> bool {
    column.starts_with('#')
}

/// A panel with a title.
pub(super) fn panel(title: &str, content: &Markup) -> Markup {
    html! { section { h2 { (title) } (content) } }
}

/// Names and values; empty values are left out.
pub(super) fn facts(facts: &[(&str, Markup)]) -> Markup {
    html! {
        dl {
            @for (name, value) in facts.iter().filter(|(_, value)| !value.0.is_empty()) {
                dt { (name) } dd { (value) }
            }
        }
    }
}

/// Text as a fact.
pub(super) fn text(text: &str) -> Markup {
    html! { (text) }
}

/// Requests a minute over the last hour, refused ones on top.
pub(super) fn chart(stats: &Stats) -> Markup {
    let highest = stats.bars.iter().map(|bar| bar.allowed + bar.refused).max().unwrap_or_default().max(1);
    let height = |count: usize| if count == 0 { 0 } else { (count * HEIGHT / highest).max(2) };
    let bars: Vec<(usize, usize, usize, String)> = stats
        .bars
        .iter()
        .enumerate()
        .map(|(at, bar)| {
            let ago = BARS - at;
            let label = format!("{ago} min ago: {} allowed, {} refused", bar.allowed, bar.refused);
            (at * STEP, height(bar.allowed), height(bar.refused), label)
        })
        .collect();
    html! {
        figure.chart {
            figcaption {
                span.key.allowed {} "allowed " span.key.refused {} "refused, a minute; at most " (highest)
                @if let Some(cut) = stats.cut_at_us { " · only the newest requests are counted, since " (time_of_day(cut)) }
            }
            svg viewBox=(format!("0 0 {} {HEIGHT}", BARS * STEP)) preserveAspectRatio="none" role="img" aria-label="Requests a minute over the last hour" {
                @for (x, allowed, refused, label) in &bars {
                    g {
                        title { (label) }
                        rect.space x=(x) y="0" width=(STEP) height=(HEIGHT) {}
                        rect.allowed x=(x + 1) y=(HEIGHT.saturating_sub(*allowed)) width=(STEP - 2) height=(allowed) {}
                        rect.refused x=(x + 1) y=(HEIGHT.saturating_sub(allowed + refused)) width=(STEP - 2) height=(refused) {}
                    }
                }
            }
            div.axis { span { "60 min ago" } span { "30" } span { "now" } }
        }
    }
}

/// A link to further rows.
pub(super) fn next_page(address: &str, token: &str) -> Markup {
    html! { @if !token.is_empty() { p.next { a href=(with_query(address, &[("page", token)])) { "Next page" } } } }
}

/// Unix seconds for people: how long ago, with the time itself as a hint. `""` for 0.
pub(super) fn ago(unix_seconds: i64) -> Markup {
    if unix_seconds <= 0 {
        return html! {};
    }
    let text = format!("{} ago", span(unix_now() - unix_seconds));
    html! { time title=(rfc3339(unix_seconds)) { (text) } }
}

/// Unix seconds for people: how long until then. "never" for 0.
pub(super) fn until(unix_seconds: i64) -> Markup {
    match unix_seconds - unix_now() {
        _ if unix_seconds == 0 => html! { "never" },
        left if left <= 0 => pill("expired", State::Bad),
        left => html! { time title=(rfc3339(unix_seconds)) { "in " (span(left)) } },
    }
}

/// A duration in its largest unit.
fn span(seconds: i64) -> String {
    match seconds.max(0) {
        s @ 0..120 => format!("{s} s"),
        s @ 120..7200 => format!("{} min", s / 60),
        s @ 7200..172_800 => format!("{} h", s / 3600),
        s => format!("{} d", s / 86_400),
    }
}

/// Unix seconds as RFC 3339.
pub(super) fn rfc3339(unix_seconds: i64) -> String {
    let at = UNIX_EPOCH.checked_add(Duration::from_secs(u64::try_from(unix_seconds).unwrap_or_default()));
    at.map(|at| humantime::format_rfc3339_seconds(at).to_string()).unwrap_or_default()
}

/// Unix microseconds as `2026-01-31 12:03:44.123`, UTC.
pub(super) fn date_and_time(unix_micros: u64) -> String {
    let at = UNIX_EPOCH.checked_add(Duration::from_micros(unix_micros));
    let text = at.map(|at| humantime::format_rfc3339_millis(at).to_string()).unwrap_or_default();
    text.trim_end_matches('Z').replace('T', " ")
}

/// Unix microseconds as `12:03:44`, UTC.
pub(super) fn time_of_day(unix_micros: u64) -> String {
    date_and_time(unix_micros).get(11..19).unwrap_or_default().to_owned()
}

fn clock() -> String {
    format!("{} UTC", rfc3339(unix_now()).get(..19).unwrap_or_default().replace('T', " "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_holds_any_name_as_one_segment() {
        assert_eq!(path("/p/x", &["t", "a/b?c#d", "\"><script>"]), "/p/x/t/a%2Fb%3Fc%23d/%22%3E%3Cscript%3E");
        assert_eq!(with_query("/a", &[("q", "x&y=z"), ("empty", "")]), "/a?q=x%26y%3Dz");
    }

    #[test]
    fn text_is_never_markup() {
        let hostile = "\"'><img src=x onerror=alert(1)>";
        let frame =
            Frame { base: "", replica: hostile, operator: hostile, title: hostile, above: Vec::new(), live: None };
        let shown =
            page(&frame, &html! { (card(hostile, hostile, hostile, State::Bad)) (pill(hostile, State::Bad)) }).0;
        assert!(!shown.contains("<img") && shown.contains("&lt;img"), "{shown}");
    }
}
