//! Text of a message into names.

use seks_types::id::NameError;

use super::problem::Problem;

/// A name from the field `field`.
pub(super) fn name<T>(field: &'static str, text: &str) -> Result<T, Problem>
where
    T: for<'a> TryFrom<&'a str, Error = NameError>,
{
    T::try_from(text).map_err(|error| Problem::invalid(field, error))
}

/// Names from the repeated field `field`.
pub(super) fn names<T>(field: &'static str, texts: &[String]) -> Result<Vec<T>, Problem>
where
    T: for<'a> TryFrom<&'a str, Error = NameError>,
{
    texts.iter().map(|text| name(field, text)).collect()
}
