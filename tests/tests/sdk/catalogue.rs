//! The catalogue is found by what people know of a service.

use seks_service::catalogue;
use seks_tests::Sandbox;

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
