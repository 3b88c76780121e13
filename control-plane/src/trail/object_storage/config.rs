//! `[audit] object_storage`: where the bucket is, and who may write to it.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use object_store::{
    Certificate, ClientOptions, CredentialProvider, ObjectStore, RetryConfig,
    aws::{AmazonS3Builder, AwsCredential},
};
use serde::Deserialize;
use zeroize::Zeroizing;

use super::Bounds;

/// A request takes this long at most, with all that is sent.
const REQUEST_LIMIT: Duration = Duration::from_secs(60);
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// A request that fails is repeated within this time. Then the trail's own pause follows.
const RETRY_LIMIT: Duration = Duration::from_secs(15);
const RETRIES: usize = 3;
/// Least value of `cache_bytes` and `pending_bytes`: the size of the largest block.
const MIN_BYTES: u64 = 64 << 20;
const ID_VARIABLE: &str = "AWS_ACCESS_KEY_ID";
const SECRET_VARIABLE: &str = "AWS_SECRET_ACCESS_KEY";
const TOKEN_VARIABLE: &str = "AWS_SESSION_TOKEN";

/// An S3-compatible bucket.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ObjectStorageConfig {
    /// The bucket. It must exist.
    pub bucket: String,
    /// What the names of all objects begin with, before the replica's name. Default: `seks-audit`.
    pub prefix: String,
    /// The region that requests are signed for. Default: `us-east-1`.
    pub region: String,
    /// The URL of the server. Default: that of AWS for the region.
    pub endpoint: String,
    /// Whether `endpoint` may be `http://`. Default: no.
    pub allow_plaintext: bool,
    /// The server's CA, in PEM. Default: the machine's.
    pub ca_file: PathBuf,
    /// A JSON file with `access_key_id`, `secret_access_key` and, for temporary keys,
    /// `session_token`. It is read for each request, so it may be replaced while the replica runs.
    /// Default: the variables `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY` and `AWS_SESSION_TOKEN`.
    pub credentials_file: PathBuf,
    /// Bytes of files that stay on the disk beside the bucket. Default: 2 GiB; at least 64 MiB.
    pub cache_bytes: u64,
    /// Bytes of files that may wait for the bucket. Beyond them the replica takes no records, and
    /// they wait in the spools of the nodes. Default: 8 GiB; at least 64 MiB.
    pub pending_bytes: u64,
}

impl Default for ObjectStorageConfig {
    fn default() -> Self {
        Self {
            bucket: String::new(),
            prefix: "seks-audit".into(),
            region: "us-east-1".into(),
            endpoint: String::new(),
            allow_plaintext: false,
            ca_file: PathBuf::new(),
            credentials_file: PathBuf::new(),
            cache_bytes: 2 << 30,
            pending_bytes: 8 << 30,
        }
    }
}

/// Why there is no object storage. No text has a part of a key.
#[derive(Debug, thiserror::Error)]
pub enum ObjectStorageError {
    /// A value of the configuration.
    #[error("{key}: {reason}")]
    Config {
        /// Which.
        key: &'static str,
        /// What is the matter.
        reason: String,
    },
}

fn wrong(key: &'static str, reason: impl Into<String>) -> ObjectStorageError {
    ObjectStorageError::Config { key, reason: reason.into() }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Credentials {
    access_key_id: String,
    secret_access_key: String,
    #[serde(default)]
    session_token: Option<String>,
}

impl ObjectStorageConfig {
    /// Whether the values are within bounds. Reads no file.
    ///
    /// # Errors
    /// [`ObjectStorageError::Config`] names the key.
    pub fn check(&self) -> Result<(), ObjectStorageError> {
        let is_plain =
            |text: &str| text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_'));
        if self.bucket.is_empty() || !is_plain(&self.bucket) {
            return Err(wrong("bucket", "the name of a bucket: letters, digits, `-`, `.` and `_`"));
        }
        if !is_plain(&self.prefix) {
            return Err(wrong("prefix", "letters, digits, `-`, `.` and `_`"));
        }
        if self.region.is_empty() || !is_plain(&self.region) {
            return Err(wrong("region", "the name of a region, such as `eu-central-1`"));
        }
        let is_https = self.endpoint.is_empty() || self.endpoint.starts_with("https://");
        if !is_https && !self.endpoint.starts_with("http://") {
            return Err(wrong("endpoint", "a URL, such as `https://s3.example.com`"));
        }
        if !is_https && !self.allow_plaintext {
            return Err(wrong("endpoint", "`http://` needs allow_plaintext = true"));
        }
        if self.endpoint.contains('@') {
            return Err(wrong("endpoint", "a URL without a user: name credentials_file instead"));
        }
        for (key, bytes) in [("cache_bytes", self.cache_bytes), ("pending_bytes", self.pending_bytes)] {
            if bytes < MIN_BYTES {
                return Err(wrong(key, "at least 64 MiB, in bytes"));
            }
        }
        Ok(())
    }

    /// The bounds of one directory.
    #[must_use]
    pub fn bounds(&self) -> Bounds {
        Bounds { cache_bytes: self.cache_bytes, pending_bytes: self.pending_bytes }
    }

    /// A client of the server. Sends nothing.
    pub(super) fn connect(&self) -> Result<Arc<dyn ObjectStore>, ObjectStorageError> {
        self.check()?;
        let credentials = self.credentials()?;
        let mut options = ClientOptions::new()
            .with_timeout(REQUEST_LIMIT)
            .with_connect_timeout(CONNECT_LIMIT)
            .with_allow_http(self.allow_plaintext);
        if !self.ca_file.as_os_str().is_empty() {
            let file = self.ca_file.display();
            let pem = fs::read(&self.ca_file).map_err(|error| wrong("ca_file", format!("`{file}`: {error}")))?;
            let certificates = Certificate::from_pem_bundle(&pem);
            let certificates = certificates.ok().filter(|certificates| !certificates.is_empty());
            let certificates =
                certificates.ok_or_else(|| wrong("ca_file", format!("`{file}`: no certificate in PEM")))?;
            options = certificates.into_iter().fold(options, ClientOptions::with_root_certificate);
        }
        let retry = RetryConfig { max_retries: RETRIES, retry_timeout: RETRY_LIMIT, ..RetryConfig::default() };
        let mut builder = AmazonS3Builder::new()
            .with_bucket_name(&self.bucket)
            .with_region(&self.region)
            .with_credentials(credentials)
            .with_client_options(options)
            .with_allow_http(self.allow_plaintext)
            .with_retry(retry);
        if !self.endpoint.is_empty() {
            builder = builder.with_endpoint(self.endpoint.trim_end_matches('/'));
        }
        let store = builder.build().map_err(|error| wrong("endpoint", error.to_string()))?;
        Ok(Arc::new(store))
    }

    fn credentials(&self) -> Result<Arc<dyn CredentialProvider<Credential = AwsCredential>>, ObjectStorageError> {
        if self.credentials_file.as_os_str().is_empty() {
            let variable = |name: &str| env::var(name).ok().filter(|value| !value.is_empty());
            let (Some(key_id), Some(secret_key)) = (variable(ID_VARIABLE), variable(SECRET_VARIABLE)) else {
                let reason = format!("name a file, or set {ID_VARIABLE} and {SECRET_VARIABLE}");
                return Err(wrong("credentials_file", reason));
            };
            let credential = AwsCredential { key_id, secret_key, token: variable(TOKEN_VARIABLE) };
            return Ok(Arc::new(object_store::StaticCredentialProvider::new(credential)));
        }
        let file = CredentialsFile(self.credentials_file.clone());
        file.read()?;
        Ok(Arc::new(file))
    }
}

/// Reads the credentials for each request.
#[derive(Debug)]
struct CredentialsFile(PathBuf);

type ReadCredential<'a> = Pin<Box<dyn Future<Output = object_store::Result<Arc<AwsCredential>>> + Send + 'a>>;

impl CredentialsFile {
    fn read(&self) -> Result<AwsCredential, ObjectStorageError> {
        let path: &Path = &self.0;
        let file = path.display();
        let text = fs::read(path).map(Zeroizing::new);
        let text = text.map_err(|error| wrong("credentials_file", format!("`{file}`: {error}")))?;
        // The text of serde's error could contain a part of the file.
        let Credentials { access_key_id, secret_access_key, session_token } =
            serde_json::from_slice(&text).map_err(|_| {
                wrong("credentials_file", format!("`{file}`: not JSON with `access_key_id` and `secret_access_key`"))
            })?;
        Ok(AwsCredential { key_id: access_key_id, secret_key: secret_access_key, token: session_token })
    }
}

impl CredentialProvider for CredentialsFile {
    type Credential = AwsCredential;

    fn get_credential<'a, 'b>(&'a self) -> ReadCredential<'b>
    where
        'a: 'b,
        Self: 'b,
    {
        let read = self.read().map(Arc::new);
        let failed = |error| object_store::Error::Generic { store: "S3", source: Box::new(io::Error::other(error)) };
        Box::pin(std::future::ready(read.map_err(failed)))
    }
}
