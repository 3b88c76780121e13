//! The providers' shapes of usage, as one set of counts.

use super::{
    Tokens,
    json::{Key, Seen, Value},
};

/// Objects in which a usage object may be: of events.
const AROUND: [&[u8]; 6] = [b"message", b"response", b"delta", b"metadata", b"x_groq", b"data"];
/// Usage objects.
const USAGE: [&[u8]; 4] = [b"usage", b"usageMetadata", b"amazon-bedrock-invocationMetrics", b"meta"];
/// Texts at `type` or `event_type` that end a stream.
const ENDS: [&[u8]; 6] =
    [b"message_stop", b"response.completed", b"response.incomplete", b"response.failed", b"message-end", b"stream-end"];

/// What was counted so far; each the largest of its values.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Counts {
    input: u64,
    output: u64,
    total: u64,
    /// Parts of `input` and `output`.
    cached: u64,
    reasoning: u64,
    /// Beside `input` and `output`.
    more: More,
    has_usage: bool,
    has_ended: bool,
    model: [u8; 128],
    model_length: usize,
}

/// Counts that a provider does not include in its input or output.
#[derive(Clone, Copy, Debug, Default)]
struct More {
    cache_read: u64,
    cache_written: u64,
    tool_input: u64,
    thoughts: u64,
}

impl Default for Counts {
    fn default() -> Self {
        Self {
            input: 0,
            output: 0,
            total: 0,
            cached: 0,
            reasoning: 0,
            more: More::default(),
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
            Value::Part(_) => {}
        }
    }

    fn number(&mut self, path: &[Key], number: u64) {
        let around = path.first().is_some_and(|key| AROUND.contains(&key.as_bytes()));
        let rest = path.get(usize::from(around)..).unwrap_or_default();
        let Some((usage, rest)) = rest.split_first().filter(|(key, _)| USAGE.contains(&key.as_bytes())) else { return };
        let (within, field): (&[u8], _) = match rest {
            [field] => (b"", field.as_bytes()),
            [within, field] => (within.as_bytes(), field.as_bytes()),
            _ => return,
        };
        let is_detail = within.ends_with(b"_details");
        if !matches!(within, b"" | b"tokens" | b"billed_units") && !is_detail {
            return;
        }
        let count = match field {
            b"cached_tokens" if is_detail => &mut self.cached,
            b"reasoning_tokens" if is_detail => &mut self.reasoning,
            _ if is_detail => return,
            b"prompt_tokens" | b"promptTokenCount" | b"input_tokens" | b"inputTokens" | b"inputTokenCount" => {
                &mut self.input
            }
            b"completion_tokens"
            | b"candidatesTokenCount"
            | b"output_tokens"
            | b"outputTokens"
            | b"outputTokenCount" => &mut self.output,
            b"total_tokens" | b"totalTokenCount" | b"totalTokens" => &mut self.total,
            b"cachedContentTokenCount" | b"prompt_cache_hit_tokens" => &mut self.cached,
            b"cache_read_input_tokens" | b"cacheReadInputTokens" | b"cacheReadInputTokenCount" => {
                &mut self.more.cache_read
            }
            b"cache_creation_input_tokens" | b"cacheWriteInputTokens" | b"cacheWriteInputTokenCount" => {
                &mut self.more.cache_written
            }
            b"toolUsePromptTokenCount" => &mut self.more.tool_input,
            b"thoughtsTokenCount" => &mut self.more.thoughts,
            _ => return,
        };
        *count = number.max(*count);
        // What Anthropic says first, in `message`, is not the end's count.
        self.has_usage |= path.first().is_none_or(|key| key.as_bytes() != b"message");
        self.has_ended |= usage.as_bytes() == b"amazon-bedrock-invocationMetrics";
    }

    fn text(&mut self, path: &[Key], text: &[u8]) {
        let is = |names: &[&[u8]]| path.iter().map(Key::as_bytes).eq(names.iter().copied());
        if is(&[b"model"]) || is(&[b"message", b"model"]) || is(&[b"response", b"model"]) || is(&[b"modelVersion"]) {
            if let Some(place) = self.model.get_mut(..text.len()).filter(|_| text.iter().all(is_plain)) {
                place.copy_from_slice(text);
                self.model_length = text.len();
            }
            return;
        }
        let is_end = is(&[b"choices", b"finish_reason"])
            || is(&[b"candidates", b"finishReason"])
            || is(&[b"promptFeedback", b"blockReason"])
            || is(&[b"delta", b"stop_reason"])
            || is(&[b"stopReason"])
            || ((is(&[b"type"]) || is(&[b"event_type"])) && ENDS.contains(&text));
        self.has_ended |= is_end;
    }

    pub(crate) fn model(&self) -> Option<&str> {
        let text = self.model.get(..self.model_length).filter(|text| !text.is_empty())?;
        std::str::from_utf8(text).ok()
    }

    /// Whether the counts are those of the whole answer. A stream also has to say that it ends.
    pub(crate) fn is_final(&self, is_stream: bool) -> bool {
        self.has_usage && (self.has_ended || !is_stream)
    }

    pub(crate) fn tokens(&self) -> Tokens {
        let More { cache_read, cache_written, tool_input, thoughts } = self.more;
        let input = [self.input, cache_read, cache_written, tool_input].into_iter().fold(0, u64::saturating_add);
        // A total that is more than its parts has tokens that no part names: reasoning, as a rule.
        let output = self.output.saturating_add(thoughts).max(self.total.saturating_sub(input));
        Tokens {
            input,
            output,
            cached: self.cached.max(cache_read),
            cache_written,
            reasoning: self.reasoning.max(thoughts),
        }
    }
}

/// A byte of a model's name. Anything else is no name, and not recorded.
fn is_plain(byte: &u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b':' | b'/' | b'@')
}
