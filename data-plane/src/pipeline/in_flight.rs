//! Requests in flight: they count for their connection and their token. Also when a token expires.

mod limits;

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

pub(crate) use self::limits::InFlightLimits;
use super::refusal::Refusal;
use crate::{
    http::server::Activity,
    table::{Table, TokenEntry},
};

/// When a token that expires at `expires_at` (0: never) does so, where it is `now`; both in unix
/// seconds.
pub(crate) fn expiry(expires_at: i64, now: i64) -> Option<Instant> {
    let left = Duration::from_secs(u64::try_from(expires_at.saturating_sub(now)).unwrap_or(0));
    (expires_at > 0).then(|| Instant::now() + left)
}

/// One request in flight, at its connection and, once that is known, of its token.
pub(crate) struct InFlight {
    activity: Option<Arc<Activity>>,
    counted: Option<(Arc<TokenEntry>, Arc<InFlightLimits>)>,
}

impl InFlight {
    pub(crate) fn begin(activity: Arc<Activity>) -> Self {
        activity.begin();
        Self { activity: Some(activity), counted: None }
    }

    /// From here on it is the token's alone.
    pub(crate) fn leave_connection(&mut self) -> Option<Arc<Activity>> {
        self.activity.take().inspect(|activity| activity.end())
    }

    /// Counts it for its token and its tenant.
    pub(crate) fn of(
        mut self,
        token: &Arc<TokenEntry>,
        limits: &Arc<InFlightLimits>,
        table: &Table,
    ) -> Result<Self, Refusal> {
        limits.enter(token, table)?;
        self.counted = Some((token.clone(), limits.clone()));
        if let Some(activity) = &self.activity {
            activity.prove();
        }
        Ok(self)
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if let Some(activity) = &self.activity {
            activity.end();
        }
        if let Some((token, limits)) = &self.counted {
            limits.leave(token);
        }
    }
}
