//! Services.

use std::net::IpAddr;

use prost::Message as _;
use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use seks_network::address::{AddressClass, Networks, classify};
use seks_service::{Service as Checked, ServiceError, environment, record_destination};
use seks_types::id::{ServiceName, TenantName};

use super::{
    Change, Registry, RegistryError,
    change::retry_on_conflict,
    delete::list_names,
    limits, now,
    policy::declarations_of,
    record::{Credential, Service, Stored, Tenant, Token},
};
use crate::store::{Key, Revision, key::prefix};

const KIND: &str = "service";

impl Registry {
    /// Creates or replaces a service. Writes nothing if the service is unchanged.
    /// `service.created_at` and `.deleting` are set here.
    ///
    /// While the service has credentials, its fields cannot change, and only a caller that
    /// `may_redirect` can change its destination, because a caller who chooses the destination can
    /// read the credential there. The credentials stay bound to the destination that they were
    /// stored for. Nodes do not use them until they are stored again or
    /// [rebound](Self::rebind_credential).
    ///
    /// # Errors
    /// [`RegistryError::Invalid`], [`RegistryError::Conflict`], [`RegistryError::OwnerOnly`],
    /// [`RegistryError::Quota`].
    pub async fn apply_service(
        &self,
        mut service: Service,
        may_redirect: bool,
    ) -> Result<(Service, Revision), RegistryError> {
        let checked = check(&service)?;
        let (tenant, key) = (&checked.tenant, Key::Service(checked.tenant.clone(), checked.name.clone()));
        service.deleting = false;
        service.private_networks.clear(); // not the editor's to choose
        service.client_ca_pem.clear(); // ours to make
        let service = &service;
        retry_on_conflict(|| async {
            let parent = self.active_tenant(tenant).await?;
            check_networks(&checked, &parent.value)?;
            self.check_body_fields(tenant, service).await?;
            let mut service = service.clone();
            let change = Change::new().check(&parent);
            let change = match self.load::<Service>(key.clone()).await? {
                None => {
                    self.check_quota(tenant, KIND, limits::SERVICES).await?;
                    service.created_at = now();
                    change.check_absent(key.clone())
                }
                Some(old) => {
                    service.created_at = old.value.created_at;
                    service.client_ca_pem.clone_from(&old.value.client_ca_pem);
                    if old.value == service {
                        return Ok((service, old.modified));
                    }
                    self.check_replacement(tenant, &old.value, &service, may_redirect).await?;
                    change.check(&old)
                }
            };
            let revision = self.commit(change.put(key.clone(), &service)).await?;
            Ok((service, revision))
        })
        .await
    }

    /// A body field has one type in a tenant: policies are checked once, for all services.
    async fn check_body_fields(&self, tenant: &TenantName, service: &Service) -> Result<(), RegistryError> {
        if service.body_fields.is_empty() {
            return Ok(());
        }
        let mut services: Vec<Service> = self.values(&prefix::kind(tenant, KIND)).await?;
        services.retain(|other| other.name != service.name);
        services.push(service.clone());
        declarations_of(&services).map(drop)
    }

    pub(super) async fn check_replacement(
        &self,
        tenant: &TenantName,
        old: &Service,
        new: &Service,
        may_redirect: bool,
    ) -> Result<(), RegistryError> {
        let destination = |service: &Service| record_destination(service).ok();
        let redirects = destination(old) != destination(new) || destination(new).is_none();
        if old.fields == new.fields && (may_redirect || !redirects) {
            return Ok(());
        }
        let credentials = self.credentials_of(tenant, &new.name).await?;
        if credentials.is_empty() {
            return Ok(());
        }
        if old.fields != new.fields {
            return Err(RegistryError::conflict(
                format!("service `{}` has other fields than its credentials {}", new.name, list_names(&credentials)),
                "delete the credentials first, or apply it under another name",
            ));
        }
        Err(RegistryError::OwnerOnly(format!(
            "to give service `{1}`, which has the credentials {0}, another destination takes the role owner",
            list_names(&credentials),
            new.name
        )))
    }

    /// All services of a tenant, by name.
    ///
    /// # Errors
    /// [`RegistryError::NotFound`] for the tenant.
    pub async fn services(&self, tenant: &TenantName) -> Result<Vec<Service>, RegistryError> {
        self.load_tenant(tenant).await?;
        self.values(&prefix::kind(tenant, KIND)).await
    }

    /// One service.
    ///
    /// # Errors
    /// [`RegistryError::NotFound`].
    pub async fn service(&self, tenant: &TenantName, name: &ServiceName) -> Result<Service, RegistryError> {
        Ok(self.load_service(tenant, name).await?.value)
    }

    pub(super) async fn load_service(
        &self,
        tenant: &TenantName,
        name: &ServiceName,
    ) -> Result<Stored<Service>, RegistryError> {
        match self.load(Key::Service(tenant.clone(), name.clone())).await? {
            Some(service) => Ok(service),
            None => Err(self.missing(tenant, KIND, name.as_str()).await),
        }
    }

    /// The service that something is about to refer to.
    pub(super) async fn living_service(
        &self,
        tenant: &TenantName,
        name: &ServiceName,
    ) -> Result<Stored<Service>, RegistryError> {
        let service = self.load_service(tenant, name).await?;
        if service.value.deleting { Err(RegistryError::being_deleted(KIND, name)) } else { Ok(service) }
    }

    /// Deletes a service that no credential and no living token uses.
    ///
    /// # Errors
    /// [`RegistryError::NotFound`]; [`RegistryError::Conflict`] names what uses it.
    pub async fn delete_service(&self, tenant: &TenantName, name: &ServiceName) -> Result<Revision, RegistryError> {
        retry_on_conflict(|| async {
            let mut service = self.load_service(tenant, name).await?;
            service.value.deleting = false; // a mark that another delete left is not to be restored
            let marked = Service { deleting: true, ..service.value.clone() };
            self.delete_unused(&service, &marked, Vec::new(), || self.service_in_use(tenant, name)).await
        })
        .await
    }

    async fn service_in_use(&self, tenant: &TenantName, name: &ServiceName) -> Result<(), RegistryError> {
        let credentials = self.credentials_of(tenant, name.as_str()).await?;
        if !credentials.is_empty() {
            return Err(RegistryError::conflict(
                format!("service `{name}` is used by credential {}", list_names(&credentials)),
                "delete the credentials first",
            ));
        }
        let grants = |token: &Token| token.grants.iter().any(|g| g.service == name.as_str());
        let tokens = self.living_tokens(tenant, grants).await?;
        if !tokens.is_empty() {
            return Err(RegistryError::conflict(
                format!("service `{name}` is granted to token {}", list_names(&tokens)),
                "revoke the tokens first",
            ));
        }
        Ok(())
    }

    /// Names of a service's credentials that no node uses, because they are bound to another
    /// destination.
    ///
    /// # Errors
    /// [`RegistryError::NotFound`] for the tenant.
    pub async fn unbound_credentials(&self, service: &Service) -> Result<Vec<String>, RegistryError> {
        let tenant = TenantName::try_from(service.tenant.as_str())
            .map_err(|error| RegistryError::invalid("tenant", error.to_string()))?;
        let all = self.credentials(&tenant).await?;
        Ok(all.into_iter().filter(|c| c.service == service.name && c.unbound).map(|c| c.name).collect())
    }

    /// Names of the credentials of a service.
    pub(super) async fn credentials_of(
        &self,
        tenant: &TenantName,
        service: &str,
    ) -> Result<Vec<String>, RegistryError> {
        let all = self.values::<Credential>(&prefix::kind(tenant, "credential")).await?;
        Ok(all.into_iter().filter(|c| c.service == service).map(|c| c.name).collect())
    }
}

/// Everything that can be refused about a definition.
pub(super) fn check(service: &Service) -> Result<Checked, RegistryError> {
    if service.encoded_len() > limits::SERVICE_BYTES {
        return Err(RegistryError::invalid("service", format!("over {} bytes", limits::SERVICE_BYTES)));
    }
    if !service.upstream_ca_pem.is_empty() {
        check_ca(&service.upstream_ca_pem)?;
    }
    environment::check(&service.env).map_err(|error| RegistryError::invalid("service", error.to_string()))?;
    Checked::try_from(service).map_err(|error| {
        let hint = match &error {
            ServiceError::Upstream(_) if !service.allow_private => {
                "private, loopback and plain-http upstreams need allow_private"
            }
            _ => "",
        };
        RegistryError::Invalid { field: "service", reason: error.to_string(), hint: hint.into() }
    })
}

/// A private upstream takes networks of its tenant; an upstream that is a private address must lie
/// in one of them. What a name leads to is checked by each node, each time it connects.
pub(super) fn check_networks(service: &Checked, tenant: &Tenant) -> Result<(), RegistryError> {
    if !service.allow_private {
        return Ok(());
    }
    let name = &tenant.name;
    let refuse = |reason: String| {
        let hint = format!(
            "an owner of the fleet gives them with `seks tenant update {name} --private-network CIDR`; each node must allow them \
             in `[upstream] private_networks` as well"
        );
        Err(RegistryError::Invalid { field: "allow_private", reason, hint })
    };
    let networks = Networks::parse(&tenant.private_networks)
        .map_err(|e| RegistryError::invalid("private_networks", e.to_string()))?;
    if networks.is_empty() {
        return refuse(format!("tenant `{name}` has no private networks"));
    }
    match service.upstream.host().parse::<IpAddr>().map(|ip| ip.to_canonical()) {
        Ok(ip) if classify(ip) == AddressClass::Private && !networks.contains(ip) => {
            refuse(format!("`{ip}` is in none of the private networks of tenant `{name}`"))
        }
        _ => Ok(()),
    }
}

fn check_ca(pem: &str) -> Result<(), RegistryError> {
    let wrong = |reason: &str| RegistryError::invalid("upstream_ca_pem", reason);
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        let certificate = certificate.map_err(|_| wrong("not PEM"))?;
        roots.add(certificate).map_err(|_| wrong("a certificate in it can't be read"))?;
    }
    if roots.is_empty() { Err(wrong("no certificate in it")) } else { Ok(()) }
}
