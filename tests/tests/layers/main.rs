//! The layers that ARCHITECTURE.md lists, held against the sources: what may use what.
//!
//! A layer uses the layers before it in the list. Inside a module, siblings don't use each other in
//! a circle; a parent and its children may. Tests inside the modules aren't looked at.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test")]

mod graph;
mod modules;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use graph::{Siblings, cycle, siblings, uses};
use modules::Crate;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

/// ARCHITECTURE.md's block of layers: for each subject its layers, lowest first, each a set of
/// names.
fn layers() -> BTreeMap<String, Vec<Vec<String>>> {
    let text = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let (_, after) = text.split_once("```layers\n").unwrap();
    let (block, _) = after.split_once("```").unwrap();
    let mut found: BTreeMap<String, Vec<Vec<String>>> = BTreeMap::new();
    let mut subject = String::new();
    for line in block.lines().filter(|line| !line.trim().is_empty()) {
        let names = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        match line.strip_suffix(':') {
            Some(name) => subject = name.to_owned(),
            None => found.entry(subject.clone()).or_default().push(names(line)),
        }
    }
    found
}

/// The height of each name; a name that is listed twice fails.
fn heights(layers: &[Vec<String>]) -> BTreeMap<&str, usize> {
    let mut heights = BTreeMap::new();
    for (height, layer) in layers.iter().enumerate() {
        for name in layer {
            assert!(heights.insert(name.as_str(), height).is_none(), "`{name}` is listed twice");
        }
    }
    heights
}

/// Uses that don't point down, and names that the list hasn't or the code hasn't.
fn faults<'a>(
    layers: &[Vec<String>],
    names: impl IntoIterator<Item = &'a str>,
    edges: impl IntoIterator<Item = (&'a str, &'a str, String)>,
) -> Vec<String> {
    let heights = heights(layers);
    let names: BTreeSet<_> = names.into_iter().collect();
    let mut faults: Vec<_> =
        names.iter().filter(|n| !heights.contains_key(**n)).map(|n| format!("not listed: {n}")).collect();
    faults.extend(heights.keys().filter(|n| !names.contains(**n)).map(|n| format!("listed, but not there: {n}")));
    for (user, used, example) in edges {
        if let (Some(from), Some(to)) = (heights.get(user), heights.get(used))
            && from <= to
        {
            faults.push(format!("{user} uses {used}, which isn't below it: {example}"));
        }
    }
    faults
}

fn crate_of(folder: &str) -> Crate {
    Crate::read(&root().join(folder).join("src/lib.rs"))
}

fn module_faults(folder: &str, layers: &[Vec<String>]) -> Vec<String> {
    let of = crate_of(folder);
    let graph = siblings(&uses(&of));
    let names = of.modules.keys().filter(|path| path.len() == 1).map(|path| path[0].as_str());
    let top = graph.get(&vec![]).into_iter().flatten();
    faults(layers, names, top.map(|((user, used), one)| (user.as_str(), used.as_str(), one.show())))
}

/// Every circle among siblings, anywhere in the crate.
fn circles(graph: &Siblings) -> Vec<String> {
    let show = |(parent, edges): (&Vec<String>, &BTreeMap<_, _>)| {
        let circle = cycle(edges)?;
        let uses: Vec<_> = circle.iter().map(|one| one.show()).collect();
        Some(format!("in `{}`:\n    {}", parent.join("::"), uses.join("\n    ")))
    };
    graph.iter().filter_map(show).collect()
}

#[track_caller]
fn assert_none(faults: &[String], rule: &str) {
    assert!(faults.is_empty(), "{rule}:\n{}", faults.join("\n"));
}

#[test]
fn modules_use_the_layers_below_them_alone() {
    let layers = layers();
    for folder in ["control-plane", "data-plane"] {
        assert_none(&module_faults(folder, &layers[folder]), folder);
    }
}

#[test]
fn no_modules_use_each_other_in_a_circle() {
    let crates = fs::read_dir(root().join("crates"))
        .unwrap()
        .map(|entry| format!("crates/{}", entry.unwrap().file_name().to_string_lossy()));
    let planes = ["proto", "control-plane", "data-plane", "cli"].map(str::to_owned);
    let mut found = Vec::new();
    for folder in crates.chain(planes) {
        found.extend(circles(&siblings(&uses(&crate_of(&folder)))).iter().map(|circle| format!("{folder} {circle}")));
    }
    assert_none(&found, "circles");
}

#[test]
fn crates_depend_on_the_layers_below_them_alone() {
    let manifest = |folder: &str| -> toml::Table {
        fs::read_to_string(root().join(folder).join("Cargo.toml")).unwrap().parse().unwrap()
    };
    let layers = layers();
    let workspace = &layers["workspace"];
    let folders: Vec<_> = workspace.iter().flatten().map(String::as_str).collect();
    let by_package: BTreeMap<String, &str> = folders
        .iter()
        .map(|folder| (manifest(folder)["package"]["name"].as_str().unwrap().to_owned(), *folder))
        .collect();
    let mut edges = Vec::new();
    for folder in &folders {
        for package in manifest(folder)["dependencies"].as_table().into_iter().flat_map(toml::Table::keys) {
            edges.extend(by_package.get(package).map(|used| (*folder, *used, "Cargo.toml".to_owned())));
        }
    }
    let members = fs::read_dir(root().join("crates")).unwrap();
    let members: Vec<_> =
        members.map(|entry| format!("crates/{}", entry.unwrap().file_name().to_string_lossy())).collect();
    let all = members.iter().map(String::as_str).chain(folders.iter().copied());
    assert_none(&faults(workspace, all, edges), "the workspace");
}

/// A crate of the given modules.
fn made_of(sources: &[(&str, &str)]) -> Crate {
    let sources: BTreeMap<_, _> = sources.iter().copied().collect();
    Crate::load(&|path| sources[path.join("::").as_str()].to_owned())
}

#[test]
fn a_use_is_found_whatever_it_passes() {
    let written = [
        "use crate::b::Thing;",
        "use crate::{b::{Thing as Other}};",
        "fn f() { crate::b::make(); }",
        "use crate::b; fn f() { b::make(); }",
        "use super::c::Again;", // re-exported
        "use super::c::*; fn f(_: Again) {}",
        "fn f() { println!(\"{}\", crate::b::make()); }",
        "fn f(_: &dyn Fn() -> Vec<crate::b::Thing>) {}",
    ];
    for a in written {
        let of = made_of(&[
            ("", "mod a; mod b; mod c;"),
            ("a", a),
            ("b", "pub struct Thing; pub fn make() {}"),
            ("c", "pub use crate::b::Thing as Again;"),
        ]);
        let found = siblings(&uses(&of));
        assert!(found[&vec![]].contains_key(&("a".into(), "b".into())), "{a}: {found:?}");
    }
}

#[test]
fn tests_and_other_crates_are_no_uses() {
    for a in ["use http::b;", "use b::Thing;", "#[cfg(test)] mod tests { use crate::b::Thing; }", "fn f() { b() }"] {
        let of = made_of(&[("", "mod a; mod b;"), ("a", a), ("b", "pub struct Thing;")]);
        assert!(uses(&of).is_empty(), "{a}");
    }
}

#[test]
fn a_circle_and_a_use_upwards_are_found() {
    let of = made_of(&[
        ("", "mod a;"),
        ("a", "mod x; mod y; mod z; pub struct Parent;"),
        ("a::x", "use super::{Parent, y::Y}; pub struct X;"),
        ("a::y", "use super::z::Z; pub struct Y;"),
        ("a::z", "use super::x::X; pub struct Z;"),
    ]);
    let found = circles(&siblings(&uses(&of)));
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].contains("a::z -> a::x (super::x::X)") && !found[0].contains("Parent"), "{found:?}");

    let layers = [vec!["low".to_owned()], vec!["high".to_owned()]];
    let up = faults(&layers, ["low", "high", "new"], [("low", "high", "example".to_owned())]);
    assert_eq!(up, ["not listed: new", "low uses high, which isn't below it: example"]);
    assert!(faults(&layers, ["low", "high"], [("high", "low", String::new())]).is_empty());
}
