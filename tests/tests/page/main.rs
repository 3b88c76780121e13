//! The page: what a browser shows of it, and who is refused.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test")]

mod browser;

use std::{net::SocketAddr, path::Path};

use seks_tests::{
    Sandbox, Upstream,
    process::wait_for,
    raw::{self, Reply},
    sandbox::Cli,
};
use serde_json::Value;

use self::browser::Browser;

/// Text that does something wherever it is taken for markup, a script or an address.
const HOSTILE: &str = "\"'><script>window.hit=1</script><img src=//evil.test/x onerror=window.hit=1>";

/// Address, path and query of a URL without TLS.
fn split(url: &str) -> (SocketAddr, String) {
    let (address, path) = url.strip_prefix("http://").unwrap().split_once('/').unwrap();
    (address.parse().unwrap(), format!("/{path}"))
}

fn link(sandbox: &Sandbox) -> String {
    sandbox.cli().json(&["page"])["url"].as_str().unwrap().to_owned()
}

fn get(address: SocketAddr, path: &str, headers: &str) -> Reply {
    let host = if headers.contains("Host:") { String::new() } else { format!("Host: {address}\r\n") };
    raw::exchange(address, format!("GET {path} HTTP/1.1\r\n{host}{headers}Connection: close\r\n\r\n"))
}

/// Opens a link: the session's address and its cookie.
fn open(url: &str) -> (SocketAddr, String, String) {
    let (address, path) = split(url);
    let reply = get(address, &path, "");
    assert_eq!(reply.status, 200, "{}", reply.text());
    let base = reply.header("refresh").unwrap().strip_prefix("0; url=").unwrap().to_owned();
    let cookie = reply.header("set-cookie").unwrap().to_owned();
    (address, base, cookie)
}

/// A tenant in which every free text is hostile.
fn filled(sandbox: &Sandbox, upstream: &Upstream) {
    sandbox.service("openai", upstream, "sk-real-page-key-000000000001");
    let cli = sandbox.cli();
    let attribute = format!("team={HOSTILE}");
    assert_eq!(cli.run(&["agent", "create", "bot", "--attr", &attribute], "").code, Some(0));
    cli.apply_policies(&format!(
        "@id(\"by-team\") permit (principal, action, resource) when {{ principal.hasTag(\"team\") && principal.getTag(\"team\") == {} && context.path like \"/v1/*\" }};",
        serde_json::to_string(&format!("{HOSTILE}!")).unwrap()
    ));
    let removed = cli.run(&["policy", "delete", "granted-services", "--yes"], "");
    assert_eq!(removed.code, Some(0), "{removed:?}");
    let denied = cli.issue("bot", &["openai"], &[]);
    assert_eq!(
        sandbox.get("/api/openai/v1/denied/%3Cscript%3Ewindow.hit=1%3C/script%3E'onload='", &denied.secret).status,
        403
    );
    cli.apply_policies("@id(\"reads\") permit (principal, action == Seks::Action::\"GET\", resource);");
    for number in 0..40 {
        assert_eq!(sandbox.get(&format!("/api/openai/v1/models/{number}"), &denied.secret).status, 200);
    }
    let posted = sandbox.post("/api/openai/v1/chat", &denied.secret, "{}");
    assert_eq!(posted.status, 403);
    wait_for("the records to arrive", || {
        let found = cli.json(&["audit", "search", "--limit", "100"]);
        (found.as_array()?.len() >= 42).then_some(())
    });
}

#[cfg_attr(not(all(has = "chromedriver", has = "chromium")), ignore = "needs chromium")]
#[test]
fn a_browser_shows_the_fleet_a_tenant_and_why_a_request_was_refused() {
    let (sandbox, upstream) = (Sandbox::start(), Upstream::ok());
    filled(&sandbox, &upstream);
    let browser = Browser::start();
    let url = link(&sandbox);
    let origin = url.split("/link/").next().unwrap().to_owned();
    browser.open(&url);
    wait_for("the overview", || browser.text().contains("Tenants").then_some(()));
    let base = browser.url();
    assert!(base.starts_with(&format!("{origin}/p/")), "{base}");
    for text in ["healthy", "1 of 1", "connected", "default", "local"] {
        assert!(browser.text().contains(text), "{text}: {}", browser.text());
    }
    browser.picture("overview");
    let mut seen = 0;
    let harmless = |view: &str| {
        let found = browser.script(
            "return {hit: window.hit === undefined ? 0 : 1, scripts: document.scripts.length, images: document.images.length,
              frames: document.querySelectorAll('iframe,object,embed,base').length,
              handlers: [...document.querySelectorAll('*')].filter(e => [...e.attributes].some(a => a.name.startsWith('on'))).length}",
        );
        let none = serde_json::json!({"hit": 0, "scripts": 0, "images": 0, "frames": 0, "handlers": 0});
        assert_eq!(found, none, "{view}: {}", browser.script("return document.body.innerHTML"));
        assert!(browser.script("return document.styleSheets.length") == 1, "{view} has its style");
    };
    harmless("overview");
    browser.click("default");
    assert!(browser.text().contains("policy_denied") && browser.text().contains("openai"), "{}", browser.text());
    browser.picture("tenant");
    for view in [
        "agents",
        "tokens",
        "requests",
        "agents/bot",
        "requests?decision=deny",
        "requests?agent=%22%3E%3Cscript%3Ewindow.hit=1%3C/script%3E",
    ] {
        browser.open(&format!("{base}t/default/{view}"));
        harmless(view);
        browser.picture(&view.replace(['/', '?', '%'], "-").chars().take(24).collect::<String>());
        seen += 1;
    }
    assert_eq!(seen, 6);
    browser.open(&format!("{base}t/default/agents/bot"));
    assert!(browser.text().contains(HOSTILE), "shown as it is: {}", browser.text());
    // Why: the record, in words, with the policies' own text.
    browser.open(&format!("{base}t/default/requests?decision=deny"));
    let time = browser.script("return document.querySelector('tbody tr:last-child td a').innerText");
    let last = browser.script("return document.querySelector('tbody tr:last-child td a').href");
    assert!(time.as_str().unwrap().len() == 8, "{time}");
    browser.open(last.as_str().unwrap());
    let why = browser.text();
    assert!(why.contains("No policy permits this request") && why.contains("by-team"), "{why}");
    harmless("request");
    browser.picture("request");
    browser.open(&base);
    browser.click("dev"); // the node
    assert!(browser.text().contains("Last hour") && browser.text().contains("lease owner"), "{}", browser.text());
    harmless("node");
    browser.picture("node");
    browser.resize(420, 900);
    let wide = browser.script("return document.documentElement.scrollWidth <= document.documentElement.clientWidth");
    assert_eq!(wide, Value::Bool(true), "a narrow window needs no sideways scrolling");
    browser.picture("narrow");
    let foreign: Vec<String> =
        browser.requested().into_iter().filter(|url| !url.starts_with(&origin) && !url.starts_with("data:")).collect();
    assert!(foreign.iter().all(|url| url.starts_with("chrome") || url.starts_with("about:")), "{foreign:?}");
    let complaints = browser.complaints();
    assert!(complaints.iter().all(|text| !text.contains("Content Security Policy")), "{complaints:?}");
    // A copy of the address in another browser shows nothing: the cookie is missing.
    let other = Browser::start();
    other.open(&base);
    assert!(other.text().contains("This session has ended"), "{}", other.text());
    other.open(&url);
    assert!(other.text().contains("was used or has expired"), "{}", other.text());
}

#[test]
fn what_waits_for_approval_is_shown_and_decided_elsewhere() {
    let upstream = Upstream::ok();
    let sandbox = Sandbox::start();
    sandbox.service("openai", &upstream, "sk-real-page-key-000000000002");
    let bot = sandbox.token("bot", &["openai"]);
    sandbox.cli().apply_policies(
        "@id(\"ask\") @approval(\"payments\") forbid (principal, action, resource) when { context.path like \"/v1/*\" };",
    );
    let refused = sandbox.get("/api/openai/v1/models/'onload='?amount=424242171717&%3Cscript%3E=1", &bot.secret);
    assert_eq!(refused.code(), "approval_required", "{}", refused.text());
    let (address, base, cookie) = open(&link(&sandbox));
    let cookie = format!("Cookie: {}\r\n", cookie.split(';').next().unwrap());
    let page = get(address, &format!("{base}t/default"), &cookie).text();
    let id = sandbox.cli().json(&["approval", "list"])[0]["id"].as_str().unwrap().to_owned();
    assert!(page.contains(&id) && page.contains("amount=…") && page.contains("payments"), "{page}");
    assert!(!page.contains("4242") && !page.contains("<script"), "{page}");
    for method in ["POST", "PUT", "DELETE"] {
        let request =
            format!("{method} {base}t/default HTTP/1.1\r\nHost: {address}\r\n{cookie}Connection: close\r\n\r\n");
        assert_eq!(raw::exchange(address, request).status, 405, "{method}");
    }
    assert_eq!(sandbox.cli().json(&["approval", "show", &id])["state"], "waiting");
}

#[test]
fn a_link_opens_once_and_its_session_needs_path_and_cookie() {
    let mut sandbox = Sandbox::start();
    let url = link(&sandbox);
    let (address, path) = split(&url);
    // What is loaded ahead of a click does not spend it.
    assert_eq!(get(address, &path, "Sec-Purpose: prefetch\r\n").status, 503);
    let head = raw::exchange(address, format!("HEAD {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n"));
    assert_eq!(head.status, 503);
    let (address, base, cookie) = open(&url);
    assert_eq!(get(address, &path, "").status, 410, "spent");
    let key = cookie.split(';').next().unwrap();
    assert!(
        cookie.contains(&format!("Path={base};")) && cookie.contains("HttpOnly") && cookie.contains("SameSite=Strict"),
        "{cookie}"
    );
    assert!(!cookie.contains("Domain"), "{cookie}");
    let shown = get(address, &base, &format!("Cookie: other=1; {key}\r\n"));
    assert_eq!(shown.status, 200, "{}", shown.text());
    for headers in [String::new(), "Cookie: seks_page=wrong\r\n".into()] {
        assert_eq!(get(address, &base, &headers).status, 403);
    }
    assert_eq!(get(address, "/", &format!("Cookie: {key}\r\n")).status, 403, "the cookie alone is nothing");
    for header in [
        "content-security-policy",
        "x-frame-options",
        "referrer-policy",
        "x-content-type-options",
        "cross-origin-resource-policy",
    ] {
        assert!(shown.header(header).is_some(), "{header}: {}", shown.head);
    }
    assert!(shown.header("content-security-policy").unwrap().starts_with("default-src 'none'"));
    assert_eq!(shown.header("cache-control"), Some("no-store"));
    // Neither the link nor the key is in a log.
    let emitted = sandbox.process().output();
    let code = path.rsplit('/').next().unwrap();
    assert!(!emitted.contains(code) && !emitted.contains(key.trim_start_matches("seks_page=")), "{emitted}");
}

#[test]
fn other_names_other_sites_and_writes_are_refused() {
    let sandbox = Sandbox::start();
    let (address, base, cookie) = open(&link(&sandbox));
    let cookie = format!("Cookie: {}\r\n", cookie.split(';').next().unwrap());
    for host in ["evil.test", "127.0.0.1:1", "seks.evil.test:8304", ""] {
        assert_eq!(get(address, &base, &format!("Host: {host}\r\n{cookie}")).status, 421, "{host}");
    }
    let localhost = format!("Host: localhost:{}\r\n{cookie}", address.port());
    assert_eq!(get(address, &base, &localhost).status, 200);
    let embeds = format!("Sec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: no-cors\r\nSec-Fetch-Dest: image\r\n{cookie}");
    assert_eq!(get(address, &base, &embeds).status, 403);
    for method in ["POST", "PUT", "DELETE", "OPTIONS"] {
        let request = format!(
            "{method} {base} HTTP/1.1\r\nHost: {address}\r\n{cookie}Content-Length: 0\r\nConnection: close\r\n\r\n"
        );
        assert_eq!(raw::exchange(address, request).status, 405, "{method}");
    }
    for path in ["nothing", "t/default/none", "t/../..", "t/default/agents/%ff"] {
        assert_eq!(get(address, &format!("{base}{path}"), &cookie).status, 404, "{path}");
    }
    let long = format!("{base}t/default/requests?agent={}", "a".repeat(5000));
    assert_eq!(get(address, &long, &cookie).status, 414);
    let bad = get(address, &format!("{base}t/default/requests?decision=perhaps&agent=a"), &cookie);
    assert_eq!(bad.status, 400, "{}", bad.text());
}

#[test]
fn an_operator_of_one_tenant_sees_that_tenant_alone_and_nothing_after_it_was_deleted() {
    let sandbox = Sandbox::start();
    let cli = sandbox.cli();
    for tenant in ["acme", "globex"] {
        assert_eq!(cli.run(&["tenant", "create", tenant], "").code, Some(0));
    }
    let file = sandbox.data_dir().join("ann.toml").display().to_string();
    let made = cli.run(&["operator", "create", "ann", "--role", "viewer:acme", "--out", &file], "");
    assert_eq!(made.code, Some(0), "{made:?}");
    let page: Value = Cli::new(&sandbox.data_dir(), Path::new(&file)).json(&["page"]);
    let (address, base, cookie) = open(page["url"].as_str().unwrap());
    let cookie = format!("Cookie: {}\r\n", cookie.split(';').next().unwrap());
    let overview = get(address, &base, &cookie);
    assert_eq!(overview.status, 200, "{}", overview.text());
    let text = overview.text();
    assert!(text.contains("acme") && !text.contains("globex") && !text.contains("<h2>Nodes"), "{text}");
    assert_eq!(get(address, &format!("{base}t/acme"), &cookie).status, 200);
    let (hidden, missing) =
        (get(address, &format!("{base}t/globex"), &cookie), get(address, &format!("{base}t/absent"), &cookie));
    assert_eq!((hidden.status, missing.status), (404, 404));
    assert_eq!(hidden.text().replace("globex", "absent"), missing.text(), "a hidden tenant is a missing one");
    assert_eq!(get(address, &format!("{base}nodes/dev"), &cookie).status, 403);
    assert_eq!(cli.run(&["operator", "delete", "ann", "--yes"], "").code, Some(0));
    assert_eq!(get(address, &base, &cookie).status, 403, "its session ends with the operator");
}

#[cfg_attr(not(has = "curl"), ignore = "needs curl")]
#[test]
fn a_replica_has_no_page_unless_told_and_then_only_over_tls() {
    use seks_tests::{
        process::{program, run},
        sandbox::Options,
    };
    let sandbox = Sandbox::with(Options::planes(""));
    let refused = sandbox.cli().run(&["page"], "");
    assert_eq!(refused.code, Some(5), "{refused:?}");
    assert!(refused.stderr.contains("has no page") && refused.stderr.contains("page.listen"), "{refused:?}");
    drop(sandbox);
    let mut options = Options::planes("");
    options.control_environment.push(("SEKS_PAGE_LISTEN".into(), "127.0.0.1:0".into()));
    let sandbox = Sandbox::with(options);
    let url = link(&sandbox);
    let origin = url.split("/link/").next().unwrap().to_owned();
    assert!(origin.starts_with("https://127.0.0.1:"), "{url}");
    let folder = sandbox.context_file().parent().unwrap().join("operator");
    let curl = |arguments: &[&str]| {
        let mut command = std::process::Command::new(program("curl"));
        command.args(["-sS", "--max-time", "20", "-o", "-", "-w", "%{http_code}"]).args(arguments);
        let done = run(&mut command, b"");
        done.stdout + &done.stderr
    };
    let file = |name: &str| folder.join(name).display().to_string();
    let (ca, cert, key) = (file("ca.pem"), file("operator.pem"), file("operator.key"));
    let nobody = curl(&["--cacert", &ca, &origin]);
    assert!(nobody.ends_with("403") && nobody.contains("seks page"), "{nobody}");
    let operator = curl(&["--cacert", &ca, "--cert", &cert, "--key", &key, &origin]);
    assert!(operator.ends_with("200") && operator.contains("<h2>Nodes</h2>"), "{operator}");
    let opened = curl(&["-i", "--cacert", &ca, &url]);
    assert!(opened.contains("; Secure") && opened.ends_with("200"), "{opened}");
    let plain = curl(&[&origin.replace("https", "http")]);
    assert!(!plain.contains("200"), "{plain}");
}
