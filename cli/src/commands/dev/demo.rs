//! `seks dev --demo`: sends one request of an agent and shows it at the agent, the proxy and the
//! upstream. It is set up through the admin API like any other.

mod agent;
mod transcript;
mod upstream;

use std::{collections::BTreeMap, time::Duration};

use seks_proto::wire;
use seks_runtime::logs;
use seks_service::spec::{Inject, ServiceSpec};
use seks_types::token::FreshToken;
use tonic::{Code, Response, Status};

use self::{transcript::Transcript, upstream::Upstream};
use crate::{
    client::Client,
    commands::{change::WaitArgs, token},
    context::ContextSelector,
    error::{CliError, Exit, Result},
};

/// Service, credential and agent of the demonstration.
const SERVICE: &str = "demo";
const CREDENTIAL: &str = "demo-key";
const AGENT: &str = "demo-agent";
/// Validity of the token, for manual experiments.
const TTL: Duration = Duration::from_secs(3600);
/// Longest wait for each step.
const TIMEOUT: Duration = Duration::from_secs(20);

/// The running demonstration. The stub upstream runs until this is dropped.
pub(crate) struct Demo {
    _upstream: Upstream,
}

impl Demo {
    /// Sets everything up, sends the request and prints the transcript. Repeated runs reuse the
    /// existing objects.
    ///
    /// # Errors
    /// When a step fails, or the key was found where it must not be.
    pub(crate) async fn run(ready: &super::Ready) -> Result<Self> {
        let failed = |e: std::io::Error| CliError::new(Exit::Failed, "demo", crate::error::plain_io(&e));
        let upstream = Upstream::start().await.map_err(failed)?;
        let context = ContextSelector { file: Some(ready.context_file.clone()), name: None }.load()?;
        let client = Client::connect(&context, None, TIMEOUT).await?;
        apply_service(&client, &upstream.origin()).await?;
        put_credential(&client).await?;
        create_agent(&client).await?;
        let token = issue_token(&client).await?;
        let authority = ready.proxy.split("://").nth(1).unwrap_or_default();
        let answer = agent::send_request(authority, &token).await?;
        let received = upstream.last().unwrap_or_default();
        let transcript = Transcript { ready, origin: upstream.origin(), token, received, answer };
        logs::write_stdout(&format!("{}\n", transcript.render().trim_end_matches('\n')));
        transcript.check()?;
        Ok(Self { _upstream: upstream })
    }
}

async fn apply_service(client: &Client, origin: &str) -> Result<()> {
    let spec = ServiceSpec {
        name: SERVICE.into(),
        title: "Stand-in of `seks dev --demo`".into(),
        upstream: origin.into(),
        base_path: "/v1".into(),
        inject: Inject::bearer(),
        allow_private: true,
        ..ServiceSpec::default()
    };
    let service = spec.to_wire(&client.tenant()).map_err(|e| CliError::new(Exit::Failed, "demo service", e))?;
    let request = wire::ApplyServiceRequest { service: Some(service), wait: Some(client.wait(false)) };
    client.change("demo service", client.rpc().apply_service(request)).await.map(drop)
}

/// Stores a random key in the first run. It is never shown again, so later runs need no other one.
/// In later runs the stub upstream has another port. A credential is bound to its destination, so
/// the owner binds it to the new one.
async fn put_credential(client: &Client) -> Result<()> {
    let known = client.list_all("demo credential", async |mut rpc, page| rpc.list_credentials(page).await).await?;
    if known.iter().any(|c| c.name == CREDENTIAL) {
        let request = wire::RebindCredentialRequest {
            tenant: client.tenant(),
            name: CREDENTIAL.into(),
            origin: String::new(),
            wait: Some(client.wait(false)),
        };
        return client.change("demo credential", client.rpc().rebind_credential(request)).await.map(drop);
    }
    let random = FreshToken::generate().map_err(|e| CliError::new(Exit::Failed, "demo credential", e))?;
    let digits = random.as_str().trim_start_matches(seks_types::token::PREFIX);
    let request = wire::PutCredentialRequest {
        tenant: client.tenant(),
        name: CREDENTIAL.into(),
        service: SERVICE.into(),
        secret: format!("sk-demo-{digits}").into_bytes(),
        mint: String::new(),
        pools: Vec::new(),
        wait: Some(client.wait(false)),
    };
    client.change("demo credential", client.rpc().put_credential(request)).await.map(drop)
}

async fn create_agent(client: &Client) -> Result<()> {
    let attributes = BTreeMap::from([("purpose".into(), "demonstration".into())]);
    let request = wire::CreateAgentRequest { tenant: client.tenant(), name: AGENT.into(), attributes };
    let mut rpc = client.rpc();
    let created = async { or_there_already(rpc.create_agent(request).await, wire::Agent::default()) };
    client.change("demo agent", created).await.map(drop)
}

fn or_there_already<T>(
    answer: std::result::Result<Response<T>, Status>,
    known: T,
) -> std::result::Result<Response<T>, Status> {
    match answer {
        Err(status) if status.code() == Code::AlreadyExists => Ok(Response::new(known)),
        other => other,
    }
}

/// Issues a new token, and revokes those of earlier runs.
async fn issue_token(client: &Client) -> Result<String> {
    let earlier = client.list_all("demo tokens", async |mut rpc, page| rpc.list_tokens(page).await).await?;
    for old in earlier.into_iter().filter(|t| t.agent == AGENT) {
        client.change("demo tokens", client.rpc().revoke_token(client.delete(&old.id, true))).await?;
    }
    let grant = wire::Grant { service: SERVICE.into(), credential: CREDENTIAL.into() };
    let request = token::request(client, AGENT.into(), vec![grant], TTL, WaitArgs::default())?;
    Ok(token::issue(client, request).await?.secret)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn without_a_proxy_between_them_the_stand_in_sees_the_token_and_gives_it_away() {
        let upstream = Upstream::start().await.unwrap();
        let authority = upstream.origin().replace("http://", "");
        let answer = agent::send_request(&authority, "seks_token_x").await.unwrap();
        let received = upstream.last().unwrap();
        assert_eq!(received.line, format!("POST {}", agent::PATH));
        assert!(received.headers.contains(&("authorization".into(), "Bearer seks_token_x".into())), "{received:?}");
        assert_eq!(received.body, agent::BODY);
        assert!(answer.body.contains("Bearer seks_token_x") && answer.body.ends_with("data: [DONE]\n\n"));
        assert!(answer.first < answer.last, "it streams");
    }
}
