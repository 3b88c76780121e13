//! Operators and their roles.

use seks_types::id::{OperatorName, TenantName, TokenId};

use super::{
    Change, Registry, RegistryError,
    change::retry_on_conflict,
    limits, now,
    record::{Operator, Role, RoleBinding, Stored},
};
use crate::store::{Key, Revision, StoreError, key::prefix};

const KIND: &str = "operator";
/// The tenant of a role that holds everywhere, and for the fleet.
pub const EVERYWHERE: &str = "*";

impl Registry {
    /// Makes an operator. One that is there already with the same roles (or when `roles` is empty)
    /// is left as it is, so that a new certificate can be signed before the old one ends.
    ///
    /// # Errors
    /// [`RegistryError::Exists`] when its roles differ, [`RegistryError::Invalid`],
    /// [`RegistryError::Quota`].
    pub async fn create_operator(
        &self,
        name: &OperatorName,
        roles: Vec<RoleBinding>,
    ) -> Result<(Operator, Revision), RegistryError> {
        let roles = &check_roles(roles)?;
        retry_on_conflict(|| async {
            if let Some(old) = self.load_operator(name).await? {
                let same = roles.is_empty() || old.value.roles == *roles;
                return if same { Ok((old.value, old.modified)) } else { Err(RegistryError::exists(KIND, name)) };
            }
            if roles.is_empty() {
                return Err(RegistryError::invalid("roles", "at least one"));
            }
            if self.store().list(prefix::OPERATORS).await?.0.len() >= limits::OPERATORS {
                let tenant = EVERYWHERE.into();
                return Err(RegistryError::Quota { tenant, kind: KIND, limit: limits::OPERATORS as u64 });
            }
            let operator = record(name, roles.clone(), fresh_enrolment()?);
            self.check_operators(&operator, &self.operators().await?)?;
            let key = Key::Operator(name.clone());
            let revision = self.commit(Change::new().check_absent(key.clone()).put(key, &operator)).await?;
            Ok((operator, revision))
        })
        .await
    }

    /// Creates the first operator, an owner of all tenants; `None` if there is one already. The
    /// same transaction rewrites the authority's record, so that two first operators are impossible
    /// even if two processes try at once.
    ///
    /// # Errors
    /// From the store; [`RegistryError::NotFound`] before the authority exists.
    pub async fn create_first_operator(
        &self,
        name: &OperatorName,
        enrolment: &str,
    ) -> Result<Option<Operator>, RegistryError> {
        let roles = vec![RoleBinding { tenant: EVERYWHERE.into(), role: Role::Owner.into() }];
        let operator = &record(name, roles, enrolment.to_owned());
        retry_on_conflict(|| async {
            let authority = self.store().get(&Key::Authority).await?;
            let authority = authority.ok_or_else(|| RegistryError::not_found("authority", "ca"))?;
            if !self.store().list(prefix::OPERATORS).await?.0.is_empty() {
                return Ok(None);
            }
            let change = Change::new().check_at(Key::Authority, authority.modified);
            let change = change.put_bytes(Key::Authority, authority.value);
            self.commit(change.put(Key::Operator(name.clone()), operator)).await?;
            Ok(Some(operator.clone()))
        })
        .await
    }

    /// All operators, by name.
    ///
    /// # Errors
    /// Of the store.
    pub async fn operators(&self) -> Result<Vec<Operator>, RegistryError> {
        self.values(prefix::OPERATORS).await
    }

    /// One operator, or nothing.
    ///
    /// # Errors
    /// Of the store.
    pub async fn operator(&self, name: &OperatorName) -> Result<Option<Operator>, RegistryError> {
        Ok(self.load_operator(name).await?.map(|stored| stored.value))
    }

    async fn load_operator(&self, name: &OperatorName) -> Result<Option<Stored<Operator>>, RegistryError> {
        self.load(Key::Operator(name.clone())).await
    }

    /// Takes every role in `tenant` away: one of its name that is made later is another.
    pub(super) async fn withdraw_roles(&self, tenant: &TenantName) -> Result<(), RegistryError> {
        let holds = |operator: &Operator| operator.roles.iter().any(|role| role.tenant == tenant.as_str());
        for operator in self.operators().await?.into_iter().filter(holds) {
            let Ok(name) = OperatorName::try_from(operator.name.as_str()) else { continue };
            let withdrawn = retry_on_conflict(|| async {
                let Some(mut stored) = self.load_operator(&name).await? else { return Ok(()) };
                stored.value.roles.retain(|role| role.tenant != tenant.as_str());
                let change = Change::new().check(&stored).put(stored.key.clone(), &stored.value);
                self.commit(change).await.map(drop)
            });
            match withdrawn.await {
                // To delete is how a full store gets room: who makes the tenant again sees to its
                // roles.
                Err(RegistryError::Store(StoreError::Full)) => {
                    tracing::warn!(seks.tenant = %tenant, operator = %name, "the store is full: a role in a deleted tenant stays");
                }
                done => done?,
            }
        }
        Ok(())
    }

    /// Replaces an operator's roles. Its certificates remain valid. The last owner of everything
    /// stays one.
    ///
    /// # Errors
    /// [`RegistryError::NotFound`], [`RegistryError::Invalid`], [`RegistryError::Conflict`],
    /// [`RegistryError::Quota`].
    pub async fn update_operator(
        &self,
        name: &OperatorName,
        roles: Vec<RoleBinding>,
    ) -> Result<Operator, RegistryError> {
        let roles = &check_roles(roles)?;
        if roles.is_empty() {
            return Err(RegistryError::invalid("roles", "at least one; `operator delete` takes all of them away"));
        }
        retry_on_conflict(|| async {
            let all = self.load_all::<Operator>(prefix::OPERATORS).await?;
            let (own, others): (Vec<_>, Vec<_>) = all.into_iter().partition(|o| o.value.name == name.as_str());
            let own = own.first().ok_or_else(|| RegistryError::not_found(KIND, name))?;
            let updated = Operator { roles: roles.clone(), ..own.value.clone() };
            let others_now: Vec<_> = others.iter().map(|other| other.value.clone()).collect();
            self.check_operators(&updated, &others_now)?;
            let mut change = Change::new().check(own).put(own.key.clone(), &updated);
            if owns_everything(&own.value) && !owns_everything(&updated) {
                change = change.check(remaining_owner(name, &others)?);
            }
            self.commit(change).await?;
            Ok(updated)
        })
        .await
    }

    /// Deletes an operator; its certificates are worth nothing from then on. The last owner of
    /// everything stays.
    ///
    /// # Errors
    /// [`RegistryError::NotFound`], [`RegistryError::Conflict`].
    pub async fn delete_operator(&self, name: &OperatorName) -> Result<Revision, RegistryError> {
        retry_on_conflict(|| async {
            let all = self.load_all::<Operator>(prefix::OPERATORS).await?;
            let (own, others): (Vec<_>, Vec<_>) = all.into_iter().partition(|o| o.value.name == name.as_str());
            let own = own.first().ok_or_else(|| RegistryError::not_found(KIND, name))?;
            let mut change = Change::new().check(own).delete(own.key.clone());
            if owns_everything(&own.value) {
                change = change.check(remaining_owner(name, &others)?);
            }
            self.commit(change).await
        })
        .await
    }
}

/// Another owner of everything. A transaction checks its record, so that two owners cannot remove
/// each other at once.
fn remaining_owner<'a>(
    name: &OperatorName,
    others: &'a [Stored<Operator>],
) -> Result<&'a Stored<Operator>, RegistryError> {
    others.iter().find(|other| owns_everything(&other.value)).ok_or_else(|| {
        RegistryError::conflict(format!("operator `{name}` is the last owner"), "create another one first")
    })
}

/// What tells an operator from one of the same name that was deleted: in its record and in its
/// certificates.
///
/// # Errors
/// When the operating system has no randomness to give.
pub fn fresh_enrolment() -> Result<String, RegistryError> {
    let random = TokenId::generate().map_err(RegistryError::Random)?;
    Ok(random.as_str().trim_start_matches("tok-").to_owned())
}

fn record(name: &OperatorName, roles: Vec<RoleBinding>, enrolment: String) -> Operator {
    Operator { name: name.to_string(), roles, created_at: now(), enrolment }
}

fn owns_everything(operator: &Operator) -> bool {
    operator.roles.iter().any(|r| r.tenant == EVERYWHERE && r.role() == Role::Owner)
}

/// Known roles in tenants whose names could exist, one role a tenant, sorted.
fn check_roles(mut roles: Vec<RoleBinding>) -> Result<Vec<RoleBinding>, RegistryError> {
    let wrong = |reason: &str| Err(RegistryError::invalid("roles", reason));
    if roles.len() > limits::ROLES {
        return wrong("at most 64");
    }
    if roles.iter().any(|r| !matches!(Role::try_from(r.role), Ok(Role::Viewer | Role::Editor | Role::Owner))) {
        return wrong("a role is viewer, editor or owner");
    }
    if roles.iter().any(|r| r.tenant != EVERYWHERE && TenantName::try_from(r.tenant.as_str()).is_err()) {
        return wrong("a role holds in a tenant, or in `*`");
    }
    roles.sort_by(|a, b| a.tenant.cmp(&b.tenant));
    if roles.array_windows().any(|[a, b]| a.tenant == b.tenant) {
        return wrong("one role a tenant");
    }
    Ok(roles)
}
