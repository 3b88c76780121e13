//! Availability from outside, without a token: what a client, a log reader or a collector does must
//! not stop anybody else.
#![allow(clippy::print_stdout, reason = "measured figures")]

mod attackers;
mod collector;
mod descriptors;
mod frames;
mod joins;
mod listeners;
mod logs;
mod soak;
