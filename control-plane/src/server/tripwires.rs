//! Acts on alarms of the trail: a log line, the chain of admin changes and, where it is configured,
//! revocation.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use seks_types::id::{TenantName, TokenId};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::{
    rate::{Rate, RateLimits},
    registry::{Actor, Registry},
    store::key::AdminChainName,
    trail::tripwires::{Alarm, AlarmKind, network},
};

/// The same wire, token and network is recorded once in this time.
const QUIET: Duration = Duration::from_secs(3600);
/// Alarms that are remembered for that. Beyond it all are forgotten.
const MAX_REMEMBERED: usize = 10_000;
/// Alarms of one tenant that go into its chain. Each is a revision of the store. The metric and the
/// log have all.
const RECORDED: Rate = Rate { per_second: 0.1, burst: 20.0 };

/// What an alarm is about.
type Subject = (AlarmKind, String, Option<IpAddr>);

/// Acts on alarms until the trail or the control plane ends.
pub(super) async fn run(
    mut alarms: mpsc::Receiver<Alarm>,
    registry: Arc<Registry>,
    replica: String,
    revoke_on: Vec<AlarmKind>,
    stop: CancellationToken,
) {
    let mut handler = Handler { registry, replica, revoke_on, seen: HashMap::new(), recorded: RateLimits::default() };
    loop {
        let alarm = tokio::select! {
            alarm = alarms.recv() => alarm,
            () = stop.cancelled() => None,
        };
        match alarm {
            Some(alarm) => handler.handle(&alarm).await,
            None => return,
        }
    }
}

struct Handler {
    registry: Arc<Registry>,
    replica: String,
    revoke_on: Vec<AlarmKind>,
    seen: HashMap<Subject, Instant>,
    recorded: RateLimits<String>,
}

impl Handler {
    async fn handle(&mut self, alarm: &Alarm) {
        let subject = (alarm.tripwire, alarm.token.clone(), alarm.source.map(network));
        let is_known = self.seen.get(&subject).is_some_and(|at| at.elapsed() < QUIET);
        if is_known {
            return;
        }
        if self.seen.len() >= MAX_REMEMBERED {
            self.seen.clear();
        }
        self.seen.insert(subject, Instant::now());
        let source = alarm.source.map(|source| source.to_string()).unwrap_or_default();
        tracing::warn!(
            target: "seks.tripwire",
            kind = alarm.tripwire.name(), seks.tenant = alarm.tenant, seks.token.id = alarm.token, seks.agent = alarm.agent,
            seks.service = alarm.service, client.address = source, seks.node = alarm.node,
            "a tripwire: a token is used where an agent in order would not use it"
        );
        let tenant = self.tenant(&alarm.tenant).await;
        let actor = Actor {
            verb: "Tripwire".into(),
            tenant: alarm.tenant.clone(),
            replica: self.replica.clone(),
            ..Actor::default()
        };
        if self.recorded.try_acquire(&alarm.tenant, RECORDED).is_ok() {
            let chain = tenant.clone().map_or(AdminChainName::Fleet, AdminChainName::Tenant);
            let facts = serde_json::json!({
                "tripwire": alarm.tripwire.name(), "agent": alarm.agent, "service": alarm.service, "source": source,
                "node": alarm.node,
            });
            if let Err(error) = self.registry.record_alarm(&chain, &actor, &alarm.token, facts.to_string()).await {
                tracing::warn!(target: "seks.tripwire", %error, "an alarm cannot be recorded");
            }
        }
        if let (Some(tenant), true) = (tenant, self.revoke_on.contains(&alarm.tripwire)) {
            self.revoke(&tenant, &alarm.token, actor).await;
        }
    }

    /// The tenant of an alarm, if there is one.
    async fn tenant(&self, name: &str) -> Option<TenantName> {
        let name = TenantName::try_from(name).ok()?;
        self.registry.tenant(&name).await.is_ok().then_some(name)
    }

    async fn revoke(&self, tenant: &TenantName, token: &str, actor: Actor) {
        let Ok(id) = TokenId::try_from(token) else { return };
        match actor.run(self.registry.revoke_token(tenant, &id)).await {
            Ok(_) => {
                tracing::warn!(target: "seks.tripwire", %tenant, seks.token.id = token, "the token was revoked");
            }
            Err(error) => {
                tracing::error!(target: "seks.tripwire", %error, seks.token.id = token, "the token cannot be revoked");
            }
        }
    }
}
