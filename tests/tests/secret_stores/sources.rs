//! A credential as a reference: to a file, a command, OpenBao, AWS, and stand-ins for Google and
//! 1Password.

use std::{fs, os::unix::fs::PermissionsExt as _};

use seks_tests::{
    Sandbox, Upstream,
    process::{Finished, wait_for},
    sandbox::Options,
    upstream::Answer,
};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    aws::Moto,
    bao::{Bao, ROOT},
};

/// A broker whose control plane may read files and run commands, and an API that tells which key it
/// was given.
struct Broker {
    sandbox: Sandbox,
    files: TempDir,
    upstream: Upstream,
}

impl Broker {
    fn start() -> Self {
        let files = tempfile::tempdir().unwrap();
        let path = |name: &str| files.path().join(name).display().to_string();
        fs::create_dir_all(path("default")).unwrap();
        fs::create_dir_all(path("other")).unwrap();
        fs::write(path("other/key"), "another-tenants-key-0000000001").unwrap();
        fs::write(path("print"), "#!/bin/sh\nenv >\"${0%/*}/environment\"\ncat \"${0%/*}/printed-$1\"\n").unwrap();
        fs::set_permissions(path("print"), fs::Permissions::from_mode(0o755)).unwrap();
        let sources = format!(
            "kind = \"embedded\"\npath = \"store/seks.redb\"\n[sources]\nfile_dir = {:?}\n\
             [[sources.command]]\nname = \"print\"\nargv = [{:?}, \"{{argument}}\"]\ntenants = [\"default\"]\n\
             [[sources.command]]\nname = \"others\"\nargv = [\"/bin/true\"]\ntenants = [\"other\"]\n",
            files.path().display().to_string(),
            path("print"),
        );
        let sandbox = Sandbox::with(Options::planes(sources));
        let upstream = Upstream::start(|request| {
            let key = request.header("authorization").unwrap_or_default();
            Answer::json(if key.contains("refused") { 401 } else { 200 }, "{}")
        });
        let definition = format!(
            "name = \"acme\"\nupstream = \"{}\"\nallow_private = true\ninject = \"bearer\"\n",
            upstream.origin()
        );
        sandbox.cli().apply_service(&definition);
        Self { sandbox, files, upstream }
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.files.path().join(name), text).unwrap();
    }

    fn put(&self, source: &str, reference: Option<&Value>) -> Finished {
        let mut arguments = vec!["credential", "put", "key", "--service", "acme", "--source", source];
        arguments.extend(reference.map(|_| "--from-stdin"));
        self.sandbox.cli().run(&arguments, &reference.map(Value::to_string).unwrap_or_default())
    }

    #[track_caller]
    fn stored(&self, source: &str, reference: Option<&Value>) {
        let put = self.put(source, reference);
        assert_eq!(put.code, Some(0), "{put:?}");
    }

    #[track_caller]
    fn refused(&self, source: &str, reference: Option<&Value>, why: &str) {
        let put = self.put(source, reference);
        assert!(put.code != Some(0) && put.stderr.contains(why), "{source} {reference:?}: {put:?}");
        assert_eq!(put.stderr.lines().filter(|line| line.starts_with("error: ")).count(), 1, "{put:?}");
        assert!(!put.stderr.contains("0000000001"), "a secret came out: {put:?}");
    }

    fn show(&self) -> Value {
        self.sandbox.cli().json(&["credential", "show", "key"])
    }

    /// Asks until the API is given this key.
    fn wait_for_key(&self, token: &str, key: &str) {
        wait_for("the key at the API", || {
            self.upstream.forget();
            self.sandbox.get("/api/acme/things", token);
            let given = self.upstream.requests().pop()?.header("authorization")?;
            (given == format!("Bearer {key}")).then_some(())
        });
    }

    fn assert_nothing_leaked(&self, secrets: &[&str]) {
        let emitted = self.sandbox.everything_emitted();
        for secret in secrets {
            assert!(!emitted.contains(secret), "{secret} came out");
        }
    }
}

#[test]
fn a_file_is_read_again_and_a_change_reaches_the_nodes() {
    let broker = Broker::start();
    broker.write("default/acme.key", "filed-key-0000000001\n");
    broker.stored("file:acme.key", None);
    assert_eq!(broker.show()["mint"]["source"], json!({ "path": "acme.key" }));
    broker.stored("file", Some(&json!({ "path": "acme.key", "refresh_seconds": 10 })));
    let token = broker.sandbox.token("agent", &["acme"]).secret;
    broker.wait_for_key(&token, "filed-key-0000000001");
    // Gone: the last good version stays, and three places say so.
    fs::remove_file(broker.files.path().join("default/acme.key")).unwrap();
    let failing = wait_for("the failure to show", || {
        let shown = broker.show();
        shown["mint"]["failing_since"].is_string().then_some(shown)
    });
    assert!(failing["mint"]["error"].as_str().unwrap().contains("the file is not there"), "{failing}");
    let doctor = broker.sandbox.cli().run(&["doctor"], "").stdout;
    assert!(doctor.contains("the file is not there"), "{doctor}");
    broker.wait_for_key(&token, "filed-key-0000000001");
    broker.write("default/acme.key", "filed-key-0000000002\n");
    broker.wait_for_key(&token, "filed-key-0000000002");
    broker.assert_nothing_leaked(&["filed-key-0000000001", "filed-key-0000000002"]);
}

#[test]
fn a_secret_that_the_upstream_refuses_is_read_at_once() {
    let broker = Broker::start();
    broker.write("default/acme.key", "refused-key-0000000001");
    broker.stored("file:acme.key", None); // read again after 5 minutes
    let token = broker.sandbox.token("agent", &["acme"]).secret;
    broker.wait_for_key(&token, "refused-key-0000000001");
    broker.write("default/acme.key", "good-key-0000000002");
    broker.wait_for_key(&token, "good-key-0000000002");
}

#[test]
fn a_reference_reaches_no_other_tenant_and_nothing_of_the_control_plane() {
    let broker = Broker::start();
    std::os::unix::fs::symlink("../other/key", broker.files.path().join("default/link")).unwrap();
    std::os::unix::fs::symlink("/proc/self/environ", broker.files.path().join("default/environ")).unwrap();
    broker.write("default/large", &"x".repeat(64 * 1024 + 1));
    broker.write("default/empty", "\n");
    for (source, why) in [
        ("file:../other/key", "field `path`"),
        ("file:/etc/passwd", "field `path`"),
        ("file:link", "out of the tenant's folder"),
        ("file:environ", "out of the tenant's folder"),
        ("file:none", "is not there"),
        ("file:large", "64 KiB"),
        ("file:empty", "empty"),
        ("command:others", "names no `[[sources.command]]` of this tenant"),
        ("command:none", "names no `[[sources.command]]` of this tenant"),
        ("command:print", "`argument` is missing"),
        ("command:print:--help", "field `argument`"),
        ("command:print:$(id)", "field `argument`"),
        ("command:print:../x", "field `argument`"),
        ("command:print:none", "the command `print` exited with 1"),
        ("vault-kv:x", "never an argument"),
        ("nowhere:x", "is not one of"),
    ] {
        broker.refused(source, None, why);
    }
    let elsewhere = json!({ "address": "http://169.254.169.254", "path": "latest", "token": "t-0000000001" });
    broker.refused("vault-kv", Some(&elsewhere), "always forbidden");
    let identity = json!({ "address": broker.upstream.origin(), "path": "a", "login": "kubernetes" });
    broker.refused("vault-kv", Some(&identity), "`[[sources.vault_login]]`");
    assert!(broker.upstream.received().is_empty(), "no request was sent");
    assert_eq!(broker.sandbox.cli().run(&["credential", "show", "key"], "").code, Some(3));
    let dev = Sandbox::start();
    dev.cli().apply_service("name = \"acme\"\nupstream = \"https://api.acme.test\"\ninject = \"bearer\"\n");
    let put = dev.cli().run(&["credential", "put", "key", "--service", "acme", "--source", "file:x"], "");
    assert!(put.code == Some(2) && put.stderr.contains("`[sources] file_dir`"), "off by default: {put:?}");
}

#[test]
fn a_command_prints_a_secret_and_sees_nothing_of_the_control_plane() {
    let broker = Broker::start();
    broker.write("printed-acme", "{\"user\":\"u\",\"key\":\"printed-key-0000000001\"}\n");
    broker.stored("command", Some(&json!({ "command": "print", "argument": "acme", "field": "key" })));
    let token = broker.sandbox.token("agent", &["acme"]).secret;
    broker.wait_for_key(&token, "printed-key-0000000001");
    let environment = fs::read_to_string(broker.files.path().join("environment")).unwrap();
    for line in environment.lines() {
        let name = line.split('=').next().unwrap();
        assert!(["PATH", "PWD", "OLDPWD", "SHLVL", "_"].contains(&name), "{environment}");
    }
    broker.assert_nothing_leaked(&["printed-key-0000000001"]);
}

#[test]
fn a_tenants_file_says_where_its_secrets_are() {
    let broker = Broker::start();
    broker.write("default/acme.key", "filed-key-0000000001");
    broker.write("default/new.key", "filed-key-0000000002");
    let cli = broker.sandbox.cli();
    let apply = |path: &str, more: &[&str]| {
        let file = json!({ "credentials": [{ "name": "key", "service": "acme", "source": { "kind": "file", "path": path } }] });
        let arguments = [&["apply", "-f", "-", "-o", "json"], more].concat();
        cli.run(&arguments, &file.to_string())
    };
    let changes = |finished: &Finished| {
        assert_eq!(finished.code, Some(0), "{finished:?}");
        serde_json::from_str::<Value>(&finished.stdout).unwrap()["changes"].clone()
    };
    let planned = changes(&apply("acme.key", &["--dry-run"]));
    assert_eq!((&planned[0]["kind"], &planned[0]["action"]), (&json!("credential"), &json!("create")), "{planned}");
    assert_eq!(cli.run(&["credential", "show", "key"], "").code, Some(3), "a dry run stores nothing");
    assert_eq!(changes(&apply("acme.key", &[])).as_array().unwrap().len(), 1);
    assert_eq!(changes(&apply("acme.key", &[])), json!([]), "the same again changes nothing");
    let token = broker.sandbox.token("agent", &["acme"]).secret;
    broker.wait_for_key(&token, "filed-key-0000000001");
    assert_eq!(changes(&apply("new.key", &[]))[0]["action"], "update");
    broker.wait_for_key(&token, "filed-key-0000000002");
    let exported = cli.run(&["export", "-o", "json"], "").stdout;
    let source = &serde_json::from_str::<Value>(&exported).unwrap()["credentials"][0]["source"];
    assert_eq!(source, &json!({ "kind": "file", "path": "new.key" }));
    assert_eq!(changes(&cli.run(&["apply", "-f", "-", "-o", "json"], &exported)), json!([]));
    let missing = apply("none.key", &[]);
    assert!(missing.code != Some(0) && missing.stderr.contains("credential `key`"), "{missing:?}");
    broker.wait_for_key(&token, "filed-key-0000000002");
}

#[test]
#[cfg_attr(not(has = "openbao"), ignore = "needs openbao")]
fn a_secret_in_a_real_openbao_is_read_with_a_token_and_with_an_app_role() {
    let (broker, bao) = (Broker::start(), Bao::start());
    bao.call("POST", "secret/data/apps/acme", &json!({ "data": { "api_key": "vaulted-key-0000000001" } }));
    let policy = "path \"secret/data/apps/*\" { capabilities = [\"read\"] }";
    bao.call("PUT", "sys/policies/acl/apps", &json!({ "policy": policy }));
    bao.call("POST", "sys/auth/approle", &json!({ "type": "approle" }));
    bao.call("POST", "auth/approle/role/seks", &json!({ "token_policies": "apps", "token_ttl": "60s" }));
    let role = bao.call("GET", "auth/approle/role/seks/role-id", &Value::Null)["data"]["role_id"].clone();
    let secret_id = bao.call("POST", "auth/approle/role/seks/secret-id", &Value::Null)["data"]["secret_id"].clone();
    let by_token = json!({ "address": bao.origin(), "path": "apps/acme", "token": ROOT });
    broker.stored("vault-kv", Some(&by_token));
    let by_role = json!({ "address": bao.origin(), "path": "apps/acme", "role_id": role, "secret_id": secret_id,
        "refresh_seconds": 10 });
    broker.stored("vault-kv", Some(&by_role));
    let shown = broker.show()["mint"]["source"].clone();
    assert_eq!(shown, json!({ "address": bao.origin(), "path": "apps/acme", "refresh_seconds": 10 }));
    let token = broker.sandbox.token("agent", &["acme"]).secret;
    broker.wait_for_key(&token, "vaulted-key-0000000001");
    bao.call("POST", "secret/data/apps/acme", &json!({ "data": { "api_key": "vaulted-key-0000000002" } }));
    broker.wait_for_key(&token, "vaulted-key-0000000002");
    let not_allowed = json!({ "address": bao.origin(), "path": "ops/root", "role_id": role, "secret_id": secret_id });
    broker.refused("vault-kv", Some(&not_allowed), "the source `vault-kv` answered 403");
    let leaks = [ROOT, secret_id.as_str().unwrap(), "vaulted-key-0000000001", "vaulted-key-0000000002"];
    broker.assert_nothing_leaked(&leaks);
}

#[test]
#[cfg_attr(not(has = "aws-sdks"), ignore = "needs aws-sdks")]
fn a_secret_in_aws_secrets_manager_is_read_with_a_signed_request() {
    let (broker, moto) = (Broker::start(), Moto::start());
    moto.put_secret("prod/acme", r#"{"key":"amazon-key-0000000001"}"#);
    let reference = json!({ "region": "us-east-1", "secret_name": "prod/acme", "field": "key", "endpoint": moto.url,
        "access_key_id": moto.key["access_key_id"], "secret_access_key": moto.key["secret_access_key"], "refresh_seconds": 10 });
    broker.stored("aws-secrets-manager", Some(&reference));
    let token = broker.sandbox.token("agent", &["acme"]).secret;
    broker.wait_for_key(&token, "amazon-key-0000000001");
    moto.put_secret("prod/acme", r#"{"key":"amazon-key-0000000002"}"#);
    broker.wait_for_key(&token, "amazon-key-0000000002");
    let with = |name: &str, value: Value| {
        let mut changed = reference.clone();
        changed[name] = value;
        changed
    };
    let absent = with("secret_name", json!("prod/none"));
    broker.refused("aws-secrets-manager", Some(&absent), "(ResourceNotFoundException)"); // moto: 404, AWS: 400
    let unsigned = with("secret_access_key", json!("wrong-0000000001"));
    broker.refused("aws-secrets-manager", Some(&unsigned), "the source `aws-secrets-manager` answered 403");
    broker.assert_nothing_leaked(&[moto.key["secret_access_key"].as_str().unwrap(), "amazon-key-0000000001"]);
}

/// Written from Connect's API reference, because a server of 1Password needs an account.
#[test]
fn a_secret_in_1password_is_found_by_names() {
    const TOKEN: &str = "connect-token-0000000001";
    let (vault, item) = ("v".repeat(26), "i".repeat(26));
    let (vault_path, item_path) = (format!("/v1/vaults/{vault}/items"), format!("/v1/vaults/{vault}/items/{item}"));
    let connect = Upstream::start(move |request| {
        if request.header("authorization") != Some(format!("Bearer {TOKEN}")) {
            return Answer::json(401, r#"{"status":401,"message":"Invalid token signature"}"#);
        }
        let target = request.target();
        let answer = match target.split('?').next().unwrap_or_default() {
            "/v1/vaults" if target.ends_with("?filter=name%20eq%20%22Team%20keys%22") => json!([{ "id": vault }]),
            path if path == vault_path && target.ends_with("?filter=title%20eq%20%22acme%22") => {
                json!([{ "id": item }])
            }
            path if path == item_path => json!({ "fields": [
                { "id": "username", "type": "STRING", "label": "user", "value": "u" },
                { "id": "credential", "type": "CONCEALED", "label": "api key", "value": "one-key-0000000001" } ] }),
            _ => json!([]),
        };
        Answer::json(200, &answer.to_string())
    });
    let broker = Broker::start();
    let reference = json!({ "address": connect.origin(), "token": TOKEN, "vault": "Team keys", "item": "acme" });
    broker.stored("1password-connect", Some(&reference));
    let token = broker.sandbox.token("agent", &["acme"]).secret;
    broker.wait_for_key(&token, "one-key-0000000001");
    for (name, value, why) in [
        ("vault", "Others", "there is none of this name"),
        ("item", "none", "there is none of this name"),
        ("item", "a\"b", "an id or a name"),
        ("field", "none", "no such key"),
        ("token", "wrong-0000000001", "answered 401"),
    ] {
        let mut wrong = reference.clone();
        wrong[name] = value.into();
        broker.refused("1password-connect", Some(&wrong), why);
    }
    broker.assert_nothing_leaked(&[TOKEN, "one-key-0000000001"]);
}

#[test]
fn a_source_that_answers_too_much_or_sends_elsewhere_stores_nothing() {
    let broker = Broker::start();
    let elsewhere = Upstream::ok();
    let target = format!("{}/v1/secret/data/a", elsewhere.origin());
    let source = Upstream::start(move |request| match request.path().as_str() {
        "/v1/secret/data/large" => Answer::json(200, &"x".repeat(10 << 20)),
        "/v1/secret/data/redirect" => Answer::with(302, &[("Location", &target)], ""),
        "/v1/secret/data/number" => Answer::json(200, r#"{"data":{"data":{"k":7}}}"#),
        "/v1/secret/data/text" => Answer::json(200, "secret-0000000001"),
        _ => Answer::json(500, r#"{"errors":["secret-0000000001"]}"#),
    });
    for (path, why) in [
        ("large", "gave an answer that can't be read"),
        ("redirect", "answered 302"),
        ("number", "no text"),
        ("text", "gave no JSON"),
        ("error", "answered 500"),
    ] {
        let reference = json!({ "address": source.origin(), "path": path, "token": "t-0000000001" });
        broker.refused("vault-kv", Some(&reference), why);
    }
    assert!(elsewhere.received().is_empty(), "a redirect was followed");
}
