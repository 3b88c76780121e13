//! Approvals.

use seks_proto::wire::{
    Approval, ApprovalResponse, ChangeResponse, DeleteRequest, DenyApprovalRequest, GrantApprovalRequest,
    ListApprovalsResponse, ListRequest, NameRequest, SetApprovalRulesRequest, Tenant,
};

use super::{Admin, Answer, auth::Caller, parse::name, token::operator};
use crate::registry::Approve;

pub(super) async fn list(admin: &Admin, _: &Caller, message: ListRequest) -> Answer<ListApprovalsResponse> {
    let approvals = admin.registry().approvals(&name("tenant", &message.tenant)?).await?;
    Ok(ListApprovalsResponse { approvals, next_page_token: String::new() })
}

pub(super) async fn get(admin: &Admin, _: &Caller, message: NameRequest) -> Answer<Approval> {
    Ok(admin.registry().approval(&name("tenant", &message.tenant)?, &name("name", &message.name)?).await?)
}

pub(super) async fn grant(admin: &Admin, caller: &Caller, message: GrantApprovalRequest) -> Answer<ApprovalResponse> {
    let (tenant, id) = (name("tenant", &message.tenant)?, name("name", &message.name)?);
    let approve = Approve {
        by: operator(caller)?,
        seconds: message.for_seconds,
        limit: message.limit,
        any_values: message.any_values,
        reason: message.reason,
    };
    let run = admin.policy_run(caller, &tenant);
    let (approval, revision) = admin.registry().grant_approval(&tenant, &id, &approve, &run).await?;
    Ok(ApprovalResponse { approval: Some(approval), enforcement: admin.enforced(revision, message.wait).await })
}

pub(super) async fn deny(admin: &Admin, caller: &Caller, message: DenyApprovalRequest) -> Answer<Approval> {
    let (tenant, id) = (name("tenant", &message.tenant)?, name("name", &message.name)?);
    let by = operator(caller)?;
    Ok(admin.registry().deny_approval(&tenant, &id, (&by, message.for_seconds, &message.reason)).await?)
}

pub(super) async fn revoke(admin: &Admin, _: &Caller, message: DeleteRequest) -> Answer<ChangeResponse> {
    let (tenant, id) = (name("tenant", &message.tenant)?, name("name", &message.name)?);
    let revision = admin.registry().revoke_approval(&tenant, &id).await?;
    Ok(ChangeResponse { name: message.name, enforcement: admin.enforced(revision, message.wait).await })
}

pub(super) async fn set_rules(admin: &Admin, _: &Caller, message: SetApprovalRulesRequest) -> Answer<Tenant> {
    let tenant = name("tenant", &message.tenant)?;
    Ok(admin.registry().set_approval_by_another(&tenant, message.approval_by_another).await?)
}
