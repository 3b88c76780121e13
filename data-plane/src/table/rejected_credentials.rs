//! Minted credentials that an upstream has refused: what the node asks the control plane to renew.

use std::{collections::VecDeque, sync::atomic::Ordering::Relaxed};

use parking_lot::Mutex;
use seks_types::id::{CredentialName, TenantName};
use tokio::sync::Notify;

use super::CredentialEntry;

/// More than these wait for nobody: the next request that is refused asks again, of another
/// version.
const MOST: usize = 256;

/// A version of a credential that is no good any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RejectedCredential {
    /// The tenant that it belongs to.
    pub tenant: TenantName,
    /// Its name, unique in the tenant.
    pub name: CredentialName,
    /// Its version, from 1.
    pub version: u32,
}

/// What is to be reported, oldest first.
#[derive(Default)]
pub struct RejectedCredentials {
    waiting: Mutex<VecDeque<RejectedCredential>>,
    news: Notify,
}

impl RejectedCredentials {
    /// An upstream has answered 401. Each version is reported once, however many requests meet
    /// that.
    pub fn report(&self, credential: &CredentialEntry) {
        if !credential.minted || credential.reported.swap(true, Relaxed) {
            return;
        }
        let mut waiting = self.waiting.lock();
        if waiting.len() < MOST {
            let (tenant, name) = (credential.tenant.clone(), credential.name.clone());
            waiting.push_back(RejectedCredential { tenant, name, version: credential.version });
            self.news.notify_one();
        }
    }

    /// The next one; waits for it. Dropped while it waits, it has taken nothing.
    pub async fn next(&self) -> RejectedCredential {
        loop {
            let news = self.news.notified();
            if let Some(refused) = self.waiting.lock().pop_front() {
                return refused;
            }
            news.await;
        }
    }
}
