//! Declared fields of a body, as Cedar's values.

use cedar_policy::RestrictedExpression as Value;
use seks_service::request::FieldValue;

/// The fields as attributes: those below one name are a record. `fields` are sorted.
pub(super) fn nested_fields(fields: Vec<(Vec<&str>, &FieldValue)>) -> Option<Vec<(String, Value)>> {
    let (mut attributes, mut left) = (Vec::new(), fields.as_slice());
    while let Some((path, value)) = left.first() {
        let name = *path.first()?;
        if path.len() == 1 {
            attributes.push((name.to_owned(), field_value(value)));
            left = left.get(1..)?;
            continue;
        }
        let count = left.iter().take_while(|(path, _)| path.first() == Some(&name)).count();
        let (below, rest) = left.split_at_checked(count)?;
        let below = below.iter().map(|(path, value)| Some((path.get(1..)?.to_vec(), *value))).collect::<Option<_>>()?;
        attributes.push((name.to_owned(), Value::new_record(nested_fields(below)?).ok()?));
        left = rest;
    }
    Some(attributes)
}

fn field_value(value: &FieldValue) -> Value {
    match value {
        FieldValue::Long(number) => Value::new_long(*number),
        FieldValue::String(text) => Value::new_string(text.clone()),
        FieldValue::Bool(value) => Value::new_bool(*value),
        FieldValue::Decimal(text) => Value::new_decimal(text),
    }
}
