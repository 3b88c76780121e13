//! OpenTelemetry: sends spans to a collector over OTLP, through a queue that counts its losses.

mod delivery;
mod export;
mod metrics;
mod queue;
mod sdk;
mod span;

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use opentelemetry::{KeyValue, trace::TracerProvider as _};
use opentelemetry_sdk::{
    Resource,
    trace::{Sampler, SdkTracerProvider},
};
use serde::Deserialize;
use tracing::Dispatch;
use tracing_subscriber::{Layer, Registry, filter::LevelFilter, layer::SubscriberExt as _};

use self::export::Signal;
pub use self::{
    delivery::SpanSender,
    export::Protocol,
    queue::{Queue, SpanReservation},
    span::{CLIENT, SERVER, SpanContext, SpanWriter},
};

/// `[telemetry]` of either plane. `OTEL_EXPORTER_OTLP_ENDPOINT`, `…_TRACES_ENDPOINT`, `…_HEADERS`,
/// `…_TIMEOUT`, `…_COMPRESSION` and `OTEL_RESOURCE_ATTRIBUTES` apply where no key is set.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TelemetryConfig {
    /// The collector, `http://127.0.0.1:4317`. Without it and without the variable, no spans are
    /// made.
    pub otlp_endpoint: Option<String>,
    /// `grpc` or `http/protobuf`. Default: `OTEL_EXPORTER_OTLP_PROTOCOL`, else `grpc`.
    pub otlp_protocol: Option<Protocol>,
    /// PEM roots for an `https` collector. Default: the system's.
    pub otlp_ca_file: Option<PathBuf>,
    /// `service.instance.id` of every span. Default: the node's name, or the control plane's.
    pub service_instance: Option<String>,
    /// The address of `/metrics`, `/healthz` and `/readyz`. Default: the plane's own.
    pub metrics_listen: Option<SocketAddr>,
    /// The log filter: a level, or `TARGET=LEVEL,…`. Reloaded on `SIGHUP` and when the file
    /// changes. The variable `SEKS_LOG` overrides it. Default: `info`.
    pub log: Option<String>,
    /// Most spans that wait for the collector; a request has one or two. Default: 65,536 (about 30
    /// MiB when full); 1 to 10,000,000.
    pub queue_spans: usize,
    /// Longest duration of one export before it is retried. Default: 10 s; 100 ms to 60 s.
    #[serde(with = "humantime_serde")]
    pub export_timeout: Duration,
    /// Also sends metrics to the collector, at this interval. Default: not at all; 1 s to 1 h.
    #[serde(with = "humantime_serde")]
    pub metrics_interval: Option<Duration>,
    /// How long spans are collected into a batch. Default: 200 ms; 1 ms to 60 s.
    #[serde(with = "humantime_serde")]
    pub export_interval: Duration,
}

impl Default for TelemetryConfig {
    fn default() -> Self {
        Self {
            otlp_endpoint: None,
            otlp_protocol: None,
            otlp_ca_file: None,
            service_instance: None,
            metrics_listen: None,
            log: None,
            queue_spans: 65_536,
            export_timeout: Duration::from_secs(10),
            metrics_interval: None,
            export_interval: Duration::from_millis(200),
        }
    }
}

/// Why telemetry cannot start. All are configuration errors; no connection is tried here.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// A key of `[telemetry]`.
    #[error("telemetry.{key}: {reason}")]
    Invalid {
        /// The key.
        key: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// There is no tokio runtime for the exporting task.
    #[error("telemetry must be started inside a tokio runtime")]
    NoRuntime,
}

/// The connection of a process (in tests: of a plane) to a collector. Cheap to clone. A slow, dead
/// or absent collector never delays a caller: spans are queued and exported by a separate task.
#[derive(Clone)]
pub struct Telemetry {
    inner: Arc<Inner>,
}

struct Inner {
    dispatch: Dispatch,
    queue: Arc<Queue>,
    /// Kept because dropping it shuts the pipeline down. `None` when telemetry is disabled.
    provider: Option<SdkTracerProvider>,
    target: Option<ExportTarget>,
}

/// What each exporter of a process is made from.
struct ExportTarget {
    config: TelemetryConfig,
    endpoint: String,
    resource: Resource,
}

impl Telemetry {
    /// Telemetry without a collector. It makes no spans.
    #[must_use]
    pub fn disabled() -> Self {
        let inner = Inner { dispatch: Dispatch::none(), queue: Queue::closed(), provider: None, target: None };
        Self { inner: Arc::new(inner) }
    }

    /// Starts the exporting task. `service` is the `service.name` (`seks-data-plane`). `instance`
    /// is the `service.instance.id` unless the configuration names one.
    ///
    /// # Errors
    /// When a key is out of bounds or the endpoint is no URL. An unreachable collector is no error.
    pub fn start(config: &TelemetryConfig, service: &'static str, instance: &str) -> Result<Self, TelemetryError> {
        config.check_bounds()?;
        let Some(endpoint) = config.endpoint() else { return Ok(Self::disabled()) };
        tokio::runtime::Handle::try_current().map_err(|_| TelemetryError::NoRuntime)?;
        let instance = config.service_instance.as_deref().unwrap_or(instance).to_owned();
        let resource = Resource::builder()
            .with_service_name(service)
            .with_attributes([
                KeyValue::new("service.instance.id", instance),
                KeyValue::new("service.version", super::VERSION),
            ])
            .build();
        let exporter = export::Exporter::new(config, &endpoint, &resource, Signal::Traces)?;
        let queue = Queue::open(config.queue_spans);
        tokio::spawn(queue::export_queue(Arc::clone(&queue), exporter, config.clone()));
        // Audit records are never sampled, whatever an agent's `traceparent` says.
        let provider = SdkTracerProvider::builder()
            .with_sampler(Sampler::AlwaysOn)
            .with_resource(resource.clone())
            .with_span_processor(sdk::QueueProcessor(Arc::clone(&queue)))
            .build();
        let layer = tracing_opentelemetry::layer()
            .with_tracer(provider.tracer("seks"))
            .with_location(false)
            .with_threads(false)
            .with_target(false)
            .with_level(false)
            .with_tracked_inactivity(false)
            .with_context_activation(false);
        let dispatch = Dispatch::new(registry(layer));
        let target = Some(ExportTarget { config: config.clone(), endpoint, resource });
        Ok(Self { inner: Arc::new(Inner { dispatch, queue, provider: Some(provider), target }) })
    }

    /// Whether spans are sent to a collector.
    #[must_use]
    pub fn is_enabled(&self) -> bool {
        self.inner.provider.is_some()
    }

    /// Runs `make` so that the `tracing` spans made in it are exported. Only their creation needs
    /// this; they can be recorded to and dropped anywhere. Create them with `parent: None`, and set
    /// a parent by `OpenTelemetrySpanExt::set_parent`. The registry drops a parent through the
    /// default subscriber, which is a different one.
    pub fn create_span<R>(&self, make: impl FnOnce() -> R) -> R {
        tracing::dispatcher::with_default(&self.inner.dispatch, make)
    }

    /// A connection of its own to the collector, for spans that are kept elsewhere than in the
    /// queue. `None` without a collector.
    #[must_use]
    pub fn sender(&self) -> Option<SpanSender> {
        let ExportTarget { config, endpoint, resource } = self.inner.target.as_ref()?;
        // The same configuration has made an exporter before.
        Some(SpanSender::new(
            export::Exporter::new(config, endpoint, resource, Signal::Traces).ok()?,
            config.export_timeout,
        ))
    }

    /// Sends what `page` gives, metrics in Prometheus' text format, every
    /// [`metrics_interval`](TelemetryConfig::metrics_interval). Nothing where that isn't set, or
    /// without a collector. What the collector does not accept is not sent again: the next page has
    /// more recent values. Must be called within a runtime.
    pub fn export_metrics(&self, page: impl Fn() -> String + Send + 'static) {
        let Some(ExportTarget { config, endpoint, resource }) = &self.inner.target else { return };
        let exporter = export::Exporter::new(config, endpoint, resource, Signal::Metrics);
        let (Some(interval), Ok(mut exporter)) = (config.metrics_interval, exporter) else { return };
        let (limit, started) = (config.export_timeout, metrics::now());
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(interval).await;
                let encoded = metrics::encode(&page(), started, metrics::now());
                match tokio::time::timeout(limit, exporter.export(encoded.into())).await {
                    Ok(Ok(0)) => {}
                    Ok(Ok(refused)) => tracing::warn!(refused, "the collector refused metrics"),
                    Ok(Err(error)) => tracing::warn!(%error, "the collector does not accept metrics"),
                    Err(_) => tracing::warn!("the collector does not answer to metrics"),
                }
            }
        });
    }

    /// The queue of spans, with its loss counters.
    #[must_use]
    pub fn queue(&self) -> &Arc<Queue> {
        &self.inner.queue
    }

    /// Exports the queued spans for at most `budget`, and stops. Returns whether all were exported.
    /// Call it last, when no spans are made, with a budget that draining cannot use up.
    pub async fn shutdown(&self, budget: Duration) -> bool {
        self.inner.queue.close();
        tokio::time::timeout(budget, self.inner.queue.drained()).await.is_ok()
    }
}

/// Accepts spans at our level and above. Without a level hint, every library would evaluate its
/// trace events on the request path.
fn registry<L: Layer<Registry> + Send + Sync>(layer: L) -> impl tracing::Subscriber + Send + Sync {
    tracing_subscriber::registry().with(layer).with(LevelFilter::INFO)
}

impl TelemetryConfig {
    /// The collector's URL from the key, else from the standard variables.
    #[must_use]
    pub fn endpoint(&self) -> Option<String> {
        let variable = |name| std::env::var(name).ok().filter(|v| !v.is_empty());
        self.otlp_endpoint
            .clone()
            .or_else(|| variable("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"))
            .or_else(|| variable("OTEL_EXPORTER_OTLP_ENDPOINT"))
    }

    /// Checks the keys as [`Telemetry::start`] does, without starting anything.
    ///
    /// # Errors
    /// As [`Telemetry::start`].
    pub fn check(&self) -> Result<(), TelemetryError> {
        self.check_bounds()?;
        if let Some(endpoint) = self.endpoint() {
            export::Exporter::new(self, &endpoint, &Resource::builder_empty().build(), Signal::Traces)?;
        }
        Ok(())
    }

    fn check_bounds(&self) -> Result<(), TelemetryError> {
        let invalid = |key, reason: &str| Err(TelemetryError::Invalid { key, reason: reason.into() });
        let (ms, minute) = (Duration::from_millis, Duration::from_secs(60));
        if !(1..=10_000_000).contains(&self.queue_spans) {
            return invalid("queue_spans", "1 to 10000000");
        }
        if !(ms(100)..=minute).contains(&self.export_timeout) {
            return invalid("export_timeout", "100ms to 60s");
        }
        let hour = Duration::from_secs(3600);
        if self.metrics_interval.is_some_and(|every| !(Duration::from_secs(1)..=hour).contains(&every)) {
            return invalid("metrics_interval", "1s to 1h");
        }
        if !(ms(1)..=minute).contains(&self.export_interval) {
            return invalid("export_interval", "1ms to 60s");
        }
        if let Some(log) = &self.log
            && let Err(error) = super::logs::check_filter(log)
        {
            return invalid("log", &error.to_string());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
