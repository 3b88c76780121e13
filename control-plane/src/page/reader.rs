//! The admin API, asked in this process for the operator who reads the page. Its rules, limits and
//! records are the same as for a call over the network.

use seks_proto::wire::{self, admin_server::Admin as _};
use tonic::{Request, Response, Status};

use crate::{admin::Admin, authority::Peer};

/// Records of one answer, and answers that are read for one page, at most.
const PAGE_SIZE: u32 = 1000;
const MAX_ANSWERS: usize = 5;

/// Asks for one operator.
pub(super) struct Reader {
    admin: Admin,
    peer: Peer,
}

/// One method each: its name, its message and its answer.
macro_rules! methods {
    ($($name:ident($message:ident) -> $answer:ident;)*) => {
        impl Reader {
            $(pub(super) async fn $name(&self, message: wire::$message) -> Result<wire::$answer, Status> {
                self.admin.$name(self.request(message)).await.map(Response::into_inner)
            })*
        }
    };
}

methods! {
    status(StatusRequest) -> StatusResponse;
    who_am_i(WhoAmIRequest) -> Operator;
    list_tenants(ListTenantsRequest) -> ListTenantsResponse;
    get_tenant(NameRequest) -> Tenant;
    list_agents(ListRequest) -> ListAgentsResponse;
    get_agent(NameRequest) -> Agent;
    list_tokens(ListRequest) -> ListTokensResponse;
    get_token(NameRequest) -> Token;
    get_node(NameRequest) -> Node;
    search_audit(SearchAuditRequest) -> SearchAuditResponse;
    search_fleet_audit(SearchAuditRequest) -> SearchAuditResponse;
    list_admin_changes(AdminChangesRequest) -> AdminChangesResponse;
    list_fleet_admin_changes(AdminChangesRequest) -> AdminChangesResponse;
    list_approvals(ListRequest) -> ListApprovalsResponse;
    explain_policies(SimulateRequest) -> ExplainPoliciesResponse;
}

/// Whose records.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Whose {
    /// Those of the tenant that the message names.
    Tenant,
    /// Everybody's.
    Fleet,
}

/// Records, newest first.
#[derive(Default)]
pub(super) struct Found {
    pub(super) entries: Vec<wire::AuditEntry>,
    /// The next page of them; `""`: there is none.
    pub(super) next: String,
    /// Why nothing can be looked for.
    pub(super) problem: Option<String>,
}

impl Reader {
    pub(super) fn new(admin: Admin, peer: Peer) -> Self {
        Self { admin, peer }
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.extensions_mut().insert(self.peer.clone());
        request
    }

    /// The newest outcomes of requests. An intent is left out: its outcome follows. A replica
    /// without a trail has nothing to find, which is no error of the page.
    ///
    /// # Errors
    /// Of the admin API.
    pub(super) async fn records(
        &self,
        whose: Whose,
        mut message: wire::SearchAuditRequest,
        most: usize,
    ) -> Result<Found, Status> {
        let mut found = Found::default();
        for _ in 0..MAX_ANSWERS {
            message.page_size = u32::try_from(most - found.entries.len()).unwrap_or(PAGE_SIZE).min(PAGE_SIZE);
            let answer = match whose {
                Whose::Tenant => self.search_audit(message.clone()).await,
                Whose::Fleet => self.search_fleet_audit(message.clone()).await,
            };
            let answer = match answer {
                Err(status) if status.code() == tonic::Code::FailedPrecondition => {
                    found.problem = Some(status.message().to_owned());
                    return Ok(found);
                }
                answer => answer?,
            };
            let is_whole = |entry: &wire::AuditEntry| {
                entry.record.as_ref().is_some_and(|record| record.kind() != wire::audit_record::Kind::Intent)
            };
            found.entries.extend(answer.entries.into_iter().filter(is_whole));
            found.next.clone_from(&answer.next_page_token);
            if found.next.is_empty() || found.entries.len() >= most {
                break;
            }
            message.page_token = answer.next_page_token;
        }
        Ok(found)
    }

    /// An agent's tokens, and whether all tokens of the tenant were looked at.
    ///
    /// # Errors
    /// Of the admin API.
    pub(super) async fn tokens_of(&self, tenant: &str, agent: &str) -> Result<(Vec<wire::Token>, bool), Status> {
        let mut message = wire::ListRequest { tenant: tenant.into(), page_size: PAGE_SIZE, page_token: String::new() };
        let mut tokens = Vec::new();
        for _ in 0..MAX_ANSWERS {
            let answer = self.list_tokens(message.clone()).await?;
            tokens.extend(answer.tokens.into_iter().filter(|token| token.agent == agent));
            if answer.next_page_token.is_empty() {
                return Ok((tokens, true));
            }
            message.page_token = answer.next_page_token;
        }
        Ok((tokens, false))
    }
}
