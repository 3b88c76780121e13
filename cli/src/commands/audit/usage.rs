//! `seks usage`: what models have used, added up from the records of requests.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Args, ValueEnum};
use seks_proto::wire::{AuditRecord, SearchAuditRequest};
use seks_usage::{MICROS_PER_USD, Prices, Tokens};
use serde::Serialize;

use super::{PAGE, outcome, replicas::Replicas};
use crate::{
    error::{CliError, Result},
    global::Global,
    moment::{Moment, moment, period},
    output::{View, rfc3339_micros},
};

/// Which usage, and how it is added up.
#[derive(Debug, Args)]
pub struct UsageArgs {
    /// What is told apart
    #[arg(long, value_name = "LIST", value_enum, value_delimiter = ',', default_value = "agent,service,model")]
    by: Vec<Dimension>,
    /// From when on: so long ago, or a date or time in UTC
    #[arg(long, value_name = "AGO|TIME", default_value = "30d", value_parser = moment)]
    since: Moment,
    /// Until when, in the same forms [default: now]
    #[arg(long, value_name = "AGO|TIME", value_parser = moment)]
    until: Option<Moment>,
    /// Of this agent
    #[arg(long, value_name = "NAME")]
    agent: Option<String>,
    /// Show what it cost, by a file of prices (deploy/examples/prices.toml)
    #[arg(long, value_name = "FILE")]
    prices: Option<PathBuf>,
    /// Of this service
    #[arg(long, value_name = "NAME")]
    service: Option<String>,
}

/// What rows are told apart by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
enum Dimension {
    Tenant,
    Agent,
    Service,
    Model,
}

/// One row: a dimension that is not told apart is absent.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
struct Row {
    #[serde(skip_serializing_if = "Option::is_none")]
    tenant: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    agent: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    service: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<String>,
}

#[derive(Clone, Debug, Default, Serialize)]
struct Sums {
    requests: u64,
    /// Cached ones included.
    input_tokens: u64,
    /// Reasoning included. Of answers with a count alone.
    output_tokens: u64,
    cached_tokens: u64,
    cache_written_tokens: u64,
    reasoning_tokens: u64,
    /// Requests whose answer broke off or has no count.
    unknown_requests: u64,
    /// Upper bound of their output, by its bytes.
    unknown_output_tokens: u64,
    /// What the tokens that were counted cost. Absent without prices.
    #[serde(skip_serializing_if = "Option::is_none")]
    cost_usd: Option<f64>,
    /// Requests with a count whose model has no price. Absent without prices.
    #[serde(skip_serializing_if = "Option::is_none")]
    unpriced_requests: Option<u64>,
    #[serde(skip)]
    cost_micros: u64,
}

#[derive(Clone, Debug, Serialize)]
struct UsageView {
    #[serde(flatten)]
    row: Row,
    #[serde(flatten)]
    sums: Sums,
}

impl View for UsageView {
    const COLUMNS: &'static [&'static str] =
        &["agent", "service", "model", "requests", "input", "cached", "output", "reasoning", "unknown"];
    fn row(&self) -> Vec<String> {
        let name = |name: &Option<String>| name.clone().unwrap_or_else(|| "*".into());
        let Sums { requests, input_tokens, cached_tokens, output_tokens, reasoning_tokens, unknown_requests, .. } =
            self.sums;
        let mut cells = vec![name(&self.row.agent), name(&self.row.service), name(&self.row.model)];
        let numbers = [requests, input_tokens, cached_tokens, output_tokens, reasoning_tokens, unknown_requests];
        cells.extend(numbers.iter().map(ToString::to_string));
        cells
    }
}

impl Row {
    fn of(record: &AuditRecord, by: &[Dimension]) -> Self {
        let told = |dimension, name: &String| by.contains(&dimension).then(|| name.clone());
        Self {
            tenant: told(Dimension::Tenant, &record.tenant),
            agent: told(Dimension::Agent, &record.agent),
            service: told(Dimension::Service, &record.service),
            model: told(Dimension::Model, &record.model),
        }
    }
}

impl Sums {
    /// Adds what a record's tokens cost, if its count is known.
    fn add_cost(&mut self, record: &AuditRecord, prices: &Prices) {
        let unpriced = self.unpriced_requests.get_or_insert(0);
        if !record.usage_unknown {
            let tokens = Tokens {
                input: record.input_tokens,
                output: record.output_tokens,
                cached: record.cached_tokens,
                cache_written: record.cache_written_tokens,
                reasoning: record.reasoning_tokens,
            };
            let began = rfc3339_micros(record.began_us);
            let day = began.get(..10).unwrap_or_default();
            match prices.cost(&record.provider, &record.model, day, &tokens) {
                Some(cost) => self.cost_micros = self.cost_micros.saturating_add(cost),
                None => *unpriced += 1,
            }
        }
        self.cost_usd = Some(self.cost_micros as f64 / MICROS_PER_USD as f64);
    }

    fn add(&mut self, record: &AuditRecord) {
        self.requests += 1;
        self.input_tokens = self.input_tokens.saturating_add(record.input_tokens);
        self.cached_tokens = self.cached_tokens.saturating_add(record.cached_tokens);
        self.cache_written_tokens = self.cache_written_tokens.saturating_add(record.cache_written_tokens);
        self.reasoning_tokens = self.reasoning_tokens.saturating_add(record.reasoning_tokens);
        let output = match record.usage_unknown {
            false => &mut self.output_tokens,
            true => {
                self.unknown_requests += 1;
                &mut self.unknown_output_tokens
            }
        };
        *output = output.saturating_add(record.output_tokens);
    }
}

/// Adds up the usage of the tenant that was named, else of the whole fleet where the operator may
/// see it. It reads every record of the time.
///
/// # Errors
/// See [`crate::error`].
pub async fn run(global: &Global, args: UsageArgs) -> Result<ExitCode> {
    let (since_us, until_us) = period(args.since, args.until)?;
    let request = SearchAuditRequest {
        since_us,
        until_us,
        page_size: PAGE,
        decision: "allow".into(),
        agent: args.agent.unwrap_or_default(),
        service: args.service.unwrap_or_default(),
        ..SearchAuditRequest::default()
    };
    let prices = args.prices.as_deref().map(read_prices).transpose()?;
    let mut replicas = Replicas::search(global, request).await?;
    let mut rows: BTreeMap<Row, Sums> = BTreeMap::new();
    while let Some(entry) = replicas.next().await? {
        if let Some(record) = entry.record.filter(|record| !record.provider.is_empty()) {
            let sums = rows.entry(Row::of(&record, &args.by)).or_default();
            sums.add(&record);
            prices.iter().for_each(|prices| sums.add_cost(&record, prices));
        }
    }
    let mut views: Vec<_> = rows.into_iter().map(|(row, sums)| UsageView { row, sums }).collect();
    let total = |sums: &Sums| sums.input_tokens.saturating_add(sums.output_tokens);
    views.sort_by_key(|view| std::cmp::Reverse(total(&view.sums)));
    global.output().list("usage", &views)?;
    Ok(outcome(&replicas))
}

fn read_prices(path: &Path) -> Result<Prices> {
    let named = |error: &dyn std::fmt::Display| CliError::usage("--prices", format!("{}: {error}", path.display()));
    let text = fs::read_to_string(path).map_err(|error| named(&error))?;
    Prices::parse(&text).map_err(|error| named(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_output_is_apart_from_what_was_counted() {
        let record = |output_tokens, usage_unknown| AuditRecord {
            agent: "bot".into(),
            model: "m".into(),
            input_tokens: 10,
            output_tokens,
            usage_unknown,
            ..AuditRecord::default()
        };
        let mut sums = Sums::default();
        [record(5, false), record(900, true)].iter().for_each(|record| sums.add(record));
        assert_eq!((sums.requests, sums.input_tokens, sums.output_tokens), (2, 20, 5));
        assert_eq!((sums.unknown_requests, sums.unknown_output_tokens), (1, 900));
        let row = Row::of(&record(1, false), &[Dimension::Agent]);
        assert_eq!(row, Row { agent: Some("bot".into()), ..Row::default() });
    }
}
