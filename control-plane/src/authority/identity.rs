//! Who a peer is: the one `spiffe://seks/…` URI in its certificate. A common name is no identity.

use std::sync::Arc;

use rustls_pki_types::CertificateDer;
use seks_proto::id::{NodeId, OperatorName};
use tonic::Extensions;
use x509_parser::{
    certificate::X509Certificate,
    extensions::{GeneralName, ParsedExtension},
    oid_registry,
};

use super::sign::BACKDATE;

/// The DNS name in every listener's certificate.
pub const SERVER_NAME: &str = "seks-control-plane";
/// Where a node's certificate has the id of its enrolment: the subject's serialNumber, id-at 5 (X.520, 6.2.9).
pub(super) const ENROLMENT: &[u64] = &[2, 5, 4, 5];
const OPERATOR: &str = "spiffe://seks/operator/";
const NODE: &str = "spiffe://seks/node/";

/// What a certificate's URI says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Identity {
    /// A human or a pipeline.
    Operator(OperatorName),
    /// A proxy.
    Node(NodeId),
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
}

impl Peer {
    /// The peer of a gRPC request; `None` without a certificate or without an identity in it.
    #[must_use]
    pub fn of(extensions: &Extensions) -> Option<Self> {
        type Info = tonic::transport::server::TlsConnectInfo<tonic::transport::server::TcpConnectInfo>;
        let certificates: Arc<Vec<CertificateDer<'static>>> = extensions.get::<Info>()?.peer_certs()?;
        Self::from_certificate(certificates.first()?)
    }

    /// Reads a certificate that has been verified already.
    #[must_use]
    pub fn from_certificate(certificate: &CertificateDer<'_>) -> Option<Self> {
        let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
        let uri = only_uri(&parsed)?;
        let identity = match (uri.strip_prefix(OPERATOR), uri.strip_prefix(NODE)) {
            (Some(name), _) => Identity::Operator(name.parse().ok()?),
            (_, Some(id)) => Identity::Node(id.parse().ok()?),
            _ => return None,
        };
        let enrolment = parsed.subject().iter_by_oid(&oid_registry::OID_X509_SERIALNUMBER).next();
        let enrolment = enrolment.and_then(|e| e.as_str().ok()).unwrap_or_default().to_owned();
        let backdate = i64::try_from(BACKDATE.as_secs()).unwrap_or_default();
        let signed_at = parsed.validity().not_before.timestamp() + backdate;
        Some(Self { identity, enrolment, signed_at })
    }
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

pub(super) fn operator_uri(name: &OperatorName) -> String {
    format!("{OPERATOR}{name}")
}

pub(super) fn node_uri(node: &NodeId) -> String {
    format!("{NODE}{node}")
}
