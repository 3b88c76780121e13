//! Keeps the certificate that clients of HTTPS_PROXY mode trust in step with the tenant's services.

use std::{collections::BTreeSet, time::SystemTime};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use seks_service::{INTERCEPTION, INTERCEPTION_CERTIFICATE, INTERCEPTION_KEY, Upstream};
use seks_types::{
    id::{CredentialName, ServiceName, TenantName},
    secret::Fields,
};

use super::{
    Change, Registry, RegistryError,
    change::retry_on_conflict,
    record::{Credential, Service, destination_of},
};
use crate::{
    authority::tenant_ca,
    seal::RecordId,
    store::{Key, Revision, key::prefix},
};

impl Registry {
    /// Makes the certificate again where the hosts of the tenant's services are others than those
    /// in it, or it ends soon. `None`: the tenant has no CA, or there is nothing to do.
    ///
    /// # Errors
    /// Of the store; of the sealing.
    pub async fn refresh_tenant_ca(&self, tenant: &TenantName) -> Result<Option<Revision>, RegistryError> {
        let (service, credential) = (ServiceName::try_from(INTERCEPTION), CredentialName::try_from(INTERCEPTION));
        let (Ok(service), Ok(credential)) = (service, credential) else { return Ok(None) };
        retry_on_conflict(|| async {
            let Some(stored) = self.load::<Service>(Key::Service(tenant.clone(), service.clone())).await? else {
                return Ok(None);
            };
            let hosts = self.hosts_of_services(tenant).await?;
            let (original, now) = (&stored.value.upstream_ca_pem, SystemTime::now());
            if stored.value.deleting || tenant_ca::is_current(&stored.value.client_ca_pem, original, &hosts, now) {
                return Ok(None);
            }
            let Some((certificate, key)) = self.tenant_ca_pair(tenant, &credential).await? else { return Ok(None) };
            if !tenant_ca::is_of(&certificate, original) {
                return Ok(None); // `seks ca create` is half-way: its credential comes next
            }
            let client_ca_pem = match tenant_ca::make(&certificate, &key, &hosts, now) {
                Ok(pem) => pem,
                Err(error) => {
                    tracing::warn!(seks.tenant = %tenant, %error, "clients get the CA without name constraints");
                    return Ok(None);
                }
            };
            let value = Service { client_ca_pem, ..stored.value.clone() };
            let change = Change::new().check(&stored).put(stored.key.clone(), &value);
            self.commit(change).await.map(Some)
        })
        .await
    }

    /// The same for every tenant: certificates end, and a replica may have stopped half-way.
    ///
    /// # Errors
    /// As [`refresh_tenant_ca`](Self::refresh_tenant_ca).
    pub async fn refresh_tenant_cas(&self) -> Result<(), RegistryError> {
        for tenant in self.tenants().await?.into_iter().filter(|tenant| !tenant.deleting) {
            if let Ok(name) = TenantName::try_from(tenant.name.as_str()) {
                self.refresh_tenant_ca(&name).await?;
            }
        }
        Ok(())
    }

    /// Hosts that a tunnel may be opened to.
    async fn hosts_of_services(&self, tenant: &TenantName) -> Result<BTreeSet<String>, RegistryError> {
        let services = self.values::<Service>(&prefix::kind(tenant, "service")).await?;
        let upstreams = services.iter().filter(|s| s.name != INTERCEPTION && !s.deleting);
        let upstreams = upstreams.filter_map(|s| Upstream::parse(&s.upstream, true).ok()).filter(Upstream::tls);
        Ok(upstreams
            .map(|u| u.host().parse().map_or_else(|_| u.host().to_owned(), |ip: std::net::IpAddr| ip.to_string()))
            .collect())
    }

    /// Certificate and key of the CA, in DER.
    async fn tenant_ca_pair(
        &self,
        tenant: &TenantName,
        name: &CredentialName,
    ) -> Result<Option<(Vec<u8>, zeroize::Zeroizing<Vec<u8>>)>, RegistryError> {
        let Some(credential) = self.load::<Credential>(Key::Credential(tenant.clone(), name.clone())).await? else {
            return Ok(None);
        };
        let version = credential.value.version;
        let Some(envelope) = self.store().get(&Key::Envelope(tenant.clone(), name.clone(), version)).await? else {
            return Ok(None);
        };
        let id = RecordId::credential(self.store().store_id(), tenant, name, version);
        let id = id.bound_to(destination_of(&credential.value, version));
        let fields = Fields::decode(self.sealer.open(&id, &envelope.value).await?);
        let fields = fields.map_err(|_| RegistryError::Corrupt { key: credential.key.to_string() })?;
        let der = |field| fields.get(field).and_then(|text| STANDARD.decode(text).ok());
        Ok(der(INTERCEPTION_CERTIFICATE).zip(der(INTERCEPTION_KEY).map(zeroize::Zeroizing::new)))
    }
}
