use proptest::prelude::*;

use super::*;
use crate::{Service, spec::ServiceSpec};

pub(super) fn service(base_path: &str) -> Service {
    let spec: ServiceSpec =
        toml::from_str("name = 'openai'\nupstream = 'https://api.openai.com'\ninject = 'bearer'").unwrap();
    ServiceSpec { base_path: base_path.into(), ..spec }.to_service("default").unwrap()
}

fn gitlab() -> Service {
    Service { allow_encoded_slash: true, ..service("") }
}

fn refused(rest: &str) -> TargetError {
    Target::parse(&service("/v1"), rest).expect_err(rest)
}

#[test]
fn the_base_path_is_put_in_front_once() {
    for (base, rest, path) in [
        ("", "", "/"),
        ("", "/", "/"),
        ("", "/a/b/", "/a/b/"),
        ("/v1", "", "/v1"),
        ("/v1", "/", "/v1/"),
        ("/v1", "/models", "/v1/models"),
        ("/v1", "/v1", "/v1"),
        ("/v1", "/v1/models", "/v1/models"),
        ("/v1", "/v1beta/models", "/v1/v1beta/models"),
        ("/v1", "/V1/models", "/v1/V1/models"),
        ("/openai/v1", "/v1/models", "/openai/v1/v1/models"),
        ("/openai/v1", "/openai/v1/models", "/openai/v1/models"),
    ] {
        assert_eq!(Target::parse(&service(base), rest).unwrap().path(), path, "{base} {rest}");
    }
}

#[test]
fn ordinary_targets_are_taken_as_they_are() {
    for rest in [
        "/v1beta/models/gemini-2.0-flash:generateContent",
        "/repos/o/r/contents/README.md",
        "/calendars/user%40example.com/events",
        "/calendars/user@example.com/events",
        "/a%20b/(c)'!$&*+,=~_-.x",
        "/matrix/%23room%3Ahost",
        "/...",
        "/.well-known/x",
        "/..a/b..",
    ] {
        assert_eq!(Target::parse(&service(""), rest).unwrap().path(), rest);
    }
}

#[test]
fn what_servers_read_in_two_ways_is_refused() {
    use TargetError as E;
    for (rest, error) in [
        (".evil.test/steal", E::NotAbsolute),
        (":443@evil.test/steal", E::NotAbsolute),
        ("%40evil.test/steal", E::NotAbsolute),
        ("//evil.test/x", E::EmptySegment),
        ("/v1//admin", E::EmptySegment),
        ("/v1/models//", E::EmptySegment),
        ("/\\evil.test/x", E::Character),
        ("/../github/user", E::DotSegment),
        ("/v1/../v1/admin/keys", E::DotSegment),
        ("/v1/./admin", E::DotSegment),
        ("/v1/..", E::DotSegment),
        ("/v1/%2e%2e/v1/admin/keys", E::NeedlessEscape),
        ("/v1/%2E./v1/.%2e/v1/admin/keys", E::NeedlessEscape),
        ("/v1/%61dmin/keys", E::NeedlessEscape),
        ("/v1/adm%69n", E::NeedlessEscape),
        ("/v1/%7Euser", E::NeedlessEscape),
        ("/v1/%252e%252e/admin", E::NeedlessEscape),
        ("/v1%2fadmin/keys", E::EscapedSlash),
        ("/v1%2Fadmin/keys", E::EscapedSlash),
        ("/v1%5cadmin", E::EscapedSlash),
        ("/v1/..;/v1/admin/keys", E::PathParameter),
        ("/v1;a=b/admin/keys", E::PathParameter),
        ("/v1%3Ba=b/admin", E::PathParameter),
        ("/v1/x\0.json", E::Control),
        ("/v1/x%00.json", E::Control),
        ("/v1/x%0d%0aX-Smug:%201", E::Control),
        ("/v1/x\r\n", E::Control),
        ("/v1/x%7f", E::Control),
        ("/v1/models#/v1/admin", E::Character),
        ("/v1/a b", E::Character),
        ("/v1/a\"b", E::Character),
        ("/v1/[a]", E::Character),
        ("/v1/{a}", E::Character),
        ("/v1/a|b", E::Character),
        ("/v1/%EF%BC%8Fadmin", E::NonAscii),
        ("/v1/adm%C4%B1n/keys", E::NonAscii),
        ("/v1/%c0%ae%c0%ae/", E::NonAscii),
        ("/v1/admın", E::NonAscii),
        ("/v1/%", E::BadEscape),
        ("/v1/%2", E::BadEscape),
        ("/v1/%zz", E::BadEscape),
        ("/v1/%u002e", E::BadEscape),
        ("/v1/%+1", E::BadEscape),
    ] {
        assert_eq!(refused(rest), error, "{rest}");
    }
}

#[test]
fn an_error_says_nothing_of_the_target() {
    let error = refused("/v1/seks_token_secret//x");
    assert!(!error.to_string().contains("secret") && !format!("{error:?}").contains("secret"));
}

#[test]
fn an_opted_in_slash_separates_segments_but_hides_none() {
    let parse = |rest| Target::parse(&gitlab(), rest).map(|t| t.path().to_owned());
    assert_eq!(parse("/projects/group%2Fproject/issues").unwrap(), "/projects/group%2Fproject/issues");
    assert_eq!(parse("/projects/a%2F..%2Fb"), Err(TargetError::DotSegment));
    assert_eq!(parse("/projects/..%2fb"), Err(TargetError::DotSegment));
    assert_eq!(parse("/projects/a%2F.%2Fb"), Err(TargetError::DotSegment));
    assert_eq!(parse("/%2Fevil.test"), Err(TargetError::EmptySegment));
    let site = "/webmasters/v3/sites/https%3A%2F%2Fexample.com%2F/searchAnalytics/query";
    assert_eq!(parse(site).unwrap(), site);
    assert_eq!(normalize::normalized_path(site), "/webmasters/v3/sites/https:/example.com/searchanalytics/query");
    assert_eq!(parse("/projects/a%5Cb"), Err(TargetError::EscapedSlash));
}

#[test]
fn a_query_is_kept_and_its_names_are_read() {
    let target = Target::parse(&service(""), "/x?b=%2F&a=1&a=2&k%65y=v&flag&=x&&c+d=%0A%C3%BC").unwrap();
    let parameters: Vec<_> = target.query_parameters().map(|p| (p.raw, p.name.into_owned())).collect();
    let names = ["b", "a", "a", "key", "flag", "", "c d"];
    assert_eq!(parameters.iter().map(|(_, n)| n.as_str()).collect::<Vec<_>>(), names);
    assert_eq!(
        parameters.iter().map(|(raw, _)| *raw).collect::<Vec<_>>().join("&"),
        "b=%2F&a=1&a=2&k%65y=v&flag&=x&c+d=%0A%C3%BC"
    );
    assert_eq!(Target::parse(&service(""), "/x?").unwrap().query(), Some(""));
    assert_eq!(Target::parse(&service(""), "/x").unwrap().query(), None);
    assert_eq!(super::query_names("a=1;debug&b").collect::<Vec<_>>(), ["a", "debug", "b"]);
}

#[test]
fn a_query_that_overrides_the_method_is_refused() {
    for query in [
        "_method=DELETE",
        "_METHOD=delete",
        "%5Fmethod=DELETE",
        "a=1&_method[]=PUT",
        "a=1;_method=DELETE",
        "X-HTTP-Method-Override=DELETE",
        "$httpMethod=DELETE",
        "method=delete",
        "Method=%44ELETE",
        "method=%20delete",
    ] {
        assert_eq!(refused(&format!("/v1/files?{query}")), TargetError::MethodOverride, "{query}");
    }
    assert!(Target::parse(&service(""), "/services/rest?method=flickr.photos.search").is_ok());
}

#[test]
fn a_query_that_would_break_a_line_or_hide_a_byte_is_refused() {
    use TargetError as E;
    for (query, error) in [
        ("a=%00", E::Control),
        ("a%0d%0ab=1", E::Control),
        ("a=\n", E::Control),
        ("a=%", E::BadEscape),
        ("a=%4", E::BadEscape),
        ("a=#b", E::Character),
        ("a=\\b", E::Character),
        ("a=ü", E::NonAscii),
    ] {
        assert_eq!(refused(&format!("/v1/x?{query}")), error, "{query}");
    }
    assert!(Target::parse(&service(""), "/x?filter[a]={\"b\":1}|^`'<>&q=%0d%0a%ff").is_ok());
}

proptest! {
    /// Whatever an agent writes: what comes out is one absolute path below no other authority, in one spelling, and it is
    /// what was written.
    #[test]
    fn a_target_is_canonical_and_is_what_was_written(
        rest in "(/|\\.|\\.\\.|%2[eEfF]|%5c|%25|;|@|:|\\\\|#|\\?|%40|//|a|B|é|%C3%A9|&|=|_method|%00|\\n){0,12}",
        slash in any::<bool>(),
        base in prop::sample::select(&["", "/v1", "/a/b"][..]),
    ) {
        let service = Service { allow_encoded_slash: slash, ..service(base) };
        if let Ok(target) = Target::parse(&service, &rest) {
            let (path, query) = rest.split_once('?').map_or((rest.as_str(), None), |(p, q)| (p, Some(q)));
            prop_assert!(target.path().ends_with(path) && target.query() == query);
            let joined = [base, path].concat();
            prop_assert!([path, joined.as_str(), "/"].contains(&target.path()));
            prop_assert!(target.path().starts_with('/') && target.path().is_ascii());

            // As a server would read it that decodes before it splits.
            let decoded = target.path().replace("%2F", "/").replace("%2f", "/").replace("%40", "@");
            prop_assert!(!decoded.contains(['%', '\\', ';', '#', '?', '\0', '\n']));
            prop_assert!(!decoded.starts_with("//") && !target.path().contains("//"));
            prop_assert!(decoded.split('/').all(|segment| segment != "." && segment != ".."));

            // As the HTTP library reads it: the authority is the service's, and the path is the same bytes.
            let written = format!("https://{}{}", service.upstream.authority(), target.path());
            let uri: http::Uri = written.parse().unwrap();
            prop_assert_eq!(uri.authority(), Some(service.upstream.authority()));
            prop_assert_eq!(uri.path(), target.path());
        }
    }

    #[test]
    fn the_parameters_of_a_query_are_the_query(query in "[a-c=&%25;+]{0,16}") {
        let rest = format!("/x?{query}");
        if let Ok(target) = Target::parse(&service(""), &rest) {
            let joined = target.query_parameters().map(|p| p.raw).collect::<Vec<_>>().join("&");
            let without_empty = query.split('&').filter(|p| !p.is_empty()).collect::<Vec<_>>().join("&");
            prop_assert_eq!(joined, without_empty);
        }
    }
}
