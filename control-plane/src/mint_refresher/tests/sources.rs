//! References whose servers are stand-ins, written from the vendors' API references.

use super::*;
use crate::mint::{SourcesConfig, VaultLoginConfig};

#[tokio::test]
async fn a_secret_in_google_cloud_is_read_with_a_service_accounts_token() {
    let ((pem, public), seen) = (rsa(), Arc::new(Mutex::new(String::new())));
    let note = seen.clone();
    let origin = endpoint(move |head, body| {
        let path = head.split(' ').nth(1).unwrap();
        match path {
            "/token" => {
                *note.lock() = body.to_owned();
                (200, json!({ "access_token": "ya29.google", "expires_in": 3599 }))
            }
            "/v1/projects/p/secrets/s/versions/latest:access" if head.contains("Bearer ya29.google") => {
                let data = base64::engine::general_purpose::STANDARD.encode(r#"{"key":"google-key"}"#);
                (200, json!({ "name": "projects/1/secrets/s/versions/1", "payload": { "data": data } }))
            }
            _ => (403, json!({ "error": { "code": 403, "status": "PERMISSION_DENIED", "message": "google-key" } })),
        }
    })
    .await;
    let account = json!({ "type": "service_account", "private_key_id": "k1", "private_key": pem,
        "client_email": "a@b.test", "token_uri": format!("{origin}/token") });
    let reference = json!({ "name": "projects/p/secrets/s", "service_account": account, "field": "key", "api_url": origin,
        "refresh_seconds": 30 });
    let minted = mint("gcp-secret-manager", &reference).await.unwrap();
    assert_eq!((minted.token.expose(), minted.lifetime), (&b"google-key"[..], 45));
    let body = seen.lock().clone();
    let claims = claims(body.split("assertion=").nth(1).unwrap(), &public);
    assert_eq!(claims["scope"], "https://www.googleapis.com/auth/cloud-platform");
    let other = json!({ "name": "projects/p/secrets/none", "service_account": reference["service_account"], "api_url": origin });
    let error = mint("gcp-secret-manager", &other).await.err().unwrap();
    assert_eq!(error.to_string(), "the source `gcp-secret-manager` answered 403");
    assert!(error.is_final());
}

#[tokio::test]
async fn the_control_planes_identity_in_kubernetes_is_sent_to_the_configured_server_alone() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let note = seen.clone();
    let origin = endpoint(move |head, body| {
        note.lock().push(body.to_owned());
        match head.split(' ').nth(1).unwrap() {
            "/v1/auth/k8s/login" => (200, json!({ "auth": { "client_token": "hvs.k8s" } })),
            "/v1/secret/data/apps/acme" if head.to_lowercase().contains("x-vault-token: hvs.k8s") => {
                (200, json!({ "data": { "data": { "key": "vaulted-key" } } }))
            }
            _ => (403, json!({ "errors": [] })),
        }
    })
    .await;
    let directory = tempfile::tempdir().unwrap();
    let token_file = directory.path().join("token");
    std::fs::write(&token_file, "a.service-account.token\n").unwrap();
    let login = VaultLoginConfig {
        tenant: "default".into(),
        address: origin.clone(),
        role: "seks-default".into(),
        auth_mount: "k8s".into(),
        token_file,
    };
    let sources = Arc::new(SourcesConfig { vault_login: vec![login], ..SourcesConfig::default() });
    let reach = Reach { sources, ..reach() };
    let read = async |tenant: &str, address: &str| {
        let reference = json!({ "address": address, "path": "apps/acme", "login": "kubernetes" });
        let networks = Networks::parse(&["127.0.0.0/8"]).unwrap();
        let access = reach.of(&tenant.parse().unwrap(), networks, false);
        mint_from("vault-kv", &Secret::new(reference.to_string().into()), &access).await
    };
    assert_eq!(read("default", &origin).await.unwrap().token.expose(), b"vaulted-key");
    let sent: Value = serde_json::from_str(&seen.lock()[0]).unwrap();
    assert_eq!(sent, json!({ "role": "seks-default", "jwt": "a.service-account.token" }));
    seen.lock().clear();
    for (tenant, address) in [("other", origin.clone()), ("default", "http://127.0.0.1:9".into())] {
        let error = read(tenant, &address).await.err().unwrap().to_string();
        assert!(error.contains("`[[sources.vault_login]]`"), "{error}");
    }
    assert!(seen.lock().is_empty(), "the identity was sent");
}
