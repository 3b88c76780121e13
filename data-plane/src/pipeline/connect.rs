//! Stage 4, `connect`: takes a connection from the pool of exactly this service and this version of
//! its credential.

use std::{
    future::{Future as _, poll_fn},
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    audit::Record, authorize::Permitted, lookup::Identified, prepared::PreparedInjection, refusal::Refusal, scrub,
};
use crate::{
    http::client::Gauge,
    table::{Grant, ServiceEntry, Table, TokenEntry},
    telemetry::{Metrics, ServiceMetrics},
    upstream::{Connection, PoolHooks, PoolKey, Upstreams},
};

/// A request that may be sent, and the connection that it is going to be sent on.
pub(crate) struct Connected {
    pub(super) permitted: Permitted,
    pub(super) connection: Connection<PreparedInjection>,
    /// Only this file makes one.
    _proof: (),
}

impl Connected {
    /// Takes the credential out of the path that is recorded.
    pub(crate) fn mask_path(&self, record: &mut Record) {
        let Permitted { service, credential, .. } = &self.permitted;
        let prepare = || PreparedInjection::new(service, &credential.open_for(service).ok()?);
        if let Some(prepared) = self.connection.per_pool(prepare) {
            record.mask_path(|path, is_cut| scrub::masked(path, is_cut, &prepared.needles));
        }
    }
}

/// Whom a request asked for. Kept for refusals, whose records must not hold the credential either.
pub(crate) struct Asked {
    token: Arc<TokenEntry>,
    service: Option<Arc<ServiceEntry>>,
}

impl Asked {
    pub(crate) fn of(identified: &Identified) -> Self {
        Self { token: identified.token.clone(), service: identified.service.clone() }
    }

    /// Takes the credential that would have been put in out of the path that is recorded.
    pub(crate) fn mask_path(&self, record: &mut Record) {
        let Some(service) = &self.service else { return };
        let credential = self.token.grant(service.name.as_str()).and_then(Grant::credential);
        let fields = credential.and_then(|credential| credential.open_for(service).ok());
        if let Some(prepared) = fields.and_then(|fields| PreparedInjection::new(service, &fields)) {
            record.mask_path(|path, is_cut| scrub::masked(path, is_cut, &prepared.needles));
        }
    }
}

/// Waits for a connection.
pub(crate) async fn call(
    permitted: Permitted,
    upstreams: &Arc<Upstreams<PreparedInjection>>,
    table: &Arc<Table>,
    metrics: &Metrics,
    record: &mut Record,
) -> Result<Connected, Refusal> {
    let (service, credential) = (&permitted.service, &permitted.credential);
    let key = PoolKey { service: service.generation, credential: credential.generation };
    let hooks = || {
        let (table, tenant) = (table.clone(), service.tenant.clone());
        let (service, credential) = (service.name.clone(), credential.name.clone());
        let gauge = metrics.service(&tenant, &service);
        let is_current = Box::new(move || {
            table.service(&tenant, &service).is_some_and(|s| s.generation == key.service)
                && table.credential(&tenant, &credential).is_some_and(|c| c.generation == key.credential)
        });
        PoolHooks { is_current, gauge }
    };
    // Nearly always a connection is idle: then nobody looks at the clock.
    let mut waits_since = None;
    let connection = {
        let mut connecting = pin!(async {
            if permitted.identified.admitted.websocket {
                upstreams.connect_to_switch(key, service, hooks).await
            } else {
                upstreams.connect(key, service, hooks).await
            }
        });
        poll_fn(|cx| {
            let polled = connecting.as_mut().poll(cx);
            if polled.is_pending() {
                waits_since.get_or_insert_with(Instant::now);
            }
            polled
        })
        .await
    };
    record.waited_for_connection(waits_since.map_or(Duration::ZERO, |since: Instant| since.elapsed()));
    let connection = connection.map_err(|error| {
        let refusal = Refusal::from(error);
        record.upstream_failed(&refusal);
        refusal
    })?;
    Ok(Connected { permitted, connection, _proof: () })
}

impl Gauge for ServiceMetrics {
    fn connections(&self, active: bool, change: i64) {
        Self::connections(self, active, change);
    }
}
