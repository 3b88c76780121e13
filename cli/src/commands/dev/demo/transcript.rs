//! The transcript that the demonstration prints, with checks of its claims.

use std::fmt::Write as _;

use super::{
    agent::{Answer, BODY, PATH},
    upstream::Received,
};
use crate::{
    commands::dev::Ready,
    error::{CliError, Exit, Result, one_line},
};

/// One request as seen by agent, proxy and upstream.
pub(super) struct Transcript<'a> {
    pub(super) ready: &'a Ready,
    pub(super) origin: String,
    pub(super) token: String,
    pub(super) received: Received,
    pub(super) answer: Answer,
}

impl Transcript<'_> {
    /// Checks the claims of the transcript.
    ///
    /// # Errors
    /// Exit code 1. Names the claim that is false.
    pub(super) fn check(&self) -> Result<()> {
        let key = self.key();
        let got = format!("{:?}{}", self.answer.headers, self.answer.body);
        let sent = format!("{:?}", self.received);
        let claims = [
            (self.answer.status == 200, "the request was not answered with 200"),
            (key.starts_with("sk-demo-"), "the upstream did not receive the stored key"),
            (!sent.contains(&self.token), "the upstream saw the token"),
            (key.is_empty() || !got.contains(key), "the agent got the key"),
        ];
        match claims.iter().find(|(holds, _)| !holds) {
            Some((_, claim)) => Err(CliError::new(Exit::Failed, "demo", claim)),
            None => Ok(()),
        }
    }

    /// The key as the upstream received it.
    fn key(&self) -> &str {
        let value = self.received.headers.iter().find(|(name, _)| name == "authorization").map(|(_, v)| v.as_str());
        value.and_then(|v| v.strip_prefix("Bearer ")).unwrap_or_default()
    }

    /// The text for the terminal.
    pub(super) fn render(&self) -> String {
        let mut text = String::new();
        self.render_request(&mut text);
        self.render_received(&mut text);
        self.render_response(&mut text);
        if self.check().is_ok() {
            text.push_str(
                "\nThe agent never had the key: it is not in what the agent sent, and though this upstream repeats it,\n\
                 the proxy took it out of the answer while that was streaming. The upstream never saw the token.\n",
            );
            self.render_next_steps(&mut text);
        }
        text
    }

    fn render_request(&self, text: &mut String) {
        title(text, &format!("1. What the agent sent, to the proxy at {}", self.ready.proxy));
        let _ = writeln!(text, "  POST {PATH}");
        let _ = writeln!(text, "  authorization: Bearer {}", self.token);
        let _ = writeln!(text, "                 ^ a fake key: it opens nothing but this proxy, and can be revoked");
        let _ = writeln!(text, "  content-type: application/json\n\n  {BODY}");
    }

    fn render_received(&self, text: &mut String) {
        title(text, &format!("2. What the upstream received, a stand-in at {}", self.origin));
        let _ = writeln!(text, "  {}", one_line(&self.received.line));
        for (name, value) in &self.received.headers {
            let _ = writeln!(text, "  {name}: {}", one_line(value));
            if name == "authorization" {
                let _ = writeln!(
                    text,
                    "                 ^ the real key: random, made for this stand-in, good for nothing else"
                );
            }
        }
        let _ = writeln!(text, "\n  {}", one_line(&self.received.body));
    }

    fn render_response(&self, text: &mut String) {
        let (first, last) = (self.answer.first.as_millis(), self.answer.last.as_millis());
        let when = format!("first byte after {first} ms, last after {last} ms");
        title(text, &format!("3. What the agent got back: status {}, {when}", self.answer.status));
        for (name, value) in &self.answer.headers {
            let _ = writeln!(text, "  {name}: {}", one_line(value));
        }
        text.push('\n');
        for line in self.answer.body.lines().filter(|l| !l.is_empty()) {
            let _ = writeln!(text, "  {}", one_line(line));
        }
    }

    fn render_next_steps(&self, text: &mut String) {
        let seks = std::env::args().next().unwrap_or_else(|| "seks".into());
        title(text, "Next, with a real key, in another terminal");
        if !self.ready.found_by_default {
            let _ = writeln!(text, "  export SEKS_CONTEXT_FILE={}", self.ready.context_file.display());
        }
        let _ = writeln!(text, "  {seks} service enable openai");
        let _ = writeln!(text, "  {seks} credential put openai-key --service openai");
        let _ = writeln!(text, "  {seks} agent create my-agent");
        let _ = writeln!(text, "  {seks} token issue --agent my-agent --service openai");
        let _ = writeln!(
            text,
            "  python3 -c 'from openai import OpenAI; \
             print(OpenAI(api_key=\"seks_token_…\", base_url=\"{}/api/openai\").models.list())'",
            self.ready.proxy
        );
    }
}

fn title(text: &mut String, title: &str) {
    let _ = write!(text, "\n── {title} ──\n\n");
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn ready() -> Ready {
        Ready {
            proxy: "http://p".into(),
            forward_proxy: None,
            admin: "https://a".into(),
            metrics: "http://m".into(),
            page: None,
            context_file: "c".into(),
            found_by_default: true,
        }
    }

    fn transcript<'a>(ready: &'a Ready, authorization: &str, body: &str) -> Transcript<'a> {
        let received = Received {
            line: "POST /v1".into(),
            headers: vec![("authorization".into(), authorization.into())],
            body: String::new(),
        };
        let (first, last) = (Duration::ZERO, Duration::ZERO);
        let answer = Answer { status: 200, headers: Vec::new(), body: body.into(), first, last };
        Transcript { ready, origin: "http://o".into(), token: "seks_token_x".into(), received, answer }
    }

    #[test]
    fn a_leak_either_way_fails_the_demonstration() {
        let ready = ready();
        let claim = |authorization, body| transcript(&ready, authorization, body).check().err().map(|e| e.why);
        assert_eq!(claim("Bearer sk-demo-1", "data: x"), None);
        assert_eq!(claim("Bearer sk-demo-1", "data: sk-demo-1").unwrap(), "the agent got the key");
        assert_eq!(claim("Bearer seks_token_x", "").unwrap(), "the upstream did not receive the stored key");
        assert_eq!(claim("", "").unwrap(), "the upstream did not receive the stored key");
    }

    #[test]
    fn the_five_next_commands_follow_only_a_demonstration_that_held() {
        let ready = ready();
        assert!(transcript(&ready, "Bearer sk-demo-1", "x").render().contains("token issue --agent my-agent"));
        assert!(!transcript(&ready, "Bearer sk-demo-1", "sk-demo-1").render().contains("token issue"));
    }
}
