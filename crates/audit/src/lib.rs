//! Audit records on disk.
//!
//! A node appends records to its [`spool`]. A thread of its own writes them ([`recorder`]), chained
//! ([`chain`]) and sealed ([`seal`]). A control plane keeps them in its [`trail`] and can show that
//! nothing was changed or removed. `docs/adr/0013-audit-trail.md` has the reasons.

pub mod admin;
pub mod chain;
pub mod disk;
pub mod export;
pub mod frame;
pub mod record;
pub mod recorder;
pub mod seal;
pub mod signing;
pub mod spool;
pub mod trail;
mod varint;
