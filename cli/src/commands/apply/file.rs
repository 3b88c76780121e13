//! The files of `seks apply`: one of them, or all in a folder.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use seks_proto::wire;
use seks_service::spec::ServiceSpec;
use serde::{Deserialize, Serialize};

use super::nothing_in;
use crate::{
    error::{CliError, Result},
    files::read_text,
    markup::{Syntax, parse},
};

/// Placeholder for the command's tenant, which does not affect the checks.
const ANY_TENANT: &str = "default";

/// A tenant as a file. A kind that is absent is left as it is, also by `--prune`.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct TenantFile {
    /// The store's revision that the file was exported at. Objects that were changed after it are
    /// conflicts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) revision: Option<u64>,
    /// As for `seks service apply`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) services: Option<Vec<ServiceSpec>>,
    /// Agents.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) agents: Option<Vec<AgentSpec>>,
    /// Cedar texts, each with any number of policies.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) policies: Option<Vec<String>>,
    /// References to credentials. Their secrets are stored with `seks credential put`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) credentials: Option<Vec<CredentialSpec>>,
    /// Where each policy text comes from, for errors.
    #[serde(skip)]
    pub(super) sources: Vec<String>,
    /// Folders in the folder: they are not read.
    #[serde(skip)]
    pub(super) unread: Vec<String>,
    /// Kind and name of each object, and the file that it is in.
    #[serde(skip)]
    pub(super) named: BTreeMap<(&'static str, String), String>,
}

/// An agent in a file.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AgentSpec {
    pub(super) name: String,
    /// As for `seks agent create --attr`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) attributes: BTreeMap<String, String>,
    /// Absent: as it is, which for a new agent is false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) disabled: Option<bool>,
}

/// A reference to a credential.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CredentialSpec {
    pub(super) name: String,
    pub(super) service: String,
    /// The pools whose nodes may hold it. Default: every node of the tenant.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) pools: Vec<String>,
    /// Where the secret is read from. Default: it is stored with `seks credential put`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) source: Option<SourceSpec>,
}

/// A reference to a secret that is kept elsewhere, without a login.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct SourceSpec {
    /// As for `seks credential put --source`.
    pub(super) kind: String,
    /// As in the reference.
    #[serde(flatten)]
    pub(super) place: serde_json::Map<String, serde_json::Value>,
}

impl SourceSpec {
    /// From what the control plane says of a credential; `None` when it is no reference.
    pub(super) fn of(mint: wire::Mint) -> Option<Self> {
        let place = serde_json::from_str(&mint.reference).ok()?;
        Some(Self { kind: mint.kind, place })
    }

    fn into_wire(self) -> wire::Mint {
        let reference = serde_json::Value::Object(self.place).to_string();
        wire::Mint { kind: self.kind, reference, ..wire::Mint::default() }
    }
}

impl TenantFile {
    /// Reads a file, all files of a folder, or standard input.
    ///
    /// # Errors
    /// Exit code 2. Names the file, the line and the key.
    pub(super) fn read(path: &Path) -> Result<Self> {
        let mut all = Self { unread: folders_in(path), ..Self::default() };
        for path in &paths(path)? {
            all.add(path, Self::read_one(path)?)?;
        }
        Ok(all)
    }

    fn read_one(path: &Path) -> Result<Self> {
        let text = read_text(path)?;
        let name = path.display().to_string();
        if path.extension().is_some_and(|extension| extension == "cedar") {
            return Ok(Self { policies: Some(vec![text]), sources: vec![name], ..Self::default() });
        }
        let syntax = Syntax::of(path, &text)
            .ok_or_else(|| CliError::usage(&name, "a tenant is a .yaml, .toml, .json or .cedar file"))?;
        let mut file: Self = parse(syntax, &text).map_err(|why| CliError::usage(&name, why))?;
        let count = file.policies.as_ref().map_or(0, Vec::len);
        file.sources = (1..=count).map(|nth| format!("{name}: policies[{}]", nth - 1)).collect();
        for service in file.services.iter().flatten() {
            let checked = service.to_service(ANY_TENANT);
            checked.map_err(|error| CliError::usage(&name, format!("service `{}`: {error}", service.name)))?;
        }
        Ok(file)
    }

    /// Adds another file of the folder.
    fn add(&mut self, path: &Path, other: Self) -> Result<()> {
        fn append<T>(all: &mut Option<Vec<T>>, more: Option<Vec<T>>) {
            if let Some(more) = more {
                all.get_or_insert_default().extend(more);
            }
        }
        match (self.revision, other.revision) {
            (Some(a), Some(b)) if a != b => {
                let why = format!("revision: {b}, and another file of the folder has {a}");
                return Err(CliError::usage(path.display().to_string(), why));
            }
            (None, revision) => self.revision = revision,
            _ => {}
        }
        let services = other.services.iter().flatten().map(|service| ("service", &service.name));
        let agents = other.agents.iter().flatten().map(|agent| ("agent", &agent.name));
        let credentials = other.credentials.iter().flatten().map(|credential| ("credential", &credential.name));
        for (kind, name) in services.chain(agents).chain(credentials) {
            let file = path.display().to_string();
            if let Some(first) = self.named.insert((kind, name.clone()), file.clone()) {
                let place = if first == file { "twice".to_owned() } else { format!("in {first}, too") };
                return Err(CliError::usage(file, format!("{kind} `{name}` is listed {place}")));
            }
        }
        append(&mut self.services, other.services);
        append(&mut self.agents, other.agents);
        append(&mut self.policies, other.policies);
        append(&mut self.credentials, other.credentials);
        self.sources.extend(other.sources);
        Ok(())
    }

    /// The kinds that the files list.
    pub(super) fn kinds(&self) -> Vec<String> {
        let kinds = [
            ("service", self.services.is_some()),
            ("agent", self.agents.is_some()),
            ("policy", self.policies.is_some()),
            ("credential", self.credentials.is_some()),
        ];
        kinds.into_iter().filter(|(_, listed)| *listed).map(|(kind, _)| kind.to_owned()).collect()
    }

    /// What the control plane is asked for.
    ///
    /// # Errors
    /// Exit code 2.
    pub(super) fn into_request(self) -> Result<wire::ApplyTenantRequest> {
        let services = self.services.unwrap_or_default();
        let services = services.iter().map(|service| {
            service.to_wire("").map_err(|error| CliError::usage(format!("service `{}`", service.name), error))
        });
        let agents = self.agents.unwrap_or_default();
        let enabled_agents = agents.iter().filter(|agent| agent.disabled == Some(false));
        let enabled_agents = enabled_agents.map(|agent| agent.name.clone()).collect();
        let agent = |agent: AgentSpec| wire::Agent {
            name: agent.name,
            attributes: agent.attributes,
            disabled: agent.disabled == Some(true),
            ..wire::Agent::default()
        };
        let credential = |credential: CredentialSpec| wire::Credential {
            name: credential.name,
            service: credential.service,
            pools: credential.pools,
            mint: credential.source.map(SourceSpec::into_wire),
            ..wire::Credential::default()
        };
        let texts = self.policies.unwrap_or_default().into_iter().zip(self.sources);
        // A text of nothing but comments is no error here.
        let texts = texts
            .filter(|(text, _)| text.lines().any(|l| !matches!(l.trim(), t if t.is_empty() || t.starts_with("//"))));
        Ok(wire::ApplyTenantRequest {
            services: services.collect::<Result<_>>()?,
            agents: agents.into_iter().map(agent).collect(),
            enabled_agents,
            policies: texts.map(|(text, id)| wire::Policy { id, text, ..wire::Policy::default() }).collect(),
            credentials: self.credentials.unwrap_or_default().into_iter().map(credential).collect(),
            revision: self.revision.unwrap_or_default(),
            ..wire::ApplyTenantRequest::default()
        })
    }
}

/// Folders in a folder, but hidden ones.
fn folders_in(path: &Path) -> Vec<String> {
    let is_hidden = |path: &PathBuf| path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
    let entries = fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut folders: Vec<PathBuf> = entries.filter(|path| path.is_dir() && !is_hidden(path)).collect();
    folders.sort();
    folders.iter().map(|path| path.display().to_string()).collect()
}

/// The file, or the files of a folder by name. Hidden files and other types are passed over.
fn paths(path: &Path) -> Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.into()]);
    }
    let entries = fs::read_dir(path).map_err(|error| CliError::file(path, &error))?;
    let is_ours = |path: &PathBuf| {
        let hidden = path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
        let known = path.extension().and_then(|e| e.to_str());
        !hidden && path.is_file() && matches!(known, Some("yaml" | "yml" | "toml" | "json" | "cedar"))
    };
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).filter(is_ours).collect();
    files.sort();
    if files.is_empty() { Err(nothing_in(path)) } else { Ok(files) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(name: &str, text: &str) -> Result<TenantFile> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        TenantFile::read(&path)
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        for (name, text, expect) in [
            ("a.yaml", "agents:\n  - name: a\n    atributes: {x: y}\n", &["line 3", "atributes"][..]),
            ("a.yaml", "agnets: []\n", &["line 1", "agnets"]),
            (
                "a.yaml",
                "services:\n  - name: a\n    upstream: https://h.test\n    inject: bearer\n    nope: 1\n",
                &["line 5", "nope"],
            ),
            ("a.toml", "revision = 1\n[[agents]]\nname = 'a'\nteam = 'x'\n", &["line 4", "team"]),
            ("a.json", "{\n\"agents\": [{\"name\":\"a\",\n\"x\":1}]}", &["line 3", "`x`"]),
            (
                "a.yaml",
                "services:\n  - {name: a, upstream: 'ftp://h.test', inject: bearer}\n",
                &["service `a`", "upstream"],
            ),
            ("a.txt", "", &["a .yaml, .toml, .json or .cedar file"]),
            ("a.yaml", "credentials:\n  - {name: a, service: b, secret: x}\n", &["line 2", "secret"]),
        ] {
            let error = read(name, text).unwrap_err();
            assert_eq!(error.exit as u8, 2, "{text}");
            assert!(error.what.ends_with(name), "{error}");
            assert!(expect.iter().all(|part| error.why.contains(part)), "{text:?}: {error}");
            assert_eq!(error.lines().lines().count(), 1, "{error}");
        }
    }

    #[test]
    fn a_folder_is_read_as_one_file() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
        assert_eq!(TenantFile::read(folder.path()).unwrap_err().exit as u8, 2, "nothing in it");
        write("b.yaml", "revision: 7\nagents:\n  - name: a\n");
        write("a.cedar", "// only a comment\n");
        write("c.toml", "[[agents]]\nname = 'b'\n[[credentials]]\nname = 'k'\nservice = 's'\n");
        write("README.md", "not ours");
        write(".hidden.yaml", "nope");
        let file = TenantFile::read(folder.path()).unwrap();
        assert_eq!(file.kinds(), ["agent", "policy", "credential"]);
        let request = file.into_request().unwrap();
        assert_eq!((request.revision, request.agents.len(), request.policies.len()), (7, 2, 0));
        write("d.yaml", "revision: 8\n");
        assert!(TenantFile::read(folder.path()).unwrap_err().why.contains("another file"));
        write("d.yaml", "agents:\n  - {name: b, disabled: true}\n");
        let error = TenantFile::read(folder.path()).unwrap_err();
        assert!(error.what.ends_with("d.yaml") && error.why.contains("agent `b` is listed in"), "{error}");
        assert!(error.why.contains("c.toml, too") && error.exit as u8 == 2, "{error}");
        write("d.yaml", "agents:\n  - name: d\n  - name: d\n");
        assert!(TenantFile::read(folder.path()).unwrap_err().why.contains("agent `d` is listed twice"));
        write("d.yaml", "agents: []\n");
        fs::create_dir(folder.path().join("sub")).unwrap();
        fs::create_dir(folder.path().join(".git")).unwrap();
        let unread = TenantFile::read(folder.path()).unwrap().unread;
        assert!(matches!(unread.as_slice(), [one] if one.ends_with("sub")), "{unread:?}");
    }
}
