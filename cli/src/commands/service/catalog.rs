//! `seks service catalog`: the built-in catalogue by group.

use seks_proto::wire;
use serde::Serialize;

use super::view::ServiceView;
use crate::{error::Result, global::Global, output::View};

/// An entry, as a service and with its group.
#[derive(Serialize)]
struct EntryView {
    group: String,
    #[serde(flatten)]
    service: ServiceView,
    /// The first entry of its group. Only its row shows the group's name.
    #[serde(skip)]
    heads: bool,
}

impl View for EntryView {
    const COLUMNS: &'static [&'static str] = &["group", "name", "title", "upstream"];
    fn row(&self) -> Vec<String> {
        let group = if self.heads { self.group.clone() } else { String::new() };
        std::iter::once(group).chain(self.service.row()).collect()
    }
}

/// Prints the entries that contain the search text.
///
/// # Errors
/// See [`crate::error`].
pub(super) async fn run(global: &Global, search: String) -> Result<()> {
    let client = global.connect().await?;
    let request = wire::ListCatalogueRequest { search };
    let mut answer = client.call("catalogue", client.rpc().list_catalogue(request)).await?;
    let mut entries: Vec<_> = answer
        .services
        .into_iter()
        .map(|service| {
            let group = answer.groups.remove(&service.name).unwrap_or_default();
            EntryView { group, service: service.into(), heads: false }
        })
        .collect();
    entries.sort_by(|a, b| (&a.group, &a.service.name).cmp(&(&b.group, &b.service.name)));
    let mut group = None;
    for entry in &mut entries {
        entry.heads = group.replace(entry.group.clone()).as_ref() != Some(&entry.group);
    }
    global.output().list("entries", &entries)
}
