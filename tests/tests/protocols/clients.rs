//! HTTPS_PROXY mode with the clients that people have: each asks a stand-in behind TLS for what it
//! asks the real one for, trusts the tenant's CA, and shows its token to the proxy.

use std::fs;

use seks_tests::{
    Upstream,
    process::{installed, program, run},
    upstream::{Answer, Request},
};

use super::intercepting_sandbox::{InterceptingSandbox, KEY, client};

const COMMIT: &str = "1234567890abcdef1234567890abcdef12345678";

/// A repository and an API in one, for who brings the real key.
fn stand_in(request: &Request) -> Answer {
    if request.header("authorization").as_deref() != Some(&*format!("Bearer {KEY}")) {
        return Answer::json(401, r#"{"message":"Bad credentials"}"#);
    }
    match request.path().as_str() {
        "/repo.git/info/refs" => {
            let line = |text: String| format!("{:04x}{text}", text.len() + 4);
            let refs = [
                line("# service=git-upload-pack\n".into()),
                "0000".into(),
                line(format!("{COMMIT} HEAD\0agent=stand-in\n")),
                line(format!("{COMMIT} refs/heads/main\n")),
                "0000".into(),
            ];
            let kind = [("Content-Type", "application/x-git-upload-pack-advertisement")];
            Answer::with(200, &kind, refs.concat())
        }
        _ => Answer::json(200, &format!(r#"{{"ok":true,"key":"{KEY}"}}"#)),
    }
}

/// A tunnel may be asked for without a token: the requests in it show one.
fn intercepting_sandbox() -> InterceptingSandbox {
    InterceptingSandbox::bearer("tenant = \"default\"\n", Upstream::start_tls(stand_in))
}

/// Who shows no token gets a 407, which many clients wait for before they show one.
fn intercepting_sandbox_that_asks_for_the_token() -> InterceptingSandbox {
    InterceptingSandbox::bearer("", Upstream::start_tls(stand_in))
}

pub(super) fn curl_with_the_token_for_the_proxy_and_with_the_token_in_the_request() {
    let curl = program("curl");
    let rig = intercepting_sandbox();
    let url = format!("{}/user", rig.origin());
    for http in ["--http1.1", "--http2"] {
        let mut command = client(curl.clone());
        command.args(["--silent", "--show-error", http, "--cacert", rig.ca(), &url]).env("HTTPS_PROXY", rig.proxy());
        rig.check(&run(&mut command, b""), r#"{"ok":true,"key":"***"#, "/user");
        let mut command = client(curl.clone());
        let header = format!("Authorization: Bearer {}", rig.token.secret);
        command.args(["--silent", "--show-error", http, "--cacert", rig.ca(), "--header", &header, &url]);
        rig.check(&run(command.env("HTTPS_PROXY", rig.node()), b""), r#"{"ok":true,"key":"***"#, "/user");
    }
    let mut elsewhere = client(curl);
    elsewhere.args(["--silent", "--show-error", "https://example.com/"]).env("HTTPS_PROXY", rig.proxy());
    let refused = run(&mut elsewhere, b"");
    assert!(refused.code == Some(56) && refused.stderr.contains("403"), "{refused:?}");
    assert!(!rig.sandbox.everything_emitted().contains(KEY));
}

pub(super) fn python_requests_gets() {
    let python = installed("python/bin/python");
    let rig = intercepting_sandbox();
    let script = "import requests, sys; print(requests.get(sys.argv[1]).text)";
    let mut command = client(python);
    command.args(["-c", script, &format!("{}/user", rig.origin())]);
    command.env("HTTPS_PROXY", rig.proxy()).env("REQUESTS_CA_BUNDLE", rig.ca());
    rig.check(&run(&mut command, b""), r#"{"ok":true"#, "/user");
}

pub(super) fn node_fetches() {
    let node = program("node");
    let modules = installed("node/node_modules/undici");
    let rig = intercepting_sandbox();
    let script = rig.folder().join("client.mjs");
    let code = "const [undici, url, proxy] = process.argv.slice(2);\n\
                const { fetch, EnvHttpProxyAgent } = (await import(undici + '/index.js')).default;\n\
                const dispatcher = new EnvHttpProxyAgent({ httpsProxy: proxy });\n\
                console.log(await (await fetch(url, { dispatcher })).text());\n";
    fs::write(&script, code).unwrap();
    let mut command = client(node);
    command.arg(script).arg(modules).args([format!("{}/user", rig.origin()), rig.proxy()]);
    rig.check(&run(command.env("NODE_EXTRA_CA_CERTS", rig.ca()), b""), r#"{"ok":true"#, "/user");
}

pub(super) fn git_lists_a_remote() {
    let git = program("git");
    let rig = intercepting_sandbox_that_asks_for_the_token();
    let mut command = client(git);
    command.args(["-c", "credential.helper=", "ls-remote", &format!("{}/repo.git", rig.origin())]);
    command.env("HTTPS_PROXY", rig.proxy()).env("GIT_SSL_CAINFO", rig.ca()).env("GIT_TERMINAL_PROMPT", "0");
    command.env("HOME", rig.folder()).env("GIT_CONFIG_NOSYSTEM", "1");
    rig.check(&run(&mut command, b""), &format!("{COMMIT}\trefs/heads/main"), "/repo.git/info/refs");
}

pub(super) fn a_java_client_gets() {
    let java = program("java");
    let rig = intercepting_sandbox_that_asks_for_the_token();
    let code = r#"
import java.io.FileInputStream;
import java.net.*;
import java.net.http.*;
import java.security.KeyStore;
import java.security.cert.CertificateFactory;
import javax.net.ssl.*;

public class Client {
    public static void main(String[] a) throws Exception {
        var store = KeyStore.getInstance(KeyStore.getDefaultType());
        store.load(null, null);
        store.setCertificateEntry("ca", CertificateFactory.getInstance("X.509").generateCertificate(new FileInputStream(a[0])));
        var trust = TrustManagerFactory.getInstance(TrustManagerFactory.getDefaultAlgorithm());
        trust.init(store);
        var tls = SSLContext.getInstance("TLS");
        tls.init(null, trust.getTrustManagers(), null);
        var token = a[2];
        var client = HttpClient.newBuilder().sslContext(tls)
            .proxy(ProxySelector.of(new InetSocketAddress("127.0.0.1", Integer.parseInt(a[1]))))
            .authenticator(new Authenticator() {
                protected PasswordAuthentication getPasswordAuthentication() {
                    return new PasswordAuthentication("agent", token.toCharArray());
                }
            }).build();
        var answer = client.send(HttpRequest.newBuilder(URI.create(a[3])).build(), HttpResponse.BodyHandlers.ofString());
        System.out.println(answer.statusCode() + " " + answer.body());
    }
}
"#;
    let source = rig.folder().join("Client.java");
    fs::write(&source, code).unwrap();
    let port = rig.sandbox.forward_proxy().unwrap().port().to_string();
    let mut command = client(java);
    command.arg("-Djdk.http.auth.tunneling.disabledSchemes=").arg(&source);
    command.args([rig.ca(), &port, &rig.token.secret, &format!("{}/user", rig.origin())]);
    rig.check(&run(&mut command, b""), r#"200 {"ok":true"#, "/user");
}

#[test]
fn a_tunnel_ends_when_its_token_is_revoked() {
    use std::io::{Read as _, Write as _};
    let rig = intercepting_sandbox();
    let mut proxy = std::net::TcpStream::connect(rig.sandbox.forward_proxy().unwrap()).unwrap();
    let host = rig.upstream.address();
    let ask =
        format!("CONNECT {host} HTTP/1.1\r\nHost: {host}\r\nProxy-Authorization: Bearer {}\r\n\r\n", rig.token.secret);
    proxy.write_all(ask.as_bytes()).unwrap();
    let mut answer = [0; 12];
    proxy.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200");
    let config = seks_tests::upstream::tls::client(&fs::read_to_string(rig.ca()).unwrap(), &[b"http/1.1"]);
    let mut rest = Vec::new();
    while !rest.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        proxy.read_exact(&mut byte).unwrap();
        rest.push(byte[0]);
    }
    let name = rustls::pki_types::ServerName::try_from(host.ip().to_string()).unwrap();
    let mut session = rustls::ClientConnection::new(config, name).unwrap();
    let mut tls = rustls::Stream::new(&mut session, &mut proxy);
    tls.write_all(format!("GET /user HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes()).unwrap();
    let mut first = [0; 15];
    tls.read_exact(&mut first).unwrap();
    assert_eq!(&first, b"HTTP/1.1 200 OK");
    let revoked = rig.sandbox.cli().revoke(&rig.token.id);
    assert_eq!(revoked["enforced"], true);
    drop(tls.read_to_end(&mut Vec::new())); // ends, be it without TLS's goodbye
}
