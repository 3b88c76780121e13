//! Fake AWS key pairs: the tenant's key that they hang on, and the pair of a token.

use seks_types::{
    id::{ServiceName, TenantName},
    secret::{Fields, Secret},
    token::{
        self,
        aws::{self, AwsKeys},
    },
};

use super::{
    Change, Registry, RegistryError,
    change::retry_on_conflict,
    record::{Service, Token},
};
use crate::{seal::RecordId, store::Key};

impl Registry {
    /// The pair that AWS SDKs sign with in place of `token`; `None` when it grants no service whose
    /// requests are signed.
    ///
    /// # Errors
    /// Of the store and the seal.
    pub async fn aws_keys(&self, token: &Token) -> Result<Option<AwsKeys>, RegistryError> {
        let Ok(tenant) = TenantName::try_from(token.tenant.as_str()) else { return Ok(None) };
        for grant in &token.grants {
            let Ok(name) = ServiceName::try_from(grant.service.as_str()) else { continue };
            let service = self.load::<Service>(Key::Service(tenant.clone(), name)).await?;
            if service.is_some_and(|s| is_signed(&s.value)) {
                let digest = token::Digest::try_from(token.digest.as_slice());
                let digest = digest.map_err(|_| RegistryError::Corrupt { key: token.id.clone() })?;
                return Ok(Some(AwsKeys::derive(&self.aws_key(&tenant).await?, &digest)));
            }
        }
        Ok(None)
    }

    /// The key pair of a token that the caller has. The token need not exist: only its holder can
    /// use the pair.
    ///
    /// # Errors
    /// [`RegistryError::Invalid`] for a text that is not a token; [`RegistryError::NotFound`] for
    /// the tenant.
    pub async fn aws_keys_of(&self, tenant: &TenantName, token: &str) -> Result<AwsKeys, RegistryError> {
        let digest = token::parse(token.as_bytes())
            .map_err(|_| RegistryError::invalid("token", "not a token of ours, or mistyped"))?;
        Ok(AwsKeys::derive(&self.aws_key(tenant).await?, &digest))
    }

    /// The fields of a credential as nodes need them: one that requests or URLs are signed with
    /// brings the tenant's key along.
    pub(super) async fn with_aws_key(
        &self,
        tenant: &TenantName,
        service: &Service,
        fields: Fields,
    ) -> Result<Fields, RegistryError> {
        if !is_signed(service) && service.keyless_urls.is_empty() {
            return Ok(fields);
        }
        let key = self.aws_key(tenant).await?;
        fields.with(aws::KEY_FIELD, &key).map_err(|error| RegistryError::invalid("secret", error.to_string()))
    }

    /// The tenant's key, made when it is first asked for, and never changed: the pairs of all its
    /// tokens hang on it.
    async fn aws_key(&self, tenant: &TenantName) -> Result<Secret, RegistryError> {
        let key = Key::AwsKey(tenant.clone());
        retry_on_conflict(|| async {
            let id = RecordId::aws_key(self.store().store_id(), tenant);
            if let Some(envelope) = self.store().get(&key).await? {
                return Ok(self.sealer.open(&id, &envelope.value).await?);
            }
            let parent = self.active_tenant(tenant).await?;
            let fresh = aws::fresh_key().map_err(RegistryError::Random)?;
            let envelope = self.sealer.seal(&id, &fresh).await?;
            let change = Change::new().check(&parent).check_absent(key.clone());
            self.commit(change.put_bytes(key.clone(), envelope)).await?;
            Ok(fresh)
        })
        .await
    }
}

fn is_signed(service: &Service) -> bool {
    service.injection.as_ref().is_some_and(|i| i.aws_sigv4.is_some())
}
