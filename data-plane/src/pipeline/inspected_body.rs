//! The properties of a request's body that policies read.

use seks_policy::Body;
use seks_service::request::BodyFacts;

/// What is known of a body that a policy looks at.
#[derive(Clone)]
pub(crate) enum InspectedBody {
    Absent,
    Known(BodyFacts),
    Opaque,
}

impl<'a> From<&'a InspectedBody> for Body<'a> {
    fn from(facts: &'a InspectedBody) -> Self {
        match facts {
            InspectedBody::Absent => Body::Absent,
            InspectedBody::Known(facts) => Body::Inspected(facts),
            InspectedBody::Opaque => Body::Opaque,
        }
    }
}
