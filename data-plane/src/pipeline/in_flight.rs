//! Requests in flight, and when the right to them ends by itself.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::refusal::Refusal;
use crate::{code::Code, http::server::Activity, table::TokenEntry};

/// When a token that expires at `expires_at` (0: never) does so, where it is `now`; both in unix seconds.
pub(crate) fn expiry(expires_at: i64, now: i64) -> Option<Instant> {
    let left = Duration::from_secs(u64::try_from(expires_at.saturating_sub(now)).unwrap_or(0));
    (expires_at > 0).then(|| Instant::now() + left)
}

/// One request in flight, at its connection and, once that is known, of its token.
pub(crate) struct InFlight {
    activity: Option<Arc<Activity>>,
    token: Option<Arc<TokenEntry>>,
}

impl InFlight {
    pub(crate) fn begin(activity: Arc<Activity>) -> Self {
        activity.begin();
        Self { activity: Some(activity), token: None }
    }

    /// From here on it is the token's alone.
    pub(crate) fn leave_connection(&mut self) -> Option<Arc<Activity>> {
        self.activity.take().inspect(|activity| activity.end())
    }

    /// Counts it for its token.
    pub(crate) fn of(mut self, token: &Arc<TokenEntry>, most: u32) -> Result<Self, Refusal> {
        if !token.enter(most) {
            return Err(Code::LimitExceeded.into());
        }
        self.token = Some(token.clone());
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
        if let Some(token) = &self.token {
            token.leave();
        }
    }
}
