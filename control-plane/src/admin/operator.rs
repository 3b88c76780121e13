//! Operators.

use std::time::Duration;

use seks_proto::wire::{
    ChangeResponse, CreateOperatorRequest, CreateOperatorResponse, DeleteRequest, ListOperatorsRequest,
    ListOperatorsResponse, Operator, UpdateOperatorRequest, WhoAmIRequest,
};

use super::{Admin, Answer, auth::Caller, parse::name};
use crate::authority::{OPERATOR_TTL, Request, check_operator_ttl};

/// The signing request and the lifetime are checked before the record is created, because an
/// operator without a certificate is of no use.
pub(super) async fn create(
    admin: &Admin,
    _: &Caller,
    message: CreateOperatorRequest,
) -> Answer<CreateOperatorResponse> {
    let operator = name("name", &message.name)?;
    let request = Request::parse(&message.csr_der)?;
    let ttl = match message.ttl_seconds {
        0 => OPERATOR_TTL,
        seconds => Duration::from_secs(seconds),
    };
    check_operator_ttl(ttl)?;
    let (record, _) = admin.registry().create_operator(&operator, message.roles).await?;
    let certificate_pem = admin.authority().sign_operator(&request, &operator, &record.enrolment, ttl)?;
    let operator = record;
    Ok(CreateOperatorResponse { operator: Some(operator), certificate_pem, ca_pem: admin.authority().ca_pem() })
}

pub(super) async fn list(admin: &Admin, _: &Caller, _: ListOperatorsRequest) -> Answer<ListOperatorsResponse> {
    Ok(ListOperatorsResponse { operators: admin.registry().operators().await? })
}

pub(super) async fn update(admin: &Admin, _: &Caller, message: UpdateOperatorRequest) -> Answer<Operator> {
    Ok(admin.registry().update_operator(&name("name", &message.name)?, message.roles).await?)
}

pub(super) async fn delete(admin: &Admin, _: &Caller, message: DeleteRequest) -> Answer<ChangeResponse> {
    let revision = admin.registry().delete_operator(&name("name", &message.name)?).await?;
    // No node knows operators: there is nothing to wait for.
    let enforcement = seks_proto::wire::Enforcement { revision, enforced: true, ..Default::default() };
    Ok(ChangeResponse { name: message.name, enforcement: Some(enforcement) })
}

pub(super) async fn who_am_i(_: &Admin, caller: &Caller, _: WhoAmIRequest) -> Answer<Operator> {
    Ok(caller.operator().clone())
}
