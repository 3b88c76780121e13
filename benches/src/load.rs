//! The agents: closed loop, keep-alive, one request at a time on each connection, every answer
//! checked.

use std::{
    fs,
    net::SocketAddr,
    path::PathBuf,
    rc::Rc,
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::LocalSet,
};

use crate::{stub, sys};

/// What to ask, how often, and whose CPU time to read while asking.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// Address of the proxy, or of the upstream itself
    #[arg(long)]
    pub target: SocketAddr,
    /// Path of every request
    #[arg(long)]
    pub path: String,
    /// File with one token a line; request n of a connection carries another one than request n + 1
    #[arg(long)]
    pub tokens: PathBuf,
    /// Connections
    #[arg(long, default_value_t = 64)]
    pub connections: usize,
    /// Seconds that count, after `warm_up`
    #[arg(long, default_value_t = 5.0)]
    pub seconds: f64,
    /// Seconds that don't
    #[arg(long, default_value_t = 1.0)]
    pub warm_up: f64,
    /// Bytes of an answer
    #[arg(long, default_value_t = 1024)]
    pub size: usize,
    /// Events of an answer: each counts as a request
    #[arg(long, default_value_t = 0)]
    pub events: usize,
    /// Processes under test
    #[arg(long, value_delimiter = ',')]
    pub pids: Vec<u32>,
    /// All other processes of the benchmark: what is used beside these is noise
    #[arg(long, value_delimiter = ',')]
    pub ours: Vec<u32>,
}

/// What was measured.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Measured {
    /// Requests answered within the window.
    pub requests: u64,
    /// Answers that were not what they should be.
    pub wrong: u64,
    /// Requests a second.
    pub rate: f64,
    /// Median latency, µs.
    pub p50: u64,
    /// 99th percentile, µs.
    pub p99: u64,
    /// CPU time of the processes under test, µs a request.
    pub cpu_us: f64,
    /// Their resident memory at the end, KiB.
    pub rss_kib: u64,
    /// Cores used by processes that are not the benchmark's.
    pub noise: f64,
}

struct Shared {
    args: Args,
    requests: Vec<Vec<u8>>,
    body: Vec<u8>,
    start: Instant,
    end: Instant,
}

#[derive(Debug)]
struct Tally {
    latency: Histogram<u64>,
    wrong: u64,
}

fn request(args: &Args, token: &str) -> Vec<u8> {
    let body = stub::body(1024, 0);
    let head = format!(
        "POST {} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\nContent-Type: application/json\r\n\
         User-Agent: seks-bench\r\nAccept: */*\r\nContent-Length: {}\r\n\r\n",
        args.path,
        body.len()
    );
    [head.as_bytes(), &body].concat()
}

/// Runs the load and says what it saw.
pub async fn run(args: Args) -> Measured {
    let tokens = fs::read_to_string(&args.tokens).unwrap();
    let requests = tokens.lines().map(|token| request(&args, token)).collect();
    let start = Instant::now() + Duration::from_secs_f64(args.warm_up);
    let end = start + Duration::from_secs_f64(args.seconds);
    let shared = Rc::new(Shared { requests, body: stub::body(args.size, args.events), start, end, args });
    LocalSet::new().run_until(measure(shared)).await
}

async fn measure(shared: Rc<Shared>) -> Measured {
    let agents: Vec<_> =
        (0..shared.args.connections).map(|n| tokio::task::spawn_local(agent(Rc::clone(&shared), n))).collect();
    tokio::time::sleep_until(shared.start.into()).await;
    let before = Usage::now(&shared.args);
    tokio::time::sleep_until(shared.end.into()).await;
    let used = Usage::now(&shared.args);
    let rss_kib = shared.args.pids.iter().map(|p| sys::rss_kib(*p)).sum();
    let mut all = Tally { latency: Histogram::new(3).unwrap(), wrong: 0 };
    for agent in agents {
        let tally = agent.await.unwrap();
        all.latency.add(&tally.latency).unwrap();
        all.wrong += tally.wrong;
    }
    let (requests, seconds) = (all.latency.len() * shared.args.events.max(1) as u64, shared.args.seconds);
    let tested = used.tested.saturating_sub(before.tested);
    let ours = used.ours.saturating_sub(before.ours) + tested;
    Measured {
        requests,
        wrong: all.wrong,
        rate: requests as f64 / seconds,
        p50: all.latency.value_at_quantile(0.5),
        p99: all.latency.value_at_quantile(0.99),
        cpu_us: tested.as_secs_f64() * 1e6 / requests.max(1) as f64,
        rss_kib,
        noise: used.machine.saturating_sub(before.machine).saturating_sub(ours).as_secs_f64() / seconds,
    }
}

struct Usage {
    tested: Duration,
    ours: Duration,
    machine: Duration,
}

impl Usage {
    fn now(args: &Args) -> Self {
        let own = std::process::id();
        Self {
            tested: args.pids.iter().map(|p| sys::cpu(*p)).sum(),
            ours: args.ours.iter().chain([&own]).map(|p| sys::cpu(*p)).sum(),
            machine: sys::machine_cpu(),
        }
    }
}

/// One connection's requests, one after the other, until the window ends.
async fn agent(shared: Rc<Shared>, number: usize) -> Tally {
    let mut tally = Tally { latency: Histogram::new(3).unwrap(), wrong: 0 };
    let mut stream = TcpStream::connect(shared.args.target).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let mut buffer = Vec::with_capacity(shared.args.size + 4096);
    // 7919 is prime: every connection comes by every token, none follows another's footsteps.
    let mut next = number * 7919;
    loop {
        let asked = Instant::now();
        if asked >= shared.end {
            return tally;
        }
        let request = &shared.requests[next % shared.requests.len()];
        next += 1;
        let good = stream.write_all(request).await.is_ok() && read_answer(&mut stream, &mut buffer, &shared.body).await;
        let answered = Instant::now();
        if !good {
            tally.wrong += 1;
            return tally;
        }
        if asked >= shared.start && answered <= shared.end {
            tally.latency.record((answered - asked).as_micros() as u64).unwrap();
        }
    }
}

/// Reads one answer; whether it is a 200 with exactly the body that the upstream sent.
async fn read_answer(stream: &mut TcpStream, buffer: &mut Vec<u8>, body: &[u8]) -> bool {
    buffer.clear();
    let head = loop {
        if let Some(at) = buffer.windows(4).position(|w| w == b"\r\n\r\n") {
            break at + 4;
        }
        if !matches!(stream.read_buf(buffer).await, Ok(1..)) {
            return false;
        }
    };
    let lengths = std::str::from_utf8(&buffer[..head]).unwrap_or_default().to_ascii_lowercase();
    if !lengths.starts_with("http/1.1 200") {
        return false;
    }
    if !lengths.contains("transfer-encoding: chunked") {
        while buffer.len() < head + body.len() {
            if !matches!(stream.read_buf(buffer).await, Ok(1..)) {
                return false;
            }
        }
        return &buffer[head..] == body;
    }
    while !buffer.ends_with(b"0\r\n\r\n") {
        if !matches!(stream.read_buf(buffer).await, Ok(1..)) {
            return false;
        }
    }
    unchunk(&buffer[head..]) == body
}

fn unchunk(mut rest: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    while let Some(at) = rest.windows(2).position(|w| w == b"\r\n") {
        let size = std::str::from_utf8(&rest[..at]).ok().and_then(|s| usize::from_str_radix(s, 16).ok()).unwrap_or(0);
        let data = rest.get(at + 2..at + 2 + size).unwrap_or_default();
        if size == 0 || data.is_empty() {
            break;
        }
        out.extend_from_slice(data);
        rest = rest.get(at + 4 + size..).unwrap_or_default();
    }
    out
}
