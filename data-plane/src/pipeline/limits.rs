//! Counts a permitted request for the limits that apply to it, before anything is sent.

use std::time::{Duration, UNIX_EPOCH};

use http::StatusCode;
use seks_policy::AppliedLimit;

use super::{audit::Record, refusal::Refusal};
use crate::{
    code::Code,
    table::{OverLimit, Table, Taken, TokenEntry},
};

/// Counts the request once for each limit that its decisions named and that it was not counted for.
/// A limit in shadow mode is counted and recorded, and refuses nothing. A request that is refused
/// counts for no limit.
pub(crate) async fn call(token: &TokenEntry, table: &Table, record: &mut Record) -> Result<(), Refusal> {
    let mut counted = Vec::new();
    while let Some(applied) = record.next_limit() {
        let over = match table.limit_slices().take(token, &applied).await {
            Ok(Taken::Slot(slot)) => {
                record.holds(slot);
                continue;
            }
            Ok(taken) => {
                counted.push(taken);
                continue;
            }
            Err(over) => over,
        };
        table.limit_slices().count_over(applied.shadow);
        if applied.shadow {
            record.audited(std::iter::once(applied.id.as_str()));
            continue;
        }
        counted.into_iter().for_each(|taken| table.limit_slices().give_back(taken));
        return Err(refusal(&applied, over, table.wall().unix_now()));
    }
    Ok(())
}

/// The last second of the year 9999, in Unix time: the end of RFC 3339.
const LAST_SECOND: u64 = 253_402_300_799;

fn refusal(applied: &AppliedLimit, over: OverLimit, now: i64) -> Refusal {
    let AppliedLimit { id, limit, .. } = applied;
    let refusal = Refusal::from(Code::LimitExceeded).with_policies([id.clone()].into());
    match over {
        OverLimit::Spent(left) => {
            let seconds = seconds_up(left);
            let end = u64::try_from(now).unwrap_or_default().saturating_add(seconds.into()).min(LAST_SECOND);
            let end = humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(end));
            let detail = format!("limit `{id}`: {limit} are used up; the next window begins at {end}");
            refusal.with_detail(detail).retry_after(seconds)
        }
        OverLimit::Concurrent => {
            refusal.with_detail(format!("limit `{id}`: {limit} are in flight at this node; wait until one has ended"))
        }
        OverLimit::Unanswered => refusal
            .with_detail(format!("limit `{id}`: this node gets no answer from its control plane about what is left"))
            .with_status(StatusCode::SERVICE_UNAVAILABLE),
    }
}

/// At least 1: clients take 0 for "at once".
fn seconds_up(time: Duration) -> u32 {
    u32::try_from(time.as_millis().div_ceil(1000)).unwrap_or(u32::MAX).max(1)
}
