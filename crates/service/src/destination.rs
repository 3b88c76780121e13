//! Computes the [`Destination`] of a service: where a credential's bytes are sent, and in what
//! form.
//!
//! The digest covers everything by which an agent or an editor could send a secret elsewhere or
//! expose it: the origin and the roots that verify it, the base path (it selects the endpoint on a
//! shared host), the credential's fields and which of them are public, and the injection sites or
//! the signing configuration. It excludes what an agent can set in its own request (other headers),
//! limits, timeouts, titles, and settings that only restrict access.

use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use seks_proto::wire;
use seks_types::destination::Destination;
use sha2::{Digest as _, Sha256};

use super::{InjectionSite, Service, ServiceError};

impl Service {
    /// The destination that a credential of this service is bound to.
    #[must_use]
    pub fn destination(&self) -> Destination {
        let mut hasher = DestinationHasher(Sha256::new());
        hasher.add(b"seks/v1/destination");
        let upstream = &self.upstream;
        hasher.add(if upstream.tls() { b"https" } else { b"http" });
        hasher.add(upstream.host().as_bytes());
        hasher.add(&upstream.port().to_be_bytes());
        hasher.add(self.base_path.as_bytes());
        hasher.add_list(root_certificates(&self.upstream_ca_pem));
        hasher.add_list(sorted(self.fields.iter().map(|field| field.as_bytes().to_vec())));
        hasher.add_list(sorted(self.injection.iter().map(encode_site))); // each site includes its kind, so one list is enough
        match &self.sigv4 {
            None => hasher.add_list([]),
            Some(signing) => {
                let region = signing.region.as_deref().unwrap_or_default();
                hasher.add_list(["aws-sigv4", &signing.service, region].map(|part| part.as_bytes().to_vec()));
            }
        }
        // A field that becomes public is no longer masked in answers, which exposes it. Without
        // public fields the digest is that of earlier versions.
        if !self.public.is_empty() {
            hasher.add(b"public");
            hasher.add_list(sorted(self.public.iter().map(|field| field.as_bytes().to_vec())));
        }
        Destination::new(hasher.0.finalize().into())
    }
}

/// The destination of a stored service.
///
/// # Errors
/// [`ServiceError`] when the record is no valid definition.
pub fn record_destination(service: &wire::Service) -> Result<Destination, ServiceError> {
    Service::try_from(service).map(|service| service.destination())
}

/// Hashes each part with its length first, so that different lists of parts have different input.
struct DestinationHasher(Sha256);

impl DestinationHasher {
    fn add(&mut self, part: &[u8]) {
        self.0.update((part.len() as u64).to_be_bytes());
        self.0.update(part);
    }

    fn add_list(&mut self, parts: impl IntoIterator<Item = Vec<u8>, IntoIter: ExactSizeIterator>) {
        let parts = parts.into_iter();
        self.0.update((parts.len() as u64).to_be_bytes());
        parts.for_each(|part| self.add(&part));
    }
}

fn sorted(parts: impl Iterator<Item = Vec<u8>>) -> Vec<Vec<u8>> {
    let mut parts: Vec<Vec<u8>> = parts.collect();
    parts.sort_unstable();
    parts
}

/// The certificates, independent of their order and of text between them. Text that is no PEM is
/// taken as written.
fn root_certificates(pem: &str) -> Vec<Vec<u8>> {
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    match read {
        Ok(certificates) if !certificates.is_empty() || pem.is_empty() => {
            let mut roots = sorted(certificates.into_iter().map(|der| der.to_vec()));
            roots.dedup();
            roots
        }
        _ => vec![pem.as_bytes().to_vec()],
    }
}

fn encode_site(site: &InjectionSite) -> Vec<u8> {
    let (kind, name) = match site {
        InjectionSite::Header(name, _) => ("header", name.as_str()),
        InjectionSite::Query(name, _) => ("query", name.as_str()),
        InjectionSite::Basic(_) => ("basic", ""),
        InjectionSite::Path(_) => ("path", ""),
    };
    // Names and templates contain no NUL.
    [kind, name, &site.template().to_string()].join("\0").into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    type Change = Box<dyn Fn(&mut wire::Service)>;

    fn record() -> wire::Service {
        let header = |name: &str, value: &str| {
            let at = wire::injection::site::At::Header(wire::injection::NamedValue {
                name: name.into(),
                value: value.into(),
            });
            wire::injection::Site { at: Some(at) }
        };
        wire::Service {
            tenant: "acme".into(),
            name: "api".into(),
            upstream: "https://api.test".into(),
            fields: vec!["key".into(), "id".into()],
            injection: Some(wire::Injection {
                sites: vec![header("authorization", "Bearer {key}"), header("x-id", "{id}")],
                aws_sigv4: None,
            }),
            slots: vec![wire::TokenSlot { at: Some(wire::token_slot::At::Scheme("Bearer".into())) }],
            ..wire::Service::default()
        }
    }

    fn of(change: impl FnOnce(&mut wire::Service)) -> Destination {
        let mut service = record();
        change(&mut service);
        record_destination(&service).unwrap()
    }

    fn sites(service: &mut wire::Service) -> &mut Vec<wire::injection::Site> {
        &mut service.injection.as_mut().unwrap().sites
    }

    fn ca(name: &str) -> String {
        use base64::Engine as _;
        let der = base64::engine::general_purpose::STANDARD.encode(format!("not DER: {name}"));
        format!("-----BEGIN CERTIFICATE-----\n{der}\n-----END CERTIFICATE-----\n")
    }

    #[test]
    fn another_place_or_form_is_another_destination() {
        let was = of(|_| {});
        let mut seen = vec![was];
        let changes: Vec<(&str, Change)> = vec![
            ("host", Box::new(|s| s.upstream = "https://api2.test".into())),
            ("port", Box::new(|s| s.upstream = "https://api.test:8443".into())),
            ("scheme", Box::new(|s| (s.upstream, s.allow_private) = ("http://api.test:443".into(), true))),
            ("base path", Box::new(|s| s.base_path = "/evil".into())),
            ("roots", Box::new(|s| s.upstream_ca_pem = ca("a"))),
            ("other roots", Box::new(|s| s.upstream_ca_pem = ca("b"))),
            ("a public field", Box::new(|s| s.public = vec!["id".into()])),
            ("another public field", Box::new(|s| s.public = vec!["key".into()])),
            (
                "one site less",
                Box::new(|s| {
                    s.fields = vec!["key".into()];
                    sites(s).truncate(1);
                }),
            ),
            (
                "header",
                Box::new(|s| {
                    sites(s)[1].at = record_site("x-other", "{id}");
                }),
            ),
            (
                "template",
                Box::new(|s| {
                    sites(s)[1].at = record_site("x-id", "{key}{id}");
                }),
            ),
            (
                "query",
                Box::new(|s| {
                    sites(s)[1].at = Some(wire::injection::site::At::Query(wire::injection::NamedValue {
                        name: "x-id".into(),
                        value: "{id}".into(),
                    }));
                }),
            ),
        ];
        for (what, change) in changes {
            let now = of(change);
            assert!(!seen.contains(&now), "{what}");
            seen.push(now);
        }
    }

    fn record_site(name: &str, value: &str) -> Option<wire::injection::site::At> {
        Some(wire::injection::site::At::Header(wire::injection::NamedValue { name: name.into(), value: value.into() }))
    }

    #[test]
    fn another_spelling_or_a_limit_is_the_same_destination() {
        let was = of(|_| {});
        assert_eq!(of(|s| s.upstream = "https://api.test:443".into()), was);
        assert_eq!(of(|s| sites(s).reverse()), was);
        assert_eq!(of(|s| s.fields.reverse()), was);
        assert_eq!(of(|s| s.title = "Another".into()), was);
        assert_eq!(of(|s| s.first_byte_timeout_ms = 9), was);
        assert_eq!(of(|s| s.idle_timeout_ms = 9), was);
        assert_eq!(of(|s| s.denied_paths = vec!["POST /keys".into()]), was);
        let (a, b) = (ca("a"), ca("b"));
        let with = |pem: String| of(|s| s.upstream_ca_pem = pem);
        assert_eq!(with(format!("{a}{b}")), with(format!("# two\n{b}\n{a}\n{b}")));
        assert_ne!(with(a.clone()), with(format!("{a}{b}")));
    }

    #[test]
    fn signing_for_another_service_or_region_is_another_destination() {
        let signed = |service: &str, region: &str| {
            of(|s| {
                s.fields = super::super::sigv4::FIELDS.iter().map(|f| (*f).to_owned()).collect();
                let aws = wire::AwsSigV4 { service: service.into(), region: region.into() };
                s.injection = Some(wire::Injection { sites: vec![], aws_sigv4: Some(aws) });
                s.slots = vec![wire::TokenSlot { at: Some(wire::token_slot::At::AwsSigv4(true)) }];
            })
        };
        let was = signed("s3", "eu-west-1");
        assert_eq!(signed("s3", "eu-west-1"), was);
        assert!(signed("s3", "us-east-1") != was && signed("sqs", "eu-west-1") != was && signed("s3", "") != was);
    }
}
