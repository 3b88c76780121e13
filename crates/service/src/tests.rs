use http::Method;
use seks_proto::wire::{injection, token_slot};

use super::*;

pub(crate) fn header(name: &str, value: &str) -> injection::Site {
    let value = injection::NamedValue { name: name.into(), value: value.into() };
    injection::Site { at: Some(injection::site::At::Header(value)) }
}

pub(crate) fn slot(at: token_slot::At) -> wire::TokenSlot {
    wire::TokenSlot { at: Some(at) }
}

fn valid() -> wire::Service {
    wire::Service {
        tenant: "default".into(),
        name: "openai".into(),
        upstream: "https://api.openai.com".into(),
        base_path: "/v1".into(),
        fields: vec!["key".into()],
        injection: Some(wire::Injection { sites: vec![header("Authorization", "Bearer {key}")], ..Default::default() }),
        slots: vec![slot(token_slot::At::Scheme("Bearer".into()))],
        ..Default::default()
    }
}

#[track_caller]
fn refused(change: impl FnOnce(&mut wire::Service), with: &str) {
    let mut wire = valid();
    change(&mut wire);
    let error = Service::try_from(&wire).expect_err("must be refused").to_string();
    assert!(error.contains(with), "`{error}` does not say `{with}`");
}

#[test]
fn a_definition_is_checked_once_and_kept_parsed() {
    let service = Service::try_from(&valid()).unwrap();
    assert_eq!(service.upstream.to_string(), "https://api.openai.com");
    assert_eq!(service.slots, [TokenSlot::Scheme("Bearer".into())]);
    assert!(matches!(&service.injection[..], [InjectionSite::Header(name, _)] if name == "authorization"));
}

#[test]
fn what_an_operator_gets_wrong_is_named() {
    refused(|s| s.name = "Open AI".into(), "service name");
    refused(|s| s.tenant = "a/b".into(), "tenant name");
    refused(|s| s.upstream = "https://u:p@api.test".into(), "upstream");
    refused(|s| s.base_path = "/v1/".into(), "base_path");
    refused(|s| s.base_path = "/v1/../x".into(), "base_path");
    refused(|s| s.fields = vec![], "fields");
    refused(|s| s.fields = vec!["key".into(), "key".into()], "twice");
    refused(|s| s.fields.push("unused".into()), "no site uses `unused`");
    refused(|s| s.injection = None, "injection");
    refused(|s| s.slots.clear(), "slots");
    refused(|s| s.denied_paths = vec!["/v1/keys".into()], "denied_paths");
}

#[test]
fn two_sites_never_share_a_place() {
    let basic = injection::Site { at: Some(injection::site::At::Basic("x:{key}".into())) };
    refused(|s| s.injection.as_mut().unwrap().sites.push(header("authorization", "{key}")), "twice");
    refused(|s| s.injection.as_mut().unwrap().sites.push(basic), "twice");
}

#[test]
fn headers_that_frame_or_route_a_message_are_not_a_services_to_set() {
    for name in ["Host", "Connection", "Content-Length", "Transfer-Encoding", "transfer_encoding", "a b"] {
        refused(
            |s| s.injection = Some(wire::Injection { sites: vec![header(name, "{key}")], ..Default::default() }),
            name,
        );
        refused(|s| drop(s.headers.insert(name.into(), "1".into())), name);
    }
    refused(|s| drop(s.headers.insert("x-a".into(), "1\r\nx-b: 2".into())), "x-a");
}

#[test]
fn slots_are_read_into_what_is_looked_for() {
    let read = |at| TokenSlot::try_from(&slot(at));
    assert_eq!(read(token_slot::At::Header("Authorization".into())).unwrap(), TokenSlot::Scheme(String::new()));
    assert_eq!(read(token_slot::At::Path("/bot{token}".into())).unwrap(), TokenSlot::Path("bot".into(), String::new()));
    for bad in ["bot{token}", "/bot", "/a//b{token}", "/{token}/x", "/%41{token}"] {
        assert!(read(token_slot::At::Path(bad.into())).is_err(), "{bad}");
    }
    assert!(read(token_slot::At::Basic(0)).is_err());
    assert!(TokenSlot::try_from(&wire::TokenSlot { at: None }).is_err());
}

#[test]
fn denied_paths_match_whole_segments_in_any_case() {
    let denied = DeniedPath::parse("POST /v1/organization/*/keys/**").unwrap();
    for (method, path, want) in [
        ("POST", "/v1/organization/7/keys", true),
        ("POST", "/v1/organization/7/keys/", true),
        ("POST", "/v1/Organization/7/KEYS/new/er", true),
        ("GET", "/v1/organization/7/keys", false),
        ("POST", "/v1/organization/7/keyring", false),
        ("POST", "/v1/organization/7", false),
    ] {
        assert_eq!(denied.matches(&method.parse().unwrap(), path), want, "{method} {path}");
    }
    let exact = DeniedPath::parse("* /admin/api_keys").unwrap();
    assert!(exact.matches(&Method::DELETE, "/admin/api_keys"));
    assert!(!exact.matches(&Method::DELETE, "/admin/api_keys/7"));
    for bad in ["POST", "POST v1", "POST /a//b", "POST /**/a", "P ST /a"] {
        assert!(DeniedPath::parse(bad).is_err(), "{bad}");
    }
}

#[test]
fn the_list_denies_what_one_of_its_paths_denies() {
    let parsed = |list: &Vec<String>| list.iter().map(|text| DeniedPath::parse(text).unwrap()).collect::<Vec<_>>();
    let entries = crate::catalogue::entries().iter().map(|entry| parsed(&entry.service.denied_paths));
    let own =
        ["* /a/*/*b/**", "POST /**", "* /*:key/x", "GET /1/2/3/4/5/6/7/8/9"].map(|p| DeniedPath::parse(p).unwrap());
    let (methods, mut compared) = ([Method::GET, Method::POST, Method::PUT], 0);
    for list in entries.chain([own.to_vec()]) {
        for path in list.iter().map(|denied| format!("/{}", denied.segments.join("/"))) {
            let upper = path.to_ascii_uppercase();
            let filled = [path.replace("**", ""), path.replace("/**", "/x/y"), path.replace('*', "Q"), upper];
            let forms =
                filled.iter().flat_map(|p| [p.clone(), format!("{p}/"), format!("{p}s"), p.replacen('/', "//", 2)]);
            for (path, method) in forms.flat_map(|form| methods.iter().map(move |method| (form.clone(), method))) {
                let one = list.iter().any(|denied| denied.matches(method, &path));
                assert_eq!(is_denied(&list, method, &path), one, "{method} {path}");
                compared += usize::from(one);
            }
        }
    }
    assert!(compared > 100, "{compared} were denied");
    assert!(!is_denied(&[], &Method::GET, "/"));
}

#[test]
fn a_denied_path_is_found_in_every_spelling() {
    let mint = DeniedPath::parse("POST /v1/projects/-/serviceAccounts/*:generateAccessToken").unwrap();
    for (path, want) in [
        ("/v1/projects/-/serviceAccounts/a@b.iam:generateAccessToken", true),
        ("/v1/projects/-/serviceaccounts/a%40b.iam%3AgenerateAccessToken", true),
        ("/v1/projects/-/serviceAccounts/a@b.iam:signBlob", false),
        ("/v1/projects/-/serviceAccounts/generateAccessToken", false),
    ] {
        assert_eq!(mint.matches(&Method::POST, path), want, "{path}");
    }
    let keys = DeniedPath::parse("POST /api/v4/projects/*/access_tokens/**").unwrap();
    assert!(keys.matches(&Method::POST, "/api/v4/projects/group%2Fproject/access_tokens"));
    assert!(!keys.matches(&Method::POST, "/api/v4/projects/group%2Fproject/issues"));
    for path in [
        "/api/v4/projects/group%2Fproject/access%5Ftokens",
        "/api/v4/projects/group%2Fsub%2Fproject/Access%5ftokens/7",
        "/api/v4/projects/7/access%255Ftokens",
        "/api/v4/projects/7//access_tokens",
        "/api/v4/projects/7;x=y/access_tokens;z",
        "/api/v4/projects/group%2Fproject//%61ccess_tokens;z",
        "/api/v4/projects/7%5Caccess_tokens",
        "/api/v4/projects/a%2Fb%5caccess_tokens",
        "/api/v4/projects/7/access_tokens./",
        "/api/v4/projects/7/access_token%C5%BF",
    ] {
        assert!(keys.matches(&Method::POST, path), "{path}");
    }
    assert!(DeniedPath::parse("POST /a*b*c").is_err());
}
