//! Text with fields of a credential: `Bearer {key}`, `{sid}:{token}`, `/bot{key}`.

use std::fmt;

use seks_types::secret::Fields;

/// A parsed template. Its literal parts are printable ASCII, so a rendered value cannot add a
/// header line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template(Vec<TemplatePart>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum TemplatePart {
    Literal(String),
    Field(String),
}

/// Why a template is invalid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// A `{` without its `}`, or the reverse.
    #[error("unbalanced brace in `{0}`")]
    Brace(String),
    /// A field that the service doesn't declare.
    #[error("`{0}` is not one of the service's fields")]
    UnknownField(String),
    /// A character that cannot be sent.
    #[error("`{0}` contains a character that cannot be sent")]
    Character(String),
    /// It contains no field of the credential.
    #[error("`{0}` contains no field of the credential")]
    NoField(String),
}

impl Template {
    /// Parses `text`. Its `{name}`s must be among `fields`.
    ///
    /// # Errors
    /// [`TemplateError`], naming the text.
    pub fn parse(text: &str, fields: &[String]) -> Result<Self, TemplateError> {
        if !text.bytes().all(|b| (0x20..0x7f).contains(&b)) {
            return Err(TemplateError::Character(text.escape_default().to_string()));
        }
        let (mut parts, mut rest) = (Vec::new(), text);
        while let Some((literal, after)) = rest.split_once('{') {
            let (field, after) = after.split_once('}').ok_or_else(|| TemplateError::Brace(text.into()))?;
            if !fields.iter().any(|f| f == field) {
                return Err(TemplateError::UnknownField(field.into()));
            }
            if !literal.is_empty() {
                parts.push(TemplatePart::Literal(literal.into()));
            }
            parts.push(TemplatePart::Field(field.into()));
            rest = after;
        }
        if !rest.is_empty() {
            parts.push(TemplatePart::Literal(rest.into()));
        }
        if parts.iter().any(|p| matches!(p, TemplatePart::Literal(l) if l.contains('}'))) {
            return Err(TemplateError::Brace(text.into()));
        }
        if !parts.iter().any(|p| matches!(p, TemplatePart::Field(_))) {
            return Err(TemplateError::NoField(text.into()));
        }
        Ok(Self(parts))
    }

    /// Whether it contains the field.
    #[must_use]
    pub fn contains_field(&self, field: &str) -> bool {
        self.0.iter().any(|p| matches!(p, TemplatePart::Field(f) if f == field))
    }

    /// The fields in front of the first `separator` of the template itself.
    pub fn fields_before(&self, separator: char) -> impl Iterator<Item = &str> {
        let ends = move |part: &TemplatePart| matches!(part, TemplatePart::Literal(text) if text.contains(separator));
        self.0.iter().take_while(move |part| !ends(part)).filter_map(|part| match part {
            TemplatePart::Field(name) => Some(name.as_str()),
            TemplatePart::Literal(_) => None,
        })
    }

    /// The length of the rendered value without encoding. `None` when a field is absent.
    #[must_use]
    pub fn plain_len(&self, fields: &Fields) -> Option<usize> {
        let length = |part: &TemplatePart| match part {
            TemplatePart::Literal(text) => Some(text.len()),
            TemplatePart::Field(name) => fields.get(name).map(<[u8]>::len),
        };
        self.0.iter().map(length).sum()
    }

    /// Writes the value. `encode` encodes the bytes of each field (identity for headers). `None`
    /// when a field is absent.
    pub fn render(
        &self,
        fields: &Fields,
        out: &mut Vec<u8>,
        mut encode: impl FnMut(&[u8], &mut Vec<u8>),
    ) -> Option<()> {
        for part in &self.0 {
            match part {
                TemplatePart::Literal(text) => out.extend_from_slice(text.as_bytes()),
                TemplatePart::Field(name) => encode(fields.get(name)?, out),
            }
        }
        Some(())
    }
}

/// The text from which it was parsed.
impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|part| match part {
            TemplatePart::Literal(text) => f.write_str(text),
            TemplatePart::Field(name) => write!(f, "{{{name}}}"),
        })
    }
}

#[cfg(test)]
mod tests {
    use seks_types::secret::Secret;

    use super::*;

    fn template(text: &str) -> Result<Template, TemplateError> {
        Template::parse(text, &["key".into(), "id".into()])
    }

    #[test]
    fn renders_literals_and_fields() {
        let fields = Fields::parse(&["key", "id"], &Secret::new(br#"{"key":"{id}","id":"7"}"#.to_vec())).unwrap();
        let mut out = Vec::new();
        template("Token token={key};id={id}!")
            .unwrap()
            .render(&fields, &mut out, |b, o| o.extend_from_slice(b))
            .unwrap();
        assert_eq!(out, b"Token token={id};id=7!", "a value is never scanned again");
    }

    #[test]
    fn refuses_what_it_can_not_render() {
        assert_eq!(template("Bearer {nope}"), Err(TemplateError::UnknownField("nope".into())));
        assert_eq!(template("Bearer {key"), Err(TemplateError::Brace("Bearer {key".into())));
        assert_eq!(template("Bearer key}{key}"), Err(TemplateError::Brace("Bearer key}{key}".into())));
        assert_eq!(template("Bearer key"), Err(TemplateError::NoField("Bearer key".into())));
        assert!(matches!(template("a\r\nb: {key}"), Err(TemplateError::Character(_))));
    }
}
