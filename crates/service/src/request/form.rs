//! Form bodies (`application/x-www-form-urlencoded`), read for the same fields as JSON bodies.
//!
//! Servers read forms in many ways. PHP turns `.` and spaces in names into `_`, Rails reads `a[b]`
//! as an object, some servers separate pairs by `;`. A form counts only if none of this changes
//! what a policy sees.

use std::sync::Arc;

use super::{
    body::{BodyFacts, MAX_MODEL},
    fields::{BUILT_IN, BodyFields, FieldType, FieldValue, FoundFields, Kind, Object},
    json_names::folded,
};

/// Most pairs of an inspected form.
const MAX_PAIRS: usize = 1000;

impl BodyFacts {
    /// Reads a form. `None` when a name that resembles one of ours is not that name, or occurs
    /// twice; when a value is not the one spelling of its type; and for `;`, control characters in
    /// names, unbalanced brackets, escapes that are none, and text that is not UTF-8.
    pub(super) fn read_form(body: &[u8], fields: &Arc<BodyFields>) -> Option<Self> {
        let text = std::str::from_utf8(body).ok().filter(|text| !text.contains(';'))?;
        let mut facts = Self { fields: FoundFields::none_of(fields), ..Self::default() };
        for (count, pair) in text.split('&').filter(|pair| !pair.is_empty()).enumerate() {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let (name, value) = (decode(name)?, decode(value)?);
            if count >= MAX_PAIRS || name.chars().any(char::is_control) {
                return None;
            }
            let path = path_of(&name)?;
            let (root, rest) = path.split_first()?;
            if let Some(built_in) = BUILT_IN.iter().find(|ours| **ours == name) {
                read_built_in(&mut facts, built_in, value)?;
            } else if is_spelling_of(root, &BUILT_IN) {
                return None;
            } else if let Some((index, kind)) = declared(fields.root(), root, rest)? {
                if facts.fields.has(index) {
                    return None;
                }
                facts.fields.set(index, FieldValue::from_text(kind, &value)?);
            }
        }
        Some(facts)
    }
}

fn read_built_in(facts: &mut BodyFacts, name: &str, value: String) -> Option<()> {
    let is_first = match name {
        "model" => value.len() <= MAX_MODEL && facts.model.replace(value).is_none(),
        "stream" => match FieldValue::from_text(FieldType::Bool, &value)? {
            FieldValue::Bool(value) => facts.stream.replace(value).is_none(),
            _ => false,
        },
        _ => match FieldValue::from_text(FieldType::Long, &value)? {
            FieldValue::Long(value) => facts.max_tokens.replace(value).is_none(),
            _ => false,
        },
    };
    is_first.then_some(())
}

/// The declared field at a path; `Some(None)`: none. `None`: it resembles one, and is none.
fn declared(object: &Object, name: &str, rest: &[&str]) -> Option<Option<(usize, FieldType)>> {
    if object.is_resembled_by(name) {
        return None;
    }
    match (object.get(name), rest.split_first()) {
        (None, _) => Some(None),
        (Some(Kind::Field(index, kind)), None) => Some(Some((*index, *kind))),
        (Some(Kind::Object(object)), Some((next, rest))) => declared(object, next, rest),
        (Some(Kind::Field(..)), Some(_)) | (Some(Kind::Object(_)), None) => None,
    }
}

fn is_spelling_of(name: &str, ours: &[&str]) -> bool {
    let spellings = [folded(name), folded(&name.replace(['.', ' '], "_"))];
    spellings.iter().any(|spelling| ours.contains(&spelling.as_str()))
}

/// `a[b][c]` as `a`, `b`, `c`. `None` for brackets that are not in pairs at the end.
fn path_of(name: &str) -> Option<Vec<&str>> {
    let Some((root, rest)) = name.split_once('[') else { return (!name.contains(']')).then(|| vec![name]) };
    let inner = rest.strip_suffix(']')?;
    let path: Vec<&str> = std::iter::once(root).chain(inner.split("][")).collect();
    path.iter().all(|part| !part.contains(['[', ']'])).then_some(path)
}

/// `+` is a space, and `%` begins an escape.
fn decode(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'+' => out.push(b' '),
            b'%' => {
                let mut digit = || bytes.next().and_then(|b| char::from(b).to_digit(16));
                let (high, low) = (digit()?, digit()?);
                out.push(u8::try_from(high * 16 + low).ok()?);
            }
            byte => out.push(byte),
        }
    }
    String::from_utf8(out).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields() -> Arc<BodyFields> {
        let declared = [("amount", "Long"), ("currency", "String"), ("card.number", "Long"), ("price", "decimal")];
        Arc::new(BodyFields::parse(declared).unwrap())
    }

    fn read(body: &str) -> Option<Vec<(String, FieldValue)>> {
        let facts = BodyFacts::read_form(body.as_bytes(), &fields())?;
        Some(facts.fields.iter().map(|(path, value)| (path.to_owned(), value.clone())).collect())
    }

    #[test]
    fn declared_fields_are_read() {
        let found = read(
            "amount=5000&currency=us%64&reason=a+b&metadata[k]=1&items[0][x]=2&items[]=&card[number]=7&&price=1.5",
        );
        let want = [
            ("amount", FieldValue::Long(5000)),
            ("card.number", FieldValue::Long(7)),
            ("currency", FieldValue::String("usd".into())),
            ("price", FieldValue::Decimal("1.5".into())),
        ];
        assert_eq!(found.unwrap(), want.map(|(path, value)| (path.to_owned(), value)));
        let facts = BodyFacts::read_form(b"model=gpt&stream=true&max_tokens=5", &fields()).unwrap();
        assert_eq!((facts.model.as_deref(), facts.stream, facts.max_tokens), (Some("gpt"), Some(true), Some(5)));
        assert_eq!(read(""), Some(Vec::new()));
    }

    #[test]
    fn what_two_servers_could_read_in_two_ways_is_not_inspected() {
        for body in [
            "amount=1&amount=2",
            "amount=1&%61mount=2",
            "amount=1&Amount=2",
            "amount=1&amount[]=2",
            "amount[]=2",
            "amount[x]=2",
            "amount.x=1&amount =2",
            "+amount=1",
            "amount%00=1",
            "amount%00x=1",
            "x=1;amount=2",
            "amount=050",
            "amount=5e3",
            "amount=+5",
            "amount=%2B5",
            "amount= 5",
            "amount=",
            "amount",
            "amount=99999999999999999999",
            "amount=1.5",
            "amount[=1",
            "amount]=1",
            "x[y=1",
            "x[y]z=1",
            "x[[y]]=1",
            "card=1",
            "card[number]=1&card[number]=2",
            "card[Number]=1",
            "card[number][]=1",
            "price=1.00001",
            "model=a&model=b",
            "Model=a",
            "max.tokens=5",
            "max tokens=5",
            "max_tokens=05",
            "stream=1",
            "amount=%zz",
            "x=%f",
            "x=%ff",
        ] {
            assert_eq!(read(body), None, "{body}");
        }
        assert_eq!(read(&"x=1&".repeat(MAX_PAIRS + 1)), None);
        assert!(read(&"x=1&".repeat(MAX_PAIRS)).is_some());
        assert_eq!(BodyFacts::read_form(b"x=\xff", &fields()), None);
    }
}
