//! A secret in 1Password, by a Connect server.

use http::header;
use seks_types::secret::Secret;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::{
    Access, MintError, Minted,
    endpoint::{Endpoint, encoded, sensitive},
    reference,
};

/// What an operator stores: which field of which item, and the Connect server's token.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Reference {
    /// The Connect server, `https://connect.example:8080`.
    address: String,
    /// An access token that may read the vault.
    token: String,
    /// The vault's id or name.
    vault: String,
    /// The item's id or title.
    item: String,
    /// The field's id or label. Default: the item's only concealed field.
    #[serde(default)]
    field: String,
    /// Seconds between two reads. Default: 300.
    #[serde(default = "reference::default_refresh")]
    refresh_seconds: u64,
}

/// Reads a field of an item.
pub(super) async fn read(secret: &Secret, access: &Access) -> Result<Minted, MintError> {
    let expects = "address, token, vault, item; optionally field, refresh_seconds";
    let reference: Reference = reference::parse(secret, expects)?;
    reference::check_refresh(reference.refresh_seconds)?;
    let server = Server { reference: &reference, access };
    let vault = server.find("v1/vaults", "name", &reference.vault, "vault").await?;
    let items = format!("v1/vaults/{vault}/items");
    let item = server.find(&items, "title", &reference.item, "item").await?;
    let item = server.get(&format!("{items}/{item}")).await?;
    let fields = fields_of(&item, &reference.field);
    access.select(&reference.field, reference.refresh_seconds).of_object(&fields)
}

struct Server<'a> {
    reference: &'a Reference,
    access: &'a Access,
}

impl Server<'_> {
    /// The id of what has this id or this name.
    async fn find(&self, path: &str, attribute: &str, name: &str, noun: &str) -> Result<String, MintError> {
        if is_id(name) {
            return Ok(name.to_owned());
        }
        if name.is_empty() || name.len() > 256 || name.chars().any(|c| c.is_control() || c == '"' || c == '\\') {
            return Err(MintError::Invalid(format!("field `{noun}` is an id or a name")));
        }
        let filter = encoded(&format!("{attribute} eq \"{name}\""));
        let found = self.get(&format!("{path}?filter={filter}")).await?;
        let ids: Vec<&str> = found.as_array().into_iter().flatten().filter_map(|one| one.get("id")?.as_str()).collect();
        match ids.as_slice() {
            [id] if is_id(id) => Ok((*id).to_owned()),
            [] => Err(MintError::Invalid(format!(
                "field `{noun}`: there is none of this name, or the token may not read it"
            ))),
            _ => Err(MintError::Invalid(format!("field `{noun}`: several have this name, so give the id"))),
        }
    }

    async fn get(&self, path: &str) -> Result<Value, MintError> {
        let url = format!("{}/{path}", self.reference.address.trim_end_matches('/'));
        let endpoint = Endpoint::parse(&url, self.access.rules.clone())?;
        let mut headers = endpoint.head()?;
        headers.insert(header::AUTHORIZATION, sensitive(&format!("Bearer {}", self.reference.token))?);
        endpoint.read_json(endpoint.get(headers)?).await
    }
}

/// Fields by id and label that `wanted` names; for `""` the concealed ones.
fn fields_of(item: &Value, wanted: &str) -> Map<String, Value> {
    let mut found = Map::new();
    for field in item.get("fields").and_then(Value::as_array).into_iter().flatten() {
        let text = |name: &str| field.get(name).and_then(Value::as_str).unwrap_or_default();
        let is_meant =
            if wanted.is_empty() { text("type") == "CONCEALED" } else { [text("id"), text("label")].contains(&wanted) };
        if let (true, Some(value)) = (is_meant, field.get("value")) {
            let name = if text("label").is_empty() { text("id") } else { text("label") };
            found.insert(if wanted.is_empty() { name } else { wanted }.to_owned(), value.clone());
        }
    }
    found
}

/// 26 characters of a-z and 0-9.
fn is_id(text: &str) -> bool {
    text.len() == 26 && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_field_is_named_by_its_id_or_label() {
        let item = json!({ "fields": [
            { "id": "username", "type": "STRING", "label": "user", "value": "me" },
            { "id": "credential", "type": "CONCEALED", "label": "api key", "value": "k1" },
        ] });
        for (wanted, want) in [
            ("", json!({ "api key": "k1" })),
            ("user", json!({ "user": "me" })),
            ("credential", json!({ "credential": "k1" })),
            ("none", json!({})),
        ] {
            assert_eq!(Value::Object(fields_of(&item, wanted)), want, "{wanted}");
        }
    }
}
