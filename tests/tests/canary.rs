//! Unique secrets are put through every path that succeeds and every path that fails; then
//! everything that has left the processes, and every file that they have written, is searched for
//! them in all forms.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test")]

use std::{
    fs,
    path::{Path, PathBuf},
};

use seks_tests::{Collector, Sandbox, Upstream, oracle, raw, sandbox::Options, upstream::Answer};

/// Where a secret may not be, and what is there.
type Sinks = Vec<(String, Vec<u8>)>;

fn files_below(directory: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap().map(Result::unwrap) {
        if entry.file_type().unwrap().is_dir() {
            files_below(&entry.path(), into);
        } else {
            into.push(entry.path());
        }
    }
}

struct ObservedSandbox {
    collector: Collector,
    sandbox: Sandbox,
    upstream: Upstream,
    /// Everything that agents got back.
    replies: Vec<u8>,
    /// What may be nowhere: real credentials, the KEK aside.
    secrets: Vec<String>,
    /// What may be nowhere but in the output of `token issue`.
    tokens: Vec<String>,
}

impl ObservedSandbox {
    fn start() -> Self {
        let collector = Collector::start();
        let upstream = Upstream::start(|request| match request.path().as_str() {
            "/v1/echo" => Answer::text(&request.head),
            "/v1/broken" => Answer::raw("HTTP/1.1 two hundred\r\n\r\n"),
            "/v1/short" => Answer::raw("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort"),
            "/v1/silent" => Answer::raw(""),
            "/v1/moved" => Answer::with(302, &[("Location", "http://elsewhere.test/")], ""),
            _ => Answer::json(200, "{}"),
        });
        let sandbox = Sandbox::with(Options::default().collector(&collector));
        Self { collector, sandbox, upstream, replies: Vec::new(), secrets: Vec::new(), tokens: Vec::new() }
    }

    fn secret(&mut self, text: &str) -> String {
        self.secrets.push(text.to_owned());
        text.to_owned()
    }

    fn ask(&mut self, bytes: String) -> u16 {
        let reply = raw::exchange(self.sandbox.proxy(), bytes);
        self.replies.extend_from_slice(&reply.wire);
        reply.status
    }

    fn get(&mut self, path: &str, token: &str) -> u16 {
        self.ask(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n\r\n"))
    }

    /// What administrators do, well and badly.
    fn administer(&mut self) -> Vec<String> {
        let (first, second) = (self.secret("canary-first/4fA+9=\"x\\y"), self.secret("canary-second/7bC+2=\"p\\q"));
        let (refused, key) =
            (self.secret("canary-refused-0d1e2f3a4b5c"), self.secret("AIzaCanaryInTheQuery0123456789"));
        let upstream = &self.upstream;
        let sandbox = &self.sandbox;
        sandbox.service("openai", upstream, &first);
        sandbox.cli().put_credential("openai", "openai", &second);
        sandbox.cli().json(&["credential", "rollback", "openai"]);
        let put = |service| ["credential", "put", "x", "--service", service, "--from-stdin"];
        assert_eq!(sandbox.cli().run(&put("no-such-service"), &refused).code, Some(3));
        assert_ne!(sandbox.cli().run(&put("openai"), &format!("{refused}\nsecond line\u{7}")).code, None);
        sandbox.service("gemini", upstream, &key);
        // Nobody listens there any more: the error must not say where, nor with what.
        let dead = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let origin = format!("http://{dead}");
        sandbox.cli().json(&["service", "enable", "gemini", "--as", "dead", "--upstream", &origin, "--allow-private"]);
        sandbox.cli().put_credential("dead", "dead", &key);
        let live = sandbox.token("agent", &["openai", "gemini", "dead"]);
        let revoked = sandbox.cli().issue("agent", &["openai"], &[]);
        sandbox.cli().revoke(&revoked.id);
        let rotated = sandbox.cli().issue("agent", &["openai"], &[]);
        sandbox.cli().json(&["token", "rotate", &rotated.id]);
        for listing in [["token", "list"], ["credential", "list"], ["agent", "list"], ["service", "list"]] {
            sandbox.cli().json(&listing);
        }
        sandbox.cli().run(&["credential", "show", "openai"], "");
        sandbox.cli().run(&["token", "show", &live.id], "");
        sandbox.cli().run(&["token", "revoke", &live.secret, "--yes"], ""); // the token where its id belongs
        vec![live.secret, revoked.secret, rotated.secret]
    }

    /// What agents do, well and badly.
    fn call(&mut self, tokens: &[String]) {
        let live = &tokens[0];
        assert_eq!(self.get("/api/openai/v1/models", live), 200);
        assert_eq!(self.get("/api/openai/v1/echo", live), 200);
        assert_eq!(self.get("/api/openai/v1/moved", live), 302);
        for path in ["broken", "silent"] {
            assert_eq!(self.get(&format!("/api/openai/v1/{path}"), live), 502, "{path}");
        }
        self.get("/api/openai/v1/short", live);
        assert_eq!(self.get("/api/github/user", live), 404);
        for refused in [&tokens[1], &tokens[2], &"x".repeat(60), &live[..59].to_owned()] {
            assert_eq!(self.get("/api/openai/v1/models", refused), 401);
        }
        for secret in self.secrets.clone() {
            let status = self.get("/api/openai/v1/models", &secret);
            assert!(matches!(status, 400 | 401), "{status}");
        }
        let by_key =
            |path: &str| format!("POST {path}?key={live} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{{}}");
        assert_eq!(self.ask(by_key("/api/gemini/v1beta/models/m:generateContent")), 200);
        assert_eq!(self.ask(by_key("/api/dead/v1beta/models/m:generateContent")), 502);
        assert_eq!(self.ask(by_key("/api/openai/v1/models")), 401);
        self.ask(format!("GET /api/{live}/v1 HTTP/1.1\r\nHost: localhost\r\n\r\n"));
        self.ask(format!("GET /api/openai/v1/{live} HTTP/1.1\r\nHost: {live}\r\n\r\n"));
        self.ask(format!("{live} /api/openai HTTP/1.1\r\nHost: localhost\r\n\r\n"));
    }

    /// The trail in plain text: on disk it is sealed.
    fn read_trail(&self) {
        seks_tests::process::wait_for("the trail to have the last request", || {
            let found = self.sandbox.cli().json(&["audit", "search", "--reason", "request_invalid"]);
            found.as_array().is_some_and(|found| !found.is_empty()).then_some(())
        });
        let all = self.sandbox.cli().json(&["audit", "search"]);
        assert!(all.as_array().unwrap().len() > 15, "{all}");
        let changes = self.sandbox.cli().json(&["audit", "admin"]);
        assert!(changes.as_array().unwrap().len() > 10, "{changes}");
    }

    /// Ends the broker and gathers what it leaves behind.
    fn sinks(&mut self) -> Sinks {
        let mut emitted = self.sandbox.everything_emitted();
        self.sandbox.process().terminate();
        emitted.push_str(&self.sandbox.process().output());
        let mut sinks = vec![
            ("what was printed, and metrics".to_owned(), emitted.into_bytes()),
            ("spans".to_owned(), self.collector.everything().into_bytes()),
            ("what agents got back".to_owned(), self.replies.clone()),
        ];
        let mut files = Vec::new();
        files_below(&self.sandbox.data_dir(), &mut files);
        assert!(files.len() >= 3, "{files:?}");
        sinks.extend(files.iter().map(|path| (path.display().to_string(), fs::read(path).unwrap())));
        sinks
    }
}

#[test]
fn no_secret_is_in_any_sink() {
    let mut observed = ObservedSandbox::start();
    observed.tokens = observed.administer();
    let tokens = observed.tokens.clone();
    observed.call(&tokens);
    observed
        .collector
        .wait_for("the last span", |s| s.name == "seks.proxy" && s.get("seks.reason") == "request_invalid");
    observed.read_trail();
    assert!(oracle::contains(&observed.upstream.received(), observed.secrets[0].as_bytes()), "the canary has flown");

    let mut found = Vec::new();
    for (sink, bytes) in observed.sinks() {
        let bytes = oracle::Haystack::new(&bytes);
        for secret in &observed.secrets {
            found.extend(bytes.find(secret).map(|form| format!("{secret} in {sink} ({form})")));
        }
        for token in &observed.tokens {
            // Half a token is too much: look for its random part's first half.
            found.extend(bytes.find(&token[11..33]).map(|form| format!("a token in {sink} ({form})")));
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}
