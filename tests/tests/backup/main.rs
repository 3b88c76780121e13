//! Backup, restore, and a store that went back: what an operator sees of them, process by process.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]
#![allow(unreachable_pub, reason = "the modules are this test's own")]

mod embedded;
mod etcd;
mod machine;
