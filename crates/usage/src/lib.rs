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
//! Counts of a stream are cumulative, so the largest value of each field counts. Where a provider
//! charges for tokens that its totals leave out (Anthropic's compactions, Perplexity's citations),
//! they are added.

mod event_stream;
mod json;
mod path;
mod prices;
mod request;
mod shape;

use self::{
    event_stream::EventStream,
    json::{Json, Seen},
    shape::Counts,
};
pub use self::{
    path::{EMBEDDINGS, model_in_path, operation},
    prices::{MICROS_PER_USD, Prices, PricesError},
    request::most_output,
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
            () if ["application/json", "application/x-ndjson", "application/jsonl"].into_iter().any(is) => {
                Some(Self::Json)
            }
            () if essence.to_ascii_lowercase().ends_with("+json") => Some(Self::Json),
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
        /// provider had counted some by then, at least those. Reasoning that was not relayed is not
        /// in it, and neither is input that the provider had not counted yet.
        at_most: Tokens,
    },
}

impl Usage {
    /// The tokens, and whether they are the provider's own count. Otherwise the output is an upper
    /// bound.
    #[must_use]
    pub fn tokens(&self) -> (&Tokens, bool) {
        match self {
            Self::Known(tokens) => (tokens, true),
            Self::Unknown { at_most } => (at_most, false),
        }
    }
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

    /// What a header of the answer says: Bedrock's `X-Amzn-Bedrock-Input-Token-Count` and
    /// `…-Output-Token-Count`.
    pub fn count_header(&mut self, input: Option<u64>, output: Option<u64>) {
        self.counts.count_header(input, output);
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
        // Chunks of chat completions say in which texts their tokens are.
        let shown = self.counts.shown_in_chunks().filter(|_| self.framing == Framing::Events);
        let shown = shown.map_or(self.bytes, |shown| shown.saturating_add(self.json.unreported()));
        Usage::Unknown { at_most: Tokens { output: tokens.output.max(shown), ..tokens } }
    }
}
