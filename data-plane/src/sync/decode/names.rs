//! Names that have been seen before, shared: a table of a million tokens has few of them.

use std::{
    borrow::Borrow,
    collections::HashSet,
    hash::{BuildHasher, Hash},
};

use seks_types::id::{AgentName, CredentialName, NameError, ServiceName, TenantName};

/// Most that are remembered of a kind. What is beyond that costs time, not memory.
const MAX: usize = 16 * 1024;

type Set<N> = HashSet<N, foldhash::fast::RandomState>;

/// The names of one stream.
#[derive(Default)]
pub(in crate::sync) struct Names {
    tenants: Set<TenantName>,
    agents: Set<AgentName>,
    services: Set<ServiceName>,
    credentials: Set<CredentialName>,
}

impl Names {
    pub(super) fn tenant(&mut self, text: &[u8]) -> Result<TenantName, NameError> {
        known(&mut self.tenants, text)
    }

    pub(super) fn agent(&mut self, text: &[u8]) -> Result<AgentName, NameError> {
        known(&mut self.agents, text)
    }

    pub(super) fn service(&mut self, text: &[u8]) -> Result<ServiceName, NameError> {
        known(&mut self.services, text)
    }

    pub(super) fn credential(&mut self, text: &[u8]) -> Result<CredentialName, NameError> {
        known(&mut self.credentials, text)
    }
}

fn known<'t, N, H>(names: &mut HashSet<N, H>, text: &'t [u8]) -> Result<N, NameError>
where
    N: Borrow<str> + TryFrom<&'t str, Error = NameError> + Clone + Eq + Hash,
    H: BuildHasher,
{
    // What isn't text isn't a name either, and the empty one says so.
    let text = std::str::from_utf8(text).unwrap_or_default();
    if let Some(known) = names.get(text) {
        return Ok(known.clone());
    }
    let new = N::try_from(text)?;
    if names.len() == MAX {
        names.clear();
    }
    names.insert(new.clone());
    Ok(new)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn a_name_is_made_once_and_what_is_none_is_refused() {
        let mut names = Names::default();
        let (first, second) = (names.agent(b"bot").unwrap().shared(), names.agent(b"bot").unwrap().shared());
        assert!(Arc::ptr_eq(&first, &second));
        assert!(names.agent(b"Bot").is_err() && names.tenant(b"").is_err() && names.service(&[0xff]).is_err());
        assert_eq!(names.credential(b"bot").unwrap().as_str(), "bot");
    }

    #[test]
    fn only_so_many_are_remembered() {
        let mut names = Names::default();
        for n in 0..=MAX {
            names.agent(format!("bot-{n}").as_bytes()).unwrap();
        }
        assert_eq!(names.agents.len(), 1);
    }
}
