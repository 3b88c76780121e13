//! Fuzz targets: the path and the query of a request, and fields of a body that override its
//! method.

use super::{FormError, FormKind, FormScan, Target, normalize::normalized_path, query_names};
use crate::fuzz;

#[test]
fn fuzz_request_target() {
    let service = super::tests::service("/v1");
    let seeds: &[&[u8]] = &[
        b"/v1/models?limit=10&after=a%20b",
        b"/projects/g%2Fmy-project/files/a%C3%A9.md",
        b"/x//y/../z;p=1?q[]=1&q[]=2&=x&c+d",
        b"",
        b"/a/%2e%2e/b?%6bey=1",
    ];
    fuzz::run("request_target", seeds, |input| {
        let Ok(text) = std::str::from_utf8(input) else { return 0 };
        if !(text.is_empty() || text.starts_with('/') || text.starts_with('?'))
            || !text.bytes().all(|b| b.is_ascii_graphic())
        {
            return 1; // refused where the head is read
        }
        match Target::parse(&service, text) {
            Err(error) => {
                fuzz::outcome(&error.to_string().chars().filter(|c| c.is_ascii_alphabetic()).collect::<String>())
            }
            Ok(target) => {
                let path = target.path();
                assert!(path.starts_with("/v1"), "{path:?}");
                let segments = || path.split('/').skip(1);
                assert!(segments().all(|segment| !matches!(segment, "." | "..")), "{path:?}");
                let normal = normalized_path(path);
                assert_eq!(normalized_path(&normal), normal, "normal once, normal for good");
                let names: Vec<_> = query_names(target.query().unwrap_or_default()).collect();
                for parameter in target.query_parameters().filter(|parameter| !parameter.raw.contains(';')) {
                    assert!(names.contains(&parameter.name), "policies see every name: {parameter:?}");
                }
                fuzz::outcome(&(segments().count(), names.len(), normal == path))
            }
        }
    });
}

#[test]
fn fuzz_overriding_fields() {
    // The first byte chooses how the rest is read.
    let seeds: &[&[u8]] = &[
        br#"0{"a":{"_method":"x","b":["}"]},"_method":"DELETE","c":"\\""}"#,
        br#"3{"\u005fmethod":"\u0050UT"}"#,
        br#"0[{"_method":"DELETE"}]"#,
        b"1a=1&_method=DELETE;b=%5f",
        b"2--b\r\nContent-Disposition: form-data; name=\"_method\"\r\n\r\nDELETE\r\n--b--\r\n",
    ];
    fuzz::run("overriding_fields", seeds, |input| {
        let Some((which, input)) = input.split_first() else { return 0 };
        let kind = [FormKind::Json, FormKind::UrlEncoded, FormKind::Multipart][usize::from(which % 3)];
        let read = |pieces: &[&[u8]]| -> Result<Option<String>, FormError> {
            let mut scan = FormScan::new(kind, which % 2 == 0);
            pieces.iter().try_for_each(|piece| scan.push(piece))?;
            scan.finish()?;
            Ok(scan.method().map(ToString::to_string))
        };
        let whole = read(&[input]);
        assert_eq!(whole.is_ok(), read(&fuzz::pieces(input)).is_ok(), "what is found depends on how it comes");
        if kind == FormKind::Json
            && let Ok(object) = serde_json::from_slice::<serde_json::Map<String, serde_json::Value>>(input)
            && object.contains_key("_method")
        {
            assert!(!matches!(whole, Ok(None)), "a member that overrides was not found");
        }
        fuzz::outcome(&(which % 6, format!("{whole:?}")))
    });
}
