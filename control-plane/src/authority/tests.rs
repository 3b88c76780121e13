use std::time::Duration;

use rcgen::{CertificateParams, CertificateSigningRequestParams, KeyPair, SanType};
use rustls_pki_types::{CertificateDer, pem::PemObject as _};

use super::*;
use crate::{
    config::{AuthorityConfig, MeshConfig},
    seal::SealConfig,
    store::{StoreConfig, Write},
};

async fn authority() -> (Authority, tempfile::TempDir, std::sync::Arc<dyn Store>, Sealer) {
    let dir = tempfile::tempdir().unwrap();
    Sealer::create_file(&dir.path().join("kek")).unwrap();
    let sealer = Sealer::load(&SealConfig::file(dir.path().join("kek"))).unwrap();
    let store = crate::store::open(&StoreConfig::embedded(dir.path().join("data/store"))).await.unwrap();
    let authority = Authority::load_or_create(store.as_ref(), &sealer, Transaction::default).await.unwrap();
    (authority, dir, store, sealer)
}

fn request(names: &[SanType]) -> Vec<u8> {
    let mut params = CertificateParams::default();
    params.subject_alt_names = names.to_vec();
    params.serialize_request(&KeyPair::generate().unwrap()).unwrap().der().to_vec()
}

fn peer(pem: &str) -> Option<Peer> {
    Identities::default().read(&CertificateDer::from_pem_slice(pem.as_bytes()).unwrap())
}

#[tokio::test]
async fn the_authority_is_made_once_and_its_key_is_not_readable_in_the_store() {
    let (first, _dir, store, sealer) = authority().await;
    let again = Authority::load_or_create(store.as_ref(), &sealer, Transaction::default).await.unwrap();
    assert_eq!((first.ca_pem(), first.pin()), (again.ca_pem(), again.pin()));
    let record = store.get(&Key::Authority).await.unwrap().unwrap();
    let key = first.issuer.key().serialized_der();
    assert!(!record.value.windows(16).any(|w| key.windows(16).any(|k| k == w)), "its key lies open in the store");
}

#[tokio::test]
async fn a_damaged_record_is_refused() {
    let (_, _dir, store, sealer) = authority().await;
    let mut value = store.get(&Key::Authority).await.unwrap().unwrap().value.to_vec();
    *value.last_mut().unwrap() ^= 1;
    let writes = vec![Write::Put(Key::Authority, value.into())];
    store.commit(Transaction { checks: Vec::new(), writes }).await.unwrap();
    assert!(Authority::load_or_create(store.as_ref(), &sealer, Transaction::default).await.is_err());
}

#[tokio::test]
async fn the_names_in_a_certificate_are_ours_whatever_was_asked_for() {
    let (authority, ..) = authority().await;
    let root = SanType::URI("spiffe://seks/operator/root".try_into().unwrap());
    let host = SanType::DnsName("seks-control-plane".try_into().unwrap());
    let request = Request::parse(&request(&[root, host])).unwrap();
    let pem = authority.sign_node(&request, &"n-1".parse().unwrap(), "j1").unwrap();
    let peer = peer(&pem).unwrap();
    assert_eq!((peer.identity, peer.enrolment.as_str()), (Identity::Node("n-1".parse().unwrap()), "j1"));
    let der = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
    let (_, parsed) = x509_parser::parse_x509_certificate(&der).unwrap();
    let names = parsed.subject_alternative_name().unwrap().unwrap();
    assert_eq!(names.value.general_names.len(), 1);
    let usage = parsed.extended_key_usage().unwrap().unwrap().value;
    assert!(usage.client_auth && !usage.server_auth && !parsed.is_ca());
    assert!(parsed.validity().not_after.timestamp() - peer.signed_at <= 24 * 3600);
}

#[tokio::test]
async fn requests_that_their_key_did_not_sign_are_refused() {
    let (authority, ..) = authority().await;
    let mut forged = request(&[]);
    let last = forged.len() - 1;
    forged[last] ^= 1;
    for bad in [forged, Vec::new(), b"no DER".to_vec(), vec![0x30; 20_000]] {
        assert!(matches!(Request::parse(&bad), Err(AuthorityError::Request(_))));
    }
    // The same key with another's signature.
    let (mine, other) = (request(&[]), request(&[]));
    let mut mixed = mine[..mine.len() - 64].to_vec();
    mixed.extend_from_slice(&other[other.len() - 64..]);
    assert!(Request::parse(&mixed).is_err());
    let good = Request::parse(&request(&[])).unwrap();
    for ttl in [Duration::from_secs(59), Duration::from_secs(367 * 24 * 3600)] {
        let signed = authority.sign_operator(&good, &"root".parse().unwrap(), "e1", ttl);
        assert!(matches!(signed, Err(AuthorityError::Lifetime(_))));
    }
}

#[tokio::test]
async fn only_one_uri_of_ours_is_an_identity() {
    let (authority, ..) = authority().await;
    let sign = |uris: &[&str]| {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(rcgen::DnType::CommonName, "spiffe://seks/operator/root");
        params.subject_alt_names = uris.iter().map(|u| SanType::URI((*u).try_into().unwrap())).collect();
        params.signed_by(&key, &authority.issuer).unwrap().pem()
    };
    let root = "spiffe://seks/operator/root";
    assert!(peer(&sign(&[root])).is_some());
    for bad in [
        &[][..],
        &[root, "spiffe://seks/operator/other"],
        &["spiffe://seks/operator/"],
        &["spiffe://seks/operator/Root"],
        &["spiffe://seks/operator/root/x"],
        &["spiffe://seks.evil/operator/root"],
        &["https://seks/operator/root"],
    ] {
        assert_eq!(peer(&sign(bad)), None, "{bad:?}");
    }
    let key = KeyPair::generate().unwrap();
    let csr = CertificateParams::default().serialize_request(&key).unwrap();
    assert!(CertificateSigningRequestParams::from_der(csr.der()).is_ok());
}

#[tokio::test]
async fn a_mesh_names_its_own_workloads_and_nobody_else() {
    let dir = tempfile::tempdir().unwrap();
    let key = KeyPair::generate().unwrap();
    let mut ca = CertificateParams::default();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let bundle_file = dir.path().join("bundle.pem");
    std::fs::write(&bundle_file, ca.self_signed(&key).unwrap().pem()).unwrap();
    let mesh = |trust_domain: &str| AuthorityConfig {
        mesh: MeshConfig { trust_domain: trust_domain.into(), bundle_file: bundle_file.clone() },
        ..AuthorityConfig::default()
    };
    assert!(Identities::new(&mesh("seks")).is_err(), "it could name our operators");
    assert!(Identities::new(&mesh("")).is_err() && Identities::new(&mesh("Mesh")).is_err());
    let identities = Identities::new(&mesh("mesh.example")).unwrap();
    let read = |uri: &str| {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())];
        identities.read(params.self_signed(&key).unwrap().der())
    };
    let id = "spiffe://mesh.example/ns/seks/sa/proxy-1";
    let peer = read(id).unwrap();
    assert_eq!((peer.identity, peer.enrolment.as_str()), (Identity::Workload(id.into()), id));
    assert!(identities.is_workload(id) && !identities.is_workload("spiffe://seks/node/n1"));
    for bad in [
        "spiffe://mesh.example",
        "spiffe://mesh.example/",
        "spiffe://mesh.example/a//b",
        "spiffe://mesh.example/a/../b",
        "spiffe://other/ns/seks",
        "spiffe://mesh.example/a?b",
    ] {
        assert!(read(bad).is_none() && !identities.is_workload(bad), "{bad}");
    }
    assert!(matches!(read("spiffe://seks/operator/root").unwrap().identity, Identity::Operator(_)));
}

#[tokio::test]
async fn a_ca_from_files_signs_and_the_one_before_counts_while_it_is_trusted() {
    let (own, dir, store, sealer) = authority().await;
    let key = KeyPair::generate().unwrap();
    let mut ca = CertificateParams::default();
    ca.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    let file = |name: &str, text: &str| {
        use std::os::unix::fs::PermissionsExt as _;
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        path
    };
    let config = AuthorityConfig {
        trust_domain: "prod.example".into(),
        cert_file: file("ca.pem", &ca.self_signed(&key).unwrap().pem()),
        key_file: file("ca.key", &key.serialize_pem()),
        trusted_file: file("old.pem", &own.ca_pem()),
        ..AuthorityConfig::default()
    };
    let open = |config: AuthorityConfig| {
        let (store, sealer) = (store.clone(), &sealer);
        async move { Authority::open(&config, store.as_ref(), sealer, Transaction::default).await }
    };
    let authority = open(config.clone()).await.unwrap();
    assert_ne!(authority.pin(), own.pin());
    assert!(authority.ca_pem().ends_with(&own.ca_pem()) && authority.roots().count() == 2);
    let signed = authority.sign_node(&Request::parse(&request(&[])).unwrap(), &"n-1".parse().unwrap(), "j1").unwrap();
    let der = CertificateDer::from_pem_slice(signed.as_bytes()).unwrap();
    let peer = authority.identities().read(&der).unwrap();
    assert_eq!(peer.identity, Identity::Node("n-1".parse().unwrap()));
    assert!(Identities::default().read(&der).is_none(), "another trust domain");
    let other = file("other.key", &KeyPair::generate().unwrap().serialize_pem());
    let leaf = file("leaf.pem", &signed);
    for (key, bad) in [
        ("key_file", AuthorityConfig { key_file: other, ..config.clone() }),
        ("key_file", AuthorityConfig { key_file: Default::default(), ..config.clone() }),
        ("cert_file", AuthorityConfig { cert_file: leaf, ..config.clone() }),
        ("cert_file", AuthorityConfig { cert_file: dir.path().join("missing"), ..config.clone() }),
        ("trusted_file", AuthorityConfig { trusted_file: dir.path().join("missing"), ..config.clone() }),
        ("trust_domain", AuthorityConfig { trust_domain: "A/b".into(), ..config.clone() }),
    ] {
        let error = open(bad).await.err().unwrap().to_string();
        assert!(error.starts_with(&format!("authority.{key}: ")) && !error.contains('\n'), "{error}");
    }
}
