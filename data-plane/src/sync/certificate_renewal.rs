//! Renews the node's certificate. It is valid for a day; after half of that the node requests the
//! next one with the current one.

use std::{sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use seks_proto::wire::{JoinRequest, enrolment_client::EnrolmentClient};
use tokio::time::{sleep, timeout};

use super::{Identity, channel::Trust, enrol};
use crate::table::WallClock;

/// How often the certificate's age is looked at: wall clocks are stepped, so one long sleep won't
/// do.
const LOOK: Duration = Duration::from_secs(60);
/// Longest wait for an answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// How often a mesh's files are read: it replaces them at half of their life as well, which may be
/// minutes.
const LOOK_AT_FILES: Duration = Duration::from_secs(5);

/// Loads new certificates that a mesh writes to its files, until it is dropped. The current stream
/// continues, and the next one presents the new certificate.
async fn reread(identity: &ArcSwap<Identity>) {
    loop {
        match identity.load().reread() {
            Ok(Some(renewed)) => {
                tracing::info!("the node's certificate was replaced");
                identity.store(Arc::new(renewed));
            }
            Ok(None) => {}
            Err(error) => tracing::warn!(%error, "the node's certificate can't be read; the present one stays"),
        }
        sleep(LOOK_AT_FILES).await;
    }
}

/// Renews the certificate until it is dropped.
pub(super) async fn run(endpoints: Vec<String>, trust: Trust, identity: Arc<ArcSwap<Identity>>) {
    if identity.load().is_of_files() {
        return reread(&identity).await;
    }
    loop {
        if is_due(&identity.load(), WallClock::machine_now()) {
            for endpoint in &endpoints {
                match renew(endpoint, &trust, &identity.load_full()).await {
                    Ok(renewed) => {
                        tracing::info!(endpoint, "the node's certificate was renewed");
                        identity.store(Arc::new(renewed));
                        break;
                    }
                    Err(reason) => tracing::warn!(endpoint, reason, "the node's certificate can't be renewed yet"),
                }
            }
        }
        sleep(LOOK).await;
    }
}

/// At half its life; what can't be read is left alone.
fn is_due(identity: &Identity, now: i64) -> bool {
    identity.validity().is_some_and(|(from, to)| now >= from.midpoint(to))
}

async fn renew(endpoint: &str, trust: &Trust, identity: &Identity) -> Result<Identity, String> {
    let (csr_der, key_pem) = enrol::request().map_err(|e| e.to_string())?;
    let channel = trust.connect(endpoint, identity).await.map_err(|e| e.to_string())?;
    let request = JoinRequest { join_token: String::new(), node: identity.node().to_owned(), csr_der };
    let answer = timeout(ANSWER_LIMIT, EnrolmentClient::new(channel).join(request)).await;
    let answer = answer.map_err(|_| "no answer")?.map_err(|s| s.message().to_owned())?.into_inner();
    if answer.node != identity.node() {
        return Err("the answer is for another node".into());
    }
    identity.renewed(answer.certificate_pem, key_pem, answer.ca_pem).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use zeroize::Zeroizing;

    use std::time::UNIX_EPOCH;

    use super::*;

    #[test]
    fn a_certificate_is_renewed_at_half_its_life() {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec!["n".into()]).unwrap();
        let day = Duration::from_secs(86_400);
        params.not_before = (UNIX_EPOCH + day * 100).into();
        params.not_after = (UNIX_EPOCH + day * 102).into();
        let pem = params.self_signed(&key).unwrap().pem();
        let key = Zeroizing::new(key.serialize_pem());
        let identity = Identity::new(&"n".parse().unwrap(), String::new(), pem, key, String::new());
        assert!(!is_due(&identity, 86_400 * 101 - 1) && is_due(&identity, 86_400 * 101));
    }
}
