//! A service that a test describes, an agent's token for it, and requests as bytes.

use seks_tests::{
    Sandbox, Upstream,
    raw::{Reply, exchange},
};

/// The real key.
pub(crate) const KEY: &str = "sk-real-wire-key-000000000000000002";

/// The service `acme` with the options `more`, and an agent's token for it.
pub(crate) struct Rig {
    pub(crate) sandbox: Sandbox,
    pub(crate) upstream: Upstream,
    pub(crate) token: String,
}

impl Rig {
    /// With the key as a bearer.
    pub(crate) fn start(more: &str) -> Self {
        Self::with(Upstream::ok(), &format!("inject = \"bearer\"\n{more}"))
    }

    /// With an upstream and a definition, but for name and upstream.
    pub(crate) fn with(upstream: Upstream, definition: &str) -> Self {
        let (sandbox, origin) = (Sandbox::start(), upstream.origin());
        let service = format!("name = \"acme\"\nupstream = \"{origin}\"\nallow_private = true\n{definition}\n");
        sandbox.cli().apply_service(&service);
        sandbox.cli().put_credential("acme", "acme", KEY);
        let token = sandbox.token("agent", &["acme"]).secret;
        Self { sandbox, upstream, token }
    }

    /// What the agent gets for a request with the token as a bearer. `{T}` in header lines and body
    /// is the token.
    pub(crate) fn ask(&self, method: &str, rest: &str, lines: &str, body: &str) -> Reply {
        let lines = format!("Authorization: Bearer {{T}}\r\n{lines}");
        self.ask_without_token(method, rest, &lines, body)
    }

    /// The same without the token.
    pub(crate) fn ask_without_token(&self, method: &str, rest: &str, lines: &str, body: &str) -> Reply {
        self.upstream.forget();
        let length = if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
        let request = format!("{method} /api/acme{rest} HTTP/1.1\r\nHost: localhost\r\n{lines}{length}\r\n{body}");
        exchange(self.sandbox.proxy(), request.replace("{T}", &self.token))
    }

    pub(crate) fn get(&self, rest: &str) -> Reply {
        self.ask("GET", rest, "", "")
    }

    /// What the upstream is asked for.
    pub(crate) fn sent(&self, rest: &str) -> String {
        let reply = self.get(rest);
        assert_eq!(reply.status, 200, "{rest}: {}", reply.text());
        self.upstream.requests()[0].target()
    }

    /// The text of a refusal, of which the upstream saw nothing.
    pub(crate) fn refused(&self, rest: &str) -> String {
        let reply = self.get(rest);
        self.assert_refused(&reply, 400, "request_invalid");
        reply.text()
    }

    pub(crate) fn assert_refused(&self, reply: &Reply, status: u16, code: &str) {
        assert_eq!((reply.status, reply.code().as_str()), (status, code), "{}", reply.text());
        assert!(self.upstream.requests().is_empty(), "it went out");
    }
}
