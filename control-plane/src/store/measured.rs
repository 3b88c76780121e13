//! Counts and times each request to the store.

use std::{sync::Arc, time::Instant};

use futures_util::{future::BoxFuture, stream::BoxStream};
use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, Opts, core::Collector};

use super::{Key, Page, Record, Revision, Store, StoreError, Transaction, WatchEvent};

/// From an embedded store's read to a request that is given up.
const BUCKETS: &[f64] =
    &[0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
const OPERATIONS: [&str; 6] = ["get", "list", "list_page", "list_at", "commit", "revision"];

/// A store whose requests are measured.
pub(crate) struct Measured {
    store: Arc<dyn Store>,
    metrics: StoreMetrics,
}

/// How long requests take, and how many fail.
#[derive(Clone)]
pub(crate) struct StoreMetrics {
    duration: HistogramVec,
    failures: IntCounterVec,
}

impl StoreMetrics {
    /// # Errors
    /// Never in practice: the names are valid.
    pub(crate) fn new() -> Result<Self, prometheus::Error> {
        let duration =
            HistogramOpts::new("seks_store_request_duration_seconds", "Requests to the store, by operation.");
        let failures = Opts::new(
            "seks_store_request_failures_total",
            "Requests that the store did not answer or refused; a conflict of two writers is none.",
        );
        let metrics = Self {
            duration: HistogramVec::new(duration.buckets(BUCKETS.to_vec()), &["operation"])?,
            failures: IntCounterVec::new(failures, &["operation"])?,
        };
        for operation in OPERATIONS {
            drop(metrics.failures.with_label_values(&[operation]));
        }
        Ok(metrics)
    }

    pub(crate) fn collectors(&self) -> Vec<Box<dyn Collector>> {
        vec![Box::new(self.duration.clone()), Box::new(self.failures.clone())]
    }

    fn observe<T>(&self, operation: &str, began: Instant, result: &Result<T, StoreError>) {
        self.duration.with_label_values(&[operation]).observe(began.elapsed().as_secs_f64());
        if !matches!(result, Ok(_) | Err(StoreError::Conflict | StoreError::TooLarge)) {
            self.failures.with_label_values(&[operation]).inc();
        }
    }
}

impl Measured {
    pub(crate) fn new(store: Arc<dyn Store>, metrics: StoreMetrics) -> Self {
        Self { store, metrics }
    }

    fn measure<'a, T: Send + 'a>(
        &'a self,
        operation: &'static str,
        request: BoxFuture<'a, Result<T, StoreError>>,
    ) -> BoxFuture<'a, Result<T, StoreError>> {
        Box::pin(async move {
            let began = Instant::now();
            let result = request.await;
            self.metrics.observe(operation, began, &result);
            result
        })
    }
}

impl Store for Measured {
    fn kind(&self) -> &'static str {
        self.store.kind()
    }

    fn is_exclusive(&self) -> bool {
        self.store.is_exclusive()
    }

    fn store_id(&self) -> &str {
        self.store.store_id()
    }

    fn is_authenticated(&self) -> bool {
        self.store.is_authenticated()
    }

    fn get<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Record>, StoreError>> {
        self.measure("get", self.store.get(key))
    }

    fn list<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<(Vec<Record>, Revision), StoreError>> {
        self.measure("list", self.store.list(prefix))
    }

    fn list_page<'a>(
        &'a self,
        prefix: &'a str,
        after: &'a str,
        most: usize,
    ) -> BoxFuture<'a, Result<Page, StoreError>> {
        self.measure("list_page", self.store.list_page(prefix, after, most))
    }

    fn list_at<'a>(
        &'a self,
        prefix: &'a str,
        revision: Revision,
    ) -> BoxFuture<'a, Result<Option<Vec<Record>>, StoreError>> {
        self.measure("list_at", self.store.list_at(prefix, revision))
    }

    fn commit(&self, transaction: Transaction) -> BoxFuture<'_, Result<Revision, StoreError>> {
        self.measure("commit", self.store.commit(transaction))
    }

    fn watch(&self, after: Revision) -> BoxStream<'static, WatchEvent> {
        self.store.watch(after)
    }

    fn is_full(&self) -> BoxFuture<'_, bool> {
        self.store.is_full()
    }

    fn revision(&self) -> BoxFuture<'_, Result<Revision, StoreError>> {
        self.measure("revision", self.store.revision())
    }
}
