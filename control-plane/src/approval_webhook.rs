//! Tells a webhook which requests wait for approval.
//!
//! The message is signed as the Standard Webhooks specification says
//! (<https://www.standardwebhooks.com>): HMAC-SHA256 of id, time and body. The id is the approval's
//! and stays the same for each attempt, so a receiver acts on it once. A message says what the
//! request would do, and approves nothing: no address in it is more than the page. The replica that
//! stored the approval sends the message, and tries again while the approval waits.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, UNIX_EPOCH},
};

use aws_lc_rs::hmac;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::HeaderValue;
use prometheus::{IntCounterVec, Opts, core::Collector};
use seks_network::address::{DialGuard, DialRules};
use seks_runtime::{jitter, private_file::read_private};
use seks_types::id::{PolicyId, TenantName};
use serde::Deserialize;
use tokio::{sync::Semaphore, time::sleep};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use zeroize::Zeroizing;

use crate::{
    clock::unix_now,
    mint::{MintError, endpoint::Endpoint},
    registry::{ApprovalState, NewApprovals, Registry, record::Approval},
};

/// Messages that are on their way, or wait for their next attempt.
const MAX_SENDING: usize = 64;
/// How long after an attempt that failed the next one is made; each with up to a quarter more.
const RETRIES: [Duration; 6] = [
    Duration::from_secs(1),
    Duration::from_secs(10),
    Duration::from_secs(60),
    Duration::from_secs(300),
    Duration::from_secs(1800),
    Duration::from_secs(7200),
];
/// How a key is written.
const KEY_PREFIX: &str = "whsec_";
/// Bytes of a key.
const KEY_BYTES: std::ops::RangeInclusive<usize> = 24..=64;

/// `[approvals]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ApprovalsConfig {
    /// Where to send what waits for approval: https, or http within `[upstream] private_networks`.
    /// Default: nowhere.
    pub webhook_url: String,
    /// The file with the key of the signatures: `whsec_` and 24 to 64 bytes in base64.
    pub webhook_key_file: PathBuf,
}

/// A value of `[approvals]`.
#[derive(Debug, thiserror::Error)]
pub enum WebhookError {
    /// The key cannot be read.
    #[error("approvals.webhook_key_file: {0}")]
    File(#[source] std::io::Error),
    /// It is no key.
    #[error("approvals.webhook_key_file: write `whsec_` and 24 to 64 random bytes in base64")]
    Key,
    /// The address.
    #[error("approvals.webhook_url: {0}")]
    Url(#[source] MintError),
    /// A metric's name.
    #[error(transparent)]
    Metrics(#[from] prometheus::Error),
}

/// Sends messages for as long as it runs.
pub(crate) struct ApprovalWebhook {
    endpoint: Endpoint,
    key: hmac::Key,
    registry: Arc<Registry>,
    news: Arc<NewApprovals>,
    /// The page's origin; `""`: there is none.
    page_url: String,
    outcomes: IntCounterVec,
}

impl ApprovalWebhook {
    /// The webhook of `config`. `None`: there is none.
    ///
    /// # Errors
    /// [`WebhookError`].
    pub(crate) fn new(
        config: &ApprovalsConfig,
        guard: &Arc<DialGuard>,
        (registry, news): (&Arc<Registry>, Arc<NewApprovals>),
        page_url: &str,
    ) -> Result<Option<Self>, WebhookError> {
        if config.webhook_url.is_empty() {
            return Ok(None);
        }
        let text = Zeroizing::new(read_private(&config.webhook_key_file).map_err(WebhookError::File)?);
        let key = key_of(&text)?;
        // Whoever configures this process decides what it may reach.
        let rules = DialRules { guard: Arc::clone(guard), tenant_networks: guard.allowed.clone() };
        let endpoint = Endpoint::parse(&config.webhook_url, rules).map_err(WebhookError::Url)?;
        let opts = Opts::new("seks_approval_webhook_total", "Messages about requests that wait for approval.");
        let outcomes = IntCounterVec::new(opts, &["outcome"])?;
        for outcome in ["sent", "failed", "given_up", "dropped"] {
            outcomes.with_label_values(&[outcome]).inc_by(0);
        }
        let (registry, page_url) = (Arc::clone(registry), page_url.to_owned());
        Ok(Some(Self { endpoint, key, registry, news, page_url, outcomes }))
    }

    /// What to register with the process's metrics.
    pub(crate) fn collectors(&self) -> Vec<Box<dyn Collector>> {
        vec![Box::new(self.outcomes.clone())]
    }

    /// Runs until `stop`.
    pub(crate) async fn run(self: Arc<Self>, stop: CancellationToken) {
        let (tasks, places) = (TaskTracker::new(), Arc::new(Semaphore::new(MAX_SENDING)));
        while let Some(approval) = stop.run_until_cancelled(self.news.next()).await {
            let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
                self.count("dropped");
                tracing::warn!(
                    seks.approval = approval.id,
                    "too many messages to the webhook wait: this one is not sent"
                );
                continue;
            };
            let (this, stop) = (Arc::clone(&self), stop.clone());
            tasks.spawn(async move {
                let _ = stop.run_until_cancelled(this.deliver(&approval)).await;
                drop(place);
            });
        }
    }

    async fn deliver(&self, approval: &Approval) {
        let body = self.body(approval);
        for pause in std::iter::once(Duration::ZERO).chain(RETRIES) {
            sleep(pause.mul_f64(1.0 + jitter::fraction() / 4.0)).await;
            if !pause.is_zero() && !self.still_waits(approval).await {
                return;
            }
            match self.send(&approval.id, &body).await {
                Ok(()) => return self.count("sent"),
                Err(error) => {
                    self.count("failed");
                    tracing::warn!(seks.approval = approval.id, %error, "the webhook did not take a message; trying again");
                }
            }
        }
        self.count("given_up");
    }

    fn count(&self, outcome: &str) {
        self.outcomes.with_label_values(&[outcome]).inc();
    }

    /// Whether the approval is still to be decided. What cannot be told is taken for yes.
    async fn still_waits(&self, approval: &Approval) -> bool {
        let (Ok(tenant), Ok(id)) =
            (TenantName::try_from(approval.tenant.as_str()), PolicyId::try_from(approval.id.as_str()))
        else {
            return false;
        };
        self.registry.approval(&tenant, &id).await.is_ok_and(|now| now.state() == ApprovalState::Waiting)
    }

    async fn send(&self, id: &str, body: &str) -> Result<(), MintError> {
        let timestamp = unix_now().to_string();
        let signature = sign(&self.key, id, &timestamp, body);
        let mut headers = self.endpoint.post("application/json")?;
        for (name, value) in [("webhook-id", id), ("webhook-timestamp", &timestamp), ("webhook-signature", &signature)]
        {
            let value = HeaderValue::from_str(value).map_err(|_| MintError::Invalid("the webhook's headers".into()))?;
            headers.insert(name, value);
        }
        let (status, _) = self.endpoint.exchange_json(self.endpoint.request(headers, body.to_owned())?).await?;
        match status.is_success() {
            true => Ok(()),
            false => Err(MintError::Refused { status: status.as_u16(), code: String::new() }),
        }
    }

    /// What the request would do: names alone, no value of its query and nothing of its body.
    fn body(&self, approval: &Approval) -> String {
        let time = |unix: i64| {
            humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(unix.unsigned_abs())).to_string()
        };
        let page =
            if self.page_url.is_empty() { String::new() } else { format!("{}/t/{}", self.page_url, approval.tenant) };
        let message = serde_json::json!({
            "type": "approval.requested",
            "timestamp": time(approval.requested_at),
            "data": {
                "id": approval.id,
                "tenant": approval.tenant,
                "agent": approval.agent,
                "service": approval.service,
                "method": approval.method,
                "path": approval.path,
                "query_names": approval.query_names,
                "mcp_method": approval.mcp_method,
                "mcp_name": approval.mcp_name,
                "policy": approval.policy,
                "scope": approval.scope,
                "token": approval.token,
                "expires_at": time(approval.expires_at),
                "page": page,
            },
        });
        message.to_string()
    }
}

fn key_of(text: &str) -> Result<hmac::Key, WebhookError> {
    let encoded = text.trim().strip_prefix(KEY_PREFIX).ok_or(WebhookError::Key)?;
    let bytes = Zeroizing::new(STANDARD.decode(encoded).map_err(|_| WebhookError::Key)?);
    if !KEY_BYTES.contains(&bytes.len()) {
        return Err(WebhookError::Key);
    }
    Ok(hmac::Key::new(hmac::HMAC_SHA256, &bytes))
}

fn sign(key: &hmac::Key, id: &str, timestamp: &str, body: &str) -> String {
    let tag = hmac::sign(key, format!("{id}.{timestamp}.{body}").as_bytes());
    format!("v1,{}", STANDARD.encode(tag))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_is_that_of_standard_webhooks() {
        // The example of the specification's reference implementation.
        let key = key_of("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\n").unwrap();
        let signature = sign(&key, "msg_p5jXN8AQM9LWM0D4loKWxJek", "1614265330", r#"{"test": 2432232314}"#);
        assert_eq!(signature, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn what_is_no_key_is_refused() {
        for text in ["", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_", "whsec_AAAA", "whsec_!!!!"] {
            assert!(matches!(key_of(text), Err(WebhookError::Key)), "{text}");
        }
    }
}
