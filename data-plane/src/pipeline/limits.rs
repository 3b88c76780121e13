//! Counts a permitted request for the limits that apply to it, before anything is sent.
//!
//! What a model will use is known only when its answer has ended. So a limit of tokens or money
//! reserves an estimate, and the record settles it at its end: what was not needed goes back, and
//! what was used beyond it is charged too. The fleet is over such a limit by no more than what
//! answers in progress use beyond their reservations.

use std::time::{Duration, UNIX_EPOCH};

use http::StatusCode;
use http_body::Body as _;
use seks_limits::{Limit, Quantity};
use seks_policy::AppliedLimit;
use seks_usage::Tokens;

use super::{audit::Record, authorize::Permitted, model_call::ModelCall, refusal::Refusal};
use crate::{
    code::Code,
    http::client::Upload,
    table::{OverLimit, Table, Taken},
};

/// Counts the request once for each limit that its decisions named and that it was not counted for.
/// A limit in shadow mode is counted and recorded, and refuses nothing. A request that is refused
/// counts for no limit.
pub(crate) async fn call(permitted: &Permitted, table: &Table, record: &mut Record) -> Result<(), Refusal> {
    let token = &permitted.identified.token;
    let mut counted = Vec::new();
    while let Some(applied) = record.next_limit() {
        let amount = match (applied.limit.quantity.is_usage(), record.asked_model()) {
            (false, _) => Some(1),
            (true, None) => continue, // its answer has no usage
            (true, Some(call)) => reservation(&applied.limit, call, &permitted.body),
        };
        let taken = match amount {
            Some(amount) => table.limit_slices().take(token, &applied, amount).await,
            None => Err(OverLimit::NoPrices),
        };
        let over = match taken {
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
    counted.into_iter().for_each(|taken| record.reserves(taken));
    Ok(())
}

/// Bytes of a token of input, in the mean of English text and code.
const BYTES_OF_TOKEN: u64 = 4;
/// Tokens of output that are reserved where the request does not say how many it wants at most, or
/// where its body was not read before.
const USUAL_OUTPUT: u64 = 512;
/// Such a reservation is at most this part of the limit, so that no more of it is left unused.
const UNSTATED_PART: u64 = 8;

/// What is reserved of a limit for one request. `None`: of money, and the node has no prices.
fn reservation(limit: &Limit, call: &ModelCall, body: &Upload) -> Option<u64> {
    let (length, stated) = match body {
        Upload::Empty | Upload::Whole(None) => (0, None),
        Upload::Whole(Some(whole)) | Upload::Kept(whole, _) => (whole.len() as u64, seks_usage::most_output(whole)),
        Upload::Stream(stream) => (stream.size_hint().lower(), None),
    };
    let most = if stated.is_some() { limit.amount } else { limit.amount / UNSTATED_PART };
    let tokens = Tokens { input: length / BYTES_OF_TOKEN, output: stated.unwrap_or(USUAL_OUTPUT), ..Tokens::default() };
    let amount = match limit.quantity {
        Quantity::Money => call.cost(call.model.as_deref().unwrap_or_default(), &tokens)?,
        _ => tokens.total(),
    };
    Some(amount.clamp(1, most.max(1)))
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
            let verb = if limit.quantity == Quantity::Money { "is" } else { "are" };
            let detail = format!("limit `{id}`: {limit} {verb} used up; the next window begins at {end}");
            refusal.with_detail(detail).retry_after(seconds)
        }
        OverLimit::Concurrent => {
            refusal.with_detail(format!("limit `{id}`: {limit} are in flight at this node; wait until one has ended"))
        }
        OverLimit::NoPrices => refusal
            .with_detail(format!("limit `{id}`: this node does not know what models cost: set [usage] prices"))
            .with_status(StatusCode::SERVICE_UNAVAILABLE),
        OverLimit::Unanswered => refusal
            .with_detail(format!("limit `{id}`: this node gets no answer from its control plane about what is left"))
            .with_status(StatusCode::SERVICE_UNAVAILABLE),
    }
}

/// At least 1: clients take 0 for "at once".
fn seconds_up(time: Duration) -> u32 {
    u32::try_from(time.as_millis().div_ceil(1000)).unwrap_or(u32::MAX).max(1)
}
