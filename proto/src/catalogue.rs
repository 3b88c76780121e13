//! The built-in catalogue: services that many people use, as data (`proto/catalogue.toml`).

use std::{collections::BTreeMap, sync::LazyLock};

use crate::{service::spec::Spec, wire};

/// One service that `seks service enable` knows.
#[derive(Clone, Debug)]
pub struct Entry {
    /// What kind of service it is: `llm`, `platform`, `saas`, ….
    pub group: String,
    /// Its definition, without a tenant. Where every customer has a host of its own the upstream holds a `<placeholder>`.
    pub service: wire::Service,
}

impl Entry {
    /// Enabling it takes `--upstream`: every customer has a host of its own, and `service.upstream` only shows what one looks like.
    #[must_use]
    pub fn needs_upstream(&self) -> bool {
        self.service.upstream.contains('<')
    }
}

const SOURCE: &str = include_str!("../catalogue.toml");

static ENTRIES: LazyLock<Vec<Entry>> = LazyLock::new(|| parse(SOURCE).unwrap_or_default());

/// All entries, by name.
#[must_use]
pub fn entries() -> &'static [Entry] {
    &ENTRIES
}

/// The entry with this name.
#[must_use]
pub fn find(name: &str) -> Option<&'static Entry> {
    let at = ENTRIES.binary_search_by(|e| e.service.name.as_str().cmp(name)).ok()?;
    ENTRIES.get(at)
}

fn parse(text: &str) -> Result<Vec<Entry>, String> {
    let groups: BTreeMap<String, BTreeMap<String, Spec>> = toml::from_str(text).map_err(|e| e.to_string())?;
    let mut entries = Vec::new();
    for (group, specs) in groups {
        for (name, spec) in specs {
            let spec = Spec { catalogue: name.clone(), name, ..spec };
            let service = spec.to_wire("").map_err(|e| format!("{group}.{}: {e}", spec.name))?;
            entries.push(Entry { group: group.clone(), service });
        }
    }
    entries.sort_by(|a, b| a.service.name.cmp(&b.service.name));
    Ok(entries)
}
