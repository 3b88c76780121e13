use http::{HeaderMap, Method, Request, Uri};
use proptest::prelude::*;
use seks_proto::wire::{
    self,
    injection::{NamedValue, Site as WireSite, site::At},
    token_slot,
};
use seks_types::secret::Secret;

use base64::Engine as _;

use super::*;

const KEY: &str = r#"sk-REAL-9f3c/A+b=Zq"7\Kx"#;

fn service(sites: Vec<At>) -> Service {
    let sites = sites.into_iter().map(|at| WireSite { at: Some(at) }).collect();
    Service::try_from(&wire::Service {
        tenant: "default".into(),
        name: "api".into(),
        upstream: "https://api.example.com:8443".into(),
        fields: vec!["key".into()],
        injection: Some(wire::Injection { sites, ..Default::default() }),
        slots: vec![wire::TokenSlot { at: Some(token_slot::At::Scheme("Bearer".into())) }],
        ..Default::default()
    })
    .unwrap()
}

fn named(name: &str, value: &str) -> NamedValue {
    NamedValue { name: name.into(), value: value.into() }
}

fn fields() -> Fields {
    Fields::parse(&["key"], &Secret::new(KEY.into())).unwrap()
}

/// What an agent's head becomes.
fn injected(service: &Service, headers: HeaderMap, text: &str, path: usize) -> (HeaderMap, Uri) {
    let mut line = SecretTarget { text: text.to_owned(), path_len: path, credential: 0 };
    let (mut headers, _) = header_filter::request(headers, service, true);
    header_filter::add_ours(&mut headers, service);
    let fields = fields();
    let prepared = PreparedInjection::new(service, &fields).unwrap();
    apply_sites(service, &prepared, || Some(&fields), &mut headers, &mut line).unwrap();
    (headers.into_map(), target(line).unwrap().parse().unwrap())
}

#[test]
fn each_site_has_one_form() {
    let all = service(vec![
        At::Header(named("x-key", "{key}")),
        At::Header(named("x-prefixed", "Token t={key};")),
        At::Basic("user:{key}".into()),
        At::Query(named("key", "{key}")),
        At::Path("/bot{key}".into()),
    ]);
    let (headers, uri) = injected(&all, HeaderMap::new(), "/send?a=b", 5);
    assert_eq!(headers["x-key"], KEY);
    assert_eq!(headers["x-prefixed"], format!("Token t={KEY};"));
    let basic = base64::engine::general_purpose::STANDARD.encode(format!("user:{KEY}"));
    assert_eq!(headers["authorization"], format!("Basic {basic}"));
    assert!(["x-key", "x-prefixed", "authorization"].iter().all(|n| headers[*n].is_sensitive()));
    let path = "/botsk-REAL-9f3c%2FA+b=Zq%227%5CKx/send";
    assert_eq!(uri.to_string(), format!("{path}?a=b&key=sk-REAL-9f3c%2FA%2Bb%3DZq%227%5CKx"));
    assert_eq!(injected(&all, HeaderMap::new(), "/send", 5).1.query(), Some("key=sk-REAL-9f3c%2FA%2Bb%3DZq%227%5CKx"));
}

#[test]
fn a_target_stays_on_its_line() {
    for bad in ["/a b", "/a\r\nx: y", "/\u{e9}", "/a\0"] {
        assert!(target(SecretTarget { text: bad.into(), path_len: 1, credential: 0 }).is_none(), "{bad:?}");
    }
}

#[test]
fn nothing_that_holds_the_credential_prints_it() {
    let one = service(vec![At::Header(named("authorization", "Bearer {key}"))]);
    let (headers, _) = injected(&one, HeaderMap::new(), "/", 1);
    let request = Request::builder().method(Method::GET).body(()).map(|mut r| {
        *r.headers_mut() = headers;
        r
    });
    assert!(!format!("{:?}", request.unwrap()).contains("sk-REAL"));
}

proptest! {
    /// No byte of a request has a say in form, place or length of what is put in
    /// (GHSA-f28g-86hc-823q).
    #[test]
    fn what_is_put_in_is_the_same_whatever_the_agent_sends(
        fields in prop::collection::vec(
            ("authorization|x-key|x-other|cookie|connection|x-api-key|accept", "[ -~]{0,60}"), 0..8),
        query in "[a-z0-9=&{}%._-]{0,40}",
    ) {
        let both = service(vec![At::Header(named("authorization", "Bearer {key}")), At::Header(named("x-key", "{key}"))]);
        let mut headers = HeaderMap::new();
        for (name, value) in &fields {
            if let Ok(value) = HeaderValue::from_str(value) {
                headers.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), value);
            }
        }
        let text = format!("/v1/x?{query}");
        let (headers, uri) = injected(&both, headers, &text, 5);
        let all = |name: &str| headers.get_all(name).iter().map(|v| v.to_str().unwrap().to_owned()).collect::<Vec<_>>();
        prop_assert_eq!(all("authorization"), [format!("Bearer {KEY}")]);
        prop_assert_eq!(all("x-key"), [KEY]);
        prop_assert!(uri.authority().is_none() && uri.path() == "/v1/x");
        let others = headers.iter().filter(|(n, _)| !["authorization", "x-key"].contains(&n.as_str()));
        for (_, value) in others {
            prop_assert!(!value.to_str().unwrap().contains("sk-REAL"));
        }
    }

    /// Whatever the key is, the query parameter decodes to it and nothing else.
    #[test]
    fn a_key_in_the_query_decodes_to_itself(key in "[!-~]{1,80}") {
        let one = service(vec![At::Query(named("key", "{key}"))]);
        let fields = Fields::parse(&["key"], &Secret::new(key.clone().into_bytes())).unwrap();
        let mut line = SecretTarget { text: "/x?a=b".into(), path_len: 2, credential: 0 };
        write(&one.injection[0], &fields, &mut line).unwrap();
        let value = line.text.strip_prefix("/x?a=b&key=").unwrap();
        let mut decoded = Vec::new();
        let mut bytes = value.bytes();
        while let Some(b) = bytes.next() {
            if b == b'%' {
                let hex: String = [bytes.next().unwrap(), bytes.next().unwrap()].iter().map(|b| *b as char).collect();
                decoded.push(u8::from_str_radix(&hex, 16).unwrap());
            } else {
                prop_assert!(!b"&=#+ ?".contains(&b));
                decoded.push(b);
            }
        }
        prop_assert_eq!(decoded, key.into_bytes());
    }
}
