//! What this node asks a replica about approvals: whether a refused request may be put before
//! operators, and one use of an approval that is counted.
//!
//! The node grants nothing by an answer. A grant is a policy, which comes with the table. A use is
//! taken where the replica says so.

use std::{
    collections::{HashMap, VecDeque},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use parking_lot::Mutex;
use prost::Message as _;
use seks_policy::sha256_of_bytes;
use seks_proto::wire::{self, approval_answer::State as Answered, approval_question::Question};
use seks_types::id::{PolicyId, ServiceName};
use tokio::{
    sync::{Notify, oneshot},
    time::{Instant, timeout},
};

use super::TokenEntry;

/// How long a request waits for an answer. A replica answers within a round trip and a write of its
/// store.
const PATIENCE: Duration = Duration::from_secs(1);
/// Questions that wait for an answer at the same time, and those of one agent.
const MAX_WAITING: usize = 1024;
const MAX_WAITING_OF_AGENT: usize = 32;
/// How long the answer about a refused request is repeated to equal requests, and for how many. A
/// denial is noticed after that time.
const REMEMBERED: Duration = Duration::from_secs(1);
const MAX_REMEMBERED: usize = 1024;

/// A request that lacks an approval, as it is reported.
#[derive(Clone, Debug)]
pub struct RefusedRequest {
    /// The service.
    pub service: ServiceName,
    /// The method.
    pub method: String,
    /// The path, as it would be sent.
    pub path: String,
    /// Names of the query's parameters.
    pub query_names: Vec<String>,
    /// [`seks_policy::request_digest`].
    pub request_sha256: [u8; 32],
    /// The policy that asks for approval.
    pub policy: PolicyId,
    /// SHA-256 of its text.
    pub policy_sha256: [u8; 32],
    /// The method of an MCP message, where a policy asks for it. `""`: none.
    pub mcp_method: String,
    /// What it is about. `""`: nothing.
    pub mcp_name: String,
}

impl RefusedRequest {
    fn message(&self) -> wire::RefusedRequest {
        wire::RefusedRequest {
            service: self.service.to_string(),
            method: self.method.clone(),
            path: self.path.clone(),
            query_names: self.query_names.clone(),
            request_sha256: self.request_sha256.to_vec(),
            policy: self.policy.to_string(),
            policy_sha256: self.policy_sha256.to_vec(),
            mcp_method: self.mcp_method.clone(),
            mcp_name: self.mcp_name.clone(),
        }
    }
}

/// What a replica says of a refused request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ApprovalState {
    /// Operators can decide it, under this id, until this time in Unix seconds.
    Waiting(String, i64),
    /// An operator has denied it, until this time in Unix seconds.
    Denied(String, i64),
    /// It was approved, and this node does not have the approval yet.
    Approved(String),
    /// Too many requests wait.
    Full,
    /// The report does not fit the control plane's records.
    Unknown,
    /// No replica has answered.
    Unanswered,
}

/// One who waits for an answer.
struct Waiting {
    tenant: String,
    agent: String,
    answer: oneshot::Sender<wire::ApprovalAnswer>,
}

#[derive(Default)]
struct State {
    questions: VecDeque<wire::ApprovalQuestion>,
    waiting: HashMap<u64, Waiting>,
    /// Answers about refused requests, by the digest of the question.
    remembered: HashMap<[u8; 32], (Instant, ApprovalState)>,
}

/// All questions of this node.
#[derive(Default)]
pub struct ApprovalQuestions {
    state: Mutex<State>,
    news: Notify,
    numbers: AtomicU64,
}

impl ApprovalQuestions {
    /// Reports a refused request. Waits for the answer, for [`PATIENCE`] at most.
    pub async fn ask(&self, token: &TokenEntry, refused: &RefusedRequest) -> ApprovalState {
        let question = question(token, Question::Refused(refused.message()));
        // What was true before a change of the tenant's records is not repeated.
        let version = token.tenant_state().version().to_be_bytes();
        let digest = sha256_of_bytes(&[&question.encode_to_vec()[..], &version].concat());
        let now = Instant::now();
        if let Some((at, known)) = self.state.lock().remembered.get(&digest)
            && now.duration_since(*at) < REMEMBERED
        {
            return known.clone();
        }
        let Some(answer) = self.send(question).await else { return ApprovalState::Unanswered };
        let state = match answer.state() {
            Answered::Waiting => ApprovalState::Waiting(answer.approval, answer.expires_at),
            Answered::Denied => ApprovalState::Denied(answer.approval, answer.expires_at),
            Answered::Granted => ApprovalState::Approved(answer.approval),
            Answered::Full => ApprovalState::Full,
            Answered::Unspecified | Answered::UsedUp => ApprovalState::Unknown,
        };
        let remembered = &mut self.state.lock().remembered;
        if remembered.len() >= MAX_REMEMBERED {
            remembered.clear();
        }
        remembered.insert(digest, (now, state.clone()));
        state
    }

    /// Takes one use of an approval for `token`'s agent. `None`: no replica has answered.
    pub async fn take_use(&self, token: &TokenEntry, approval: &str) -> Option<bool> {
        let answer = self.send(question(token, Question::Use(approval.to_owned()))).await?;
        match answer.state() {
            Answered::Granted => Some(true),
            Answered::UsedUp => Some(false),
            _ => None,
        }
    }

    async fn send(&self, question: wire::ApprovalQuestion) -> Option<wire::ApprovalAnswer> {
        let number = self.numbers.fetch_add(1, Relaxed);
        let received = {
            let mut state = self.state.lock();
            let own = state.waiting.values().filter(|w| w.tenant == question.tenant && w.agent == question.agent);
            if state.waiting.len() >= MAX_WAITING || own.count() >= MAX_WAITING_OF_AGENT {
                return None;
            }
            let (answer, received) = oneshot::channel();
            let (tenant, agent) = (question.tenant.clone(), question.agent.clone());
            state.waiting.insert(number, Waiting { tenant, agent, answer });
            state.questions.push_back(wire::ApprovalQuestion { number, ..question });
            received
        };
        let _forget = Forget { questions: self, number };
        self.news.notify_one();
        timeout(PATIENCE, received).await.ok()?.ok()
    }

    /// The next question for the replica; waits for it. Dropped while it waits, it has taken
    /// nothing.
    pub(crate) async fn next_question(&self) -> wire::ApprovalQuestion {
        loop {
            let news = self.news.notified();
            if let Some(question) = self.state.lock().questions.pop_front() {
                return question;
            }
            news.await;
        }
    }

    /// A replica has answered.
    pub(crate) fn answered(&self, answer: wire::ApprovalAnswer) {
        let waiting = self.state.lock().waiting.remove(&answer.number);
        if let Some(waiting) = waiting {
            let _ = waiting.answer.send(answer); // nobody waits any more
        }
    }

    /// The stream has ended: no answer comes to what was asked on it.
    pub(crate) fn stream_ended(&self) {
        self.state.lock().waiting.clear();
    }
}

/// Takes a question back when nobody waits for its answer.
struct Forget<'a> {
    questions: &'a ApprovalQuestions,
    number: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        let mut state = self.questions.state.lock();
        state.waiting.remove(&self.number);
        state.questions.retain(|question| question.number != self.number);
    }
}

fn question(token: &TokenEntry, question: Question) -> wire::ApprovalQuestion {
    wire::ApprovalQuestion {
        number: 0,
        tenant: token.tenant().to_string(),
        agent: token.agent_name().to_string(),
        token: token.id().to_owned(),
        question: Some(question),
    }
}
