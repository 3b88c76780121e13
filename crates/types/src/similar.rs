//! "Did you mean": the known name that is closest to a mistyped one.

/// The candidate that `typed` was probably meant to be: one or two typing errors away, depending on
/// the length. An error is a missing, additional or wrong character, or two that changed places.
#[must_use]
pub fn closest<'a>(typed: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let most = match typed.chars().count() {
        0..=2 => return None,
        3..=5 => 1,
        _ => 2,
    };
    let distance = |candidate: &str| strsim::osa_distance(&typed.to_lowercase(), &candidate.to_lowercase());
    let near = candidates.into_iter().filter(|candidate| candidate.len().abs_diff(typed.len()) <= 8);
    near.map(|candidate| (distance(candidate), candidate)).filter(|(d, _)| *d <= most).min().map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_typing_error_is_recognized_and_another_name_is_not() {
        let names = ["openai", "anthropic", "github", "gh"];
        for (typed, want) in [
            ("opnai", Some("openai")),
            ("openia", Some("openai")),
            ("OpenAI", Some("openai")),
            ("antropic", Some("anthropic")),
            ("githb", Some("github")),
            ("stripe", None),
            ("g", None),
            ("", None),
        ] {
            assert_eq!(closest(typed, names), want, "{typed}");
        }
    }
}
