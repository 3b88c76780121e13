//! Operators.
//!
//! An owner of the fleet looks after every operator, an owner of a tenant after those that have
//! roles in its tenants and nowhere else. Nobody gives a role that it could not use itself, and
//! nobody gets a certificate of an operator with more rights.

use std::time::Duration;

use seks_proto::wire::{
    ChangeResponse, CreateOperatorRequest, CreateOperatorResponse, DeleteRequest, ListOperatorsRequest,
    ListOperatorsResponse, Operator, Role, RoleBinding, UpdateOperatorRequest, WhoAmIRequest,
};
use seks_types::id::OperatorName;

use super::{Admin, Answer, auth::Caller, parse::name, problem::Problem};
use crate::{
    authority::{OPERATOR_TTL, Request, check_operator_ttl},
    registry::EVERYWHERE,
};

/// The signing request and the lifetime are checked before the record is created, because an
/// operator without a certificate is of no use.
pub(super) async fn create(
    admin: &Admin,
    caller: &Caller,
    message: CreateOperatorRequest,
) -> Answer<CreateOperatorResponse> {
    let operator: OperatorName = name("name", &message.name)?;
    let known = admin.registry().operator(&operator).await?;
    // Everyone may renew its own certificate.
    let is_own = operator.as_str() == caller.operator().name && (message.roles.is_empty());
    if !is_own {
        let roles = known.as_ref().map_or(&[][..], |known| &known.roles);
        check_owns(caller, roles.iter().chain(&message.roles))?;
    }
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

/// Of an operator that has roles elsewhere too, an owner of one tenant sees those in it.
pub(super) async fn list(admin: &Admin, caller: &Caller, _: ListOperatorsRequest) -> Answer<ListOperatorsResponse> {
    let mut operators = admin.registry().operators().await?;
    if caller.fleet_role() < Role::Viewer {
        let own = &caller.operator().name;
        for operator in operators.iter_mut().filter(|operator| operator.name != *own) {
            operator.roles.retain(|role| caller.role_in(&role.tenant) >= Role::Owner);
        }
        operators.retain(|operator| !operator.roles.is_empty());
    }
    Ok(ListOperatorsResponse { operators })
}

/// What changes must be in tenants of the caller; roles in others stay as they are.
pub(super) async fn update(admin: &Admin, caller: &Caller, message: UpdateOperatorRequest) -> Answer<Operator> {
    let operator: OperatorName = name("name", &message.name)?;
    let known = load(admin, caller, &operator).await?;
    let gone = known.roles.iter().filter(|role| !message.roles.contains(role));
    let new = message.roles.iter().filter(|role| !known.roles.contains(role));
    check_owns(caller, gone.chain(new))?;
    Ok(admin.registry().update_operator(&operator, message.roles).await?)
}

/// The operator, for a caller that owns a tenant in which it has a role. For others there is none.
async fn load(admin: &Admin, caller: &Caller, name: &OperatorName) -> Answer<Operator> {
    let known = admin.registry().operator(name).await?;
    let is_visible = |operator: &Operator| {
        caller.fleet_role() >= Role::Viewer
            || operator.name == caller.operator().name
            || operator.roles.iter().any(|role| caller.role_in(&role.tenant) >= Role::Owner)
    };
    known.filter(is_visible).ok_or_else(|| Problem::not_found("operator", name.as_str()))
}

/// Whether the caller is an owner wherever these roles hold.
fn check_owns<'a>(caller: &Caller, mut roles: impl Iterator<Item = &'a RoleBinding>) -> Answer<()> {
    if caller.fleet_role() >= Role::Owner {
        return Ok(());
    }
    let owns_nothing = !caller.operator().roles.iter().any(|role| role.role() == Role::Owner);
    let beyond = roles.find(|role| role.tenant == EVERYWHERE || caller.role_in(&role.tenant) < Role::Owner);
    match beyond {
        None if !owns_nothing => Ok(()),
        Some(role) if role.tenant != EVERYWHERE && caller.role_in(&role.tenant) > Role::Unspecified => {
            Err(Problem::denied(format!("operators with a role in tenant `{}` take the role owner there", role.tenant)))
        }
        // A tenant that the caller cannot see is not named.
        _ => Err(Problem::denied("operators with roles beyond your tenants take the role owner in all tenants (`*`)")),
    }
}

pub(super) async fn delete(admin: &Admin, caller: &Caller, message: DeleteRequest) -> Answer<ChangeResponse> {
    let known = load(admin, caller, &name("name", &message.name)?).await?;
    check_owns(caller, known.roles.iter())?;
    let revision = admin.registry().delete_operator(&name("name", &message.name)?).await?;
    // No node knows operators: there is nothing to wait for.
    let enforcement = seks_proto::wire::Enforcement { revision, enforced: true, ..Default::default() };
    Ok(ChangeResponse { name: message.name, enforcement: Some(enforcement) })
}

pub(super) async fn who_am_i(_: &Admin, caller: &Caller, _: WhoAmIRequest) -> Answer<Operator> {
    Ok(caller.operator().clone())
}
