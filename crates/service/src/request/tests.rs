use proptest::prelude::*;

use super::*;
use crate::{Service, spec::ServiceSpec};

pub(super) fn service(base_path: &str) -> Service {
    let spec: ServiceSpec =
        toml::from_str("name = 'openai'\nupstream = 'https://api.openai.com'\ninject = 'bearer'").unwrap();
    ServiceSpec { base_path: base_path.into(), ..spec }.to_service("default").unwrap()
}

fn gitlab() -> Service {
    Service { path_rules: PathRules::ENCODED_SLASH, ..service("") }
}

fn s3() -> Service {
    Service { path_rules: PathRules::ANY, ..service("") }
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
fn needless_escapes_are_sent_as_they_were_written() {
    for rest in [
        "/projects/g%2Dmy%2Dproject",
        "/files/key%2Erb",
        "/%7Euser",
        "/v1/%61dmin/keys",
        "/v1/adm%69n",
        "/a%2E%2E",
        "/%2e%2e%2e",
        "/%2Ewell-known/x",
        "/%5f%5F",
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
        ("/v1/%2e%2e/v1/admin/keys", E::DotSegment),
        ("/v1/%2E./v1/.%2e/v1/admin/keys", E::DotSegment),
        ("/v1/%2E", E::DotSegment),
        ("/v1/..%20/x", E::DotSegment),
        ("/v1/%252e%252e/admin", E::EscapedPercent),
        ("/v1%2fadmin/keys", E::EscapedSlash),
        ("/v1%2Fadmin/keys", E::EscapedSlash),
        ("/v1%5cadmin", E::EscapedBackslash),
        ("/v1/..;/v1/admin/keys", E::PathParameter),
        ("/v1;a=b/admin/keys", E::PathParameter),
        ("/v1%3Ba=b/admin", E::PathParameter),
        ("/v1/x\0.json", E::Control),
        ("/v1/x%00.json", E::Control),
        ("/v1/x%0d%0aX-Smug:%201", E::EscapedControl),
        ("/v1/x\r\n", E::Control),
        ("/v1/x%7f", E::EscapedControl),
        ("/v1/models#/v1/admin", E::Character),
        ("/v1/a b", E::Character),
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
fn each_rule_of_a_service_lifts_one_refusal() {
    use TargetError as E;
    for (rest, rule, error) in [
        ("/docs/r%C3%A9sum%C3%A9.md", PathRules::UTF8, E::NonAscii),
        ("/T%C3%A2ches", PathRules::UTF8, E::NonAscii),
        ("/%E6%97%A5%E6%9C%AC", PathRules::UTF8, E::NonAscii),
        ("/b/50%25.txt", PathRules::PERCENT, E::EscapedPercent),
        ("/b/a;b", PathRules::SEMICOLON, E::PathParameter),
        ("/b/a%3bb", PathRules::SEMICOLON, E::PathParameter),
        ("/b/a//b", PathRules::EMPTY_SEGMENT, E::EmptySegment),
        ("//b", PathRules::EMPTY_SEGMENT, E::EmptySegment),
        ("/b/back%5Cslash", PathRules::BACKSLASH, E::EscapedBackslash),
        ("/b/a%0Ab%7F", PathRules::CONTROL, E::EscapedControl),
        ("/b/a%2Fb", PathRules::ENCODED_SLASH, E::EscapedSlash),
    ] {
        let with =
            |rules| Target::parse(&Service { path_rules: rules, ..service("") }, rest).map(|t| t.path().to_owned());
        assert_eq!(with(rule).as_deref(), Ok(rest));
        assert_eq!(with(PathRules::ANY).as_deref(), Ok(rest));
        assert_eq!(with(PathRules::NONE), Err(error), "{rest}");
        assert!(error.text().contains("needs"), "{error}");
    }
}

#[test]
fn a_service_that_takes_any_path_takes_no_dot_segment_in_any_spelling() {
    use TargetError as E;
    for (rest, error) in [
        ("/b/../x", E::DotSegment),
        ("/b/%2e%2e/x", E::DotSegment),
        ("/b/%252e%252e/x", E::DotSegment),
        ("/b/%25252E%25252e/x", E::DotSegment),
        ("/b/.%252e/x", E::DotSegment),
        ("/b%2F..%2Fx", E::DotSegment),
        ("/b%252F..%252Fx", E::DotSegment),
        ("/b%5C..%5Cx", E::DotSegment),
        ("/b%255C..%255Cx", E::DotSegment),
        ("/b/..;/x", E::DotSegment),
        ("/b/..;a=b/x", E::DotSegment),
        ("/b/..%3Bx", E::DotSegment),
        ("/b/..%253Bx/", E::DotSegment),
        ("/b/..%20/x", E::DotSegment),
        ("/b/..%09", E::DotSegment),
        ("/b/..%0A/x", E::DotSegment),
        ("/b/.%E2%80%8B./x", E::DotSegment),
        ("/b/%EF%BC%8E%EF%BC%8E/x", E::DotSegment),
        ("/b%EF%BC%8F..%EF%BC%8Fx", E::DotSegment),
        ("/b/%E2%80%A5/x", E::DotSegment),
        ("/b/%c0%ae%c0%ae/x", E::NotUtf8),
        ("/b/%C0%AF", E::NotUtf8),
        ("/b/%ED%A0%80", E::NotUtf8),
        ("/b/%C3", E::NotUtf8),
        ("/b/%C3%28", E::NotUtf8),
        ("/b/%F8%88%80%80%80", E::NotUtf8),
        ("/b/%00", E::Control),
        ("/b/%2525252541", E::NestedEscape),
        ("/b/a\\b", E::Character),
    ] {
        assert_eq!(Target::parse(&s3(), rest).map(|t| t.path().to_owned()), Err(error), "{rest}");
    }
}

#[test]
fn characters_that_no_uri_holds_are_escaped() {
    let path = |rest: &str| Target::parse(&s3(), rest).map(|t| t.path().to_owned());
    for raw in [" ", "\\", "#"] {
        assert_eq!(path(&format!("/a{raw}b")), Err(TargetError::Character), "{raw}");
    }
    for raw in ["|", "{", "}", "[", "]", "\"", "<", ">", "^", "`"] {
        let escaped = format!("/a%{:02X}b", raw.as_bytes()[0]);
        assert_eq!(path(&format!("/a{raw}b")), path(&escaped), "{raw}");
        assert_eq!(path(&format!("/a{raw}b")).unwrap(), escaped);
    }
    assert_eq!(path("/contents/[id].tsx").unwrap(), "/contents/%5Bid%5D.tsx");
    assert_eq!(path("/T\u{e2}ches").unwrap(), "/T%C3%A2ches");
    let query = |query: &str| Target::parse(&service(""), &format!("/x?{query}")).unwrap().query().unwrap().to_owned();
    for (raw, sent) in
        [("a=50%", "a=50%25"), ("%=%4&b=%zz", "%25=%254&b=%25zz"), ("a=%u0041%41", "a=%25u0041%41"), ("%%41", "%25%41")]
    {
        assert_eq!(query(raw), sent, "{raw}");
    }
    assert_eq!(refused("/x?%_method=%_method&_method=PUT%"), TargetError::MethodOverride);
    assert_eq!(query(r#"query=up{job="a"}"#), "query=up%7Bjob=%22a%22%7D");
    assert_eq!(query("a=<b>|c\\d^e`"), "a=%3Cb%3E%7Cc%5Cd%5Ee%60");
    assert_eq!(query("q=\u{fc}"), "q=%C3%BC");
    assert_eq!(query("filter[a]=1&b='%7b'&c=(!*)"), "filter[a]=1&b='%7b'&c=(!*)");
}

#[test]
fn a_final_slash_of_a_base_url_adds_no_segment() {
    for (base, rest, want) in [
        ("", "//v1/charges", "/v1/charges"),
        ("", "//", "/"),
        ("", "//?a=b", "/?a=b"),
        ("", "/v1//charges", "/v1//charges"),
        ("", "///v1", "///v1"),
        ("", "//v1.0/me", "/v1.0/me"),
        ("", "//chat.postMessage", "/chat.postMessage"),
        ("", "//evil.test/x", "//evil.test/x"),
        ("", "//evil:80/x", "//evil:80/x"),
        ("", "//u@evil/x", "//u@evil/x"),
        ("", "//127.0.0.1/x", "//127.0.0.1/x"),
        ("/v1", "//chat", "/chat"),
        ("/v1", "/v1//chat?x=//", "/v1/chat?x=//"),
        ("/v1", "//v1//chat", "/v1/chat"),
        ("/v1", "/v10//chat", "/v10//chat"),
        ("/v1", "/v1/chat", "/v1/chat"),
    ] {
        assert_eq!(without_base_slash(&service(base), rest), want, "{base} {rest}");
    }
    assert_eq!(without_base_slash(&s3(), "//b/key"), "//b/key", "the key begins with a slash");
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
    assert_eq!(normalize::normalized_path(site), "/webmasters/v3/sites/https://example.com//searchanalytics/query");
    assert_eq!(parse("/projects/a%5Cb"), Err(TargetError::EscapedBackslash));
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
    let overriding = Service { allow_method_override: true, ..service("") };
    let overridden =
        |query: &str| Target::parse(&overriding, &format!("/x?{query}")).map(|t| t.method_override().cloned());
    assert_eq!(overridden("a=b&_HttpMethod=PATCH"), Ok(Some(http::Method::PATCH)));
    assert_eq!(overridden("a=b"), Ok(None));
    for query in ["_method=", "_method", "_method=%44ELETE", "_method=PUT&_method=PUT", "_method=PUT;$httpMethod=GET"] {
        assert_eq!(overridden(query), Err(TargetError::MethodOverrideForm), "{query}");
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
        ("a=#b", E::Character),
        ("a= b", E::Character),
    ] {
        assert_eq!(refused(&format!("/v1/x?{query}")), error, "{query}");
    }
    assert!(Target::parse(&service(""), "/x?filter[a]={\"b\":1}|^`'<>&q=%0d%0a%ff").is_ok());
}

/// Every way in which a known server reads a path, each composed with each: decoded up to three
/// times, `\` as `/`, cut at `;`, without empty segments, without dots and spaces at the end.
fn readings(path: &str) -> Vec<String> {
    let mut readings = vec![path.to_owned()];
    let readers: [fn(&str) -> String; 6] = [
        |p| percent_decoded(p),
        |p| percent_decoded(&percent_decoded(p)),
        |p| percent_decoded(&percent_decoded(&percent_decoded(p))),
        |p| p.replace('\\', "/"),
        |p| p.split('/').map(|s| s.split(';').next().unwrap()).collect::<Vec<_>>().join("/"),
        |p| p.split('/').map(|s| s.trim_end_matches(' ')).collect::<Vec<_>>().join("/"),
    ];
    for reader in readers {
        let more: Vec<String> = readings.iter().map(|p| reader(p)).collect();
        readings.extend(more);
    }
    readings
}

fn percent_decoded(text: &str) -> String {
    let mut out = text.to_owned();
    for (escaped, plain) in [("%2e", "."), ("%2E", "."), ("%5c", "\\"), ("%2f", "/"), ("%3b", ";"), ("%20", " ")] {
        out = out.replace(escaped, plain);
    }
    out.replace("%25", "%")
}

proptest! {
    /// Whatever an agent writes and a service allows: what comes out is one absolute path below no
    /// other authority, it is what was written, and no server reads a dot segment in it.
    #[test]
    fn a_target_is_what_was_written_and_leads_nowhere_else(
        rest in "(/|/|\\.|\\.\\.|%2[eE]|%2f|%5c|%25|%3b|%20|;|@|:|\\\\|#|\\?|%40|//|a|B|é|%C3%A9|&|=|_method|%00|\n|2e){0,12}",
        rules in 0_u8..128,
        base in prop::sample::select(&["", "/v1", "/a/b"][..]),
    ) {
        let names = ["utf8", "percent", "semicolon", "empty_segment", "backslash", "control"];
        let names: Vec<String> = names.iter().enumerate().filter(|(i, _)| rules >> i & 1 == 1).map(|(_, n)| (*n).into()).collect();
        let slash = if rules >> 6 == 1 { PathRules::ENCODED_SLASH } else { PathRules::NONE };
        let rules = PathRules::parse(&names).unwrap().and(slash);
        let service = Service { path_rules: rules, ..service(base) };
        if let Ok(target) = Target::parse(&service, &rest) {
            let (path, query) = rest.split_once('?').map_or((rest.as_str(), None), |(p, q)| (p, Some(q)));
            let written = |text: &str| text.replace('é', "%C3%A9");
            prop_assert!(target.path().ends_with(&written(path)));
            prop_assert_eq!(target.query().map(|q| q.replace("%5C", "\\")), query.map(|q| written(q).replace("%5C", "\\")));
            let joined = [base, &written(path)].concat();
            prop_assert!([&*written(path), joined.as_str(), "/"].contains(&target.path()));
            prop_assert!(target.path().starts_with('/') && target.path().is_ascii());

            for reading in readings(target.path()) {
                prop_assert!(reading.split('/').all(|segment| segment != "." && segment != ".."), "{}", reading);
            }

            prop_assert!(rules.allow(PathRules::EMPTY_SEGMENT) || !target.path().contains("//"));

            // As the HTTP library reads it: the authority is the service's, and the path is the
            // same bytes.
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
            let query = super::query::with_escaped_percents(&query);
            let without_empty = query.split('&').filter(|p| !p.is_empty()).collect::<Vec<_>>().join("&");
            prop_assert_eq!(joined, without_empty);
        }
    }
}
