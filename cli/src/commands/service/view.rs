//! How a service is printed. `apply` can read the JSON, YAML and TOML output of `show`.

use std::collections::BTreeMap;

use seks_proto::wire::{self, injection::site::At as Site, token_slot::At as Slot};
use seks_service::spec::{Inject, ServiceSpec};
use serde::Serialize;

use crate::output::{View, rfc3339_or_null};

/// A service with the keys of a service file. `id`, `tenant`, `injection` and `created_at` are
/// added for programs.
#[derive(Serialize)]
pub(super) struct ServiceView {
    id: String,
    pub(super) name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    tenant: String,
    title: String,
    upstream: String,
    base_path: String,
    fields: Vec<String>,
    inject: Inject,
    injection: Vec<String>,
    slots: Vec<String>,
    #[serde(skip)]
    places: Vec<String>,
    allow_private: bool,
    #[serde(skip_serializing_if = "is_false")]
    allow_encoded_slash: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    allow_in_paths: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    methods: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pass_headers: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pass_cookies: Vec<String>,
    #[serde(skip_serializing_if = "is_false")]
    allow_method_override: bool,
    #[serde(skip_serializing_if = "is_false")]
    allow_range: bool,
    #[serde(skip_serializing_if = "is_false")]
    allow_websocket: bool,
    #[serde(skip_serializing_if = "is_false")]
    http2: bool,
    #[serde(skip_serializing_if = "is_false")]
    forward_trace_context: bool,
    #[serde(skip_serializing_if = "is_false")]
    trust_trace_context: bool,
    #[serde(skip_serializing_if = "is_false")]
    tunnel_other_hosts: bool,
    #[serde(skip_serializing_if = "String::is_empty")]
    usage: String,
    #[serde(skip_serializing_if = "is_false")]
    rewrite_urls: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    public: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    keyless_urls: Vec<String>,
    #[serde(skip_serializing_if = "is_false")]
    mcp: bool,
    #[serde(skip_serializing_if = "is_false")]
    mcp_without_headers: bool,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    body_fields: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    first_byte_timeout: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    idle_timeout: Option<String>,
    denied_paths: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    denied_actions: Vec<String>,
    env: BTreeMap<String, String>,
    headers: BTreeMap<String, String>,
    test: Option<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    upstream_ca_pem: String,
    catalogue: Option<String>,
    created_at: Option<String>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_false(value: &bool) -> bool {
    !value
}

impl From<wire::Service> for ServiceView {
    fn from(s: wire::Service) -> Self {
        let spec = ServiceSpec::with_defaults_written_out(&s);
        let text = |text: String| Some(text).filter(|t| !t.is_empty());
        Self {
            id: s.name,
            name: spec.name,
            tenant: s.tenant,
            title: spec.title,
            upstream: spec.upstream,
            base_path: spec.base_path,
            fields: spec.fields,
            inject: spec.inject,
            injection: injection(s.injection.unwrap_or_default()),
            slots: spec.slots,
            places: s.slots.into_iter().filter_map(|s| s.at).map(slot).collect(),
            allow_private: spec.allow_private,
            allow_encoded_slash: spec.allow_encoded_slash,
            allow_in_paths: spec.allow_in_paths,
            methods: spec.methods,
            pass_headers: spec.pass_headers,
            pass_cookies: spec.pass_cookies,
            allow_method_override: spec.allow_method_override,
            allow_range: spec.allow_range,
            allow_websocket: spec.allow_websocket,
            http2: spec.http2,
            forward_trace_context: spec.forward_trace_context,
            trust_trace_context: spec.trust_trace_context,
            tunnel_other_hosts: spec.tunnel_other_hosts,
            usage: spec.usage,
            rewrite_urls: spec.rewrite_urls,
            public: spec.public,
            keyless_urls: spec.keyless_urls,
            mcp: spec.mcp,
            mcp_without_headers: spec.mcp_without_headers,
            body_fields: spec.body_fields,
            first_byte_timeout: spec.first_byte_timeout.map(|t| humantime::format_duration(t).to_string()),
            idle_timeout: spec.idle_timeout.map(|t| humantime::format_duration(t).to_string()),
            denied_paths: spec.denied_paths,
            denied_actions: spec.denied_actions,
            env: spec.env,
            headers: spec.headers,
            test: text(spec.test),
            upstream_ca_pem: spec.upstream_ca_pem,
            catalogue: text(spec.catalogue),
            created_at: rfc3339_or_null(s.created_at),
        }
    }
}

fn injection(injection: wire::Injection) -> Vec<String> {
    let region = |s: &wire::AwsSigV4| if s.region.is_empty() { String::new() } else { format!(" in {}", s.region) };
    let signed = injection.aws_sigv4.map(|s| format!("AWS4-HMAC-SHA256 signature for {}{}", s.service, region(&s)));
    injection.sites.into_iter().filter_map(|s| s.at).map(site).chain(signed).collect()
}

fn site(site: Site) -> String {
    match site {
        Site::Header(h) => format!("header {}: {}", h.name, h.value),
        Site::Query(q) => format!("query ?{}={}", q.name, q.value),
        Site::Basic(template) => format!("basic {template}"),
        Site::Path(template) => format!("path {template}"),
    }
}

fn slot(slot: Slot) -> String {
    match slot {
        Slot::Scheme(scheme) => format!("Authorization: {scheme} {{token}}").replace(":  ", ": "),
        Slot::Header(name) => format!("{name}: {{token}}"),
        Slot::Query(name) => format!("?{name}={{token}}"),
        Slot::Basic(_) => "Authorization: Basic".into(),
        Slot::Path(template) => template,
        Slot::Subprotocol(prefix) => format!("Sec-WebSocket-Protocol: {prefix}{{token}}"),
        Slot::AwsSigv4(_) => "AWS4-HMAC-SHA256 signature".into(),
    }
}

impl View for ServiceView {
    const COLUMNS: &'static [&'static str] = &["name", "title", "upstream"];
    fn row(&self) -> Vec<String> {
        vec![self.name.clone(), self.title.clone(), format!("{}{}", self.upstream, self.base_path)]
    }
    fn detail(&self) -> Vec<(&'static str, String)> {
        let mut detail: Vec<_> = Self::COLUMNS.iter().copied().zip(self.row()).collect();
        let pairs = |map: &BTreeMap<String, String>| map.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>();
        detail.push(("fields", self.fields.join(", ")));
        detail.push(("public fields", self.public.join(", ")));
        detail.push(("key goes to", self.injection.join("\n")));
        detail.push(("token is in", self.places.join("\n")));
        detail.push(("private", if self.allow_private { "allowed".into() } else { String::new() }));
        let said = |on: bool, what: &str| if on { what.to_owned() } else { String::new() };
        detail.push(("URLs in bodies", said(self.rewrite_urls, "rewritten")));
        let fields = self.body_fields.iter().map(|(path, kind)| format!("{path}: {kind}"));
        detail.push(("body fields", fields.collect::<Vec<_>>().join(", ")));
        detail.push(("URLs without a key", self.keyless_urls.join(", ")));
        detail.push(("MCP", said(self.mcp, "policies see `context.mcp`")));
        detail.push(("never", self.denied_paths.join("\n")));
        detail.push(("variables", pairs(&self.env).join("\n")));
        detail.push(("headers", pairs(&self.headers).join("\n")));
        detail.push(("paths with", self.allow_in_paths.join(", ")));
        detail.push(("methods", self.methods.join(", ")));
        detail.push(("passes headers", self.pass_headers.join(", ")));
        detail.push(("passes cookies", self.pass_cookies.join(", ")));
        let overrides = if self.allow_method_override { "allowed" } else { "" };
        detail.push(("method override", overrides.into()));
        detail.push(("test call", self.test.clone().unwrap_or_default()));
        detail.push(("catalogue", self.catalogue.clone().unwrap_or_default()));
        detail
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::{commands::service::file, markup::Syntax};

    #[test]
    fn what_is_shown_of_every_catalogue_entry_can_be_applied_and_changes_nothing() {
        let entries = seks_service::catalogue::entries();
        assert!(entries.len() >= 167, "{}", entries.len());
        let dir = tempfile::tempdir().unwrap();
        for entry in entries {
            let mut service = entry.service.clone();
            if entry.needs_upstream() {
                service.upstream = "https://tenant.example.com".into();
            }
            (service.tenant, service.created_at) = ("default".into(), 1);
            let view = ServiceView::from(service.clone());
            for (name, text) in [
                ("a.json", serde_json::to_string_pretty(&view).unwrap()),
                ("a.yaml", serde_saphyr::to_string(&view).unwrap()),
                ("a.toml", toml::to_string(&view).unwrap()),
            ] {
                let path = dir.path().join(name);
                std::fs::write(&path, &text).unwrap();
                let read = file::read(&path).unwrap_or_else(|error| panic!("{}: {error}: {text}", service.name));
                let read = wire::Service { created_at: service.created_at, ..read };
                assert_eq!(read, service, "{text}");
                assert_eq!(Syntax::of(Path::new("-"), &text), Syntax::of(&path, ""), "{text}");
            }
        }
    }

    #[test]
    fn what_a_file_said_in_its_own_words_is_shown_with_the_same_effect() {
        let dir = tempfile::tempdir().unwrap();
        for (n, inject) in [
            "{ header = 'authorization', value = 'Bearer {key}' }",
            "{ header = 'x-b', headers = { x-a = '{key}', x-c = '{other}' } }",
            "{ headers = { x-b = '{key}', x-a = '{other}' }, basic = '{key}:{other}' }",
            "{ query = { key = '{key}' }, path = '/bot{key}' }",
        ]
        .iter()
        .enumerate()
        {
            let text = format!(
                "name = 'a'\nupstream = 'https://a.test'\ninject = {inject}\nslots = ['scheme:bearer', 'basic']\n\
                                first_byte_timeout = '90s'\nidle_timeout = '80s'\nhttp2 = true\n"
            );
            let (path, again) = (dir.path().join(format!("{n}.toml")), dir.path().join(format!("{n}.json")));
            std::fs::write(&path, text).unwrap();
            let service = file::read(&path).unwrap();
            std::fs::write(&again, serde_json::to_string(&ServiceView::from(service.clone())).unwrap()).unwrap();
            assert_eq!(file::read(&again).unwrap(), service, "{inject}");
        }
    }
}
