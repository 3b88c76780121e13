//! A request to an upstream, as it is sent.

use http::{
    HeaderMap, HeaderValue, Method, Uri, Version, header,
    uri::{Authority, PathAndQuery, Scheme},
};

use super::Upload;
use crate::http::HeaderList;

/// What is sent; where to is the connection's affair.
pub struct Request {
    /// All but the body. Kept until the answer begins: it may have to be sent again.
    pub head: RequestHead,
    /// The body.
    pub body: Upload,
}

/// A request without its body.
pub struct RequestHead {
    /// The method.
    pub method: Method,
    /// Path and query: visible ASCII.
    pub target: String,
    /// All header fields but those that frame the body.
    pub headers: HeaderList,
}

impl RequestHead {
    /// Whether a body is unusual for the method: one that an upstream leaves unread could be taken
    /// for the next request.
    pub(super) fn is_bodyless(&self) -> bool {
        matches!(self.method, Method::GET | Method::HEAD | Method::OPTIONS | Method::DELETE)
    }

    /// Whether sending it twice has the effect of sending it once (RFC 9110, 9.2.2, and the
    /// registry of methods).
    pub(super) fn is_idempotent(&self) -> bool {
        let registered = ["PROPFIND", "REPORT", "SEARCH", "QUERY"];
        matches!(self.method, Method::GET | Method::HEAD | Method::OPTIONS | Method::PUT | Method::DELETE)
            || registered.contains(&self.method.as_str())
    }

    /// In HTTP/2's form; `length`: of the body, where it is to be announced. `None` when the target
    /// is none.
    pub(super) fn to_h2(&self, scheme: Scheme, authority: Authority, length: Option<u64>) -> Option<http::Request<()>> {
        let mut parts = http::uri::Parts::default();
        parts.scheme = Some(scheme);
        parts.authority = Some(authority);
        parts.path_and_query = Some(PathAndQuery::try_from(self.target.as_str()).ok()?);
        let mut headers = HeaderMap::with_capacity(self.headers.iter().count() + 1);
        for (name, value) in self.headers.iter() {
            headers.append(name, value.clone());
        }
        if let Some(length) = length {
            headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
        }
        let mut request = http::Request::new(());
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = Uri::from_parts(parts).ok()?;
        *request.version_mut() = Version::HTTP_2;
        *request.headers_mut() = headers;
        Some(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn over_h2_the_authority_is_the_services() {
        let mut headers = HeaderMap::new();
        headers.insert("a", HeaderValue::from_static("1"));
        let headers = HeaderList::kept_of(headers, 0, |_, _| true);
        let head = RequestHead { method: Method::PUT, target: "/v1/x?a=b".into(), headers };
        let authority = Authority::from_static("api.example.com:8443");
        let request = head.to_h2(Scheme::HTTPS, authority, Some(3)).unwrap();
        assert_eq!(request.uri(), "https://api.example.com:8443/v1/x?a=b");
        assert_eq!((request.method(), &request.headers()["a"]), (&Method::PUT, &HeaderValue::from_static("1")));
        assert_eq!(request.headers()["content-length"], "3");
    }

    #[test]
    fn only_methods_whose_repetition_changes_nothing_are_idempotent() {
        let idempotent = |method: &str| {
            let method = Method::from_bytes(method.as_bytes()).unwrap();
            RequestHead { method, target: String::new(), headers: HeaderList::default() }.is_idempotent()
        };
        assert!(["GET", "HEAD", "OPTIONS", "PUT", "DELETE", "PROPFIND", "QUERY"].into_iter().all(idempotent));
        assert!(!["POST", "PATCH", "LOCK", "MKCOL", "PURGE", "get", "XYZ"].into_iter().any(idempotent));
    }
}
