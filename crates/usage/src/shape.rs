//! The providers' shapes of usage, as one set of counts.
//!
//! Sources, read on 2026-12-01: openai-openapi (`CompletionUsage`, `ResponseUsage`,
//! `TranscriptTextUsageTokens`), Anthropic's and Google's Python SDKs (`Usage`,
//! `MessageDeltaUsage`, `BetaIterationsUsage`; `GenerateContentResponseUsageMetadata`,
//! `interactions.Usage`), botocore's `bedrock-runtime` (`TokenUsage`), Mistral's (`UsageInfo`,
//! `ConversationUsageInfo`) and Cohere's Python SDKs (`Usage`, `ApiMeta`).
//!
//! Not checked against the vendors' pages on that day: xAI, DeepSeek, Groq, Perplexity, OpenRouter,
//! Bedrock's Llama and Titan, and text embeddings of Vertex AI.

use super::{
    Tokens,
    json::{Key, Seen, Value},
};

/// Objects in which a usage object may be: of events.
const AROUND: [&[u8]; 7] = [b"message", b"response", b"delta", b"metadata", b"x_groq", b"data", b"interaction"];
/// Usage objects.
const USAGE: [&[u8]; 4] = [b"usage", b"usageMetadata", b"amazon-bedrock-invocationMetrics", b"meta"];
/// Texts at `type` or `event_type` that end a stream.
const ENDS: [&[u8]; 14] = [
    b"message_stop",
    b"response.completed",
    b"response.incomplete",
    b"response.failed",
    b"response.cancelled",
    b"response.done",
    b"transcript.text.done",
    b"speech.audio.done",
    b"image_generation.completed",
    b"image_edit.completed",
    b"conversation.response.done",
    b"interaction.completed",
    b"message-end",
    b"stream-end",
];
/// Texts beside `choices` in a chunk of a chat completion. None of them is output.
const OF_CHUNKS: [&[u8]; 8] =
    [b"id", b"object", b"model", b"system_fingerprint", b"service_tier", b"provider", b"obfuscation", b"x_groq"];

/// What was counted so far; each the largest of its values.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Counts {
    input: u64,
    output: u64,
    total: u64,
    /// Parts of `input` and `output`.
    within: Within,
    /// Beside `input` and `output`.
    more: More,
    /// Anthropic's sampling iterations: of this usage object, and the most of earlier ones.
    iterations: Iterations,
    earlier_iterations: Iterations,
    chunks: Chunks,
    has_usage: bool,
    has_ended: bool,
    model: [u8; 128],
    model_length: usize,
}

/// Counts that a provider includes in its input or output.
#[derive(Clone, Copy, Debug, Default)]
struct Within {
    cached: u64,
    cache_written: u64,
    reasoning: u64,
}

/// Counts that a provider does not include in its input or output.
#[derive(Clone, Copy, Debug, Default)]
struct More {
    cache_read: u64,
    cache_written: u64,
    tool_input: u64,
    thoughts: u64,
    /// Not even in its total: Perplexity's.
    citations: u64,
    apart_reasoning: u64,
    /// Vertex counts each text that it embeds by itself.
    embedded: u64,
}

/// Sums of `usage.iterations`, which has what compaction and advisors used and the totals leave
/// out.
#[derive(Clone, Copy, Debug, Default)]
struct Iterations {
    input: u64,
    output: u64,
    cache_read: u64,
    cache_written: u64,
}

impl Iterations {
    fn max(self, other: Self) -> Self {
        Self {
            input: self.input.max(other.input),
            output: self.output.max(other.output),
            cache_read: self.cache_read.max(other.cache_read),
            cache_written: self.cache_written.max(other.cache_written),
        }
    }
}

/// What the chunks of a chat completion have shown.
#[derive(Clone, Copy, Debug, Default)]
struct Chunks {
    /// One for each chunk, and the bytes of its texts.
    shown: u64,
    /// There was something else as well.
    has_others: bool,
}

impl Default for Counts {
    fn default() -> Self {
        Self {
            input: 0,
            output: 0,
            total: 0,
            within: Within::default(),
            more: More::default(),
            iterations: Iterations::default(),
            earlier_iterations: Iterations::default(),
            chunks: Chunks::default(),
            has_usage: false,
            has_ended: false,
            model: [0; 128],
            model_length: 0,
        }
    }
}

impl Counts {
    /// A value of the answer.
    pub(crate) fn take(&mut self, seen: &Seen<'_>) {
        match seen.value {
            Value::Number(number) => self.number(seen.path, number),
            Value::Text(text) => self.text(seen.path, text),
            Value::Part(text) => self.show(seen.path, text),
            Value::Opened => self.opened(seen.path),
        }
    }

    /// What headers of the answer say.
    pub(crate) fn count_header(&mut self, input: Option<u64>, output: Option<u64>) {
        self.input = self.input.max(input.unwrap_or_default());
        self.output = self.output.max(output.unwrap_or_default());
        self.has_usage |= input.is_some() && output.is_some();
    }

    fn number(&mut self, path: &[Key], number: u64) {
        let around = path.first().is_some_and(|key| AROUND.contains(&key.as_bytes()));
        let rest = path.get(usize::from(around)..).unwrap_or_default();
        let Some((usage, rest)) = rest.split_first().filter(|(key, _)| USAGE.contains(&key.as_bytes())) else {
            return self.number_without_usage(path, number);
        };
        let (within, field): (&[u8], _) = match rest {
            [field] => (b"", field.as_bytes()),
            [within, field] => (within.as_bytes(), field.as_bytes()),
            _ => return,
        };
        let is_known = match within {
            b"iterations" => return self.iterations.count(field, number),
            b"" | b"tokens" | b"billed_units" => self.count(field, number),
            details if details.ends_with(b"_details") => self.within.count(field, number),
            _ => false,
        };
        // What Anthropic says first, in `message`, is not the end's count.
        self.has_usage |= is_known && path.first().is_none_or(|key| key.as_bytes() != b"message");
        self.has_ended |= usage.as_bytes() == b"amazon-bedrock-invocationMetrics";
    }

    /// A field of a usage object. Returns whether it is known.
    fn count(&mut self, field: &[u8], number: u64) -> bool {
        let Self { input, output, total, within, more, .. } = self;
        let count = match field {
            b"prompt_tokens"
            | b"promptTokenCount"
            | b"input_tokens"
            | b"inputTokens"
            | b"inputTokenCount"
            | b"total_input_tokens" => input,
            b"completion_tokens"
            | b"candidatesTokenCount"
            | b"responseTokenCount"
            | b"output_tokens"
            | b"outputTokens"
            | b"outputTokenCount"
            | b"total_output_tokens" => output,
            b"total_tokens" | b"totalTokenCount" | b"totalTokens" => total,
            b"cached_tokens" | b"cachedContentTokenCount" | b"prompt_cache_hit_tokens" | b"total_cached_tokens" => {
                &mut within.cached
            }
            b"cache_read_input_tokens" | b"cacheReadInputTokens" | b"cacheReadInputTokenCount" => &mut more.cache_read,
            b"cache_creation_input_tokens" | b"cacheWriteInputTokens" | b"cacheWriteInputTokenCount" => {
                &mut more.cache_written
            }
            b"toolUsePromptTokenCount" | b"total_tool_use_tokens" => &mut more.tool_input,
            b"thoughtsTokenCount" | b"total_thought_tokens" => &mut more.thoughts,
            b"citation_tokens" => &mut more.citations,
            b"reasoning_tokens" => &mut more.apart_reasoning,
            _ => return false,
        };
        *count = number.max(*count);
        true
    }

    /// Counts that are in no usage object: of Bedrock's Llama and Titan, and of Vertex's
    /// embeddings.
    fn number_without_usage(&mut self, path: &[Key], number: u64) {
        let is = |names: &[&[u8]]| path.iter().map(Key::as_bytes).eq(names.iter().copied());
        if is(&[b"predictions", b"embeddings", b"statistics", b"token_count"]) {
            self.more.embedded = self.more.embedded.saturating_add(number);
        } else if is(&[b"prompt_token_count"]) || is(&[b"inputTextTokenCount"]) {
            self.input = number.max(self.input);
        } else if is(&[b"generation_token_count"])
            || is(&[b"totalOutputTextTokenCount"])
            || is(&[b"results", b"tokenCount"])
        {
            self.output = number.max(self.output);
        } else {
            return;
        }
        self.has_usage = true;
    }

    fn opened(&mut self, path: &[Key]) {
        match path {
            [choices] if choices.as_bytes() == b"choices" => self.chunks.shown = self.chunks.shown.saturating_add(1),
            // A usage object's iterations begin again; each of them is one key deeper.
            [.., usage, iterations] if usage.as_bytes() == b"usage" && iterations.as_bytes() == b"iterations" => {
                self.earlier_iterations = self.earlier_iterations.max(self.iterations);
                self.iterations = Iterations::default();
            }
            _ => {}
        }
    }

    /// A text, or a part of one, in a chunk of a chat completion.
    fn show(&mut self, path: &[Key], text: &[u8]) {
        match path {
            [first, ..] if first.as_bytes() == b"choices" => {
                self.chunks.shown = self.chunks.shown.saturating_add(text.len() as u64);
            }
            [first, ..] if OF_CHUNKS.contains(&first.as_bytes()) => {}
            _ => self.chunks.has_others = true,
        }
    }

    fn text(&mut self, path: &[Key], text: &[u8]) {
        let is = |names: &[&[u8]]| path.iter().map(Key::as_bytes).eq(names.iter().copied());
        let is_model = is(&[b"model"])
            || is(&[b"message", b"model"])
            || is(&[b"response", b"model"])
            || is(&[b"interaction", b"model"])
            || is(&[b"modelVersion"]);
        if is_model {
            if let Some(place) = self.model.get_mut(..text.len()).filter(|_| text.iter().all(is_plain)) {
                place.copy_from_slice(text);
                self.model_length = text.len();
            }
            return;
        }
        if is(&[b"choices", b"finish_reason"]) || is(&[b"choices", b"native_finish_reason"]) {
            self.has_ended = true;
            return;
        }
        self.show(path, text);
        self.has_ended |= is(&[b"candidates", b"finishReason"])
            || is(&[b"promptFeedback", b"blockReason"])
            || is(&[b"delta", b"stop_reason"])
            || is(&[b"stopReason"])
            || ((is(&[b"type"]) || is(&[b"event_type"])) && ENDS.contains(&text));
    }

    pub(crate) fn model(&self) -> Option<&str> {
        let text = self.model.get(..self.model_length).filter(|text| !text.is_empty())?;
        std::str::from_utf8(text).ok()
    }

    /// Whether the counts are those of the whole answer. A stream also has to say that it ends.
    pub(crate) fn is_final(&self, is_stream: bool) -> bool {
        self.has_usage && (self.has_ended || !is_stream)
    }

    /// Most tokens that chunks of a chat completion have shown. `None`: the answer has something
    /// else.
    pub(crate) fn shown_in_chunks(&self) -> Option<u64> {
        (self.chunks.shown > 0 && !self.chunks.has_others).then_some(self.chunks.shown)
    }

    pub(crate) fn tokens(&self) -> Tokens {
        let More { cache_read, cache_written, tool_input, thoughts, citations, apart_reasoning, embedded } = self.more;
        let iterations = self.earlier_iterations.max(self.iterations);
        let (cache_read, cache_written) =
            (cache_read.max(iterations.cache_read), cache_written.max(iterations.cache_written));
        let own = self.input.max(iterations.input);
        let input = [own, cache_read, cache_written, tool_input, embedded].into_iter().fold(0, u64::saturating_add);
        let shown = self.output.max(iterations.output);
        // A total that has more than its parts has tokens that no part names, reasoning as a rule.
        // It also says whether thoughts are a part of the output.
        let output = match self.total.checked_sub(input) {
            Some(rest) if rest >= shown => rest,
            _ => shown.saturating_add(thoughts),
        };
        Tokens {
            input: input.saturating_add(citations),
            output: output.saturating_add(apart_reasoning),
            cached: self.within.cached.max(cache_read),
            cache_written: self.within.cache_written.max(cache_written),
            reasoning: self.within.reasoning.max(thoughts).max(apart_reasoning),
        }
    }
}

impl Within {
    /// A field of a breakdown. Returns whether it is known.
    fn count(&mut self, field: &[u8], number: u64) -> bool {
        let count = match field {
            b"cached_tokens" => &mut self.cached,
            b"cache_write_tokens" => &mut self.cache_written,
            b"reasoning_tokens" | b"thinking_tokens" => &mut self.reasoning,
            _ => return false,
        };
        *count = number.max(*count);
        true
    }
}

impl Iterations {
    /// A field of one iteration.
    fn count(&mut self, field: &[u8], number: u64) {
        let sum = match field {
            b"input_tokens" => &mut self.input,
            b"output_tokens" => &mut self.output,
            b"cache_read_input_tokens" => &mut self.cache_read,
            b"cache_creation_input_tokens" => &mut self.cache_written,
            _ => return,
        };
        *sum = sum.saturating_add(number);
    }
}

/// A byte of a model's name. Anything else is no name, and not recorded.
pub(crate) fn is_plain(byte: &u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b':' | b'/' | b'@')
}
