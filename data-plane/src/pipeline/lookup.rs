//! Stage 2, `lookup`: finds the one token of a request and its record.
//!
//! A service belongs to a tenant, and the token determines the tenant. So tokens are searched in
//! every location first. The service then says which locations count. A token in any other location
//! is never used and never forwarded.

use std::sync::Arc;

use base64::Engine as _;
use http::{HeaderMap, HeaderName, StatusCode, header};
use seks_service::{BasicPart, Service, TokenSlot, request};
use seks_trust::looks_like_jwt;
use seks_types::token::{self, Digest, Malformed, aws};

use super::{
    admit::Admitted,
    audit::Record,
    caller::Caller,
    identity,
    refusal::{Reader, Refusal},
    route::{self, Route},
    signed_url::{self, PresentedUrl},
    sigv4,
    token::{CREDENTIAL_HEADERS, check, has_token, hides_token, holds_escaped},
    vendor_key_hint,
};
use crate::{
    code::Code,
    table::{Found, ServiceEntry, Table, TokenEntry},
};

/// A request of a token that is honoured, for a service that exists.
pub(crate) struct Identified {
    pub(crate) admitted: Admitted,
    pub(crate) digest: Digest,
    pub(crate) token: Arc<TokenEntry>,
    /// Of the tenant's records, from before the first of them was read.
    pub(crate) version: u64,
    /// `None`: the list of services.
    pub(crate) service: Option<Arc<ServiceEntry>>,
    /// The token is in a segment of the path, which is not the upstream's to see. The length of the
    /// segments before it, with their slashes.
    pub(crate) in_path: Option<usize>,
    /// Tokens in other places, which must be removed.
    pub(crate) has_other_tokens: bool,
    /// The request has no token, and its URL identifies one. Only its syntax is checked yet.
    pub(crate) signed_url: Option<PresentedUrl>,
    /// Only this file makes one.
    _proof: (),
}

impl Identified {
    /// The kind of client that reads a refusal. Clients of MCP servers show only JSON-RPC errors.
    pub(crate) fn reader(&self) -> Reader {
        let is_mcp = self.service.as_ref().is_some_and(|service| service.mcp.is_some());
        if is_mcp && Reader::accepts_json_rpc(&self.admitted.parts.headers) { Reader::JsonRpc } else { Reader::Any }
    }
}

/// A place that a token was found in.
enum TokenLocation<'a> {
    /// `Authorization: SCHEME token`; the scheme is empty for the bare value.
    Scheme(&'a [u8]),
    Basic(BasicPart),
    Header(&'a HeaderName),
    Query(std::borrow::Cow<'a, str>),
    /// The path up to the end of the token's segment, without its first slash.
    Path(&'a [u8]),
    /// One of the values of `Sec-WebSocket-Protocol`.
    Subprotocol(&'a [u8]),
    /// A signature; its access key id names the token.
    Signature,
}

/// More tokens than this in one request are not told apart: it is ambiguous anyway.
const MOST_TOKENS: usize = 8;

/// What an agent has to do that configured its key in two ways.
const TWICE: &str = "one token was presented in two places: configure one of them only";

/// What an agent has to do that presented its token where the service doesn't take it.
const ELSEWHERE: &str =
    "the service does not take a token in this place: `seks env` and `seks service show` say where it does";

/// The tokens of a request.
#[derive(Default)]
struct FoundTokens<'a> {
    tokens: Vec<(TokenLocation<'a>, Digest)>,
    damaged: bool,
    /// The value of a token that carries what it stands for. One is enough: several tokens are
    /// ambiguous.
    carrying: Option<(Digest, Vec<u8>)>,
    /// Where no token is: what stands in `Authorization`, if it could be a token of an issuer. Its
    /// scheme is first.
    issuers: Option<(&'a [u8], &'a [u8])>,
}

/// Identifies a request, or says why it cannot be identified.
pub(crate) fn call(
    admitted: Admitted,
    caller: &Caller,
    table: &Table,
    record: &mut Record,
) -> Result<Box<Identified>, Refusal> {
    let found_tokens = FoundTokens::read(&admitted);
    let (selected, has_other_tokens) = select(&found_tokens, &admitted, caller, table, record)
        .map_err(|refusal| with_challenges(refusal, &admitted, table))?;
    let SelectedToken { token, digest, version, service, in_path, signed_url } = selected;
    let service = match (service, &admitted.route) {
        (None, Route::Service { .. } | Route::Host { .. }) => return Err(Code::ServiceUnknown.into()),
        (None, Route::Forward(_)) => {
            return Err(Refusal::from(Code::ServiceNotGranted).with_detail("the token grants no service at that host"));
        }
        (service, _) => service,
    };
    // Boxed: it moves through the stages that follow, and their futures hold it several times.
    Ok(Box::new(Identified {
        admitted,
        digest,
        token,
        version,
        service,
        in_path,
        has_other_tokens,
        signed_url,
        _proof: (),
    }))
}

/// The one token that may be used, and whether there are others.
fn select(
    found_tokens: &FoundTokens<'_>,
    admitted: &Admitted,
    caller: &Caller,
    table: &Table,
    record: &mut Record,
) -> Result<(SelectedToken, bool), Refusal> {
    record.table(table.revision());
    if !table.lease().valid() {
        return Err(Code::NodeStale.into());
    }
    let selected = found_tokens.choose(admitted, caller, table, record)?;
    // A token that stands apart from the request, or in a URL, is none of those that were found.
    let from_request = usize::from(selected.is_some());
    let selected = with_issuers_token(selected, found_tokens, admitted, caller, table)?;
    let selected = with_proxy_token(selected, admitted, table, record)?;
    let Some(selected) = with_signed_url(selected, admitted, table, record)? else {
        let credential = CREDENTIAL_HEADERS.iter().any(|h| admitted.parts.headers.contains_key(*h));
        let code = if found_tokens.damaged || (credential && found_tokens.tokens.is_empty()) {
            Code::TokenMalformed
        } else {
            Code::TokenMissing
        };
        let foreign =
            if found_tokens.damaged { None } else { vendor_key_hint::hint(&admitted.parts.headers, admitted.rest()) };
        let elsewhere = if found_tokens.tokens.is_empty() { "" } else { ELSEWHERE };
        return Err(Refusal::from(code).with_detail(foreign.unwrap_or(elsewhere)));
    };
    record.identified(selected.token.tenant(), selected.token.agent_name(), selected.token.id());
    if let Some(service) = &selected.service {
        record.service(service);
    }
    check(&selected.token, caller)?;
    Ok((selected, found_tokens.tokens.len() > from_request || found_tokens.damaged))
}

/// A 401 lists the schemes of all services of this name, across tenants.
fn with_challenges(refusal: Refusal, admitted: &Admitted, table: &Table) -> Refusal {
    match &admitted.route {
        Route::Service { .. } | Route::Host { .. } if refusal.status == StatusCode::UNAUTHORIZED => {
            refusal.offering(table.schemes(admitted.service()))
        }
        _ => refusal,
    }
}

/// A token that was presented to the proxy, apart from the request, counts if the request has none.
/// Two different ones are ambiguous.
fn with_proxy_token(
    selected: Option<SelectedToken>,
    admitted: &Admitted,
    table: &Table,
    record: &mut Record,
) -> Result<Option<SelectedToken>, Refusal> {
    match (selected, admitted.proxy_token) {
        (Some(selected), Some(proxy_token)) if selected.digest != proxy_token => Err(Code::TokenAmbiguous.into()),
        (None, Some(proxy_token)) => match table.find(&proxy_token) {
            Found::Token(token) => Ok(Some(SelectedToken::new(token, proxy_token, admitted, table))),
            Found::Revoked(token) => {
                record.identified(&token.tenant, &token.agent, &token.id);
                Err(Code::TokenRevoked.into())
            }
            Found::Unknown => Err(Code::TokenUnknown.into()),
        },
        (selected, _) => Ok(selected),
    }
}

/// A token of an issuer that the tenant trusts stands for one of ours, where there is none.
fn with_issuers_token(
    selected: Option<SelectedToken>,
    found_tokens: &FoundTokens<'_>,
    admitted: &Admitted,
    caller: &Caller,
    table: &Table,
) -> Result<Option<SelectedToken>, Refusal> {
    let (None, Some((scheme, text))) = (&selected, found_tokens.issuers) else { return Ok(selected) };
    let digest = Digest::of(text);
    let Some(token) = identity::issuers_token(table, text, digest, caller.now) else { return Ok(None) };
    let (found, location) = (SelectedToken::new(token?, digest, admitted, table), TokenLocation::Scheme(scheme));
    if !location.counts(&found, &admitted.route) {
        return Ok(None);
    }
    if location.stands_twice(&admitted.parts.headers) {
        return Err(Code::TokenAmbiguous.into());
    }
    if has_copy(admitted, text) {
        return Err(Refusal::from(Code::TokenAmbiguous).with_detail(TWICE));
    }
    Ok(Some(found))
}

/// Whether a token of an issuer is also elsewhere in the request. The upstream could exchange it.
fn has_copy(admitted: &Admitted, text: &[u8]) -> bool {
    let values = admitted.parts.headers.iter().filter(|(name, _)| *name != header::AUTHORIZATION);
    let mut values = values.map(|(_, value)| value.as_bytes());
    values.any(|value| memchr::memmem::find(value, text).is_some()) || holds_escaped(admitted.rest().as_bytes(), text)
}

/// A URL that the node has signed identifies a token if the request has none. A token in the
/// request must be the same one.
fn with_signed_url(
    selected: Option<SelectedToken>,
    admitted: &Admitted,
    table: &Table,
    record: &mut Record,
) -> Result<Option<SelectedToken>, Refusal> {
    let query = admitted.rest().split_once('?').map_or("", |(_, query)| query);
    let Some(presented) = PresentedUrl::read(query) else { return Ok(selected) };
    let signs = |service: &Option<Arc<ServiceEntry>>| service.as_ref().is_some_and(|s| !s.keyless_urls.is_empty());
    match (selected, presented) {
        (Some(selected), Ok(url)) if signs(&selected.service) && selected.digest != url.digest => {
            Err(Code::TokenAmbiguous.into())
        }
        (Some(selected), _) => Ok(Some(selected)),
        (None, Err(_)) => Err(Code::TokenMalformed.into()),
        (None, Ok(url)) => match table.find(&url.digest) {
            Found::Token(token) => {
                let selected = SelectedToken::new(token, url.digest, admitted, table);
                Ok(signs(&selected.service).then(|| SelectedToken { signed_url: Some(url), ..selected }))
            }
            Found::Revoked(token) => {
                record.identified(&token.tenant, &token.agent, &token.id);
                Err(Code::TokenRevoked.into())
            }
            Found::Unknown => Err(Code::TokenUnknown.into()),
        },
    }
}

/// The token that a request is made with, and the service that it names.
struct SelectedToken {
    token: Arc<TokenEntry>,
    digest: Digest,
    version: u64,
    service: Option<Arc<ServiceEntry>>,
    in_path: Option<usize>,
    signed_url: Option<PresentedUrl>,
}

impl SelectedToken {
    fn new(token: Arc<TokenEntry>, digest: Digest, admitted: &Admitted, table: &Table) -> Self {
        let version = token.tenant_state().version(); // before the service is read
        let service = service_of(admitted, &token, table);
        Self { token, digest, version, service, in_path: None, signed_url: None }
    }
}

impl<'a> FoundTokens<'a> {
    fn read(admitted: &'a Admitted) -> Self {
        let mut this = Self::default();
        this.read_headers(&admitted.parts.headers);
        let (path, query) = admitted.rest().split_once('?').unwrap_or((admitted.rest(), ""));
        if has_token(path.as_bytes()) {
            this.read_path(path);
        }
        if has_token(query.as_bytes()) {
            this.read_query(query);
        }
        // No service takes it there, and the upstream would read it.
        this.damaged |= hides_token(admitted.rest().as_bytes());
        if let Some(id) = sigv4::query_access_key_id(query) {
            this.add_signature(id.as_bytes());
        }
        if this.tokens.is_empty() && !this.damaged {
            this.read_issuers(&admitted.parts.headers);
        }
        this
    }

    /// A token of an issuer, which has no prefix of ours.
    fn read_issuers(&mut self, headers: &'a HeaderMap) {
        let Some(value) = headers.get(header::AUTHORIZATION).map(|value| value.as_bytes()) else { return };
        let Some(space) = memchr::memchr(b' ', value) else { return };
        if let (Some(scheme), Some(text)) = (value.get(..space), value.get(space + 1..))
            && looks_like_jwt(text)
        {
            self.issuers = Some((scheme, text));
        }
    }

    fn read_headers(&mut self, headers: &'a HeaderMap) {
        for (name, value) in headers {
            let value = value.as_bytes();
            if name == header::AUTHORIZATION {
                self.read_authorization(value);
            } else if name == header::PROXY_AUTHORIZATION {
                continue; // the connection's own: a proxy's affair, or nobody's
            } else if has_token(value) {
                match *name {
                    header::SEC_WEBSOCKET_PROTOCOL => self.read_subprotocols(value),
                    _ => self.add(TokenLocation::Header(name), value),
                }
            }
        }
    }

    fn read_subprotocols(&mut self, value: &'a [u8]) {
        for protocol in value.split(|b| *b == b',').map(<[u8]>::trim_ascii).filter(|p| has_token(p)) {
            self.add(TokenLocation::Subprotocol(protocol), protocol);
        }
    }

    fn read_authorization(&mut self, value: &'a [u8]) {
        let (scheme, rest) = match memchr::memchr(b' ', value).and_then(|at| value.split_at_checked(at)) {
            // Exactly one space. RFC 9110, 11.4, permits more, but no client sends them and parsers
            // differ.
            Some((scheme, rest)) => (scheme, rest.get(1..).unwrap_or_default()),
            None => (&b""[..], value),
        };
        if scheme.eq_ignore_ascii_case(b"basic") {
            self.read_basic(rest);
        } else if scheme == sigv4::HEADER_SCHEME.as_bytes() {
            self.add_signature(sigv4::header_access_key_id(rest).unwrap_or_default());
        } else if has_token(value) {
            self.add(TokenLocation::Scheme(scheme), rest);
        }
    }

    fn read_basic(&mut self, encoded: &[u8]) {
        let Ok(pair) = base64::engine::general_purpose::STANDARD.decode(encoded) else { return };
        let Some((user, password)) = memchr::memchr(b':', &pair).and_then(|at| pair.get(..at).zip(pair.get(at + 1..)))
        else {
            return;
        };
        if has_token(user) {
            self.add(TokenLocation::Basic(BasicPart::User), user);
        }
        if has_token(password) {
            self.add(TokenLocation::Basic(BasicPart::Password), password);
        }
    }

    /// A path slot is a segment with text around the token, behind others; the text is compared
    /// with the slot's later.
    fn read_path(&mut self, path: &'a str) {
        let path = path.trim_start_matches('/').as_bytes();
        let Some(at) = memchr::memmem::find(path, token::PREFIX.as_bytes()) else { return };
        let end = path.get(at..).and_then(|rest| memchr::memchr(b'/', rest)).map_or(path.len(), |length| at + length);
        match path.get(..end).zip(path.get(at..end).and_then(|segment| segment.get(..token::LEN))) {
            Some((location, token)) => self.add(TokenLocation::Path(location), token),
            None => self.damaged = true,
        }
    }

    fn read_query(&mut self, query: &'a str) {
        for raw in query.split('&') {
            let (_, value) = raw.split_once('=').unwrap_or((raw, ""));
            if has_token(raw.as_bytes())
                && let Some(name) = request::query_names(raw).next()
            {
                self.add(TokenLocation::Query(name), value.as_bytes());
            }
        }
    }

    fn add(&mut self, place: TokenLocation<'a>, value: &[u8]) {
        match token::parse(value) {
            Ok(digest) if self.tokens.len() < MOST_TOKENS => self.tokens.push((place, digest)),
            Ok(_) => self.damaged = true,
            Err(Malformed::Damaged) => self.add_carrying(place, value),
            Err(Malformed::NotOurs) => {}
        }
    }

    /// A token that carries what it stands for is longer than the others.
    fn add_carrying(&mut self, place: TokenLocation<'a>, value: &[u8]) {
        match token::carrying::digest(value) {
            Ok(digest) if self.tokens.len() < MOST_TOKENS => {
                self.tokens.push((place, digest));
                self.carrying.get_or_insert_with(|| (digest, value.to_vec()));
            }
            _ => self.damaged = true,
        }
    }

    /// What `digest` is. A token that carries what it stands for is verified when it is first
    /// presented.
    fn find(&self, digest: &Digest, caller: &Caller, table: &Table) -> Result<Found, Refusal> {
        let found = table.find(digest);
        let (Found::Unknown, Some((_, text))) = (&found, self.carrying.as_ref().filter(|(of, _)| of == digest)) else {
            return Ok(found);
        };
        identity::exchanged_token(table, text, *digest, caller.now).map_or(Ok(found), |token| token.map(Found::Token))
    }

    fn add_signature(&mut self, access_key_id: &[u8]) {
        match aws::digest_of(access_key_id) {
            Some(digest) if self.tokens.len() < MOST_TOKENS => self.tokens.push((TokenLocation::Signature, digest)),
            Some(_) => self.damaged = true,
            None => {}
        }
    }

    /// The one token that is in a slot of its service.
    fn choose(
        &self,
        admitted: &Admitted,
        caller: &Caller,
        table: &Table,
        record: &mut Record,
    ) -> Result<Option<SelectedToken>, Refusal> {
        let mut selected: Option<SelectedToken> = None;
        let (mut refused, mut revoked) = (None, None);
        for (place, digest) in &self.tokens {
            let token = match self.find(digest, caller, table)? {
                Found::Token(token) => token,
                Found::Revoked(token) => {
                    refused = Some(Code::TokenRevoked);
                    revoked = Some(token);
                    continue;
                }
                Found::Unknown => {
                    refused = refused.or(Some(Code::TokenUnknown));
                    continue;
                }
            };
            let found = SelectedToken::new(token, *digest, admitted, table);
            let counts = place.counts(&found, &admitted.route);
            if counts && place.stands_twice(&admitted.parts.headers) {
                let others = self.tokens.iter().filter(|(_, other)| other == digest).count();
                let detail = if others > 1 { TWICE } else { "" };
                return Err(Refusal::from(Code::TokenAmbiguous).with_detail(detail));
            }
            let in_path = match place {
                TokenLocation::Path(text) => Some(memchr::memrchr(b'/', text).map_or(0, |slash| slash + 1)),
                _ => None,
            };
            if counts && let Some(other) = selected.replace(SelectedToken { in_path, ..found }) {
                let detail = if other.digest == *digest { TWICE } else { "" };
                return Err(Refusal::from(Code::TokenAmbiguous).with_detail(detail));
            }
        }
        match (&selected, refused) {
            (None, Some(_)) if self.tokens.len() > 1 => Err(Code::TokenAmbiguous.into()),
            (None, Some(code)) => {
                if let Some(token) = revoked {
                    record.identified(&token.tenant, &token.agent, &token.id);
                }
                Err(code.into())
            }
            _ => Ok(selected),
        }
    }
}

fn service_of(admitted: &Admitted, token: &TokenEntry, table: &Table) -> Option<Arc<ServiceEntry>> {
    if let Route::Forward(origin) = &admitted.route {
        return route::granted(token, origin);
    }
    let name = admitted.service();
    match token.grant(name) {
        Some(grant) => grant.service(),
        None => table.service(token.tenant(), &name.try_into().ok()?),
    }
}

impl TokenLocation<'_> {
    /// Whether the service takes a token there.
    fn counts(&self, found: &SelectedToken, route: &Route) -> bool {
        match (&found.service, route) {
            (Some(service), _) => service.slots.iter().any(|slot| self.is(slot)),
            // A service that does not exist has no known slots, and a signature cannot be verified
            // for it.
            (None, Route::Service { .. } | Route::Host { .. } | Route::Forward(_)) => !matches!(self, Self::Signature),
            (None, Route::Discovery) => matches!(self, Self::Scheme(_) | Self::Basic(_) | Self::Header(_)),
            (None, Route::Exchange) => false,
        }
    }

    /// Whether its header has another value as well, a token or not: which of the two counts,
    /// everybody guesses differently.
    fn stands_twice(&self, headers: &HeaderMap) -> bool {
        let name = match self {
            Self::Scheme(_) | Self::Basic(_) | Self::Signature => &header::AUTHORIZATION,
            Self::Header(name) => *name,
            Self::Query(_) | Self::Path(_) | Self::Subprotocol(_) => return false,
        };
        headers.get_all(name).iter().nth(1).is_some()
    }

    fn is(&self, slot: &TokenSlot) -> bool {
        match (self, slot) {
            (Self::Scheme(have), TokenSlot::Scheme(want)) => have.eq_ignore_ascii_case(want.as_bytes()),
            (Self::Header(have), TokenSlot::Header(want)) => *have == want,
            (Self::Query(have), TokenSlot::Query(want)) => have == want,
            (Self::Basic(have), TokenSlot::Basic(want)) => have == want || *want == BasicPart::Either,
            (Self::Path(have), TokenSlot::Path(before, after)) => have
                .strip_prefix(before.as_bytes())
                .and_then(|rest| rest.strip_suffix(after.as_bytes()))
                .is_some_and(|token| token::parse(token).is_ok()),
            (Self::Subprotocol(have), TokenSlot::Subprotocol(before)) => {
                have.strip_prefix(before.as_bytes()).is_some_and(|token| token::parse(token).is_ok())
            }
            (Self::Signature, TokenSlot::AwsSigV4) => true,
            _ => false,
        }
    }
}

/// Whether a query parameter of this name is a slot of the service, or a place that the credential
/// goes to: whatever an agent wrote there is not passed on.
pub(crate) fn is_reserved_query(service: &Service, name: &str) -> bool {
    let slot = service.slots.iter().any(|s| match s {
        TokenSlot::Query(q) => q.eq_ignore_ascii_case(name),
        TokenSlot::AwsSigV4 => sigv4::is_parameter(name),
        _ => false,
    });
    slot || (!service.keyless_urls.is_empty() && name.eq_ignore_ascii_case(signed_url::PARAMETER))
        || service
            .injection
            .iter()
            .any(|s| matches!(s, seks_service::InjectionSite::Query(q, _) if q.eq_ignore_ascii_case(name)))
}
