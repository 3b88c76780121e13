//! Coding agents that do not reach the node with the services' variables alone: what each needs in
//! addition.
//!
//! A client that this module does not know is started as it is. The facts below were seen with the
//! versions in `tests/sdk/agents/package.json`.

use std::{
    ffi::{OsStr, OsString},
    path::{Path, PathBuf},
};

use serde_json::{Value, json};

use crate::{commands::env::Variables, error::Result, files::write_public};

/// Programs that start the package named by their first argument that is no option.
const PACKAGE_RUNNERS: [&str; 5] = ["npx", "bunx", "pnpx", "uvx", "env"];

/// Clients without a setting for another server, and their packages.
const WITHOUT_BASE_URL: [&str; 4] = ["copilot", "cursor-agent", "amp", "droid"];

/// The user's own settings, which a client reads beside its variables.
pub(super) struct UserSettings<'a> {
    /// The user's home directory.
    pub(super) home: &'a Path,
    /// Directory for files that clients read.
    pub(super) cache: &'a Path,
    /// A variable of the environment that the command inherits.
    pub(super) variable: &'a dyn Fn(&str) -> Option<String>,
}

/// What a command needs to reach the node.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Adaptation {
    /// Position in the command, and the arguments that are inserted there.
    pub(super) arguments: Option<(usize, Vec<String>)>,
    /// Variables that are set in addition to the services'.
    pub(super) set: Vec<(&'static str, String)>,
    /// Variables that the command must not have.
    pub(super) unset: Vec<&'static str>,
    /// Why the client does not use the node, for the operator.
    pub(super) warnings: Vec<String>,
}

/// What `command` needs beside the services' `variables`. Nothing for an unknown client.
///
/// # Errors
/// When a file for the client cannot be written.
pub(super) fn adapt(command: &[OsString], variables: &Variables, user: &UserSettings<'_>) -> Result<Adaptation> {
    let Some((position, client)) = client_name(command) else { return Ok(Adaptation::default()) };
    let arguments = command.get(position + 1..).unwrap_or_default();
    let mut adaptation = Adaptation::default();
    match client.as_str() {
        "codex" => codex(&mut adaptation, position, arguments, variables),
        "claude" => claude(&mut adaptation, variables, user),
        "gemini" => gemini(&mut adaptation, variables, user)?,
        "qwen" => qwen(&mut adaptation, position, arguments, variables, user),
        "opencode" => opencode(&mut adaptation, user),
        other if WITHOUT_BASE_URL.contains(&other) && !variables.contains_key("HTTPS_PROXY") => {
            adaptation.warnings.push(format!(
                "{other} has no setting for another server and calls its vendor directly; HTTPS_PROXY mode (`seks ca create`) \
                 brings the hosts of services through SEKS"
            ));
        }
        _ => {}
    }
    Ok(adaptation)
}

/// The client that the command starts, and the position of its name.
fn client_name(command: &[OsString]) -> Option<(usize, String)> {
    let first = program(command.first()?);
    if !PACKAGE_RUNNERS.contains(&first.as_str()) {
        return Some((0, first));
    }
    let mut rest = command.iter().enumerate().skip(1);
    rest.find(|(_, word)| {
        let word = word.as_encoded_bytes();
        !word.starts_with(b"-") && !word.contains(&b'=')
    })
    .map(|(position, word)| (position, program(word)))
}

/// The name of a program or of a package's program: `codex` for `/usr/bin/codex` and
/// `@openai/codex@latest`.
fn program(word: &OsStr) -> String {
    let name = Path::new(word).file_name().unwrap_or(word).to_string_lossy();
    let name = name.split('@').next().unwrap_or_default();
    match name {
        "claude-code" => "claude",
        "gemini-cli" => "gemini",
        "qwen-code" => "qwen",
        "opencode-ai" => "opencode",
        name => name,
    }
    .to_owned()
}

/// Codex has no variable for its server. A provider of its own also takes precedence over a ChatGPT
/// login.
fn codex(adaptation: &mut Adaptation, position: usize, arguments: &[OsString], variables: &Variables) {
    let Some(base) = variables.get("OPENAI_BASE_URL") else {
        return adaptation.warnings.push(without_service("codex", "openai"));
    };
    let names_provider = |word: &OsString| word.to_string_lossy().contains("model_provider");
    if arguments.iter().any(names_provider) {
        return;
    }
    let settings = [
        ("model_provider", "seks".to_owned()),
        ("model_providers.seks.name", "SEKS".to_owned()),
        ("model_providers.seks.base_url", base.clone()),
        ("model_providers.seks.env_key", "OPENAI_API_KEY".to_owned()),
        ("model_providers.seks.wire_api", "responses".to_owned()),
    ];
    let options = settings.into_iter().flat_map(|(key, value)| ["-c".to_owned(), format!("{key}={value:?}")]).collect();
    adaptation.arguments = Some((position + 1, options));
}

/// Claude Code asks before it uses a key of `ANTHROPIC_API_KEY`, and prefers its own login when the
/// answer was no. It uses `ANTHROPIC_AUTH_TOKEN` unasked, before any login.
fn claude(adaptation: &mut Adaptation, variables: &Variables, user: &UserSettings<'_>) {
    match variables.get("ANTHROPIC_API_KEY") {
        Some(token) if variables.contains_key("ANTHROPIC_BASE_URL") => {
            adaptation.set.push(("ANTHROPIC_AUTH_TOKEN", token.clone()));
            adaptation.unset.push("ANTHROPIC_API_KEY");
        }
        _ => return adaptation.warnings.push(without_service("claude", "anthropic")),
    }
    for cloud in ["CLAUDE_CODE_USE_BEDROCK", "CLAUDE_CODE_USE_VERTEX", "CLAUDE_CODE_USE_FOUNDRY"] {
        warn_if_set(adaptation, "claude", cloud, user);
    }
    let file = user.home.join(".claude/settings.json");
    let settings = read_json(&file);
    if settings.is_some_and(|settings| settings.pointer("/env/ANTHROPIC_BASE_URL").is_some()) {
        adaptation.warnings.push(format!(
            "claude uses `env.ANTHROPIC_BASE_URL` of {} in place of SEKS: remove it there",
            file.display()
        ));
    }
}

/// Gemini CLI needs a chosen kind of login in its settings. Without settings it gets a home
/// directory with that choice.
fn gemini(adaptation: &mut Adaptation, variables: &Variables, user: &UserSettings<'_>) -> Result<()> {
    const API_KEY: &str = "gemini-api-key";
    if !variables.contains_key("GOOGLE_GEMINI_BASE_URL") {
        adaptation.warnings.push(without_service("gemini", "gemini"));
        return Ok(());
    }
    for login in ["GOOGLE_GENAI_USE_GCA", "GOOGLE_GENAI_USE_VERTEXAI"] {
        warn_if_set(adaptation, "gemini", login, user);
    }
    let home = (user.variable)("GEMINI_CLI_HOME").map_or_else(|| user.home.to_owned(), PathBuf::from);
    let file = home.join(".gemini/settings.json");
    let settings = read_json(&file);
    let chosen = settings.as_ref().and_then(|settings| settings.pointer("/security/auth/selectedType")?.as_str());
    match settings {
        Some(_) if chosen == Some(API_KEY) => {}
        Some(_) => adaptation.warnings.push(format!(
            "gemini does not use SEKS with its present login: set `security.auth.selectedType` to \"{API_KEY}\" in {}",
            file.display()
        )),
        None => {
            let home = user.cache.join("gemini");
            let settings = json!({ "security": { "auth": { "selectedType": API_KEY } } });
            write_settings(&home.join(".gemini"), &settings)?;
            adaptation.set.push(("GEMINI_CLI_HOME", home.display().to_string()));
        }
    }
    Ok(())
}

/// Qwen Code reads OpenAI's variables if `--auth-type openai` or a model is given.
fn qwen(
    adaptation: &mut Adaptation,
    position: usize,
    arguments: &[OsString],
    variables: &Variables,
    user: &UserSettings<'_>,
) {
    if !variables.contains_key("OPENAI_BASE_URL") {
        return adaptation.warnings.push(without_service("qwen", "openai"));
    }
    let told = arguments.iter().any(|word| word.to_string_lossy().starts_with("--auth-type"));
    if !told && (user.variable)("OPENAI_MODEL").is_none() {
        adaptation.arguments = Some((position + 1, vec!["--auth-type".into(), "openai".into()]));
    }
}

/// opencode prefers the logins that it has stored.
fn opencode(adaptation: &mut Adaptation, user: &UserSettings<'_>) {
    let data = (user.variable)("XDG_DATA_HOME").map_or_else(|| user.home.join(".local/share"), PathBuf::from);
    let file = data.join("opencode/auth.json");
    let Some(Value::Object(logins)) = read_json(&file) else { return };
    let known: Vec<_> =
        ["openai", "anthropic", "google"].into_iter().filter(|name| logins.contains_key(*name)).collect();
    if !known.is_empty() {
        adaptation.warnings.push(format!(
            "opencode uses its own login for {} in place of SEKS's token: `opencode auth logout`",
            known.join(", ")
        ));
    }
}

fn without_service(client: &str, service: &str) -> String {
    format!(
        "{client} calls its vendor directly: none of the granted services is its API (`seks service enable {service}`)"
    )
}

fn warn_if_set(adaptation: &mut Adaptation, client: &str, variable: &str, user: &UserSettings<'_>) {
    let is_on = |value: String| !matches!(value.as_str(), "" | "0" | "false");
    if (user.variable)(variable).is_some_and(is_on) {
        adaptation.warnings.push(format!("{variable} is set: {client} calls that service directly, past SEKS"));
    }
}

/// A JSON file that may be missing, unreadable, or have comments: then nothing is known of it.
fn read_json(file: &Path) -> Option<Value> {
    serde_json::from_slice(&std::fs::read(file).ok()?).ok()
}

fn write_settings(folder: &Path, settings: &Value) -> Result<()> {
    let file = folder.join("settings.json");
    std::fs::create_dir_all(folder).map_err(|e| crate::error::CliError::file(folder, &e))?;
    write_public(&file, settings.to_string().as_bytes())
}

#[cfg(test)]
mod tests;
