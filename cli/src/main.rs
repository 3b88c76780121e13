//! `seks`.
fn main() {}
