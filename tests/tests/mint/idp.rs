//! A stand-in for an identity provider and the API that takes its tokens: `POST /token` mints,
//! everything else wants a living one.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use seks_tests::{
    Upstream,
    upstream::{Answer, Request},
};
use serde_json::{Value, json};

pub(crate) const CLIENT_SECRET: &str = "real-client-secret-0000000001";

pub(crate) struct Idp {
    upstream: Upstream,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    lifetime: u64,
    rotates: bool,
    /// Answer of the token endpoint, when it isn't 200.
    status: u16,
    /// The one refresh token that is good.
    refresh: String,
    used: Vec<String>,
    reused: usize,
    /// Tokens and when they end.
    living: Vec<(String, Instant)>,
    minted: Vec<String>,
    exchanges: Vec<String>,
    /// Requests that are refused whatever they bring.
    refuse: usize,
}

impl Idp {
    pub(crate) fn start() -> Self {
        let state = Arc::new(Mutex::new(State { lifetime: 3600, refresh: refresh_token(0), ..State::default() }));
        let shared = Arc::clone(&state);
        let upstream = Upstream::start(move |request| {
            let mut state = shared.lock();
            if request.path() == "/token" { state.mint(request) } else { state.serve(request) }
        });
        Self { upstream, state }
    }

    pub(crate) fn origin(&self) -> String {
        self.upstream.origin()
    }

    pub(crate) fn client(&self) -> Value {
        json!({ "token_url": format!("{}/token", self.origin()), "client_id": "broker", "client_secret": CLIENT_SECRET,
            "scope": "read write" })
    }

    pub(crate) fn refresh(&self) -> Value {
        json!({ "token_url": format!("{}/token", self.origin()), "client_id": "broker", "client_secret": CLIENT_SECRET,
            "refresh_token": refresh_token(0), "auth": "basic" })
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock());
    }

    /// Seconds that tokens live from now on.
    pub(crate) fn tokens_live(&self, seconds: u64) {
        self.change(|s| s.lifetime = seconds);
    }

    /// Every refresh token is good for one exchange from now on.
    pub(crate) fn rotate(&self) {
        self.change(|s| s.rotates = true);
    }

    /// What the token endpoint answers from now on.
    pub(crate) fn answer_with(&self, status: u16) {
        self.change(|s| s.status = status);
    }

    /// The API refuses one request, as if the token were about to end.
    pub(crate) fn expire_soon(&self) {
        self.change(|s| s.refuse = 1);
    }

    /// No token that was minted until now is good any more.
    pub(crate) fn revoke_all(&self) {
        self.change(|s| s.living.clear());
    }

    /// A key that is good without having been minted.
    pub(crate) fn accept(&self, key: &str) {
        self.change(|s| s.living.push((key.into(), Instant::now() + Duration::from_secs(3600))));
    }

    pub(crate) fn minted(&self) -> Vec<String> {
        self.state.lock().minted.clone()
    }

    /// Bodies that came to the token endpoint.
    pub(crate) fn exchanges(&self) -> Vec<String> {
        self.state.lock().exchanges.clone()
    }

    /// How often a refresh token came a second time.
    pub(crate) fn reused(&self) -> usize {
        self.state.lock().reused
    }

    pub(crate) fn long_lived(&self) -> Vec<String> {
        let state = self.state.lock();
        let mut all = vec![CLIENT_SECRET.to_owned(), state.refresh.clone()];
        all.extend(state.used.iter().cloned());
        all
    }
}

fn refresh_token(number: usize) -> String {
    format!("real-refresh-token-{number:08}-abcdef")
}

fn refused(status: u16, error: &str) -> Answer {
    let text = json!({ "error": error, "error_description": "do not tell anybody" }).to_string();
    Answer::json(status, &text)
}

impl State {
    fn mint(&mut self, request: &Request) -> Answer {
        if self.status != 0 && self.status != 200 {
            return Answer::json(self.status, "busy");
        }
        let body = String::from_utf8_lossy(&request.body).into_owned();
        self.exchanges.push(body.clone());
        let field =
            |name: &str| body.split('&').find_map(|p| p.strip_prefix(name)?.strip_prefix('=')).unwrap_or_default();
        let basic = request.header("authorization").is_some_and(|value| {
            use base64::Engine as _;
            let pair = base64::engine::general_purpose::STANDARD.encode(format!("broker:{CLIENT_SECRET}"));
            value == format!("Basic {pair}")
        });
        if !basic && field("client_secret") != CLIENT_SECRET {
            return refused(401, "invalid_client");
        }
        let mut answer = json!({ "token_type": "Bearer", "expires_in": self.lifetime });
        if field("grant_type") == "refresh_token" {
            let brought = field("refresh_token").to_owned();
            if brought != self.refresh {
                self.reused += usize::from(self.used.contains(&brought));
                return refused(400, "invalid_grant");
            }
            if self.rotates {
                self.used.push(brought);
                self.refresh = refresh_token(self.used.len());
                answer["refresh_token"] = self.refresh.clone().into();
            }
        }
        let token = format!("minted-token-{:06}-{}", self.minted.len(), "x".repeat(24));
        self.living.push((token.clone(), Instant::now() + Duration::from_secs(self.lifetime)));
        self.minted.push(token.clone());
        answer["access_token"] = token.into();
        Answer::json(200, &answer.to_string())
    }

    fn serve(&mut self, request: &Request) -> Answer {
        let bearer = request.header("authorization").unwrap_or_default();
        let living =
            self.living.iter().any(|(token, ends)| bearer == format!("Bearer {token}") && *ends > Instant::now());
        if self.refuse > 0 {
            self.refuse -= 1;
            return Answer::json(401, "{\"ok\":false}");
        }
        if living { Answer::json(200, "{\"ok\":true}") } else { Answer::json(401, "{\"ok\":false}") }
    }
}
