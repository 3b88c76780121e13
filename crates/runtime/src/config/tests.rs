use std::{io::Write as _, net::SocketAddr, time::Duration};

use serde::Deserialize;

use super::*;

#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Config {
    node: NodeSection,
    proxy: Proxy,
}

#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct NodeSection {
    name: String,
    region: Option<String>,
}

#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Proxy {
    listen: Option<SocketAddr>,
    hosts: Vec<String>,
    #[serde(with = "humantime_serde")]
    idle_timeout: Duration,
    tls: Tls,
    limits: Limits,
    mode: Mode,
    api_key: u64,
}

#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Tls {
    cert_file: Option<PathBuf>,
    required: bool,
}

#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Limits {
    header_bytes: u32,
}

#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Mode {
    #[default]
    BestEffort,
    Required,
}

fn file(text: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::Builder::new().suffix(".toml").tempfile().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

fn load(text: &str, variables: &[(&str, &str)], loader: Loader) -> Result<Config, String> {
    let file = file(text);
    let variables = variables.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
    let result = loader.file(Some(file.path())).environment(variables).load();
    result.map_err(|e| e.to_string().replace(&file.path().display().to_string(), "FILE"))
}

#[test]
fn command_line_beats_environment_beats_file_beats_default() {
    let text =
        "[proxy]\nlisten = '127.0.0.1:1'\nidle_timeout = '10s'\nhosts = ['f']\n[node]\nname = 'file'\nregion = 'eu'";
    let variables = [("SEKS_PROXY_LISTEN", "127.0.0.1:2"), ("SEKS_NODE_NAME", "123"), ("SEKS_PROXY_HOSTS", "a, b")];
    let got = load(text, &variables, Loader::new().flag("proxy.listen", Some("127.0.0.1:3"))).unwrap();
    assert_eq!(got.proxy.listen, Some("127.0.0.1:3".parse().unwrap()));
    assert_eq!((got.node.name.as_str(), got.node.region.as_deref()), ("123", Some("eu")));
    assert_eq!((got.proxy.hosts, got.proxy.idle_timeout), (vec!["a".into(), "b".into()], Duration::from_secs(10)));
    assert_eq!(load("", &[], Loader::new().flag("proxy.listen", None::<String>)), Ok(Config::default()));
}

#[test]
fn a_variable_finds_its_key_however_deep() {
    let variables = [
        ("SEKS_PROXY_TLS_CERT_FILE", "/a/b"),
        ("SEKS_PROXY_TLS_REQUIRED", "true"),
        ("SEKS_PROXY_LIMITS_HEADER_BYTES", "32768"),
        ("SEKS_PROXY_IDLE_TIMEOUT", "2m"),
        ("SEKS_PROXY_MODE", "required"),
        ("SEKS_PROXY_HOSTS", r#"["x", "y"]"#),
    ];
    let got = load("", &variables, Loader::new()).unwrap().proxy;
    assert_eq!(got.tls, Tls { cert_file: Some("/a/b".into()), required: true });
    assert_eq!((got.limits.header_bytes, got.idle_timeout), (32768, Duration::from_secs(120)));
    assert_eq!((got.mode, got.hosts), (Mode::Required, vec!["x".into(), "y".into()]));
}

#[test]
fn errors_are_one_line_with_place_key_and_reason() {
    type Case<'a> = (&'a str, &'a [(&'a str, &'a str)], &'a str);
    let cases: &[Case<'_>] = &[
        ("[proxy]\nlissten = 1", &[], "FILE: proxy.lissten: no such key; known are `listen`, "),
        ("proxy = 1", &[], "FILE: proxy: expected struct Proxy, found a whole number"),
        ("[proxy]\nlisten = 'nowhere'", &[], "FILE: proxy.listen: invalid socket address syntax"),
        ("[proxy]\nidle_timeout = 10", &[], "FILE: proxy.idle_timeout: "),
        ("[proxy.limits]\nheader_bytes = -1", &[], "FILE: proxy.limits.header_bytes: expected u32"),
        ("[proxy]\nhosts = ['a', 1]", &[], "FILE: proxy.hosts: expected a string, found a whole number"),
        ("[proxy]\nmode = 'sometimes'", &[], "FILE: proxy.mode: expected one of `best_effort`, `required`"),
        ("[proxy]\nmode = 'sometimes", &[], "FILE: line 2: "),
        ("[nod]\nname = 1", &[], "FILE: nod: no such key; known are `node`, `proxy`"),
        ("", &[("SEKS_PROXY_LISSTEN", "1")], "SEKS_PROXY_LISSTEN: proxy: no such key; known are `listen`, "),
        ("", &[("SEKS_PORXY_LISTEN", "1")], "SEKS_PORXY_LISTEN: no such setting"),
        (
            "",
            &[("SEKS_PROXY_TLS_REQUIRED", "maybe")],
            "SEKS_PROXY_TLS_REQUIRED: proxy.tls.required: expected true or false",
        ),
        (
            "",
            &[("SEKS_PROXY_LIMITS_HEADER_BYTES", "ten")],
            "SEKS_PROXY_LIMITS_HEADER_BYTES: proxy.limits.header_bytes: expected a whole number",
        ),
    ];
    for (text, variables, want) in cases {
        let got = load(text, variables, Loader::new()).unwrap_err();
        assert!(got.starts_with(want) && !got.contains('\n'), "{got}\n  wanted {want}");
    }
    let flag = load("", &[], Loader::new().flag("proxy.listen", Some("x"))).unwrap_err();
    assert!(flag.starts_with("command line: proxy.listen: "), "{flag}");
    let missing: Result<Config, _> = Loader::new().file(Some(Path::new("nowhere/x.toml"))).load();
    assert_eq!(missing.unwrap_err().to_string(), "nowhere/x.toml: no such file");
}

#[test]
fn values_of_secret_looking_keys_are_never_repeated() {
    for text in ["[proxy]\napi_key = 'hunter2'", "[proxy]\napi_key = 'hunter2", "[proxy]\nhosts = 'hunter2'"] {
        let got = load(text, &[("SEKS_PROXY_MODE", "required")], Loader::new()).unwrap_err();
        assert!(!got.contains("hunter2"), "{got}");
    }
    let got = load("", &[("SEKS_PROXY_API_KEY", "hunter2")], Loader::new()).unwrap_err();
    assert_eq!(got, "SEKS_PROXY_API_KEY: proxy.api_key: the value is not acceptable");
}

#[test]
fn variables_that_are_no_configuration_are_left_alone() {
    let variables = [
        ("SEKS_LOG", "debug"),
        ("SEKS_TEST_ETCD", "x"),
        ("SEKS_STORE_PATH", "the other plane's"),
        ("SEKS_CONTROL_PLANE_PORT", "tcp://10.0.0.1:8301"),
        ("SEKS_CONTROL_PLANE_PORT_8301_TCP_ADDR", "10.0.0.1"),
        ("SEKS_PROXY_SERVICE_HOST", "10.0.0.1"),
        ("HOME", "/"),
    ];
    assert_eq!(load("", &variables, Loader::new()), Ok(Config::default()));
}
