use std::fs;

use super::*;

const BASE: &str = "http://127.0.0.1:8300/api/openai/v1";

/// The adaptation of a command line in `home`, with `environment`.
fn adapted(line: &str, home: &Path, environment: &[(&str, &str)]) -> Adaptation {
    let variables: Variables = [
        ("OPENAI_BASE_URL", BASE),
        ("OPENAI_API_KEY", "token"),
        ("ANTHROPIC_BASE_URL", "http://127.0.0.1:8300/api/anthropic"),
        ("ANTHROPIC_API_KEY", "token"),
        ("GOOGLE_GEMINI_BASE_URL", "http://127.0.0.1:8300/api/gemini"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into();
    adapted_with(line, home, environment, &variables)
}

fn adapted_with(line: &str, home: &Path, environment: &[(&str, &str)], variables: &Variables) -> Adaptation {
    let command: Vec<OsString> = line.split(' ').map(OsString::from).collect();
    let variable = |name: &str| environment.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned());
    let cache = home.join("cache");
    adapt(&command, variables, &UserSettings { home, cache: &cache, variable: &variable }).unwrap()
}

#[test]
fn an_unknown_command_is_started_as_it_is() {
    let home = tempfile::tempdir().unwrap();
    for line in ["python agent.py", "ls codex", "npx -y cowsay codex", "./claude.py", "npx"] {
        assert_eq!(adapted(line, home.path(), &[]), Adaptation::default(), "{line}");
    }
}

#[test]
fn codex_gets_a_provider_behind_its_name_however_it_is_started() {
    let home = tempfile::tempdir().unwrap();
    for (line, at) in [
        ("codex", 1),
        ("/usr/bin/codex exec hi", 1),
        ("npx -y @openai/codex@latest exec hi", 3),
        ("npx codex", 2),
        ("env RUST_LOG=debug codex", 3),
    ] {
        let (position, inserted) = adapted(line, home.path(), &[]).arguments.unwrap();
        assert_eq!(position, at, "{line}");
        assert!(inserted.contains(&format!("model_providers.seks.base_url={BASE:?}")), "{inserted:?}");
    }
    assert_eq!(adapted("codex -c model_provider=mine", home.path(), &[]).arguments, None, "the user's choice");
}

#[test]
fn claude_gets_the_token_where_no_login_comes_before_it() {
    let home = tempfile::tempdir().unwrap();
    let adaptation = adapted("npx @anthropic-ai/claude-code -p hi", home.path(), &[]);
    assert_eq!(adaptation.set, [("ANTHROPIC_AUTH_TOKEN", "token".to_owned())]);
    assert_eq!(adaptation.unset, ["ANTHROPIC_API_KEY"]);
    let cloud = adapted("claude", home.path(), &[("CLAUDE_CODE_USE_BEDROCK", "1")]);
    assert!(cloud.warnings[0].contains("CLAUDE_CODE_USE_BEDROCK"), "{cloud:?}");
    fs::create_dir(home.path().join(".claude")).unwrap();
    let settings = r#"{"env":{"ANTHROPIC_BASE_URL":"https://elsewhere.example"}}"#;
    fs::write(home.path().join(".claude/settings.json"), settings).unwrap();
    let settings = adapted("claude", home.path(), &[("CLAUDE_CODE_USE_VERTEX", "0")]);
    assert_eq!(settings.warnings.len(), 1, "{settings:?}");
    assert!(settings.warnings[0].contains("settings.json"), "{settings:?}");
}

#[test]
fn gemini_without_settings_gets_a_home_with_a_login_by_key() {
    let home = tempfile::tempdir().unwrap();
    let adaptation = adapted("gemini -p hi", home.path(), &[]);
    let [("GEMINI_CLI_HOME", given)] = adaptation.set.as_slice() else { panic!("{adaptation:?}") };
    let settings = fs::read_to_string(Path::new(given).join(".gemini/settings.json")).unwrap();
    assert!(settings.contains("gemini-api-key"), "{settings}");

    let own = home.path().join(".gemini");
    fs::create_dir(&own).unwrap();
    for (settings, warnings) in [
        (r#"{"security":{"auth":{"selectedType":"gemini-api-key"}}}"#, 0),
        (r#"{"security":{"auth":{"selectedType":"oauth-personal"}}}"#, 1),
        (r#"{"ui":{}}"#, 1),
    ] {
        fs::write(own.join("settings.json"), settings).unwrap();
        let adaptation = adapted("gemini", home.path(), &[]);
        assert_eq!((adaptation.warnings.len(), adaptation.set.len()), (warnings, 0), "{settings} {adaptation:?}");
    }
}

#[test]
fn clients_that_would_call_their_vendor_are_named() {
    let home = tempfile::tempdir().unwrap();
    let none = Variables::new();
    for line in ["codex", "claude", "gemini", "qwen", "copilot", "cursor-agent", "amp", "droid"] {
        let warnings = adapted_with(line, home.path(), &[], &none).warnings;
        assert!(warnings.len() == 1 && warnings[0].contains(line), "{line}: {warnings:?}");
    }
    let proxied: Variables = [("HTTPS_PROXY".to_owned(), "http://127.0.0.1:8300".to_owned())].into();
    assert_eq!(adapted_with("copilot", home.path(), &[], &proxied).warnings, [""; 0]);
    let stored = home.path().join(".local/share/opencode");
    fs::create_dir_all(&stored).unwrap();
    fs::write(stored.join("auth.json"), r#"{"anthropic":{"type":"oauth"},"other":{}}"#).unwrap();
    let warnings = adapted("opencode run hi", home.path(), &[]).warnings;
    assert!(warnings.len() == 1 && warnings[0].contains("anthropic in place"), "{warnings:?}");
}

#[test]
fn qwen_is_told_to_use_openai_unless_the_user_said_more() {
    let home = tempfile::tempdir().unwrap();
    assert!(adapted("qwen -p hi", home.path(), &[]).arguments.is_some());
    assert_eq!(adapted("qwen -p hi", home.path(), &[("OPENAI_MODEL", "m")]).arguments, None);
    assert_eq!(adapted("qwen --auth-type anthropic", home.path(), &[]).arguments, None);
}
