//! One connection of an upstream: a reader that records, and a server that answers what was read.

use std::sync::Arc;

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    sync::{mpsc, watch},
};

use super::{Answer, Framing, Request, Shared, answer::Step, record::KEPT};

/// What has been read and not yet understood.
struct Inbox {
    chunks: mpsc::Receiver<Vec<u8>>,
    buffer: Vec<u8>,
}

impl Inbox {
    /// Waits for more bytes; `None` when the peer has closed.
    async fn more(&mut self) -> Option<()> {
        let chunk = self.chunks.recv().await?;
        self.buffer.extend_from_slice(&chunk);
        Some(())
    }

    async fn until(&mut self, end: &[u8]) -> Option<Vec<u8>> {
        loop {
            if let Some(at) = self.buffer.windows(end.len()).position(|w| w == end) {
                return Some(self.buffer.drain(..at + end.len()).collect());
            }
            self.more().await?;
        }
    }
}

/// Serves until the peer closes or an answer says so.
pub(super) async fn serve<S>(stream: S, id: usize, shared: &Arc<Shared>)
where
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    let (mut from, mut to) = tokio::io::split(stream);
    let (chunks_in, chunks) = mpsc::channel(4); // bounded: an upstream that doesn't read pushes back
    let (eof_in, eof) = watch::channel(false);
    let recorder = Arc::clone(shared);
    let reader = tokio::spawn(async move {
        let mut chunk = vec![0; 64 * 1024];
        while let Ok(n @ 1..) = from.read(&mut chunk).await {
            recorder.note(|log| {
                let bytes = &mut log.connections[id].bytes;
                let room = KEPT.saturating_sub(bytes.len()).min(n);
                bytes.extend_from_slice(&chunk[..room]);
            });
            if chunks_in.send(chunk[..n].to_vec()).await.is_err() {
                break;
            }
        }
        recorder.note(|log| log.connections[id].closed = true);
        eof_in.send_replace(true);
    });
    let mut inbox = Inbox { chunks, buffer: Vec::new() };
    while let Some(answer) = next_answer(&mut inbox, id, shared).await {
        if send(&answer, &mut to, eof.clone()).await.is_none() || answer.close {
            break;
        }
    }
    reader.abort();
    drop(to.shutdown().await);
}

/// Reads one request and asks the handlers for its answer; `None` when the peer has closed.
async fn next_answer(inbox: &mut Inbox, id: usize, shared: &Shared) -> Option<Answer> {
    let head = inbox.until(b"\r\n\r\n").await?;
    let mut request = Request { connection: id, head, ..Request::default() };
    request.read_framing();
    let at = shared.note(|log| {
        log.requests.push(request.clone());
        log.requests.len() - 1
    });
    if let Some(early) = (shared.early)(&request) {
        return Some(early.then_close());
    }
    let whole = read_body(inbox, &mut request, |request| {
        shared.note(|log| {
            if let Some(kept) = log.requests.get_mut(at).filter(|kept| kept.head == request.head) {
                kept.body_length = request.body_length;
            }
        });
    });
    whole.await?;
    request.complete = true;
    shared.note(|log| {
        if let Some(kept) = log.requests.get_mut(at).filter(|kept| kept.head == request.head) {
            *kept = request.clone();
        }
    });
    Some((shared.handler)(&request))
}

async fn read_body(inbox: &mut Inbox, request: &mut Request, progress: impl Fn(&Request)) -> Option<()> {
    let mut left = match request.framing {
        Framing::None => return Some(()),
        Framing::Length(length) => length,
        Framing::Chunked => return read_chunks(inbox, request, progress).await,
        Framing::Ambiguous => return None, // whoever sends that has lost its connection
    };
    while left > 0 {
        if inbox.buffer.is_empty() {
            inbox.more().await?;
        }
        let now: Vec<u8> = inbox.buffer.drain(..left.min(inbox.buffer.len())).collect();
        left -= now.len();
        request.keep(&now);
        progress(request);
    }
    Some(())
}

async fn read_chunks(inbox: &mut Inbox, request: &mut Request, progress: impl Fn(&Request)) -> Option<()> {
    loop {
        let line = String::from_utf8(inbox.until(b"\r\n").await?).ok()?;
        let size = usize::from_str_radix(line.trim_end(), 16).ok()?; // no extensions: they are not ours to be sent
        while inbox.buffer.len() < size + if size == 0 { 0 } else { 2 } {
            inbox.more().await?;
        }
        if size == 0 {
            while inbox.until(b"\r\n").await?.len() > 2 {} // trailers stay in the connection's bytes
            return Some(());
        }
        let data: Vec<u8> = inbox.buffer.drain(..size).collect();
        inbox.buffer.drain(..2);
        request.keep(&data);
        progress(request);
    }
}

/// Does an answer's steps; `None` when the peer went away meanwhile.
async fn send(answer: &Answer, to: &mut (impl AsyncWrite + Unpin), mut eof: watch::Receiver<bool>) -> Option<()> {
    for step in &answer.steps {
        let mut gone = eof.clone();
        match step {
            Step::Send(bytes) => {
                to.write_all(bytes).await.ok()?;
                to.flush().await.ok()?;
            }
            Step::Pause(time) => tokio::time::sleep(*time).await,
            Step::Hold(gate) => tokio::select! {
                () = gate.wait() => {}
                _ = gone.wait_for(|eof| *eof) => return None,
            },
            Step::Stall => {
                drop(eof.wait_for(|eof| *eof).await);
                return None;
            }
            Step::Flood(count) => {
                let block = vec![b'x'; 64 * 1024];
                let mut left = *count;
                while left > 0 {
                    let now = left.min(block.len());
                    to.write_all(&block[..now]).await.ok()?;
                    left -= now;
                }
            }
        }
    }
    Some(())
}
