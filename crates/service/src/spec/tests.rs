use super::*;
use crate::{BasicPart, InjectionSite, McpSource, TokenSlot, request::PathRules};

const HEAD: &str = "name = 'acme'\nupstream = 'https://api.acme.test'\n";

fn service(rest: &str) -> Result<Service, String> {
    let spec: ServiceSpec = toml::from_str(&[HEAD, rest].concat()).map_err(|e| e.message().to_owned())?;
    spec.to_service("default").map_err(|e| e.to_string())
}

#[test]
fn slots_and_fields_follow_from_the_injection() {
    let scheme = |s: &str| TokenSlot::Scheme(s.into());
    let header = |s: &str| TokenSlot::Header(s.parse().unwrap());
    for (inject, slots, fields) in [
        ("'bearer'", vec![scheme("Bearer")], vec!["key"]),
        ("{ header = 'X-Api-Key' }", vec![header("x-api-key")], vec!["key"]),
        ("{ header = 'api_key' }", vec![header("api_key")], vec!["key"]),
        ("{ header = 'Authorization' }", vec![scheme("")], vec!["key"]),
        ("{ header = 'Authorization', value = 'Bot {key}' }", vec![scheme("Bot")], vec!["key"]),
        ("{ headers = { A = '{one}', B = '{two}' } }", vec![header("a"), header("b")], vec!["one", "two"]),
        ("{ basic = '{sid}:{token}' }", vec![TokenSlot::Basic(BasicPart::Either)], vec!["sid", "token"]),
        ("{ basic = 'x-access-token:{key}' }", vec![TokenSlot::Basic(BasicPart::Password)], vec!["key"]),
        ("{ basic = '{key}:' }", vec![TokenSlot::Basic(BasicPart::User)], vec!["key"]),
        ("{ query = { key = '{key}' } }", vec![TokenSlot::Query("key".into())], vec!["key"]),
        ("{ path = '/bot{key}' }", vec![TokenSlot::Path("bot".into(), String::new())], vec!["key"]),
    ] {
        let service = service(&format!("inject = {inject}")).unwrap_or_else(|e| panic!("{inject}: {e}"));
        assert_eq!(service.slots, slots, "{inject}");
        assert_eq!(service.fields, fields, "{inject}");
    }
}

#[test]
fn everything_can_be_said() {
    let service = service(
        r#"
        title = "Acme"
        base_path = "/v2"
        inject = { header = "X-Key", value = "{id}.{secret}" }
        fields = ["secret", "id"]
        slots = ["bearer", "raw", "scheme:token", "header:x-key", "query:key", "basic:password", "path:/bot{token}", "subprotocol:key."]
        denied_paths = ["POST /v2/keys/**"]
        env = { ACME_KEY = "{token}" }
        headers = { x-version = "1" }
        first_byte_timeout = "10m"
        idle_timeout = "7m"
        allow_encoded_slash = true
        allow_in_paths = ["utf8", "percent"]
        methods = ["LIST", "FETCH:read"]
        pass_headers = ["client_id", "X-MS-Copy-Source"]
        pass_cookies = ["session"]
        allow_method_override = true
        allow_range = true
        allow_websocket = true
        forward_trace_context = true
        public = ["id"]
        rewrite_urls = true
        keyless_urls = ["Location"]
        mcp = true
        mcp_without_headers = true
        "#,
    )
    .unwrap();
    assert_eq!((service.public.as_slice(), service.rewrite_urls), (&["id".to_owned()][..], true));
    assert_eq!(
        (service.keyless_urls.as_slice(), service.mcp),
        (&[http::header::LOCATION][..], Some(McpSource::HeadersOrBody))
    );
    assert_eq!((service.title.as_str(), service.base_path.as_str()), ("Acme", "/v2"));
    assert_eq!((service.fields.len(), service.slots.len()), (2, 8));
    assert_eq!(service.first_byte_timeout, Some(Duration::from_secs(600)));
    assert_eq!(service.idle_timeout, Some(Duration::from_secs(420)));
    assert!(service.allow_range && service.forward_trace_context && service.allow_method_override);
    let rules = PathRules::ENCODED_SLASH.and(PathRules::UTF8).and(PathRules::PERCENT);
    assert_eq!(service.path_rules, rules);
    assert_eq!(service.methods.iter().map(|m| m.method.as_str()).collect::<Vec<_>>(), ["LIST", "FETCH"]);
    assert_eq!((service.passed.headers.len(), service.passed.cookies.as_slice()), (2, &["session".to_owned()][..]));
    assert!(service.allow_websocket && !service.http2);
    assert!(matches!(service.injection.as_slice(), [InjectionSite::Header(..)]));
}

#[test]
fn an_error_is_one_line_and_names_the_key() {
    for (rest, says) in [
        ("", "inject: expected \"bearer\", or a table"),
        ("inject = 'bearer'\nbase_pat = '/v1'", "unknown field `base_pat`"),
        ("inject = 'basic'", "inject: the only word is \"bearer\""),
        ("inject = {}", "inject: expected at least one of header"),
        ("inject = { value = '{key}' }", "inject: `value` needs `header`"),
        ("inject = { headr = 'x' }", "unknown field `headr`"),
        ("inject = 7", "inject"),
        ("inject = { header = 'Host' }", "injection: a service must not set `Host`"),
        ("inject = { header = 'x', value = 'nothing' }", "inject: it contains no field of the credential"),
        ("inject = { basic = '{key}' }", "injection: basic is `user:password`"),
        ("inject = 'bearer'\nfields = ['other']", "`key` is not one of the service's fields"),
        ("inject = 'bearer'\nfields = ['key', 'other']", "fields: no site uses `other`"),
        ("inject = 'bearer'\nslots = ['cookie:x']", "slots: `cookie:x` is not one of bearer, raw"),
        ("inject = 'bearer'\nslots = ['path:/x']", "slots: a path slot is"),
        ("inject = 'bearer'\nslots = ['path:/a//b{token}']", "slots: a path slot is a plain segment"),
        ("inject = 'bearer'\nslots = ['path:/../b{token}']", "slots: a path slot is a plain segment"),
        (
            "inject = 'bearer'\nbase_path = '/v1'\nslots = ['path:/a/b{token}']",
            "slots: a path slot of several segments",
        ),
        ("inject = 'bearer'\nbase_path = 'v1'", "base_path: "),
        ("inject = 'bearer'\ndenied_paths = ['/keys']", "denied_paths: "),
        ("inject = 'bearer'\ntunnel_other_hosts = true", "tunnel_other_hosts: only `seks-interception` can have it"),
        ("inject = 'bearer'\nfirst_byte_timeout = 'soon'", "expected"),
        ("inject = 'bearer'\nfirst_byte_timeout = '100days'", "first_byte_timeout: at most 49 days"),
        ("inject = 'bearer'\nidle_timeout = '100days'", "idle_timeout: at most 49 days"),
        ("inject = 'bearer'\nallow_range = 'yes'", "expected a boolean"),
        ("inject = 'bearer'\nslots = ['subprotocol:a, b']", "slots: `a, b` is not a valid subprotocol prefix"),
        ("inject = 'bearer'\nallow_in_paths = ['utf-8']", "allow_in_paths: `utf-8` is not one of utf8, percent"),
        ("inject = 'bearer'\nmethods = ['TRACE']", "methods: `TRACE` is never sent"),
        ("inject = 'bearer'\nmethods = ['GET']", "methods: `GET` is always accepted"),
        ("inject = 'bearer'\npass_headers = ['x-id']", "pass_headers: `x-id` has no `_`"),
        ("inject = 'bearer'\npass_headers = ['x_ms_copy_source']", "pass_headers: `x_ms_copy_source` is read"),
        (
            "inject = 'bearer'\npass_headers = ['content_length']",
            "pass_headers: `content_length` is read by some servers",
        ),
        (
            "inject = 'bearer'\npass_headers = ['x_http_method_override']",
            "pass_headers: `x_http_method_override` is read",
        ),
        ("inject = { header = 'x-key' }\npass_headers = ['x_key']", "pass_headers: `x_key` is read by some servers"),
        (
            "inject = { header = 'api_key' }\npass_headers = ['api_key']",
            "pass_headers: `api_key` is read by some servers",
        ),
        ("inject = { header = 'content_length' }", "injection: a service must not set `content_length`"),
        ("inject = 'bearer'\npass_cookies = ['a=b']", "pass_cookies: `a=b` is not the name of a cookie"),
        ("inject = 'bearer'\nallow_websocket = true\nhttp2 = true", "allow_websocket: "),
        ("inject = 'bearer'\npublic = ['user']", "public: `user` is not one of the fields"),
        ("inject = 'bearer'\npublic = ['key']", "public: at least one field must be a secret"),
        ("inject = { basic = '{u}:{p}' }\npublic = ['u', 'u']", "public: a name is listed twice"),
        ("inject = 'bearer'\nmcp_without_headers = true", "mcp_without_headers: only a service with `mcp = true`"),
        ("inject = 'bearer'\nkeyless_urls = ['a b']", "keyless_urls: `a b` is not a valid header name"),
    ] {
        let error = service(rest).expect_err(rest);
        assert!(error.contains(says) && !error.contains('\n'), "{rest}: {error}");
    }
    let spec: ServiceSpec = toml::from_str("name = 'A'\ninject = 'bearer'").unwrap();
    assert!(spec.to_service("default").unwrap_err().to_string().contains("service name"));
    let spec: ServiceSpec =
        toml::from_str("name = 'a'\nupstream = 'https://<shop>.acme.test'\ninject = 'bearer'").unwrap();
    assert!(spec.to_service("default").unwrap_err().to_string().contains("upstream: "));
}

#[test]
fn json_says_the_same_as_toml() {
    let json = r#"{"name":"acme","upstream":"https://api.acme.test","inject":{"query":{"key":"{key}"}},"first_byte_timeout":"1m"}"#;
    let (json, toml): (ServiceSpec, ServiceSpec) = (
        serde_json::from_str(json).unwrap(),
        toml::from_str(&[HEAD, "inject = { query = { key = '{key}' } }\nfirst_byte_timeout = '1m'"].concat()).unwrap(),
    );
    assert_eq!(json, toml);
    let bad = serde_json::from_str::<ServiceSpec>(r#"{"name":"acme","inject":"raw"}"#).unwrap_err().to_string();
    assert!(bad.contains("inject: the only word"), "{bad}");
}

#[test]
fn what_is_written_out_has_the_same_effect() {
    for inject in [
        "'bearer'",
        "{ header = 'x-key' }",
        "{ header = 'x-key', value = 'a {key}' }",
        "{ headers = { a = '{one}', b = '{two}' } }",
        "{ basic = '{key}:', query = { q = '{key}' }, path = '/p{key}' }",
        "{ basic = '{user}:{password}' }\npublic = ['user']\nrewrite_urls = true\nkeyless_urls = ['location']\nmcp = true",
    ] {
        let spec: ServiceSpec = toml::from_str(&[HEAD, "inject = ", inject].concat()).unwrap();
        let wire = spec.to_wire("t").unwrap();
        assert_eq!(ServiceSpec::from(&wire), spec, "{inject}");
        let json = serde_json::to_string(&ServiceSpec::from(&wire)).unwrap();
        assert_eq!(serde_json::from_str::<ServiceSpec>(&json).unwrap().to_wire("t").unwrap(), wire, "{json}");
    }
}
