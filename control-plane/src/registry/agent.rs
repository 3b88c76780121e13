//! Agents.

use std::collections::BTreeMap;

use seks_types::id::{AgentName, TenantName, TokenId};

use super::{
    Change, Registry, RegistryError,
    change::{MAX_BATCH, retry_on_conflict},
    limits, now,
    record::{Agent, Stored, Token},
};
use crate::store::{Key, Revision, StoreError, key::prefix};

const KIND: &str = "agent";

/// A change of an agent's attributes. Those that it does not name stay.
#[derive(Clone, Debug, Default)]
pub struct AttributeChange {
    /// Attributes to add or replace.
    pub set: BTreeMap<String, String>,
    /// Keys to remove. A key that the agent does not have is no error.
    pub remove: Vec<String>,
}

impl Registry {
    /// Makes an agent with `attributes`, which policies see as tags.
    ///
    /// # Errors
    /// [`RegistryError::Exists`], [`RegistryError::Invalid`], [`RegistryError::Quota`].
    pub async fn create_agent(
        &self,
        tenant: &TenantName,
        name: &AgentName,
        attributes: BTreeMap<String, String>,
    ) -> Result<(Agent, Revision), RegistryError> {
        check_attributes(&attributes)?;
        let agent = Agent {
            tenant: tenant.to_string(),
            name: name.to_string(),
            attributes,
            created_at: now(),
            ..Agent::default()
        };
        let key = Key::Agent(tenant.clone(), name.clone());
        let revision = retry_on_conflict(|| async {
            let parent = self.active_tenant(tenant).await?;
            if self.store.get(&key).await?.is_some() {
                return Err(RegistryError::exists(KIND, name));
            }
            self.check_quota(tenant, KIND, limits::AGENTS).await?;
            self.commit(Change::new().check(&parent).check_absent(key.clone()).put(key.clone(), &agent)).await
        })
        .await?;
        Ok((agent, revision))
    }

    /// All agents of a tenant, by name.
    ///
    /// # Errors
    /// [`RegistryError::NotFound`] for the tenant.
    pub async fn agents(&self, tenant: &TenantName) -> Result<Vec<Agent>, RegistryError> {
        self.load_tenant(tenant).await?;
        self.values(&prefix::kind(tenant, KIND)).await
    }

    /// One agent.
    ///
    /// # Errors
    /// [`RegistryError::NotFound`].
    pub async fn agent(&self, tenant: &TenantName, name: &AgentName) -> Result<Agent, RegistryError> {
        Ok(self.load_agent(tenant, name).await?.value)
    }

    pub(super) async fn load_agent(
        &self,
        tenant: &TenantName,
        name: &AgentName,
    ) -> Result<Stored<Agent>, RegistryError> {
        match self.load(Key::Agent(tenant.clone(), name.clone())).await? {
            Some(agent) => Ok(agent),
            None => Err(self.missing(tenant, KIND, name.as_str()).await),
        }
    }

    /// Changes an agent's attributes. Requests in progress are decided again with the new ones.
    ///
    /// # Errors
    /// [`RegistryError::NotFound`], [`RegistryError::Invalid`], [`RegistryError::Conflict`] for an
    /// agent that is being deleted.
    pub async fn update_agent(
        &self,
        tenant: &TenantName,
        name: &AgentName,
        change: AttributeChange,
    ) -> Result<(Agent, Revision), RegistryError> {
        if let Some(key) = change.remove.iter().find(|key| change.set.contains_key(*key)) {
            return Err(RegistryError::invalid("attributes", format!("`{key}` is both set and removed")));
        }
        retry_on_conflict(|| async {
            let mut agent = self.load_agent(tenant, name).await?;
            if agent.value.deleting {
                return Err(RegistryError::being_deleted(KIND, name));
            }
            let before = agent.value.attributes.clone();
            agent.value.attributes.retain(|key, _| !change.remove.contains(key));
            agent.value.attributes.extend(change.set.clone());
            check_attributes(&agent.value.attributes)?;
            if agent.value.attributes == before {
                return Ok((agent.value, agent.modified)); // the wait for enforcement is what a repetition is for
            }
            let revision = self.commit(Change::new().check(&agent).put(agent.key.clone(), &agent.value)).await?;
            Ok((agent.value, revision))
        })
        .await
    }

    /// Takes everything from an agent, or gives it back. Its tokens stay what they are.
    ///
    /// # Errors
    /// [`RegistryError::NotFound`], [`RegistryError::Conflict`] for one that is being deleted.
    pub async fn set_agent_disabled(
        &self,
        tenant: &TenantName,
        name: &AgentName,
        disabled: bool,
    ) -> Result<Revision, RegistryError> {
        retry_on_conflict(|| async {
            let mut agent = self.load_agent(tenant, name).await?;
            if agent.value.deleting {
                return Err(RegistryError::being_deleted(KIND, name));
            }
            if agent.value.disabled == disabled {
                return Ok(agent.modified); // the wait for enforcement is what a repetition is for
            }
            agent.value.disabled = disabled;
            self.commit(Change::new().check(&agent).put(agent.key.clone(), &agent.value)).await
        })
        .await
    }

    /// Deletes an agent and revokes its tokens. It is disabled first, in one revision, so that all
    /// its tokens stop at once however many there are; they are then deleted in batches of
    /// [`MAX_BATCH`], itself last. Killed half-way it stays disabled, and deleting it again
    /// finishes the work.
    ///
    /// # Errors
    /// [`RegistryError::NotFound`].
    pub async fn delete_agent(&self, tenant: &TenantName, name: &AgentName) -> Result<Revision, RegistryError> {
        retry_on_conflict(|| self.mark_agent(tenant, name)).await?;
        let mut tokens = self.pages(&prefix::kind(tenant, "token"));
        while let Some(page) = tokens.next::<Token>().await? {
            let own: Vec<_> = page.into_iter().filter(|t| t.value.agent == name.as_str()).collect();
            for batch in own.chunks(MAX_BATCH / 2) {
                self.delete_tokens(tenant, batch).await?;
            }
        }
        self.forget_approvals_of(tenant, name).await?;
        self.commit(Change::new().delete(Key::Agent(tenant.clone(), name.clone()))).await
    }

    async fn mark_agent(&self, tenant: &TenantName, name: &AgentName) -> Result<(), RegistryError> {
        let mut agent = self.load_agent(tenant, name).await?;
        if agent.value.deleting {
            return Ok(());
        }
        (agent.value.deleting, agent.value.disabled) = (true, true);
        match self.commit(Change::new().check(&agent).put(agent.key.clone(), &agent.value)).await {
            Ok(_) | Err(RegistryError::Store(StoreError::Full)) => Ok(()),
            Err(other) => Err(other),
        }
    }

    /// Tokens of one batch: deleted, with what is left of them for the nodes to say
    /// `token_revoked`, where there is room.
    async fn delete_tokens(&self, tenant: &TenantName, batch: &[Stored<Token>]) -> Result<(), RegistryError> {
        let deletes = || batch.iter().fold(Change::new(), |change, token| change.delete(token.key.clone()));
        if !self.keeps_tombstone(tenant) {
            return self.commit(deletes()).await.map(drop);
        }
        let with_tombstones =
            batch.iter().fold(deletes(), |change, token| match TokenId::try_from(token.value.id.as_str()) {
                Ok(id) => change.put(Key::Tombstone(tenant.clone(), id), &token.value),
                Err(_) => change,
            });
        match self.commit(with_tombstones).await {
            Err(RegistryError::Store(StoreError::Full)) => self.commit(deletes()).await.map(drop),
            done => done.map(drop),
        }
    }
}

pub(super) fn check_attributes(attributes: &BTreeMap<String, String>) -> Result<(), RegistryError> {
    let wrong = |reason: String| Err(RegistryError::invalid("attributes", reason));
    if attributes.len() > limits::ATTRIBUTES {
        return wrong(format!("at most {}", limits::ATTRIBUTES));
    }
    for (name, value) in attributes {
        let word = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'/');
        if name.is_empty() || name.len() > limits::ATTRIBUTE_NAME_BYTES || !name.bytes().all(word) {
            return wrong(format!(
                "a name is 1 to {} letters, digits, `-`, `_`, `.` and `/`",
                limits::ATTRIBUTE_NAME_BYTES
            ));
        }
        if value.len() > limits::ATTRIBUTE_VALUE_BYTES || value.chars().any(char::is_control) {
            return wrong(format!(
                "the value of `{name}` is over {} bytes or holds a control character",
                limits::ATTRIBUTE_VALUE_BYTES
            ));
        }
    }
    Ok(())
}
