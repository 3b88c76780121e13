//! Tenants.

use seks_proto::{
    address::Networks,
    id::TenantName,
    wire::{
        ChangeResponse, CreateTenantRequest, DeleteRequest, ListTenantsRequest, ListTenantsResponse, NameRequest, Role,
        Tenant, TenantResponse, UpdateTenantRequest,
    },
};

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

pub(super) async fn get(admin: &Admin, _: &Caller, message: NameRequest) -> Answer<Tenant> {
    if !message.tenant.is_empty() {
        return Err(Problem::invalid("tenant", "a tenant is in no tenant"));
    }
    Ok(admin.registry().tenant(&name("name", &message.name)?).await?)
}

pub(super) async fn delete(admin: &Admin, _: &Caller, message: DeleteRequest) -> Answer<ChangeResponse> {
    let revision = admin.registry().delete_tenant(&name("name", &message.name)?).await?;
    Ok(ChangeResponse { name: message.name, enforcement: admin.enforced(revision, message.wait).await })
}
