//! The gRPC framing of a node's stream: messages in and messages out, on the two halves of an
//! HTTP/2 stream.
//!
//! The task that drives the connection uses both halves directly. A message passes through no queue
//! and wakes no other task.

use std::{future::poll_fn, task::ready};

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use h2::{Reason, RecvStream, SendStream, server::SendResponse};
use http::{HeaderMap, HeaderValue, Response, header::CONTENT_TYPE};
use prost::Message as _;
use seks_proto::wire::{NodeMessage, ReplicaMessage, replica_message::Message as ToNode};
use seks_protocol::MESSAGE_BYTES;
use tonic::Status;

use super::stream_end::StreamEnd;

/// In front of each message: whether it is compressed, and its length.
const PREFIX_BYTES: usize = 5;
/// Largest message of a node, in bytes: a Hello with its features.
pub(crate) const MAX_NODE_MESSAGE_BYTES: usize = 16 * 1024;
/// Of every answer.
const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");

/// What a node says.
pub(crate) struct Inbound {
    body: RecvStream,
    /// No whole message.
    received: BytesMut,
}

impl Inbound {
    pub(crate) fn new(body: RecvStream) -> Self {
        Self { body, received: BytesMut::new() }
    }

    /// The next message. A future that is dropped loses nothing.
    pub(crate) async fn message(&mut self) -> Result<NodeMessage, StreamEnd> {
        loop {
            if let Some(message) = take_message(&mut self.received)? {
                return Ok(message);
            }
            let data = poll_fn(|context| self.body.poll_data(context)).await;
            let data = data.and_then(Result::ok).ok_or(StreamEnd::Gone)?;
            self.body.flow_control().release_capacity(data.len()).map_err(|_| StreamEnd::Gone)?;
            self.received.extend_from_slice(&data);
        }
    }
}

/// Takes a message out of what has been received; `None`: it isn't whole yet.
fn take_message(received: &mut BytesMut) -> Result<Option<NodeMessage>, StreamEnd> {
    let Some(mut prefix) = received.get(..PREFIX_BYTES) else { return Ok(None) };
    let (compressed, length) = (prefix.get_u8(), prefix.get_u32() as usize);
    if compressed != 0 {
        return Err(StreamEnd::Protocol("a compressed message"));
    }
    if length > MAX_NODE_MESSAGE_BYTES {
        return Err(StreamEnd::Protocol("a message is too long"));
    }
    if received.len() < PREFIX_BYTES + length {
        return Ok(None);
    }
    received.advance(PREFIX_BYTES);
    let message = NodeMessage::decode(received.split_to(length));
    message.map(Some).map_err(|_| StreamEnd::Protocol("not a message"))
}

/// The messages to a node.
pub(crate) struct Outbound(SendStream<Bytes>);

impl Outbound {
    /// Answers the call with a stream.
    pub(crate) fn begin(respond: &mut SendResponse<Bytes>) -> Result<Self, h2::Error> {
        let mut head = Response::new(());
        head.headers_mut().insert(CONTENT_TYPE, GRPC);
        respond.send_response(head, false).map(Self)
    }

    /// Waits until HTTP/2 takes another message: what isn't on its way is a message at most, and
    /// what it has room for.
    pub(crate) async fn ready(&mut self) -> Result<(), StreamEnd> {
        self.0.reserve_capacity(1);
        let capacity = poll_fn(|context| {
            while self.0.capacity() == 0 {
                match ready!(self.0.poll_capacity(context)) {
                    Some(Ok(_)) => {}
                    Some(Err(_)) | None => return Err(StreamEnd::Gone).into(),
                }
            }
            Ok(()).into()
        });
        capacity.await
    }

    /// Sends a message, which was waited for with [`ready`](Self::ready).
    pub(crate) fn send(&mut self, message: ToNode) -> Result<(), StreamEnd> {
        let message = ReplicaMessage { message: Some(message) };
        let length = message.encoded_len();
        let prefix = u32::try_from(length).ok().filter(|_| length <= MESSAGE_BYTES).ok_or(StreamEnd::TooLong)?;
        let mut framed = BytesMut::with_capacity(PREFIX_BYTES + length);
        framed.put_u8(0);
        framed.put_u32(prefix);
        message.encode_raw(&mut framed);
        self.0.send_data(framed.freeze(), false).map_err(|_| StreamEnd::Gone)
    }

    /// Ends the stream, and says why.
    pub(crate) fn end(&mut self, status: &Status) {
        let mut trailers = HeaderMap::with_capacity(2);
        if status.add_header(&mut trailers).is_err() || self.0.send_trailers(trailers).is_err() {
            self.drop();
        }
    }

    /// Ends the stream at once, with all that was not read.
    pub(crate) fn drop(&mut self) {
        self.0.send_reset(Reason::CANCEL);
    }
}

/// Refuses the call.
pub(crate) fn refuse(respond: &mut SendResponse<Bytes>, status: Status) {
    if respond.send_response(status.into_http(), true).is_err() {
        respond.send_reset(Reason::CANCEL);
    }
}

#[cfg(test)]
mod tests {
    use seks_proto::wire::{Ack, node_message::Message as FromNode};

    use super::*;

    fn framed(flag: u8, message: &[u8]) -> BytesMut {
        let mut framed = BytesMut::new();
        framed.put_u8(flag);
        framed.put_u32(u32::try_from(message.len()).unwrap());
        framed.put_slice(message);
        framed
    }

    #[test]
    fn messages_are_taken_whole_however_they_come() {
        let ack = |revision| NodeMessage { message: Some(FromNode::Ack(Ack { revision, ..Ack::default() })) };
        let mut sent = framed(0, &ack(7).encode_to_vec());
        sent.extend_from_slice(&framed(0, &ack(8).encode_to_vec()));
        let (mut received, mut taken) = (BytesMut::new(), Vec::new());
        for byte in sent {
            received.put_u8(byte);
            taken.extend(take_message(&mut received).unwrap());
        }
        assert!(taken == [ack(7), ack(8)] && received.is_empty());
    }

    #[test]
    fn what_is_compressed_too_long_or_no_message_is_refused_before_it_is_there() {
        let refused = |mut received: BytesMut| matches!(take_message(&mut received), Err(StreamEnd::Protocol(_)));
        assert!(refused(framed(1, b"")) && refused(framed(0, b"\xff")));
        let mut long = BytesMut::new();
        long.put_u8(0);
        long.put_u32(u32::try_from(MAX_NODE_MESSAGE_BYTES).unwrap() + 1);
        assert!(refused(long));
    }
}
