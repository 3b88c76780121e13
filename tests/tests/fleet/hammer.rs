//! Agents: one a node, that present a token again and again, and remember what came of each
//! request.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Request, header};
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use seks_tests::{process::wait_for, runtime};
use tokio::net::TcpStream;
use tokio_util::sync::{CancellationToken, DropGuard};

/// Between two requests of one agent. Six debug builds share the machine with everything else.
const PAUSE: Duration = Duration::from_millis(25);
/// Requests at each node that make a statement about it.
const ENOUGH: usize = 5;

/// What came of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The upstream has answered.
    Accepted,
    /// The node said no, with this code.
    Refused(String),
    /// The connection broke, or there was none.
    Failed(String),
}

/// One request.
#[derive(Clone, Debug)]
pub struct Attempt {
    pub node: usize,
    pub begun: Instant,
    pub ended: Instant,
    pub outcome: Outcome,
}

/// The agents of one token. They stop when it is dropped.
pub struct Hammer {
    nodes: usize,
    log: Arc<Mutex<Vec<Attempt>>>,
    _stop: DropGuard,
}

impl Hammer {
    /// Begins to send `GET path` with `token` to each node.
    pub fn start(nodes: &[SocketAddr], path: &str, token: &str) -> Self {
        let (log, stop) = (Arc::new(Mutex::new(Vec::new())), CancellationToken::new());
        for (node, address) in nodes.iter().copied().enumerate() {
            let agent = Agent { node, address, path: path.into(), token: token.into(), log: Arc::clone(&log) };
            runtime().spawn(stop.clone().run_until_cancelled_owned(agent.run()));
        }
        Self { nodes: nodes.len(), log, _stop: stop.drop_guard() }
    }

    /// All requests that have ended.
    pub fn attempts(&self) -> Vec<Attempt> {
        self.log.lock().clone()
    }

    fn select(&self, wanted: impl Fn(&Attempt) -> bool) -> Vec<Attempt> {
        self.log.lock().iter().filter(|attempt| wanted(attempt)).cloned().collect()
    }

    /// Waits until every node has accepted the token since `since`.
    pub fn accepted_everywhere(&self, since: Instant) {
        self.wait(&format!("all nodes to accept (since {:?} ago)", since.elapsed()), 1, 0..self.nodes, |attempt| {
            attempt.begun >= since && attempt.outcome == Outcome::Accepted
        });
    }

    /// Waits until each of `nodes` has answered several requests that began after `since`, and says
    /// what it answered.
    pub fn answers(&self, nodes: impl IntoIterator<Item = usize> + Clone, since: Instant) -> Vec<Attempt> {
        self.wait("answers", ENOUGH, nodes.clone(), |attempt| attempt.begun >= since);
        let nodes: Vec<usize> = nodes.into_iter().collect();
        self.select(|attempt| nodes.contains(&attempt.node) && attempt.begun >= since)
    }

    /// Waits until each of `nodes` has refused with `code` since `since`.
    pub fn refused(&self, nodes: impl IntoIterator<Item = usize> + Clone, since: Instant, code: &str) {
        let refused = Outcome::Refused(code.into());
        self.wait(code, 1, nodes, |attempt| attempt.begun >= since && attempt.outcome == refused);
    }

    /// Every node that can answer refuses, and none accepts, what began after `since`: the promise
    /// of "enforced".
    pub fn none_accepted(&self, nodes: impl IntoIterator<Item = usize> + Clone, since: Instant) {
        drop(self.answers(nodes, since));
        let accepted = self.select(|attempt| attempt.begun >= since && attempt.outcome == Outcome::Accepted);
        assert!(accepted.is_empty(), "{} accepted after it was enforced: {:?}", accepted.len(), accepted.first());
    }

    /// No node among `nodes` has refused or failed anything that began after `since` and ended
    /// before `until`.
    pub fn none_refused(&self, nodes: impl IntoIterator<Item = usize>, since: Instant, until: Instant) {
        let nodes: Vec<usize> = nodes.into_iter().collect();
        let all = self.select(|a| nodes.contains(&a.node) && a.begun >= since && a.ended <= until);
        let refused: Vec<_> = all.iter().filter(|attempt| attempt.outcome != Outcome::Accepted).collect();
        assert!(
            refused.is_empty(),
            "{} of {} refused; the first after {:?}: {:?}",
            refused.len(),
            all.len(),
            refused[0].begun - since,
            refused[0]
        );
    }

    fn wait(
        &self,
        what: &str,
        count: usize,
        nodes: impl IntoIterator<Item = usize> + Clone,
        wanted: impl Fn(&Attempt) -> bool,
    ) {
        wait_for(&format!("{what} of nodes {:?}", nodes.clone().into_iter().collect::<Vec<_>>()), || {
            let found = self.select(&wanted);
            let enough = |node| found.iter().filter(|attempt| attempt.node == node).count() >= count;
            nodes.clone().into_iter().all(enough).then_some(())
        });
    }
}

struct Agent {
    node: usize,
    address: SocketAddr,
    path: String,
    token: String,
    log: Arc<Mutex<Vec<Attempt>>>,
}

impl Agent {
    async fn run(self) {
        let mut connection = None;
        loop {
            let begun = Instant::now();
            let outcome = self.ask(&mut connection).await.unwrap_or_else(|error| {
                connection = None;
                Outcome::Failed(error.to_string())
            });
            let attempt = Attempt { node: self.node, begun, ended: Instant::now(), outcome };
            self.log.lock().push(attempt);
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn ask(
        &self,
        connection: &mut Option<SendRequest<Empty<Bytes>>>,
    ) -> Result<Outcome, Box<dyn std::error::Error + Send + Sync>> {
        let mut sender = match connection.take().filter(|sender| !sender.is_closed()) {
            Some(sender) => sender,
            None => {
                let stream = TcpStream::connect(self.address).await?;
                stream.set_nodelay(true)?;
                let (sender, driver) = handshake(TokioIo::new(stream)).await?;
                tokio::spawn(driver);
                sender
            }
        };
        sender.ready().await?;
        let request = Request::get(&self.path)
            .header(header::HOST, "localhost")
            .header(header::AUTHORIZATION, format!("Bearer {}", self.token))
            .body(Empty::new())?;
        let response = sender.send_request(request).await?;
        let accepted = response.status().is_success();
        let body = response.into_body().collect().await?.to_bytes();
        *connection = Some(sender);
        if accepted {
            return Ok(Outcome::Accepted);
        }
        let problem: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
        Ok(Outcome::Refused(problem["error"]["code"].as_str().unwrap_or("?").to_owned()))
    }
}
