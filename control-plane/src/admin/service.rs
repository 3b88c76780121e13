//! Services and the catalogue.

use seks_proto::wire::{
    ApplyServiceRequest, ChangeResponse, DeleteRequest, EnableServiceRequest, ListCatalogueRequest,
    ListCatalogueResponse, ListRequest, ListServicesResponse, NameRequest, Role, Service, ServiceResponse, Wait,
};
use seks_service::{EXCHANGE, catalogue, is_reserved_name};
use seks_types::similar::closest;

use super::{Admin, Answer, auth::Caller, parse::name, problem::Problem};
use crate::registry::RegistryError;

/// Entries whose name, title, group or upstream holds the search text, whatever its case.
pub(super) async fn catalogue(_: &Admin, _: &Caller, message: ListCatalogueRequest) -> Answer<ListCatalogueResponse> {
    let wanted = message.search.to_lowercase();
    let found = |entry: &&catalogue::CatalogueEntry| {
        let service = &entry.service;
        let texts = [&service.name, &service.title, &entry.group, &service.upstream];
        texts.iter().any(|text| text.to_lowercase().contains(&wanted))
    };
    let found: Vec<_> = catalogue::entries().iter().filter(found).collect();
    Ok(ListCatalogueResponse {
        services: found.iter().map(|entry| entry.service.clone()).collect(),
        groups: found.iter().map(|entry| (entry.service.name.clone(), entry.group.clone())).collect(),
    })
}

pub(super) async fn enable(admin: &Admin, caller: &Caller, message: EnableServiceRequest) -> Answer<ServiceResponse> {
    let entry = catalogue::find(&message.catalogue).ok_or_else(|| {
        let names = catalogue::entries().iter().map(|entry| entry.service.name.as_str());
        let missing = Problem::not_found("catalogue entry", &message.catalogue.chars().take(63).collect::<String>());
        match closest(&message.catalogue, names) {
            Some(name) => missing.hint(format!("did you mean `{name}`?")),
            None => missing.hint("`seks service catalog` lists them; `seks service apply -f FILE` takes any other"),
        }
    })?;
    if entry.needs_upstream() && message.upstream.is_empty() {
        let example = &entry.service.upstream;
        return Err(Problem::invalid("upstream", "every customer of this service has a host of its own")
            .hint(format!("say yours with --upstream, like {example}")));
    }
    let mut service = entry.service.clone();
    service.tenant = message.tenant;
    if !message.name.is_empty() {
        service.name = message.name;
    }
    if !message.upstream.is_empty() {
        service.upstream = message.upstream;
    }
    service.upstream_ca_pem = message.upstream_ca_pem;
    service.allow_private |= message.allow_private;
    put(admin, caller, service, message.wait).await
}

pub(super) async fn apply(admin: &Admin, caller: &Caller, message: ApplyServiceRequest) -> Answer<ServiceResponse> {
    let service = message.service.ok_or_else(|| Problem::invalid("service", "is missing"))?;
    put(admin, caller, service, message.wait).await
}

async fn put(admin: &Admin, caller: &Caller, service: Service, wait: Option<Wait>) -> Answer<ServiceResponse> {
    check_name(admin, &service).await?;
    let owner = caller.role_in(&service.tenant) >= Role::Owner;
    let (service, mut revision) = admin.registry().apply_service(service, owner).await?;
    if let Some(later) = admin.refresh_tenant_ca(&service.tenant).await {
        revision = later;
    }
    let unbound = admin.registry().unbound_credentials(&service).await?;
    Ok(ServiceResponse { service: Some(service), enforcement: admin.enforced(revision, wait).await, unbound })
}

/// A new service may not have a name that the node or a tool in front of it gives a meaning of its
/// own. Services that had one before keep it.
pub(super) async fn check_name(admin: &Admin, service: &Service) -> Result<(), Problem> {
    if !is_reserved_name(&service.name) {
        return Ok(());
    }
    if service.name == EXCHANGE {
        return Err(Problem::invalid("name", format!("`{EXCHANGE}` belongs to `seks trust`")));
    }
    let (tenant, wanted) = (name("tenant", &service.tenant)?, name("name", &service.name)?);
    match admin.registry().service(&tenant, &wanted).await {
        Ok(_) => Ok(()),
        Err(RegistryError::NotFound { kind: "service", .. }) => {
            Err(Problem::invalid("name", format!("`{wanted}` is a reserved name"))
                .hint("choose another, such as the upstream's product"))
        }
        Err(other) => Err(other.into()),
    }
}

pub(super) async fn list(admin: &Admin, _: &Caller, message: ListRequest) -> Answer<ListServicesResponse> {
    let (services, next_page_token) = super::page(admin, "service", message).await?;
    Ok(ListServicesResponse { services, next_page_token })
}

pub(super) async fn get(admin: &Admin, _: &Caller, message: NameRequest) -> Answer<Service> {
    Ok(admin.registry().service(&name("tenant", &message.tenant)?, &name("name", &message.name)?).await?)
}

pub(super) async fn delete(admin: &Admin, _: &Caller, message: DeleteRequest) -> Answer<ChangeResponse> {
    let (tenant, service) = (name("tenant", &message.tenant)?, name("name", &message.name)?);
    let mut revision = admin.registry().delete_service(&tenant, &service).await?;
    if let Some(later) = admin.refresh_tenant_ca(tenant.as_str()).await {
        revision = later;
    }
    Ok(ChangeResponse { name: message.name, enforcement: admin.enforced(revision, message.wait).await })
}
