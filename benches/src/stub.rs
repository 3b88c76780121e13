//! The upstream: reads requests, answers each with the same bytes, and does nothing else, so that it is no bottleneck.

use std::rc::Rc;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::LocalSet,
};

/// How it answers.
#[derive(clap::Args, Clone, Copy, Debug)]
pub struct Args {
    /// Bytes of an answer's body
    #[arg(long, default_value_t = 1024)]
    pub size: usize,
}

/// The body that every answer has: what the load generator checks.
#[must_use]
pub fn body(size: usize) -> Vec<u8> {
    b"The quick brown fox jumps over the lazy dog. ".iter().copied().cycle().take(size).collect()
}

/// Prints its address and serves until it is killed.
pub async fn run(args: Args) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    println!("{}", listener.local_addr().unwrap());
    let head = format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n", args.size);
    let answer = Rc::new([head.as_bytes(), &body(args.size)].concat());
    LocalSet::new()
        .run_until(async {
            while let Ok((stream, _)) = listener.accept().await {
                drop(stream.set_nodelay(true));
                tokio::task::spawn_local(serve(stream, Rc::clone(&answer)));
            }
        })
        .await;
}

async fn serve(mut stream: TcpStream, answer: Rc<Vec<u8>>) {
    let mut buffer = Vec::with_capacity(16 * 1024);
    loop {
        match whole_request(&buffer) {
            Some(length) => {
                buffer.drain(..length);
                if stream.write_all(&answer).await.is_err() {
                    return;
                }
            }
            None if matches!(stream.read_buf(&mut buffer).await, Ok(1..)) => {}
            None => return,
        }
    }
}

/// How long the first request in a buffer is, once it is whole. The proxies under test frame by length or by chunks.
fn whole_request(buffer: &[u8]) -> Option<usize> {
    let head = buffer.windows(4).position(|w| w == b"\r\n\r\n")? + 4;
    let text = std::str::from_utf8(&buffer[..head]).ok()?;
    let value = |name: &str| {
        text.split("\r\n")
            .filter_map(|l| l.split_once(':'))
            .find(|(n, _)| n.eq_ignore_ascii_case(name))
            .map(|(_, v)| v.trim())
    };
    if let Some(length) = value("content-length") {
        let whole = head + length.parse::<usize>().ok()?;
        return (buffer.len() >= whole).then_some(whole);
    }
    if value("transfer-encoding").is_some() {
        return buffer[head..].windows(5).position(|w| w == b"0\r\n\r\n").map(|at| head + at + 5);
    }
    Some(head)
}
