//! The environment variables of a service's clients: which names and templates a definition may
//! have.
//!
//! `seks env` prints them for a shell, and `seks run` sets them for a command. The author of a
//! definition must not be able to run a program of theirs in that shell or command. No list names
//! all variables by which that is possible. So a name must be one that clients of APIs read, by its
//! last word, and an address must be the node's. Of those, names that a shell, a loader or a common
//! tool acts on are refused as well. The control plane and the CLI both check.

use std::collections::BTreeMap;

use super::{ServiceError, invalid};

/// Most variables of a service. The largest entry of the catalogue has 6.
const MAX_VARIABLES: usize = 64;
/// Most bytes of a name.
const MAX_NAME: usize = 128;
/// Most bytes of a template.
const MAX_TEMPLATE: usize = 1024;

/// What a template may contain in braces.
const PLACEHOLDERS: [&str; 6] = ["base", "token", "host", "aws_access_key_id", "aws_secret_access_key", "aws_region"];

/// Last words of names that hold an address. Their value must be the node's.
const ADDRESSES: [&str; 8] = ["ADDR", "BASE", "DOMAIN", "ENDPOINT", "HOST", "SERVER", "URI", "URL"];

/// Last words of other names that clients of APIs read.
#[rustfmt::skip]
const WORDS: [&str; 40] = [
    "ACCOUNT", "APIKEY", "BEDROCK", "CLUSTER", "CREDENTIAL", "DATABASE", "DATASET", "DEPLOYMENT", "EMAIL", "ENVIRONMENT",
    "ID", "INSTANCE", "KEY", "LOCATION", "LOGIN", "MODEL", "NAME", "NAMESPACE", "ORG", "ORGANIZATION", "PASS", "PASSWORD",
    "PROJECT", "REALM", "REGION", "SECRET", "SITE", "SPACE", "STAGE", "SUBSCRIPTION", "TEAM", "TENANT", "TOKEN", "USER",
    "USERNAME", "VERSION", "WAREHOUSE", "WORKSPACE", "WORKSPACES", "ZONE",
];

/// The endpoint of one AWS service: the name goes on with the service's.
const AWS_ENDPOINT: &str = "AWS_ENDPOINT_URL_";

/// Tools that load programs from an address in a variable: only secrets of theirs may be set.
const PACKAGE_MANAGERS: [&str; 14] = [
    "BUNDLE_",
    "CARGO_",
    "COMPOSER_",
    "CONDA_",
    "DOCKER_",
    "ELECTRON_",
    "GEM_",
    "HOMEBREW_",
    "NPM_",
    "PIP_",
    "PLAYWRIGHT_",
    "PUPPETEER_",
    "UV_",
    "YARN_",
];

/// Names with these beginnings are read by the dynamic loader, by SEKS itself, by git or by shells.
const RESERVED_PREFIXES: [&str; 8] = ["LD_", "DYLD_", "SEKS_", "GIT_", "BASH_", "LESS", "PYTHON", "PERL5"];

/// Names that a shell, a loader, a language runtime or a common tool acts on.
#[rustfmt::skip]
const RESERVED: [&str; 60] = [
    "ALL_PROXY", "BASHOPTS", "BROWSER", "CDPATH", "CLASSPATH", "COMSPEC", "CURL_CA_BUNDLE", "CURL_HOME", "EDITOR",
    "ENV", "FCEDIT", "FPATH", "GCONV_PATH", "GEM_HOME", "GEM_PATH", "GLOBIGNORE", "GOFLAGS", "HISTFILE", "HOME",
    "HTTPS_PROXY", "HTTP_PROXY", "IFS", "JAVA_TOOL_OPTIONS", "JDK_JAVA_OPTIONS", "KUBECONFIG", "LOCPATH", "LOGNAME",
    "LUA_INIT", "LUA_PATH", "MAIL", "MAILPATH", "MAKEFLAGS", "MALLOC_CONF", "MANPAGER", "NLSPATH", "NODE_EXTRA_CA_CERTS",
    "NODE_OPTIONS", "NODE_PATH", "NO_PROXY", "OPENSSL_CONF", "OPENSSL_MODULES", "PAGER", "PATH", "PHPRC",
    "PROMPT_COMMAND", "PS0", "PS1", "PS2", "PS4", "PWD", "REQUESTS_CA_BUNDLE", "RUBYLIB", "RUBYOPT", "SHELL",
    "SHELLOPTS", "SSH_ASKPASS", "SSL_CERT_FILE", "TMPDIR", "VISUAL", "ZDOTDIR",
];

/// Checks the variables of a definition.
///
/// # Errors
/// [`ServiceError::Invalid`] for the key `env`. The reason names the variable.
pub fn check(variables: &BTreeMap<String, String>) -> Result<(), ServiceError> {
    if variables.len() > MAX_VARIABLES {
        return Err(invalid("env", format!("at most {MAX_VARIABLES} variables")));
    }
    for (name, template) in variables {
        check_name(name).map_err(|reason| invalid("env", format!("`{}`: {reason}", name.escape_debug())))?;
        check_template(template)
            .and_then(|()| check_address(name, template))
            .map_err(|reason| invalid("env", format!("the value of `{name}`: {reason}")))?;
    }
    Ok(())
}

fn check_name(name: &str) -> Result<(), &'static str> {
    let is_word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    if name.is_empty()
        || name.len() > MAX_NAME
        || !name.bytes().all(is_word)
        || name.as_bytes().first().is_some_and(u8::is_ascii_digit)
    {
        return Err("a variable's name has 1 to 128 letters, digits and `_`, and does not begin with a digit");
    }
    let upper = name.to_ascii_uppercase();
    if RESERVED.contains(&upper.as_str()) || RESERVED_PREFIXES.iter().any(|prefix| upper.starts_with(prefix)) {
        return Err("shells and programs act on this variable, so a service cannot set it");
    }
    let last = last_word(&upper).unwrap_or_default();
    let loads = PACKAGE_MANAGERS.iter().any(|prefix| upper.starts_with(prefix)) && ADDRESSES.contains(&last);
    let is_known = WORDS.contains(&last) || ADDRESSES.contains(&last) || upper.starts_with(AWS_ENDPOINT);
    if !is_known || loads {
        return Err(
            "a service sets only variables of its clients, whose names end in `_KEY`, `_TOKEN`, `_URL`, `_HOST`, \
                    `_REGION` or the like; set others yourself",
        );
    }
    Ok(())
}

/// The word behind the last `_`. None: the name is one word.
fn last_word(upper: &str) -> Option<&str> {
    upper.rsplit_once('_').map(|(before, last)| if before.is_empty() { "" } else { last })
}

/// An address leads to the node, and nowhere else.
fn check_address(name: &str, template: &str) -> Result<(), String> {
    let upper = name.to_ascii_uppercase();
    let is_address = last_word(&upper).is_some_and(|last| ADDRESSES.contains(&last)) || upper.starts_with(AWS_ENDPOINT);
    let rest = ["{base}", "{host}"].iter().find_map(|node| template.strip_prefix(node));
    if !is_address || rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['/', '?'])) {
        return Ok(()); // `{host}.evil.test` is another host
    }
    Err("an address begins with {base} or {host}, so that it is the node's".into())
}

fn check_template(template: &str) -> Result<(), String> {
    if template.len() > MAX_TEMPLATE {
        return Err(format!("at most {MAX_TEMPLATE} bytes"));
    }
    if template.chars().any(char::is_control) {
        return Err("a control character".into());
    }
    let mut rest = template;
    while let Some((_, after)) = rest.split_once('{') {
        let Some((placeholder, behind)) = after.split_once('}') else { break };
        if !PLACEHOLDERS.contains(&placeholder) {
            let known = PLACEHOLDERS.map(|name| format!("{{{name}}}")).join(", ");
            return Err(format!("`{{{placeholder}}}` is not one of {known}"));
        }
        rest = behind;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(name: &str, template: &str) -> Result<(), ServiceError> {
        check(&BTreeMap::from([(name.to_owned(), template.to_owned())]))
    }

    #[test]
    fn a_name_that_a_shell_would_execute_is_refused() {
        for name in ["A;touch x", "A B", "1A", "", "A=B", "A\nB", "Ä", "$(x)", "A-B", &"A".repeat(129)] {
            assert!(one(name, "x").is_err(), "{name:?}");
        }
    }

    #[test]
    fn a_name_that_programs_act_on_is_refused_in_any_case() {
        for name in [
            "PATH",
            "path",
            "LD_PRELOAD",
            "BASH_ENV",
            "SEKS_CONTEXT_FILE",
            "HTTPS_PROXY",
            "https_proxy",
            "HOME",
            "TERM",
            "GIT_SSH_COMMAND",
            "NODE_OPTIONS",
            "PYTHONSTARTUP",
            "_JAVA_OPTIONS",
            "VIMINIT",
            "EXINIT",
            "USER",
            "_USER",
            "npm_config_script_shell",
            "NPM_CONFIG_USERCONFIG",
            "RUSTC_WRAPPER",
            "CARGO_HOME",
            "DOTNET_STARTUP_HOOKS",
            "AWS_CONFIG_FILE",
            "XDG_CONFIG_HOME",
            "XDG_STATE_HOME",
            "DOCKER_HOST",
            "NIX_LD",
            "ELECTRON_RUN_AS_NODE",
            "GLIBC_TUNABLES",
            "HOSTALIASES",
            "RES_OPTIONS",
            "TERMINFO",
            "DBUS_SESSION_BUS_ADDRESS",
            "COREHOST_TRACEFILE",
            "PIP_INDEX_URL",
            "UV_INDEX_URL",
            "PLAYWRIGHT_DOWNLOAD_HOST",
            "A",
        ] {
            assert!(one(name, "{base}").is_err(), "{name}");
        }
        for name in [
            "OPENAI_API_KEY",
            "GITHUB_TOKEN",
            "HF_TOKEN",
            "AWS_REGION",
            "NPM_TOKEN",
            "CARGO_REGISTRY_TOKEN",
            "OPENAI_API_BASE",
            "AWS_ENDPOINT_URL_S3",
            "AWS_BEARER_TOKEN_BEDROCK",
            "VAULT_ADDR",
            "acme_api_key",
            "TF_HTTP_USERNAME",
        ] {
            one(name, "{base}/v1").unwrap();
        }
    }

    #[test]
    fn an_address_is_the_nodes() {
        for (name, template) in [
            ("ACME_URL", "https://evil.test/{base}"),
            ("ACME_HOST", "evil.test"),
            ("AWS_ENDPOINT_URL_S3", "http://evil.test"),
            ("ACME_API_BASE", ""),
            ("ACME_HOST", "{host}.evil.test"),
            ("ACME_URL", "{base}@evil.test"),
        ] {
            assert!(one(name, template).is_err(), "{name}={template}");
        }
        one("ACME_HOST", "{host}").unwrap();
        one("ACME_PROJECT", "x").unwrap();
    }

    #[test]
    fn a_template_has_known_placeholders_and_no_control_character() {
        for template in ["{nope}", "a\0b", "a\nb", "\u{1b}[2J", &"x".repeat(1025)] {
            assert!(one("A_KEY", template).is_err(), "{template:?}");
        }
        for template in ["", "{base}/v1?x={token}", "{host}", "{", "a}b", "it's $(x)"] {
            one("A_KEY", template).unwrap();
        }
    }
}
