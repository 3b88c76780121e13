//! Names of JSON objects that parsers take for one another.

/// Whether some decoder could take `name` for one of `ours`, which are written in lower case.
pub(super) fn resembles(name: &str, ours: &[&str]) -> bool {
    ours.contains(&folded(name).as_str())
}

/// `name` without what decoders may ignore: case (Go's `encoding/json` also folds `ſ` to `s` and
/// the Kelvin sign to `k`), white space and invisible characters.
pub(super) fn folded(name: &str) -> String {
    let seen = name.chars().flat_map(char::to_lowercase).map(|c| if c == 'ſ' { 's' } else { c });
    seen.filter(char::is_ascii_graphic).collect()
}
