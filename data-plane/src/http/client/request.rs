//! A request to an upstream, as it is sent.

use http::{
    Method, Uri,
    uri::{Authority, PathAndQuery, Scheme},
};

use super::Upload;
use crate::http::HeaderList;

/// What is sent; where to is the connection's affair.
pub struct Request {
    /// The method.
    pub method: Method,
    /// Path and query: visible ASCII.
    pub target: String,
    /// All header fields but those that frame the body.
    pub headers: HeaderList,
    /// The body.
    pub body: Upload,
}

impl Request {
    /// In HTTP/2's form. `None` when the target is none.
    pub(super) fn into_h2(self, scheme: Scheme, authority: Authority) -> Option<http::Request<Upload>> {
        let mut parts = http::uri::Parts::default();
        parts.scheme = Some(scheme);
        parts.authority = Some(authority);
        parts.path_and_query = Some(PathAndQuery::from_maybe_shared(bytes::Bytes::from(self.target)).ok()?);
        let mut request = http::Request::new(self.body);
        *request.method_mut() = self.method;
        *request.uri_mut() = Uri::from_parts(parts).ok()?;
        *request.version_mut() = http::Version::HTTP_2;
        *request.headers_mut() = self.headers.into_map();
        Some(request)
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderValue};

    use super::*;

    #[test]
    fn over_h2_the_authority_is_the_services() {
        let mut headers = HeaderMap::new();
        headers.insert("a", HeaderValue::from_static("1"));
        let request = Request {
            method: Method::PUT,
            target: "/v1/x?a=b".into(),
            headers: HeaderList::kept_of(headers, 0, |_, _| true),
            body: Upload::Empty,
        };
        let request = request.into_h2(Scheme::HTTPS, Authority::from_static("api.example.com:8443")).unwrap();
        assert_eq!(request.uri(), "https://api.example.com:8443/v1/x?a=b");
        assert_eq!((request.method(), &request.headers()["a"]), (&Method::PUT, &HeaderValue::from_static("1")));
    }
}
