//! Headers by which a request reads another object than the one in its path: server-side copies of
//! object stores.

use super::Service;

/// What the value of such a header is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopySource {
    /// `BUCKET/KEY`, percent-encoded, as S3 and the stores with its protocol take it. Policies are
    /// decided on that path too.
    Object,
    /// A URL, a path below an account, or a host and a path. Policies cannot be decided on it, so
    /// it needs the service's `pass_headers`.
    Undecided,
}

/// In order. Beside S3 and its kind: Azure Blob and Data Lake, Tencent COS, Swift (also its links
/// and manifests), UpYun.
const SOURCES: &[(&str, CopySource)] = &[
    ("x-amz-copy-source", CopySource::Object),
    ("x-amz-rename-source", CopySource::Undecided),
    ("x-bce-copy-source", CopySource::Object),
    ("x-copy-from", CopySource::Undecided),
    ("x-copy-from-account", CopySource::Undecided),
    ("x-cos-copy-source", CopySource::Undecided),
    ("x-goog-copy-source", CopySource::Object),
    ("x-ms-copy-source", CopySource::Undecided),
    ("x-ms-rename-source", CopySource::Undecided),
    ("x-object-manifest", CopySource::Undecided),
    ("x-obs-copy-source", CopySource::Object),
    ("x-oss-copy-source", CopySource::Object),
    ("x-oss-symlink-target", CopySource::Undecided),
    ("x-symlink-target", CopySource::Undecided),
    ("x-symlink-target-account", CopySource::Undecided),
    ("x-tos-copy-source", CopySource::Object),
    ("x-upyun-copy-source", CopySource::Undecided),
    ("x-upyun-move-source", CopySource::Undecided),
];

/// Parts of hosts whose first labels are a bucket.
const BUCKET_HOSTS: &[&str] = &[".s3", ".storage.googleapis.com", ".oss-", ".obs.", ".tos-", ".bcebos.com"];

impl CopySource {
    /// Of a header's name in lower case.
    #[must_use]
    pub fn of_header(name: &str) -> Option<Self> {
        let at = SOURCES.binary_search_by_key(&name, |(name, _)| name).ok()?;
        SOURCES.get(at).map(|(_, kind)| *kind)
    }
}

/// Path and query of the object that a [`CopySource::Object`] names, as a request for it would
/// write them.
///
/// # Errors
/// What is wrong with it, if it cannot be told which path of this service is read.
pub fn copied_object(service: &Service, value: &str) -> Result<String, &'static str> {
    const FORM: &str = "the copy source must be `/BUCKET/KEY`, with at most one `?versionId=` behind it";
    if value.contains('+') {
        return Err("the copy source holds a `+`: write `%20` for a space and `%2B` for a plus sign");
    }
    let (path, version) = value.split_once('?').map_or((value, None), |(path, version)| (path, Some(version)));
    if version.is_some_and(|version| !version.starts_with("versionId=") || version.contains(['?', '&', ';'])) {
        return Err(FORM);
    }
    // Stores decode the whole value first: `%2F` separates like `/`.
    let path = path.replace("%2F", "/").replace("%2f", "/");
    let path = path.strip_prefix('/').unwrap_or(&path);
    let (bucket, key) =
        path.split_once('/').filter(|(bucket, key)| !bucket.is_empty() && !key.is_empty()).ok_or(FORM)?;
    if !bucket.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_')) {
        return Err("the copy source must name a bucket: ARNs and aliases are not decided on");
    }
    let host = service.upstream.host();
    let path = match host.strip_prefix(bucket) {
        Some(rest) if rest.starts_with('.') => format!("/{key}"),
        _ if BUCKET_HOSTS.iter().any(|part| host.contains(part)) => {
            return Err("the copy source is in another bucket than the service's");
        }
        _ => format!("/{bucket}/{key}"),
    };
    let base = service.base_path.as_str();
    if path.strip_prefix(base).is_none_or(|rest| !base.is_empty() && !rest.starts_with('/')) {
        return Err("the copy source is outside of the service's `base_path`");
    }
    Ok(match version {
        Some(version) => format!("{path}?{version}"),
        None => path,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    fn read(upstream: &str, base_path: &str, value: &str) -> Result<String, &'static str> {
        let sites = vec![crate::tests::header("Authorization", "Bearer {key}")];
        let wire = seks_proto::wire::Service {
            tenant: "default".into(),
            name: "store".into(),
            upstream: upstream.into(),
            base_path: base_path.into(),
            fields: vec!["key".into()],
            injection: Some(seks_proto::wire::Injection { sites, ..Default::default() }),
            slots: vec![crate::tests::slot(seks_proto::wire::token_slot::At::Scheme("Bearer".into()))],
            ..Default::default()
        };
        let service = Service::try_from(&wire).unwrap();
        copied_object(&service, value)
    }

    #[test]
    fn a_copy_source_is_read_as_the_path_of_the_object() {
        assert!(SOURCES.is_sorted_by_key(|(name, _)| name));
        assert_eq!(CopySource::of_header("x-amz-copy-source"), Some(CopySource::Object));
        assert_eq!(CopySource::of_header("x-amz-copy-source-range"), None);
        let path_style = "https://s3.eu-west-1.amazonaws.com";
        for (value, path) in [
            ("/b/k", "/b/k"),
            ("b/k%20x/y", "/b/k%20x/y"),
            ("b%2Fsecret%2fk", "/b/secret/k"),
            ("%2Fb/k", "/b/k"),
            ("b/%252E%252E/k", "/b/%252E%252E/k"),
            ("b/k?versionId=3HL4", "/b/k?versionId=3HL4"),
        ] {
            assert_eq!(read(path_style, "", value).unwrap(), path);
        }
        let own = "https://mine.s3.eu-west-1.amazonaws.com";
        assert_eq!(read(own, "", "mine/k").unwrap(), "/k");
        assert_eq!(read("https://store.test", "/mine", "mine/k").unwrap(), "/mine/k");
        let no_path = [
            (path_style, "", "k"),
            (path_style, "", "b/"),
            (path_style, "", "b/a+b"),
            (path_style, "", "b/k?x=1"),
            (path_style, "", "b/k?versionId=1?versionId=2"),
            (path_style, "", "arn:aws:s3:eu-west-1:1:accesspoint/a/object/k"),
            (path_style, "", "https://other.test/k"),
            (own, "", "other/k"),
            ("https://store.test", "/mine", "mine2/k"),
        ];
        for (upstream, base_path, value) in no_path {
            assert!(read(upstream, base_path, value).is_err(), "{value}");
        }
    }
}
