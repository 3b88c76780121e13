//! Names of JSON objects that parsers take for one another.

/// Whether some decoder could take `name` for one of `ours`. Decoders may ignore case (Go's
/// `encoding/json` also folds `ſ` to `s` and the Kelvin sign to `k`), white space or invisible
/// characters.
pub(super) fn resembles(name: &str, ours: &[&str]) -> bool {
    let seen = name.chars().flat_map(char::to_lowercase).map(|c| if c == 'ſ' { 's' } else { c });
    let seen: String = seen.filter(char::is_ascii_graphic).collect();
    ours.contains(&seen.as_str())
}
