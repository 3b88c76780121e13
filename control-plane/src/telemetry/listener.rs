//! What `/metrics` and `/readyz` of the control plane say.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};

use seks_runtime::probes::ProbeHandler;
use tokio::{runtime::Handle, sync::Mutex, time::timeout};

use super::Metrics;
use crate::store::Store;

/// The store has answered when it did so within this time.
const STORE_TIMEOUT: Duration = Duration::from_secs(2);
/// The shortest interval between two checks of the store, for any number of probes.
const ASK_EVERY: Duration = Duration::from_secs(1);

/// What a control plane says of itself.
pub(crate) struct Readiness {
    metrics: Metrics,
    store: Arc<dyn Store>,
    /// The runtime that calls the store.
    runtime: Handle,
    /// When the store was last asked, and whether it answered.
    asked: Mutex<Option<(Instant, bool)>>,
}

impl Readiness {
    /// `runtime` calls the store.
    pub(crate) fn new(metrics: Metrics, store: Arc<dyn Store>, runtime: Handle) -> Self {
        Self { metrics, store, runtime, asked: Mutex::new(None) }
    }

    async fn store_answers(&self) -> bool {
        let mut asked = self.asked.lock().await;
        if let Some((_, answers)) = asked.filter(|(at, _)| at.elapsed() < ASK_EVERY) {
            return answers;
        }
        let store = Arc::clone(&self.store);
        let asking = self
            .runtime
            .spawn(async move { crate::status::of(store.as_ref()).await.store_problem != crate::status::UNREACHABLE });
        let abort = asking.abort_handle();
        let answers = matches!(timeout(STORE_TIMEOUT, asking).await, Ok(Ok(true)));
        abort.abort();
        *asked = Some((Instant::now(), answers));
        answers
    }
}

impl ProbeHandler for Readiness {
    fn ready(&self) -> Pin<Box<dyn Future<Output = Result<(), String>> + Send + '_>> {
        Box::pin(async { if self.store_answers().await { Ok(()) } else { Err("the store does not answer".into()) } })
    }

    fn metrics(&self) -> String {
        self.metrics.page()
    }
}
