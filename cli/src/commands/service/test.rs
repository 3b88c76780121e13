//! `seks service test`: one call without side effects with the stored credential, to find out
//! whether the key works.
//!
//! The call takes an agent's path: through a node, with its own token. So it tests the injection
//! that agents get, from the same place.

mod call;

use std::time::{Duration, Instant};

use clap::Args;
use seks_proto::wire;
use seks_service::{
    catalogue,
    test_call::{TestCall, Verdict},
};
use seks_types::id::TokenId;
use serde::Serialize;

use self::call::{Answer, Proxy};
use crate::{
    client::Client,
    commands::{change::WaitArgs, env::ProxyArgs, token},
    error::{CliError, Exit, Result},
    global::Global,
    output::{View, notice},
};

/// The service to test.
#[derive(Debug, Args)]
pub struct TestArgs {
    /// The service
    name: String,
    /// The credential to test, where the service has several
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    credential: String,
    /// The call to make, such as "GET /v1/models" [default: the catalogue's]
    #[arg(long, value_name = "CALL")]
    call: Option<String>,
    /// The agent of the call [default: a temporary one, deleted afterwards]
    #[arg(long)]
    agent: Option<String>,
    /// The way to the proxy.
    #[command(flatten)]
    proxy: ProxyArgs,
}

pub(super) const EXAMPLES: &str = "\
Examples:
  seks service test openai
  seks service test openai --credential team-key -o json
  seks service test tickets --call 'GET /v2/me'

Exit codes: 0 the key works, 4 the upstream rejects it, 6 the upstream (or the control plane) is unreachable,
1 the response does not say, or the broker refused the call";

/// Validity of the token, in case it cannot be revoked.
const TTL: Duration = Duration::from_secs(60);
/// Longest upstream text that is shown, in characters.
const SHOWN: usize = 200;

/// The result of the test.
#[derive(Serialize)]
struct TestView {
    service: String,
    credential: String,
    call: String,
    /// `valid`, `rejected`, `unreachable`, `unclear`, `refused`.
    result: &'static str,
    status: u16,
    /// The broker's CODE, when it is the broker that answered.
    code: Option<String>,
    message: String,
    ms: u64,
    request_id: Option<String>,
    /// What the service's definition keeps from the upstream of an agent's headers. A node counts
    /// it in `seks_request_headers_dropped_total`.
    not_forwarded: Vec<String>,
}

impl View for TestView {
    const COLUMNS: &'static [&'static str] = &["service", "credential", "call", "result", "status", "message"];
    fn row(&self) -> Vec<String> {
        let status = self.status.to_string();
        let (service, credential) = (self.service.clone(), self.credential.clone());
        vec![service, credential, self.call.clone(), self.result.into(), status, self.message.clone()]
    }
    fn detail(&self) -> Vec<(&'static str, String)> {
        let mut detail: Vec<_> = Self::COLUMNS.iter().copied().zip(self.row()).collect();
        detail.push(("not forwarded", self.not_forwarded.join("\n")));
        detail
    }
}

/// Headers that agents may miss at the upstream, and the option that forwards each.
fn not_forwarded(service: &wire::Service) -> Vec<String> {
    let other_than = |what: &str, key: &str, passed: &[String]| match passed {
        [] => format!("{what} ({key})"),
        passed => format!("{what} other than {} ({key})", passed.join(", ")),
    };
    let mut kept = vec![
        other_than("cookies", "pass_cookies", &service.pass_cookies),
        other_than("headers with `_`", "pass_headers", &service.pass_headers),
    ];
    if !service.allow_range {
        kept.push("Range, If-Range (allow_range)".into());
    }
    if !service.forward_trace_context {
        kept.push("traceparent, tracestate (forward_trace_context)".into());
    }
    kept.push("trailers of requests".into());
    kept
}

/// Makes the call.
///
/// # Errors
/// See [`crate::error`]; a key that doesn't work is one.
pub(super) async fn run(global: &Global, args: TestArgs) -> Result<()> {
    let client = global.connect().await?;
    let what = format!("service `{}`", args.name);
    let service = client.call(&what, client.rpc().get_service(client.named(&args.name))).await?;
    let call = test_call(&service, args.call)?;
    let grant = wire::Grant { service: args.name, credential: args.credential };
    let mut tester = Tester::new(&client, args.agent).await?;
    let tested = tokio::select! {
        tested = tester.call(&client, &service, &grant, &call, &args.proxy, global.timeout) => tested,
        _ = tokio::signal::ctrl_c() => Err(CliError::new(Exit::Failed, &what, "interrupted")),
    };
    tester.clean_up(&client).await;
    let (credential, answer, ms) = tested?;
    let view = TestView::new(&service, credential, &call, answer, ms);
    global.output().one(&view)?;
    view.outcome(&what)
}

/// The test call from the command line, the service or the current catalogue entry.
fn test_call(service: &wire::Service, requested: Option<String>) -> Result<TestCall> {
    let own = Some(service.test.clone()).filter(|t| !t.is_empty());
    let entry = || catalogue::find(&service.catalogue).map(|entry| entry.service.test.clone());
    let text = requested.or(own).or_else(entry).unwrap_or_default();
    let parsed = TestCall::parse(&text).map_err(|e| CliError::usage("--call", e))?;
    parsed.ok_or_else(|| {
        CliError::usage(format!("service `{}`", service.name), "it has no call to test it with")
            .hint("say one that changes nothing: --call 'GET /v1/me', or `test = \"GET /v1/me\"` in the service's file")
    })
}

/// The agent of the call, and what must be cleaned up.
struct Tester {
    agent: String,
    /// A temporary agent. Deleting it revokes its tokens.
    temporary: bool,
    /// The token's id, once it is issued.
    token: String,
}

impl Tester {
    async fn new(client: &Client, agent: Option<String>) -> Result<Self> {
        let temporary = agent.is_none();
        let id = TokenId::generate().map_err(|e| CliError::new(Exit::Failed, "agent", e))?; // for its randomness
        let agent = agent.unwrap_or_else(|| id.as_str().replace("tok-", "service-test-"));
        if temporary {
            let request =
                wire::CreateAgentRequest { tenant: client.tenant(), name: agent.clone(), ..Default::default() };
            client.call(&format!("agent `{agent}`"), client.rpc().create_agent(request)).await?;
        }
        Ok(Self { agent, temporary, token: String::new() })
    }

    /// Issues the token, makes the call; the credential's name, the answer and how long it took.
    async fn call(
        &mut self,
        client: &Client,
        service: &wire::Service,
        grant: &wire::Grant,
        call: &TestCall,
        proxy: &ProxyArgs,
        timeout: Duration,
    ) -> Result<(String, Answer, u64)> {
        let request = token::request(client, self.agent.clone(), vec![grant.clone()], TTL, WaitArgs::default())?;
        let issued = token::issue(client, request).await?;
        let mut made = issued.token.unwrap_or_default();
        self.token.clone_from(&made.id);
        let granted = made.grants.pop().unwrap_or_default();
        let proxy = Proxy::new(&proxy.base(client, &issued.base_url)?, proxy)?;
        let sent = Instant::now();
        let answer = proxy.call(service, call, &issued.secret, timeout).await?;
        Ok((granted.credential, answer, u64::try_from(sent.elapsed().as_millis()).unwrap_or(u64::MAX)))
    }

    async fn clean_up(&self, client: &Client) {
        let (mut rpc, what) = (client.rpc(), format!("agent `{}`", self.agent));
        let done = match self.token.as_str() {
            _ if self.temporary => client.change(&what, rpc.delete_agent(client.delete(&self.agent, false))).await,
            "" => return,
            token => client.change(&what, rpc.revoke_token(client.delete(token, false))).await,
        };
        if let Err(error) = done {
            notice(&format!("warning: not cleaned up: {error}"));
        }
    }
}

impl TestView {
    fn new(service: &wire::Service, credential: String, call: &TestCall, answer: Answer, ms: u64) -> Self {
        let refusal = answer.refusal();
        let (result, message) = match &refusal {
            Some(refusal) if refusal.code.starts_with("upstream_") => ("unreachable", refusal.detail.clone()),
            Some(refusal) => ("refused", refusal.detail.clone()),
            None => match call.verdict(answer.status, &answer.body) {
                Verdict::Valid => ("valid", "the upstream takes the key".into()),
                Verdict::Rejected => ("rejected", answer.excerpt(SHOWN)),
                Verdict::Unclear => ("unclear", answer.excerpt(SHOWN)),
            },
        };
        Self {
            service: service.name.clone(),
            credential,
            not_forwarded: not_forwarded(service),
            call: format!("{} {}", call.method, call.target),
            result,
            status: answer.status,
            code: refusal.map(|refusal| refusal.code),
            message,
            ms,
            request_id: answer.request_id,
        }
    }

    fn outcome(&self, what: &str) -> Result<()> {
        let status = self.status;
        let fail = |exit, why: String| Err(CliError::new(exit, what, why));
        match self.result {
            "valid" => Ok(()),
            "rejected" => fail(Exit::NotPermitted, format!("the upstream refuses the key ({status})")),
            "unreachable" => fail(Exit::Unreachable, self.message.clone()),
            "refused" => {
                Err(CliError::new(Exit::Failed, what, format!("the broker refuses the call: {}", self.message))
                    .hint("--agent NAME makes it as an agent that the policies permit it to"))
            }
            _ => Err(CliError::new(
                Exit::Failed,
                what,
                format!("the answer ({status}) doesn't say whether the key works"),
            )
            .hint("--call 'GET /path' makes another call")),
        }
    }
}
