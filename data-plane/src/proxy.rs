//! The path of a request.

pub mod audit;
pub mod refusal;
pub mod scrub;
