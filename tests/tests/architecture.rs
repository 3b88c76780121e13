//! The rules of ARCHITECTURE.md that a reader relies on, checked on the sources themselves.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test")]

use std::{
    fs,
    path::{Path, PathBuf},
};

struct Source {
    path: String,
    text: String,
}

impl Source {
    /// The lines that are compiled into a binary: no comments, and nothing after `mod tests`.
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        let end = self.text.find("#[cfg(test)]\nmod tests").unwrap_or(self.text.len());
        let body = self.text.get(..end).unwrap_or_default();
        body.lines().enumerate().map(|(n, l)| (n + 1, l)).filter(|(_, l)| !l.trim_start().starts_with("//"))
    }

    fn is_test(&self) -> bool {
        self.path.ends_with("tests.rs") || self.path.contains("/tests/") || self.path.contains("conformance")
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

fn sources(folder: &str) -> Vec<Source> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display())) {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                let path = path.strip_prefix(root()).unwrap().to_string_lossy().into_owned();
                found.push(Source { path, text });
            }
        }
    }
    assert!(!found.is_empty(), "no sources below {folder}");
    found
}

/// Every line of `folders` in which `word` stands outside of the files that `allowed` names.
fn strays(folders: &[&str], word: &str, allowed: &[&str]) -> Vec<String> {
    let mut strays = Vec::new();
    for source in folders.iter().flat_map(|f| sources(f)) {
        if source.is_test() || allowed.iter().any(|a| source.path.starts_with(a)) {
            continue;
        }
        let hits = source.code().filter(|(_, line)| line.contains(word));
        strays.extend(hits.map(|(n, line)| format!("{}:{n}: {}", source.path, line.trim())));
    }
    strays
}

#[track_caller]
fn assert_none(strays: &[String], rule: &str) {
    assert!(strays.is_empty(), "{rule}:\n{}", strays.join("\n"));
}

#[test]
fn the_planes_never_import_each_other() {
    assert_none(&strays(&["control-plane/src"], "seks_data_plane", &[]), "the control plane imports the data plane");
    assert_none(&strays(&["data-plane/src"], "seks_control_plane", &[]), "the data plane imports the control plane");
    for word in ["seks_data_plane", "seks_control_plane", "seks_cli"] {
        assert_none(&strays(&["proto/src", "crates"], word, &[]), "a lower crate imports a plane");
    }
}

#[test]
fn wire_types_stay_at_the_edges() {
    // Records are stored as wire messages, so the registry names them; the store, the seal and the
    // path of a request don't.
    let folders = ["control-plane/src", "data-plane/src"];
    let allowed = [
        "control-plane/src/admin",
        "control-plane/src/authority",
        "control-plane/src/changefeed",
        "control-plane/src/distribution",
        "control-plane/src/fleet",
        "control-plane/src/node_api",
        "control-plane/src/page",
        "control-plane/src/registry",
        "control-plane/src/server",
        "control-plane/src/status",
        "data-plane/src/sync",
        "data-plane/src/table",
    ];
    assert_none(&strays(&folders, "wire::", &allowed), "a wire type away from the edges");
}

#[test]
fn secrets_are_exposed_only_where_they_are_sealed_encoded_injected_or_searched_for() {
    let allowed = [
        "crates/types/src/secret.rs",     // the type itself
        "crates/types/src/token/aws.rs",  // what fake key pairs are derived from
        "crates/protocol/src/session.rs", // sealed to a node, and to a node's memory
        "control-plane/src/authority",    // its own key
        "control-plane/src/seal",         // sealed
        "control-plane/src/changefeed",   // encoded for a node
        "control-plane/src/mint",         // traded for a token
        "data-plane/src/table",           // sealed again, in memory
        "data-plane/src/pipeline/inject", // injected
        "data-plane/src/pipeline/scrub",  // searched for
        "cli/src/secret_input.rs",        // on its way from the operator to the seal
    ];
    let folders = ["proto/src", "crates", "control-plane/src", "data-plane/src", "cli/src"];
    assert_none(&strays(&folders, ".expose()", &allowed), "a secret is exposed");
}

#[test]
fn key_paths_are_spelled_in_one_file_and_etcd_is_named_in_one_folder() {
    for word in ["\"in/", "\"meta/", "\"tenant/", "\"operator/", "\"node/", "\"replica/"] {
        assert_none(&strays(&["control-plane/src"], word, &["control-plane/src/store/key.rs"]), "a key path");
    }
    let folders = ["control-plane/src", "data-plane/src", "crates", "proto/src", "cli/src"];
    assert_none(&strays(&folders, "etcd_client::", &["control-plane/src/store/etcd"]), "etcd outside its store");
}

#[test]
fn unsafe_code_stands_in_the_wiping_allocator_alone() {
    let folders = ["control-plane/src", "data-plane/src", "crates", "proto/src", "cli/src"];
    for word in ["unsafe {", "unsafe fn", "unsafe impl"] {
        assert_none(&strays(&folders, word, &["crates/runtime/src/alloc.rs"]), "unsafe code");
    }
}

#[test]
fn only_the_simulation_stands_in_for_clock_and_network() {
    // Built for a package, as the images and the benchmarks are, no binary has these seams.
    let crates = fs::read_dir(root().join("crates")).unwrap().map(|entry| entry.unwrap().path());
    let others =
        ["cli", "control-plane", "data-plane", "proto", "tests", "benches", "tests/model"].map(|f| root().join(f));
    for folder in crates.chain(others) {
        let manifest = fs::read_to_string(folder.join("Cargo.toml")).unwrap();
        assert!(!manifest.contains("features = [\"simulation\"]"), "{} asks for the simulation", folder.display());
    }
    let dockerfile = fs::read_to_string(root().join("deploy/docker/Dockerfile")).unwrap();
    assert!(dockerfile.contains("-p seks-control-plane") && !dockerfile.contains("--workspace"), "{dockerfile}");
}

#[test]
fn files_stay_short_and_modules_have_names() {
    let folders = ["proto/src", "crates", "control-plane/src", "data-plane/src", "cli/src", "tests/src", "benches/src"];
    let all: Vec<_> = folders.iter().flat_map(|f| sources(f)).collect();
    let long: Vec<_> = all.iter().map(|s| (s.text.lines().count(), &s.path)).filter(|(n, _)| *n > 600).collect();
    assert!(long.is_empty(), "over 600 lines: {long:?}");
    let unnamed: Vec<_> = all.iter().filter(|s| s.path.ends_with("/mod.rs")).map(|s| &s.path).collect();
    assert!(unnamed.is_empty(), "mod.rs: {unnamed:?}");
}

/// The functions of a formatted file that have more than `most` lines: name and lines.
fn long_functions(source: &Source, most: usize) -> Vec<String> {
    let end = source.text.find("#[cfg(test)]\nmod tests").unwrap_or(source.text.len());
    let lines: Vec<&str> = source.text[..end].lines().collect();
    let mut long = Vec::new();
    for (start, line) in lines.iter().enumerate() {
        let code = line.trim_start();
        let Some(at) = code.find("fn ").filter(|_| !code.starts_with("//")) else { continue };
        if code[at + 3..].starts_with('$') {
            continue; // of a macro
        }
        let is_item = code[..at].split_whitespace().all(|word| {
            word.starts_with("pub") || word.ends_with(')') || ["const", "async", "unsafe", "in"].contains(&word)
        });
        let body = lines[start..].iter().position(|line| line.ends_with(['{', '}', ';']));
        let Some(body) = body.map(|at| start + at).filter(|at| is_item && lines[*at].ends_with('{')) else { continue };
        let end = format!("{}}}", &line[..line.len() - code.len()]);
        let Some(length) = lines[body..].iter().position(|line| **line == *end) else { continue };
        let count = body + length + 1 - start;
        if count > most {
            let name: String = code[at + 3..].chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            long.push(format!("{}:{} {name}: {count} lines", source.path, start + 1));
        }
    }
    long
}

#[test]
fn functions_fit_a_screen() {
    const MOST_LINES: usize = 70;
    /// Stages that are longer. The list may become shorter, and not longer.
    const LONGER: &[&str] = &["data-plane/src/pipeline/authorize.rs", "data-plane/src/pipeline/inject.rs"];
    let folders = ["proto/src", "crates", "control-plane/src", "data-plane/src", "cli/src"];
    let product = folders.iter().flat_map(|f| sources(f)).filter(|source| !source.is_test());
    let others: Vec<_> = product.filter(|source| !LONGER.contains(&source.path.as_str())).collect();
    let long: Vec<String> = others.iter().flat_map(|source| long_functions(source, MOST_LINES)).collect();
    assert!(long.is_empty(), "over {MOST_LINES} lines: {long:#?}");
    let some = others.iter().flat_map(|source| long_functions(source, 10)).count();
    assert!(some > 500, "{some}: functions are not found");
}

/// Comments fit in 100 columns. Exempt are table rows, code blocks, and a single word that is
/// longer (a URL).
#[test]
fn comments_fit_in_100_columns() {
    const COLUMNS: usize = 100;
    let folders = ["proto/src", "crates", "control-plane", "data-plane", "cli/src", "tests", "benches"];
    let mut wide = Vec::new();
    for source in folders.iter().flat_map(|f| sources(f)) {
        let mut is_code_block = false;
        for (number, line) in source.text.lines().enumerate() {
            let text = line.trim_start();
            let Some(comment) = text.strip_prefix("//") else { continue };
            let comment = comment.trim_start_matches(['/', '!']).trim();
            is_code_block ^= comment.starts_with("```");
            let is_exempt = is_code_block || comment.starts_with('|') || !comment.contains(' ');
            if !is_exempt && line.chars().count() > COLUMNS {
                wide.push(format!("{}:{}", source.path, number + 1));
            }
        }
    }
    assert!(wide.is_empty(), "comments over {COLUMNS} columns: {wide:#?}");
}
