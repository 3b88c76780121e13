//! The demonstration's agent: sends one HTTP request to the proxy, as an SDK does.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, Version, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::error::{CliError, Exit, Result, plain_io};

/// The request's body, as an SDK writes it.
pub(super) const BODY: &str =
    r#"{"model":"demo-1","stream":true,"messages":[{"role":"user","content":"Who has the key?"}]}"#;
/// The request's path: base URL and the SDK's path.
pub(super) const PATH: &str = "/api/demo/v1/chat/completions";
/// Longest wait for the whole answer.
const TIMEOUT: Duration = Duration::from_secs(20);

/// The response as the agent received it.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: String,
    /// From sending the request to the first and the last byte of the response's body.
    pub(super) first: Duration,
    pub(super) last: Duration,
}

/// Sends the request to the proxy at `authority` (`HOST:PORT`).
///
/// # Errors
/// When there is no whole answer.
pub(super) async fn send_request(authority: &str, token: &str) -> Result<Answer> {
    let failed = |why: String| CliError::new(Exit::Failed, "demo", why);
    let asked = tokio::time::timeout(TIMEOUT, exchange(authority, token)).await;
    asked.map_err(|_| failed("the proxy gave no answer in time".into()))?.map_err(failed)
}

async fn exchange(authority: &str, token: &str) -> std::result::Result<Answer, String> {
    let stream = TcpStream::connect(authority).await.map_err(|e| plain_io(&e))?;
    let (mut sender, connection) =
        http1::handshake::<_, Full<Bytes>>(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
    tokio::spawn(connection);
    let request = Request::post(PATH)
        .version(Version::HTTP_11)
        .header(header::HOST, authority)
        .header(header::AUTHORIZATION, format!("Bearer {token}"))
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::ACCEPT, "text/event-stream")
        .body(Full::new(Bytes::from_static(BODY.as_bytes())))
        .map_err(|e| e.to_string())?;
    let sent = Instant::now();
    let response = sender.send_request(request).await.map_err(|e| e.to_string())?;
    let (head, mut body) = response.into_parts();
    let (mut bytes, mut first) = (Vec::new(), None);
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame.map_err(|e| e.to_string())?.into_data() {
            first.get_or_insert_with(|| sent.elapsed());
            bytes.extend_from_slice(&data);
        }
    }
    let text = |value: &header::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    Ok(Answer {
        status: head.status.as_u16(),
        headers: head.headers.iter().map(|(name, value)| (name.to_string(), text(value))).collect(),
        body: String::from_utf8_lossy(&bytes).into_owned(),
        first: first.unwrap_or_else(|| sent.elapsed()),
        last: sent.elapsed(),
    })
}
