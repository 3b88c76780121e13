//! Answers as the vendors' documents show them, one a shape that a stream's common one does not
//! cover. Each is read byte by byte, split at every byte, and broken off at every byte: the whole
//! answer has the vendor's own count, and a part of it has that count or none.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test")]

use seks_usage::{Framing, Meter, Tokens, Usage};

struct Shape {
    name: &'static str,
    framing: Framing,
    body: &'static str,
    tokens: Tokens,
    model: Option<&'static str>,
}

const fn tokens(input: u64, output: u64) -> Tokens {
    Tokens { input, output, cached: 0, cache_written: 0, reasoning: 0 }
}

const SHAPES: &[Shape] = &[
    // openai-openapi, `CompletionUsage`: written to a cache, a part of the prompt.
    Shape {
        name: "a chat completion with a cache",
        framing: Framing::Json,
        body: r#"{"id":"chatcmpl-1","object":"chat.completion","model":"gpt-5.1","choices":[{"index":0,"message":{"role":"assistant","content":"Hi","refusal":null},"logprobs":null,"finish_reason":"stop"}],"usage":{"prompt_tokens":2006,"completion_tokens":300,"total_tokens":2306,"prompt_tokens_details":{"cached_tokens":1920,"audio_tokens":0,"cache_write_tokens":64},"completion_tokens_details":{"reasoning_tokens":256,"audio_tokens":0,"accepted_prediction_tokens":0,"rejected_prediction_tokens":10}},"service_tier":"default"}"#,
        tokens: Tokens { cached: 1920, cache_written: 64, reasoning: 256, ..tokens(2006, 300) },
        model: Some("gpt-5.1"),
    },
    // openai-openapi, `CreateEmbeddingResponse`.
    Shape {
        name: "embeddings",
        framing: Framing::Json,
        body: r#"{"object":"list","data":[{"object":"embedding","embedding":[0.0023064255,-0.009327292,-2.8842222e-05],"index":0}],"model":"text-embedding-3-small","usage":{"prompt_tokens":8,"total_tokens":8}}"#,
        tokens: tokens(8, 0),
        model: Some("text-embedding-3-small"),
    },
    // openai-openapi, `TranscriptTextDoneEvent`: its details are singular.
    Shape {
        name: "a transcription",
        framing: Framing::Events,
        body: "data: {\"type\":\"transcript.text.delta\",\"delta\":\"I\"}\n\ndata: {\"type\":\"transcript.text.done\",\"text\":\"I see\",\"logprobs\":[{\"token\":\"I\",\"logprob\":-0.00007588794,\"bytes\":[73]}],\"usage\":{\"type\":\"tokens\",\"input_tokens\":14,\"input_token_details\":{\"text_tokens\":0,\"audio_tokens\":14},\"output_tokens\":45,\"total_tokens\":59}}\n\n",
        tokens: tokens(14, 45),
        model: None,
    },
    // openai-openapi, `ImageGenCompletedEvent`.
    Shape {
        name: "an image",
        framing: Framing::Events,
        body: "event: image_generation.partial_image\ndata: {\"type\":\"image_generation.partial_image\",\"b64_json\":\"AAAA\",\"partial_image_index\":0}\n\nevent: image_generation.completed\ndata: {\"type\":\"image_generation.completed\",\"b64_json\":\"AAAA\",\"usage\":{\"total_tokens\":100,\"input_tokens\":50,\"output_tokens\":50,\"input_tokens_details\":{\"text_tokens\":10,\"image_tokens\":40}}}\n\n",
        tokens: tokens(50, 50),
        model: None,
    },
    // openai-openapi, `ResponseIncompleteEvent`.
    Shape {
        name: "a response that ended at its most tokens",
        framing: Framing::Events,
        body: "event: response.created\ndata: {\"type\":\"response.created\",\"response\":{\"id\":\"resp_1\",\"status\":\"in_progress\",\"model\":\"gpt-5\",\"usage\":null}}\n\nevent: response.incomplete\ndata: {\"type\":\"response.incomplete\",\"response\":{\"id\":\"resp_1\",\"status\":\"incomplete\",\"incomplete_details\":{\"reason\":\"max_output_tokens\"},\"model\":\"gpt-5\",\"usage\":{\"input_tokens\":37,\"input_tokens_details\":{\"cached_tokens\":0,\"cache_write_tokens\":0},\"output_tokens\":16,\"output_tokens_details\":{\"reasoning_tokens\":16},\"total_tokens\":53}}}\n\n",
        tokens: Tokens { reasoning: 16, ..tokens(37, 16) },
        model: Some("gpt-5"),
    },
    // Anthropic, `MessageDeltaUsage`: every field is cumulative, and server tools add input.
    Shape {
        name: "Anthropic's web search",
        framing: Framing::Events,
        body: "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"id\":\"msg_1\",\"type\":\"message\",\"role\":\"assistant\",\"model\":\"claude-opus-4-5\",\"content\":[],\"stop_reason\":null,\"usage\":{\"input_tokens\":2679,\"cache_creation_input_tokens\":0,\"cache_read_input_tokens\":0,\"output_tokens\":3}}}\n\nevent: message_delta\ndata: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"end_turn\",\"stop_sequence\":null},\"usage\":{\"input_tokens\":10682,\"cache_creation_input_tokens\":0,\"cache_read_input_tokens\":0,\"output_tokens\":510,\"output_tokens_details\":{\"thinking_tokens\":120},\"server_tool_use\":{\"web_search_requests\":1}}}\n\nevent: message_stop\ndata: {\"type\":\"message_stop\"}\n\n",
        tokens: Tokens { reasoning: 120, ..tokens(10_682, 510) },
        model: Some("claude-opus-4-5"),
    },
    // Anthropic, `BetaIterationsUsage`: compaction is charged, and the totals leave it out.
    Shape {
        name: "Anthropic's compaction",
        framing: Framing::Json,
        body: r#"{"id":"msg_1","type":"message","role":"assistant","model":"claude-opus-4-6","content":[{"type":"text","text":"Hi"}],"stop_reason":"end_turn","usage":{"input_tokens":23000,"output_tokens":1000,"cache_read_input_tokens":0,"cache_creation_input_tokens":0,"iterations":[{"type":"compaction","input_tokens":180000,"output_tokens":3500,"cache_read_input_tokens":0,"cache_creation_input_tokens":0,"cache_creation":null},{"type":"message","input_tokens":23000,"output_tokens":1000,"cache_read_input_tokens":0,"cache_creation_input_tokens":0}]}}"#,
        tokens: tokens(203_000, 4500),
        model: Some("claude-opus-4-6"),
    },
    // Google, `GenerateContentResponseUsageMetadata`: tools' results and thoughts are apart.
    Shape {
        name: "Gemini with a tool and thoughts",
        framing: Framing::Json,
        body: r#"{"candidates":[{"content":{"parts":[{"text":"Hi"}],"role":"model"},"finishReason":"STOP","index":0}],"usageMetadata":{"promptTokenCount":10,"candidatesTokenCount":20,"toolUsePromptTokenCount":300,"thoughtsTokenCount":40,"cachedContentTokenCount":4,"totalTokenCount":370,"promptTokensDetails":[{"modality":"TEXT","tokenCount":10}],"toolUsePromptTokensDetails":[{"modality":"TEXT","tokenCount":300}]},"modelVersion":"gemini-3-pro"}"#,
        tokens: Tokens { cached: 4, reasoning: 40, ..tokens(310, 60) },
        model: Some("gemini-3-pro"),
    },
    // Google, `interactions.Usage`.
    Shape {
        name: "Gemini's interactions",
        framing: Framing::Events,
        body: "event: interaction.created\ndata: {\"event_type\":\"interaction.created\",\"interaction\":{\"id\":\"v1_x\",\"model\":\"gemini-3-flash\",\"status\":\"in_progress\"}}\n\nevent: interaction.completed\ndata: {\"event_type\":\"interaction.completed\",\"interaction\":{\"id\":\"v1_x\",\"model\":\"gemini-3-flash\",\"status\":\"completed\",\"usage\":{\"total_input_tokens\":12,\"total_output_tokens\":30,\"total_thought_tokens\":25,\"total_cached_tokens\":2,\"total_tool_use_tokens\":5,\"total_tokens\":72,\"input_tokens_by_modality\":[{\"modality\":\"text\",\"tokens\":12}]}}}\n\n",
        tokens: Tokens { cached: 2, reasoning: 25, ..tokens(17, 55) },
        model: Some("gemini-3-flash"),
    },
    // Vertex AI, text embeddings (not checked): each text has a count of its own.
    Shape {
        name: "Vertex's embeddings",
        framing: Framing::Json,
        body: r#"{"predictions":[{"embeddings":{"statistics":{"truncated":false,"token_count":6},"values":[0.02,-0.01]}},{"embeddings":{"statistics":{"truncated":false,"token_count":9},"values":[0.5]}}],"metadata":{"billableCharacterCount":60}}"#,
        tokens: tokens(15, 0),
        model: None,
    },
    // botocore, `TokenUsage`.
    Shape {
        name: "Bedrock's Converse",
        framing: Framing::Json,
        body: r#"{"metrics":{"latencyMs":551},"output":{"message":{"content":[{"text":"Hi"}],"role":"assistant"}},"stopReason":"end_turn","usage":{"cacheReadInputTokens":100,"cacheWriteInputTokens":50,"cacheDetails":[{"ttl":"5m","inputTokens":50}],"inputTokens":30,"outputTokens":628,"totalTokens":808}}"#,
        tokens: Tokens { cached: 100, cache_written: 50, ..tokens(180, 628) },
        model: None,
    },
    // Meta Llama at Bedrock (not checked).
    Shape {
        name: "Bedrock's Llama",
        framing: Framing::Json,
        body: r#"{"generation":"\n\nHi","prompt_token_count":22,"generation_token_count":105,"stop_reason":"stop"}"#,
        tokens: tokens(22, 105),
        model: None,
    },
    // Amazon Titan at Bedrock (not checked).
    Shape {
        name: "Bedrock's Titan",
        framing: Framing::Json,
        body: r#"{"inputTextTokenCount":7,"results":[{"tokenCount":11,"outputText":"Hi","completionReason":"FINISH"}]}"#,
        tokens: tokens(7, 11),
        model: None,
    },
    // Mistral, `ConversationUsageInfo`: connectors' tokens are in the total alone.
    Shape {
        name: "Mistral's conversations",
        framing: Framing::Events,
        body: "event: message.output.delta\ndata: {\"type\":\"message.output.delta\",\"content\":\"Hi\",\"model\":\"mistral-medium-latest\"}\n\nevent: conversation.response.done\ndata: {\"type\":\"conversation.response.done\",\"usage\":{\"prompt_tokens\":188,\"completion_tokens\":55,\"total_tokens\":7355,\"connector_tokens\":7112,\"connectors\":{\"web_search\":1}}}\n\n",
        tokens: tokens(188, 7167),
        model: Some("mistral-medium-latest"),
    },
    // Cohere, `Usage`: counts are JSON numbers with a fraction.
    Shape {
        name: "Cohere's chat with fractions",
        framing: Framing::Json,
        body: r#"{"id":"c1","finish_reason":"COMPLETE","message":{"role":"assistant","content":[{"type":"text","text":"Hi"}]},"usage":{"billed_units":{"input_tokens":5.0,"output_tokens":418.0},"tokens":{"input_tokens":71.0,"output_tokens":418.0},"cached_tokens":64.0}}"#,
        tokens: Tokens { cached: 64, ..tokens(71, 418) },
        model: None,
    },
    // Cohere, `ApiMeta`.
    Shape {
        name: "Cohere's embeddings",
        framing: Framing::Json,
        body: r#"{"id":"e1","embeddings":{"float":[[0.1,-0.2]]},"texts":["hello"],"meta":{"api_version":{"version":"2"},"billed_units":{"input_tokens":2}},"response_type":"embeddings_by_type"}"#,
        tokens: tokens(2, 0),
        model: None,
    },
    // Groq (not checked): usage is in `x_groq` of the last chunk.
    Shape {
        name: "Groq's stream",
        framing: Framing::Events,
        body: "data: {\"id\":\"c\",\"object\":\"chat.completion.chunk\",\"model\":\"llama-3.3-70b\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"Hi\"},\"finish_reason\":null}]}\n\ndata: {\"id\":\"c\",\"object\":\"chat.completion.chunk\",\"model\":\"llama-3.3-70b\",\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}],\"x_groq\":{\"id\":\"req_1\",\"usage\":{\"queue_time\":0.03,\"prompt_tokens\":18,\"prompt_time\":0.0006,\"completion_tokens\":556,\"completion_time\":0.4,\"total_tokens\":574,\"total_time\":0.46}}}\n\ndata: [DONE]\n\n",
        tokens: tokens(18, 556),
        model: Some("llama-3.3-70b"),
    },
    // xAI (not checked): `completion_tokens` leaves reasoning out, and the total has it.
    Shape {
        name: "xAI's reasoning",
        framing: Framing::Json,
        body: r#"{"id":"c","object":"chat.completion","model":"grok-4","choices":[{"index":0,"message":{"role":"assistant","content":"101 * 3 = 303"},"finish_reason":"stop"}],"usage":{"prompt_tokens":32,"completion_tokens":9,"total_tokens":135,"prompt_tokens_details":{"text_tokens":32,"audio_tokens":0,"image_tokens":0,"cached_tokens":6},"completion_tokens_details":{"reasoning_tokens":94,"audio_tokens":0}}}"#,
        tokens: Tokens { cached: 6, reasoning: 94, ..tokens(32, 103) },
        model: Some("grok-4"),
    },
    // DeepSeek (not checked): hits and misses of the cache add up to the prompt.
    Shape {
        name: "DeepSeek's cache",
        framing: Framing::Json,
        body: r#"{"id":"c","object":"chat.completion","model":"deepseek-chat","choices":[{"index":0,"message":{"role":"assistant","content":"Hi"},"finish_reason":"stop"}],"usage":{"prompt_tokens":100,"completion_tokens":20,"total_tokens":120,"prompt_cache_hit_tokens":64,"prompt_cache_miss_tokens":36}}"#,
        tokens: Tokens { cached: 64, ..tokens(100, 20) },
        model: Some("deepseek-chat"),
    },
    // Perplexity, Sonar Deep Research (not checked): citations and reasoning are charged beside
    // the total.
    Shape {
        name: "Perplexity's research",
        framing: Framing::Json,
        body: r#"{"id":"p","model":"sonar-deep-research","object":"chat.completion","usage":{"prompt_tokens":33,"completion_tokens":7163,"total_tokens":7196,"citation_tokens":20016,"num_search_queries":18,"reasoning_tokens":73997,"cost":{"total_cost":0.42}},"choices":[{"index":0,"finish_reason":"stop","message":{"role":"assistant","content":"Hi"}}]}"#,
        tokens: Tokens { reasoning: 73_997, ..tokens(20_049, 81_160) },
        model: Some("sonar-deep-research"),
    },
];

#[test]
fn every_shape_has_the_vendors_count_however_it_is_split_and_no_part_of_it_has_another() {
    for Shape { name, framing, body, tokens, model } in SHAPES {
        let mut meter = Meter::new(*framing);
        for (at, byte) in body.as_bytes().iter().enumerate() {
            if let Usage::Known(known) = meter.usage(true) {
                assert_eq!(known, *tokens, "{name}: ended at {at}");
            }
            meter.read(&[*byte]);
        }
        assert_eq!((meter.usage(true), meter.model()), (Usage::Known(*tokens), *model), "{name}");
        for split in 0..=body.len() {
            let (first, second) = body.as_bytes().split_at(split);
            let mut meter = Meter::new(*framing);
            meter.read(first);
            meter.read(second);
            assert_eq!(meter.usage(true), Usage::Known(*tokens), "{name}: split at {split}");
        }
    }
}

#[test]
fn a_connection_that_broke_off_has_no_known_usage() {
    for Shape { name, framing, body, .. } in SHAPES {
        let mut meter = Meter::new(*framing);
        meter.read(&body.as_bytes()[..body.len() - 3]);
        assert!(matches!(meter.usage(false), Usage::Unknown { .. }), "{name}");
    }
}

#[test]
fn headers_count_where_a_body_has_no_usage() {
    let mut meter = Meter::new(Framing::Json);
    meter.count_header(Some(12), Some(34));
    meter.read(br#"{"completion":" Hi","stop_reason":"stop_sequence"}"#);
    assert_eq!(meter.usage(true), Usage::Known(tokens(12, 34)));
}
