//! What an upstream sends back, step by step.

use std::{sync::Arc, time::Duration};

use tokio::sync::watch;

/// One step of an answer.
#[derive(Clone, Debug)]
pub enum Step {
    /// Sends bytes as they are.
    Send(Vec<u8>),
    /// Waits.
    Pause(Duration),
    /// Waits until the test opens the gate, or the peer closes.
    Hold(Gate),
    /// Sends nothing more and waits until the peer closes.
    Stall,
    /// Sends this many bytes `x`, as fast as they are taken.
    Flood(usize),
}

/// A whole answer.
#[derive(Clone, Debug)]
pub struct Answer {
    pub(crate) steps: Vec<Step>,
    pub(crate) close: bool,
}

/// Held shut until a test opens it: "the first event came although the second was not yet there"
/// needs no clock.
#[derive(Clone, Debug)]
pub struct Gate(Arc<watch::Sender<bool>>);

impl Default for Gate {
    fn default() -> Self {
        Self(Arc::new(watch::channel(false).0))
    }
}

impl Gate {
    /// Lets everybody through who waits or comes.
    pub fn open(&self) {
        self.0.send_replace(true);
    }

    /// Holds up whoever comes from here on.
    pub fn shut(&self) {
        self.0.send_replace(false);
    }

    pub(crate) async fn wait(&self) {
        drop(self.0.subscribe().wait_for(|open| *open).await);
    }
}

/// A response head without framing headers.
fn head(status: u16, headers: &[(&str, &str)]) -> String {
    let lines: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    format!("HTTP/1.1 {status} Status\r\n{lines}")
}

/// One chunk of a chunked body.
pub fn chunk(data: &[u8]) -> Step {
    Step::Send([format!("{:x}\r\n", data.len()).as_bytes(), data, b"\r\n"].concat())
}

impl Answer {
    /// Exactly these bytes, then the connection is closed.
    pub fn raw(bytes: impl Into<Vec<u8>>) -> Self {
        Self { steps: vec![Step::Send(bytes.into())], close: true }
    }

    /// These steps; the connection stays open after them.
    pub fn steps(steps: Vec<Step>) -> Self {
        Self { steps, close: false }
    }

    /// A body of known length.
    pub fn with(status: u16, headers: &[(&str, &str)], body: impl AsRef<[u8]>) -> Self {
        let body = body.as_ref();
        let head = format!("{}Content-Length: {}\r\n\r\n", head(status, headers), body.len());
        Self::steps(vec![Step::Send([head.as_bytes(), body].concat())])
    }

    /// JSON.
    pub fn json(status: u16, body: &str) -> Self {
        Self::with(status, &[("Content-Type", "application/json")], body)
    }

    /// Text.
    pub fn text(body: impl AsRef<[u8]>) -> Self {
        Self::with(200, &[("Content-Type", "text/plain")], body)
    }

    /// A chunked body: head, the steps in between (see [`chunk`]), the last chunk and `trailers`.
    pub fn chunked(status: u16, headers: &[(&str, &str)], body: Vec<Step>, trailers: &[(&str, &str)]) -> Self {
        let head = format!("{}Transfer-Encoding: chunked\r\n\r\n", head(status, headers));
        let trailers: String = trailers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let mut steps = vec![Step::Send(head.into_bytes())];
        steps.extend(body);
        steps.push(Step::Send(format!("0\r\n{trailers}\r\n").into_bytes()));
        Self::steps(steps)
    }

    /// Server-sent events, one chunk an event.
    pub fn events<'a>(events: impl IntoIterator<Item = &'a str>) -> Self {
        let chunks = events.into_iter().map(|event| chunk(event.as_bytes())).collect();
        Self::chunked(200, &[("Content-Type", "text/event-stream"), ("Cache-Control", "no-cache")], chunks, &[])
    }

    /// Closes the connection after it, and says so: a client that isn't told may send its next
    /// request into the closing.
    #[must_use]
    pub fn then_close(mut self) -> Self {
        self.close = true;
        if let Some(Step::Send(bytes)) = self.steps.first_mut()
            && let Some(line) = bytes.windows(2).position(|end| end == b"\r\n")
        {
            bytes.splice(line..line, *b"\r\nConnection: close");
        }
        self
    }
}
