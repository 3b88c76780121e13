//! `context.trust`: what policies see of an exchanged token.

use cedar_policy::RestrictedExpression as Value;

/// What policies see of an exchanged token.
#[derive(Clone, Copy, Debug)]
pub struct TrustFacts<'a> {
    /// The trust's name.
    pub name: &'a str,
    /// The issuer.
    pub issuer: &'a str,
    /// The subject.
    pub subject: &'a str,
    /// The claims that the trust lists, each `NAME=VALUE`.
    pub claims: &'a [Box<str>],
}

impl TrustFacts<'_> {
    /// The value of the attribute. `None` when Cedar does not accept it.
    pub(super) fn record(&self) -> Option<Value> {
        let text = |text: &str| Value::new_string(text.to_owned());
        let claims = Value::new_set(self.claims.iter().map(|claim| text(claim)));
        let fields = [
            ("name".to_owned(), text(self.name)),
            ("issuer".to_owned(), text(self.issuer)),
            ("subject".to_owned(), text(self.subject)),
            ("claims".to_owned(), claims),
        ];
        Value::new_record(fields).ok()
    }
}
