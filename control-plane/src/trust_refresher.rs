//! Keeps the keys of trusted issuers up to date.
//!
//! Each replica fetches the keys of every trust every five minutes, and once more when a node
//! reports a key that a trust does not have. What a replica finds unchanged it does not write, so
//! that several replicas disturb nobody. When an issuer does not answer, the last keys stay.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use prometheus::{IntCounterVec, Opts, core::Collector};
use seks_network::address::{DialGuard, DialRules};
use seks_runtime::jitter;
use seks_types::id::{NameError, OperatorName, TenantName, TokenId};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use crate::{
    mint::{IssuerKeys, MintError},
    registry::{Registry, RegistryError, TrustChange, UnknownKeyReports, record::Trust},
};

/// How often an issuer's keys are fetched.
const EVERY: Duration = Duration::from_secs(5 * 60);
/// How often at most, when nodes report unknown keys.
const AT_MOST_EVERY: Duration = Duration::from_secs(60);
/// How often the list of trusts is read.
const LOOK_EVERY: Duration = Duration::from_secs(30);

/// Why the refresher can't start.
#[derive(Debug, thiserror::Error)]
pub enum TrustRefresherError {
    /// A metric's name.
    #[error(transparent)]
    Metrics(#[from] prometheus::Error),
    /// The name that its writes bear.
    #[error(transparent)]
    Name(#[from] NameError),
}

/// What was fetched when, and what is being fetched.
#[derive(Default)]
struct Schedule {
    fetched: HashMap<(TenantName, TokenId), Instant>,
    /// A task for each tenant at most.
    running: JoinSet<TenantName>,
    busy: HashSet<TenantName>,
}

/// Fetches issuers' keys for as long as it runs.
pub struct TrustRefresher {
    registry: Arc<Registry>,
    unknown_keys: Arc<UnknownKeyReports>,
    guard: Arc<DialGuard>,
    by: OperatorName,
    outcomes: IntCounterVec,
}

impl TrustRefresher {
    /// One that dials what `guard` allows. `unknown_keys` is what nodes report.
    ///
    /// # Errors
    /// [`TrustRefresherError`].
    pub fn new(
        registry: Arc<Registry>,
        unknown_keys: Arc<UnknownKeyReports>,
        guard: Arc<DialGuard>,
    ) -> Result<Self, TrustRefresherError> {
        let opts = Opts::new("seks_trust_key_fetches_total", "Fetches of trusted issuers' keys by this replica.");
        let outcomes = IntCounterVec::new(opts, &["outcome"])?;
        for outcome in ["changed", "unchanged", "failed"] {
            outcomes.with_label_values(&[outcome]).inc_by(0);
        }
        Ok(Self { registry, unknown_keys, guard, by: OperatorName::try_from("refresher")?, outcomes })
    }

    /// What to register with the process's metrics.
    #[must_use]
    pub fn collectors(&self) -> Vec<Box<dyn Collector>> {
        vec![Box::new(self.outcomes.clone())]
    }

    /// Runs until `stop`.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        let mut state = Schedule::default();
        let work = async {
            // A replica that has just started finds the keys in the store.
            let mut next = Instant::now() + LOOK_EVERY.mul_f64(jitter::fraction());
            loop {
                tokio::select! {
                    (tenant, trust) = self.unknown_keys.next() => self.reported(tenant, trust, &mut state).await,
                    Some(done) = state.running.join_next() => match done {
                        Ok(tenant) => drop(state.busy.remove(&tenant)),
                        Err(_) => state.busy.clear(), // a panic: the next look begins anew
                    },
                    () = sleep_until(next) => {
                        if let Err(error) = self.look(&mut state).await {
                            tracing::warn!(%error, "cannot list trusts; trying again");
                        }
                        next = Instant::now() + LOOK_EVERY;
                    }
                }
            }
        };
        let _ = stop.run_until_cancelled(work).await;
    }

    /// Begins to fetch what is due, in every tenant.
    async fn look(self: &Arc<Self>, state: &mut Schedule) -> Result<(), RegistryError> {
        let mut known = HashSet::new();
        for tenant in self.registry.tenants().await?.into_iter().filter(|tenant| !tenant.deleting) {
            let Ok(name) = TenantName::try_from(tenant.name.as_str()) else { continue };
            let trusts = self.registry.trusts(&name).await?;
            if !trusts.is_empty()
                && let Err(error) = self.registry.rotate_exchange_key(&name, &self.by).await
            {
                tracing::warn!(seks.tenant = %name, %error, "the exchange key is not rotated; trying later");
            }
            let mut due = Vec::new();
            for token in trusts {
                let (Ok(id), Some(trust)) = (TokenId::try_from(token.id.as_str()), token.trust) else { continue };
                let key = (name.clone(), id);
                if !state.busy.contains(&name) && state.fetched.get(&key).is_none_or(|at| at.elapsed() >= EVERY) {
                    state.fetched.insert(key.clone(), Instant::now());
                    due.push(trust);
                }
                known.insert(key);
            }
            self.begin(name, due, state);
        }
        state.fetched.retain(|key, _| known.contains(key));
        Ok(())
    }

    async fn reported(self: &Arc<Self>, tenant: TenantName, id: TokenId, state: &mut Schedule) {
        let key = (tenant, id);
        let asked = state.fetched.get(&key).is_some_and(|at| at.elapsed() < AT_MOST_EVERY);
        if asked || state.busy.contains(&key.0) {
            return; // a node that still meets the key reports it again
        }
        let Ok(token) = self.registry.token(&key.0, &key.1).await else { return };
        let Some(trust) = token.trust else { return };
        state.fetched.insert(key.clone(), Instant::now());
        self.begin(key.0, vec![trust], state);
    }

    /// Fetches in a task of the tenant's own: an issuer that answers slowly delays no other tenant.
    fn begin(self: &Arc<Self>, tenant: TenantName, due: Vec<Trust>, state: &mut Schedule) {
        if due.is_empty() {
            return;
        }
        state.busy.insert(tenant.clone());
        let this = Arc::clone(self);
        state.running.spawn(async move {
            for trust in due {
                this.refresh(&tenant, &trust).await;
            }
            tenant
        });
    }

    async fn refresh(&self, tenant: &TenantName, trust: &Trust) {
        if trust.static_keys {
            return;
        }
        let outcome = match fetch(&self.registry, &self.guard, tenant, trust).await {
            Ok(jwks) if jwks == trust.jwks => "unchanged",
            Ok(jwks) => {
                let change = TrustChange { jwks, ..TrustChange::default() };
                match self.registry.update_trust(tenant, &trust.name, &change).await {
                    Ok(_) => {
                        tracing::info!(seks.tenant = %tenant, seks.trust = trust.name, "the issuer's keys have changed");
                        "changed"
                    }
                    Err(error) => {
                        tracing::warn!(seks.tenant = %tenant, seks.trust = trust.name, %error, "an issuer's keys are not stored; trying later");
                        "failed"
                    }
                }
            }
            Err(error) => {
                tracing::warn!(seks.tenant = %tenant, seks.trust = trust.name, %error, "an issuer's keys are not fetched; the last ones stay");
                "failed"
            }
        };
        self.outcomes.with_label_values(&[outcome]).inc();
    }
}

/// Fetches the keys of a trust's issuer, in their stored form. Private addresses need the tenant's
/// networks.
///
/// # Errors
/// [`RegistryError`].
pub(crate) async fn fetch(
    registry: &Registry,
    guard: &Arc<DialGuard>,
    tenant: &TenantName,
    trust: &Trust,
) -> Result<String, RegistryError> {
    let tenant_networks = registry.tenant_networks_of(tenant).await?;
    let rules = DialRules { guard: guard.clone(), tenant_networks };
    let keys = IssuerKeys { issuer: &trust.issuer, jwks_uri: &trust.jwks_uri, roots: &trust.issuer_ca_pem };
    keys.fetch(&rules).await.map_err(|error| match error {
        MintError::Endpoint(what) => {
            RegistryError::conflict(format!("the issuer {what}"), "give its keys by --jwks-file")
        }
        MintError::Refused { status, .. } => {
            RegistryError::conflict(format!("the issuer answered {status}"), "give its keys by --jwks-file")
        }
        MintError::Source { text: what, .. } | MintError::Invalid(what) => RegistryError::invalid("issuer", what),
    })
}
