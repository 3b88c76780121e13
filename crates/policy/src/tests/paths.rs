//! No spelling of a path gets around a policy: a `forbid` on a path covers every spelling that a
//! common server reads as it, and a `permit` covers no path that some server reads as another one.

use proptest::{prelude::*, sample::select};
use seks_service::{
    Service,
    request::{PathRules, Target},
    spec::ServiceSpec,
};

use super::*;

/// A service that takes any path.
fn service() -> Service {
    let spec: ServiceSpec =
        toml::from_str("name = 'openai'\nupstream = 'https://api.openai.com'\ninject = 'bearer'").unwrap();
    Service { path_rules: PathRules::ANY, ..spec.to_service("default").unwrap() }
}

/// Whether the node sends the request: the path is acceptable, and the policies permit it.
fn is_sent(fixture: &Fixture, path: &str) -> bool {
    let service = service();
    Target::parse(&service, path).is_ok_and(|target| fixture.ask(&Method::GET, target.path()).allowed)
}

fn forbidding(condition: &str) -> Fixture {
    Fixture::new(&format!(
        "@id(\"all\") permit (principal, action, resource);\n@id(\"no\") forbid (principal, action, resource) when {{ {condition} }};"
    ))
}

fn permitting(condition: &str) -> Fixture {
    Fixture::new(&format!("@id(\"p\") permit (principal, action, resource) when {{ {condition} }};"))
}

#[test]
fn a_forbid_on_a_path_covers_what_servers_read_as_it() {
    for condition in [
        r#"context.path == "/v1/admin/keys""#,
        r#"["/v1/x", "/V1/Admin/keys"].contains(context.path)"#,
        r#"context.path like "/v1/admin/*""#,
        r#"context.path like "*/admin/k*s""#,
        r#"(context.path like "/v1/admin/*") == (1 < 2)"#,
    ] {
        let fixture = forbidding(condition);
        for path in [
            "/v1/admin/keys",
            "/V1/ADMIN/Keys",
            "/v1/%61dmin/keys",
            "/v1/adm%69n/%6beys",
            "/v1/%2561dmin/keys",
            "/v1/%252561dmin/keys",
            "/v1%2Fadmin%2fkeys",
            "/v1%252Fadmin/keys",
            "/v1//admin/keys",
            "//v1/admin///keys",
            "/v1/;x/admin/keys",
            "/v1;a=b/admin;c/keys;",
            "/v1%3Ba=b/admin/keys%3b",
            "/v1/admin%253Bx/keys",
            "/v1%5Cadmin%5ckeys",
            "/v1%255Cadmin/keys",
            "/v1/admin./keys",
            "/v1/admin%20/keys",
            "/v1/admin/keys.",
            "/v1/admin/keys%20..%20",
            "/v1/admin/keys%0A",
            "/v1/adm%C4%B1n/keys",
            "/v1/admin/%E2%84%AAeys",
            "/v1/admin/key%C5%BF",
            "/v1/ad%C2%ADmin/keys",
            "/v1%EF%BC%8Fadmin/keys",
            "/v1/%EF%BD%81dmin/keys",
            "/v1/%E2%93%90dmin;x/keys",
            "/v1/ad%E2%80%8Bmin//keys",
        ] {
            assert!(!is_sent(&fixture, path), "{path} gets around {condition}");
        }
        for path in ["/v1/admins/keys", "/v1/administrator", "/v2/adm/keys", "/v1/x;admin/keys", "/"] {
            assert!(is_sent(&fixture, path), "{path} is not what {condition} forbids");
        }
    }
}

#[test]
fn composed_and_decomposed_letters_are_the_same() {
    let fixture = forbidding("context.path == \"/docs/r\u{e9}sum\u{e9}.md\"");
    for path in [
        "/docs/r%C3%A9sum%C3%A9.md",
        "/docs/re%CC%81sume%cc%81.md",
        "/docs/R%C3%89SUM%C3%A9.md",
        "/docs/r\u{e9}sum\u{e9}.md.",
    ] {
        assert!(!is_sent(&fixture, path), "{path}");
    }
    assert!(is_sent(&fixture, "/docs/resume.md"));
    assert!(!is_sent(&forbidding("context.path like \"/T%C3%A2ches/*\""), "/ta%CC%82ches/7"));
}

/// Keys of an object store are what they are: a policy can name each.
#[test]
fn a_policy_can_name_an_odd_path() {
    for path in [
        "/b/50%25.txt",
        "/b/a;b",
        "/b/a%3Bb",
        "/b/a//b",
        "/b/back%5Cslash",
        "/b/%C3%A9",
        "/b/dir./x.",
        "/b/a%2541",
        "/b/x%0A",
    ] {
        let (exact, below) =
            (permitting(&format!("context.path == \"{path}\"")), permitting("context.path like \"/b/*\""));
        assert!(is_sent(&exact, path) && is_sent(&below, path), "{path}");
        assert!(!is_sent(&exact, "/b/a") && !is_sent(&exact, "/b/other"), "{path}");
        let listed = permitting(&format!("[\"/x\", \"{path}\"].contains(context.path)"));
        assert!(is_sent(&listed, path), "{path}");
        let forbidden = forbidding(&format!("context.path == \"{path}\""));
        assert!(!is_sent(&forbidden, path) && is_sent(&forbidden, "/b/other"), "{path}");
    }
    let no_parameters = forbidding("context.path like \"*;*\"");
    assert!(
        !is_sent(&no_parameters, "/b/a;b") && !is_sent(&no_parameters, "/b/a%3bb") && is_sent(&no_parameters, "/b/a")
    );
    let no_doubled = forbidding("context.path like \"*//*\"");
    assert!(!is_sent(&no_doubled, "/b//a") && is_sent(&no_doubled, "/b/a"));
}

#[test]
fn a_permit_covers_no_path_that_a_server_reads_as_another() {
    let public = permitting(r#"context.path like "/public/*""#);
    assert!(is_sent(&public, "/public/x") && is_sent(&public, "/public/a;b//c%25"));
    for path in [
        "/public/../admin",
        "/public/..;/admin",
        "/public/%2e%2e/admin",
        "/public/%252e%252e/admin",
        "/public%2F..%2Fadmin",
        "/public/%5C..%5Cadmin",
        "/public/..%5Cadmin",
        "/public/.%E2%80%8B./admin",
        "/PUBLIC/x",
        "/public",
        "/public;x/y",
    ] {
        assert!(!is_sent(&public, path), "{path}");
    }
    let middle = permitting(r#"context.path like "/b/*/c""#);
    assert!(is_sent(&middle, "/b/x/c"));
    for path in ["/b//c", "/b/;x/c", "/b/./c", "/b/%20/c"] {
        assert!(!is_sent(&middle, path), "{path}: some servers read `/b/c`");
    }
    let all_but = permitting(r#"!(context.path like "/admin*")"#);
    for path in ["//admin", "/%2561dmin", "/;/admin", "/%5Cadmin", "/%EF%BD%81dmin", "/ADMIN;x"] {
        assert!(!is_sent(&all_but, path), "{path}");
    }
}

/// A server's way of reading a path, apart from the code under test.
#[derive(Clone, Copy, Debug)]
struct Reader {
    decodes: usize,
    backslashes: bool,
    parameters: bool,
    empty_segments: bool,
    trailing_dots: bool,
    case: bool,
}

impl Reader {
    fn read(self, path: &str) -> String {
        let mut path = path.to_owned();
        for _ in 0..self.decodes {
            path = decoded(&path);
        }
        if self.backslashes {
            path = path.replace('\\', "/");
        }
        let segments = path.split('/').map(|segment| {
            let segment = if self.parameters { segment.split(';').next().unwrap() } else { segment };
            if self.trailing_dots { segment.trim_end_matches(['.', ' ']) } else { segment }
        });
        let mut segments: Vec<&str> = segments.collect();
        if self.empty_segments {
            let last = segments.len() - 1;
            let mut at = 0;
            segments.retain(|segment| {
                at += 1;
                !segment.is_empty() || at == 1 || at == last + 1
            });
        }
        let path = segments.join("/");
        if self.case { path.to_lowercase() } else { path }
    }
}

fn decoded(text: &str) -> String {
    let (mut out, bytes, mut at) = (Vec::new(), text.as_bytes(), 0);
    while at < bytes.len() {
        let escape = text.get(at + 1..at + 3).and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match escape.filter(|_| bytes[at] == b'%') {
            Some(byte) => {
                out.push(byte);
                at += 3;
            }
            None => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

fn reader() -> impl Strategy<Value = Reader> {
    (0_usize..4, any::<[bool; 5]>()).prop_map(
        |(decodes, [backslashes, parameters, empty_segments, trailing_dots, case])| Reader {
            decodes,
            backslashes,
            parameters,
            empty_segments,
            trailing_dots,
            case,
        },
    )
}

/// Pieces of which paths are made that servers read in many ways.
const PIECES: &[&str] = &[
    "/", "/", "/", "a", "b", "A", "admin", "aDMIN", "%61", "%41", "%2561", "%2F", "%2f", "%252F", "%5C", "%255c", ";",
    ";x", "%3B", "%253b", ".", "%2E", "%20", "//", "c", "%25", "25", "%C3%A9",
];

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    /// A server that reads the path as one that the policy forbids never gets it.
    #[test]
    fn no_spelling_gets_around_a_forbid(path in prop::collection::vec(select(PIECES), 1..8), reader in reader()) {
        let path = ["/", &path.concat()].concat();
        let read = reader.read(&path);
        for (condition, forbidden) in [
            (r#"context.path == "/a""#, read == "/a"),
            (r#"context.path == "/admin/b""#, read == "/admin/b"),
            (r#"context.path like "/admin*""#, read.starts_with("/admin")),
            (r#"context.path like "*/a/*""#, read.contains("/a/")),
            (r#"context.path like "*/admin""#, read.ends_with("/admin")),
        ] {
            prop_assert!(!forbidden || !is_sent(&forbidding(condition), &path), "{path} is {read} to {reader:?}, and gets around {condition}");
        }
    }

    /// A server never gets a path that it reads as one which the policy doesn't permit.
    #[test]
    fn no_spelling_widens_a_permit(path in prop::collection::vec(select(PIECES), 1..8), reader in reader()) {
        let path = ["/a/", &path.concat()].concat();
        let read = reader.read(&path);
        let plain = |read: &str| !read.contains(['%', ';', '\\', ' ']) && !read.contains("//") && !read.contains("./") && !read.ends_with('.');
        for (condition, permitted) in [
            (r#"context.path like "/a/*""#, read.starts_with("/a/")),
            (r#"context.path like "/a/*/c""#, read.starts_with("/a/") && read.ends_with("/c") && read.len() > 4),
            (r#"!(context.path like "*/admin/*")"#, !read.contains("/admin/")),
        ] {
            // A reading that is itself spelled oddly stands for what that server makes of it next.
            prop_assert!(permitted || !plain(&read) || !is_sent(&permitting(condition), &path), "{path} is {read} to {reader:?}, and is permitted by {condition}");
        }
    }
}
