//! A wire that can be cut, held or long: forwards TCP connections to one target, until told
//! otherwise.
//!
//! It stands in for `tc netem`, which needs root and a kernel that has it: bytes arrive in order
//! after [`Forwarder::delay`], and what is sent into a wire that is [`Mode::Held`] arrives late, as
//! TCP would have it after a partition.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, tcp::OwnedReadHalf, tcp::OwnedWriteHalf},
    sync::{mpsc, watch},
    task::JoinHandle,
    time::{Instant, sleep_until},
};

/// Reads that may be on their way at once, in each direction of a connection.
const IN_FLIGHT: usize = 1024;

/// What the wire does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Everything passes.
    Open,
    /// What the target says is lost; what it is told still passes.
    Mute,
    /// Nothing passes in either direction, and nobody is told: what is sent arrives when the wire
    /// is open again.
    Held,
    /// New connections are closed at once.
    Closed,
}

#[derive(Clone, Debug)]
struct State {
    target: SocketAddr,
    mode: Mode,
    cuts: usize,
    delay: Duration,
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
    /// Listens on a free port and forwards to `target`, which may come and go, and
    /// [move](Self::lead_to).
    ///
    /// # Panics
    /// When there is no port.
    pub async fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = State { target, mode: Mode::Open, cuts: 0, delay: Duration::ZERO, mute_after: None };
        let state = Arc::new(watch::Sender::new(state));
        let accepting = tokio::spawn(accept(listener, Arc::clone(&state)));
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

    /// Where connections lead to that begin from now on.
    pub fn lead_to(&self, target: SocketAddr) {
        self.state.send_modify(|state| state.target = target);
    }

    /// How long everything takes from now on, each way.
    pub fn delay(&self, delay: Duration) {
        self.state.send_modify(|state| state.delay = delay);
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

async fn accept(listener: TcpListener, state: Arc<watch::Sender<State>>) {
    while let Ok((near, _)) = listener.accept().await {
        if state.borrow().mode != Mode::Closed {
            tokio::spawn(forward(near, Arc::clone(&state)));
        }
    }
}

async fn forward(near: TcpStream, state: Arc<watch::Sender<State>>) {
    let State { cuts, target, .. } = *state.borrow();
    let Ok(far) = TcpStream::connect(target).await else { return };
    for end in [&near, &far] {
        drop(end.set_nodelay(true)); // or the wire would add delays of its own
    }
    let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
    let mut cut = state.subscribe();
    tokio::select! {
        _cut = cut.wait_for(|state| state.cuts != cuts) => {}
        () = pump(near_in, far_out, &state, |told| listen_for_trigger(&state, told)) => {}
        () = pump(far_in, near_out, &state, |_| state.borrow().mode != Mode::Mute) => {}
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

/// One direction, until its source ends and all of it has arrived, or its sink is gone.
async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    state: &watch::Sender<State>,
    passes: impl Fn(&[u8]) -> bool,
) {
    let (queue, mut queued) = mpsc::channel::<(Instant, Vec<u8>)>(IN_FLIGHT);
    let reading = async move {
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(length @ 1..) = from.read(&mut buffer).await {
            let read = &buffer[..length];
            if passes(read) && queue.send((Instant::now(), read.to_vec())).await.is_err() {
                return;
            }
        }
    };
    let mut open = state.subscribe();
    let writing = async move {
        while let Some((came, bytes)) = queued.recv().await {
            let delay = open.borrow().delay;
            if !delay.is_zero() {
                sleep_until(came + delay).await;
            }
            let gone = open.wait_for(|state| state.mode != Mode::Held).await.is_err();
            if gone || to.write_all(&bytes).await.is_err() {
                return;
            }
        }
    };
    tokio::pin!(writing);
    tokio::select! {
        () = &mut writing => {}
        () = reading => writing.await,
    }
}
