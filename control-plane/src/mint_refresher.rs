//! Refreshes minted credentials. Every replica knows from the store's watch which tokens are due.
//! The first one that claims a token by compare-and-set exchanges its secret. The claim of a
//! replica that dies expires.

use std::{collections::HashMap, sync::Arc, time::Duration};

use futures_util::StreamExt as _;
use prometheus::{IntCounterVec, IntGauge, Opts, core::Collector};
use seks_runtime::telemetry::Telemetry;
use seks_types::id::{CredentialName, NameError, OperatorName, TenantName};
use tokio::{task::JoinSet, time::sleep};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, field};

use crate::{
    clock::unix_now,
    mint::{EXCHANGE, MintError, Minted, Reach, mint_from},
    registry::{Claim, MintTimes, Registry, RegistryError},
    store::{Key, WatchEvent, Write},
};

/// Exchanges at a time.
const AT_ONCE: usize = 8;
/// Longest sleep: a watch that has gone silent must not stop the clock.
const NAP: Duration = Duration::from_secs(30);
/// How long a rotated secret is held in memory while the store can't take it.
const KEEP_TRYING: Duration = Duration::from_secs(15 * 60);

type Name = (TenantName, CredentialName);

/// Why the refresher can't start.
#[derive(Debug, thiserror::Error)]
pub enum RefresherError {
    /// The operating system has no randomness to give.
    #[error("no randomness")]
    Random(#[source] getrandom::Error),
    /// A metric's name.
    #[error(transparent)]
    Metrics(#[from] prometheus::Error),
    /// The name that its writes bear.
    #[error(transparent)]
    Name(#[from] NameError),
}

/// Refreshes minted credentials for as long as it runs.
pub struct Refresher {
    registry: Arc<Registry>,
    telemetry: Telemetry,
    replica: String,
    reach: Reach,
    by: OperatorName,
    outcomes: IntCounterVec,
    failing: IntGauge,
}

impl Refresher {
    /// One whose claims bear the name of `replica` and, because names may be the same, a number of
    /// their own.
    ///
    /// # Errors
    /// [`RefresherError`].
    pub fn new(
        registry: Arc<Registry>,
        telemetry: Telemetry,
        replica: String,
        reach: Reach,
    ) -> Result<Self, RefresherError> {
        let mut number = [0; 4];
        getrandom::fill(&mut number).map_err(RefresherError::Random)?;
        let replica = format!("{replica}-{:08x}", u32::from_ne_bytes(number));
        let opts = Opts::new("seks_mint_refreshes_total", "Tokens that were minted, or not, by this replica.");
        let outcomes = IntCounterVec::new(opts, &["outcome"])?;
        for outcome in ["ok", "refused", "unreachable"] {
            drop(outcomes.with_label_values(&[outcome]));
        }
        Ok(Self {
            registry,
            telemetry,
            replica,
            reach,
            by: OperatorName::try_from("refresher")?,
            outcomes,
            failing: IntGauge::new("seks_mint_failing", "Minted credentials whose last refresh has failed.")?,
        })
    }

    /// What to register with the process's metrics.
    #[must_use]
    pub fn collectors(&self) -> Vec<Box<dyn Collector>> {
        vec![Box::new(self.outcomes.clone()), Box::new(self.failing.clone())]
    }

    /// Runs until `stop`; exchanges that are under way then are finished first, because what they
    /// bring may be the only copy.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        let (mut running, mut busy) = (JoinSet::new(), Vec::new());
        while !stop.is_cancelled() {
            let listed = self.registry.mints().await;
            let (known, revision) = match listed {
                Ok(listed) => listed,
                Err(error) => {
                    tracing::warn!(%error, "cannot list minted credentials; trying again");
                    let _ = stop.run_until_cancelled(sleep(Duration::from_secs(1))).await;
                    continue;
                }
            };
            let follow = self.follow(known.into_iter().collect(), revision, &mut running, &mut busy);
            let _ = stop.run_until_cancelled(follow).await;
        }
        let finish = async { while running.join_next().await.is_some() {} };
        if tokio::time::timeout(EXCHANGE + Duration::from_secs(5), finish).await.is_err() {
            tracing::error!("what was minted last may not be stored");
        }
    }

    /// Follows the store from `revision` until history is gone.
    async fn follow(
        self: &Arc<Self>,
        mut known: HashMap<Name, MintTimes>,
        revision: u64,
        running: &mut JoinSet<Name>,
        busy: &mut Vec<Name>,
    ) {
        let mut watch = self.registry.store().watch(revision);
        loop {
            self.failing.set(known.values().filter(|times| times.failing).count().try_into().unwrap_or(i64::MAX));
            let now = unix_now();
            let next =
                known.iter().filter(|(name, _)| !busy.contains(name)).min_by_key(|(_, times)| times.due(&self.replica));
            let wait = next.map_or(NAP, |(_, times)| {
                Duration::from_secs(u64::try_from(times.due(&self.replica) - now).unwrap_or(0)).min(NAP)
            });
            let full = busy.len() >= AT_ONCE;
            if wait.is_zero() && !full {
                if let Some((name, _)) = next {
                    let (this, name) = (self.clone(), name.clone());
                    busy.push(name.clone());
                    running.spawn(async move {
                        this.refresh(&name).await;
                        name
                    });
                }
                continue;
            }
            tokio::select! {
                event = watch.next() => match event {
                    Some(WatchEvent::Changes { changes, .. }) => changes.into_iter().for_each(|c| note(&mut known, c)),
                    Some(WatchEvent::Progress(_)) => {}
                    Some(WatchEvent::Compacted) | None => return,
                },
                Some(done) = running.join_next(), if !busy.is_empty() => match done {
                    Ok(done) => busy.retain(|name| *name != done),
                    Err(_) => busy.clear(),
                },
                () = sleep(wait), if !full => {}
            }
        }
    }

    /// Claims, trades, and writes down what came of it.
    async fn refresh(&self, name: &Name) {
        let (tenant, credential) = name;
        let claim = match self.registry.claim_mint(tenant, credential, &self.replica).await {
            Ok(Some(claim)) => claim,
            // Another replica has claimed it, or it is no longer due. The watch will report that.
            Ok(None) => return sleep(Duration::from_millis(200)).await,
            Err(error) => {
                tracing::warn!(seks.tenant = %tenant, seks.credential = %credential, %error, "cannot claim a refresh");
                return sleep(Duration::from_secs(1)).await;
            }
        };
        // The audit's record of it: a token was made, or was not, and who asked for it is this
        // replica.
        let span = self.telemetry.create_span(|| {
            tracing::info_span!(
                "seks.mint",
                otel.kind = "client",
                seks.operator = self.by.as_str(),
                seks.tenant = %tenant,
                seks.credential = %credential,
                seks.outcome = field::Empty,
            )
        });
        let minted = self.mint(&claim).instrument(span.clone()).await;
        let outcome = match &minted {
            Ok(_) => "ok",
            Err(error) if error.is_final() => "refused",
            Err(_) => "unreachable",
        };
        span.record("seks.outcome", outcome);
        self.outcomes.with_label_values(&[outcome]).inc();
        match &minted {
            Ok(minted) => {
                tracing::info!(seks.tenant = %tenant, seks.credential = %credential, outcome, lifetime = minted.lifetime, "token minted");
            }
            Err(error) => {
                tracing::warn!(seks.tenant = %tenant, seks.credential = %credential, outcome, %error, "no new token; the last one stays in use");
            }
        }
        self.keep(&claim, minted).await;
    }

    async fn mint(&self, claim: &Claim) -> Result<Minted, MintError> {
        let access = self.reach.of(&claim.tenant, claim.networks.clone(), claim.has_several_fields);
        mint_from(&claim.kind, &claim.secret, &access).await
    }

    /// Writes until it is written: a rotated secret has no other copy.
    async fn keep(&self, claim: &Claim, minted: Result<Minted, MintError>) {
        let begun = tokio::time::Instant::now();
        let precious = minted.as_ref().is_ok_and(|m| m.rotated.is_some());
        let mut pause = Duration::from_millis(100);
        loop {
            match self.registry.settle_mint(claim, minted.as_ref(), &self.by).await {
                Ok(()) => return,
                Err(RegistryError::NotFound { .. }) => return, // deleted meanwhile
                Err(error) if precious && begun.elapsed() < KEEP_TRYING => {
                    tracing::error!(seks.tenant = %claim.tenant, seks.credential = %claim.credential, %error, "a rotated secret is not stored yet");
                }
                Err(error) => {
                    tracing::error!(seks.tenant = %claim.tenant, seks.credential = %claim.credential, %error, "what was minted can't be stored");
                    return;
                }
            }
            sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(5));
        }
    }
}

fn note(known: &mut HashMap<Name, MintTimes>, change: Write) {
    match change {
        Write::Put(Key::Mint(tenant, name), value) => match MintTimes::read(&value) {
            Some(times) => drop(known.insert((tenant, name), times)),
            None => drop(known.remove(&(tenant, name))),
        },
        Write::Delete(Key::Mint(tenant, name)) => drop(known.remove(&(tenant, name))),
        _ => {}
    }
}

#[cfg(test)]
mod tests;
