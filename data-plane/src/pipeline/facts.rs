//! The properties of a request's body that policies read.

use seks_policy::Body;
use seks_service::request::BodyFacts;

/// What is known of a body that a policy looks at.
#[derive(Clone)]
pub(crate) enum Facts {
    Absent,
    Known(BodyFacts),
    Opaque,
}

impl<'a> From<&'a Facts> for Body<'a> {
    fn from(facts: &'a Facts) -> Self {
        match facts {
            Facts::Absent => Body::Absent,
            Facts::Known(facts) => Body::Inspected(facts),
            Facts::Opaque => Body::Opaque,
        }
    }
}
