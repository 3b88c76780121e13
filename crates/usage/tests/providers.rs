//! 30 answers of each provider's documented shape, split at every byte and broken off at every
//! byte: the whole one has the provider's own count, and a part of it is never counted too low.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test")]

use seks_usage::{Framing, Meter, Tokens, Usage};

const ANSWERS: u64 = 30;

/// One answer: its bytes, what it used, and where output has been shown: each entry is a position
/// behind which one more token is.
struct Recorded {
    framing: Framing,
    bytes: Vec<u8>,
    tokens: Tokens,
    shown: Vec<usize>,
}

struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }

    /// Texts as models write them, also such as look like usage.
    fn word(&mut self) -> &'static str {
        let words =
            ["Hello", " wörld", "\\n\\n", " {", "\\\"usage\\\": {\\\"completion_tokens\\\": 9}", " 😀", "data: ", "]"];
        words[self.below(words.len() as u64) as usize]
    }
}

/// Builds an answer and notes where its tokens are.
#[derive(Default)]
struct Body {
    bytes: Vec<u8>,
    shown: Vec<usize>,
}

impl Body {
    fn event(&mut self, name: &str, data: &str) {
        let name = if name.is_empty() { String::new() } else { format!("event: {name}\n") };
        self.bytes.extend_from_slice(format!("{name}data: {data}\n\n").as_bytes());
    }

    /// An event with a token of output.
    fn token(&mut self, name: &str, data: &str) {
        self.event(name, data);
        self.shown.push(self.bytes.len());
    }

    fn frame(&mut self, kind: &str, payload: &str) {
        let header = |name: &str, value: &str| {
            let mut header = vec![name.len() as u8];
            header.extend_from_slice(name.as_bytes());
            header.push(7);
            header.extend_from_slice(&(value.len() as u16).to_be_bytes());
            header.extend_from_slice(value.as_bytes());
            header
        };
        let headers = [
            header(":event-type", kind),
            header(":content-type", "application/json"),
            header(":message-type", "event"),
        ]
        .concat();
        let total = 16 + headers.len() + payload.len();
        for number in [total, headers.len(), 0x1234_5678] {
            self.bytes.extend_from_slice(&(number as u32).to_be_bytes());
        }
        self.bytes.extend_from_slice(&headers);
        self.bytes.extend_from_slice(payload.as_bytes());
        self.bytes.extend_from_slice(&0x9ABC_DEF0_u32.to_be_bytes());
    }

    fn end(self, framing: Framing, tokens: Tokens) -> Recorded {
        Recorded { framing, bytes: self.bytes, tokens, shown: self.shown }
    }
}

fn base64(text: &str) -> String {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::new();
    for chunk in text.as_bytes().chunks(3) {
        let bits = chunk.iter().fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for at in 0..4 {
            let digit = DIGITS[(bits >> (18 - 6 * at) & 63) as usize] as char;
            out.push(if at <= chunk.len() { digit } else { '=' });
        }
    }
    out
}

/// Counts of one answer, and how many tokens of output it shows.
struct Numbers {
    tokens: Tokens,
    shown: u64,
}

fn numbers(random: &mut Random) -> Numbers {
    let (shown, cached, reasoning) = (1 + random.below(12), random.below(50), random.below(200));
    let input = cached + random.below(5000) + 1;
    Numbers { tokens: Tokens { input, output: shown + reasoning, cached, cache_written: 0, reasoning }, shown }
}

fn openai_usage(t: &Tokens) -> String {
    format!(
        r#"{{"prompt_tokens":{},"completion_tokens":{},"total_tokens":{},"prompt_tokens_details":{{"cached_tokens":{},"audio_tokens":0}},"completion_tokens_details":{{"reasoning_tokens":{},"audio_tokens":0,"accepted_prediction_tokens":0,"rejected_prediction_tokens":0}}}}"#,
        t.input,
        t.output,
        t.total(),
        t.cached,
        t.reasoning
    )
}

fn openai_chat(random: &mut Random) -> Recorded {
    let (Numbers { tokens, shown }, mut body) = (numbers(random), Body::default());
    let chunk = |choices: &str, usage: &str| {
        format!(
            r#"{{"id":"chatcmpl-1","object":"chat.completion.chunk","created":1694268190,"model":"gpt-4o-mini","system_fingerprint":"fp_44709d6fcb","choices":[{choices}],"usage":{usage}}}"#
        )
    };
    for _ in 0..shown {
        let delta =
            format!(r#"{{"index":0,"delta":{{"content":"{}"}},"logprobs":null,"finish_reason":null}}"#, random.word());
        body.token("", &chunk(&delta, "null"));
    }
    body.event("", &chunk(r#"{"index":0,"delta":{},"logprobs":null,"finish_reason":"stop"}"#, "null"));
    body.event("", &chunk("", &openai_usage(&tokens)));
    body.event("", "[DONE]");
    body.end(Framing::Events, tokens)
}

fn openai_whole(random: &mut Random) -> Recorded {
    let (Numbers { tokens, .. }, mut body) = (numbers(random), Body::default());
    body.bytes = format!(
        "{{\n  \"id\": \"chatcmpl-1\",\n  \"model\": \"gpt-4o\",\n  \"choices\": [{{\"index\": 0, \"message\": {{\"role\": \"assistant\", \"content\": \"{}\"}}, \"finish_reason\": \"stop\"}}],\n  \"usage\": {}\n}}\n",
        random.word(), openai_usage(&tokens)
    ).into_bytes();
    body.end(Framing::Json, tokens)
}

fn openai_responses(random: &mut Random) -> Recorded {
    let (Numbers { tokens, shown }, mut body) = (numbers(random), Body::default());
    body.event("response.created", r#"{"type":"response.created","response":{"id":"resp_1","object":"response","status":"in_progress","model":"gpt-5","output":[],"usage":null}}"#);
    for at in 0..shown {
        let data = format!(
            r#"{{"type":"response.output_text.delta","item_id":"msg_1","output_index":0,"content_index":0,"delta":"{}","sequence_number":{at}}}"#,
            random.word()
        );
        body.token("response.output_text.delta", &data);
    }
    let data = format!(
        r#"{{"type":"response.completed","response":{{"id":"resp_1","status":"completed","model":"gpt-5","output":[{{"type":"message","content":[{{"type":"output_text","text":"x"}}]}}],"usage":{{"input_tokens":{},"input_tokens_details":{{"cached_tokens":{}}},"output_tokens":{},"output_tokens_details":{{"reasoning_tokens":{}}},"total_tokens":{}}}}}}}"#,
        tokens.input,
        tokens.cached,
        tokens.output,
        tokens.reasoning,
        tokens.total()
    );
    body.event("response.completed", &data);
    body.end(Framing::Events, tokens)
}

/// Events of Anthropic's messages, and what they add up to.
fn anthropic_events(random: &mut Random) -> (Vec<(&'static str, String, bool)>, Tokens) {
    let Numbers { shown, .. } = numbers(random);
    let (fresh, read, written) = (1 + random.below(3000), random.below(2000), random.below(2000));
    let tokens =
        Tokens { input: fresh + read + written, output: shown + 3, cached: read, cache_written: written, reasoning: 0 };
    let start = format!(
        r#"{{"type":"message_start","message":{{"id":"msg_1","type":"message","role":"assistant","content":[],"model":"claude-sonnet-4-5","stop_reason":null,"stop_sequence":null,"usage":{{"input_tokens":{fresh},"cache_creation_input_tokens":{written},"cache_read_input_tokens":{read},"cache_creation":{{"ephemeral_5m_input_tokens":{written},"ephemeral_1h_input_tokens":0}},"output_tokens":1,"service_tier":"standard"}}}}}}"#
    );
    let mut events = vec![
        ("message_start", start, false),
        (
            "content_block_start",
            r#"{"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}"#.into(),
            false,
        ),
        ("ping", r#"{"type": "ping"}"#.into(), false),
    ];
    for _ in 0..shown {
        let data = format!(
            r#"{{"type":"content_block_delta","index":0,"delta":{{"type":"text_delta","text":"{}"}}}}"#,
            random.word()
        );
        events.push(("content_block_delta", data, true));
    }
    events.push(("content_block_stop", r#"{"type":"content_block_stop","index":0}"#.into(), false));
    let delta = format!(
        r#"{{"type":"message_delta","delta":{{"stop_reason":"end_turn","stop_sequence":null}},"usage":{{"output_tokens":{}}}}}"#,
        tokens.output
    );
    events.push(("message_delta", delta, false));
    (events, tokens)
}

fn anthropic(random: &mut Random) -> Recorded {
    let ((events, tokens), mut body) = (anthropic_events(random), Body::default());
    for (name, data, is_token) in events {
        if is_token { body.token(name, &data) } else { body.event(name, &data) }
    }
    body.event("message_stop", r#"{"type":"message_stop"}"#);
    body.end(Framing::Events, tokens)
}

fn bedrock_invoke(random: &mut Random) -> Recorded {
    let ((events, tokens), mut body) = (anthropic_events(random), Body::default());
    let wrapped = |data: &str, random: &mut Random| {
        format!(
            r#"{{"bytes":"{}","p":"{}"}}"#,
            base64(data),
            &"abcdefghijklmnopqrstuvwxyzABCDEF"[..random.below(32) as usize]
        )
    };
    for (_, data, is_token) in events {
        body.frame("chunk", &wrapped(&data, random));
        if is_token {
            body.shown.push(body.bytes.len());
        }
    }
    let stop = format!(
        r#"{{"type":"message_stop","amazon-bedrock-invocationMetrics":{{"inputTokenCount":{},"outputTokenCount":{},"invocationLatency":1200,"firstByteLatency":300,"cacheReadInputTokenCount":{},"cacheWriteInputTokenCount":{}}}}}"#,
        tokens.input - tokens.cached - tokens.cache_written,
        tokens.output,
        tokens.cached,
        tokens.cache_written
    );
    body.frame("chunk", &wrapped(&stop, random));
    body.end(Framing::AmazonEventStream, tokens)
}

fn bedrock_converse(random: &mut Random) -> Recorded {
    let (Numbers { shown, .. }, mut body) = (numbers(random), Body::default());
    let (fresh, read, written) = (1 + random.below(3000), random.below(2000), random.below(2000));
    let tokens =
        Tokens { input: fresh + read + written, output: shown, cached: read, cache_written: written, reasoning: 0 };
    body.frame("messageStart", r#"{"p":"abcd","role":"assistant"}"#);
    for _ in 0..shown {
        let data = format!(r#"{{"contentBlockIndex":0,"delta":{{"text":"{}"}},"p":"abcdefghijk"}}"#, random.word());
        body.frame("contentBlockDelta", &data);
        body.shown.push(body.bytes.len());
    }
    body.frame("messageStop", r#"{"p":"abc","stopReason":"end_turn"}"#);
    let data = format!(
        r#"{{"metrics":{{"latencyMs":551}},"p":"abcdefgh","usage":{{"cacheReadInputTokens":{read},"cacheWriteInputTokens":{written},"inputTokens":{fresh},"outputTokens":{},"totalTokens":{}}}}}"#,
        tokens.output,
        tokens.total()
    );
    body.frame("metadata", &data);
    body.end(Framing::AmazonEventStream, tokens)
}

/// Chunks of Gemini and Vertex: the counts so far are in each.
fn gemini_chunks(random: &mut Random) -> (Vec<String>, Tokens) {
    let Numbers { tokens, shown } = numbers(random);
    let chunk = |at: u64, text: &str| {
        let end = if at == shown { r#","finishReason":"STOP""# } else { "" };
        let output = at;
        format!(
            r#"{{"candidates":[{{"content":{{"parts":[{{"text":"{text}"}}],"role":"model"}}{end},"index":0}}],"usageMetadata":{{"promptTokenCount":{},"candidatesTokenCount":{output},"totalTokenCount":{},"cachedContentTokenCount":{},"promptTokensDetails":[{{"modality":"TEXT","tokenCount":{}}}],"thoughtsTokenCount":{}}},"modelVersion":"gemini-2.5-flash","responseId":"r-1"}}"#,
            tokens.input,
            tokens.input + output + tokens.reasoning,
            tokens.cached,
            tokens.input,
            tokens.reasoning
        )
    };
    ((1..=shown).map(|at| chunk(at, random.word())).collect(), tokens)
}

fn gemini(random: &mut Random) -> Recorded {
    let ((chunks, tokens), mut body) = (gemini_chunks(random), Body::default());
    chunks.iter().for_each(|chunk| body.token("", chunk));
    body.end(Framing::Events, tokens)
}

fn vertex(random: &mut Random) -> Recorded {
    let ((chunks, tokens), mut body) = (gemini_chunks(random), Body::default());
    for (at, chunk) in chunks.iter().enumerate() {
        body.bytes.extend_from_slice(if at == 0 { b"[" } else { b",\r\n" });
        body.bytes.extend_from_slice(chunk.as_bytes());
        body.shown.push(body.bytes.len());
    }
    body.bytes.extend_from_slice(b"]\n");
    body.end(Framing::Json, tokens)
}

fn mistral(random: &mut Random) -> Recorded {
    let (Numbers { mut tokens, shown }, mut body) = (numbers(random), Body::default());
    tokens = Tokens { input: tokens.input, output: shown, ..Tokens::default() };
    for at in 1..=shown {
        let (reason, usage) = match at == shown {
            true => (
                "\"stop\"",
                format!(
                    r#","usage":{{"prompt_tokens":{},"total_tokens":{},"completion_tokens":{}}}"#,
                    tokens.input,
                    tokens.total(),
                    tokens.output
                ),
            ),
            false => ("null", String::new()),
        };
        let data = format!(
            r#"{{"id":"c","object":"chat.completion.chunk","model":"mistral-small-latest","choices":[{{"index":0,"delta":{{"content":"{}"}},"finish_reason":{reason}}}]{usage}}}"#,
            random.word()
        );
        body.token("", &data);
    }
    body.event("", "[DONE]");
    body.end(Framing::Events, tokens)
}

fn cohere(random: &mut Random) -> Recorded {
    let (Numbers { mut tokens, shown }, mut body) = (numbers(random), Body::default());
    tokens = Tokens { input: tokens.input + 70, output: shown, ..Tokens::default() };
    body.event(
        "message-start",
        r#"{"type":"message-start","id":"1","delta":{"message":{"role":"assistant","content":[]}}}"#,
    );
    for _ in 0..shown {
        let data = format!(
            r#"{{"type":"content-delta","index":0,"delta":{{"message":{{"content":{{"text":"{}"}}}}}}}}"#,
            random.word()
        );
        body.token("content-delta", &data);
    }
    let data = format!(
        r#"{{"type":"message-end","delta":{{"finish_reason":"COMPLETE","usage":{{"billed_units":{{"input_tokens":{},"output_tokens":{}}},"tokens":{{"input_tokens":{},"output_tokens":{}}}}}}}}}"#,
        tokens.input - 70,
        tokens.output,
        tokens.input,
        tokens.output
    );
    body.event("message-end", &data);
    body.end(Framing::Events, tokens)
}

fn openrouter(random: &mut Random) -> Recorded {
    let (Numbers { tokens, shown }, mut body) = (numbers(random), Body::default());
    body.bytes.extend_from_slice(b": OPENROUTER PROCESSING\n\n");
    for at in 1..=shown {
        let reason = if at == shown { "\"stop\"" } else { "null" };
        let data = format!(
            r#"{{"id":"gen-1","provider":"OpenAI","model":"openai/gpt-4o","object":"chat.completion.chunk","choices":[{{"index":0,"delta":{{"role":"assistant","content":"{}"}},"finish_reason":{reason},"native_finish_reason":{reason}}}]}}"#,
            random.word()
        );
        body.token("", &data);
    }
    let usage = openai_usage(&tokens).replacen(
        '{',
        r#"{"cost":0.00014,"is_byok":false,"cost_details":{"upstream_inference_cost":null},"#,
        1,
    );
    body.event("", &format!(r#"{{"id":"gen-1","provider":"OpenAI","model":"openai/gpt-4o","object":"chat.completion.chunk","choices":[{{"index":0,"delta":{{"role":"assistant","content":""}},"finish_reason":null}}],"usage":{usage}}}"#));
    body.event("", "[DONE]");
    body.end(Framing::Events, tokens)
}

fn check(provider: &str, record: impl Fn(&mut Random) -> Recorded, model: Option<&str>) {
    for seed in 0..ANSWERS {
        let Recorded { framing, bytes, tokens, shown } = record(&mut Random(seed));
        // Byte by byte, and broken off behind each.
        let mut meter = Meter::new(framing);
        for split in 0..=bytes.len() {
            meter.read(bytes.get(split.wrapping_sub(1)..split).unwrap_or_default());
            // Broken off here, whether the connection says so or not.
            let least = shown.iter().filter(|position| **position <= split).count() as u64;
            let counted = |usage| match usage {
                Usage::Known(tokens) => tokens.output,
                Usage::Unknown { at_most } => at_most.output,
            };
            assert!(counted(meter.usage(false)) >= least, "{provider} {seed}: broken off at {split}");
            match meter.usage(true) {
                Usage::Known(known) => assert_eq!(known, tokens, "{provider} {seed}: ended at {split}"),
                Usage::Unknown { at_most } => assert!(at_most.output >= least, "{provider} {seed}: ended at {split}"),
            }
        }
        // In two parts: at every byte of the first answer, and at some of the others.
        let step = if seed == 0 { 1 } else { 97 };
        for split in (0..=bytes.len()).step_by(step) {
            let (first, second) = bytes.split_at(split);
            let mut meter = Meter::new(framing);
            meter.read(first);
            meter.read(second);
            assert_eq!(meter.usage(true), Usage::Known(tokens), "{provider} {seed}: split at {split}");
            assert_eq!(meter.model(), model, "{provider} {seed}");
        }
    }
}

#[test]
fn openai_is_counted_as_it_counts_itself() {
    check("chat", openai_chat, Some("gpt-4o-mini"));
    check("whole", openai_whole, Some("gpt-4o"));
    check("responses", openai_responses, Some("gpt-5"));
}

#[test]
fn anthropic_is_counted_as_it_counts_itself() {
    check("anthropic", anthropic, Some("claude-sonnet-4-5"));
}

#[test]
fn bedrock_is_counted_as_it_counts_itself() {
    check("invoke", bedrock_invoke, Some("claude-sonnet-4-5"));
    check("converse", bedrock_converse, None);
}

#[test]
fn gemini_and_vertex_are_counted_as_they_count_themselves() {
    check("gemini", gemini, Some("gemini-2.5-flash"));
    check("vertex", vertex, Some("gemini-2.5-flash"));
}

#[test]
fn mistral_cohere_and_openrouter_are_counted_as_they_count_themselves() {
    check("mistral", mistral, Some("mistral-small-latest"));
    check("cohere", cohere, None);
    check("openrouter", openrouter, Some("openai/gpt-4o"));
}

#[test]
fn an_answer_without_usage_is_unknown_and_bounded_by_its_bytes() {
    for (framing, body) in [
        (Framing::Json, r#"{"object":"list","data":[{"id":"gpt-4o"}]}"#),
        (Framing::Json, r#"{"choices":[{"message":{"content":"{\"usage\":{\"completion_tokens\":1}}"}}]}"#),
        (Framing::Events, "data: {\"type\":\"content_block_delta\",\"delta\":{\"text\":\"x\"}}\n\n"),
        (Framing::AmazonEventStream, "not a frame at all"),
    ] {
        let mut meter = Meter::new(framing);
        meter.read(body.as_bytes());
        let at_most = Tokens { output: body.len() as u64, ..Tokens::default() };
        assert_eq!(meter.usage(true), Usage::Unknown { at_most });
    }
}

#[test]
fn chunks_without_usage_are_bounded_by_their_texts() {
    let chunk = |content: &str| {
        format!(
            "data: {{\"id\":\"chatcmpl-1\",\"model\":\"gpt-4o\",\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\"{content}\"}},\"finish_reason\":null}}]}}\n\n"
        )
    };
    let stop = "data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}]}\n\ndata: [DONE]\n\n";
    let bound = |body: &str| {
        let mut meter = Meter::new(Framing::Events);
        meter.read(body.as_bytes());
        let Usage::Unknown { at_most } = meter.usage(true) else { panic!("{body}") };
        at_most.output
    };
    let whole = [chunk("Hello").as_str(), &chunk(" you"), stop].concat();
    assert_eq!(bound(&whole), 3 + 5 + 4, "one a chunk, and one a byte");
    let cut = &whole[..whole.find("lo\"").unwrap()];
    assert_eq!(bound(cut), 1 + 3, "a text that broke off");
    let other = [chunk("Hello").as_str(), "data: {\"error\":{\"message\":\"x\"}}\n\n"].concat();
    assert_eq!(bound(&other), other.len() as u64, "something else: all bytes count");
}

#[test]
fn framings_are_those_of_content_types() {
    assert_eq!(Framing::of("text/event-stream; charset=utf-8"), Some(Framing::Events));
    assert_eq!(Framing::of("Application/JSON"), Some(Framing::Json));
    assert_eq!(Framing::of("application/vnd.amazon.eventstream"), Some(Framing::AmazonEventStream));
    assert_eq!(Framing::of("text/html"), None);
}
