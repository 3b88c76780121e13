//! Who a peer is: the one `spiffe://TRUST_DOMAIN/…` URI in its certificate. A common name is no
//! identity.

use std::{sync::Arc, time::Duration};

use rustls_pki_types::CertificateDer;
use seks_types::id::{NodeId, OperatorName};
use tonic::Extensions;
use x509_parser::{
    certificate::X509Certificate,
    extensions::{GeneralName, ParsedExtension},
    oid_registry,
};

use super::{AuthorityConfig, AuthorityError, MeshConfig, external};
use crate::clock::unix_now;

/// The DNS name in every listener's certificate.
pub const SERVER_NAME: &str = "seks-control-plane";
/// Where a node's certificate has the id of its enrolment: the subject's serialNumber, id-at 5
/// (X.520, 6.2.9).
pub(super) const ENROLMENT: &[u64] = &[2, 5, 4, 5];
/// A certificate begins this long before it is signed, for clocks that are behind.
pub(super) const BACKDATE: Duration = Duration::from_secs(60);
/// A SPIFFE ID is never longer, in bytes (SPIFFE-ID 2.3).
const MAX_ID_BYTES: usize = 2048;

/// What a certificate's URI says.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Identity {
    /// A human or a pipeline.
    Operator(OperatorName),
    /// A proxy that enrolled with us.
    Node(NodeId),
    /// A workload of the mesh, by its SPIFFE ID: the node whose record names it.
    Workload(String),
}

/// A peer whose certificate the TLS layer has verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Who.
    pub identity: Identity,
    /// Of which enrolment, for a node; may be empty.
    pub enrolment: String,
    /// When its certificate was signed, in unix seconds.
    pub signed_at: i64,
    /// When its certificate ends, in Unix seconds. A connection may outlive its certificate, and
    /// calls on it are then refused.
    pub expires_at: i64,
}

impl Peer {
    /// Whether its certificate has ended by now, on this machine's wall clock.
    #[must_use]
    pub fn is_expired(&self) -> bool {
        unix_now() >= self.expires_at
    }
}

/// A service mesh whose certificates (SVIDs) nodes may show instead of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mesh {
    /// Its trust domain: what it signs counts for names in there, and nothing else does.
    pub trust_domain: String,
    /// Its CAs.
    pub bundle: Vec<CertificateDer<'static>>,
}

/// How certificates are read: the trust domains, and what their names mean.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identities {
    trust_domain: String,
    mesh: Option<Arc<Mesh>>,
}

impl Default for Identities {
    fn default() -> Self {
        Self { trust_domain: AuthorityConfig::default().trust_domain, mesh: None }
    }
}

impl Identities {
    /// As `[authority]` says.
    ///
    /// # Errors
    /// A trust domain that can't be one, a bundle that can't be read.
    pub(super) fn new(config: &AuthorityConfig) -> Result<Self, AuthorityError> {
        let refused =
            |key| AuthorityError::Config { key, reason: "a trust domain is 1 to 255 of a-z, 0-9, `.`, `-` and `_`" };
        if !is_trust_domain(&config.trust_domain) {
            return Err(refused("trust_domain"));
        }
        let MeshConfig { trust_domain, bundle_file } = &config.mesh;
        let mesh = match (trust_domain.is_empty(), bundle_file.as_os_str().is_empty()) {
            (true, true) => None,
            (false, false) if !is_trust_domain(trust_domain) => return Err(refused("mesh.trust_domain")),
            (false, false) if *trust_domain == config.trust_domain => {
                let reason = "is our own: a mesh that names our trust domain could name our operators";
                return Err(AuthorityError::Config { key: "mesh.trust_domain", reason });
            }
            (false, false) => {
                let bundle = external::certificates("mesh.bundle_file", bundle_file)?;
                Some(Arc::new(Mesh { trust_domain: trust_domain.clone(), bundle }))
            }
            (true, false) => {
                return Err(AuthorityError::Config {
                    key: "mesh.trust_domain",
                    reason: "is missing beside bundle_file",
                });
            }
            (false, true) => {
                return Err(AuthorityError::Config {
                    key: "mesh.bundle_file",
                    reason: "is missing beside trust_domain",
                });
            }
        };
        Ok(Self { trust_domain: config.trust_domain.clone(), mesh })
    }

    /// The mesh, if there is one.
    #[must_use]
    pub fn mesh(&self) -> Option<&Arc<Mesh>> {
        self.mesh.as_ref()
    }

    /// The peer of a gRPC request; `None` without a certificate or without an identity in it. A
    /// [`Peer`] among the extensions was put there by this process, which has verified it: no
    /// client of a listener can.
    #[must_use]
    pub fn of(&self, extensions: &Extensions) -> Option<Peer> {
        if let Some(peer) = extensions.get::<Peer>() {
            return Some(peer.clone());
        }
        type Info = tonic::transport::server::TlsConnectInfo<tonic::transport::server::TcpConnectInfo>;
        let certificates: Arc<Vec<CertificateDer<'static>>> = extensions.get::<Info>()?.peer_certs()?;
        self.read(certificates.first()?)
    }

    /// Reads a certificate that has been verified already, by the CAs of its trust domain.
    #[must_use]
    pub fn read(&self, certificate: &CertificateDer<'_>) -> Option<Peer> {
        let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
        let uri = only_uri(&parsed)?;
        let (trust_domain, path) = split(uri)?;
        let (identity, enrolment) = if trust_domain == self.trust_domain {
            let enrolment = parsed.subject().iter_by_oid(&oid_registry::OID_X509_SERIALNUMBER).next();
            let enrolment = enrolment.and_then(|e| e.as_str().ok()).unwrap_or_default().to_owned();
            match path.split_once('/')? {
                ("operator", name) => (Identity::Operator(name.parse().ok()?), enrolment),
                ("node", id) => (Identity::Node(id.parse().ok()?), enrolment),
                _ => return None,
            }
        } else if self.mesh.as_ref().is_some_and(|mesh| mesh.trust_domain == trust_domain) {
            (Identity::Workload(uri.to_owned()), uri.to_owned())
        } else {
            return None;
        };
        let backdate = i64::try_from(BACKDATE.as_secs()).unwrap_or_default();
        let signed_at = parsed.validity().not_before.timestamp() + backdate;
        let expires_at = parsed.validity().not_after.timestamp();
        Some(Peer { identity, enrolment, signed_at, expires_at })
    }

    pub(super) fn operator_uri(&self, name: &OperatorName) -> String {
        format!("spiffe://{}/operator/{name}", self.trust_domain)
    }

    pub(super) fn node_uri(&self, node: &NodeId) -> String {
        format!("spiffe://{}/node/{node}", self.trust_domain)
    }

    /// Whether `id` is a SPIFFE ID of the mesh.
    #[must_use]
    pub fn is_workload(&self, id: &str) -> bool {
        let of_mesh = |domain| self.mesh.as_ref().is_some_and(|mesh| mesh.trust_domain == domain);
        split(id).is_some_and(|(domain, _)| of_mesh(domain))
    }
}

/// The trust domain in a certificate that hasn't been verified yet: which CAs have to vouch for it.
#[must_use]
pub fn claimed_trust_domain(certificate: &CertificateDer<'_>) -> Option<String> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    Some(split(only_uri(&parsed)?)?.0.to_owned())
}

/// Trust domain and path of a SPIFFE ID (SPIFFE-ID 2): neither is empty, and no segment is, or is
/// `.` or `..`.
fn split(id: &str) -> Option<(&str, &str)> {
    let (trust_domain, path) = id.strip_prefix("spiffe://").filter(|_| id.len() <= MAX_ID_BYTES)?.split_once('/')?;
    let plain = |s: &str| s.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'));
    let segment = |s: &str| !s.is_empty() && s != "." && s != ".." && plain(s);
    (is_trust_domain(trust_domain) && path.split('/').all(segment)).then_some((trust_domain, path))
}

fn is_trust_domain(name: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'_');
    (1..=255).contains(&name.len()) && name.bytes().all(allowed)
}

/// The only URI among the names; two of them are one too many to know who this is.
fn only_uri<'a>(certificate: &'a X509Certificate<'_>) -> Option<&'a str> {
    let names = certificate.extensions().iter().find_map(|e| match e.parsed_extension() {
        ParsedExtension::SubjectAlternativeName(names) => Some(&names.general_names),
        _ => None,
    })?;
    let mut uris = names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    });
    match (uris.next(), uris.next()) {
        (Some(uri), None) => Some(uri),
        _ => None,
    }
}
