//! Approvals: requests that a policy with `@approval` refused, and what operators decided.
//!
//! A node reports a refused request. The registry checks the report against its own records: a node
//! grants nothing. Equal requests have one approval. What an operator approves becomes a policy
//! with `@grant`, whose id is the approval's, in the transaction that notes the decision.

use std::{collections::VecDeque, sync::Arc};

use parking_lot::Mutex;
use seks_policy::{GrantText, approval_scope, grant_text, sha256_of};
use seks_types::id::{AgentName, NodeId, OperatorName, PolicyId, TenantName, TokenId};
use tokio::sync::Notify;

use super::{
    Change, Registry, RegistryError,
    admin_chain::Actor,
    change::retry_on_conflict,
    limits, now,
    policy::{check_whole, compiles},
    record::{Agent, Approval, Policy, PolicySet, Stored, Tenant, Token},
};
use crate::{
    policy_workers::PolicyRun,
    store::{Key, Revision, key::prefix},
};

/// The state of an approval.
pub use seks_proto::wire::approval::State as ApprovalState;

const KIND: &str = "approval";
/// New approvals that wait for whoever wants to know. More of them are in the store alone.
const MAX_NEWS: usize = 256;

/// A request that a node has refused.
#[derive(Clone, Debug)]
pub struct RefusedRequest {
    /// The agent.
    pub agent: AgentName,
    /// The id of the token that it presented.
    pub token: String,
    /// The service.
    pub service: String,
    /// The method.
    pub method: String,
    /// The path, as it would be sent.
    pub path: String,
    /// Names of the query's parameters.
    pub query_names: Vec<String>,
    /// SHA-256 of the query.
    pub query_sha256: Vec<u8>,
    /// The policy that asks for approval.
    pub policy: PolicyId,
    /// SHA-256 of its text.
    pub policy_sha256: Vec<u8>,
}

/// What a node is told of a refused request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asked {
    /// Operators can decide it, or have denied it.
    Known(Box<Approval>),
    /// Too many requests wait.
    Full,
    /// The report does not fit the records.
    Unfounded,
}

/// What an operator approves.
#[derive(Clone, Debug)]
pub struct Approve {
    /// Who.
    pub by: OperatorName,
    /// For how many seconds.
    pub seconds: u64,
    /// Most uses. 0: any number.
    pub limit: u32,
    /// For every query, and not only for that of the request.
    pub any_query: bool,
    /// The operator's words.
    pub reason: String,
}

/// Approvals that were just stored by this replica.
#[derive(Default)]
pub struct NewApprovals {
    waiting: Mutex<VecDeque<Approval>>,
    news: Notify,
}

impl NewApprovals {
    /// Adds one.
    fn add(&self, approval: Approval) {
        let mut waiting = self.waiting.lock();
        if waiting.len() < MAX_NEWS {
            waiting.push_back(approval);
            self.news.notify_one();
        }
    }

    /// The next one; waits for it.
    pub(crate) async fn next(&self) -> Approval {
        loop {
            let news = self.news.notified();
            if let Some(approval) = self.waiting.lock().pop_front() {
                return approval;
            }
            news.await;
        }
    }
}

impl Registry {
    /// Approvals that this replica has stored.
    #[must_use]
    pub fn new_approvals(&self) -> &Arc<NewApprovals> {
        &self.new_approvals
    }

    /// Takes in a refused request that `node` reports, on behalf of this `replica`.
    ///
    /// # Errors
    /// Of the store.
    pub async fn ask_approval(
        &self,
        tenant: &TenantName,
        (node, replica): (&NodeId, &str),
        request: &RefusedRequest,
    ) -> Result<Asked, RegistryError> {
        if !is_presentable(request) {
            return Ok(Asked::Unfounded);
        }
        let actor = Actor {
            operator: String::new(),
            verb: "AskApproval".into(),
            tenant: tenant.to_string(),
            replica: replica.into(),
        };
        let asked = retry_on_conflict(|| self.ask_once(tenant, node, request));
        match actor.run(asked).await {
            Err(RegistryError::NotFound { .. } | RegistryError::Conflict { .. }) => Ok(Asked::Unfounded),
            asked => asked,
        }
    }

    async fn ask_once(
        &self,
        tenant: &TenantName,
        node: &NodeId,
        request: &RefusedRequest,
    ) -> Result<Asked, RegistryError> {
        let turn_key = Key::ApprovalTurn(tenant.clone());
        // Before the list: whoever adds to the list afterwards changes it.
        let turn = self.load::<Approval>(turn_key.clone()).await?.map_or(0, |turn| turn.modified);
        let (all, now) = (self.load_all::<Approval>(&prefix::kind(tenant, KIND)).await?, now());
        let agent = self.load_agent(tenant, &request.agent).await?;
        let same = all.iter().map(|stored| &stored.value).find(|known| is_same(known, request, &agent.value, now));
        if let Some(known) = same {
            return Ok(Asked::Known(Box::new(known.clone())));
        }
        let waiting = |of: &dyn Fn(&Approval) -> bool| {
            all.iter().filter(|stored| state_at(&stored.value, now) == ApprovalState::Waiting && of(&stored.value)).count()
        };
        let is_full = all.len() >= limits::APPROVALS
            || waiting(&|_| true) >= limits::WAITING_APPROVALS
            || waiting(&|known| known.agent == request.agent.as_str()) >= limits::WAITING_APPROVALS_OF_AGENT;
        if is_full {
            return Ok(Asked::Full);
        }
        let Some(found) = self.founded(tenant, request, &agent).await? else { return Ok(Asked::Unfounded) };
        let parent = self.active_tenant(tenant).await?;
        let id = PolicyId::generate_approval().map_err(RegistryError::Random)?;
        let approval = Approval {
            id: id.to_string(),
            tenant: tenant.to_string(),
            agent: request.agent.to_string(),
            service: request.service.clone(),
            method: request.method.clone(),
            path: request.path.clone(),
            query_names: request.query_names.clone(),
            query_sha256: request.query_sha256.clone(),
            policy: request.policy.to_string(),
            policy_sha256: request.policy_sha256.clone(),
            scope: found.scope,
            token: request.token.clone(),
            issued_by: found.token.value.issued_by.clone(),
            node: node.to_string(),
            agent_created_at: agent.value.created_at,
            requested_at: now,
            expires_at: now + limits::APPROVAL_WAITS_SECONDS,
            state: ApprovalState::Waiting.into(),
            ..Approval::default()
        };
        let key = Key::Approval(tenant.clone(), id);
        let change = Change::new().check(&parent).check(&agent).check(&found.token).check(&found.policy);
        let change = change.check_at(turn_key.clone(), turn).put(turn_key, &Approval { id: approval.id.clone(), ..Approval::default() });
        self.commit(change.check_absent(key.clone()).put(key, &approval)).await?;
        self.new_approvals.add(approval.clone());
        Ok(Asked::Known(Box::new(approval)))
    }

    /// The records that a report must agree with. `None`: it does not.
    async fn founded(
        &self,
        tenant: &TenantName,
        request: &RefusedRequest,
        agent: &Stored<Agent>,
    ) -> Result<Option<Founded>, RegistryError> {
        // The id of an exchanged token begins with that of its trust.
        let record = request.token.split('.').next().unwrap_or_default();
        let Ok(id) = TokenId::try_from(record) else { return Ok(None) };
        let Some(token) = self.load::<Token>(Key::Token(tenant.clone(), id)).await? else { return Ok(None) };
        let policy_key = Key::Policy(tenant.clone(), request.policy.clone());
        let Some(policy) = self.load::<Policy>(policy_key).await? else { return Ok(None) };
        let is_agents = token.value.trust.is_some() || token.value.agent == request.agent.as_str();
        let is_granted = token.value.grants.iter().any(|grant| grant.service == request.service);
        let is_current = sha256_of(&policy.value.text)[..] == request.policy_sha256[..];
        let scope = approval_scope(&policy.value.text).filter(|_| !policy.value.approval_grant);
        let is_founded = is_agents && is_granted && is_current && !agent.value.deleting && !agent.value.disabled;
        Ok(scope.filter(|_| is_founded).map(|scope| Founded { token, policy, scope }))
    }

    /// Takes one use of an approval that has a limit, for `agent`. It is spent once this returns
    /// true, whatever becomes of the request.
    ///
    /// # Errors
    /// Of the store.
    pub async fn use_approval(
        &self,
        tenant: &TenantName,
        agent: &AgentName,
        id: &PolicyId,
    ) -> Result<bool, RegistryError> {
        retry_on_conflict(|| async {
            let Some(mut approval) = self.load::<Approval>(Key::Approval(tenant.clone(), id.clone())).await? else {
                return Ok(false);
            };
            // The policy is in the same transaction: a use and a revocation cannot both succeed.
            let Some(grant) = self.load::<Policy>(Key::Policy(tenant.clone(), id.clone())).await? else {
                return Ok(false);
            };
            let known = &mut approval.value;
            if state_at(known, now()) != ApprovalState::Approved || known.agent != agent.as_str() {
                return Ok(false);
            }
            known.used += 1;
            let change = Change::new().check(&grant).check(&approval);
            self.commit(change.put(approval.key.clone(), &approval.value)).await?;
            Ok(true)
        })
        .await
    }

    /// All approvals of a tenant, the newest first, each with its state now.
    ///
    /// # Errors
    /// [`RegistryError::NotFound`] for the tenant.
    pub async fn approvals(&self, tenant: &TenantName) -> Result<Vec<Approval>, RegistryError> {
        self.load_tenant(tenant).await?;
        let mut all: Vec<Approval> = self.values(&prefix::kind(tenant, KIND)).await?;
        all.sort_by(|a, b| (b.requested_at, &b.id).cmp(&(a.requested_at, &a.id)));
        Ok(all.into_iter().map(shown).collect())
    }

    /// One approval, with its state now.
    ///
    /// # Errors
    /// [`RegistryError::NotFound`].
    pub async fn approval(&self, tenant: &TenantName, id: &PolicyId) -> Result<Approval, RegistryError> {
        Ok(shown(self.load_approval(tenant, id).await?.value))
    }

    async fn load_approval(&self, tenant: &TenantName, id: &PolicyId) -> Result<Stored<Approval>, RegistryError> {
        match self.load(Key::Approval(tenant.clone(), id.clone())).await? {
            Some(approval) => Ok(approval),
            None => Err(self.missing(tenant, KIND, id.as_str()).await),
        }
    }

    /// Approves a request that waits: writes the policy that lifts the one which asks for approval.
    ///
    /// # Errors
    /// [`RegistryError::NotFound`]; [`RegistryError::Conflict`] when it does not wait, or what it is
    /// about has changed since; [`RegistryError::OwnerOnly`] where the tenant wants another
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
            let lifts = PolicyId::try_from(approval.value.policy.as_str()).map_err(|_| changed("policy", &approval.value.policy))?;
            let policy = self.load::<Policy>(Key::Policy(tenant.clone(), lifts.clone())).await?;
            let policy = policy.ok_or_else(|| changed("policy", &lifts))?;
            let sha256 = sha256_of(&policy.value.text);
            if sha256[..] != approval.value.policy_sha256[..] {
                return Err(changed("policy", &lifts));
            }
            let decided_at = now();
            let expires_at = decided_at.saturating_add_unsigned(approve.seconds);
            let record = grant_record(&approval.value, &Granting { id, lifts: &lifts, sha256: &sha256, expires_at, approve, tenant: &parent.value });
            let (mut all, set) = self.load_policies(tenant, |other| other == id.as_str()).await?;
            let key = Key::Policy(tenant.clone(), id.clone());
            all.push(Stored { key: key.clone(), value: record.clone(), modified: 0 });
            check_whole(tenant, &all, self.quota(tenant).policies)?;
            compiles(&all, run).await?;
            let listed = PolicySet::of(all.iter().map(|stored| &stored.value));
            let change = Change::new().check(&parent).check(&agent).check(&policy).check(&approval).check(&set);
            let decided = &mut approval.value;
            (decided.state, decided.decided_at, decided.expires_at) = (ApprovalState::Approved.into(), decided_at, expires_at);
            (decided.decided_by, decided.reason) = (approve.by.to_string(), approve.reason.clone());
            (decided.limit, decided.used) = (approve.limit, 0);
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
    pub(super) async fn forget_approvals_of(&self, tenant: &TenantName, agent: &AgentName) -> Result<(), RegistryError> {
        let all = self.load_all::<Approval>(&prefix::kind(tenant, KIND)).await?;
        for approval in all.into_iter().filter(|stored| stored.value.agent == agent.as_str()) {
            self.forget_approval(tenant, &approval).await?;
        }
        Ok(())
    }

    /// Removes what has ended: grants at once, the rest after [`limits::ENDED_APPROVAL_SECONDS`].
    pub(super) async fn forget_ended_approvals(&self, tenant: &TenantName) -> Result<(), RegistryError> {
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

    /// Says whether approvals of a tenant take an operator who neither issued the token nor owns the
    /// agent.
    ///
    /// # Errors
    /// [`RegistryError::NotFound`].
    pub async fn set_approval_by_another(&self, name: &TenantName, another: bool) -> Result<Tenant, RegistryError> {
        retry_on_conflict(|| async {
            let stored = self.active_tenant(name).await?;
            let tenant = Tenant { approval_by_another: another, ..stored.value.clone() };
            if tenant != stored.value {
                self.commit(Change::new().check(&stored).put(stored.key.clone(), &tenant)).await?;
            }
            Ok(tenant)
        })
        .await
    }
}

/// The records that a report agrees with.
struct Founded {
    token: Stored<Token>,
    policy: Stored<Policy>,
    scope: String,
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
        // Another token of the agent may be one that the approver has issued.
        token: if tenant.approval_by_another { &approval.token } else { "" },
    });
    let query_sha256 = if approve.any_query { Vec::new() } else { approval.query_sha256.clone() };
    let (tenant, id) = (approval.tenant.clone(), approval.id.clone());
    Policy { tenant, id, text, updated_at: now(), query_sha256, approval_grant: true }
}

/// What a request may hold to be shown to operators and written into a policy: printable ASCII.
fn is_presentable(request: &RefusedRequest) -> bool {
    let is_plain = |text: &str, most: usize| text.len() <= most && text.bytes().all(|b| b.is_ascii_graphic());
    let names = &request.query_names;
    is_plain(&request.path, limits::APPROVAL_PATH_BYTES)
        && is_plain(&request.method, 64)
        && is_plain(&request.service, 63)
        && is_plain(&request.token, 128)
        && names.len() <= limits::APPROVAL_QUERY_NAMES
        && names.iter().all(|name| is_plain(name, 64))
        && request.query_sha256.len() == 32
}

/// Whether an approval is about this request, and still answers it.
fn is_same(known: &Approval, request: &RefusedRequest, agent: &Agent, now: i64) -> bool {
    let answers = match state_at(known, now) {
        ApprovalState::Waiting | ApprovalState::Denied => true,
        // The node doesn't have the grant yet, or the request has another query or token.
        ApprovalState::Approved => known.token == request.token,
        _ => false,
    };
    answers
        && known.agent == request.agent.as_str()
        && known.agent_created_at == agent.created_at
        && known.service == request.service
        && known.method == request.method
        && known.path == request.path
        && known.query_sha256 == request.query_sha256
        && known.policy == request.policy.as_str()
        && known.policy_sha256 == request.policy_sha256
}

/// The state at a time, in Unix seconds.
fn state_at(approval: &Approval, now: i64) -> ApprovalState {
    match approval.state() {
        ApprovalState::Revoked => ApprovalState::Revoked,
        state if now < approval.expires_at => match state {
            ApprovalState::Approved if approval.limit > 0 && approval.used >= approval.limit => ApprovalState::UsedUp,
            state => state,
        },
        _ => ApprovalState::Expired,
    }
}

/// As operators see it: with its state now, and without digests.
fn shown(approval: Approval) -> Approval {
    let state = state_at(&approval, now()).into();
    Approval { state, query_sha256: Vec::new(), policy_sha256: Vec::new(), ..approval }
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

fn check_operator(
    tenant: &Tenant,
    agent: &Agent,
    approval: &Approval,
    by: &OperatorName,
) -> Result<(), RegistryError> {
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
