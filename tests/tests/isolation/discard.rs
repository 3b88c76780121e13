//! An upstream that keeps nothing of what it gets, on a thread of its own: attacks at full speed
//! would fill the memory of one that records, and its work would be measured as the node's.

use std::{
    net::{SocketAddr, TcpListener as Bound},
    thread,
};

use seks_runtime::lower_thread_priority;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream},
};

const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 11\r\n\r\n{\"ok\":true}";

/// Answers every HTTP/1.1 request with `200`, once its body has come.
pub struct Discard {
    address: SocketAddr,
}

/// Whose upstream it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Of {
    /// Of the tenant that is measured.
    Victim,
    /// Of the one that attacks: it leaves the cores to the others.
    Attacker,
}

impl Discard {
    /// Its thread ends with the process.
    pub fn start(of: Of) -> Self {
        let bound = Bound::bind("127.0.0.1:0").unwrap();
        bound.set_nonblocking(true).unwrap();
        let address = bound.local_addr().unwrap();
        thread::spawn(move || {
            if of == Of::Attacker {
                lower_thread_priority();
            }
            let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
            runtime.block_on(async {
                let listener = TcpListener::from_std(bound).unwrap();
                while let Ok((stream, _)) = listener.accept().await {
                    tokio::spawn(serve(stream));
                }
            });
        });
        Self { address }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn origin(&self) -> String {
        format!("http://{}", self.address)
    }
}

/// `None` when the peer has closed.
async fn serve(stream: TcpStream) -> Option<()> {
    stream.set_nodelay(true).ok()?;
    let mut stream = BufReader::with_capacity(64 * 1024, stream);
    let (mut line, mut length) = (String::new(), 0);
    loop {
        line.clear();
        if stream.read_line(&mut line).await.ok()? == 0 {
            return None;
        }
        if let Some((name, value)) = line.split_once(':') {
            if name.eq_ignore_ascii_case("content-length") {
                length = value.trim().parse().ok()?;
            }
            continue;
        }
        if line.trim_end().is_empty() {
            tokio::io::copy(&mut (&mut stream).take(length), &mut tokio::io::sink()).await.ok()?;
            stream.write_all(ANSWER).await.ok()?;
            length = 0;
        }
    }
}
