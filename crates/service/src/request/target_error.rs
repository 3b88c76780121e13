//! Why a path or a query is refused.

macro_rules! target_errors {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// Why a target is refused. Never holds any of it: a path or a query may carry a secret.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
        pub enum TargetError {
            $($(#[$doc])* #[error($text)] $name,)*
        }

        impl TargetError {
            /// A fixed text: the rule, and the option of a service that lifts it, if one does.
            #[must_use]
            pub const fn text(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

target_errors! {
    /// Doesn't begin with `/` (`openai.evil.test`, `openai:443@evil.test`).
    NotAbsolute = "the path does not begin with `/`",
    /// A raw control character, or NUL.
    Control = "the path or query holds a control character",
    /// An escaped control character.
    EscapedControl =
        "the path holds an escaped control character, which needs `control` in the service's `allow_in_paths`",
    /// A byte that RFC 3986 does not allow at this place: `\`, `#`, space.
    Character = "the path or query holds a character that must be escaped",
    /// A character beyond ASCII.
    NonAscii = "the path holds a character beyond ASCII, which needs `utf8` in the service's `allow_in_paths`",
    /// Bytes beyond ASCII that are no UTF-8, overlong forms included.
    NotUtf8 = "the path holds escapes that are not UTF-8",
    /// `%` without two hexadecimal digits.
    BadEscape = "the path or query holds a `%` without two hexadecimal digits",
    /// `%25`: a server that decodes twice reads another path.
    EscapedPercent = "the path holds an escaped `%` (`%25`), which needs `percent` in the service's `allow_in_paths`",
    /// Escapes of escapes of escapes.
    NestedEscape = "the path holds escapes that are escaped more than three times",
    /// `%2F`.
    EscapedSlash = "the path holds an escaped slash (`%2F`), which needs the service's `allow_encoded_slash`",
    /// `%5C`.
    EscapedBackslash =
        "the path holds an escaped backslash (`%5C`), which needs `backslash` in the service's `allow_in_paths`",
    /// `.` or `..` as a segment, in any spelling.
    DotSegment = "the path holds a dot segment (`.` or `..`)",
    /// `//`.
    EmptySegment = "the path holds an empty segment (`//`), which needs `empty_segment` in the service's `allow_in_paths`",
    /// `;`, raw or escaped: some servers cut a segment there.
    PathParameter =
        "the path holds a path parameter (`;`), which needs `semicolon` in the service's `allow_in_paths`",
    /// A query parameter that asks the upstream to take the request for another method.
    MethodOverride = "the query overrides the method, which needs the service's `allow_method_override`",
    /// It does so more than once, or with a value that is not a method.
    MethodOverrideForm = "the query overrides the method more than once, or not with the name of a method",
}

/// The byte that two hexadecimal digits encode.
pub(super) fn escape(bytes: &mut std::str::Bytes<'_>) -> Result<u8, TargetError> {
    let mut digit = || bytes.next().and_then(|b| char::from(b).to_digit(16)).ok_or(TargetError::BadEscape);
    let (high, low) = (digit()?, digit()?);
    u8::try_from(high << 4 | low).map_err(|_| TargetError::BadEscape)
}
