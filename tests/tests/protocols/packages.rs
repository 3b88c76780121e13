//! Package managers and their private indexes, as who types `seks run -- pip install …` has them:
//! what their own settings say about roots and proxies gives way.

use std::{fs, path::Path, process::Command};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use seks_tests::{
    Upstream,
    process::{installed, program, run},
    upstream::{Answer, Host, Request, tls},
};

use super::intercepting_sandbox::{InterceptingSandbox, KEY, apply};

const MODULE: &str = "ANSWER = 42\n";

/// `demo` 4.2.0.
fn wheel(python: &Path) -> Vec<u8> {
    let script = "import sys, zipfile\n\
        with zipfile.ZipFile(sys.argv[1], 'w') as wheel:\n\
        \x20   info = 'demo-4.2.0.dist-info/'\n\
        \x20   wheel.writestr('demo.py', sys.argv[2])\n\
        \x20   wheel.writestr(info + 'METADATA', 'Metadata-Version: 2.1\\nName: demo\\nVersion: 4.2.0\\n')\n\
        \x20   wheel.writestr(info + 'WHEEL', 'Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n')\n\
        \x20   wheel.writestr(info + 'RECORD', '')\n";
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("demo.whl");
    let made = run(Command::new(python).args(["-c", script]).arg(&file).arg(MODULE), b"");
    assert_eq!(made.code, Some(0), "{}", made.stderr);
    fs::read(file).unwrap()
}

pub(super) fn pip_installs_from_a_private_index() {
    let python = installed("python/bin/python");
    let (name, wheel) = ("demo-4.2.0-py3-none-any.whl", wheel(&python));
    let credential = format!("Basic {}", STANDARD.encode(format!("reader:{KEY}")));
    let (wanted, served) = (credential.clone(), wheel.clone());
    let index = move |request: &Request| {
        if request.header("authorization").as_ref() != Some(&wanted) {
            return Answer::with(401, &[("WWW-Authenticate", "Basic realm=\"index\"")], "who are you?");
        }
        match request.path().strip_prefix("/simple/demo/") {
            Some("") => {
                let page = format!("<!DOCTYPE html><body><a href=\"{name}\">{name}</a> for {KEY}</body>");
                Answer::with(200, &[("Content-Type", "text/html")], page)
            }
            Some(_) => Answer::with(200, &[("Content-Type", "application/octet-stream")], &served),
            None => Answer::json(404, "{}"),
        }
    };
    let upstream = Upstream::start_tls_as(Host::localhost(), index);
    let rig = InterceptingSandbox::with("", upstream, credential, |cli, upstream| {
        apply(cli, upstream, "inject = { basic = 'reader:{key}' }\nslots = ['basic']\n");
    });
    // As it stands where a company's own roots are set up.
    fs::write(rig.folder().join("corporate.pem"), tls::identity().ca_pem).unwrap();
    let settings = rig.folder().join(".config/pip");
    fs::create_dir_all(&settings).unwrap();
    let corporate = rig.folder().join("corporate.pem");
    fs::write(settings.join("pip.conf"), format!("[global]\ncert = {}\n", corporate.display())).unwrap();

    let (pip, quiet) = (python.to_str().unwrap(), "--disable-pip-version-check");
    let index = format!("{}/simple/", rig.origin());
    let path = format!("/simple/demo/{name}");
    let install = [pip, "-m", "pip", "install", quiet, "--target", "installed", "--index-url", &index, "demo"];
    rig.check(&rig.seks_run(&install), "Successfully installed demo-4.2.0", &path);
    assert_eq!(fs::read_to_string(rig.folder().join("installed/demo.py")).unwrap(), MODULE);

    rig.upstream.forget();
    let placeholder = index.replace("https://", "https://reader:$SEKS_TOKEN@");
    let download = format!("exec {pip} -m pip download {quiet} --no-cache-dir --index-url \"{placeholder}\" demo");
    rig.check(&rig.seks_run(&["sh", "-c", &download]), "Successfully downloaded demo", &path);
    assert_eq!(fs::read(rig.folder().join(name)).unwrap(), wheel);
    assert!(!rig.sandbox.everything_emitted().contains(KEY));
}

/// `@seks/demo` 4.2.0.
fn tarball() -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let package = folder.path().join("package");
    fs::create_dir(&package).unwrap();
    fs::write(package.join("package.json"), r#"{"name":"@seks/demo","version":"4.2.0"}"#).unwrap();
    fs::write(package.join("index.js"), MODULE).unwrap();
    let file = folder.path().join("demo.tgz");
    let made = run(Command::new("tar").arg("-czf").arg(&file).arg("-C").arg(folder.path()).arg("package"), b"");
    assert_eq!(made.code, Some(0), "{}", made.stderr);
    fs::read(file).unwrap()
}

pub(super) fn npm_installs_from_a_private_registry() {
    let npm = program("npm");
    let (credential, tarball) = (format!("Bearer {KEY}"), tarball());
    let wanted = credential.clone();
    let registry = move |request: &Request| {
        if request.header("authorization").as_ref() != Some(&wanted) {
            return Answer::json(401, r#"{"error":"who are you?"}"#);
        }
        let host = request.header("host").unwrap_or_default();
        match request.path().as_str() {
            // As npm spells the name of a package with a scope.
            "/@seks%2fdemo" => {
                let dist = format!(r#"{{"tarball":"https://{host}/download/@seks/demo/4.2.0/demo.tgz"}}"#);
                let one =
                    format!(r#"{{"name":"@seks/demo","version":"4.2.0","description":"for {KEY}","dist":{dist}}}"#);
                let package =
                    format!(r#"{{"name":"@seks/demo","dist-tags":{{"latest":"4.2.0"}},"versions":{{"4.2.0":{one}}}}}"#);
                Answer::json(200, &package)
            }
            "/download/@seks/demo/4.2.0/demo.tgz" => {
                Answer::with(200, &[("Content-Type", "application/octet-stream")], &tarball)
            }
            _ => Answer::json(404, r#"{"error":"not found"}"#),
        }
    };
    let upstream = Upstream::start_tls_as(Host::localhost(), registry);
    let rig =
        InterceptingSandbox::with("", upstream, credential, |cli, upstream| cli.enable("github-npm", "code", upstream));
    // As it stands where a company has its own roots, and a proxy that must not get the token.
    let corporate = rig.folder().join("corporate.pem");
    fs::write(&corporate, tls::identity().ca_pem).unwrap();
    let settings = format!("cafile={}\nhttps-proxy=http://127.0.0.1:1/\nupdate-notifier=false\n", corporate.display());
    fs::write(rig.folder().join(".npmrc"), &settings).unwrap();

    let (npm, registry) = (npm.to_str().unwrap(), format!("{}/", rig.origin()));
    let view = [npm, "view", "@seks/demo", "description", "--registry", &registry];
    rig.check(&rig.seks_run(&view), &format!("for {}", "*".repeat(KEY.len())), "/@seks%2fdemo");

    rig.upstream.forget();
    let placeholder = format!("//{}/:_authToken=${{SEKS_TOKEN}}\n@seks:registry={registry}\n", rig.authority());
    fs::write(rig.folder().join(".npmrc"), settings + &placeholder).unwrap();
    let install = rig.seks_run(&[npm, "install", "--prefix", "project", "--no-audit", "@seks/demo"]);
    rig.check(&install, "added 1 package", "/download/@seks/demo/4.2.0/demo.tgz");
    let installed = rig.folder().join("project/node_modules/@seks/demo/index.js");
    assert_eq!(fs::read_to_string(installed).unwrap(), MODULE);
    assert!(!rig.sandbox.everything_emitted().contains(KEY));
}
