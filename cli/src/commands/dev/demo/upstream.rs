//! The stub upstream: a chat-completions API on loopback that records its last request and streams
//! a response.

use std::{
    convert::Infallible,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Limited, StreamBody};
use hyper::{Request, Response, body::Frame, body::Incoming, header, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio_stream::StreamExt as _;
use tokio_util::sync::CancellationToken;

/// Largest body that it reads, in bytes.
const MAX_BODY: usize = 1024 * 1024;
/// Pause between two words of the response, so that the streaming is visible.
const PAUSE: Duration = Duration::from_millis(40);

/// The recorded request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Received {
    pub(super) line: String,
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: String,
}

/// The running stub. It ends when this is dropped.
pub(super) struct Upstream {
    address: SocketAddr,
    last: Arc<Mutex<Option<Received>>>,
    stop: CancellationToken,
}

impl Upstream {
    /// Starts it on a free port of loopback.
    pub(super) async fn start() -> std::io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let upstream = Self { address: listener.local_addr()?, last: Arc::default(), stop: CancellationToken::new() };
        tokio::spawn(serve(listener, Arc::clone(&upstream.last), upstream.stop.clone()));
        Ok(upstream)
    }

    /// `http://127.0.0.1:PORT`.
    pub(super) fn origin(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The last request.
    pub(super) fn last(&self) -> Option<Received> {
        self.last.lock().clone()
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn serve(listener: TcpListener, last: Arc<Mutex<Option<Received>>>, stop: CancellationToken) {
    while let Some(accepted) = stop.run_until_cancelled(listener.accept()).await {
        let Ok((stream, _)) = accepted else { continue };
        let (last, stop) = (Arc::clone(&last), stop.clone());
        tokio::spawn(async move {
            let service = service_fn(move |request| answer(request, Arc::clone(&last)));
            let connection =
                http1::Builder::new().timer(TokioTimer::new()).serve_connection(TokioIo::new(stream), service);
            // A broken connection is the other end's to report.
            drop(stop.run_until_cancelled(connection).await);
        });
    }
}

type Words = StreamBody<std::pin::Pin<Box<dyn tokio_stream::Stream<Item = Result<Frame<Bytes>, Infallible>> + Send>>>;

async fn answer(request: Request<Incoming>, last: Arc<Mutex<Option<Received>>>) -> Result<Response<Words>, Infallible> {
    let (head, body) = request.into_parts();
    let body = Limited::new(body, MAX_BODY).collect().await.map(|b| b.to_bytes()).unwrap_or_default();
    let received = Received {
        line: format!("{} {}", head.method, head.uri),
        headers: head
            .headers
            .iter()
            .map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned()))
            .collect(),
        body: String::from_utf8_lossy(&body).into_owned(),
    };
    *last.lock() = Some(received);
    let presented = head.headers.get(header::AUTHORIZATION).map_or(&b""[..], |v| v.as_bytes());
    let frames = tokio_stream::iter(events(&String::from_utf8_lossy(presented)))
        .throttle(PAUSE)
        .map(|event| Ok(Frame::data(Bytes::from(event))));
    let mut response = Response::new(StreamBody::new(Box::pin(frames) as _));
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("text/event-stream"));
    Ok(response)
}

/// Server-sent events of a chat-completions API. The last one repeats the key, as a debugging
/// upstream might.
fn events(presented: &str) -> Vec<String> {
    let delta = |word: &str| {
        format!(
            r#"data: {{"object":"chat.completion.chunk","choices":[{{"index":0,"delta":{{"content":"{word}"}}}}]}}"#
        ) + "\n\n"
    };
    let mut events: Vec<_> = ["Not", " you:", " I", " was", " called", " with:", " "].map(delta).into();
    events.push(delta(presented));
    events.push("data: [DONE]\n\n".into());
    events
}
