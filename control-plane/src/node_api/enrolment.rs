//! How a node gets its certificate: with a join token, once; and from then on with the certificate
//! that it has.
//!
//! Served on the distribution listener, the only method there that a caller without a certificate
//! may use.

use std::{
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
    time::Duration,
};

use seks_proto::wire::{self, JoinRequest, JoinResponse, enrolment_server::EnrolmentServer};
use seks_types::id::NodeId;
use tonic::{
    Extensions, Request, Response, Status,
    transport::server::{TcpConnectInfo, TlsConnectInfo},
};

use crate::{
    authority::{Authority, AuthorityError, Identity, Peer, Request as SigningRequest},
    rate::{Rate, RateLimits, Repeated},
    registry::{Actor, Joining, Registry, RegistryError},
};

/// Largest message, in bytes: a token and a signing request.
const MAX_MESSAGE_BYTES: usize = 32 * 1024;

/// Wrong tokens that one source may present before it is refused without a look.
const FAILURES: Rate = Rate { per_second: 1.0, burst: 30.0 };
/// How often the log speaks of refusals.
const WARN_EVERY: Duration = Duration::from_secs(60);

/// The gRPC service.
pub struct Enrolment {
    authority: Arc<Authority>,
    registry: Arc<Registry>,
    /// Attempts with a token that isn't good, by source.
    failures: RateLimits<Option<IpAddr>>,
    /// Refusals, for the log.
    refused: Repeated,
}

impl Enrolment {
    /// The service, for a tonic server.
    pub fn service(authority: Arc<Authority>, registry: Arc<Registry>) -> EnrolmentServer<Self> {
        let (failures, refused) = (RateLimits::default(), Repeated::new(WARN_EVERY));
        EnrolmentServer::new(Self { authority, registry, failures, refused })
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
    }

    async fn enrol(&self, peer: Option<Peer>, message: &JoinRequest) -> Result<JoinResponse, EnrolError> {
        if !message.join_token.is_empty() {
            self.registry.check_join_token(&message.join_token).await?; // before anything that costs more
        }
        let request = SigningRequest::parse(&message.csr_der)?; // a token isn't spent on a request that can't be signed
        let node = if message.join_token.is_empty() {
            self.renewing(peer).await?
        } else {
            let name = match message.node.as_str() {
                "" => None,
                name => Some(name.parse().map_err(|e: seks_types::id::NameError| EnrolError::Name(e.to_string()))?),
            };
            let joining = Joining { token: &message.join_token, node: name, key_sha256: request.key_sha256() };
            let actor = Actor { verb: "Join".into(), ..Actor::default() };
            actor.run(self.registry.enrol(&joining)).await?
        };
        let id: NodeId = node.id.parse().map_err(|e: seks_types::id::NameError| EnrolError::Name(e.to_string()))?;
        let certificate_pem = self.authority.sign_node(&request, &id, &node.enrolment)?;
        let (node, region) = (node.id, node.region);
        tracing::info!(seks.node = node, seks.region = region, "node certificate signed");
        Ok(JoinResponse { node, region, certificate_pem, ca_pem: self.authority.ca_pem() })
    }

    /// The node that shows its certificate, if it is still of the fleet. Nothing is written: this
    /// works while the store is full.
    async fn renewing(&self, peer: Option<Peer>) -> Result<wire::Node, EnrolError> {
        let Some(Peer { identity: Identity::Node(id), enrolment, .. }) = peer.filter(|peer| !peer.is_expired()) else {
            return Err(EnrolError::Nobody);
        };
        let node = self.registry.node(&id).await?.filter(|node| node.enrolment == enrolment);
        node.ok_or(EnrolError::Revoked(id))
    }
}

#[tonic::async_trait]
impl wire::enrolment_server::Enrolment for Enrolment {
    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinResponse>, Status> {
        let peer = self.authority.identities().of(request.extensions());
        // Only attempts that fail count: a fleet behind one address may enrol at once.
        let source = source(request.extensions());
        if self.failures.peek(&source, FAILURES).is_err() {
            return Err(self.refuse(&EnrolError::TooMany));
        }
        self.enrol(peer, request.get_ref()).await.map(Response::new).map_err(|error| {
            if error.is_a_guess() {
                let _ = self.failures.try_acquire(&source, FAILURES); // it had one: it was looked at
            }
            self.refuse(&error)
        })
    }
}

impl Enrolment {
    /// Any client can cause a refusal, so the log has one line for many of them.
    fn refuse(&self, error: &EnrolError) -> Status {
        tracing::debug!(%error, "enrolment refused");
        if let Some(count) = self.refused.count() {
            tracing::warn!(%error, count, "enrolment refused: `count` attempts since the last such line, this one included");
        }
        error.status()
    }
}

/// Where a call comes from: an IPv4 address, or the /64 that one subscriber has of IPv6.
fn source(extensions: &Extensions) -> Option<IpAddr> {
    type Info = TlsConnectInfo<TcpConnectInfo>;
    let address = extensions.get::<Info>()?.get_ref().remote_addr()?.ip();
    Some(match address.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into(),
    })
}

#[derive(Debug, thiserror::Error)]
enum EnrolError {
    #[error("a join token is needed, or the certificate of a node that renews it")]
    Nobody,
    #[error("node `{0}` is not of the fleet: it was revoked, or enrolled anew")]
    Revoked(NodeId),
    #[error("too many attempts from this address: try again later")]
    TooMany,
    #[error("node: {0}")]
    Name(String),
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    #[error(transparent)]
    Registry(#[from] RegistryError),
}

impl EnrolError {
    /// Whether it may have been an attempt to find a token.
    fn is_a_guess(&self) -> bool {
        matches!(self, Self::Nobody | Self::Registry(RegistryError::JoinRefused))
    }

    /// An enrolling node is not trusted yet: it hears what is wrong with its request, and nothing
    /// of us.
    fn status(&self) -> Status {
        match self {
            Self::Nobody => Status::unauthenticated(self.to_string()),
            Self::TooMany => Status::resource_exhausted(self.to_string()),
            Self::Name(_) | Self::Authority(AuthorityError::Request(_)) => Status::invalid_argument(self.to_string()),
            Self::Registry(RegistryError::JoinRefused) | Self::Revoked(_) => {
                Status::permission_denied(self.to_string())
            }
            Self::Registry(RegistryError::NodeExists(node)) => {
                Status::already_exists(format!("{self}: take another name, or `seks node revoke {node}` first"))
            }
            Self::Registry(RegistryError::Store(_)) => Status::unavailable("the store does not answer"),
            _ => Status::internal("the node can't be enrolled"),
        }
    }
}
