//! The addresses that a process may dial ([`address`]), and the resolution of upstream names
//! ([`resolve`]).

pub mod address;
pub mod resolve;
