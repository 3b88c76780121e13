//! Finds the commit that `--version` names.

use std::{env, fs, path::Path};

/// Sets `SEKS_COMMIT` for the crate: what the environment says (an image is built without `.git`),
/// else the commit that is checked out, else `unknown`.
fn main() {
    println!("cargo::rerun-if-env-changed=SEKS_COMMIT");
    // Both planes depend on this crate: a debug build isn't worth compiling them again for every
    // commit.
    let debug = env::var("PROFILE").is_ok_and(|p| p == "debug");
    let commit = env::var("SEKS_COMMIT").ok().filter(|c| !c.is_empty() && c.chars().all(|c| c.is_ascii_graphic()));
    let commit = commit.or_else(|| head(!debug).map(|c| c.chars().take(12).collect()));
    let commit = commit.unwrap_or_else(|| "unknown".into());
    println!("cargo::rustc-env=SEKS_COMMIT={commit}{}", if debug { ", debug build" } else { "" });
}

/// Reads the commit from `.git` without running git, which a build machine may not have.
fn head(watch: bool) -> Option<String> {
    let read = |path: &Path| {
        if watch && path.exists() {
            println!("cargo::rerun-if-changed={}", path.display());
        }
        fs::read_to_string(path).ok()
    };
    let mut git = Path::new(&env::var("CARGO_MANIFEST_DIR").ok()?).join("../../.git");
    if git.is_file() {
        // A worktree or a submodule: the file says where the directory is.
        let link = fs::read_to_string(&git).ok()?;
        git = git.parent()?.join(link.strip_prefix("gitdir:")?.trim());
    }
    let head = read(&git.join("HEAD"))?;
    let Some(name) = head.trim().strip_prefix("ref: ") else { return Some(head.trim().into()) };
    let common = fs::read_to_string(git.join("commondir")).map_or_else(|_| git.clone(), |c| git.join(c.trim()));
    if let Some(commit) = read(&common.join(name)) {
        return Some(commit.trim().into());
    }
    let packed = read(&common.join("packed-refs"))?;
    packed.lines().find_map(|l| l.strip_suffix(name)?.strip_suffix(' ').map(Into::into))
}
