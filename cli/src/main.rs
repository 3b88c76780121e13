//! `seks`.

use std::process::ExitCode;

/// Wipes what it frees: a credential on its way to the control plane passes through buffers that aren't ours to wipe.
#[global_allocator]
static ALLOCATOR: seks_runtime::alloc::Allocator = seks_runtime::alloc::Allocator::new();

fn main() -> ExitCode {
    seks_cli::main(std::env::args_os())
}
