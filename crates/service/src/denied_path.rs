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
    initials: Initials,
}

/// The first bytes of the first segments, in lower case, and which of them count: nearly every path
/// differs from every pattern in one of them. One comparison of numbers instead of a comparison of
/// texts for each pattern of a service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Initials {
    bytes: u64,
    mask: u64,
}

impl Initials {
    /// Segments that have a place.
    const PLACES: usize = 8;

    fn of_pattern(segments: &[String]) -> Self {
        let mut initials = Self::default();
        for (place, segment) in segments.iter().take(Self::PLACES).enumerate() {
            match segment.as_bytes().first() {
                Some(b'*') | None if segment == "**" => break,
                Some(b'*') | None => {}
                Some(first) => {
                    initials.bytes |= u64::from(first.to_ascii_lowercase()) << (8 * place);
                    initials.mask |= 0xff << (8 * place);
                }
            }
        }
        initials
    }

    fn of_path(path: &str) -> u64 {
        let mut bytes = 0;
        for (place, segment) in segments(path).take(Self::PLACES).enumerate() {
            bytes |= u64::from(segment.as_bytes().first().map_or(0, u8::to_ascii_lowercase)) << (8 * place);
        }
        bytes
    }
}

/// Whether one of `denied` matches a request, as [`DeniedPath::matches`] says.
#[must_use]
pub fn is_denied(denied: &[DeniedPath], method: &Method, path: &str) -> bool {
    if denied.is_empty() {
        return false;
    }
    if is_odd(path) {
        return denied.iter().any(|denied| denied.matches(method, path));
    }
    let initials = Initials::of_path(path);
    denied.iter().any(|denied| {
        initials & denied.initials.mask == denied.initials.bytes
            && denied.is_method(method)
            && denied.matches_segments(segments(path))
    })
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
        let initials = Initials::of_pattern(&segments);
        Ok(Self { method, segments, initials })
    }

    /// Whether a request matches, in any spelling. APIs differ in whether they ignore case, and in
    /// whether they decode escapes before or after they split a path. So the path is also compared
    /// in normalized and in folded form, and segment by segment.
    #[must_use]
    pub fn matches(&self, method: &Method, path: &str) -> bool {
        self.is_method(method)
            && (self.matches_segments(segments(path)) || (is_odd(path) && self.matches_other_forms(path)))
    }

    fn is_method(&self, method: &Method) -> bool {
        self.method.as_ref().is_none_or(|m| m == method)
    }

    fn matches_other_forms(&self, path: &str) -> bool {
        // An escaped slash separates nothing for a server that splits first:
        // `/projects/a%2Fb/access%5Ftokens`.
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
    let bytes = path.as_bytes();
    bytes.iter().any(|b| matches!(b, b'%' | b';'))
        || bytes.ends_with(b".")
        || bytes.array_windows().any(|pair| matches!(pair, b"//" | b"./"))
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
