//! One request to a node, as an SDK of the service would send it.

use std::{sync::Arc, time::Duration};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::Bytes;
use http::{Request, Uri, header, request::Builder};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::{
    ClientConfig,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
};
use seks_proto::wire::{self, token_slot::At as Slot, token_slot::BasicPart};
use seks_service::test_call::TestCall;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::{
    commands::env::ProxyArgs,
    error::{CliError, Exit, Result, one_line, plain_io},
};

/// Longest response that is read, in bytes.
const MAX_ANSWER: usize = 4 * 1024 * 1024;

/// The address of a node for agents.
pub(super) struct Proxy {
    base: Uri,
    host: String,
    port: u16,
    tls: Option<TlsConnector>,
}

/// The response.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) request_id: Option<String>,
    pub(super) body: Bytes,
    problem: bool,
}

/// The broker's own error response.
pub(super) struct Refusal {
    pub(super) code: String,
    pub(super) detail: String,
}

impl Proxy {
    /// # Errors
    /// When `base` is no URL, or the roots to trust can't be read.
    pub(super) fn new(base: &str, args: &ProxyArgs) -> Result<Self> {
        let wrong = || CliError::usage("--proxy", "a proxy is http://HOST:PORT or https://HOST:PORT");
        let base: Uri = base.parse().map_err(|_| wrong())?;
        let tls = match base.scheme_str() {
            Some("http") => None,
            Some("https") => Some(connector(args)?),
            _ => return Err(wrong()),
        };
        let host = base.host().ok_or_else(wrong)?.trim_matches(['[', ']']).to_owned();
        let port = base.port_u16().unwrap_or(if tls.is_some() { 443 } else { 80 });
        Ok(Self { base, host, port, tls })
    }

    /// Makes the call; within `timeout` there is an answer or an error.
    ///
    /// # Errors
    /// When the node can't be reached (exit code 6), or breaks off.
    pub(super) async fn call(
        &self,
        service: &wire::Service,
        call: &TestCall,
        token: &str,
        timeout: Duration,
    ) -> Result<Answer> {
        let what = format!("proxy {}", self.base);
        let request = self.request(service, call, token).map_err(|why| CliError::new(Exit::Failed, &what, why))?;
        let failed = |why: String| CliError::new(Exit::Unreachable, &what, why);
        let answer = tokio::time::timeout(timeout, self.exchange(request)).await;
        answer.map_err(|_| failed("no answer in time".into()))?.map_err(failed)
    }

    fn request(&self, service: &wire::Service, call: &TestCall, token: &str) -> Result<Request<Full<Bytes>>, String> {
        let prefix = format!("{}/api/{}", self.base.path().trim_end_matches('/'), service.name);
        let request = Request::builder()
            .method(call.method.clone())
            .header(header::HOST, self.base.authority().map(ToString::to_string).unwrap_or_default())
            .header(header::USER_AGENT, concat!("seks/", env!("CARGO_PKG_VERSION")))
            .header(header::ACCEPT, "application/json");
        let elsewhere = |slot: &Slot| matches!(slot, Slot::Subprotocol(_) | Slot::AwsSigv4(_));
        let slot = service.slots.iter().filter_map(|s| s.at.as_ref()).find(|slot| !elsewhere(slot));
        let slot = slot.ok_or("the service has no place for a token in a plain request")?;
        let (target, mut request) = present(slot, token, &call.target, request);
        if call.body.is_some() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        let body = Full::new(Bytes::from(call.body.clone().unwrap_or_default()));
        request.uri(format!("{prefix}{target}")).body(body).map_err(|_| "the call can't be written as a request".into())
    }

    async fn exchange(&self, request: Request<Full<Bytes>>) -> Result<Answer, String> {
        let stream = TcpStream::connect((self.host.as_str(), self.port)).await.map_err(|e| plain_io(&e))?;
        match &self.tls {
            None => send(stream, request).await,
            Some(tls) => {
                let name = ServerName::try_from(self.host.clone()).map_err(|e| e.to_string())?;
                send(tls.connect(name, stream).await.map_err(|e| plain_io(&e))?, request).await
            }
        }
    }
}

/// Puts the token where the service's SDKs put their key.
fn present(slot: &Slot, token: &str, target: &str, request: Builder) -> (String, Builder) {
    let same = target.to_owned();
    match slot {
        Slot::Scheme(scheme) => {
            let value = format!("{scheme} {token}");
            (same, request.header(header::AUTHORIZATION, value.trim_start()))
        }
        Slot::Header(name) => (same, request.header(name.as_str(), token)),
        Slot::Basic(part) => {
            let user = BasicPart::try_from(*part) == Ok(BasicPart::User);
            let pair = if user { format!("{token}:") } else { format!("token:{token}") };
            (same, request.header(header::AUTHORIZATION, format!("Basic {}", BASE64_STANDARD.encode(pair))))
        }
        Slot::Query(name) => {
            let joint = if target.contains('?') { '&' } else { '?' };
            (format!("{target}{joint}{name}={token}"), request)
        }
        Slot::Path(template) => (format!("{}{target}", template.replace("{token}", token)), request),
        Slot::Subprotocol(_) | Slot::AwsSigv4(_) => (same, request), // not asked for: see `Proxy::request`
    }
}

fn connector(args: &ProxyArgs) -> Result<TlsConnector> {
    let pem = args.ca_pem()?.unwrap_or_default();
    let unusable = |e: String| CliError::usage("--proxy-ca", e);
    let extra = CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<Vec<_>, _>>();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let extra = extra.map_err(|e| unusable(e.to_string()))?;
    let verifier = rustls_platform_verifier::Verifier::new_with_extra_roots(extra, provider.clone())
        .map_err(|e| unusable(e.to_string()))?;
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| unusable(e.to_string()))?
        .dangerous() // only in name: the verifier checks chain and name
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

async fn send<S>(stream: S, request: Request<Full<Bytes>>) -> Result<Answer, String>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
    tokio::spawn(connection);
    let response = sender.send_request(request).await.map_err(|e| e.to_string())?;
    let text = |name: &str| Some(response.headers().get(name)?.to_str().ok()?.to_owned());
    let (status, request_id) = (response.status().as_u16(), text("x-seks-request-id"));
    let problem = text("content-type").is_some_and(|t| t.starts_with("application/problem+json"));
    let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await.map_err(|e| e.to_string())?.to_bytes();
    Ok(Answer { status, request_id, body, problem })
}

impl Answer {
    /// The broker's error, if the broker and not the upstream responded.
    pub(super) fn refusal(&self) -> Option<Refusal> {
        let body: Value = self.problem.then(|| serde_json::from_slice(&self.body).ok())??;
        let text = |key: &str| body.get(key).and_then(serde_json::Value::as_str).map(ToOwned::to_owned);
        Some(Refusal { code: text("type")?.strip_prefix("urn:seks:error:")?.to_owned(), detail: text("detail")? })
    }

    /// The beginning of the upstream's response, on one line.
    pub(super) fn excerpt(&self, length: usize) -> String {
        one_line(&String::from_utf8_lossy(&self.body)).chars().take(length).collect()
    }
}
