//! AWS's own SDKs for Python and Node and its command line, unchanged, through the broker to moto,
//! an emulator that verifies signatures: the agent signs with the fake pair that its token is, what
//! arrives is signed with the real one.
//!
//! `tests/sdk/install` puts boto3, the AWS CLI and moto into `.test-env`; without them these tests
//! are ignored.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test")]

mod arrived;
mod moto;
mod sdk;
