//! Operators' decisions on approvals, and what ends them.

use seks_policy::{GrantText, grant_text, sha256_of};
use seks_types::id::{AgentName, OperatorName, PolicyId, TenantName};

use super::{
    super::{
        Change, Registry, RegistryError,
        change::retry_on_conflict,
        limits, now,
        policy::{check_whole, compiles},
        record::{Agent, Approval, Policy, PolicySet, Stored, Tenant},
    },
    ApprovalState, Approve, KIND, shown, state_at,
};
use crate::{
    policy_workers::PolicyRun,
    store::{Key, Revision, key::prefix},
};

impl Registry {
    /// Approves a request that waits: writes the policy that lifts the one which asks for approval.
    ///
    /// # Errors
    /// [`RegistryError::NotFound`]; [`RegistryError::Conflict`] when it does not wait, or what it
    /// is about has changed since; [`RegistryError::OwnerOnly`] where the tenant wants another
    /// operator.
    pub(crate) async fn grant_approval(
        &self,
        tenant: &TenantName,
        id: &PolicyId,
        approve: &Approve,
        run: &PolicyRun<'_>,
    ) -> Result<(Approval, Revision), RegistryError> {
        check_seconds(approve.seconds)?;
        check_reason(&approve.reason)?;
        retry_on_conflict(|| async {
            let (parent, mut approval) = (self.active_tenant(tenant).await?, self.load_approval(tenant, id).await?);
            check_waits(&approval.value)?;
            let agent = self.agent_of(tenant, &approval.value).await?;
            check_operator(&parent.value, &agent.value, &approval.value, &approve.by)?;
            let lifts = PolicyId::try_from(approval.value.policy.as_str())
                .map_err(|_| changed("policy", &approval.value.policy))?;
            let policy = self.load::<Policy>(Key::Policy(tenant.clone(), lifts.clone())).await?;
            let policy = policy.ok_or_else(|| changed("policy", &lifts))?;
            let sha256 = sha256_of(&policy.value.text);
            if sha256[..] != approval.value.policy_sha256[..] {
                return Err(changed("policy", &lifts));
            }
            let decided_at = now();
            let expires_at = decided_at.saturating_add_unsigned(approve.seconds);
            let record = grant_record(
                &approval.value,
                &Granting { id, lifts: &lifts, sha256: &sha256, expires_at, approve, tenant: &parent.value },
            );
            let (mut all, set) = self.load_policies(tenant, |other| other == id.as_str()).await?;
            let key = Key::Policy(tenant.clone(), id.clone());
            all.push(Stored { key: key.clone(), value: record.clone(), modified: 0 });
            check_whole(tenant, &all, self.quota(tenant).policies)?;
            compiles(&all, run).await?;
            let listed = PolicySet::of(all.iter().map(|stored| &stored.value));
            let change = Change::new().check(&parent).check(&agent).check(&policy).check(&approval).check(&set);
            let decided = &mut approval.value;
            (decided.state, decided.decided_at, decided.expires_at) =
                (ApprovalState::Approved.into(), decided_at, expires_at);
            (decided.decided_by, decided.reason) = (approve.by.to_string(), approve.reason.clone());
            (decided.limit, decided.used, decided.any_values) = (approve.limit, 0, approve.any_values);
            let change = change.check_absent(key.clone()).put(key, &record).put(set.key.clone(), &listed);
            let revision = self.commit(change.put(approval.key.clone(), &approval.value)).await?;
            Ok((shown(approval.value), revision))
        })
        .await
    }

    /// The agent of a request, if it still is the one that made it.
    async fn agent_of(&self, tenant: &TenantName, approval: &Approval) -> Result<Stored<Agent>, RegistryError> {
        let gone = || changed("agent", &approval.agent);
        let name = AgentName::try_from(approval.agent.as_str()).map_err(|_| gone())?;
        let agent = self.load::<Agent>(Key::Agent(tenant.clone(), name)).await?.ok_or_else(gone)?;
        if agent.value.created_at != approval.agent_created_at || agent.value.deleting {
            return Err(gone());
        }
        Ok(agent)
    }

    /// Denies a request that waits. The same request is not put before operators again for so many
    /// seconds.
    ///
    /// # Errors
    /// [`RegistryError::NotFound`]; [`RegistryError::Conflict`] when it does not wait.
    pub async fn deny_approval(
        &self,
        tenant: &TenantName,
        id: &PolicyId,
        (by, seconds, reason): (&OperatorName, u64, &str),
    ) -> Result<Approval, RegistryError> {
        check_seconds(seconds)?;
        check_reason(reason)?;
        retry_on_conflict(|| async {
            let mut approval = self.load_approval(tenant, id).await?;
            check_waits(&approval.value)?;
            let (change, decided) = (Change::new().check(&approval), &mut approval.value);
            (decided.state, decided.decided_at) = (ApprovalState::Denied.into(), now());
            decided.expires_at = decided.decided_at.saturating_add_unsigned(seconds);
            (decided.decided_by, decided.reason) = (by.to_string(), reason.to_owned());
            self.commit(change.put(approval.key.clone(), &approval.value)).await?;
            Ok(shown(approval.value))
        })
        .await
    }

    /// Ends an approval that was granted. What was sent under it is cut.
    ///
    /// # Errors
    /// [`RegistryError::NotFound`]; [`RegistryError::Conflict`] for one that was not granted.
    pub async fn revoke_approval(&self, tenant: &TenantName, id: &PolicyId) -> Result<Revision, RegistryError> {
        retry_on_conflict(|| async {
            let mut approval = self.load_approval(tenant, id).await?;
            let before = approval.value.state();
            if !matches!(before, ApprovalState::Approved | ApprovalState::Revoked) {
                let hint = format!("`seks approval deny {id}` decides one that waits");
                return Err(RegistryError::conflict(format!("approval `{id}` was not granted"), hint));
            }
            let grant = self.load::<Policy>(Key::Policy(tenant.clone(), id.clone())).await?;
            approval.value.state = ApprovalState::Revoked.into();
            let change = Change::new().check(&approval).put(approval.key.clone(), &approval.value);
            match (grant, before) {
                (Some(grant), _) => self.commit(change.and(self.without_policy(tenant, &grant).await?)).await,
                (None, ApprovalState::Revoked) => Ok(approval.modified), // the wait for enforcement is what a repetition is for
                (None, _) => self.commit(change).await,
            }
        })
        .await
    }

    /// What takes one policy away.
    async fn without_policy(&self, tenant: &TenantName, policy: &Stored<Policy>) -> Result<Change, RegistryError> {
        let (all, set) = self.load_policies(tenant, |other| other == policy.value.id).await?;
        let left = PolicySet::of(all.iter().filter(|other| other.key != policy.key).map(|stored| &stored.value));
        Ok(Change::new().check(policy).check(&set).delete(policy.key.clone()).put(set.key.clone(), &left))
    }

    /// Removes everything that was asked for or granted to an agent: a later agent of its name
    /// begins with nothing.
    pub(in crate::registry) async fn forget_approvals_of(
        &self,
        tenant: &TenantName,
        agent: &AgentName,
    ) -> Result<(), RegistryError> {
        let all = self.load_all::<Approval>(&prefix::kind(tenant, KIND)).await?;
        for approval in all.into_iter().filter(|stored| stored.value.agent == agent.as_str()) {
            self.forget_approval(tenant, &approval).await?;
        }
        Ok(())
    }

    /// Removes what has ended: grants at once, the rest after [`limits::ENDED_APPROVAL_SECONDS`].
    pub(in crate::registry) async fn forget_ended_approvals(&self, tenant: &TenantName) -> Result<(), RegistryError> {
        let now = now();
        for approval in self.load_all::<Approval>(&prefix::kind(tenant, KIND)).await? {
            let since = now.saturating_sub(approval.value.expires_at);
            if since >= limits::ENDED_APPROVAL_SECONDS {
                self.forget_approval(tenant, &approval).await?;
            } else if since >= 0 && approval.value.state() == ApprovalState::Approved {
                self.forget_grant(tenant, &approval.value.id).await?;
            }
        }
        Ok(())
    }

    async fn forget_approval(&self, tenant: &TenantName, approval: &Stored<Approval>) -> Result<(), RegistryError> {
        self.forget_grant(tenant, &approval.value.id).await?;
        self.commit(Change::new().delete(approval.key.clone())).await.map(drop)
    }

    async fn forget_grant(&self, tenant: &TenantName, id: &str) -> Result<(), RegistryError> {
        let Ok(id) = PolicyId::try_from(id) else { return Ok(()) };
        retry_on_conflict(|| async {
            match self.load::<Policy>(Key::Policy(tenant.clone(), id.clone())).await? {
                Some(grant) if grant.value.approval_grant => {
                    self.commit(self.without_policy(tenant, &grant).await?).await.map(drop)
                }
                _ => Ok(()),
            }
        })
        .await
    }
}

/// What a grant is made from, beside the request.
struct Granting<'a> {
    id: &'a PolicyId,
    lifts: &'a PolicyId,
    sha256: &'a [u8; 32],
    expires_at: i64,
    approve: &'a Approve,
    tenant: &'a Tenant,
}

fn grant_record(approval: &Approval, granting: &Granting<'_>) -> Policy {
    let Granting { id, lifts, sha256, expires_at, approve, tenant } = *granting;
    let text = grant_text(&GrantText {
        id,
        lifts,
        sha256,
        expires_at,
        uses: approve.limit,
        agent: &approval.agent,
        method: &approval.method,
        service: &approval.service,
        path: &approval.path,
        mcp: (&approval.mcp_method, &approval.mcp_name),
        // Another token of the agent may be one that the approver has issued.
        token: if tenant.approval_by_another { &approval.token } else { "" },
    });
    let request_sha256 = if approve.any_values { Vec::new() } else { approval.request_sha256.clone() };
    let (tenant, id) = (approval.tenant.clone(), approval.id.clone());
    Policy { tenant, id, text, updated_at: now(), request_sha256, approval_grant: true }
}

fn check_waits(approval: &Approval) -> Result<(), RegistryError> {
    let what = match state_at(approval, now()) {
        ApprovalState::Waiting => return Ok(()),
        ApprovalState::Denied => format!("was denied by `{}`", approval.decided_by),
        ApprovalState::Expired if approval.decided_at == 0 => "has expired".into(),
        _ => format!("was approved by `{}`", approval.decided_by),
    };
    let hint = "the agent has to make its request again, which asks again";
    Err(RegistryError::conflict(format!("approval `{}` {what}", approval.id), hint))
}

fn check_operator(tenant: &Tenant, agent: &Agent, approval: &Approval, by: &OperatorName) -> Result<(), RegistryError> {
    if !tenant.approval_by_another {
        return Ok(());
    }
    let is_owner = agent.attributes.get("owner").is_some_and(|owner| owner == by.as_str());
    let why = match (approval.issued_by == by.as_str(), is_owner) {
        (true, _) => format!("has issued token `{}`", approval.token),
        (false, true) => format!("owns agent `{}`", approval.agent),
        (false, false) => return Ok(()),
    };
    Err(RegistryError::OwnerOnly(format!("tenant `{}` wants another operator's approval: `{by}` {why}", tenant.name)))
}

fn changed(kind: &str, name: impl std::fmt::Display) -> RegistryError {
    let hint = "the agent has to make its request again, which asks again";
    RegistryError::conflict(format!("{kind} `{name}` is not the one that the request was refused with"), hint)
}

fn check_seconds(seconds: u64) -> Result<(), RegistryError> {
    if (limits::MIN_APPROVAL_SECONDS..=limits::MAX_APPROVAL_SECONDS).contains(&seconds) {
        return Ok(());
    }
    Err(RegistryError::invalid("for_seconds", "1 second to 7 days"))
}

fn check_reason(reason: &str) -> Result<(), RegistryError> {
    if reason.len() <= limits::APPROVAL_REASON_BYTES && !reason.chars().any(char::is_control) {
        return Ok(());
    }
    let most = limits::APPROVAL_REASON_BYTES;
    Err(RegistryError::invalid("reason", format!("at most {most} bytes, without control characters")))
}
