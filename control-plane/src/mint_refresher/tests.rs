//! Exchanges with a stand-in token endpoint over real sockets, and replicas that want the same
//! token at the same time.

mod sources;

use std::{sync::Arc, time::Duration};

use aws_lc_rs::{
    encoding::{AsDer as _, Pkcs8V1Der},
    rsa::{KeyPair, KeySize},
    signature::{KeyPair as _, RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey},
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use parking_lot::Mutex;
use seks_network::address::{DialGuard, Networks};
use seks_proto::wire;
use seks_runtime::telemetry::Telemetry;
use seks_types::{
    id::{CredentialName, OperatorName, ServiceName, TenantName},
    secret::Secret,
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::{
    mint::Access,
    registry::Registry,
    seal::{SealConfig, Sealer},
    store::StoreConfig,
};

/// Answers requests; gives its origin.
async fn endpoint(answer: impl Fn(&str, &str) -> (u16, Value) + Send + Sync + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let answer = Arc::new(answer);
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let answer = answer.clone();
            tokio::spawn(async move {
                let (mut text, mut buffer) = (String::new(), [0; 8192]);
                loop {
                    let read = socket.read(&mut buffer).await.unwrap_or(0);
                    text.push_str(std::str::from_utf8(&buffer[..read]).unwrap());
                    let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
                    let length = head
                        .to_lowercase()
                        .split_once("content-length: ")
                        .map_or(0, |(_, rest)| rest.split("\r\n").next().unwrap().parse().unwrap());
                    if body.len() < length && read > 0 {
                        continue;
                    }
                    let (status, value) = answer(head, body);
                    let value = value.to_string();
                    let head = format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\n\r\n", value.len());
                    let _ = socket.write_all((head + &value).as_bytes()).await;
                    return;
                }
            });
        }
    });
    format!("http://{address}")
}

/// An RSA key in PEM, and its public half.
fn rsa() -> (String, Vec<u8>) {
    let pair = KeyPair::generate(KeySize::Rsa2048).unwrap();
    let der: Pkcs8V1Der<'_> = pair.as_der().unwrap();
    let text = base64::engine::general_purpose::STANDARD.encode(der.as_ref());
    let lines: Vec<&str> = text.as_bytes().chunks(64).map(|l| std::str::from_utf8(l).unwrap()).collect();
    let pem = format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", lines.join("\n"));
    (pem, pair.public_key().as_ref().to_vec())
}

/// The claims of a token that was signed with the key.
fn claims(token: &str, public: &[u8]) -> Value {
    let (signed, signature) = token.rsplit_once('.').unwrap();
    let signature = URL_SAFE_NO_PAD.decode(signature).unwrap();
    UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, public).verify(signed.as_bytes(), &signature).unwrap();
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(signed.split_once('.').unwrap().1).unwrap()).unwrap()
}

async fn mint(kind: &str, secret: &Value) -> Result<Minted, MintError> {
    mint_from(kind, &Secret::new(secret.to_string().into()), &access()).await
}

#[tokio::test]
async fn a_service_account_signs_who_it_is() {
    let ((pem, public), seen) = (rsa(), Arc::new(Mutex::new(String::new())));
    let note = seen.clone();
    let origin = endpoint(move |_, body| {
        *note.lock() = body.to_owned();
        (200, json!({ "access_token": "ya29.minted", "expires_in": "1800" }))
    })
    .await;
    let url = format!("{origin}/token");
    let file = json!({ "type": "service_account", "project_id": "p", "private_key_id": "k1", "private_key": pem,
        "client_email": "a@b.test", "token_uri": url, "scope": "s1 s2", "subject": "user@b.test" });
    let minted = mint("service-account", &file).await.unwrap();
    assert_eq!((minted.token.expose(), minted.lifetime), (&b"ya29.minted"[..], 1800));
    let body = seen.lock().clone();
    assert!(body.starts_with("grant_type=urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Ajwt-bearer&assertion="), "{body}");
    let claims = claims(body.split("assertion=").nth(1).unwrap(), &public);
    assert_eq!(
        (&claims["iss"], &claims["sub"], &claims["aud"]),
        (&json!("a@b.test"), &json!("user@b.test"), &json!(url))
    );
    assert_eq!(claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap(), 3600);
}

#[tokio::test]
async fn a_github_app_asks_for_its_installations_token() {
    let ((pem, public), seen) = (rsa(), Arc::new(Mutex::new((String::new(), String::new()))));
    let note = seen.clone();
    let origin = endpoint(move |head, body| {
        *note.lock() = (head.to_owned(), body.to_owned());
        (201, json!({ "token": "ghs_minted", "expires_at": "2099-01-01T00:00:00Z" }))
    })
    .await;
    let app =
        json!({ "app_id": 7, "installation_id": "42", "private_key": pem, "api_url": origin, "repositories": ["a"] });
    let minted = mint("github-app", &app).await.unwrap();
    assert_eq!(minted.token.expose(), b"ghs_minted");
    assert!(minted.lifetime > 3600 * 24 * 365);
    let (head, body) = seen.lock().clone();
    assert!(head.starts_with("POST /app/installations/42/access_tokens HTTP/1.1"), "{head}");
    assert_eq!(serde_json::from_str::<Value>(&body).unwrap(), json!({ "repositories": ["a"] }));
    let token = head.split("Bearer ").nth(1).unwrap().split("\r\n").next().unwrap();
    assert_eq!(claims(token, &public)["iss"], "7");
}

#[tokio::test]
async fn a_redirect_an_error_in_a_success_and_an_answer_without_end_give_no_token() {
    let origin = endpoint(|head, _| match head.split(' ').nth(1).unwrap() {
        "/redirect" => (302, json!({})),
        "/slack" => (200, json!({ "ok": false, "error": "invalid_refresh_token" })),
        "/large" => (200, json!({ "access_token": "x".repeat(100_000) })),
        "/text" => (400, json!({ "error": "Secret inside: abc" })),
        _ => (200, json!("not an object")),
    })
    .await;
    let ask = |path: &str| {
        let url = format!("{origin}{path}");
        async move { mint("oauth2-client", &json!({ "token_url": url, "client_id": "i", "client_secret": "s" })).await }
    };
    for (path, want) in [
        ("/redirect", "the token endpoint answered 302"),
        ("/slack", "the token endpoint answered 200 (invalid_refresh_token)"),
        ("/large", "the token endpoint gave an answer that can't be read"),
        ("/text", "the token endpoint answered 400"),
        ("/", "the token endpoint gave no JSON"),
    ] {
        assert_eq!(ask(path).await.err().unwrap().to_string(), want, "{path}");
    }
}

#[tokio::test]
async fn plain_http_and_addresses_inside_take_the_services_leave() {
    for url in ["http://127.0.0.1:9/token", "https://10.0.0.1/token", "https://localhost/token"] {
        let secret = json!({ "token_url": url, "client_id": "i", "client_secret": "s" }).to_string();
        let refused =
            mint_from("oauth2-client", &Secret::new(secret.into()), &Access::of_tenant("default".parse().unwrap()))
                .await
                .err()
                .unwrap();
        assert!(matches!(refused, MintError::Invalid(_)), "{url}: {refused}");
    }
}

struct World {
    registries: Vec<Arc<Registry>>,
    tenant: TenantName,
    name: CredentialName,
    service: ServiceName,
    by: OperatorName,
    _dir: tempfile::TempDir,
}

async fn world(replicas: usize) -> World {
    let dir = tempfile::tempdir().unwrap();
    let kek = dir.path().join("kek");
    Sealer::create_file(&kek).unwrap();
    let sealer = Arc::new(Sealer::load(&SealConfig::file(&kek)).unwrap());
    let store = crate::store::open(&StoreConfig::embedded(dir.path().join("data/store"))).await.unwrap();
    let registries: Vec<_> = (0..replicas).map(|_| Arc::new(Registry::new(store.clone(), sealer.clone()))).collect();
    let tenant: TenantName = "acme".parse().unwrap();
    registries[0].create_tenant(&tenant, false).await.unwrap();
    registries[0].set_private_networks(&tenant, &access().rules.tenant_networks).await.unwrap();
    let at = wire::injection::site::At::Header(wire::injection::NamedValue {
        name: "authorization".into(),
        value: "Bearer {key}".into(),
    });
    let service = wire::Service {
        tenant: "acme".into(),
        name: "api".into(),
        upstream: "http://127.0.0.1:9".into(),
        allow_private: true,
        fields: vec!["key".into()],
        injection: Some(wire::Injection { sites: vec![wire::injection::Site { at: Some(at) }], aws_sigv4: None }),
        slots: vec![wire::TokenSlot { at: Some(wire::token_slot::At::Scheme("Bearer".into())) }],
        ..Default::default()
    };
    registries[0].apply_service(service, true).await.unwrap();
    let (name, service, by) = ("key".parse().unwrap(), "api".parse().unwrap(), "root".parse().unwrap());
    World { registries, tenant, name, service, by, _dir: dir }
}

impl World {
    async fn put(&self, secret: &Value) {
        let secret = Secret::new(secret.to_string().into());
        let minted = mint_from("oauth2-refresh", &secret, &access()).await.unwrap();
        let names = (&self.tenant, &self.name, &self.service);
        self.registries[0].put_minted(names, "oauth2-refresh", &secret, &minted, &[], &self.by).await.unwrap();
    }

    async fn version(&self) -> u32 {
        self.registries[0].credential(&self.tenant, &self.name).await.unwrap().version
    }
}

/// A provider that takes each refresh token once, slowly; how many were brought twice, and how many
/// came.
async fn rotating() -> (Value, Arc<Mutex<(usize, usize)>>) {
    let counts = Arc::new(Mutex::new((0, 0)));
    let shared = counts.clone();
    let origin = endpoint(move |_, body| {
        let mut counts = shared.lock();
        let current = format!("refresh_token=rt-{}&", counts.1);
        if !format!("{body}&").contains(&current) {
            counts.0 += 1;
            return (400, json!({ "error": "invalid_grant" }));
        }
        counts.1 += 1;
        (200, json!({ "access_token": format!("at-{}", counts.1), "expires_in": 2, "refresh_token": format!("rt-{}", counts.1) }))
    })
    .await;
    (json!({ "token_url": format!("{origin}/token"), "client_id": "i", "refresh_token": "rt-0" }), counts)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_several_replicas_one_refreshes() {
    let (world, (secret, counts)) = (world(3).await, rotating().await);
    world.put(&secret).await;
    let stop = CancellationToken::new();
    let mut running = Vec::new();
    for registry in &world.registries {
        let refresher =
            Arc::new(Refresher::new(registry.clone(), Telemetry::disabled(), "same-name".into(), reach()).unwrap());
        running.push(tokio::spawn(refresher.run(stop.clone())));
    }
    while world.version().await < 5 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    stop.cancel();
    for run in running {
        run.await.unwrap();
    }
    let (reused, came) = *counts.lock();
    assert_eq!(reused, 0, "a refresh token was brought twice");
    assert_eq!(came, world.version().await as usize, "each exchange is one version");
}

#[tokio::test]
async fn a_claim_keeps_others_away_until_it_runs_out_and_what_was_replaced_is_left_alone() {
    let (world, (secret, _)) = (world(2).await, rotating().await);
    world.put(&secret).await;
    let (first, second) = (&world.registries[0], &world.registries[1]);
    assert!(first.claim_mint(&world.tenant, &world.name, "a").await.unwrap().is_none(), "not due yet");
    let claim = loop {
        match first.claim_mint(&world.tenant, &world.name, "a").await.unwrap() {
            Some(claim) => break claim,
            None => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    };
    assert!(second.claim_mint(&world.tenant, &world.name, "b").await.unwrap().is_none(), "claimed");
    // Killed between exchange and commit: the same secret is claimed again, here by the same
    // replica.
    let again = first.claim_mint(&world.tenant, &world.name, "a").await.unwrap().unwrap();
    let minted = mint_from(&again.kind, &again.secret, &access()).await.unwrap();
    first.settle_mint(&again, Ok(&minted), &world.by).await.unwrap();
    assert_eq!(world.version().await, 2);
    // What the first claim would have brought is of a secret that is no more.
    first.settle_mint(&claim, Ok(&minted), &world.by).await.unwrap();
    assert_eq!(world.version().await, 2, "settled once");
    // An operator's new secret stays, whatever a refresh of the old one brings.
    let plain = Secret::new(b"plain".to_vec());
    first.put_credential(&world.tenant, &world.name, &world.service, &plain, &[], &world.by).await.unwrap();
    assert!(first.settle_mint(&again, Ok(&minted), &world.by).await.is_err(), "there is nothing to settle");
    assert_eq!(world.version().await, 3);
}

/// Token endpoints on loopback.
fn reach() -> Reach {
    let allowed = Networks::parse(&["127.0.0.0/8"]).unwrap();
    Reach { guard: Arc::new(DialGuard { allowed, ..DialGuard::default() }), ..Reach::default() }
}

fn access() -> Access {
    reach().of(&"default".parse().unwrap(), Networks::parse(&["127.0.0.0/8"]).unwrap(), false)
}
