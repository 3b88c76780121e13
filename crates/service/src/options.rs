//! Options that say how answers and MCP messages of a service are treated.

use http::HeaderName;
use seks_proto::wire;

use super::{ServiceError, header_name, invalid};

/// Where `context.mcp` of a policy comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum McpSource {
    /// The request's `Mcp-Method` and `Mcp-Name`, which must equal the body's. MCP requires them
    /// since 2026-07-28. A request without them has no `context.mcp`.
    Headers,
    /// The same, but the body alone where a request has no `Mcp-Method`.
    HeadersOrBody,
}

impl McpSource {
    pub(super) fn from_wire(wire: &wire::Service) -> Result<Option<Self>, ServiceError> {
        match (wire.mcp, wire.mcp_without_headers) {
            (true, false) => Ok(Some(Self::Headers)),
            (true, true) => Ok(Some(Self::HeadersOrBody)),
            (false, false) => Ok(None),
            (false, true) => Err(invalid("mcp_without_headers", "only a service with `mcp = true` can have it")),
        }
    }
}

/// The public fields. At least one field must remain secret.
pub(super) fn public_fields(names: &[String], fields: &[String], signed: bool) -> Result<Vec<String>, ServiceError> {
    if signed && !names.is_empty() {
        return Err(invalid("public", "a service whose requests are signed has no public fields"));
    }
    if let Some(unknown) = names.iter().find(|name| !fields.contains(name)) {
        return Err(invalid("public", format!("`{unknown}` is not one of the fields")));
    }
    if names.iter().enumerate().any(|(at, name)| names.iter().skip(at + 1).any(|other| other == name)) {
        return Err(invalid("public", "a name is listed twice"));
    }
    if !fields.is_empty() && names.len() == fields.len() {
        return Err(invalid("public", "at least one field must be a secret"));
    }
    Ok(names.to_vec())
}

/// Most headers of [`keyless_urls`].
const MAX_KEYLESS_URLS: usize = 8;

/// Response headers whose URL clients use without a key.
pub(super) fn keyless_urls(names: &[String]) -> Result<Vec<HeaderName>, ServiceError> {
    if names.len() > MAX_KEYLESS_URLS {
        return Err(invalid("keyless_urls", format!("at most {MAX_KEYLESS_URLS} headers")));
    }
    names.iter().map(|name| header_name("keyless_urls", name)).collect()
}

/// Providers whose answers report tokens, by their names in OpenTelemetry's `gen_ai.provider.name`
/// where it has one.
pub const PROVIDERS: &[&str] = &[
    "anthropic",
    "aws.bedrock",
    "azure.ai.inference",
    "azure.ai.openai",
    "cohere",
    "deepseek",
    "fireworks",
    "gcp.gemini",
    "gcp.vertex_ai",
    "groq",
    "mistral_ai",
    "openai",
    "openrouter",
    "perplexity",
    "together",
    "x_ai",
];

/// The provider of `usage`.
pub(super) fn usage(name: &str) -> Result<Option<&'static str>, ServiceError> {
    match PROVIDERS.iter().find(|provider| **provider == name) {
        None if name.is_empty() => Ok(None),
        None => Err(invalid("usage", format!("none of {}", PROVIDERS.join(", ")))),
        found => Ok(found.copied()),
    }
}
