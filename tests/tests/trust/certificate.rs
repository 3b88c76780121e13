//! Tokens that are bound to a client certificate (RFC 8705): of use on a connection with its key
//! alone.

use std::sync::Arc;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, pem::PemObject as _};
use seks_tests::{Sandbox, Upstream, runtime, sandbox::Options, upstream::tls};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::{KEY, PATH, issuer::Issuer};

/// A self-signed certificate of a client: nobody vouches for it.
struct Client {
    pem: String,
    der: CertificateDer<'static>,
    key: Vec<u8>,
}

impl Client {
    fn new() -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let made = rcgen::CertificateParams::new(vec!["agent".into()]).unwrap().self_signed(&key).unwrap();
        Self { pem: made.pem(), der: made.der().clone(), key: key.serialize_der() }
    }

    fn sha256(&self) -> [u8; 32] {
        Sha256::digest(&self.der).into()
    }
}

struct World {
    sandbox: Sandbox,
    ca_pem: String,
    directory: tempfile::TempDir,
}

impl World {
    fn start(upstream: &Upstream, client_certificates: &str) -> Self {
        let (identity, directory) = (tls::identity(), tempfile::tempdir().unwrap());
        let (cert, key) = (directory.path().join("cert.pem"), directory.path().join("key.pem"));
        std::fs::write(&cert, &identity.certificate_pem).unwrap();
        std::fs::write(&key, &identity.key_pem).unwrap();
        std::fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        let config = format!("[proxy.tls]\ncert_file = {cert:?}\nkey_file = {key:?}\n{client_certificates}");
        let sandbox = Sandbox::with(Options { config, ..Options::default() });
        sandbox.service("openai", upstream, KEY);
        sandbox.cli().create_agent("agent");
        Self { sandbox, ca_pem: identity.ca_pem, directory }
    }

    /// The status of a request with `token`, on a connection that shows `client`'s certificate or
    /// none, and its body.
    fn get(&self, token: &str, client: Option<&Client>) -> (u16, String) {
        let request = format!(
            "GET {PATH} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nAuthorization: Bearer {token}\r\n\r\n"
        );
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.ca_pem.as_bytes()).unwrap()).unwrap();
        let builder = rustls::ClientConfig::builder().with_root_certificates(roots);
        let config = match client {
            None => builder.with_no_client_auth(),
            Some(client) => {
                let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(client.key.clone()));
                builder.with_client_auth_cert(vec![client.der.clone()], key).unwrap()
            }
        };
        let text = runtime().block_on(async {
            let tcp = tokio::net::TcpStream::connect(self.sandbox.proxy()).await.unwrap();
            let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
            let mut stream = connector.connect(ServerName::try_from("localhost").unwrap(), tcp).await.unwrap();
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut text = String::new();
            drop(stream.read_to_string(&mut text).await);
            text
        });
        (text.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_default(), text)
    }

    fn issue(&self, binding: &str) -> String {
        self.sandbox.cli().issue("agent", &["openai"], &["--bind-certificate", binding]).secret
    }
}

#[test]
fn a_bound_token_is_of_use_on_a_connection_with_its_certificate_alone() {
    let upstream = Upstream::ok();
    let world = World::start(&upstream, "client_certificates = \"optional\"\n");
    let (own, other) = (Client::new(), Client::new());
    let file = world.directory.path().join("agent.pem");
    std::fs::write(&file, &own.pem).unwrap();
    let hex: String = own.sha256().iter().map(|byte| format!("{byte:02X}:")).collect();
    for binding in [file.display().to_string(), format!("sha256:{}", hex.trim_end_matches(':'))] {
        let token = world.issue(&binding);
        assert_eq!(world.get(&token, Some(&own)).0, 200, "{binding}");
        for wrong in [None, Some(&other)] {
            let (status, text) = world.get(&token, wrong);
            assert!(status == 403 && text.contains("token_binding"), "{text}");
        }
    }
    let free = world.sandbox.cli().issue("agent", &["openai"], &[]).secret;
    assert_eq!((world.get(&free, None).0, world.get(&free, Some(&other)).0), (200, 200));
    for bad in ["sha256:00", "sha256:", "/no/such/file", "sha1:00"] {
        let arguments = ["token", "issue", "--agent", "agent", "--service", "openai", "--bind-certificate", bad];
        assert_eq!(world.sandbox.cli().run(&arguments, "").code, Some(2), "{bad}");
    }
    let listed = world.sandbox.cli().json(&["token", "list"]);
    let bound = listed.as_array().unwrap().iter().filter(|token| token.get("certificate_sha256").is_some()).count();
    assert_eq!(bound, 2, "{listed}");
    assert_eq!(upstream.complete(), 4);
}

#[test]
fn a_listener_that_asks_for_no_certificate_refuses_every_bound_token() {
    let upstream = Upstream::ok();
    let world = World::start(&upstream, "");
    let own = Client::new();
    let token = world.issue(&format!("sha256:{}", own.sha256().iter().map(|b| format!("{b:02x}")).collect::<String>()));
    for client in [None, Some(&own)] {
        assert_eq!(world.get(&token, client).0, 403);
    }
    assert_eq!(upstream.complete(), 0);
}

#[test]
fn an_issuers_token_that_is_bound_holds_for_its_certificate_alone() {
    let upstream = Upstream::ok();
    let (world, issuer) = (World::start(&upstream, "client_certificates = \"optional\"\n"), Issuer::start());
    let url = issuer.url();
    world.sandbox.cli().json(&[
        "trust",
        "create",
        "ci",
        "--issuer",
        &url,
        "--audience",
        "seks",
        "--match",
        "environment prod",
        "--agent",
        "agent",
        "--service",
        "openai",
    ]);
    let (own, other) = (Client::new(), Client::new());
    let token = issuer.token(json!({ "cnf": { "x5t#S256": URL_SAFE_NO_PAD.encode(own.sha256()) } }));
    assert_eq!(world.get(&token, Some(&own)).0, 200);
    for wrong in [None, Some(&other)] {
        assert_eq!(world.get(&token, wrong).0, 403);
    }
}
