//! TCP, as hosts see it: bytes arrive in order, late, or never; a host that is gone doesn't answer,
//! one that has forgotten a connection resets it.

mod socket;

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    io,
    sync::Arc,
    task::Waker,
    time::Duration,
};

use bytes::Bytes;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::mpsc;

pub(crate) use self::socket::Socket;
use crate::random::Random;

/// A host, by its place in the world. The store's cluster is one, too.
pub(crate) type HostId = usize;

/// The network. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Network(Arc<Mutex<Inner>>);

/// Connections that came through.
pub(crate) type Incoming = mpsc::UnboundedReceiver<io::Result<Socket>>;

struct Inner {
    now: Duration,
    seed: u64,
    /// Messages between two hosts, connections among them: what is drawn for one depends on nothing
    /// but its number.
    counts: HashMap<(HostId, HostId), u64>,
    /// How long a message takes at least, and how much longer it may take.
    delay: HashMap<(HostId, HostId), (Duration, Duration)>,
    /// What is sent from the one to the other waits.
    cut: HashSet<(HostId, HostId)>,
    down: HashSet<HostId>,
    listeners: HashMap<HostId, mpsc::UnboundedSender<io::Result<Socket>>>,
    ends: HashMap<End, State>,
    due: BTreeMap<(Duration, u64), Packet>,
    held: VecDeque<Packet>,
    number: u64,
    /// Everything that was delivered, for telling whether two runs were the same.
    digest: u64,
}

/// One end of a connection: who began it with whom, its number among those, and whether this is the
/// end that listened.
type End = (HostId, HostId, u64, bool);

fn other(end: End) -> End {
    (end.0, end.1, end.2, !end.3)
}

struct State {
    host: HostId,
    open: bool,
    established: bool,
    inbox: VecDeque<Bytes>,
    finished: bool,
    reset: bool,
    waker: Option<Waker>,
    /// When the last packet to this end arrives: none overtakes it.
    last: Duration,
}

struct Packet {
    from: HostId,
    to: HostId,
    end: End,
    what: What,
}

enum What {
    Open,
    Accepted,
    Data(Bytes),
    Finish,
    Reset,
}

impl Network {
    pub(crate) fn new(mut random: Random) -> Self {
        Self(Arc::new(Mutex::new(Inner {
            now: Duration::ZERO,
            seed: random.next(),
            counts: HashMap::new(),
            delay: HashMap::new(),
            cut: HashSet::new(),
            down: HashSet::new(),
            listeners: HashMap::new(),
            ends: HashMap::new(),
            due: BTreeMap::new(),
            held: VecDeque::new(),
            number: 0,
            digest: 0,
        })))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock()
    }

    /// How long messages between two hosts take.
    pub(crate) fn set_delay(&self, a: HostId, b: HostId, least: Duration, jitter: Duration) {
        let mut inner = self.lock();
        inner.delay.insert((a, b), (least, jitter));
        inner.delay.insert((b, a), (least, jitter));
    }

    /// Cuts one direction.
    pub(crate) fn cut(&self, from: HostId, to: HostId) {
        self.lock().cut.insert((from, to));
    }

    pub(crate) fn heal(&self, from: HostId, to: HostId) {
        self.lock().cut.remove(&(from, to));
    }

    pub(crate) fn heal_all(&self) {
        self.lock().cut.clear();
    }

    pub(crate) fn is_cut(&self, from: HostId, to: HostId) -> bool {
        self.lock().cut.contains(&(from, to))
    }

    /// How long the next message takes.
    pub(crate) fn delay(&self, from: HostId, to: HostId) -> Duration {
        self.lock().delay(from, to)
    }

    /// The machine is gone (or back): until then nothing of its answers, and nothing of its is
    /// sent.
    pub(crate) fn set_down(&self, host: HostId, down: bool) {
        let mut inner = self.lock();
        if down {
            inner.down.insert(host);
            inner.listeners.remove(&host);
            inner.ends.values_mut().filter(|end| end.host == host).for_each(|end| end.open = false);
        } else {
            inner.down.remove(&host);
        }
    }

    pub(crate) fn listen(&self, host: HostId) -> Incoming {
        let (sender, receiver) = mpsc::unbounded_channel();
        self.lock().listeners.insert(host, sender);
        receiver
    }

    /// Begins to connect; [`Socket::established`] tells when it has.
    pub(crate) fn connect(&self, from: HostId, to: HostId) -> Socket {
        let mut inner = self.lock();
        let number = inner.count(from, to);
        for (host, listened) in [(from, false), (to, true)] {
            inner.ends.insert((from, to, number, listened), State::new(host, !listened));
        }
        inner.send(from, (from, to, number, true), What::Open);
        drop(inner);
        Socket::new(self.clone(), (from, to, number, false), to)
    }

    /// Delivers what is due.
    pub(crate) fn deliver(&self, now: Duration) {
        let mut inner = self.lock();
        inner.now = now;
        let held = std::mem::take(&mut inner.held);
        held.into_iter().for_each(|packet| inner.arrive(packet, self));
        while let Some(entry) = inner.due.first_entry().filter(|entry| entry.key().0 <= now) {
            let packet = entry.remove();
            inner.arrive(packet, self);
        }
    }

    pub(crate) fn digest(&self) -> u64 {
        self.lock().digest
    }
}

impl State {
    fn new(host: HostId, open: bool) -> Self {
        let (inbox, last) = (VecDeque::new(), Duration::ZERO);
        Self { host, open, established: false, inbox, finished: false, reset: false, waker: None, last }
    }

    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

impl Inner {
    /// The next number for something from one host to another.
    fn count(&mut self, from: HostId, to: HostId) -> u64 {
        let count = self.counts.entry((from, to)).or_default();
        *count += 1;
        *count
    }

    fn delay(&mut self, from: HostId, to: HostId) -> Duration {
        let (least, jitter) = self.delay.get(&(from, to)).copied().unwrap_or_default();
        let drawn = self.seed ^ (from as u64) << 48 ^ (to as u64) << 40 ^ self.count(from, to);
        least + jitter.mul_f64(Random::new(drawn).fraction())
    }

    /// Sends to `end`, behind what was sent there before.
    fn send(&mut self, from: HostId, end: End, what: What) {
        let Some(to) = self.ends.get(&end).map(|state| state.host) else { return };
        if self.down.contains(&from) {
            return;
        }
        let at = self.now + self.delay(from, to);
        if let Some(state) = self.ends.get_mut(&end) {
            state.last = state.last.max(at);
            let at = state.last;
            self.number += 1;
            self.due.insert((at, self.number), Packet { from, to, end, what });
        }
    }

    fn arrive(&mut self, packet: Packet, network: &Network) {
        if self.cut.contains(&(packet.from, packet.to)) {
            self.held.push_back(packet);
            return;
        }
        if self.down.contains(&packet.to) {
            return;
        }
        let Packet { from, to, end, what } = packet;
        // In whatever order: what arrives in the same instant is in none.
        let size = if let What::Data(bytes) = &what { bytes.len() as u64 } else { 0 };
        let arrived = self.now.as_nanos() as u64 ^ (from as u64) << 56 ^ (to as u64) << 52 ^ size << 36;
        self.digest = self.digest.wrapping_add(Random::new(arrived).next());
        let other = other(end);
        match what {
            What::Open => match self.listeners.get(&to) {
                Some(listener) => {
                    let socket = Socket::new(network.clone(), end, from);
                    if let Some(state) = self.ends.get_mut(&end) {
                        (state.open, state.established) = (true, true);
                    }
                    // Who has stopped listening drops it, which resets it; but not while we hold
                    // the lock.
                    match listener.send(Ok(socket)) {
                        Ok(()) => self.send(to, other, What::Accepted),
                        Err(back) => {
                            if let Ok(mut socket) = back.0 {
                                socket.forget();
                            }
                            self.send(to, other, What::Reset);
                        }
                    }
                }
                None => self.send(to, other, What::Reset),
            },
            what => self.take_in(to, end, what),
        }
    }

    fn take_in(&mut self, to: HostId, end: End, what: What) {
        let Some(state) = self.ends.get_mut(&end) else { return };
        if !state.open {
            // It has forgotten this connection, or never had it.
            if !matches!(what, What::Reset | What::Finish) {
                self.send(to, other(end), What::Reset);
            }
            return;
        }
        match what {
            What::Accepted => state.established = true,
            What::Data(bytes) => state.inbox.push_back(bytes),
            What::Finish => state.finished = true,
            What::Reset | What::Open => state.reset = true,
        }
        state.wake();
    }
}
