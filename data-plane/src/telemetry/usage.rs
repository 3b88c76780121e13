//! What models have used, in the shape of OpenTelemetry's `gen_ai.client.token.usage`.

use std::{
    fmt::Write as _,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use dashmap::DashMap;
use seks_usage::Usage;

use super::UNLABELLED;

/// Most combinations of labels. A model's name comes from an upstream, so a further one shares
/// `_other`.
const MAX_SERIES: usize = 200;
/// Bounds of `gen_ai.client.token.usage`, as the conventions say: powers of 4.
const BOUNDS: [u64; 14] =
    [1, 4, 16, 64, 256, 1024, 4096, 16_384, 65_536, 262_144, 1_048_576, 4_194_304, 16_777_216, 67_108_864];

/// Whose usage it is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct UsageLabels<'a> {
    pub(crate) service: &'a str,
    pub(crate) provider: &'static str,
    pub(crate) operation: &'static str,
    /// `""`: unknown.
    pub(crate) model: &'a str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Key {
    service: Box<str>,
    provider: &'static str,
    operation: &'static str,
    model: Box<str>,
}

/// Tokens of one direction.
#[derive(Default)]
struct Tokens {
    buckets: [AtomicU64; BOUNDS.len() + 1],
    sum: AtomicU64,
}

#[derive(Default)]
struct Series {
    input: Tokens,
    output: Tokens,
    /// Answers that broke off or have no count.
    unknown: AtomicU64,
}

/// See the module.
#[derive(Default)]
pub(super) struct ModelUsage {
    series: DashMap<Key, Arc<Series>, foldhash::quality::RandomState>,
}

impl ModelUsage {
    pub(super) fn add(&self, labels: UsageLabels<'_>, usage: &Usage) {
        let series = self.of(labels);
        match usage.tokens() {
            (tokens, true) => {
                series.input.observe(tokens.input);
                series.output.observe(tokens.output);
            }
            (_, false) => {
                series.unknown.fetch_add(1, Relaxed);
            }
        }
    }

    fn of(&self, UsageLabels { service, provider, operation, model }: UsageLabels<'_>) -> Arc<Series> {
        let key =
            |service: &str, model: &str| Key { service: service.into(), provider, operation, model: model.into() };
        let own = key(service, model);
        if let Some(series) = self.series.get(&own) {
            return series.clone();
        }
        let is_full = self.series.len() >= MAX_SERIES;
        self.series.entry(if is_full { key(UNLABELLED, UNLABELLED) } else { own }).or_default().clone()
    }

    pub(super) fn render(&self, out: &mut String) {
        let mut series: Vec<_> = self.series.iter().map(|entry| (entry.key().clone(), entry.value().clone())).collect();
        series.sort_by(|a, b| a.0.cmp(&b.0));
        let name = "gen_ai_client_token_usage";
        let help = "Tokens of models' answers, of services with `usage`, as their providers count them.";
        let _ = write!(out, "# HELP {name} {help}\n# TYPE {name} histogram\n");
        for (key, series) in &series {
            for (direction, tokens) in [("input", &series.input), ("output", &series.output)] {
                let labels = format!("{},gen_ai_token_type=\"{direction}\"", key.labels());
                tokens.render(name, &labels, out);
            }
        }
        let name = "seks_usage_unknown_total";
        let help = "Models' answers that broke off or have no count of tokens.";
        let _ = write!(out, "# HELP {name} {help}\n# TYPE {name} counter\n");
        for (key, series) in &series {
            let _ = writeln!(out, "{name}{{{}}} {}", key.labels(), series.unknown.load(Relaxed));
        }
    }
}

impl Key {
    /// No label needs an escape: names of models and services have no quotes.
    fn labels(&self) -> String {
        let Self { service, provider, operation, model } = self;
        format!(
            "service=\"{service}\",gen_ai_provider_name=\"{provider}\",gen_ai_operation_name=\"{operation}\",gen_ai_response_model=\"{model}\""
        )
    }
}

impl Tokens {
    fn observe(&self, tokens: u64) {
        let bucket = BOUNDS.iter().position(|bound| tokens <= *bound).unwrap_or(BOUNDS.len());
        self.buckets.get(bucket).into_iter().for_each(|count| {
            count.fetch_add(1, Relaxed);
        });
        self.sum.fetch_add(tokens, Relaxed);
    }

    fn render(&self, name: &str, labels: &str, out: &mut String) {
        let mut count = 0;
        let bounds = BOUNDS.iter().map(ToString::to_string).chain(std::iter::once("+Inf".to_owned()));
        for (bucket, bound) in self.buckets.iter().zip(bounds) {
            count += bucket.load(Relaxed);
            let _ = writeln!(out, "{name}_bucket{{{labels},le=\"{bound}\"}} {count}");
        }
        let _ = writeln!(out, "{name}_sum{{{labels}}} {}\n{name}_count{{{labels}}} {count}", self.sum.load(Relaxed));
    }
}

#[cfg(test)]
mod tests {
    use seks_usage::{Tokens, Usage};

    use super::*;

    #[test]
    fn models_beyond_the_bound_share_a_series_and_unknown_usage_is_apart() {
        let usage = ModelUsage::default();
        let tokens = Tokens { input: 5, output: 300, ..Tokens::default() };
        fn labels(model: &str) -> UsageLabels<'_> {
            UsageLabels { service: "openai", provider: "openai", operation: "chat", model }
        }
        for n in 0..MAX_SERIES + 9 {
            usage.add(labels(&format!("m-{n}")), &Usage::Known(tokens));
        }
        usage.add(labels("m-0"), &Usage::Unknown { at_most: tokens });
        let mut page = String::new();
        usage.render(&mut page);
        let text = |service: &str, model: &str| {
            format!(
                "service=\"{service}\",gen_ai_provider_name=\"openai\",gen_ai_operation_name=\"chat\",gen_ai_response_model=\"{model}\""
            )
        };
        for line in [
            format!(
                "gen_ai_client_token_usage_bucket{{{},gen_ai_token_type=\"input\",le=\"4\"}} 0",
                text("openai", "m-0")
            ),
            format!(
                "gen_ai_client_token_usage_bucket{{{},gen_ai_token_type=\"input\",le=\"16\"}} 1",
                text("openai", "m-0")
            ),
            format!("gen_ai_client_token_usage_sum{{{},gen_ai_token_type=\"output\"}} 300", text("openai", "m-0")),
            format!("gen_ai_client_token_usage_count{{{},gen_ai_token_type=\"output\"}} 9", text("_other", "_other")),
            format!("seks_usage_unknown_total{{{}}} 1", text("openai", "m-0")),
        ] {
            assert!(page.lines().any(|l| l == line), "{line} is not in\n{page}");
        }
    }
}
