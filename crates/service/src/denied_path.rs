//! Endpoints that return keys: the key `denied_paths`.

use http::Method;

use super::{ServiceError, invalid};
use crate::request::normalize::{folded_paths, folded_segment, normalized_path};

/// `METHOD /path`. `*` matches a segment or a part of one, and a final `/**` matches any rest. The
/// method may be `*`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeniedPath {
    /// `None` for any method.
    pub method: Option<Method>,
    /// Segments without the leading slash. `*` matches any text within one. A last `**` matches any
    /// number of segments, including none.
    pub segments: Vec<String>,
}

impl DeniedPath {
    /// Parses `"POST /v1/organization/api_keys"`.
    ///
    /// # Errors
    /// When the text has another form.
    pub fn parse(text: &str) -> Result<Self, ServiceError> {
        let wrong = || invalid("denied_paths", format!("`{text}` is not `METHOD /path`"));
        let (method, path) = text.split_once(' ').ok_or_else(wrong)?;
        let method =
            if method == "*" { None } else { Some(Method::from_bytes(method.as_bytes()).map_err(|_| wrong())?) };
        let segments: Vec<String> = path.strip_prefix('/').ok_or_else(wrong)?.split('/').map(Into::into).collect();
        let last = segments.len() - 1;
        let stars = |s: &str| s.bytes().filter(|b| *b == b'*').count();
        if segments.iter().enumerate().any(|(i, s)| s.is_empty() || (stars(s) > 1 && (s != "**" || i != last))) {
            return Err(wrong());
        }
        Ok(Self { method, segments })
    }

    /// Whether a request matches, in any spelling. APIs differ in whether they ignore case, and in
    /// whether they decode escapes before or after they split a path. So the path is also compared in
    /// normalized and in folded form, and segment by segment.
    #[must_use]
    pub fn matches(&self, method: &Method, path: &str) -> bool {
        self.method.as_ref().is_none_or(|m| m == method)
            && (self.matches_segments(segments(path)) || (is_odd(path) && self.matches_other_forms(path)))
    }

    fn matches_other_forms(&self, path: &str) -> bool {
        // An escaped slash separates nothing for a server that splits first: `/projects/a%2Fb/access%5Ftokens`.
        let raw = path.split('/').flat_map(|s| s.split("%5C")).flat_map(|s| s.split("%5c"));
        let split_first: Vec<String> = raw.map(folded_segment).filter(|s| !s.is_empty()).collect();
        self.matches_segments(segments(&normalized_path(path)))
            || folded_paths(path).iter().any(|form| self.matches_segments(segments(form)))
            || self.matches_segments(split_first.iter().map(String::as_str))
    }

    fn matches_segments<'p>(&self, mut path: impl Iterator<Item = &'p str>) -> bool {
        for segment in &self.segments {
            if segment == "**" {
                return true;
            }
            if !path.next().is_some_and(|have| matches_segment(segment, have)) {
                return false;
            }
        }
        path.next().is_none()
    }
}

fn segments(path: &str) -> std::str::Split<'_, char> {
    path.trim_start_matches('/').trim_end_matches('/').split('/')
}

/// Whether another form of the path differs by more than case, which [`matches_segment`] ignores.
fn is_odd(path: &str) -> bool {
    path.contains(['%', ';']) || path.contains("//") || path.contains("./") || path.ends_with('.')
}

/// Matches one segment. `*` matches any part of it, at most once: `*:generateAccessToken`.
pub(super) fn matches_segment(pattern: &str, have: &str) -> bool {
    let first = |text: &str| text.as_bytes().first().map(u8::to_ascii_lowercase);
    if !pattern.starts_with('*') && first(pattern) != first(have) {
        return false; // nearly every path, at every pattern
    }
    let Some((before, after)) = pattern.split_once('*') else { return have.eq_ignore_ascii_case(pattern) };
    let edge = |part: Option<&str>, want: &str| part.is_some_and(|p| p.eq_ignore_ascii_case(want));
    have.len() >= before.len() + after.len()
        && edge(have.get(..before.len()), before)
        && edge(have.get(have.len() - after.len()..), after)
}
