//! A refusal reaches the operator as one, however much is wrong.

use std::fmt::Write as _;

use seks_tests::Sandbox;

#[test]
fn a_file_with_hundreds_of_mistakes_is_refused_in_a_few_words() {
    let sandbox = Sandbox::start();
    for (mistake, policy) in [
        ("no `@id`", "permit (principal, action, resource);\n".to_owned()),
        (
            "an unknown attribute",
            "@id(\"p\")\npermit (principal, action, resource) when { context.user == \"x\" };\n".into(),
        ),
        ("a syntax error", "permit (principal, action, resource when;\n".into()),
        ("a long name", format!("@id(\"{}\")\npermit (principal, action, resource);\n", "\u{e9}\u{1f511}".repeat(300))),
    ] {
        for count in [1, 20, 400] {
            let mut text = String::new();
            (0..count).for_each(|_| write!(text, "{policy}").unwrap());
            let path = sandbox.context_file().with_file_name("wrong.cedar");
            std::fs::write(&path, &text).unwrap();
            let path = path.display().to_string();
            let applied = sandbox.cli().run(&["policy", "apply", "-f", &path], "");
            let said = format!("{mistake}, {count} times: {}", applied.stderr);
            assert_eq!(applied.code, Some(2), "{said}");
            assert!(!applied.stderr.contains("h2") && applied.stderr.contains("line "), "{said}");
            assert!(applied.stderr.len() < 3000, "{said}");
            let more = applied.stderr.contains("more") && applied.stderr.contains("policy check");
            assert!(count == 1 || more, "{said}");
            let checked = sandbox.cli().run(&["policy", "check", "-f", &path], "");
            assert!(!checked.stderr.contains("h2") && checked.code != Some(0), "{said}{}", checked.stderr);
        }
    }
}
