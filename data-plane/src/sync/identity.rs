//! The node's identity in the data directory: its certificate and key, and the CA that it trusts.

use std::{
    fs,
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use seks_runtime::private_file::read_private;
use seks_types::id::NodeId;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::instance::Instance;

/// The file in the data directory.
const FILE: &str = "identity.json";

/// A node's identity.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    node: String,
    region: String,
    certificate_pem: String,
    ca_pem: String,
    #[serde(with = "wiped")]
    key_pem: Zeroizing<String>,
    /// Where it is kept; `None`: in memory only.
    #[serde(skip)]
    data_dir: Option<PathBuf>,
    /// Where a mesh keeps certificate and key fresh; `None`: they are ours to renew.
    #[serde(skip)]
    files: Option<(PathBuf, PathBuf)>,
    /// Which process has it, once it is [`claimed`](Self::claimed).
    #[serde(skip)]
    instance: Option<Arc<Instance>>,
}

/// Why an identity can't be kept or read.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The file or its directory.
    #[error("`{path}`: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the operating system says.
        source: io::Error,
    },
    /// Others can read the key.
    #[error("`{0}` is readable by others: `chmod 600` it, and consider the key known")]
    Exposed(PathBuf),
    /// It isn't an identity.
    #[error("`{0}` is not a node's identity")]
    Malformed(PathBuf),
}

impl Identity {
    /// From its parts: PEM, each.
    #[must_use]
    pub fn new(
        node: &NodeId,
        region: String,
        certificate_pem: String,
        key_pem: Zeroizing<String>,
        ca_pem: String,
    ) -> Self {
        let (node, data_dir, files, instance) = (node.to_string(), None, None, None);
        Self { node, region, certificate_pem, ca_pem, key_pem, data_dir, files, instance }
    }

    /// The node's name.
    #[must_use]
    pub fn node(&self) -> &str {
        &self.node
    }

    /// The region in its certificate, or `""`.
    #[must_use]
    pub fn region(&self) -> &str {
        &self.region
    }

    /// Where it is kept; `None`: in memory only.
    pub(super) fn data_dir(&self) -> Option<&Path> {
        self.data_dir.as_deref()
    }

    /// It, as this process's, as soon as no other has its directory; `waits` is called if that
    /// isn't at once.
    pub(super) async fn claimed(self, waits: impl FnOnce()) -> io::Result<Self> {
        #[cfg(feature = "simulation")]
        if self.instance.is_some() {
            return Ok(self);
        }
        let instance = Instance::claim(self.data_dir(), waits).await?;
        Ok(Self { instance: Some(Arc::new(instance)), ..self })
    }

    /// The name of the process that has it.
    pub(super) fn instance(&self) -> &[u8] {
        self.instance.as_ref().map_or(&[], |instance| instance.name())
    }

    /// It, as a process's on that machine.
    #[cfg(feature = "simulation")]
    #[must_use]
    pub fn on_machine(self, machine: u64) -> Self {
        Self { instance: Some(Arc::new(Instance::of_machine(machine))), ..self }
    }

    pub(super) fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    pub(super) fn key_pem(&self) -> &Zeroizing<String> {
        &self.key_pem
    }

    pub(super) fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// When the certificate begins and ends, in unix seconds; `None` when it can't be read.
    #[must_use]
    pub fn validity(&self) -> Option<(i64, i64)> {
        let certificate = CertificateDer::from_pem_slice(self.certificate_pem.as_bytes()).ok()?;
        let (_, parsed) = x509_parser::parse_x509_certificate(&certificate).ok()?;
        let validity = parsed.validity();
        Some((validity.not_before.timestamp(), validity.not_after.timestamp()))
    }

    /// A mesh's certificate and key, which it replaces when they are due. `data_dir` holds what the
    /// node has seen, and no identity.
    ///
    /// # Errors
    /// Files that can't be read; a key that others can read.
    pub fn of_files(
        node: &NodeId,
        (cert_file, key_file): (&Path, &Path),
        ca_pem: String,
        data_dir: &Path,
    ) -> Result<Self, IdentityError> {
        let failed = |path: &Path, source| IdentityError::File { path: path.to_path_buf(), source };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(data_dir).map_err(|e| failed(data_dir, e))?;
        let (certificate_pem, key_pem) = read_pair(cert_file, key_file)?;
        let files = Some((cert_file.to_path_buf(), key_file.to_path_buf()));
        let data_dir = Some(data_dir.to_path_buf());
        Ok(Self { data_dir, files, ..Self::new(node, String::new(), certificate_pem, key_pem, ca_pem) })
    }

    /// Whether a mesh renews it.
    pub(super) fn is_of_files(&self) -> bool {
        self.files.is_some()
    }

    /// What is in its files now; `None` when that is what it has.
    pub(super) fn reread(&self) -> Result<Option<Self>, IdentityError> {
        let Some((cert_file, key_file)) = &self.files else { return Ok(None) };
        let (certificate_pem, key_pem) = read_pair(cert_file, key_file)?;
        Ok((certificate_pem != self.certificate_pem).then(|| Self { certificate_pem, key_pem, ..self.clone() }))
    }

    /// Whether its certificate is of no use any more; one that can't be read is.
    pub(super) fn has_ended(&self, unix_now: i64) -> bool {
        self.validity().is_none_or(|(_, to)| to <= unix_now)
    }

    /// The same node with a new certificate and key, kept where the old was.
    pub(super) fn renewed(
        &self,
        certificate_pem: String,
        key_pem: Zeroizing<String>,
        ca_pem: String,
    ) -> Result<Self, IdentityError> {
        // The CAs to trust come with it: so one takes over from another.
        let ca_pem = if ca_pem.is_empty() { self.ca_pem.clone() } else { ca_pem };
        let renewed = Self { certificate_pem, key_pem, ca_pem, ..self.clone() };
        if let Some(data_dir) = &self.data_dir {
            renewed.write(data_dir)?;
        }
        Ok(renewed)
    }

    /// The identity in `data_dir`; `None` when there is none yet.
    ///
    /// # Errors
    /// A file that can't be read, isn't one, or that others can read.
    pub fn load(data_dir: &Path) -> Result<Option<Self>, IdentityError> {
        let path = data_dir.join(FILE);
        let failed = |source| IdentityError::File { path: path.clone(), source };
        let text = match fs::read_to_string(&path) {
            Ok(text) => Zeroizing::new(text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        if fs::metadata(&path).map_err(failed)?.permissions().mode() & 0o077 != 0 {
            return Err(IdentityError::Exposed(path));
        }
        let mut identity: Self = serde_json::from_str(&text).map_err(|_| IdentityError::Malformed(path.clone()))?;
        identity.data_dir = Some(data_dir.to_path_buf());
        match NodeId::try_from(identity.node.as_str()) {
            Ok(_) => Ok(Some(identity)),
            Err(_) => Err(IdentityError::Malformed(path)),
        }
    }

    /// Writes it to `data_dir`, whole or not at all, readable by the owner alone; renewals are kept
    /// there too.
    ///
    /// # Errors
    /// Of the file system.
    pub fn save(&mut self, data_dir: &Path) -> Result<(), IdentityError> {
        self.write(data_dir)?;
        self.data_dir = Some(data_dir.to_path_buf());
        Ok(())
    }

    fn write(&self, data_dir: &Path) -> Result<(), IdentityError> {
        let (path, new) = (data_dir.join(FILE), data_dir.join(format!("{FILE}.new")));
        let failed = |source| IdentityError::File { path: path.clone(), source };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(data_dir).map_err(failed)?;
        let text = Zeroizing::new(serde_json::to_string(self).map_err(|e| failed(e.into()))?);
        let _ = fs::remove_file(&new); // what a crash left
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new).map_err(failed)?;
        file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(failed)?;
        fs::rename(&new, &path).map_err(failed)?;
        fs::File::open(data_dir).and_then(|dir| dir.sync_all()).map_err(failed)
    }
}

fn read_pair(cert_file: &Path, key_file: &Path) -> Result<(String, Zeroizing<String>), IdentityError> {
    let failed = |path: &Path, source| IdentityError::File { path: path.to_path_buf(), source };
    let certificate = fs::read_to_string(cert_file).map_err(|e| failed(cert_file, e))?;
    let key = read_private(key_file).map(Zeroizing::new).map_err(|e| failed(key_file, e))?;
    if CertificateDer::from_pem_slice(certificate.as_bytes()).is_err() {
        return Err(IdentityError::Malformed(cert_file.to_path_buf()));
    }
    Ok((certificate, key))
}

/// serde knows nothing of `Zeroizing`.
mod wiped {
    use serde::{Deserialize, Deserializer, Serializer};
    use zeroize::Zeroizing;

    pub(super) fn serialize<S: Serializer>(text: &Zeroizing<String>, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(text)
    }

    pub(super) fn deserialize<'a, D: Deserializer<'a>>(from: D) -> Result<Zeroizing<String>, D::Error> {
        String::deserialize(from).map(Zeroizing::new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> Identity {
        let key = Zeroizing::new("KEY".to_owned());
        Identity::new(&"n-1".parse().unwrap(), "eu".into(), "CERT".into(), key, "CA".into())
    }

    #[test]
    fn an_identity_survives_a_restart_and_is_the_owners_alone() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("deep/data");
        assert!(Identity::load(&data).unwrap().is_none());
        identity().save(&data).unwrap();
        identity().save(&data).unwrap();
        let read = Identity::load(&data).unwrap().unwrap();
        assert_eq!((read.node(), read.region(), read.key_pem().as_str()), ("n-1", "eu", "KEY"));
        let mode = fs::metadata(data.join(FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(fs::read_dir(&data).unwrap().count(), 1, "nothing else is left");
    }

    #[test]
    fn what_others_can_read_or_is_damaged_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        identity().save(dir.path()).unwrap();
        let path = dir.path().join(FILE);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(Identity::load(dir.path()), Err(IdentityError::Exposed(_))));
        fs::write(&path, "{").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        assert!(matches!(Identity::load(dir.path()), Err(IdentityError::Malformed(_))));
    }
}
