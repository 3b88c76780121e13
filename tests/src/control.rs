//! A control plane in this process on free ports, and whoever calls it: operators, impostors,
//! bytes.

use std::time::Duration;

use bytes::{Buf as _, BufMut as _};
use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, Issuer, KeyPair, SanType};
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use seks_control_plane::{
    Config, ControlPlane,
    seal::{RecordId, SealConfig, Sealer},
    store::{Key, StoreConfig},
};
use seks_proto::wire::{self, RoleBinding, admin_client::AdminClient};
use seks_runtime::telemetry::Telemetry;
use tempfile::TempDir;
use tonic::{
    Code, Status,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity},
};

use crate::install_crypto_provider;

/// A certificate with its key, in PEM.
#[derive(Clone, Debug)]
pub struct Pair {
    /// The certificate.
    pub certificate: String,
    /// The key.
    pub key: String,
}

/// A running control plane and its first operator, `root`.
pub struct Control {
    /// The plane.
    pub plane: ControlPlane,
    /// An owner of everything.
    pub root: Pair,
    config: Config,
    dir: TempDir,
}

impl Control {
    /// Starts on an embedded store in a temporary directory.
    ///
    /// # Panics
    /// When it doesn't start.
    pub async fn start() -> Self {
        install_crypto_provider();
        let dir = tempfile::tempdir().unwrap();
        let kek = dir.path().join("kek");
        Sealer::create_file(&kek).unwrap();
        let mut config = Config {
            store: StoreConfig::embedded(dir.path().join("data/store")),
            seal: SealConfig::file(kek),
            ..Config::default()
        };
        config.admin.listen.set_port(0);
        config.distribution.listen.set_port(0);
        config.telemetry.metrics_listen = Some("127.0.0.1:0".parse().unwrap());
        let plane = ControlPlane::start(config.clone(), Telemetry::disabled()).await.unwrap();
        let root = plane.bootstrap_operator(&"root".parse().unwrap()).await.unwrap().unwrap();
        let root = Pair { certificate: root.cert_pem.clone(), key: root.key_pem.to_string() };
        Self { plane, root, config, dir }
    }

    /// The directory of its files.
    pub fn dir(&self) -> &std::path::Path {
        self.dir.path()
    }

    /// A connection that shows `pair`, opened by its first call.
    ///
    /// # Panics
    /// When `pair` isn't PEM.
    pub fn channel(&self, pair: &Pair) -> Channel {
        connect(&self.plane.admin_addr().to_string(), &self.plane.ca_pem(), pair)
    }

    /// A client that shows `pair`.
    pub fn client(&self, pair: &Pair) -> AdminClient<Channel> {
        AdminClient::new(self.channel(pair))
    }

    /// A client of `root`.
    pub fn root(&self) -> AdminClient<Channel> {
        self.client(&self.root)
    }

    /// Makes an operator with these roles, as (tenant, role).
    ///
    /// # Panics
    /// When `root` may not.
    pub async fn operator(&self, name: &str, roles: &[(&str, wire::Role)]) -> Pair {
        let key = KeyPair::generate().unwrap();
        let csr_der = CertificateParams::default().serialize_request(&key).unwrap().der().to_vec();
        let roles = roles.iter().map(|(t, r)| RoleBinding { tenant: (*t).into(), role: (*r).into() }).collect();
        let request = wire::CreateOperatorRequest { name: name.into(), roles, csr_der, ttl_seconds: 0 };
        let made = self.root().create_operator(request).await.unwrap().into_inner();
        Pair { certificate: made.certificate_pem, key: key.serialize_pem() }
    }

    /// The CA itself, dug out of the store with the key-encryption key: to make what it never
    /// would.
    ///
    /// # Panics
    /// When the store doesn't hold it.
    pub async fn ca(&self) -> Issuer<'static, KeyPair> {
        let store = self.plane.registry().store();
        let record = store.get(&Key::Authority).await.unwrap().unwrap();
        let sealer = Sealer::load(&self.config.seal).unwrap();
        let secret = sealer.open_now(&RecordId::authority(store.store_id()), &record.value).unwrap();
        let (len, rest) = secret.expose().split_first_chunk::<4>().unwrap();
        let (certificate, key) = rest.split_at(u32::from_le_bytes(*len) as usize);
        let key = PrivatePkcs8KeyDer::from(key.to_vec());
        let key = KeyPair::from_pkcs8_der_and_sign_algo(&key, &rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        Issuer::from_ca_cert_der(&CertificateDer::from(certificate), key).unwrap()
    }

    /// A certificate of the control plane's own CA, as `change` wants it; without a change it is
    /// that of `root`.
    ///
    /// # Panics
    /// When `change` leaves something that can't be signed.
    pub async fn forge(&self, change: impl FnOnce(&mut CertificateParams)) -> Pair {
        let root = self.plane.registry().operator(&"root".parse().unwrap()).await.unwrap().unwrap();
        forge(&self.ca().await, |params| {
            // An operator's certificate names the enrolment that its record has: X.520's
            // serialNumber.
            params.distinguished_name.push(DnType::CustomDnType(vec![2, 5, 4, 5]), root.enrolment);
            change(params);
        })
    }
}

/// A connection to the admin API at `address` that trusts `ca_pem` and shows `pair`, opened by its
/// first call.
///
/// # Panics
/// When something isn't PEM, or outside of a runtime.
pub fn connect(address: &str, ca_pem: &str, pair: &Pair) -> Channel {
    let tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(ca_pem))
        .identity(Identity::from_pem(&pair.certificate, &pair.key));
    let endpoint = Endpoint::from_shared(format!("https://{address}")).unwrap();
    endpoint.timeout(Duration::from_secs(60)).tls_config(tls).unwrap().connect_lazy()
}

/// A certificate of any CA, as `change` wants it; without a change it is that of `root`.
///
/// # Panics
/// When `change` leaves something that can't be signed.
pub fn forge(ca: &Issuer<'_, KeyPair>, change: impl FnOnce(&mut CertificateParams)) -> Pair {
    let key = KeyPair::generate().unwrap();
    let mut params = root_params();
    change(&mut params);
    let certificate = params.signed_by(&key, ca).unwrap().pem();
    Pair { certificate, key: key.serialize_pem() }
}

/// What the certificate of `root` says, as rcgen puts it.
///
/// # Panics
/// Never.
pub fn root_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "root");
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params.subject_alt_names = vec![SanType::URI("spiffe://seks/operator/root".try_into().unwrap())];
    params.not_before = (std::time::SystemTime::now() - Duration::from_secs(30)).into();
    params.not_after = (std::time::SystemTime::now() + Duration::from_secs(3600)).into();
    params
}

/// Sends bytes as the message of a method, and says how it ended.
///
/// # Errors
/// The status.
pub async fn send_bytes(channel: Channel, method: &str, message: Vec<u8>) -> Result<Vec<u8>, Status> {
    let mut grpc = tonic::client::Grpc::new(channel);
    grpc.ready().await.map_err(|e| Status::new(Code::Unknown, e.to_string()))?;
    let path = http::uri::PathAndQuery::try_from(format!("/seks.v1.Admin/{method}")).unwrap();
    Ok(grpc.unary(tonic::Request::new(message), path, Bytes).await?.into_inner())
}

/// Messages that are what they are.
struct Bytes;

impl Codec for Bytes {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Self;
    type Decoder = Self;
    fn encoder(&mut self) -> Self {
        Self
    }
    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Bytes {
    type Item = Vec<u8>;
    type Error = Status;
    fn encode(&mut self, item: Vec<u8>, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put_slice(&item);
        Ok(())
    }
}

impl Decoder for Bytes {
    type Item = Vec<u8>;
    type Error = Status;
    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        let mut all = vec![0; buffer.remaining()];
        buffer.copy_to_slice(&mut all);
        Ok(Some(all))
    }
}
