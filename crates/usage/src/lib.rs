//! What model providers say in their answers about tokens: read in one pass, whatever the split,
//! without keeping the answer.
//!
//! [`Meter`] takes the bytes of a body as they come: JSON, server-sent events, lines of JSON, or
//! Amazon's event stream. It reads the names and numbers of usage objects and skips everything
//! else.
//! It holds a few hundred bytes. The shapes are those of OpenAI (chat completions, responses,
//! embeddings) and compatible servers, Anthropic, Gemini and Vertex, Bedrock (Converse and
//! InvokeModel), Mistral, Cohere and OpenRouter.
//!
//! Counts of a stream are cumulative, so the largest value of each field counts.

mod event_stream;
mod json;
mod shape;

use self::{
    event_stream::EventStream,
    json::{Json, Seen},
    shape::Counts,
};

/// How a body is framed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// One JSON value, or several: lines of JSON, an array of chunks.
    Json,
    /// Server-sent events whose data are JSON.
    Events,
    /// `application/vnd.amazon.eventstream`.
    AmazonEventStream,
}

impl Framing {
    /// The framing of a `Content-Type`. `None`: it holds no usage.
    #[must_use]
    pub fn of(content_type: &str) -> Option<Self> {
        let essence = content_type.split(';').next().unwrap_or_default().trim();
        let is = |name: &str| essence.eq_ignore_ascii_case(name);
        match () {
            () if is("text/event-stream") => Some(Self::Events),
            () if is("application/vnd.amazon.eventstream") => Some(Self::AmazonEventStream),
            () if is("application/json") || is("application/x-ndjson") || is("application/stream+json") => {
                Some(Self::Json)
            }
            () => None,
        }
    }
}

/// Tokens of one answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tokens {
    /// Of the input, cached ones included.
    pub input: u64,
    /// Of the output, reasoning included.
    pub output: u64,
    /// Of `input`, those that were read from a cache.
    pub cached: u64,
    /// Of `input`, those that were written to a cache.
    pub cache_written: u64,
    /// Of `output`, those of reasoning that the answer does not show.
    pub reasoning: u64,
}

impl Tokens {
    /// Input and output.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.input.saturating_add(self.output)
    }
}

/// What an answer has used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Usage {
    /// The provider's own count.
    Known(Tokens),
    /// The answer broke off, or has no count.
    Unknown {
        /// Output that was relayed is at most so many tokens: each is a byte at least. Where the
        /// provider had counted some by then, at least those.
        at_most: Tokens,
    },
}

/// Reads the usage of one answer.
#[derive(Debug)]
pub struct Meter {
    framing: Framing,
    json: Json,
    frames: EventStream,
    counts: Counts,
    bytes: u64,
}

impl Meter {
    /// A meter for a body of this framing.
    #[must_use]
    pub fn new(framing: Framing) -> Self {
        Self {
            framing,
            json: Json::new(framing == Framing::Events),
            frames: EventStream::default(),
            counts: Counts::default(),
            bytes: 0,
        }
    }

    /// The next bytes of the body.
    pub fn read(&mut self, bytes: &[u8]) {
        self.bytes = self.bytes.saturating_add(bytes.len() as u64);
        let Self { json, counts, frames, .. } = self;
        let mut seen = |seen: Seen<'_>| counts.take(&seen);
        match self.framing {
            Framing::Json | Framing::Events => json.read(bytes, &mut seen),
            Framing::AmazonEventStream => frames.read(bytes, &mut |payload| json.read(payload, &mut seen)),
        }
    }

    /// The model that has answered, as far as the answer says. At most 128 bytes.
    #[must_use]
    pub fn model(&self) -> Option<&str> {
        self.counts.model()
    }

    /// What was used. `whole`: the body has ended as its framing says; otherwise it broke off.
    #[must_use]
    pub fn usage(&self, whole: bool) -> Usage {
        let tokens = self.counts.tokens();
        if whole && self.json.is_between_values() && self.counts.is_final(self.framing != Framing::Json) {
            return Usage::Known(tokens);
        }
        Usage::Unknown { at_most: Tokens { output: tokens.output.max(self.bytes), ..tokens } }
    }
}
