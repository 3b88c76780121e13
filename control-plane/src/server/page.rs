//! The listener of the page.

use std::{net::SocketAddr, sync::Arc};

use seks_types::id::OperatorName;
use tokio::runtime::Handle;

use super::{ControlPlane, IdentityError, Listener, StartError, run_on, tls::ClientCertificate};
use crate::{
    admin::Admin,
    authority::AuthorityError,
    config::{Config, PageConfig},
    page::{Page, hosts},
    page_sessions::{PageLink, PageSessions},
    registry::RegistryError,
};

/// A page whose address is bound, and that is not served yet.
pub(super) struct BoundPage {
    listener: Listener,
    sessions: Arc<PageSessions>,
}

impl BoundPage {
    /// Its sessions.
    pub(super) fn sessions(&self) -> Arc<PageSessions> {
        Arc::clone(&self.sessions)
    }
}

/// Checks `[page]`.
///
/// # Errors
/// [`StartError::PageUrl`].
pub(super) fn check(config: &PageConfig) -> Result<(), StartError> {
    let is_origin = |url: &str| {
        let authority = url.strip_prefix("https://").unwrap_or_default();
        let is_plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b':' | b'[' | b']');
        !authority.is_empty() && authority.bytes().all(is_plain)
    };
    if config.url.is_empty() || is_origin(&config.url) { Ok(()) } else { Err(StartError::PageUrl) }
}

/// Binds the address of the page, if it is to have one.
///
/// # Errors
/// [`StartError::Listen`].
pub(super) async fn bind(config: &Config, runtime: &Handle) -> Result<Option<BoundPage>, StartError> {
    let Some(listen) = config.page.listen else { return Ok(None) };
    let listener = run_on(runtime.clone(), super::bind("page.listen", listen)).await??;
    let address = listener.address();
    let sessions = Arc::new(PageSessions::new(address, url(config, address)));
    Ok(Some(BoundPage { listener, sessions }))
}

/// Where browsers reach the page.
fn url(config: &Config, address: SocketAddr) -> String {
    if !config.page.url.is_empty() {
        return config.page.url.clone();
    }
    if config.page.is_plain {
        return format!("http://{address}");
    }
    match config.admin.names.first() {
        Some(name) if name.contains(':') => format!("https://[{name}]:{}", address.port()),
        Some(name) => format!("https://{name}:{}", address.port()),
        None if address.ip().is_unspecified() => format!("https://localhost:{}", address.port()),
        None => format!("https://{address}"),
    }
}

impl ControlPlane {
    /// Serves the page, if there is one, on the runtime of the operators.
    pub(super) fn serve_page(
        &mut self,
        page: Option<BoundPage>,
        config: &Config,
        names: &[String],
        admin: Admin,
    ) -> Result<(), StartError> {
        let Some(BoundPage { listener, sessions }) = page else { return Ok(()) };
        let (runtime, address) = (self.runtimes.admin(), listener.address());
        let is_tls = !(config.page.is_plain && address.ip().is_loopback());
        let page = Arc::new(Page {
            admin,
            identities: self.authority.identities().clone(),
            hosts: hosts(address, names, sessions.url()),
            sessions,
            is_tls,
        });
        let stop = self.stop.clone();
        let serving = if is_tls {
            let browsers = ClientCertificate::OptionalInBrowser;
            let incoming = self.secure("page", listener, &config.page.tls, names, browsers, &runtime)?;
            runtime.spawn(page.serve_tls(incoming, stop))
        } else {
            runtime.spawn(page.serve_plain(listener.into_socket(), stop))
        };
        self.servers.push(serving);
        Ok(())
    }

    /// Where the page listens, when there is one.
    #[must_use]
    pub fn page_addr(&self) -> Option<SocketAddr> {
        self.page.as_deref().map(PageSessions::address)
    }

    /// Where browsers reach the page, when there is one.
    #[must_use]
    pub fn page_url(&self) -> Option<&str> {
        self.page.as_deref().map(PageSessions::url)
    }

    /// A link that opens the page once, for an operator that exists. `None`: there is no page.
    ///
    /// # Errors
    /// [`RegistryError::NotFound`]; of the store; [`AuthorityError::Random`].
    pub async fn page_link(&self, name: &OperatorName) -> Result<Option<PageLink>, IdentityError> {
        let Some(page) = &self.page else { return Ok(None) };
        let missing = || RegistryError::NotFound { kind: "operator", name: name.to_string(), similar: String::new() };
        let operator = self.registry.operator(name).await?.ok_or_else(missing)?;
        let link = page.link(name.clone(), operator.enrolment).map_err(AuthorityError::Random)?;
        Ok(Some(link))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_for_browsers_is_an_origin() {
        let page = |url: &str| PageConfig { url: url.into(), ..PageConfig::default() };
        for good in ["", "https://seks.example", "https://seks.example:8304", "https://[::1]:8304"] {
            assert!(check(&page(good)).is_ok(), "{good}");
        }
        for bad in ["http://seks.example", "seks.example", "https://", "https://a/b", "https://u@a", "https://a\"b"] {
            assert!(check(&page(bad)).is_err(), "{bad}");
        }
        let mut config = Config::default();
        let address = |text: &str| text.parse().unwrap();
        assert_eq!(url(&config, address("0.0.0.0:1")), "https://localhost:1");
        assert_eq!(url(&config, address("[::1]:1")), "https://[::1]:1");
        config.admin.names = vec!["seks.example".into()];
        assert_eq!(url(&config, address("0.0.0.0:1")), "https://seks.example:1");
    }
}
