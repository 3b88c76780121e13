//! Tenants.

use seks_network::address::Networks;
use seks_proto::wire::{
    ChangeResponse, CreateTenantRequest, DeleteRequest, ListTenantsRequest, ListTenantsResponse, NameRequest, Operator,
    Role, SetTenantQuotaRequest, Tenant, TenantResponse, UpdateTenantRequest,
};
use seks_types::id::TenantName;

use super::{Admin, Answer, auth::Caller, parse::name, problem::Problem};

pub(super) async fn create(admin: &Admin, _: &Caller, message: CreateTenantRequest) -> Answer<Tenant> {
    let tenant: TenantName = name("name", &message.name)?;
    Ok(admin.registry().create_tenant(&tenant, message.strict).await?.0)
}

/// Replaces the private networks that the tenant's services may reach.
pub(super) async fn update(admin: &Admin, _: &Caller, message: UpdateTenantRequest) -> Answer<TenantResponse> {
    let networks = Networks::parse(&message.private_networks)
        .map_err(|error| Problem::invalid("private_networks", error.to_string()))?;
    let (tenant, revision) = admin.registry().set_private_networks(&name("name", &message.name)?, &networks).await?;
    Ok(TenantResponse { tenant: Some(tenant), enforcement: admin.enforced(revision, message.wait).await })
}

/// Those in which the caller has a role.
pub(super) async fn list(admin: &Admin, caller: &Caller, _: ListTenantsRequest) -> Answer<ListTenantsResponse> {
    let mut tenants = admin.registry().tenants().await?;
    tenants.retain(|t| caller.role_in(&t.name) >= Role::Viewer);
    Ok(ListTenantsResponse { tenants })
}

/// With what it has; its operators are for the eyes of those who may see all of them.
pub(super) async fn get(admin: &Admin, caller: &Caller, message: NameRequest) -> Answer<Tenant> {
    if !message.tenant.is_empty() {
        return Err(Problem::invalid("tenant", "a tenant is in no tenant"));
    }
    let tenant: TenantName = name("name", &message.name)?;
    let (record, mut usage) = (admin.registry().tenant(&tenant).await?, admin.registry().usage(&tenant));
    if caller.fleet_role() >= Role::Viewer {
        let here = |o: &&Operator| o.roles.iter().any(|role| role.tenant == tenant.as_str());
        usage.operators = admin.registry().operators().await?.iter().filter(here).count() as u64;
    }
    Ok(Tenant { quota: Some(admin.registry().quota(&tenant)), usage: Some(usage), ..record })
}

pub(super) async fn set_quota(admin: &Admin, _: &Caller, message: SetTenantQuotaRequest) -> Answer<Tenant> {
    let tenant: TenantName = name("name", &message.name)?;
    let (record, revision) =
        admin.registry().set_quota(&tenant, message.quota.unwrap_or_default(), message.reset).await?;
    admin.0.distribution.await_applied(revision, super::SEEN).await;
    Ok(Tenant { quota: Some(admin.registry().quota(&tenant)), usage: None, ..record })
}

pub(super) async fn delete(admin: &Admin, _: &Caller, message: DeleteRequest) -> Answer<ChangeResponse> {
    let revision = admin.registry().delete_tenant(&name("name", &message.name)?).await?;
    Ok(ChangeResponse { name: message.name, enforcement: admin.enforced(revision, message.wait).await })
}
