//! How a node gets its certificate: with a join token, once; and from then on with the certificate that it has.
//!
//! Served on the distribution listener, the only method there that a caller without a certificate may use.

use std::sync::Arc;

use seks_proto::{
    id::NodeId,
    wire::{self, JoinRequest, JoinResponse, enrolment_server::EnrolmentServer},
};
use tonic::{Request, Response, Status};

use super::{Authority, AuthorityError, Identity, Peer, Request as SigningRequest};
use crate::registry::{Registry, RegistryError};

/// Largest message, in bytes: a token and a signing request.
const MAX_MESSAGE_BYTES: usize = 32 * 1024;

/// The gRPC service.
pub struct Enrolment {
    authority: Arc<Authority>,
    registry: Arc<Registry>,
}

impl Enrolment {
    /// The service, for a tonic server.
    pub fn service(authority: Arc<Authority>, registry: Arc<Registry>) -> EnrolmentServer<Self> {
        EnrolmentServer::new(Self { authority, registry }).max_decoding_message_size(MAX_MESSAGE_BYTES)
    }

    async fn enrol(&self, peer: Option<Peer>, message: &JoinRequest) -> Result<JoinResponse, EnrolError> {
        let request = SigningRequest::parse(&message.csr_der)?; // a token isn't spent on a request that can't be signed
        let (node, region) = if message.join_token.is_empty() {
            match peer {
                Some(Peer { identity: Identity::Node(node), region, .. }) => (node, region),
                _ => return Err(EnrolError::Nobody),
            }
        } else {
            let node = match message.node.as_str() {
                "" => pick_name()?,
                name => name.parse().map_err(|e: seks_proto::id::NameError| EnrolError::Name(e.to_string()))?,
            };
            (node, self.registry.use_join_token(&message.join_token).await?.region)
        };
        let certificate_pem = self.authority.sign_node(&request, &node, &region)?;
        tracing::info!(seks.node = %node, seks.region = region, "node certificate signed");
        Ok(JoinResponse { node: node.to_string(), region, certificate_pem, ca_pem: self.authority.ca_pem() })
    }
}

#[tonic::async_trait]
impl wire::enrolment_server::Enrolment for Enrolment {
    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinResponse>, Status> {
        let peer = Peer::of(request.extensions());
        self.enrol(peer, request.get_ref()).await.map(Response::new).map_err(|error| {
            tracing::warn!(%error, "enrolment refused");
            error.status()
        })
    }
}

fn pick_name() -> Result<NodeId, EnrolError> {
    let id = seks_proto::id::TokenId::generate().map_err(|e| EnrolError::Registry(RegistryError::Random(e)))?;
    let name = id.as_str().replacen("tok-", "node-", 1);
    name.parse().map_err(|e: seks_proto::id::NameError| EnrolError::Name(e.to_string()))
}

#[derive(Debug, thiserror::Error)]
enum EnrolError {
    #[error("a join token is needed, or the certificate of a node that renews it")]
    Nobody,
    #[error("node: {0}")]
    Name(String),
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    #[error(transparent)]
    Registry(#[from] RegistryError),
}

impl EnrolError {
    /// An enrolling node is not trusted yet: it hears what is wrong with its request, and nothing of us.
    fn status(&self) -> Status {
        match self {
            Self::Nobody => Status::unauthenticated(self.to_string()),
            Self::Name(_) | Self::Authority(AuthorityError::Request(_)) => Status::invalid_argument(self.to_string()),
            Self::Registry(RegistryError::JoinRefused) => Status::permission_denied(self.to_string()),
            Self::Registry(RegistryError::Store(_)) => Status::unavailable("the store does not answer"),
            _ => Status::internal("the node can't be enrolled"),
        }
    }
}
