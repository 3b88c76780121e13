//! Why the fields of a body forbid that it is forwarded.

/// Why a form cannot be forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FormError {
    /// A field overrides the method, and the service doesn't take that.
    MethodOverride,
    /// Not the name of a method, or more than one.
    MethodOverrideForm,
    /// Whether a member overrides the method depends on who reads the JSON.
    NotStrictJson,
}

impl FormError {
    /// What the agent is told.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Self::MethodOverride => {
                "a field of the body, such as `_method`, overrides the method, which needs the service's `allow_method_override`"
            }
            Self::MethodOverrideForm => {
                "a field of the body overrides the method, and its value is not the name of one method"
            }
            Self::NotStrictJson => {
                "the body is not strict JSON, so that a server may read another `_method` in it: leave out comments and other quotes, and write UTF-8"
            }
        }
    }
}
