//! A gRPC stream on a TLS connection of its own: whoever waits for a message reads and writes it.

use std::{
    future::poll_fn,
    mem::MaybeUninit,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::{Buf as _, BufMut as _, BytesMut};
use prost::Message as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _};
use seks_proto::wire::{NodeMessage, ReplicaMessage, node_message, replica_message};
use tokio::{
    io::{AsyncRead as _, AsyncWrite as _, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream, rustls};

use super::http2::{Http2, Said};

/// The name in a control plane's certificate.
const SERVER_NAME: &str = "seks-control-plane";
/// As a node has it.
const WINDOW_BYTES: u32 = 1024 * 1024;
/// In front of each message: whether it is compressed, and its length.
const PREFIX_BYTES: usize = 5;
/// Read at once.
const READ_BYTES: usize = 8 * 1024;

/// Who a node is.
pub(super) struct Credentials<'a> {
    pub(super) certificate_pem: &'a str,
    pub(super) key_pem: &'a str,
    pub(super) ca_pem: &'a str,
}

/// `Distribution/Sync`, both ways, on a connection of its own.
pub(super) struct Link {
    tls: TlsStream<TcpStream>,
    http2: Http2,
    /// Of the connection: no whole frame.
    received: BytesMut,
    /// Of the stream: no whole message.
    data: BytesMut,
}

impl Link {
    /// A connection of its own, and the stream on it, begun with `hello`.
    pub(super) async fn open(who: &Credentials<'_>, replica: SocketAddr, hello: node_message::Message) -> Self {
        let socket = TcpStream::connect(replica).await.unwrap();
        socket.set_nodelay(true).unwrap();
        let name = ServerName::try_from(SERVER_NAME).unwrap();
        let tls = TlsConnector::from(Arc::new(tls(who))).connect(name, socket).await.unwrap();
        let http2 = Http2::call(SERVER_NAME, "/seks.v1.Distribution/Sync", WINDOW_BYTES);
        let mut link = Self { tls, http2, received: BytesMut::new(), data: BytesMut::new() };
        link.send(hello);
        link
    }

    /// Never waits: what nodes say is far below any window. It is written with the next
    /// [`receive`](Self::receive).
    pub(super) fn send(&mut self, message: node_message::Message) {
        self.http2.send(&framed(message));
    }

    /// The next message; `None` when the replica has ended the stream. A future that is dropped
    /// loses nothing.
    pub(super) async fn receive(&mut self) -> Option<replica_message::Message> {
        loop {
            if let Some(message) = self.whole() {
                return message.message;
            }
            match self.http2.next(&mut self.received) {
                Some(Said::Data(data)) => self.data.extend_from_slice(&data),
                Some(Said::Nothing) => {}
                Some(Said::End) => return None,
                None => poll_fn(|context| self.poll_read(context)).await?,
            }
        }
    }

    /// Writes what is to be written, and reads on; `None` when the connection has ended.
    fn poll_read(&mut self, context: &mut Context<'_>) -> Poll<Option<()>> {
        if !self.http2.outgoing.is_empty() {
            while let Poll::Ready(written) = self.poll_write(context) {
                if written.is_none() {
                    return Poll::Ready(None);
                }
                if self.http2.outgoing.is_empty() {
                    break;
                }
            }
            if let Poll::Ready(Err(_)) = Pin::new(&mut self.tls).poll_flush(context) {
                return Poll::Ready(None);
            }
        }
        let mut bytes = [const { MaybeUninit::uninit() }; READ_BYTES];
        let mut bytes = ReadBuf::uninit(&mut bytes);
        let read = ready!(Pin::new(&mut self.tls).poll_read(context, &mut bytes));
        self.received.extend_from_slice(bytes.filled());
        Poll::Ready((read.is_ok() && !bytes.filled().is_empty()).then_some(()))
    }

    fn poll_write(&mut self, context: &mut Context<'_>) -> Poll<Option<()>> {
        let written = ready!(Pin::new(&mut self.tls).poll_write(context, &self.http2.outgoing));
        Poll::Ready(written.ok().map(|written| self.http2.outgoing.advance(written)))
    }

    fn whole(&mut self) -> Option<ReplicaMessage> {
        let length = self.data.get(1..PREFIX_BYTES)?.get_u32() as usize;
        if self.data.len() < PREFIX_BYTES + length {
            return None;
        }
        self.data.advance(PREFIX_BYTES);
        Some(ReplicaMessage::decode(self.data.split_to(length).freeze()).unwrap())
    }
}

fn framed(message: node_message::Message) -> BytesMut {
    let message = NodeMessage { message: Some(message) };
    let length = message.encoded_len();
    let mut framed = BytesMut::with_capacity(PREFIX_BYTES + length);
    framed.put_u8(0);
    framed.put_u32(u32::try_from(length).unwrap());
    message.encode(&mut framed).unwrap();
    framed
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
