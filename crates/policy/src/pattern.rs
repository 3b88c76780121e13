//! `like` patterns, matched in linear time.

use cedar_policy::pst::PatternElem;
use memchr::memmem;
use seks_service::request::normalize;

/// A compiled pattern: literal parts with any text between them.
#[derive(Debug)]
pub(super) struct Pattern {
    /// Before the first wildcard.
    prefix: String,
    /// Between wildcards, in order. None is empty.
    middle: Vec<memmem::Finder<'static>>,
    /// After the last wildcard. `None` when the pattern has no wildcard; then `prefix` is the whole
    /// pattern.
    suffix: Option<String>,
    has_foldable: bool,
}

impl Pattern {
    pub(super) fn new(pattern: &[PatternElem]) -> Self {
        // A wildcard matches any text, so a pattern with one has no other form.
        let sample: String = pattern.iter().map(|e| if let PatternElem::Char(c) = e { *c } else { 'x' }).collect();
        let mut stretches = pattern.split(|e| matches!(e, PatternElem::Wildcard)).map(|stretch| {
            let chars = stretch.iter().filter_map(|e| if let PatternElem::Char(c) = e { Some(*c) } else { None });
            chars.collect::<String>()
        });
        let prefix = stretches.next().unwrap_or_default();
        let mut middle: Vec<String> = stretches.collect();
        let suffix = middle.pop();
        let middle = middle.iter().filter(|s| !s.is_empty()).map(|s| memmem::Finder::new(s).into_owned()).collect();
        Self { prefix, middle, suffix, has_foldable: normalize::has_foldable(&sample) }
    }

    /// Whether its text has a folded form of its own ([`normalize`]).
    pub(super) fn has_foldable(&self) -> bool {
        self.has_foldable
    }

    /// The number of literal parts to search for.
    pub(super) fn stretches(&self) -> usize {
        self.middle.len() + 2
    }

    /// Whether the pattern matches all of `text`. Each part is taken where it first occurs. This
    /// leaves the most text for the rest, so no backtracking is needed.
    pub(super) fn matches(&self, text: &str) -> bool {
        let Some(suffix) = &self.suffix else { return text == self.prefix };
        let inner = text.strip_prefix(self.prefix.as_str()).and_then(|rest| rest.strip_suffix(suffix.as_str()));
        let Some(mut rest) = inner.map(str::as_bytes) else { return false };
        for finder in &self.middle {
            let found = finder.find(rest).and_then(|at| rest.get(at + finder.needle().len()..));
            let Some(after) = found else { return false };
            rest = after;
        }
        true
    }
}
