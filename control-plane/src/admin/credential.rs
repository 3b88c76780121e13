//! Credentials: in, never out.

use seks_proto::wire::{
    AssignCredentialRequest, ChangeResponse, Credential, CredentialResponse, DeleteRequest, ListCredentialsResponse,
    ListNodesResponse, ListRequest, NameRequest, Node, PutCredentialRequest, RebindCredentialRequest,
    RollbackCredentialRequest,
};
use seks_service::{EXCHANGE, INTERCEPTION};
use seks_types::{
    id::{CredentialName, OperatorName, PoolName, ServiceName, TenantName},
    secret::Secret,
};

use super::{
    Admin, Answer, audit,
    auth::Caller,
    parse::{name, names},
    problem::Problem,
};
use crate::{
    mint,
    registry::{Mintable, RegistryError},
    store::Revision,
};

pub(super) async fn put(admin: &Admin, caller: &Caller, message: PutCredentialRequest) -> Answer<CredentialResponse> {
    let secret = Secret::new(message.secret);
    let by: OperatorName = name("operator", &caller.operator().name)?;
    let (tenant, credential) = (name("tenant", &message.tenant)?, name("name", &message.name)?);
    let service: ServiceName = name("service", &message.service)?;
    if service.as_str() == EXCHANGE {
        return Err(Problem::invalid("service", format!("`{EXCHANGE}` belongs to `seks trust`")));
    }
    let pools: Vec<PoolName> = names("pools", &message.pools)?;
    let (credential, mut revision) = if message.mint.is_empty() {
        admin.registry().put_credential(&tenant, &credential, &service, &secret, &pools, &by).await?
    } else {
        let of = (&tenant, &credential, &service);
        put_fetched(admin, of, &message.mint, &secret, (&pools, &by)).await?
    };
    drop(secret); // not held while waiting
    if service.as_str() == INTERCEPTION
        && let Some(later) = admin.refresh_tenant_ca(tenant.as_str()).await
    {
        revision = later;
    }
    Ok(CredentialResponse { credential: Some(credential), enforcement: admin.enforced(revision, message.wait).await })
}

/// Fetches the first token or secret, and stores it with what it is fetched by.
pub(super) async fn put_fetched(
    admin: &Admin,
    of: (&TenantName, &CredentialName, &ServiceName),
    kind: &str,
    secret: &Secret,
    (pools, by): (&[PoolName], &OperatorName),
) -> Answer<(Credential, Revision)> {
    let (tenant, _, service) = of;
    let Mintable { networks, has_several_fields } = admin.registry().mintable(tenant, service, kind).await?;
    let access = admin.0.reach.of(tenant, networks, has_several_fields);
    let minted = mint::mint_from(kind, secret, &access).await.map_err(RegistryError::from)?;
    Ok(admin.registry().put_minted(of, kind, secret, &minted, pools, by).await?)
}

pub(super) async fn list(admin: &Admin, _: &Caller, message: ListRequest) -> Answer<ListCredentialsResponse> {
    let (credentials, next_page_token) = super::page(admin, "credential", message).await?;
    let credentials = admin.registry().with_mints(credentials).await?;
    Ok(ListCredentialsResponse { credentials, next_page_token })
}

pub(super) async fn get(admin: &Admin, _: &Caller, message: NameRequest) -> Answer<Credential> {
    Ok(admin.registry().credential(&name("tenant", &message.tenant)?, &name("name", &message.name)?).await?)
}

/// Only the fields of a node that an operator with access to the credential needs.
pub(super) async fn locate(admin: &Admin, caller: &Caller, message: NameRequest) -> Answer<ListNodesResponse> {
    let credential = get(admin, caller, message).await?;
    let (tenant, name) = (name("tenant", &credential.tenant)?, name("name", &credential.name)?);
    let brief = |node: Node| Node {
        id: node.id,
        region: node.region,
        connected: node.connected,
        applied_revision: node.applied_revision,
        lag: node.lag,
        lease_remaining_ms: node.lease_remaining_ms,
        ..Node::default()
    };
    Ok(ListNodesResponse { nodes: admin.0.distribution.holders(&tenant, &name).into_iter().map(brief).collect() })
}

pub(super) async fn assign(admin: &Admin, _: &Caller, message: AssignCredentialRequest) -> Answer<CredentialResponse> {
    let (tenant, credential) = (name("tenant", &message.tenant)?, name("name", &message.name)?);
    let pools: Vec<PoolName> = names("pools", &message.pools)?;
    let (credential, revision) = admin.registry().assign_credential(&tenant, &credential, &pools).await?;
    Ok(CredentialResponse { credential: Some(credential), enforcement: admin.enforced(revision, message.wait).await })
}

pub(super) async fn rollback(
    admin: &Admin,
    caller: &Caller,
    message: RollbackCredentialRequest,
) -> Answer<CredentialResponse> {
    let by: OperatorName = name("operator", &caller.operator().name)?;
    let (tenant, credential) = (name("tenant", &message.tenant)?, name("name", &message.name)?);
    let (credential, revision) =
        admin.registry().rollback_credential(&tenant, &credential, message.version, &by).await?;
    Ok(CredentialResponse { credential: Some(credential), enforcement: admin.enforced(revision, message.wait).await })
}

pub(super) async fn rebind(
    admin: &Admin,
    caller: &Caller,
    message: RebindCredentialRequest,
) -> Answer<CredentialResponse> {
    let by: OperatorName = name("operator", &caller.operator().name)?;
    let (tenant, credential) = (name("tenant", &message.tenant)?, name("name", &message.name)?);
    let (credential, revision, rebound) =
        admin.registry().rebind_credential(&tenant, &credential, &message.origin, &by).await?;
    audit::rebound(&rebound);
    Ok(CredentialResponse { credential: Some(credential), enforcement: admin.enforced(revision, message.wait).await })
}

pub(super) async fn delete(admin: &Admin, _: &Caller, message: DeleteRequest) -> Answer<ChangeResponse> {
    let (tenant, credential) = (name("tenant", &message.tenant)?, name("name", &message.name)?);
    let revision = admin.registry().delete_credential(&tenant, &credential).await?;
    Ok(ChangeResponse { name: message.name, enforcement: admin.enforced(revision, message.wait).await })
}
