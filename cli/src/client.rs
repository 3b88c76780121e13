//! The connection to a control plane: mutual TLS from a context, deadlines for all calls, and
//! errors with exit codes.

pub(crate) mod peer;
mod tls_rejection;

use std::{
    error::Error as StdError,
    future::Future,
    ops::ControlFlow,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use rustls::{AlertDescription, CertificateError};
use seks_proto::wire::{self, admin_client::AdminClient};
use tonic::{
    Code, Response, Status,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity},
};

use crate::{
    context::Context,
    duration::unix_now,
    error::{CliError, Exit, Result},
};

/// Longest wait for a connection. A shorter `--timeout` applies too.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Additional time for the response to a call that itself waits for `--timeout`.
const GRACE: Duration = Duration::from_secs(1);
/// Largest response, in bytes. It fits a list of a hundred thousand tokens.
const MAX_ANSWER: usize = 64 * 1024 * 1024;

/// Records on a page of a list. A control plane of the previous version ignores it and returns all.
const PAGE: u32 = 1000;

/// A response that is a page of a list.
pub trait Page {
    /// The listed objects.
    type Item;
    /// The objects on the page, and the token of the next page, or `""`.
    fn into_items(self) -> (Vec<Self::Item>, String);
}

macro_rules! pages {
    ($($answer:ident $field:ident $item:ident;)*) => {
        $(impl Page for wire::$answer {
            type Item = wire::$item;
            fn into_items(self) -> (Vec<wire::$item>, String) {
                (self.$field, self.next_page_token)
            }
        })*
    };
}

pages! {
    ListServicesResponse services Service;
    ListCredentialsResponse credentials Credential;
    ListAgentsResponse agents Agent;
    ListTokensResponse tokens Token;
    ListTrustsResponse trusts Token;
    ListApprovalsResponse approvals Approval;
    ListPoliciesResponse policies Policy;
}

/// An open connection, the tenant of the commands, and their timeout.
#[derive(Debug, Clone)]
pub struct Client {
    rpc: AdminClient<Channel>,
    context: Arc<Context>,
    tenant: String,
    timeout: Duration,
    /// When the command began to connect, until its first call: the connection is part of
    /// `--timeout`.
    connecting: Arc<Mutex<Option<Instant>>>,
}

impl Client {
    /// Connects to the first endpoint of the context that can be reached.
    ///
    /// # Errors
    /// Exit code 6 when the control plane is unreachable or has another CA, 4 when it rejects our
    /// certificate, 2 when the context is invalid.
    pub async fn connect(context: &Context, tenant: Option<&str>, timeout: Duration) -> Result<Self> {
        let began = Instant::now();
        let endpoints: Vec<&str> = context.all_endpoints().collect();
        for endpoint in &endpoints {
            if !endpoint.starts_with("https://") {
                let what = format!("control plane {endpoint}");
                return Err(CliError::usage(what, "the endpoint of a context begins with https://"));
            }
        }
        check_own_certificate(&context.certificate)?;
        let mut unreachable = None;
        for (tried, endpoint) in endpoints.iter().enumerate() {
            // Each gets its share of what is left, so that the last one is tried in time as well.
            let left = u32::try_from(endpoints.len() - tried).unwrap_or(u32::MAX);
            let limit = CONNECT_TIMEOUT.min(timeout.saturating_sub(began.elapsed()) / left);
            match connect(context, endpoint, limit).await {
                Ok(channel) => {
                    let used = Context { endpoint: (*endpoint).into(), ..context.clone() };
                    return Ok(Self {
                        rpc: AdminClient::new(channel).max_decoding_message_size(MAX_ANSWER),
                        context: Arc::new(used),
                        tenant: tenant.or(context.tenant.as_deref()).unwrap_or("default").into(),
                        timeout,
                        connecting: Arc::new(Mutex::new(Some(began))),
                    });
                }
                // The first one's reason is kept: the others' are usually the same.
                Err(error) if error.exit == Exit::Unreachable => drop(unreachable.get_or_insert(error)),
                Err(error) => return Err(error),
            }
        }
        let mut error = unreachable.unwrap_or_else(|| CliError::usage("context", "no endpoint"));
        if endpoints.len() > 1 {
            error.what = format!("{} and {} more", error.what, endpoints.len() - 1);
        }
        Err(error)
    }

    /// The generated client.
    #[must_use]
    pub fn rpc(&self) -> AdminClient<Channel> {
        self.rpc.clone()
    }

    /// The tenant of the commands.
    #[must_use]
    pub fn tenant(&self) -> String {
        self.tenant.clone()
    }

    /// Where agents reach the proxy, if the context says so.
    #[must_use]
    pub fn proxy(&self) -> Option<&str> {
        self.context.proxy.as_deref()
    }

    /// The address for agents' `HTTPS_PROXY`, if the context has one.
    #[must_use]
    pub fn forward_proxy(&self) -> Option<&str> {
        self.context.forward_proxy.as_deref()
    }

    /// How long a change waits until it is enforced.
    #[must_use]
    pub fn wait(&self, no_wait: bool) -> wire::Wait {
        wire::Wait { no_wait, timeout_ms: u64::try_from(self.timeout.as_millis()).unwrap_or(u64::MAX) }
    }

    /// A request for a list in this tenant.
    #[must_use]
    pub fn list(&self) -> wire::ListRequest {
        wire::ListRequest { tenant: self.tenant(), page_size: PAGE, page_token: String::new() }
    }

    /// Calls `each` for every page of a list, until it wants no more.
    ///
    /// # Errors
    /// As [`Self::call`], and of `each`.
    pub async fn for_each_page<P: Page>(
        &self,
        what: &str,
        ask: impl AsyncFn(AdminClient<Channel>, wire::ListRequest) -> std::result::Result<Response<P>, Status>,
        mut each: impl FnMut(Vec<P::Item>) -> Result<ControlFlow<()>>,
    ) -> Result<()> {
        let mut request = self.list();
        loop {
            let (items, next) = self.call(what, ask(self.rpc(), request.clone())).await?.into_items();
            if each(items)?.is_break() || next.is_empty() {
                return Ok(());
            }
            request.page_token = next;
        }
    }

    /// All objects of a list.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub async fn list_all<P: Page>(
        &self,
        what: &str,
        ask: impl AsyncFn(AdminClient<Channel>, wire::ListRequest) -> std::result::Result<Response<P>, Status>,
    ) -> Result<Vec<P::Item>> {
        let mut all = Vec::new();
        self.for_each_page(what, ask, |items| {
            all.extend(items);
            Ok(ControlFlow::Continue(()))
        })
        .await?;
        Ok(all)
    }

    /// A request about one object of this tenant.
    #[must_use]
    pub fn named(&self, name: &str) -> wire::NameRequest {
        wire::NameRequest { tenant: self.tenant(), name: name.into() }
    }

    /// A request to delete one object of this tenant.
    #[must_use]
    pub fn delete(&self, name: &str, no_wait: bool) -> wire::DeleteRequest {
        wire::DeleteRequest { tenant: self.tenant(), name: name.into(), wait: Some(self.wait(no_wait)) }
    }

    /// Awaits a response within `--timeout`.
    ///
    /// # Errors
    /// The control plane's error, or exit code 6.
    pub async fn call<T>(
        &self,
        what: &str,
        answer: impl Future<Output = std::result::Result<Response<T>, Status>>,
    ) -> Result<T> {
        self.within(self.timeout, what, answer).await
    }

    /// [`Self::call`] for a change. The control plane may use up `--timeout` while it waits until
    /// the change is enforced.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub async fn change<T>(
        &self,
        what: &str,
        answer: impl Future<Output = std::result::Result<Response<T>, Status>>,
    ) -> Result<T> {
        self.within(self.timeout + GRACE, what, answer).await
    }

    async fn within<T>(
        &self,
        limit: Duration,
        what: &str,
        answer: impl Future<Output = std::result::Result<Response<T>, Status>>,
    ) -> Result<T> {
        let connecting = self.connecting.lock().take();
        let limit = limit.saturating_sub(connecting.map_or(Duration::ZERO, |began| began.elapsed()));
        match tokio::time::timeout(limit, answer).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(self.refused(what, &status).await),
            Err(_) => {
                let why = format!("no answer within {}", humantime::format_duration(limit));
                Err(CliError::new(Exit::Unreachable, what, why).hint(OUTCOME_UNKNOWN))
            }
        }
    }

    async fn refused(&self, what: &str, status: &Status) -> CliError {
        let tls = match status.source().and_then(tls_error) {
            None if matches!(status.code(), Code::Cancelled | Code::Unavailable | Code::Unknown) => {
                tls_rejection::diagnose(&self.context).await
            }
            known => known.cloned(),
        };
        match tls {
            Some(error) => tls_refusal(&format!("control plane {}", self.context.endpoint), &error),
            None => CliError::status(what, status),
        }
    }
}

async fn connect(context: &Context, endpoint: &str, limit: Duration) -> Result<Channel> {
    let what = format!("control plane {endpoint}");
    let tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(&context.ca))
        .identity(Identity::from_pem(&context.certificate, &context.key));
    let channel = Endpoint::from_shared(endpoint.to_owned())
        .and_then(|e| e.connect_timeout(limit).tls_config(tls))
        .map_err(|e| CliError::usage(&what, innermost(&e)))?;
    match tokio::time::timeout(limit, channel.connect()).await {
        Ok(connected) => connected.map_err(|e| connection_error(&what, &e)),
        Err(_) => Err(CliError::new(Exit::Unreachable, what, "no answer in time").hint(IS_IT_RUNNING)),
    }
}

const IS_IT_RUNNING: &str = "check that it runs (`systemctl status seks-control-plane` there, or `seks dev` on this machine), \
                             and that the context's `endpoints` name every replica";
const OUTCOME_UNKNOWN: &str = "the change may have been made; check before you repeat it";

/// The end of a certificate's validity, in Unix seconds.
pub(crate) fn valid_until(pem: &str) -> Option<i64> {
    let (_, parsed) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).ok()?;
    Some(parsed.parse_x509().ok()?.validity().not_after.timestamp())
}

/// Whether a certificate is valid for another week.
#[must_use]
pub fn is_fresh(pem: &str) -> bool {
    const WEEK: i64 = 7 * 24 * 3600;
    valid_until(pem).is_some_and(|until| until - WEEK > unix_now())
}

/// An expired certificate of our own is detected without a connection.
fn check_own_certificate(pem: &str) -> Result<()> {
    let what = "the context's certificate";
    let until = valid_until(pem).ok_or_else(|| CliError::usage(what, "not a certificate"))?;
    if unix_now() > until {
        let why = format!("expired at {}", crate::output::rfc3339(until));
        return Err(CliError::new(Exit::NotPermitted, what, why)
            .hint("an owner makes a new one with `seks operator create`; `seks dev` renews its own when it starts"));
    }
    Ok(())
}

fn connection_error(what: &str, error: &(dyn StdError + 'static)) -> CliError {
    match tls_error(error) {
        Some(tls) => tls_refusal(what, tls),
        None => CliError::new(Exit::Unreachable, what, innermost(error)).hint(IS_IT_RUNNING),
    }
}

fn tls_refusal(what: &str, error: &rustls::Error) -> CliError {
    match error {
        rustls::Error::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. }) => {
            CliError::new(Exit::Unreachable, what, "its certificate has expired")
        }
        rustls::Error::InvalidCertificate(_) => {
            CliError::new(Exit::Unreachable, what, "its certificate was not issued by the context's authority")
                .hint("the context belongs to another control plane, or a proxy intercepts the connection")
        }
        rustls::Error::AlertReceived(alert) => CliError::new(Exit::NotPermitted, what, alert_reason(*alert))
            .hint("this control plane does not accept the context's certificate"),
        other => CliError::new(Exit::Unreachable, what, other),
    }
}

fn alert_reason(alert: AlertDescription) -> String {
    match alert {
        AlertDescription::CertificateExpired => "it reports that our certificate has expired".into(),
        AlertDescription::CertificateRequired => "it requires a client certificate".into(),
        AlertDescription::UnknownCA | AlertDescription::BadCertificate | AlertDescription::DecryptError => {
            "it does not know the authority of our certificate".into()
        }
        other => format!("it rejected our certificate ({other:?})"),
    }
}

/// The TLS error in a transport error, if there is one. `io::Error` hides its inner error from
/// `source()`.
fn tls_error<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a rustls::Error> {
    let mut next: Option<&'a (dyn StdError + 'static)> = Some(error);
    while let Some(error) = next {
        if let Some(tls) = error.downcast_ref::<rustls::Error>() {
            return Some(tls);
        }
        let inner = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        next = match inner {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    None
}

/// The innermost cause: the message of the operating system or the resolver.
fn innermost(error: &(dyn StdError + 'static)) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.downcast_ref::<std::io::Error>().map_or_else(|| error.to_string(), crate::error::plain_io)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tls_error_is_found_inside_io_errors() {
        let tls = rustls::Error::AlertReceived(AlertDescription::UnknownCA);
        let wrapped = std::io::Error::other(std::io::Error::other(tls));
        let error = connection_error("control plane x", &wrapped);
        assert_eq!(
            (error.exit, error.why.as_str()),
            (Exit::NotPermitted, "it does not know the authority of our certificate")
        );
    }

    #[test]
    fn a_refused_connection_is_exit_code_6() {
        let error = connection_error("x", &std::io::Error::from_raw_os_error(111));
        assert_eq!((error.exit, error.why.as_str()), (Exit::Unreachable, "connection refused"));
    }

    #[test]
    fn an_expired_certificate_is_known_without_a_connection() {
        let mut params = rcgen::CertificateParams::new(vec!["x".into()]).unwrap();
        params.not_after = rcgen::date_time_ymd(2020, 1, 1);
        params.not_before = rcgen::date_time_ymd(2019, 1, 1);
        let key = rcgen::KeyPair::generate().unwrap();
        let error = check_own_certificate(&params.self_signed(&key).unwrap().pem()).unwrap_err();
        assert_eq!((error.exit, error.why.as_str()), (Exit::NotPermitted, "expired at 2020-01-01T00:00:00Z"));
        assert_eq!(check_own_certificate("-----BEGIN X").unwrap_err().exit, Exit::Usage);
    }
}
