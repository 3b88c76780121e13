//! The matrix: every official SDK makes a call, reads a stream, raises its own error for what the
//! vendor and what the broker refuse, and retries as it would without a broker in between. What is
//! expected of each stands in `tests/sdk/matrix.toml`.

use std::{collections::BTreeMap, fs, path::PathBuf, process::Command};

use seks_tests::{
    Sandbox, Upstream, oracle,
    process::{Finished, installed, program, run},
    sandbox::Token,
    upstream::vendors::{FAULT, GREETING, Vendor},
};
use serde::Deserialize;

use crate::{client, only_the_key_arrived, root};

/// What is expected of one SDK in one language.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Cell {
    /// The package and its version, as the README names it.
    sdk: String,
    /// The catalogue entry.
    service: String,
    /// Put behind the service's base URL.
    #[serde(default)]
    path: String,
    /// The token's shape.
    #[serde(default)]
    shape: String,
    /// The API has streams, and the SDK reads them.
    #[serde(default)]
    stream: bool,
    /// Whether the SDK tries again after 429 with `Retry-After`, told so or by itself.
    retries: bool,
    /// What it raises for the vendor's 400 and 500, a revoked token's 401 and a policy's 403.
    bad_request: String,
    server_error: String,
    revoked: String,
    denied: String,
}

/// What the client's program says about one check.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Said {
    check: String,
    text: Option<String>,
    raised: Option<String>,
    message: String,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Language {
    Python,
    Node,
    Java,
    Go,
}

impl Language {
    fn name(self) -> &'static str {
        match self {
            Self::Python => "python",
            Self::Node => "node",
            Self::Java => "java",
            Self::Go => "go",
        }
    }

    /// The command that runs a client.
    fn command(self, name: &str) -> Command {
        let script = |file: String| root().join("tests/sdk").join(self.name()).join(file);
        let command = |path: PathBuf, arguments: &[PathBuf]| {
            let mut command = client(&path);
            command.args(arguments);
            command
        };
        match self {
            Self::Python => command(installed("python/bin/python"), &[script(format!("{name}_client.py"))]),
            Self::Node => {
                let mut command = command(program("node"), &[script(format!("{name}.mjs"))]);
                command.env("SDK_MODULES", installed("node"));
                command
            }
            Self::Java => {
                let (classes, jars) = (installed("java/classes"), installed("java/lib"));
                let path = format!("{}:{}/*", classes.display(), jars.display());
                let quick = ["-XX:TieredStopAtLevel=1".into(), "-cp".into(), path.into(), "Sdk".into(), name.into()];
                command(program("java"), &quick)
            }
            Self::Go => command(installed("go").join(name), &[]),
        }
    }
}

fn cell(language: Language, name: &str) -> Cell {
    let text = fs::read_to_string(root().join("tests/sdk/matrix.toml")).unwrap();
    let mut all: BTreeMap<String, BTreeMap<String, Cell>> = toml::from_str(&text).unwrap();
    all.get_mut(language.name()).and_then(|cells| cells.remove(name)).unwrap()
}

/// One broker, one vendor, and three tokens: one that works, one that was revoked, one of an agent
/// that a policy forbids.
struct VendorRig {
    sandbox: Sandbox,
    upstream: Upstream,
    key: String,
    works: Token,
    revoked: Token,
    denied: Token,
}

impl VendorRig {
    fn new(cell: &Cell) -> Self {
        let key = format!("real-{}-key-CANARY-0000000001", cell.service);
        let (sandbox, upstream) = (Sandbox::start(), Vendor::of(&cell.service).unwrap().start(&key));
        sandbox.service(&cell.service, &upstream, &key);
        let cli = sandbox.cli();
        cli.apply_policies("@id(\"no-outsiders\")\nforbid (principal == Seks::Agent::\"outsider\", action, resource);");
        cli.create_agent("agent");
        cli.create_agent("outsider");
        let shape = if cell.shape.is_empty() { vec![] } else { vec!["--shape", cell.shape.as_str()] };
        let issue = |agent: &str| cli.issue(agent, &[cell.service.as_str()], &shape);
        let (works, revoked, denied) = (issue("agent"), issue("agent"), issue("outsider"));
        cli.revoke(&revoked.id);
        Self { sandbox, upstream, key, works, revoked, denied }
    }

    fn run(&self, command: &mut Command, cell: &Cell) -> Finished {
        command.env("SDK_BASE_URL", format!("{}/api/{}{}", self.sandbox.proxy_url(), cell.service, cell.path));
        command.env("SDK_TOKEN", &self.works.secret);
        command.env("SDK_REVOKED_TOKEN", &self.revoked.secret);
        command.env("SDK_DENIED_TOKEN", &self.denied.secret);
        run(command, b"")
    }

    /// How often the vendor was asked something.
    fn asked(&self, what: &str) -> usize {
        self.upstream.requests().iter().filter(|r| oracle::contains(&r.bytes(), what.as_bytes())).count()
    }

    /// How many requests the node has refused for a reason.
    fn refused(&self, reason: &str) -> f64 {
        let (page, wanted) = (self.sandbox.metrics_page(), format!("reason=\"{reason}\""));
        let counted = page.lines().filter(|l| l.starts_with("seks_proxy_requests_total{") && l.contains(&wanted));
        counted.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }
}

fn prove(language: Language, name: &str) {
    let mut command = language.command(name);
    let cell = cell(language, name);
    let rig = VendorRig::new(&cell);
    let finished = rig.run(&mut command, &cell);
    let lines = finished.stdout.lines().map(|line| serde_json::from_str(line).unwrap_or_default());
    let said: BTreeMap<String, Said> = lines.map(|said: Said| (said.check.clone(), said)).collect();
    let told = |check: &str| said.get(check).unwrap_or_else(|| panic!("no `{check}`: {finished:?}")).clone();
    let (greeting, pieces, mask) = (GREETING.concat(), GREETING.join("|"), "*".repeat(rig.key.len()));

    assert_eq!(told("call").text.as_deref(), Some(greeting.as_str()), "{:?}", told("call"));
    if cell.stream {
        assert_eq!(told("stream").text.as_deref(), Some(pieces.as_str()), "{:?}", told("stream"));
    }
    let raises = |check: &str, class: &str, words: &[&str]| {
        let said = told(check);
        assert_eq!(said.raised.as_deref(), Some(class), "{check}: {said:?}");
        for word in words {
            assert!(said.message.contains(word), "{check} hides `{word}`: {said:?}");
        }
    };
    // The vendor's own errors come through, the key in them masked.
    raises("bad_request", &cell.bad_request, &[FAULT, &mask]);
    raises("server_error", &cell.server_error, &[FAULT, &mask]);
    // A refusal of the broker is the SDK's own error too, and says why.
    raises("revoked", &cell.revoked, &["the token was revoked"]);
    raises("denied", &cell.denied, &["no-outsiders"]);

    let (retry, times) = (told("retry"), rig.asked("check-retry"));
    if cell.retries {
        assert_eq!((retry.text.as_deref(), times), (Some(greeting.as_str()), 2), "{retry:?}");
    } else {
        assert_eq!((retry.raised.is_some(), times), (true, 1), "{retry:?}");
    }
    let refused = (rig.refused("token_revoked"), rig.refused("policy_denied"));
    assert_eq!(refused, (1.0, 1.0), "what is refused for good is not tried again");
    assert_eq!(rig.asked("check-server-error"), 1, "told not to retry");

    only_the_key_arrived(&rig.upstream, &rig.sandbox, &rig.key, 5);
    let (stdout, stderr) = (finished.stdout.as_bytes(), finished.stderr.as_bytes());
    assert_eq!(oracle::find(&[stdout, stderr].concat(), &rig.key), None, "the agent has seen the key");
    assert_eq!(finished.code, Some(0), "{finished:?}");
}

macro_rules! cells {
    ($($language:ident has $part:literal or $reason:literal { $($test:ident: $name:literal,)* })*) => {
        $($(#[test]
        #[cfg_attr(not(has = $part), ignore = $reason)]
        fn $test() {
            prove(Language::$language, $name);
        })*)*

        #[test]
        fn every_row_of_the_matrix_is_a_test() {
            let text = fs::read_to_string(root().join("tests/sdk/matrix.toml")).unwrap();
            let all: BTreeMap<String, BTreeMap<String, Cell>> = toml::from_str(&text).unwrap();
            let rows = all.iter().flat_map(|(language, cells)| cells.keys().map(move |name| format!("{language}.{name}")));
            let mut tested = vec![$($(format!("{}.{}", Language::$language.name(), $name)),*),*];
            tested.sort();
            assert_eq!(rows.collect::<Vec<_>>(), tested);

            let readme = fs::read_to_string(root().join("README.md")).unwrap();
            let table = readme.split_once("<!-- sdks -->").unwrap().1.split_once("\n\n").unwrap().0;
            for cell in all.values().flat_map(BTreeMap::values) {
                assert!(table.contains(&format!("| {} ", cell.sdk)), "the README's table lacks {}", cell.sdk);
            }
        }
    };
}

cells! {
    Python has "python-sdks" or "needs python-sdks" {
        anthropic_for_python: "anthropic",
        cohere_for_python: "cohere",
        gemini_for_python: "gemini",
        github_for_python: "github",
        groq_for_python: "groq",
        mistral_for_python: "mistral",
        openai_for_python: "openai",
        slack_for_python: "slack",
        stripe_for_python: "stripe",
    }
    Node has "node-sdks" or "needs node-sdks" {
        anthropic_for_node: "anthropic",
        gemini_for_node: "gemini",
        github_for_node: "github",
        openai_for_node: "openai",
        stripe_for_node: "stripe",
    }
    Java has "java-sdks" or "needs java-sdks" {
        anthropic_for_java: "anthropic",
        openai_for_java: "openai",
        stripe_for_java: "stripe",
    }
    Go has "go-sdk" or "needs go-sdk" {
        openai_for_go: "openai",
    }
}
