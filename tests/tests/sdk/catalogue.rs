//! The catalogue: complete, and found by what people know of a service.

use std::{collections::BTreeSet, fs};

use seks_service::catalogue;
use seks_tests::Sandbox;

use crate::root;

#[test]
fn every_service_of_the_list_has_an_entry() {
    let list = fs::read_to_string(root().join("tests/data/catalogue.txt")).unwrap();
    let lines = list.lines().filter(|line| !line.starts_with(['#', '!']));
    let wanted: BTreeSet<&str> = lines.flat_map(str::split_whitespace).collect();
    let missing: Vec<_> = wanted.iter().filter(|name| catalogue::find(name).is_none()).collect();
    assert!(missing.is_empty(), "no entry: {missing:?}");
    assert!(wanted.len() >= 140, "{} names", wanted.len());
}

#[test]
fn the_catalogue_is_found_by_name_title_group_and_host() {
    let sandbox = Sandbox::start();
    let names = |search: &str| -> Vec<String> {
        let found = sandbox.cli().json(&["service", "catalog", search]);
        found.as_array().unwrap().iter().map(|e| e["name"].as_str().unwrap().to_owned()).collect()
    };
    for (search, name) in
        [("gemini", "gemini"), ("Qwen", "dashscope"), ("communication", "slack"), ("hubapi.COM", "hubspot")]
    {
        assert!(names(search).iter().any(|n| n == name), "{search}: {:?}", names(search));
    }
    assert!(names("no such service").is_empty());
    let all = sandbox.cli().json(&["service", "catalog"]);
    let groups: Vec<_> = all.as_array().unwrap().iter().map(|e| e["group"].as_str().unwrap()).collect();
    assert!(groups.is_sorted() && groups.len() == catalogue::entries().len(), "{groups:?}");
    let table = sandbox.cli().run(&["service", "catalog"], "").stdout;
    let heads =
        table.lines().filter(|line| line.trim_start_matches(['│', '|', ' ']).starts_with("communication")).count();
    assert_eq!(heads, 1, "a group's name stands once:\n{table}");
}
