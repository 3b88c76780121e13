//! The programs that hosts run: a replica of the control plane, a node.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use seks_control_plane::{
    Distribution, DistributionOptions,
    authority::{Identity as PeerIdentity, Peer},
    registry::Registry,
    seal::Sealer,
    store::Store,
};
use seks_data_plane::{
    sync::{Identity, Sync, SyncConfig},
    table::Table,
};
use seks_types::id::NodeId;
use tokio_stream::{StreamExt as _, wrappers::UnboundedReceiverStream};
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Connected;

use crate::network::{HostId, Incoming, Socket};

/// Of every node.
pub(crate) const ENROLMENT: &str = "first";

/// A replica, from when it serves.
pub(crate) type Serving = Arc<Mutex<Option<(Distribution, Arc<Registry>)>>>;

/// A connection whose other end's certificate would have been checked by now.
struct Checked(Socket, Peer);

impl Connected for Checked {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.1.clone()
    }
}

impl tokio::io::AsyncRead for Checked {
    fn poll_read(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        buffer: &mut tokio::io::ReadBuf<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::pin::Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl tokio::io::AsyncWrite for Checked {
    fn poll_write(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        bytes: &[u8],
    ) -> std::task::Poll<std::io::Result<usize>> {
        std::pin::Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::pin::Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::pin::Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

/// The name of the node on a host.
pub(crate) fn node_id(host: HostId) -> NodeId {
    format!("node-{host}").parse().unwrap()
}

/// Who shows which node's certificate.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Certificates {
    /// A machine, and the one that it was cloned from.
    pub(crate) clone: Option<(HostId, HostId)>,
}

impl Certificates {
    /// Whose certificate `host` has.
    pub(crate) fn of(self, host: HostId) -> HostId {
        self.clone.filter(|(clone, _)| *clone == host).map_or(host, |(_, original)| original)
    }
}

fn peer(host: HostId) -> Peer {
    Peer {
        identity: PeerIdentity::Node(node_id(host)),
        enrolment: ENROLMENT.into(),
        signed_at: 0,
        expires_at: i64::MAX,
    }
}

/// Runs a replica.
pub(crate) async fn replica(
    name: String,
    store: Arc<dyn Store>,
    sealer: Arc<Sealer>,
    lease: Duration,
    (incoming, certificates): (Incoming, Certificates),
    serving: Serving,
) {
    let options = DistributionOptions { replica: name, lease, ..DistributionOptions::default() };
    let registry = Arc::new(Registry::new(store.clone(), sealer.clone()));
    let distribution = loop {
        match Distribution::start(store.clone(), sealer.clone(), options.clone()).await {
            Ok(distribution) => break distribution,
            Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
        }
    };
    *serving.lock() = Some((distribution.clone(), registry));
    let incoming = UnboundedReceiverStream::new(incoming).map(|socket| {
        socket.map(|socket| {
            let peer = peer(certificates.of(socket.peer()));
            Checked(socket, peer)
        })
    });
    distribution.node_api().serve(incoming, CancellationToken::new()).await;
}

/// Runs a node that has `certificate`, on `machine`; its table is filled from now on.
pub(crate) async fn node(certificate: HostId, machine: HostId, endpoints: Vec<String>, table: Arc<Table>) {
    let id = node_id(certificate);
    let identity = Identity::new(&id, String::new(), String::new(), String::new().into(), String::new());
    let identity = identity.on_machine(machine as u64);
    let config = SyncConfig { endpoints, ..SyncConfig::default() };
    let _sync = Sync::start(config, identity, table);
    std::future::pending::<()>().await;
}
