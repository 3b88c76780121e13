//! Hosts of no service, which pass through where the tenant says so.

use std::fs;

use seks_tests::{
    Collector, Upstream, oracle,
    process::{Finished, program, run},
    sandbox::Options,
    upstream::{Answer, Host},
};

use super::intercepting_sandbox::{InterceptingSandbox, KEY, client};

#[test]
#[cfg_attr(not(has = "curl"), ignore = "needs curl")]
#[cfg_attr(all(has = "curl", not(has = "host-name")), ignore = "needs host-name")]
fn hosts_of_no_service_pass_through_unseen_once_the_tenant_says_so() {
    let curl = program("curl");
    let host = Host::of_this_machine().unwrap();
    let name = host.name.clone();
    let other = Upstream::start_tls_as(host, |_| Answer::json(200, r#"{"other":true}"#));
    let collector = Collector::start();
    let rig = InterceptingSandbox::bearer_in(
        Options::default().collector(&collector),
        Upstream::start_tls(|_| Answer::json(404, "{}")),
    );
    let roots = rig.folder().join("other-ca.pem");
    fs::write(&roots, other.ca_pem().unwrap()).unwrap();
    let ask = || {
        let mut command = client(curl.clone());
        command.args(["--silent", "--show-error", "--cacert", roots.to_str().unwrap(), &other.origin()]);
        run(command.env("HTTPS_PROXY", rig.proxy()), b"")
    };
    let refused = |asked: Finished| {
        assert!(asked.code == Some(56) && asked.stderr.contains("403"), "{asked:?}");
    };
    let cli = rig.sandbox.cli();
    refused(ask());
    let said = cli.json(&["ca", "other-hosts", "tunnel", "--allow-private"]);
    assert_eq!((&said["enforced"], &said["other_hosts"]), (&true.into(), &"tunnel".into()), "{said}");
    cli.json(&["ca", "create"]);
    assert_eq!(cli.json(&["ca", "show"])["other_hosts"], "tunnel", "another CA changes nothing else");
    let asked = ask();
    assert_eq!((asked.code, asked.stdout.as_str()), (Some(0), r#"{"other":true}"#), "{asked:?}");
    let heard = other.received();
    for secret in [b"seks_token_".as_slice(), KEY.as_bytes(), b"Proxy-Authorization", b"Authorization"] {
        assert!(!oracle::contains(&heard, secret), "{}", String::from_utf8_lossy(&heard));
    }
    let span = collector.wait_for("the tunnel's record", |s| {
        s.name == "seks.proxy" && s.get("http.request.method") == "CONNECT" && s.get("seks.decision") == "allow"
    });
    let call = collector.wait_for("the tunnel's call", |s| s.parent == span.id && s.get("server.address") == name);
    assert_eq!(call.get("server.port"), other.address().port().to_string());
    assert_eq!((span.get("seks.decision"), span.get("seks.agent")), ("allow", "agent"), "{span:?}");
    for size in ["http.request.body.size", "http.response.body.size"] {
        assert!(span.get(size).parse::<u64>().unwrap() > 100, "{size}: {span:?}");
    }
    cli.json(&["ca", "other-hosts", "deny"]);
    refused(ask());
}
