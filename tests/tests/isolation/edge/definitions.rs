//! Definitions of services: ports that are none, reserved names, and what is shown applied again.

use seks_tests::{
    Upstream,
    sandbox::{Cli, Sandbox},
};

fn apply(cli: &Cli, name: &str, upstream: &str) -> (Option<i32>, String) {
    let text = format!("name = \"{name}\"\nupstream = \"{upstream}\"\ninject = \"bearer\"\n");
    let finished = cli.run(&["service", "apply", "-f", "-"], &text);
    (finished.code, finished.stderr)
}

#[test]
fn a_port_that_is_none_is_refused_by_its_number() {
    let sandbox = Sandbox::start();
    for port in ["65536", "99999", "4294967739", "0", "0443"] {
        let (code, said) = apply(sandbox.cli(), "acme", &format!("https://api.test:{port}"));
        assert!(code == Some(2) && said.contains(&format!("`{port}`")), "{port}: {code:?} {said}");
        let origin = format!("https://api.test:{port}");
        let enabled = sandbox.cli().run(&["service", "enable", "openai", "--upstream", &origin], "");
        assert!(enabled.code == Some(2) && enabled.stderr.contains(&format!("`{port}`")), "{}", enabled.stderr);
    }
    for bad in [
        "https://api.test:",
        "https://api.test:+1",
        "https://[::1",
        "https://api.test:443:443",
        "https://a@api.test",
        "https://api.test%00",
    ] {
        assert_eq!(apply(sandbox.cli(), "acme", bad).0, Some(2), "{bad}");
    }
    assert_eq!(apply(sandbox.cli(), "acme", "https://api.test:65535").0, Some(0));
}

#[test]
fn a_new_service_may_not_have_a_reserved_name() {
    let sandbox = Sandbox::start();
    for name in ["api", "admin", "healthz", "readyz", "metrics", "seks-control", "www", "proxy"] {
        let (code, said) = apply(sandbox.cli(), name, "https://api.test");
        assert!(code == Some(2) && said.contains(&format!("`{name}` is a reserved name")), "{name}: {code:?} {said}");
        let enabled = sandbox.cli().run(&["service", "enable", "openai", "--as", name], "");
        assert_eq!(enabled.code, Some(2), "{name}");
    }
    assert_eq!(apply(sandbox.cli(), "api-2", "https://api.test").0, Some(0));
}

#[test]
fn what_service_show_prints_can_be_applied_and_changes_nothing() {
    let (sandbox, upstream) = (Sandbox::start(), Upstream::ok());
    let cli = sandbox.cli();
    for entry in ["openai", "aws-s3", "telegram", "github"] {
        let arguments = ["service", "enable", entry, "--upstream", &upstream.origin(), "--allow-private"];
        let enabled = cli.run(&arguments, "");
        assert_eq!(enabled.code, Some(0), "{entry}: {}", enabled.stderr);
        for form in ["json", "yaml", "toml"] {
            let before = cli.json(&["status"])["revision"].clone();
            let shown = cli.run(&["service", "show", entry, "-o", form], "");
            let applied = cli.run(&["service", "apply", "-f", "-"], &shown.stdout);
            assert_eq!(applied.code, Some(0), "{entry} {form}: {} {}", applied.stderr, shown.stdout);
            assert_eq!(cli.json(&["status"])["revision"], before, "{entry} {form} wrote something: {}", shown.stdout);
        }
    }
}
