//! `seks page`: a link that opens the control plane's page in a browser.

use seks_proto::wire;
use serde::Serialize;

use crate::{
    error::Result,
    global::Global,
    output::{View, rfc3339, until},
};

/// The help's examples.
pub const EXAMPLES: &str = "\
Examples:
  seks page
  open \"$(seks page -o json | jq -r .url)\"

The link opens the page once, within 10 minutes. Whoever opens it reads what this operator may see, for 8 hours, and can
change nothing. A replica has a page when page.listen is set in its control-plane.toml; `seks dev` always has one.";

#[derive(Serialize)]
struct PageView {
    url: String,
    expires_at: String,
    #[serde(skip)]
    expires_seconds: i64,
}

impl View for PageView {
    const COLUMNS: &'static [&'static str] = &["url", "expires"];
    fn row(&self) -> Vec<String> {
        vec![self.url.clone(), until(self.expires_seconds)]
    }
}

/// Prints a link.
///
/// # Errors
/// See [`crate::error`].
pub async fn run(global: &Global) -> Result<()> {
    let client = global.connect().await?;
    let link = client.call("page", client.rpc().create_page_link(wire::CreatePageLinkRequest {})).await?;
    let output = global.output();
    if output.is_table() && !std::io::IsTerminal::is_terminal(&std::io::stdout()) {
        return output.text(&link.url); // `xdg-open "$(seks page)"`
    }
    output.one(&PageView { url: link.url, expires_at: rfc3339(link.expires_at), expires_seconds: link.expires_at })
}
