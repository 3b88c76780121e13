//! Approvals of operators: what a policy with `@approval` forbids until one is given.
//!
//! A decision names what it needs approval for. A request without it is refused, and the refusal is
//! put before operators; nothing is held open. A use of a counted approval is taken before anything
//! is sent.

use std::{
    sync::Arc,
    time::{Duration, UNIX_EPOCH},
};

use http::StatusCode;
use seks_policy::{Approvals, Body, Call, RequiredApproval, request_digest};
use seks_service::request;

use super::{
    audit::Record,
    needed_approval::{NeededApproval, PendingUse},
    refusal::Refusal,
};
use crate::{
    code::Code,
    table::{ApprovalState, RefusedRequest, ServiceEntry, Table, TokenEntry},
};

/// Names of a query that are shown to operators.
const MAX_QUERY_NAMES: usize = 32;

/// Notes in `record` which approvals permit the request.
///
/// # Errors
/// The refusal of a request that lacks one. [`put_before_operators`] completes it.
pub(super) fn check(
    approvals: &Approvals,
    call: &Call<'_>,
    (token, service, now): (&Arc<TokenEntry>, &ServiceEntry, i64),
    record: &mut Record,
) -> Result<(), Refusal> {
    for required in &approvals.required {
        let grants = approvals.grants_for(required, call, now);
        let Some(first) = grants.first() else {
            return Err(refusal(Arc::new(needed(required, call, token, service))));
        };
        if first.is_counted {
            let needed = Arc::new(needed(required, call, token, service));
            record.uses(PendingUse { grants, needed });
        } else {
            record.decided(true, std::slice::from_ref(&first.id));
        }
    }
    Ok(())
}

fn needed(
    required: &RequiredApproval,
    call: &Call<'_>,
    token: &Arc<TokenEntry>,
    service: &ServiceEntry,
) -> NeededApproval {
    let names = request::query_names(call.query).take(MAX_QUERY_NAMES);
    let mut query_names: Vec<String> = names.map(std::borrow::Cow::into_owned).collect();
    query_names.sort_unstable();
    query_names.dedup();
    let mcp = match call.body {
        Body::Inspected(facts) => facts.mcp.clone(),
        _ => None,
    };
    let (mcp_method, mcp_name) = mcp.map_or_else(Default::default, |mcp| (mcp.method, mcp.name.unwrap_or_default()));
    let refused = RefusedRequest {
        service: service.name.clone(),
        method: call.method.to_string(),
        path: call.path.to_owned(),
        query_names,
        request_sha256: request_digest(call),
        policy: required.policy.clone(),
        policy_sha256: required.sha256,
        mcp_method,
        mcp_name,
    };
    NeededApproval { token: Arc::clone(token), refused }
}

fn refusal(needed: Arc<NeededApproval>) -> Refusal {
    let policies = [needed.refused.policy.clone()].into();
    Refusal::from(Code::ApprovalRequired).with_policies(policies).needing(needed)
}

/// Takes one use of each counted approval that permits the request.
///
/// # Errors
/// The refusal of a request for which none is left, or where no replica says so.
pub(crate) async fn take_uses(token: &TokenEntry, table: &Table, record: &mut Record) -> Result<(), Refusal> {
    while let Some(pending) = record.next_use() {
        let mut is_answered = true;
        let mut taken = None;
        for grant in &pending.grants {
            let use_left = table.approvals().take_use(token, grant.id.as_str()).await;
            is_answered &= use_left.is_some();
            if use_left == Some(true) {
                taken = Some(grant);
                break;
            }
        }
        match taken {
            Some(grant) => record.used(grant.id.clone()),
            None if is_answered => {
                return Err(put_before_operators(refusal(pending.needed), table).await);
            }
            None => return Err(unanswered(&pending.needed)),
        }
    }
    Ok(())
}

/// Reports a request that lacks an approval, and says what operators can do about it. Any other
/// refusal stays as it is.
pub(crate) async fn put_before_operators(refusal: Refusal, table: &Table) -> Refusal {
    let Some(needed) = refusal.needed().cloned() else { return refusal };
    let policy = &needed.refused.policy;
    let detail = match table.approvals().ask(&needed.token, &needed.refused).await {
        ApprovalState::Waiting(id, until) => format!(
            "policy `{policy}` asks for an operator's approval: `{id}` waits until {}; an operator runs `seks approval approve {id}`, \
             then send the request again",
            time(until)
        ),
        ApprovalState::Denied(id, until) => {
            format!("policy `{policy}` asks for an operator's approval, and `{id}` was denied until {}", time(until))
        }
        ApprovalState::Approved(id) => {
            format!(
                "policy `{policy}` asks for an operator's approval: `{id}` was just approved, send the request again"
            )
        }
        ApprovalState::Full => format!(
            "policy `{policy}` asks for an operator's approval, and too many requests of this agent or tenant wait for one"
        ),
        ApprovalState::Unknown => format!(
            "policy `{policy}` asks for an operator's approval, which cannot be asked for a request like this: its path or \
             query names are too long or have characters beyond ASCII, or records have just changed"
        ),
        ApprovalState::Unanswered => return unanswered(&needed),
    };
    refusal.with_detail(detail)
}

/// The node is cut off, or asks too much. A later attempt may work.
fn unanswered(needed: &NeededApproval) -> Refusal {
    let policy = &needed.refused.policy;
    let detail = format!(
        "policy `{policy}` asks for an operator's approval, and this node gets no answer from its control plane about it"
    );
    let refusal = Refusal::from(Code::ApprovalRequired).with_policies([policy.clone()].into());
    refusal.with_status(StatusCode::SERVICE_UNAVAILABLE).with_detail(detail)
}

fn time(unix: i64) -> impl std::fmt::Display {
    humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(unix.clamp(0, 253_402_300_799).unsigned_abs()))
}
