//! A wire that can be cut: forwards TCP connections to one target, until told otherwise.

use std::{net::SocketAddr, sync::Arc};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, tcp::OwnedReadHalf, tcp::OwnedWriteHalf},
    sync::watch,
    task::JoinHandle,
};

/// What the wire does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Everything passes.
    Open,
    /// What the target says is lost; what it is told still passes.
    Mute,
    /// New connections are closed at once.
    Closed,
}

#[derive(Clone, Debug)]
struct State {
    mode: Mode,
    cuts: usize,
    mute_after: Option<&'static str>,
}

/// The wire. It is gone, with its connections, when dropped.
#[derive(Debug)]
pub struct Forwarder {
    address: SocketAddr,
    state: Arc<watch::Sender<State>>,
    accepting: JoinHandle<()>,
}

impl Forwarder {
    /// Listens on a free port and forwards to `target`, which may come and go.
    ///
    /// # Panics
    /// When there is no port.
    pub async fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(watch::Sender::new(State { mode: Mode::Open, cuts: 0, mute_after: None }));
        let accepting = tokio::spawn(accept(listener, target, Arc::clone(&state)));
        Self { address, state, accepting }
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Ends every connection that there is now.
    pub fn cut(&self) {
        self.state.send_modify(|state| state.cuts += 1);
    }

    /// From now on.
    pub fn set(&self, mode: Mode) {
        self.state.send_modify(|state| state.mode = mode);
    }

    /// [`Mode::Mute`] from the moment when the target is told `text`.
    pub fn mute_after(&self, text: &'static str) {
        self.state.send_modify(|state| state.mute_after = Some(text));
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        self.accepting.abort();
        self.cut();
    }
}

async fn accept(listener: TcpListener, target: SocketAddr, state: Arc<watch::Sender<State>>) {
    while let Ok((near, _)) = listener.accept().await {
        if state.borrow().mode != Mode::Closed {
            tokio::spawn(forward(near, target, Arc::clone(&state)));
        }
    }
}

async fn forward(near: TcpStream, target: SocketAddr, state: Arc<watch::Sender<State>>) {
    let cuts = state.borrow().cuts;
    let Ok(far) = TcpStream::connect(target).await else { return };
    let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
    let mut cut = state.subscribe();
    tokio::select! {
        _cut = cut.wait_for(|state| state.cuts != cuts) => {}
        () = pump(near_in, far_out, |told| listen_for_trigger(&state, told)) => {}
        () = pump(far_in, near_out, |_| state.borrow().mode != Mode::Mute) => {}
    }
}

fn listen_for_trigger(state: &watch::Sender<State>, told: &[u8]) -> bool {
    let heard = |state: &State| {
        state.mute_after.is_some_and(|text| told.windows(text.len()).any(|window| window == text.as_bytes()))
    };
    state.send_if_modified(|state| {
        let heard = heard(state);
        if heard {
            (state.mode, state.mute_after) = (Mode::Mute, None);
        }
        heard
    });
    true
}

async fn pump(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, passes: impl Fn(&[u8]) -> bool) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        if passes(&buffer[..length]) && to.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
}
