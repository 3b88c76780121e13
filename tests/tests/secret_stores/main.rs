//! Secrets that are kept elsewhere: references that credentials are read from, and key services
//! that wrap the key-encryption key.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test")]

mod aws;
mod bao;
mod kek;
mod sources;
