//! Approvals: requests that a policy with `@approval` refused, and what operators decided.
//!
//! A node reports a refused request. The registry checks the report against its own records: a node
//! grants nothing. Equal requests have one approval. What an operator approves becomes a policy
//! with `@grant`, whose id is the approval's, in the transaction that notes the decision.

mod decide;

use std::{collections::VecDeque, sync::Arc};

use parking_lot::Mutex;
use seks_policy::{approval_scope, sha256_of};
use seks_types::id::{AgentName, NodeId, OperatorName, PolicyId, TenantName, TokenId};
use tokio::sync::Notify;

use super::{
    Change, Registry, RegistryError,
    admin_chain::Actor,
    change::retry_on_conflict,
    limits, now,
    record::{Agent, Approval, Policy, Stored, Tenant, Token},
};
use crate::store::{Key, key::prefix};

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
    /// SHA-256 of its query, and of the body's fields that policies use.
    pub request_sha256: Vec<u8>,
    /// The policy that asks for approval.
    pub policy: PolicyId,
    /// SHA-256 of its text.
    pub policy_sha256: Vec<u8>,
    /// The method of an MCP message, where a policy asks for it. `""`: none.
    pub mcp_method: String,
    /// The name of its tool, prompt or resource. `""`: none.
    pub mcp_name: String,
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
    /// For every query and every body, and not only for those of the request.
    pub any_values: bool,
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
            all.iter()
                .filter(|stored| state_at(&stored.value, now) == ApprovalState::Waiting && of(&stored.value))
                .count()
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
            request_sha256: request.request_sha256.clone(),
            policy: request.policy.to_string(),
            policy_sha256: request.policy_sha256.clone(),
            scope: found.scope,
            mcp_method: request.mcp_method.clone(),
            mcp_name: request.mcp_name.clone(),
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
        let change = change
            .check_at(turn_key.clone(), turn)
            .put(turn_key, &Approval { id: approval.id.clone(), ..Approval::default() });
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
            let is_counted = known.limit > 0 && known.agent == agent.as_str();
            if state_at(known, now()) != ApprovalState::Approved || !is_counted {
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

    /// Says whether approvals of a tenant take an operator who neither issued the token nor owns
    /// the agent.
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

/// What a request may hold to be shown to operators and written into a policy: printable ASCII.
fn is_presentable(request: &RefusedRequest) -> bool {
    let is_plain = |text: &str, most: usize| text.len() <= most && text.bytes().all(|b| b.is_ascii_graphic());
    let names = &request.query_names;
    is_plain(&request.path, limits::APPROVAL_PATH_BYTES)
        && is_plain(&request.method, 64)
        && is_plain(&request.service, 63)
        && is_plain(&request.token, 128)
        && is_plain(&request.mcp_method, 64)
        && is_plain(&request.mcp_name, limits::APPROVAL_MCP_NAME_BYTES)
        && names.len() <= limits::APPROVAL_QUERY_NAMES
        && names.iter().all(|name| is_plain(name, 64))
        && request.request_sha256.len() == 32
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
        && known.request_sha256 == request.request_sha256
        && known.mcp_method == request.mcp_method
        && known.mcp_name == request.mcp_name
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
    Approval { state, request_sha256: Vec::new(), policy_sha256: Vec::new(), ..approval }
}
