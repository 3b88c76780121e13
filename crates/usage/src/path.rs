//! What the path of a request to a model says about it.

use std::borrow::Cow;

/// Longest name of a model that is recorded, in bytes.
const MODEL: usize = 128;

/// The model that a path names, of Gemini and Vertex (`/models/NAME:generateContent`), Bedrock
/// (`/model/NAME/converse`) and Azure OpenAI (`/deployments/NAME/…`).
#[must_use]
pub fn model_in_path(path: &str) -> Option<Cow<'_, str>> {
    let segments = path.split('/').zip(path.split('/').skip(1));
    let (kind, name) = segments
        .into_iter()
        .find(|(kind, name)| matches!(*kind, "models" | "model" | "deployments" | "tunedModels") && !name.is_empty())?;
    // Google puts the operation behind a colon, and names of Bedrock's models have colons.
    let name = if kind == "model" { name } else { name.rsplit_once(':').map_or(name, |(name, _)| name) };
    // SDKs of AWS escape colons and slashes.
    let name = match name.contains('%') {
        true => Cow::Owned(name.replace("%3A", ":").replace("%3a", ":").replace("%2F", "/").replace("%2f", "/")),
        false => Cow::Borrowed(name),
    };
    (name.len() <= MODEL && name.bytes().all(|byte| crate::shape::is_plain(&byte))).then_some(name)
}

/// The operation of [`operation`] whose answers have no output.
pub const EMBEDDINGS: &str = "embeddings";

/// `gen_ai.operation.name` of a request, by its path.
#[must_use]
pub fn operation(provider: &str, path: &str) -> &'static str {
    let path = path.split('?').next().unwrap_or_default();
    match () {
        () if path.contains("embed") || path.contains("Embed") => EMBEDDINGS,
        () if provider.starts_with("gcp.") && !path.contains("/chat/") => "generate_content",
        () if path.ends_with("/completions") && !path.ends_with("/chat/completions") => "text_completion",
        () => "chat",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_name_models() {
        let cases = [
            ("/v1beta/models/gemini-2.5-flash:streamGenerateContent", Some("gemini-2.5-flash")),
            ("/v1/projects/p/locations/l/publishers/google/models/gemini-3-pro:generateContent", Some("gemini-3-pro")),
            (
                "/model/anthropic.claude-3-haiku-20240307-v1%3A0/converse",
                Some("anthropic.claude-3-haiku-20240307-v1:0"),
            ),
            ("/model/anthropic.claude-3-haiku-20240307-v1:0/invoke", Some("anthropic.claude-3-haiku-20240307-v1:0")),
            ("/openai/deployments/my-gpt/chat/completions", Some("my-gpt")),
            ("/v1/chat/completions", None),
            ("/v1/models", None),
            ("/v1/models/", None),
            ("/model/%22%3Cscript/invoke", None),
        ];
        for (path, model) in cases {
            assert_eq!(model_in_path(path).as_deref(), model, "{path}");
        }
    }

    #[test]
    fn paths_say_what_is_asked() {
        let cases = [
            ("openai", "/v1/chat/completions", "chat"),
            ("openai", "/v1/responses", "chat"),
            ("openai", "/v1/completions", "text_completion"),
            ("openai", "/v1/embeddings", "embeddings"),
            ("gcp.gemini", "/v1beta/models/g:generateContent", "generate_content"),
            ("gcp.gemini", "/v1beta/models/g:batchEmbedContents", "embeddings"),
            ("gcp.gemini", "/v1beta/openai/chat/completions", "chat"),
            ("anthropic", "/v1/messages", "chat"),
        ];
        for (provider, path, expected) in cases {
            assert_eq!(operation(provider, path), expected, "{path}");
        }
    }
}
