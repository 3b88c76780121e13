//! What a connection becomes after HTTP: behind `101 Switching Protocols`, or behind a positive
//! response to `CONNECT`.

use std::{future::Future, net::IpAddr, pin::Pin, sync::Arc};

use seks_runtime::connections::ListenerSlot;

use super::{settings::Settings, stream::Stream};

/// The connection that an [`Upgrade`] takes over.
#[derive(Clone, Copy)]
pub struct Upgraded<'a> {
    /// What its listener serves with.
    pub settings: &'a Settings,
    /// The address that it came from.
    pub source: IpAddr,
    /// Its place at the listener.
    pub slot: &'a Arc<ListenerSlot>,
}

/// Takes a connection over once the last HTTP response on it has been sent.
pub trait Upgrade: Send {
    /// Runs to the end of the connection. Gives the stream back if it is to be closed gently.
    fn run<'a>(
        self: Box<Self>,
        stream: Stream,
        connection: Upgraded<'a>,
    ) -> Pin<Box<dyn Future<Output = Option<Stream>> + Send + 'a>>;
}
