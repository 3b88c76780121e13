//! Asks the key service, while the control plane runs, whether the key-encryption key may still be
//! used. A service that is away stops nothing. A key that was refused for `refused_grace` stops
//! the control plane, because somebody has decided so.

use std::{fmt, time::Duration};

use prometheus::{IntCounterVec, IntGauge, Opts, core::Collector};
use tokio::time::{Instant, sleep};

use super::{
    SealConfig, SealError,
    key_service::{self, KeyService, WrappedKek},
};

/// The watch.
pub struct KeyWatch {
    service: Box<dyn KeyService>,
    wrapped: WrappedKek,
    every: Duration,
    grace: Duration,
    checks: IntCounterVec,
    refused_seconds: IntGauge,
}

impl fmt::Debug for KeyWatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyWatch").field("every", &self.every).finish_non_exhaustive()
    }
}

impl KeyWatch {
    /// The watch of `config`; `None` when no key service wraps the key.
    ///
    /// # Errors
    /// As [`Sealer::from_config`](super::Sealer::from_config).
    pub fn new(config: &SealConfig) -> Result<Option<Self>, SealError> {
        if !config.kind.is_wrapped() {
            return Ok(None);
        }
        let (kind, service) = key_service::of(config)?;
        let Some(wrapped) = WrappedKek::read(&config.path, kind)? else {
            return Err(SealError::Config { key: "path", reason: "is no file of `create-kek --wrapped`" });
        };
        let opts = Opts::new("seks_kek_checks_total", "Whether the key service permits the key-encryption key.");
        let metric = |_| SealError::KekUnavailable("its metrics cannot be made".into());
        let checks = IntCounterVec::new(opts, &["outcome"]).map_err(metric)?;
        for outcome in ["ok", "refused", "unreachable"] {
            drop(checks.with_label_values(&[outcome]));
        }
        let help = "How long the key service has refused the key-encryption key; 0: the last answer permitted it.";
        let refused_seconds = IntGauge::new("seks_kek_refused_seconds", help).map_err(metric)?;
        let (every, grace) = (config.check_every, config.refused_grace);
        Ok(Some(Self { service, wrapped, every, grace, checks, refused_seconds }))
    }

    /// What to register with the process's metrics.
    #[must_use]
    pub fn collectors(&self) -> Vec<Box<dyn Collector>> {
        vec![Box::new(self.checks.clone()), Box::new(self.refused_seconds.clone())]
    }

    /// Returns when the key has been refused for too long.
    pub async fn refused(&self) -> SealError {
        let mut refused_since: Option<Instant> = None;
        loop {
            sleep(self.every).await;
            let outcome = match self.wrapped.unwrap(&*self.service).await {
                Ok(_) => {
                    refused_since = None;
                    "ok"
                }
                Err(error @ SealError::KekRefused(_)) => {
                    let since = *refused_since.get_or_insert_with(Instant::now);
                    let grace = humantime::format_duration(self.grace);
                    tracing::error!(%error, %grace, "the key-encryption key is refused: this control plane stops after the grace");
                    if since.elapsed() >= self.grace {
                        return error;
                    }
                    "refused"
                }
                // Whoever cuts the service off must not be able to reset the time.
                Err(error) => {
                    tracing::warn!(%error, "the key service cannot be asked; the key in memory stays in use");
                    "unreachable"
                }
            };
            self.checks.with_label_values(&[outcome]).inc();
            let seconds = refused_since.map_or(0, |since| since.elapsed().as_secs().max(1));
            self.refused_seconds.set(i64::try_from(seconds).unwrap_or(i64::MAX));
        }
    }
}
