//! Lists in parts: what a listing costs in memory doesn't grow with what a tenant has.

use prost::Message;
use seks_types::id::TenantName;

use super::{Registry, RegistryError, record::Stored};
use crate::store::key::prefix;

/// Records that are read at once, and most in a page.
const PAGE: usize = 1000;
/// Bytes of the records in one page, unless the first is larger. Clients of gRPC take 4 MiB unless
/// they say otherwise.
const PAGE_BYTES: usize = 2 * 1024 * 1024;
/// Most records in a list without pages.
const WHOLE: usize = 10_000;
/// Longest page token, in bytes: a name.
const TOKEN_BYTES: usize = 256;

/// Which part of a list.
#[derive(Clone, Debug, Default)]
pub struct PageRequest {
    /// Most records; over 1000 is 1000; 0: all of them.
    pub size: u32,
    /// Where the page before ended; `""`: at the beginning.
    pub token: String,
}

impl Registry {
    /// A tenant's records of one kind, by name, and the token of the next page, `""` at the end.
    ///
    /// # Errors
    /// [`RegistryError::NotFound`] for the tenant; [`RegistryError::Invalid`] for the token;
    /// [`RegistryError::TooMany`] when all of them are asked for and they are over 10,000.
    pub async fn page<T: Message + Default>(
        &self,
        tenant: &TenantName,
        kind: &'static str,
        PageRequest { size, token }: &PageRequest,
    ) -> Result<(Vec<T>, String), RegistryError> {
        self.load_tenant(tenant).await?;
        if token.len() > TOKEN_BYTES || token.contains('/') || token.chars().any(char::is_control) {
            return Err(RegistryError::invalid("page_token", "not the `next_page_token` of an answer"));
        }
        let prefix = prefix::kind(tenant, kind);
        if *size == 0 {
            return Ok((self.whole(&prefix, kind).await?, String::new()));
        }
        let after = if token.is_empty() { String::new() } else { format!("{prefix}{token}") };
        let most = usize::try_from(*size).unwrap_or(PAGE).min(PAGE);
        let page = self.store.list_page(&prefix, &after, most).await?;
        let (mut values, mut bytes, mut last, mut next) = (Vec::new(), 0, None, page.next);
        for record in page.records {
            bytes += record.value.len();
            if bytes > PAGE_BYTES && !values.is_empty() {
                next = last;
                break;
            }
            let path = record.key.to_string();
            values.push(T::decode(record.value).map_err(|_| RegistryError::Corrupt { key: path.clone() })?);
            last = Some(path);
        }
        let token = next.and_then(|path| path.strip_prefix(&prefix).map(str::to_owned));
        Ok((values, token.unwrap_or_default()))
    }

    async fn whole<T: Message + Default>(&self, prefix: &str, kind: &'static str) -> Result<Vec<T>, RegistryError> {
        let (mut all, mut pages) = (Vec::new(), self.pages(prefix));
        while let Some(page) = pages.next::<T>().await? {
            all.extend(page.into_iter().map(|stored| stored.value));
            if all.len() > WHOLE {
                return Err(RegistryError::TooMany { kind, limit: WHOLE });
            }
        }
        Ok(all)
    }

    /// Every record below `prefix`, a page at a time.
    pub(super) fn pages(&self, prefix: &str) -> Pages<'_> {
        Pages { registry: self, prefix: prefix.into(), after: Some(String::new()) }
    }
}

/// A listing on its way.
pub(super) struct Pages<'a> {
    registry: &'a Registry,
    prefix: String,
    /// `None`: the last page has been read.
    after: Option<String>,
}

impl Pages<'_> {
    /// The next page, which may be empty; `None` at the end.
    pub(super) async fn next<T: Message + Default>(&mut self) -> Result<Option<Vec<Stored<T>>>, RegistryError> {
        let Some(after) = self.after.take() else { return Ok(None) };
        let page = self.registry.store.list_page(&self.prefix, &after, PAGE).await?;
        self.after = page.next;
        let decoded = page.records.into_iter().map(|record| match T::decode(record.value) {
            Ok(value) => Ok(Stored { key: record.key, value, modified: record.modified }),
            Err(_) => Err(RegistryError::Corrupt { key: record.key.to_string() }),
        });
        decoded.collect::<Result<_, _>>().map(Some)
    }
}
