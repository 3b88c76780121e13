//! The only outgoing connection of the control plane: a request to a token endpoint or to a store
//! of secrets.
//! The name is resolved once, every address is checked, and one of them is dialled. TLS is verified
//! before a byte is sent. Redirects are not followed, and proxies of the environment are not used.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::rt::TokioIo;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject as _};
use seks_network::{address::DialRules, resolve::resolve};
use seks_service::Upstream;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::MintError;

/// A whole exchange must be over in this time: well within a claim.
pub(crate) const EXCHANGE: Duration = Duration::from_secs(20);
/// The largest answer, in bytes.
const MOST: usize = 64 * 1024;

/// A checked token endpoint.
pub(crate) struct Endpoint {
    upstream: Upstream,
    path: String,
    url: String,
    rules: DialRules,
    /// PEM roots that replace the system's; empty: the system's.
    roots: String,
}

impl Endpoint {
    pub(crate) fn parse(url: &str, rules: DialRules) -> Result<Self, MintError> {
        let (upstream, path) = origin(url, !rules.tenant_networks.is_empty())?;
        Ok(Self { upstream, path, url: url.to_owned(), rules, roots: String::new() })
    }

    /// The same, whose server is verified by these roots.
    pub(crate) fn with_roots(self, roots: &str) -> Self {
        Self { roots: roots.to_owned(), ..self }
    }

    pub(crate) fn path(&self) -> &str {
        &self.path
    }

    pub(crate) fn host(&self) -> Result<HeaderValue, MintError> {
        self.upstream.host_header().map_err(|_| MintError::Invalid("the token endpoint is no URL".into()))
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// The head of a POST.
    pub(crate) fn post(&self, content_type: &'static str) -> Result<HeaderMap, MintError> {
        let mut headers = self.head()?;
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        Ok(headers)
    }

    /// The head of any request.
    pub(crate) fn head(&self) -> Result<HeaderMap, MintError> {
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, self.host()?);
        headers.insert(header::ACCEPT, HeaderValue::from_static("application/json"));
        headers.insert(header::USER_AGENT, HeaderValue::from_static("seks"));
        Ok(headers)
    }

    /// A GET.
    pub(crate) fn get(&self, headers: HeaderMap) -> Result<Request<Bytes>, MintError> {
        let mut request = self.request(headers, String::new())?;
        *request.method_mut() = Method::GET;
        Ok(request)
    }

    pub(crate) fn request(&self, headers: HeaderMap, body: String) -> Result<Request<Bytes>, MintError> {
        let request = Request::builder().method(Method::POST).uri(&self.path).body(Bytes::from(body));
        let mut request = request.map_err(|_| MintError::Invalid("the token endpoint is no URL".into()))?;
        *request.headers_mut() = headers;
        Ok(request)
    }

    /// Sends a request; the answer's JSON object when it is a success.
    pub(crate) async fn ask(&self, request: Request<Bytes>) -> Result<Value, MintError> {
        self.read_json(request).await.and_then(|value| match value {
            Value::Object(_) => Ok(value),
            _ => Err(MintError::Endpoint("gave no JSON")),
        })
    }

    /// Sends a request; the answer's JSON when it is a success.
    pub(crate) async fn read_json(&self, request: Request<Bytes>) -> Result<Value, MintError> {
        let (status, value) = self.exchange_json(request).await?;
        match (status.is_success(), &value) {
            (true, Value::Null) => Err(MintError::Endpoint("gave no JSON")),
            (true, _) => Ok(value),
            (false, _) => Err(MintError::Refused { status: status.as_u16(), code: error_code(&value) }),
        }
    }

    /// Sends a request; the status and the answer's JSON, `null` when it is none.
    pub(crate) async fn exchange_json(&self, request: Request<Bytes>) -> Result<(StatusCode, Value), MintError> {
        let answered = tokio::time::timeout(EXCHANGE, self.exchange(request)).await;
        let (status, body) = answered.map_err(|_| MintError::Endpoint("did not answer in time"))??;
        Ok((status, serde_json::from_slice(&body).unwrap_or_default()))
    }

    /// Sends a request; the answer's bytes when it is a 200.
    pub(crate) async fn read(&self, request: Request<Bytes>) -> Result<Bytes, MintError> {
        let answered = tokio::time::timeout(EXCHANGE, self.exchange(request)).await;
        let (status, body) = answered.map_err(|_| MintError::Endpoint("did not answer in time"))??;
        match status {
            StatusCode::OK => Ok(body),
            status => Err(MintError::Refused { status: status.as_u16(), code: String::new() }),
        }
    }

    async fn exchange(&self, request: Request<Bytes>) -> Result<(StatusCode, Bytes), MintError> {
        let unreachable = || MintError::Endpoint("can't be reached");
        let (host, port) = (self.upstream.host(), self.upstream.port());
        let addresses = resolve(host, port, &self.rules).await.map_err(|_| unreachable())?;
        let mut socket = None;
        for address in addresses {
            if let Ok(connected) = TcpStream::connect(address).await {
                socket = Some(connected);
                break;
            }
        }
        let socket = socket.ok_or_else(unreachable)?;
        if !self.upstream.tls() {
            return send(TokioIo::new(socket), request).await;
        }
        let name = ServerName::try_from(host.to_owned()).map_err(|_| unreachable())?;
        let untrusted = |_| MintError::Endpoint("can't be verified: its certificate");
        let connector = TlsConnector::from(Arc::new(tls(&self.roots)?));
        send(TokioIo::new(connector.connect(name, socket).await.map_err(untrusted)?), request).await
    }
}

fn tls(roots: &str) -> Result<ClientConfig, MintError> {
    let failed = |_| MintError::Endpoint("can't be verified: no roots on this machine");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .map_err(failed)?;
    let mut config = match roots {
        "" => {
            let verifier = rustls_platform_verifier::Verifier::new(provider).map_err(failed)?;
            let builder = builder.dangerous(); // only in name: the verifier checks chain and name
            builder.with_custom_certificate_verifier(Arc::new(verifier)).with_no_client_auth()
        }
        pem => builder.with_root_certificates(read_roots(pem)?).with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

fn read_roots(pem: &str) -> Result<RootCertStore, MintError> {
    let wrong = || MintError::Invalid("the issuer's CA is no PEM of certificates".into());
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        roots.add(certificate.map_err(|_| wrong())?).map_err(|_| wrong())?;
    }
    if roots.is_empty() { Err(wrong()) } else { Ok(roots) }
}

async fn send<T>(io: T, request: Request<Bytes>) -> Result<(StatusCode, Bytes), MintError>
where
    T: hyper::rt::Read + hyper::rt::Write + Send + Unpin + 'static,
{
    let lost = |_| MintError::Endpoint("broke off");
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.map_err(lost)?;
    let exchange = async {
        let response = sender.send_request(request.map(Full::new)).await.map_err(lost)?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MOST).collect().await;
        Ok((status, body.map_err(|_| MintError::Endpoint("gave an answer that can't be read"))?.to_bytes()))
    };
    let mut exchange = std::pin::pin!(exchange);
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        biased;
        done = &mut exchange => done,
        ended = &mut connection => match ended {
            Ok(()) => exchange.await, // the answer may be complete
            Err(_) => Err(MintError::Endpoint("broke off")),
        }
    }
}

/// The `error` of RFC 6749 5.2 if it is one: a code of theirs, never a text that could hold
/// anything.
pub(crate) fn error_code(answer: &Value) -> String {
    let code = answer.get("error").and_then(Value::as_str).unwrap_or_default();
    let known = code.len() <= 64 && code.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
    if known { code.to_owned() } else { String::new() }
}

/// A header's value that is never printed.
pub(crate) fn sensitive(text: &str) -> Result<HeaderValue, MintError> {
    let mut value = HeaderValue::from_str(text).map_err(|_| MintError::Invalid("a field can't be sent".into()))?;
    value.set_sensitive(true);
    Ok(value)
}

/// Form encoding, strictly: everything but unreserved characters (RFC 3986, 2.3).
pub(crate) fn encoded(text: &str) -> String {
    const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
    utf8_percent_encode(text, ESCAPED).to_string()
}

/// For what only needs the origin of an endpoint.
fn origin(url: &str, allow_private: bool) -> Result<(Upstream, String), MintError> {
    let (scheme, rest) =
        url.split_once("://").ok_or_else(|| MintError::Invalid("the token endpoint is no URL".into()))?;
    let (authority, path) = rest.find('/').and_then(|at| rest.split_at_checked(at)).unwrap_or((rest, "/"));
    let clean = path.bytes().all(|b| b.is_ascii_graphic() && !b"#\\\"<>".contains(&b));
    if !clean {
        return Err(MintError::Invalid("the token endpoint is no URL".into()));
    }
    Ok((Upstream::parse(&format!("{scheme}://{authority}"), allow_private)?, path.to_owned()))
}
