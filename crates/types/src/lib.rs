//! The types that every crate shares: names ([`id`]), secrets ([`secret`]), the tokens that agents hold ([`token`]) and what a
//! credential is bound to ([`destination`]). No I/O, and no type of the wire.

pub mod destination;
pub mod id;
pub mod secret;
pub mod token;
