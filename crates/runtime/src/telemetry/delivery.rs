//! Delivers batches of encoded spans: retries, and splits what the collector refuses.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::{sleep, timeout};

use super::export::{Advice, Exporter};

/// Pauses before a batch is retried. Retries have no end: what bounds the memory is where the
/// batches come from.
pub(super) const MIN_PAUSE: Duration = Duration::from_millis(100);
const MAX_PAUSE: Duration = Duration::from_secs(5);
/// Longest pause that a collector can request.
const MAX_SERVER_PAUSE: Duration = Duration::from_secs(60);
/// Parts of one batch that may be refused before the rest is dropped. Halving finds one bad span in
/// 512 with 10 refusals, and limits the requests to a collector that refuses everything.
const MAX_REFUSALS: u32 = 32;

/// Sends spans that somebody else keeps until the collector has them.
pub struct SpanSender {
    exporter: Exporter,
    export_timeout: Duration,
}

impl SpanSender {
    pub(super) fn new(exporter: Exporter, export_timeout: Duration) -> Self {
        Self { exporter, export_timeout }
    }

    /// Sends `spans` (`ScopeSpans.spans`, repeated) until the collector has accepted or permanently
    /// refused each. Returns how many it refused. Cancelled, it may have sent some.
    pub async fn send(&mut self, spans: Bytes) -> u64 {
        deliver(&mut self.exporter, spans, self.export_timeout, sleep).await
    }
}

/// Exports until the collector has accepted or permanently refused each span. A refused batch is
/// halved while a part of it may be accepted. Returns how many spans were refused. `pause` waits
/// before a repetition.
pub(super) async fn deliver<F: Future<Output = ()>>(
    exporter: &mut Exporter,
    batch: Bytes,
    export_timeout: Duration,
    pause: impl Fn(Duration) -> F,
) -> u64 {
    let (mut parts, mut refusals, mut refused) = (vec![batch], 0, 0);
    while let Some(part) = parts.pop() {
        match deliver_part(exporter, &part, export_timeout, &pause).await {
            Verdict::Accepted { refused: spans } => refused += spans,
            Verdict::Refused { split } => {
                refusals += 1;
                match split_in_half(&part) {
                    Some((first, second)) if split && refusals < MAX_REFUSALS => parts.extend([second, first]),
                    _ => refused += span_count(&part),
                }
            }
        }
    }
    if refused > 0 {
        tracing::error!(spans = refused, "the collector refused spans, which are lost");
    }
    refused
}

/// A collector's last word about a batch.
enum Verdict {
    /// It has the batch, without `refused` of its spans.
    Accepted { refused: u64 },
    /// It will never take the batch. It may take a part where `split`.
    Refused { split: bool },
}

async fn deliver_part<F: Future<Output = ()>>(
    exporter: &mut Exporter,
    batch: &Bytes,
    export_timeout: Duration,
    wait: &impl Fn(Duration) -> F,
) -> Verdict {
    let mut pause = MIN_PAUSE;
    loop {
        let server_delay = match timeout(export_timeout, exporter.export(batch.clone())).await {
            // It has said that it will never take these: trying again would not help.
            Ok(Ok(rejected)) => return Verdict::Accepted { refused: rejected.min(span_count(batch)) },
            Ok(Err(error)) => match error.advice {
                Advice::Retry(server_delay) => {
                    tracing::warn!(%error, "the collector does not accept spans");
                    server_delay
                }
                advice => {
                    tracing::error!(spans = span_count(batch), %error, "the collector refused a batch");
                    return Verdict::Refused { split: advice == Advice::Split };
                }
            },
            Err(_) => {
                tracing::warn!("the collector does not answer");
                None
            }
        };
        wait(server_delay.unwrap_or(pause).clamp(MIN_PAUSE, MAX_SERVER_PAUSE)).await;
        pause = (pause * 2).min(MAX_PAUSE);
    }
}

/// The number of spans in a batch.
fn span_count(batch: &Bytes) -> u64 {
    EncodedSpans(batch).count() as u64
}

/// A batch as two. `None` for a single span.
fn split_in_half(batch: &Bytes) -> Option<(Bytes, Bytes)> {
    let half = EncodedSpans(batch).count() / 2;
    let at: usize = EncodedSpans(batch).take(half).map(<[u8]>::len).sum();
    (at > 0).then(|| (batch.slice(..at), batch.slice(at..)))
}

/// Iterates over the spans of a batch. Each is a protobuf field with tag and length. Ends at
/// invalid bytes.
struct EncodedSpans<'a>(&'a [u8]);

impl<'a> Iterator for EncodedSpans<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let mut rest = self.0.get(1..)?; // the tag is one byte: the field's number is 2
        let length = prost::decode_length_delimiter(&mut rest).ok()?;
        let whole = (self.0.len() - rest.len()).checked_add(length)?;
        let (record, rest) = self.0.split_at_checked(whole)?;
        self.0 = rest;
        Some(record)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(sizes: &[usize]) -> Bytes {
        let mut bytes = Vec::new();
        for size in sizes {
            bytes.push(0x12);
            prost::encode_length_delimiter(*size, &mut bytes).unwrap();
            bytes.resize(bytes.len() + size, b's');
        }
        bytes.into()
    }

    #[test]
    fn a_batch_is_halved_between_its_spans() {
        let whole = batch(&[0, 3, 200, 70_000, 5]);
        assert_eq!(span_count(&whole), 5);
        let (first, second) = split_in_half(&whole).unwrap();
        assert_eq!((first, second), (batch(&[0, 3]), batch(&[200, 70_000, 5])));
        assert!(split_in_half(&batch(&[9])).is_none() && split_in_half(&Bytes::new()).is_none());
    }
}
