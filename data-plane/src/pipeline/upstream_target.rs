//! Path and query of an upstream request.

use seks_service::{Service, request::Target};

use super::{lookup, token};

/// Path and query of the upstream request in one piece of text.
#[derive(Clone)]
pub(crate) struct UpstreamTarget {
    pub(crate) text: String,
    /// Where the query begins.
    pub(crate) path: usize,
    /// Where the credential goes, if it goes into the path: behind the segments that came before
    /// the token's.
    pub(crate) credential: usize,
    /// The object that the upstream copies from: policies must permit to read it.
    pub(super) copied: Option<Box<UpstreamTarget>>,
}

impl UpstreamTarget {
    pub(super) fn new(target: &Target<'_>, service: &Service, has_other_tokens: bool) -> Self {
        // As long as it can become, and no longer without a query: `Bytes` then takes it as it is.
        let query = target.query().map_or(0, |query| query.len() + 1);
        let mut text = String::with_capacity(target.path().len() + query);
        text.push_str(target.path());
        let path = text.len();
        let mut separator = '?';
        for raw in target.query().into_iter().flat_map(|query| query.split('&')) {
            // Servers differ in whether `;` separates parameters: what hides a reserved name behind
            // one goes too.
            let reserved =
                seks_service::request::query_names(raw).any(|n| lookup::is_reserved_query(service, n.trim()));
            let has_token = |raw: &[u8]| token::has_token(raw) || token::hides_token(raw);
            if reserved || (has_other_tokens && has_token(raw.as_bytes())) {
                continue;
            }
            text.push(separator);
            text.push_str(raw);
            separator = '&';
        }
        Self { text, path, credential: 0, copied: None }
    }

    pub(crate) fn path(&self) -> &str {
        self.text.get(..self.path).unwrap_or_default()
    }

    pub(super) fn query(&self) -> &str {
        self.text.get(self.path + 1..).unwrap_or_default()
    }
}

/// Path and query that are sent to the upstream for `rest`, what an agent writes behind the
/// service's name. `None`: a request for it would be refused.
pub(super) fn upstream_target(service: &Service, rest: &str) -> Option<String> {
    Target::parse(service, rest).ok().map(|target| UpstreamTarget::new(&target, service, false).text)
}
