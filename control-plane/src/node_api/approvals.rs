//! Answers nodes about approvals: requests that need one, and uses that are counted.

use seks_proto::wire::{self, approval_answer::State, approval_question::Question};
use seks_types::id::{AgentName, NodeId, PolicyId, TenantName};

use crate::registry::{ApprovalState, Asked, RefusedRequest, Registry, RegistryError};

/// A node's question, read.
pub(crate) struct ApprovalQuestion {
    pub(crate) tenant: TenantName,
    agent: AgentName,
    number: u64,
    about: About,
}

enum About {
    Request(Box<RefusedRequest>),
    Use(PolicyId),
}

impl ApprovalQuestion {
    /// `None`: it names nothing that can be.
    pub(crate) fn read(wire: wire::ApprovalQuestion) -> Option<Self> {
        let (tenant, agent): (TenantName, AgentName) = (wire.tenant.parse().ok()?, wire.agent.parse().ok()?);
        let about = match wire.question? {
            Question::Use(id) => About::Use(id.parse().ok()?),
            Question::Refused(refused) => About::Request(Box::new(RefusedRequest {
                agent: agent.clone(),
                token: wire.token,
                service: refused.service,
                method: refused.method,
                path: refused.path,
                query_names: refused.query_names,
                request_sha256: refused.request_sha256,
                policy: refused.policy.parse().ok()?,
                policy_sha256: refused.policy_sha256,
                mcp_method: refused.mcp_method,
                mcp_name: refused.mcp_name,
            })),
        };
        Some(Self { tenant, agent, number: wire.number, about })
    }

    /// Whether it takes a use.
    pub(crate) fn is_use(&self) -> bool {
        matches!(self.about, About::Use(_))
    }

    /// The answer for `node`.
    pub(crate) async fn answer(self, registry: &Registry, node: &NodeId, replica: &str) -> wire::ApprovalAnswer {
        let number = self.number;
        let found = match &self.about {
            About::Use(id) => registry.use_approval(&self.tenant, &self.agent, id).await.map(|taken| {
                let state = if taken { State::Granted } else { State::UsedUp };
                wire::ApprovalAnswer { state: state.into(), approval: id.to_string(), ..Default::default() }
            }),
            About::Request(request) => {
                registry.ask_approval(&self.tenant, (node, replica), request).await.map(|asked| said(&asked))
            }
        };
        let answer = found.unwrap_or_else(|error: RegistryError| {
            tracing::warn!(%error, "an approval cannot be looked up: the request stays refused");
            wire::ApprovalAnswer::default()
        });
        wire::ApprovalAnswer { number, ..answer }
    }
}

fn said(asked: &Asked) -> wire::ApprovalAnswer {
    let approval = match asked {
        Asked::Known(approval) => approval,
        Asked::Full => return wire::ApprovalAnswer { state: State::Full.into(), ..Default::default() },
        Asked::Unfounded => return wire::ApprovalAnswer::default(),
    };
    let state = match approval.state() {
        ApprovalState::Denied => State::Denied,
        ApprovalState::Approved => State::Granted,
        _ => State::Waiting,
    };
    let (approval, expires_at) = (approval.id.clone(), approval.expires_at);
    wire::ApprovalAnswer { number: 0, state: state.into(), approval, expires_at }
}
