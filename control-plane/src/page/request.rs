//! What a browser asks for: the checks before anything is looked up, and the route.

use http::{HeaderMap, Method, Request, StatusCode, header};

use super::{
    query::{Query, decoded},
    response::COOKIE,
    views::View,
};

/// Longest path and query, in bytes.
const TARGET_BYTES: usize = 4096;

/// A request that passed the checks.
pub(super) struct PageRequest {
    pub(super) method: Method,
    pub(super) route: Route,
    pub(super) query: Query,
    /// Every value of the session cookie. Another server of the host can add some.
    pub(super) cookies: Vec<String>,
    /// The browser loads this ahead of a click.
    pub(super) is_prefetch: bool,
}

/// Where a path leads.
pub(super) enum Route {
    /// The style sheet.
    Style,
    /// The icon.
    Icon,
    /// A one-time link, with its code.
    Link(String),
    /// A view in a session.
    Session {
        /// Of the session.
        id: String,
        /// What is shown.
        view: View,
    },
    /// A view for an operator with a certificate.
    View(View),
}

/// Why a request is refused at once.
pub(super) struct Refused {
    pub(super) status: StatusCode,
    pub(super) why: &'static str,
}

impl PageRequest {
    /// Checks method, `Host` and origin, and finds the route.
    ///
    /// # Errors
    /// [`Refused`].
    pub(super) fn read<B>(request: &Request<B>, hosts: &[String]) -> Result<Self, Refused> {
        let headers = request.headers();
        let refused = |status, why| Err(Refused { status, why });
        if !has_known_host(headers, hosts) {
            return refused(
                StatusCode::MISDIRECTED_REQUEST,
                "not a name of this page: see page.url in control-plane.toml",
            );
        }
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return refused(StatusCode::METHOD_NOT_ALLOWED, "the page is read-only");
        }
        // Another site may link here, and may not load from here (W3C Fetch Metadata).
        let says = |name: &str, value: &str| headers.get(name).is_some_and(|have| have == value);
        let is_foreign = says("sec-fetch-site", "cross-site") || says("sec-fetch-site", "same-site");
        if is_foreign && !(says("sec-fetch-mode", "navigate") && says("sec-fetch-dest", "document")) {
            return refused(StatusCode::FORBIDDEN, "another site asks for this");
        }
        let uri = request.uri();
        if uri.path_and_query().map_or(0, |target| target.as_str().len()) > TARGET_BYTES {
            return refused(StatusCode::URI_TOO_LONG, "the address is too long");
        }
        let Some(route) = route(uri.path()) else {
            return refused(StatusCode::NOT_FOUND, "no such page");
        };
        let is_prefetch = ["sec-purpose", "purpose", "x-moz"].iter().any(|name| headers.contains_key(*name));
        let query = Query::read(uri.query().unwrap_or_default());
        Ok(Self { method: request.method().clone(), route, query, cookies: cookies(headers), is_prefetch })
    }
}

fn has_known_host(headers: &HeaderMap, hosts: &[String]) -> bool {
    let mut found = headers.get_all(header::HOST).iter();
    let (Some(host), None) = (found.next(), found.next()) else { return false };
    host.to_str().is_ok_and(|host| hosts.iter().any(|known| host.eq_ignore_ascii_case(known)))
}

fn cookies(headers: &HeaderMap) -> Vec<String> {
    let all = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    let pairs = all.flat_map(|value| value.split(';')).filter_map(|pair| pair.trim().split_once('='));
    pairs.filter(|(name, _)| *name == COOKIE).map(|(_, value)| value.to_owned()).take(8).collect()
}

fn route(path: &str) -> Option<Route> {
    let segments: Option<Vec<String>> = path.strip_prefix('/')?.split('/').map(decoded).collect();
    let segments = segments?;
    let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
    Some(match segments.as_slice() {
        ["page.css"] => Route::Style,
        ["icon.svg"] => Route::Icon,
        ["link", code] => Route::Link((*code).to_owned()),
        ["p", id, rest @ ..] => Route::Session { id: (*id).to_owned(), view: View::of(rest)? },
        rest => Route::View(View::of(rest)?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(target: &str, headers: &[(&str, &str)]) -> Result<PageRequest, StatusCode> {
        let mut request = Request::get(target);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        PageRequest::read(&request.body(()).unwrap(), &["127.0.0.1:1".into()]).map_err(|refused| refused.status)
    }

    #[test]
    fn only_the_pages_own_names_are_answered() {
        assert!(read("/", &[("host", "127.0.0.1:1")]).is_ok());
        for hosts in [&[][..], &[("host", "evil.example:1")], &[("host", "127.0.0.1:1"), ("host", "127.0.0.1:1")]] {
            assert_eq!(read("/", hosts).err(), Some(StatusCode::MISDIRECTED_REQUEST));
        }
    }

    #[test]
    fn other_sites_may_link_and_may_not_load() {
        let host = ("host", "127.0.0.1:1");
        let site = ("sec-fetch-site", "cross-site");
        let navigates = [host, site, ("sec-fetch-mode", "navigate"), ("sec-fetch-dest", "document")];
        assert!(read("/", &navigates).is_ok());
        let frames = [host, site, ("sec-fetch-mode", "navigate"), ("sec-fetch-dest", "iframe")];
        assert_eq!(read("/", &frames).err(), Some(StatusCode::FORBIDDEN));
        assert_eq!(read("/page.css", &[host, site]).err(), Some(StatusCode::FORBIDDEN));
    }

    #[test]
    fn a_path_is_decoded_once_and_leads_to_one_view() {
        let host = [("host", "127.0.0.1:1"), ("cookie", "seks_page=a; other=b; seks_page=c")];
        let found = read("/p/ID/t/acme/agents/a%2Fb?page=x%26y&q=+1", &host).unwrap();
        assert!(matches!(&found.route, Route::Session { id, .. } if id == "ID"));
        assert_eq!((found.query.get("page"), found.query.get("q"), found.query.get("z")), ("x&y", "1", ""));
        assert_eq!(found.cookies, ["a", "c"]);
        for target in ["/p/ID/t/acme/agents/%ff", "/nothing", "/t//agents", "//"] {
            assert_eq!(read(target, &host).err(), Some(StatusCode::NOT_FOUND), "{target}");
        }
    }
}
