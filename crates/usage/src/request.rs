//! What a request to a model says about the most that its answer may have.

use super::json::{Json, Key, Seen, Value};

/// The most tokens of output that a request's JSON asks for. `None`: it does not say.
#[must_use]
pub fn most_output(body: &[u8]) -> Option<u64> {
    let (mut most, mut answers) = (None, 1);
    let mut seen = |Seen { path, value }: Seen<'_>| {
        let Value::Number(number) = value else { return };
        let is = |names: &[&[u8]]| path.iter().map(Key::as_bytes).eq(names.iter().copied());
        let is_most = is(&[b"max_tokens"])
            || is(&[b"max_completion_tokens"])
            || is(&[b"max_output_tokens"])
            || is(&[b"max_tokens_to_sample"])
            || is(&[b"max_gen_len"])
            || is(&[b"generationConfig", b"maxOutputTokens"])
            || is(&[b"generation_config", b"max_output_tokens"])
            || is(&[b"inferenceConfig", b"maxTokens"])
            || is(&[b"inferenceConfig", b"max_new_tokens"])
            || is(&[b"textGenerationConfig", b"maxTokenCount"]);
        if is_most {
            most = most.max(Some(number));
        } else if is(&[b"n"]) || is(&[b"generationConfig", b"candidateCount"]) {
            answers = number.max(answers);
        }
    };
    Json::new(false).read(body, &mut seen);
    most.map(|most| most.saturating_mul(answers))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_say_how_much_output_they_want() {
        let cases = [
            (r#"{"model":"gpt-4o","max_tokens":300,"messages":[{"content":"\"max_tokens\":9"}]}"#, Some(300)),
            (r#"{"max_completion_tokens":300,"n":4}"#, Some(1200)),
            (r#"{"n":2,"max_output_tokens":7}"#, Some(14)),
            (r#"{"contents":[],"generationConfig":{"maxOutputTokens":64,"candidateCount":2}}"#, Some(128)),
            (r#"{"messages":[],"inferenceConfig":{"maxTokens":512}}"#, Some(512)),
            (r#"{"messages":[{"max_tokens":5}]}"#, None),
            (r#"{"max_tokens":-1}"#, None),
            (r#"{"max_tokens":null}"#, None),
            ("", None),
            ("no JSON", None),
        ];
        for (body, most) in cases {
            assert_eq!(most_output(body.as_bytes()), most, "{body}");
        }
    }
}
