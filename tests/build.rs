//! Sets `cfg(has = "NAME")` for each part that this machine has of what the tests need beside Rust
//! (`src/part.rs`).
#![allow(dead_code, unreachable_pub, reason = "the modules are the library's, too")]

#[path = "src/host.rs"]
mod host;
#[path = "src/part.rs"]
mod part;

use part::{PARTS, Part};

fn main() {
    let names: Vec<String> = PARTS.iter().map(|(name, _)| format!("{name:?}")).collect();
    println!("cargo::rustc-check-cfg=cfg(has, values({}))", names.join(", "));
    for (name, part) in PARTS {
        if part.is_here(name) {
            println!("cargo::rustc-cfg=has={name:?}");
        }
    }
    rerun_when_a_part_comes_or_goes();
}

fn rerun_when_a_part_comes_or_goes() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=src/part.rs");
    println!("cargo::rerun-if-changed=src/host.rs");
    println!("cargo::rerun-if-changed=/etc/hosts");
    println!("cargo::rerun-if-env-changed=PATH");
    // `tests/sdk/install` leaves a file here. Cargo would always run this script again for one that
    // is missing.
    let installed = if std::path::Path::new("sdk/.installed").exists() { "sdk/.installed" } else { "sdk" };
    println!("cargo::rerun-if-changed={installed}");
    let mut is_program_missing = false;
    for (name, _) in PARTS.iter().filter(|(_, part)| matches!(part, Part::Program)) {
        println!("cargo::rerun-if-env-changed={}", part::variable(name));
        match part::find_program(name) {
            Some(file) => println!("cargo::rerun-if-changed={}", file.display()),
            None => is_program_missing = true,
        }
    }
    if is_program_missing {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let directories =
            std::env::split_paths(&path).filter(|directory| directory.is_absolute() && directory.is_dir());
        directories.for_each(|directory| println!("cargo::rerun-if-changed={}", directory.display()));
    }
}
