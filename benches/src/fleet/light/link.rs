//! A gRPC stream on bare HTTP/2, without the queues and tasks of a client that is made for calls of every kind: whoever waits for a message drives the
//! connection. What is measured is the replica.

use std::{
    future::{Future as _, poll_fn},
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use h2::{RecvStream, SendStream, client};
use prost::Message as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _};
use seks_proto::wire::{NodeMessage, ReplicaMessage, node_message, replica_message};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream, rustls};

/// The name in a control plane's certificate.
const SERVER_NAME: &str = "seks-control-plane";
/// As a node has it.
const WINDOW_BYTES: u32 = 1024 * 1024;
/// In front of each message: whether it is compressed, and its length.
const PREFIX_BYTES: usize = 5;

/// Who a node is.
pub(super) struct Credentials<'a> {
    pub(super) certificate_pem: &'a str,
    pub(super) key_pem: &'a str,
    pub(super) ca_pem: &'a str,
}

/// `Distribution/Sync`, both ways, on a connection of its own.
pub(super) struct Link {
    connection: client::Connection<TlsStream<TcpStream>>,
    outgoing: SendStream<Bytes>,
    incoming: RecvStream,
    received: BytesMut,
}

impl Link {
    /// A connection of its own, and the stream on it, begun with `hello`: the replica answers when it has that.
    pub(super) async fn open(who: &Credentials<'_>, replica: SocketAddr, hello: node_message::Message) -> Self {
        let socket = TcpStream::connect(replica).await.unwrap();
        socket.set_nodelay(true).unwrap();
        let name = ServerName::try_from(SERVER_NAME).unwrap();
        let tls = TlsConnector::from(Arc::new(tls(who))).connect(name, socket).await.unwrap();
        let mut builder = client::Builder::new();
        builder.initial_window_size(WINDOW_BYTES).initial_connection_window_size(WINDOW_BYTES);
        let (mut requests, mut connection) = builder.handshake::<_, Bytes>(tls).await.unwrap();
        let request = http::Request::post(format!("https://{SERVER_NAME}/seks.v1.Distribution/Sync"))
            .header(http::header::CONTENT_TYPE, "application/grpc")
            .header(http::header::TE, "trailers")
            .body(())
            .unwrap();
        let (answer, mut outgoing) = requests.send_request(request, false).unwrap();
        outgoing.send_data(framed(hello), false).unwrap();
        tokio::pin!(answer);
        let answer = poll_fn(|context| {
            assert!(Pin::new(&mut connection).poll(context).is_pending(), "the replica hung up");
            answer.as_mut().poll(context)
        });
        let incoming = answer.await.unwrap().into_body();
        Self { connection, outgoing, incoming, received: BytesMut::new() }
    }

    /// Never waits: what nodes say is far below any window. It is written with the next [`receive`](Self::receive).
    pub(super) fn send(&mut self, message: node_message::Message) {
        self.outgoing.send_data(framed(message), false).unwrap();
    }

    /// The next message; `None` when the replica has ended the stream. A future that is dropped loses nothing.
    pub(super) async fn receive(&mut self) -> Option<replica_message::Message> {
        loop {
            if let Some(message) = self.whole() {
                return message.message;
            }
            let data = poll_fn(|context| self.poll_data(context)).await?;
            self.incoming.flow_control().release_capacity(data.len()).unwrap();
            self.received.extend_from_slice(&data);
        }
    }

    fn poll_data(&mut self, context: &mut Context<'_>) -> Poll<Option<Bytes>> {
        let hung_up = Pin::new(&mut self.connection).poll(context).is_ready();
        match self.incoming.poll_data(context) {
            Poll::Pending if hung_up => Poll::Ready(None),
            data => data.map(|data| data.map(Result::unwrap)),
        }
    }

    fn whole(&mut self) -> Option<ReplicaMessage> {
        let length = self.received.get(1..PREFIX_BYTES)?.get_u32() as usize;
        if self.received.len() < PREFIX_BYTES + length {
            return None;
        }
        self.received.advance(PREFIX_BYTES);
        Some(ReplicaMessage::decode(self.received.split_to(length).freeze()).unwrap())
    }
}

fn framed(message: node_message::Message) -> Bytes {
    let message = NodeMessage { message: Some(message) };
    let length = message.encoded_len();
    let mut framed = BytesMut::with_capacity(PREFIX_BYTES + length);
    framed.put_u8(0);
    framed.put_u32(u32::try_from(length).unwrap());
    message.encode(&mut framed).unwrap();
    framed.freeze()
}

fn tls(who: &Credentials<'_>) -> rustls::ClientConfig {
    let mut roots = rustls::RootCertStore::empty();
    let authorities = CertificateDer::pem_slice_iter(who.ca_pem.as_bytes()).map(Result::unwrap);
    roots.add_parsable_certificates(authorities);
    let chain = CertificateDer::pem_slice_iter(who.certificate_pem.as_bytes()).map(Result::unwrap).collect();
    let key = PrivateKeyDer::from_pem_slice(who.key_pem.as_bytes()).unwrap();
    let mut config =
        rustls::ClientConfig::builder().with_root_certificates(roots).with_client_auth_cert(chain, key).unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    config
}
