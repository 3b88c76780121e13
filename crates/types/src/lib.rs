//! The types that every crate shares: names ([`id`]), secrets ([`secret`]), tokens ([`token`]) and
//! destinations of credentials ([`destination`]). No I/O, and no wire types.

pub mod destination;
pub mod id;
pub mod secret;
pub mod token;
