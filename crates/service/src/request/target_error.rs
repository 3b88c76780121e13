//! Why a path or a query is refused.

/// Why a target is refused. Never holds any of it: a path or a query may carry a secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// Doesn't begin with `/` (`openai.evil.test`, `openai:443@evil.test`).
    #[error("the path does not begin with `/`")]
    NotAbsolute,
    /// A control character, raw or escaped.
    #[error("the path or query holds a control character")]
    Control,
    /// A byte that RFC 3986 doesn't allow where it stands: `\`, `#`, `"`, space, …
    #[error("the path or query holds a character that must be escaped")]
    Character,
    /// A byte beyond ASCII, raw or (in the path) escaped.
    #[error("the path or query holds a character beyond ASCII")]
    NonAscii,
    /// `%` without two hexadecimal digits.
    #[error("the path or query holds a `%` without two hexadecimal digits")]
    BadEscape,
    /// An escape of a character that needs none, or of `%` itself: another spelling of the same path.
    #[error("the path holds a needless or double escape")]
    NeedlessEscape,
    /// `%2F` where the service doesn't allow it, or `%5C`.
    #[error("the path holds an escaped slash or backslash")]
    EscapedSlash,
    /// `.` or `..` as a segment, in any spelling.
    #[error("the path holds a dot segment")]
    DotSegment,
    /// `//`.
    #[error("the path holds an empty segment")]
    EmptySegment,
    /// `;`, raw or escaped: some servers cut a segment there.
    #[error("the path holds a path parameter (`;`)")]
    PathParameter,
    /// A query parameter that asks the upstream to take the request for another method.
    #[error("the query overrides the method")]
    MethodOverride,
}

/// The byte that two hexadecimal digits encode.
pub(super) fn escape(bytes: &mut std::str::Bytes<'_>) -> Result<u8, TargetError> {
    let mut digit = || bytes.next().and_then(|b| char::from(b).to_digit(16)).ok_or(TargetError::BadEscape);
    let (high, low) = (digit()?, digit()?);
    u8::try_from(high << 4 | low).map_err(|_| TargetError::BadEscape)
}
