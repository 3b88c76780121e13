//! How a node gets its identity: with a one-time join token `seks_join_ID.SECRET.CAPIN`. The
//! token's last part is the SHA-256 of the CA's public key. The node sends the secret only to a
//! peer with a certificate of that CA.

mod pin;

use std::{path::PathBuf, sync::Arc, time::Duration};

use seks_proto::wire::{JoinRequest, JoinResponse, enrolment_client::EnrolmentClient};
use tokio::time::{sleep, timeout};
use tonic::{
    Code,
    transport::{Certificate, Channel, ClientTlsConfig},
};
use zeroize::Zeroizing;

pub(super) use self::pin::Pin;
use super::{
    Identity, IdentityError,
    backoff::Backoff,
    channel::{self, SERVER_NAME, chain, endpoint},
};
use crate::table::WallClock;

/// Longest wait for an answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// What a node needs to enrol.
#[derive(Clone, Debug)]
pub struct EnrolConfig {
    /// Control planes (`https://host:port`), nearest first.
    pub endpoints: Vec<String>,
    /// As [`SyncConfig::roots_pem`](super::SyncConfig::roots_pem).
    pub roots_pem: String,
    /// The name to ask for; empty: the control plane picks one.
    pub node: String,
    /// Where the identity is kept.
    pub data_dir: PathBuf,
    /// A file that holds the join token; needed while there is no identity.
    pub join_token_file: Option<PathBuf>,
}

/// Why a node has no identity.
#[derive(Debug, thiserror::Error)]
pub enum EnrolError {
    /// What is in the data directory.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// There is no identity, and no token to get one with.
    #[error("control.join_token_file: is missing, and `{0}` holds no identity: `seks node enroll` makes a token")]
    NoToken(PathBuf),
    /// The token can't be read.
    #[error("control.join_token_file: `{path}`: {source}")]
    TokenFile {
        /// The file.
        path: PathBuf,
        /// What the operating system says.
        source: std::io::Error,
    },
    /// It isn't a join token.
    #[error("control.join_token_file: not a join token (`seks_join_ID.SECRET.PIN`)")]
    TokenForm,
    /// The identity that is there is another node's.
    #[error("node.name: is `{wanted}`, but `{data_dir}` holds the identity of `{found}`")]
    OtherNode {
        /// In the configuration.
        wanted: String,
        /// In the data directory.
        found: String,
        /// The data directory.
        data_dir: PathBuf,
    },
    /// The certificate has ended, and there is no token to get another with.
    #[error(
        "the certificate of node `{node}` in `{data_dir}` has ended: revoke the node and let it enrol again with a new join token"
    )]
    Expired {
        /// The node's name.
        node: String,
        /// The data directory.
        data_dir: PathBuf,
    },
    /// Who answers is no control plane of the CA that the join token names, or `ca_file`.
    #[error("`{0}` is not the control plane that the join token is for: its certificate is of another CA")]
    OtherCa(String),
    /// A control plane has looked at the request and refused it.
    #[error("the control plane refuses: {0}")]
    Refused(String),
    /// No endpoint could prove that it is the control plane.
    #[error("no control plane can be reached: {0}")]
    Unreachable(String),
    /// The response does not match the request.
    #[error("the control plane's answer is not acceptable: {0}")]
    Answer(&'static str),
    /// A key can't be made.
    #[error("cannot make a key: {0}")]
    Key(#[from] rcgen::Error),
}

/// The identity in the data directory, or a new one by the join token. Tries until a control plane
/// answers.
///
/// # Errors
/// Whatever waiting doesn't mend.
pub async fn obtain(config: &EnrolConfig) -> Result<Identity, EnrolError> {
    let (wanted, data_dir) = (&config.node, config.data_dir.clone());
    if let Some(identity) = Identity::load(&data_dir)? {
        if !wanted.is_empty() && identity.node() != wanted {
            return Err(EnrolError::OtherNode { wanted: wanted.clone(), found: identity.node().into(), data_dir });
        }
        if !identity.has_ended(WallClock::machine_now()) {
            return Ok(identity);
        }
        // Off for longer than its certificate was good for: only a new join token helps.
        if config.join_token_file.as_ref().is_none_or(|token| !token.exists()) {
            return Err(EnrolError::Expired { node: identity.node().into(), data_dir });
        }
        tracing::warn!(seks.node = identity.node(), "the certificate has ended; enrolling anew");
    }
    let path = config.join_token_file.clone().ok_or(EnrolError::NoToken(data_dir))?;
    let token = std::fs::read_to_string(&path).map_err(|source| EnrolError::TokenFile { path, source })?;
    let token = Zeroizing::new(token);
    let (mut backoff, key) = (Backoff::default(), request()?);
    loop {
        match enrol(config, token.trim(), &key).await {
            Err(EnrolError::Unreachable(reason)) => {
                tracing::warn!(reason, "no control plane can be reached; trying on")
            }
            done => return done,
        }
        sleep(backoff.next()).await;
    }
}

/// Enrols with `token`, trying each endpoint once, and keeps the identity. The key is the same for
/// all tries: should an answer be lost, the control plane knows by it that the node which asks
/// again is the one that has used the token up.
async fn enrol(
    config: &EnrolConfig,
    token: &str,
    (csr_der, key_pem): &(Vec<u8>, Zeroizing<String>),
) -> Result<Identity, EnrolError> {
    let pin = Pin::of_token(token).ok_or(EnrolError::TokenForm)?;
    let mut last = EnrolError::Unreachable("no endpoint is configured".into());
    for endpoint in &config.endpoints {
        let request = JoinRequest { join_token: token.into(), node: config.node.clone(), csr_der: csr_der.clone() };
        match join(endpoint, &config.roots_pem, pin, request).await {
            Ok(answer) => return accept(config, pin, answer, key_pem.clone()),
            Err(refused @ EnrolError::Refused(_)) => return Err(refused),
            Err(other) => last = other,
        }
    }
    Err(last)
}

/// A key that never leaves this machine, and a signing request for it.
pub(super) fn request() -> Result<(Vec<u8>, Zeroizing<String>), rcgen::Error> {
    let key = rcgen::KeyPair::generate()?;
    let request = rcgen::CertificateParams::default().serialize_request(&key)?;
    Ok((request.der().to_vec(), Zeroizing::new(key.serialize_pem())))
}

async fn join(uri: &str, roots_pem: &str, pin: Pin, request: JoinRequest) -> Result<JoinResponse, EnrolError> {
    let channel = connect(uri, roots_pem, pin).await.map_err(|error| match error {
        EnrolError::Unreachable(reason) if reason.contains("invalid peer certificate") => {
            EnrolError::OtherCa(uri.into())
        }
        other => other,
    })?;
    let answer = timeout(ANSWER_LIMIT, EnrolmentClient::new(channel).join(request)).await;
    match answer {
        Ok(Ok(answer)) => Ok(answer.into_inner()),
        Ok(Err(status)) => Err(match status.code() {
            Code::PermissionDenied | Code::InvalidArgument | Code::Unauthenticated | Code::AlreadyExists => {
                EnrolError::Refused(status.message().to_owned())
            }
            _ => EnrolError::Unreachable(chain(&status)),
        }),
        Err(_) => Err(EnrolError::Unreachable(format!("`{uri}` does not answer"))),
    }
}

async fn connect(uri: &str, roots_pem: &str, pin: Pin) -> Result<Channel, EnrolError> {
    let failed = |reason: String| EnrolError::Unreachable(reason);
    let endpoint = endpoint(uri).map_err(|e| failed(e.to_string()))?;
    let tls = ClientTlsConfig::new();
    let secured = if roots_pem.is_empty() {
        endpoint.tls_config_with_verifier(tls.domain_name(SERVER_NAME), Arc::new(pin))
    } else {
        endpoint.tls_config(tls.ca_certificate(Certificate::from_pem(roots_pem)))
    };
    let endpoint = secured.map_err(|e| failed(chain(&e)))?;
    channel::connect(endpoint).await.map_err(failed)
}

fn accept(
    config: &EnrolConfig,
    pin: Pin,
    answer: JoinResponse,
    key_pem: Zeroizing<String>,
) -> Result<Identity, EnrolError> {
    let JoinResponse { node, region, certificate_pem, ca_pem } = answer;
    if !pin.matches_pem(&ca_pem) {
        return Err(EnrolError::Answer("its CA is not the one that the join token names"));
    }
    let name = node.parse().map_err(|_| EnrolError::Answer("it names no node"))?;
    if !config.node.is_empty() && config.node != node {
        return Err(EnrolError::Answer("it is for another node"));
    }
    let mut identity = Identity::new(&name, region, certificate_pem, key_pem, ca_pem);
    identity.save(&config.data_dir)?;
    tracing::info!(seks.node = node, region = identity.region(), "enrolled");
    Ok(identity)
}
