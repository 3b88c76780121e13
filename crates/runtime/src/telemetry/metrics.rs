//! Metrics over OTLP: what `/metrics` shows, sent to the collector at an interval.
//!
//! Counters and histograms are cumulative from the start of the process. Names, labels and units
//! are those of the page.

use std::{collections::BTreeMap, time::UNIX_EPOCH};

use opentelemetry_proto::tonic::{
    common::v1::{AnyValue, KeyValue, any_value},
    metrics::v1::{
        AggregationTemporality, Gauge, Histogram, HistogramDataPoint, Metric, NumberDataPoint, ScopeMetrics, Sum,
        metric::Data, number_data_point,
    },
};
use prost::Message as _;

/// Unix nanoseconds.
pub(super) fn now() -> u64 {
    UNIX_EPOCH.elapsed().map_or(0, |time| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX))
}

/// `ScopeMetrics.metrics` of a page, repeated and encoded. `started` and `now` are Unix
/// nanoseconds.
pub(super) fn encode(page: &str, started: u64, now: u64) -> Vec<u8> {
    let metrics = families(page).into_iter().filter_map(|family| family.metric(started, now)).collect();
    ScopeMetrics { metrics, ..Default::default() }.encode_to_vec()
}

/// One family of a page.
#[derive(Default)]
struct Family<'a> {
    name: &'a str,
    help: &'a str,
    kind: &'a str,
    samples: Vec<Sample<'a>>,
}

/// Names with their values.
type Labels<'a> = Vec<(&'a str, &'a str)>;

/// One line.
struct Sample<'a> {
    name: &'a str,
    labels: Labels<'a>,
    value: f64,
}

fn families(page: &str) -> Vec<Family<'_>> {
    let mut families: Vec<Family<'_>> = Vec::new();
    for line in page.lines() {
        if let Some((name, help)) = line.strip_prefix("# HELP ").and_then(|rest| rest.split_once(' ')) {
            families.push(Family { name, help, ..Family::default() });
        } else if let Some(family) = families.last_mut() {
            match line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
                Some((_, kind)) => family.kind = kind,
                None => family.samples.extend(sample(line)),
            }
        }
    }
    families
}

/// A line, without its exemplar.
fn sample(line: &str) -> Option<Sample<'_>> {
    let line = line.split(" # {").next()?;
    let (series, value) = line.rsplit_once(' ')?;
    let (name, labels) = series.split_once('{').unwrap_or((series, ""));
    // Names and codes: no label of ours has a quote or a comma in it.
    let labels = labels.trim_end_matches('}').split(',').filter_map(|label| label.split_once('='));
    let labels = labels.map(|(name, value)| (name, value.trim_matches('"'))).collect();
    Some(Sample { name, labels, value: value.parse().ok()? })
}

fn attributes(labels: &[(&str, &str)]) -> Vec<KeyValue> {
    let value = |text: &str| Some(AnyValue { value: Some(any_value::Value::StringValue(text.into())) });
    let pair = |(key, text): &(&str, &str)| KeyValue { key: (*key).into(), value: value(text), ..Default::default() };
    labels.iter().map(pair).collect()
}

impl Family<'_> {
    fn metric(&self, started: u64, now: u64) -> Option<Metric> {
        let temporality = AggregationTemporality::Cumulative as i32;
        let data = match self.kind {
            "counter" => Data::Sum(Sum {
                data_points: self.numbers(started, now),
                aggregation_temporality: temporality,
                is_monotonic: true,
            }),
            "histogram" => Data::Histogram(Histogram {
                data_points: self.histograms(started, now),
                aggregation_temporality: temporality,
            }),
            _ => Data::Gauge(Gauge { data_points: self.numbers(0, now) }),
        };
        let unit = match self.name.trim_end_matches("_total") {
            name if name.ends_with("_seconds") => "s",
            name if name.ends_with("_bytes") => "By",
            _ => "1",
        };
        let (name, description) = (self.name.into(), self.help.into());
        let metric = Metric { name, description, unit: unit.into(), data: Some(data), ..Default::default() };
        (!self.samples.is_empty()).then_some(metric)
    }

    fn numbers(&self, started: u64, now: u64) -> Vec<NumberDataPoint> {
        let point = |Sample { labels, value, .. }: &Sample<'_>| NumberDataPoint {
            attributes: attributes(labels),
            start_time_unix_nano: started,
            time_unix_nano: now,
            value: Some(number_data_point::Value::AsDouble(*value)),
            ..Default::default()
        };
        self.samples.iter().map(point).collect()
    }

    fn histograms(&self, started: u64, now: u64) -> Vec<HistogramDataPoint> {
        let mut points: BTreeMap<Labels<'_>, HistogramDataPoint> = BTreeMap::new();
        for Sample { name, labels, value } in &self.samples {
            let (bound, labels): (Labels<'_>, Labels<'_>) = labels.iter().copied().partition(|(name, _)| *name == "le");
            let point = points.entry(labels).or_default();
            match (name.strip_prefix(self.name), bound.first()) {
                (Some("_sum"), _) => point.sum = Some(*value),
                (Some("_count"), _) => point.count = *value as u64,
                (Some("_bucket"), Some((_, bound))) => {
                    let before: u64 = point.bucket_counts.iter().sum();
                    point.bucket_counts.push((*value as u64).saturating_sub(before));
                    point.explicit_bounds.extend(bound.parse::<f64>().ok().filter(|bound| bound.is_finite()));
                }
                _ => {}
            }
        }
        let with = |(labels, point): (Labels<'_>, HistogramDataPoint)| HistogramDataPoint {
            attributes: attributes(&labels),
            start_time_unix_nano: started,
            time_unix_nano: now,
            ..point
        };
        points.into_iter().map(with).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_becomes_sums_gauges_and_histograms() {
        let page = "# HELP a_total Things.\n# TYPE a_total counter\na_total{x=\"y\",z=\"\"} 3\n\
                    # HELP b_bytes Room.\n# TYPE b_bytes gauge\nb_bytes -1.5\n# HELP none Nothing.\n# TYPE none counter\n\
                    # HELP c_seconds Times.\n# TYPE c_seconds histogram\nc_seconds_bucket{s=\"o\",le=\"0.5\"} 2 # {trace_id=\"a\"} 1 2\n\
                    c_seconds_bucket{s=\"o\",le=\"1\"} 2\nc_seconds_bucket{s=\"o\",le=\"+Inf\"} 5\n\
                    c_seconds_sum{s=\"o\"} 9.5\nc_seconds_count{s=\"o\"} 5\n";
        let metrics = ScopeMetrics::decode(&*encode(page, 7, 9)).unwrap().metrics;
        let [a, b, c] = &metrics[..] else { panic!("{metrics:?}") };
        let Some(Data::Sum(sum)) = &a.data else { panic!("{a:?}") };
        let point = &sum.data_points[0];
        assert_eq!((sum.is_monotonic, sum.aggregation_temporality, point.start_time_unix_nano), (true, 2, 7));
        assert_eq!((point.value, point.attributes.len()), (Some(number_data_point::Value::AsDouble(3.0)), 2));
        assert!(matches!(&b.data, Some(Data::Gauge(gauge)) if gauge.data_points[0].time_unix_nano == 9));
        assert_eq!((b.unit.as_str(), c.unit.as_str(), c.description.as_str()), ("By", "s", "Times."));
        let Some(Data::Histogram(histogram)) = &c.data else { panic!("{c:?}") };
        let point = &histogram.data_points[0];
        assert_eq!((&point.bucket_counts[..], &point.explicit_bounds[..]), (&[2, 0, 3][..], &[0.5, 1.0][..]));
        assert_eq!((point.count, point.sum, point.attributes[0].key.as_str()), (5, Some(9.5), "s"));
    }
}
