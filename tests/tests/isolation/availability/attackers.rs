//! Clients without a token that hold connections, and what a process costs meanwhile.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
    task::JoinHandle,
};

/// What an attacker does with a connection.
pub type Deed = Arc<dyn Fn(TcpStream) -> futures_util::future::BoxFuture<'static, ()> + Send + Sync>;

/// Connections that are held, each made again as soon as the other end closes it, until this is
/// dropped.
pub struct Attack {
    tasks: Vec<JoinHandle<()>>,
    opened: Arc<AtomicU64>,
    closed: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
}

/// A loopback address that is not the one from which everybody else calls.
pub fn source(number: usize) -> IpAddr {
    let number = u32::try_from(number).unwrap() + 2;
    Ipv4Addr::from_bits(0x7f01_0000 + number).into()
}

/// Connects from another loopback address.
pub async fn connect(from: IpAddr, to: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::new(from, 0))?;
    socket.connect(to).await
}

impl Attack {
    /// Holds `connections` to `to`. Each comes from the next of `sources` addresses whenever it is
    /// opened. Returns when all of them have been opened once.
    pub fn start(to: SocketAddr, connections: usize, sources: usize, deed: Deed) -> Self {
        let (opened, closed) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let stop = Arc::new(AtomicBool::new(false));
        let tasks = (0..connections).map(|n| {
            let (deed, opened, closed, stop) = (deed.clone(), opened.clone(), closed.clone(), stop.clone());
            seks_tests::runtime().spawn(async move {
                let mut first = true;
                for round in 0.. {
                    if stop.load(Relaxed) {
                        return;
                    }
                    if let Ok(stream) = connect(source((n + round * connections) % sources), to).await {
                        if std::mem::take(&mut first) {
                            opened.fetch_add(1, Relaxed);
                        }
                        deed(stream).await;
                        closed.fetch_add(1, Relaxed);
                    }
                    // A client that is closed comes back, as fast as one task of many gets its
                    // turn.
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            })
        });
        let attack = Self { tasks: tasks.collect(), opened, closed, stop };
        seks_tests::process::wait_for("the attackers' connections", || {
            (attack.opened.load(Relaxed) >= connections as u64).then_some(())
        });
        attack
    }

    /// Connections that the other end has closed so far.
    pub fn closed(&self) -> u64 {
        self.closed.load(Relaxed)
    }
}

impl Drop for Attack {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

/// Sends these bytes, and then nothing, until the other end closes the connection.
pub fn says(bytes: impl Into<Vec<u8>>) -> Deed {
    let bytes: Arc<[u8]> = bytes.into().into();
    Arc::new(move |mut stream| {
        let bytes = bytes.clone();
        Box::pin(async move {
            if stream.write_all(&bytes).await.is_ok() {
                read_to_end(&mut stream).await;
            }
        })
    })
}

/// Sends these bytes, and then those again and again without a pause, until the other end closes
/// the connection.
pub fn floods(first: impl Into<Vec<u8>>, again: impl Into<Vec<u8>>) -> Deed {
    let (first, again): (Arc<[u8]>, Arc<[u8]>) = (first.into().into(), again.into().into());
    Arc::new(move |stream| {
        let (first, again) = (first.clone(), again.clone());
        Box::pin(async move {
            let (mut reading, mut writing) = stream.into_split();
            let read = async {
                let mut bytes = vec![0; 64 * 1024];
                while reading.read(&mut bytes).await.is_ok_and(|n| n > 0) {}
            };
            let write = async {
                let mut next = writing.write_all(&first).await;
                while next.is_ok() {
                    next = writing.write_all(&again).await;
                }
            };
            tokio::select! { () = read => {}, () = write => {} }
        })
    })
}

/// Sends these bytes one at a time, and begins again.
pub fn trickles(bytes: impl Into<Vec<u8>>, pause: Duration) -> Deed {
    let bytes: Arc<[u8]> = bytes.into().into();
    Arc::new(move |mut stream| {
        let bytes = bytes.clone();
        Box::pin(async move {
            drop(stream.set_nodelay(true));
            for byte in bytes.iter().cycle() {
                if stream.write_all(&[*byte]).await.is_err() {
                    return;
                }
                tokio::time::sleep(pause).await;
            }
        })
    })
}

async fn read_to_end(stream: &mut TcpStream) {
    let mut bytes = vec![0; 4096];
    while stream.read(&mut bytes).await.is_ok_and(|n| n > 0) {}
}

/// An HTTP/2 frame on stream 1, or of the connection.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// With which an HTTP/2 client begins.
pub fn preface() -> Vec<u8> {
    [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".as_slice(), &frame(4, 0, 0, &[])].concat()
}

/// CPU time that a process has used, and its resident memory in bytes.
pub fn used(pid: u32) -> (Duration, u64) {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    let pages: u64 = fields[21].parse().unwrap();
    (Duration::from_millis(ticks * 1000 / 100), pages * 4096) // USER_HZ is 100 on every Linux, pages have 4 KiB
}

/// How long `test` takes.
pub fn timed<T>(test: impl FnOnce() -> T) -> (Duration, T) {
    let began = Instant::now();
    let done = test();
    (began.elapsed(), done)
}
