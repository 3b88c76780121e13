//! The `seks` binary.

use std::process::ExitCode;

/// Wipes freed memory. A credential on its way to the control plane passes through buffers of
/// libraries.
#[global_allocator]
static ALLOCATOR: seks_runtime::alloc::Allocator = seks_runtime::alloc::Allocator::new();

fn main() -> ExitCode {
    seks_cli::main(std::env::args_os())
}
