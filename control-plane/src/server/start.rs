//! The parts of a control plane: store, KEK, authority, registry. The server and the tools open
//! them in the same way.

use std::{net::SocketAddr, sync::Arc};

use seks_runtime::{Exit, exit::is_machines_fault};
use seks_types::id::{NameError, OperatorName, TenantName};
use zeroize::Zeroizing;

use super::tls::TlsError;
use crate::{
    approval_webhook::WebhookError,
    authenticated::Authenticated,
    authority::{Authority, AuthorityError},
    config::Config,
    distribution::DistributionError,
    epoch::{Epoch, HighWaterMark, HighWaterMarkError, HighWaterMarkFile, WentBack},
    mint::MintError,
    mint_refresher::RefresherError,
    registry::{Registry, RegistryError},
    seal::{SealError, Sealer},
    store::{OpenError, Store, StoreError},
    trail::OpenTrailError,
    trust_refresher::TrustRefresherError,
};

/// Why a control plane can't start: one line for the operator, that names the key.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The store can't be opened.
    #[error("{}", with_key(.0.config_key(), "store", .0))]
    Store(#[source] OpenError),
    /// The KEK can't be read, or isn't this store's.
    #[error("{}", with_key(.0.config_key(), "seal", .0))]
    Seal(#[source] SealError),
    /// What the store holds under seal can't be read.
    #[error("store: {0}")]
    Sealed(#[source] SealError),
    /// The store is older than what was seen of it.
    #[error(
        "store: {0}: `seks-control-plane accept-rollback --reason …` says that this is meant, see deploy/README.md"
    )]
    WentBack(#[from] WentBack),
    /// What was seen of it can't be read or kept.
    #[error("store.mark_file: {0}")]
    Mark(#[from] HighWaterMarkError),
    /// The audit trail.
    #[error(transparent)]
    Trail(#[from] OpenTrailError),
    /// The certificate authority.
    #[error("{0}")]
    Authority(#[from] AuthorityError),
    /// Distribution.
    #[error(transparent)]
    Distribution(#[from] DistributionError),
    /// A listener's certificate.
    #[error("{section}.tls: {source}")]
    Tls {
        /// `admin` or `distribution`.
        section: &'static str,
        /// Why.
        source: TlsError,
    },
    /// A value of `[page]`.
    #[error("page.url: an origin such as https://seks.example:8304, without a path")]
    PageUrl,
    /// A listener's address.
    #[error("{key}: cannot listen on {address}: {source}")]
    Listen {
        /// The key.
        key: &'static str,
        /// The address.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// The operating system has no threads to give.
    #[error("cannot start threads: {0}")]
    Threads(#[source] std::io::Error),
    /// A runtime has ended before the start was done.
    #[error("the start was interrupted: {0}")]
    Interrupted(#[from] tokio::task::JoinError),
    /// `[sources]`; the message names the key.
    #[error("{0}")]
    Sources(#[source] MintError),
    /// What renews minted credentials.
    #[error(transparent)]
    Refresher(#[from] RefresherError),
    /// A value of `[approvals]`.
    #[error(transparent)]
    Webhook(#[from] WebhookError),
    /// What keeps the keys of trusted issuers.
    #[error(transparent)]
    TrustRefresher(#[from] TrustRefresherError),
    /// A metric's name.
    #[error(transparent)]
    Metrics(#[from] prometheus::Error),
    /// The descriptors of our messages.
    #[error(transparent)]
    Reflection(#[from] tonic_reflection::server::Error),
    /// What starts along with the listeners.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// A name of ours.
    #[error(transparent)]
    Name(#[from] NameError),
}

impl StartError {
    /// The process's exit code: 2 for what the operator has to put right, 1 for a store that
    /// doesn't answer and for a condition of the machine, such as a full disk.
    #[must_use]
    pub fn exit(&self) -> Exit {
        let away = |error: &StoreError| {
            matches!(error, StoreError::Unavailable(_) | StoreError::Unknown(_) | StoreError::Full)
        };
        match self {
            fault if is_machines_fault(fault) => Exit::Failed,
            Self::Store(OpenError::Store(error))
            | Self::Seal(SealError::Store(error))
            | Self::Sealed(SealError::Store(error))
            | Self::Authority(AuthorityError::Store(error))
            | Self::Distribution(DistributionError::Store(error))
                if away(error) =>
            {
                Exit::Failed
            }
            // A key that was refused may be permitted again: the service manager tries.
            Self::Seal(SealError::KekUnavailable(_) | SealError::KekRefused(_)) => Exit::Failed,
            Self::Sealed(SealError::KekUnavailable(_)) => Exit::Failed,
            Self::WentBack(_) => Exit::Conflict,
            Self::Metrics(_)
            | Self::Refresher(_)
            | Self::TrustRefresher(_)
            | Self::Reflection(_)
            | Self::Name(_)
            | Self::Registry(_) => Exit::Failed,
            Self::Threads(_) | Self::Interrupted(_) => Exit::Failed,
            _ => Exit::Usage,
        }
    }
}

/// An error of `section` with the key of the configuration in front of it, where its message
/// doesn't name one.
fn with_key(key: Option<&str>, section: &str, error: &dyn std::fmt::Display) -> String {
    match key {
        Some("") => error.to_string(),
        key => format!("{}: {error}", key.unwrap_or(section)),
    }
}

/// Why an operator has no certificate.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// Its record.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// Its certificate.
    #[error("certificate authority: {0}")]
    Authority(#[from] AuthorityError),
}

/// An operator's certificate with its key. The key is generated here, because no other operator
/// exists yet.
pub struct OperatorIdentity {
    /// Who.
    pub name: OperatorName,
    /// Its certificate.
    pub cert_pem: String,
    /// Its key; wiped when dropped.
    pub key_pem: Zeroizing<String>,
}

/// A control plane that doesn't serve yet.
pub struct Components {
    /// The records.
    pub store: Arc<dyn Store>,
    /// The same, as what authenticates them.
    pub records: Arc<Authenticated>,
    /// The KEK.
    pub sealer: Arc<Sealer>,
    /// The CA.
    pub authority: Arc<Authority>,
    /// What writes.
    pub registry: Arc<Registry>,
    /// Where the highest revision that was seen is kept.
    pub marks: Option<HighWaterMarkFile>,
}

/// The store and the KEK that it was sealed with, and nothing else: for what must work with a store
/// that went back.
pub struct Storage {
    /// The records.
    pub store: Arc<dyn Store>,
    /// The same, as what authenticates them.
    pub records: Arc<Authenticated>,
    /// The KEK.
    pub sealer: Arc<Sealer>,
    /// Where the highest revision that was seen is kept.
    pub marks: Option<HighWaterMarkFile>,
}

impl Storage {
    /// Reads the KEK, opens the store and checks that they belong together.
    ///
    /// # Errors
    /// [`StartError`]; with a missing or wrong KEK nothing was written.
    pub async fn open(config: &Config) -> Result<Self, StartError> {
        let seal = StartError::Seal;
        let sealer = Arc::new(Sealer::from_config(&config.seal).await.map_err(seal)?);
        let store = crate::store::open(&config.store).await.map_err(StartError::Store)?;
        sealer.verify(store.as_ref()).await.map_err(seal)?;
        let marks = config.store.mark().map(HighWaterMarkFile::new);
        let seen = marks.as_ref().map_or(Ok(None), HighWaterMarkFile::read)?;
        let revision = seen.as_ref().map_or(0, |mark| mark.revision);
        let records = Authenticated::open(store, Arc::clone(&sealer), revision).await.map_err(seal)?;
        if seen.is_some_and(|mark| mark.authenticated) && !records.is_complete() {
            return Err(WentBack::Unauthenticated.into());
        }
        let records = Arc::new(records);
        Ok(Self { store: records.clone(), records, sealer, marks })
    }

    /// What was seen of the store.
    ///
    /// # Errors
    /// [`HighWaterMarkError`].
    pub fn mark(&self) -> Result<Option<HighWaterMark>, HighWaterMarkError> {
        self.marks.as_ref().map_or(Ok(None), HighWaterMarkFile::read)
    }

    /// Refuses a store that went back, and remembers how far one that didn't has come.
    async fn check(&self) -> Result<(), StartError> {
        let seal = StartError::Sealed;
        let epoch = Epoch::read(self.store.as_ref(), &self.sealer).await.map_err(seal)?;
        let revision = self.store.revision().await.map_err(|e| seal(e.into()))?;
        epoch.check(revision, self.mark()?.as_ref())?;
        if let Some(marks) = &self.marks {
            let authenticated = self.store.is_authenticated();
            marks.write(&HighWaterMark { epoch: epoch.name().to_owned(), revision, authenticated })?; // and finds out here that it can
        }
        Ok(())
    }
}

impl Components {
    /// Reads the KEK, opens the store, checks that they belong together and that the store didn't
    /// go back, and at the first start makes the CA and the tenant `default` in one transaction.
    ///
    /// # Errors
    /// [`StartError`]; with a missing or wrong KEK nothing was written.
    pub async fn open(config: &Config) -> Result<Self, StartError> {
        let base = Storage::open(config).await?;
        base.check().await?;
        let Storage { store, records, sealer, marks } = base;
        let default = TenantName::try_from("default")?;
        let first = || Registry::first_tenant(&default);
        let authority = Arc::new(Authority::open(&config.authority, store.as_ref(), &sealer, first).await?);
        let registry = Registry::new(Arc::clone(&store), Arc::clone(&sealer));
        let registry = Arc::new(registry.with_tenant_networks(config.tenant_networks.clone()));
        if !config.tenant_networks.is_empty() {
            registry.give_tenant_networks().await?;
        }
        Ok(Self { store, records, sealer, authority, registry, marks })
    }

    /// A certificate and key for the operator `name`, whose record is of `enrolment`.
    ///
    /// # Errors
    /// [`AuthorityError::Sign`].
    pub fn operator_identity(&self, name: &OperatorName, enrolment: &str) -> Result<OperatorIdentity, AuthorityError> {
        identity(&self.authority, name, enrolment)
    }
}

pub(super) fn identity(
    authority: &Authority,
    name: &OperatorName,
    enrolment: &str,
) -> Result<OperatorIdentity, AuthorityError> {
    let (cert_pem, key_pem) = authority.make_operator(name, enrolment)?;
    Ok(OperatorIdentity { name: name.clone(), cert_pem, key_pem: Zeroizing::new(key_pem) })
}
