//! The built-in catalogue: definitions of widely used services, as data
//! (`crates/service/catalogue.toml`).

use std::{collections::BTreeMap, sync::LazyLock};

use seks_proto::wire;

use crate::spec::ServiceSpec;

/// One entry of the catalogue, for `seks service enable`.
#[derive(Clone, Debug)]
pub struct CatalogueEntry {
    /// The kind of service: `llm`, `platform`, `saas`, ….
    pub group: String,
    /// The definition, without a tenant. The upstream holds a `<placeholder>` when each customer
    /// has a host of its own.
    pub service: wire::Service,
}

impl CatalogueEntry {
    /// Whether `enable` needs `--upstream`, because `service.upstream` holds a placeholder.
    #[must_use]
    pub fn needs_upstream(&self) -> bool {
        self.service.upstream.contains('<')
    }
}

const SOURCE: &str = include_str!("../catalogue.toml");

static ENTRIES: LazyLock<Vec<CatalogueEntry>> = LazyLock::new(|| parse(SOURCE).unwrap_or_default());

/// All entries, sorted by name.
#[must_use]
pub fn entries() -> &'static [CatalogueEntry] {
    &ENTRIES
}

/// The entry with this name.
#[must_use]
pub fn find(name: &str) -> Option<&'static CatalogueEntry> {
    let at = ENTRIES.binary_search_by(|e| e.service.name.as_str().cmp(name)).ok()?;
    ENTRIES.get(at)
}

fn parse(text: &str) -> Result<Vec<CatalogueEntry>, String> {
    let groups: BTreeMap<String, BTreeMap<String, ServiceSpec>> = toml::from_str(text).map_err(|e| e.to_string())?;
    let mut entries = Vec::new();
    for (group, specs) in groups {
        for (name, spec) in specs {
            let spec = ServiceSpec { catalogue: name.clone(), name, ..spec };
            let service = spec.to_wire("").map_err(|e| format!("{group}.{}: {e}", spec.name))?;
            entries.push(CatalogueEntry { group: group.clone(), service });
        }
    }
    entries.sort_by(|a, b| a.service.name.cmp(&b.service.name));
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        InjectionSite, Service, TokenSlot,
        request::{PathRules, Target},
        test_call::{TestCall, Verdict},
    };

    fn service(name: &str) -> Service {
        checked(find(name).unwrap_or_else(|| panic!("{name}")))
    }

    /// The entry as it is enabled, with a host in place of the placeholder.
    fn checked(entry: &CatalogueEntry) -> Service {
        let mut wire = wire::Service { tenant: "default".into(), ..entry.service.clone() };
        if let Some((before, rest)) = wire.upstream.split_once('<') {
            wire.upstream = [before, "example", rest.split_once('>').unwrap().1].concat();
        }
        Service::try_from(&wire).unwrap_or_else(|e| panic!("{}: {e}", wire.name))
    }

    #[test]
    fn every_service_of_the_list_has_an_entry() {
        let list = include_str!("../../../tests/data/catalogue.txt");
        let lines = list.lines().filter(|line| !line.starts_with(['#', '!']));
        let wanted: std::collections::BTreeSet<&str> = lines.flat_map(str::split_whitespace).collect();
        let missing: Vec<_> = wanted.iter().filter(|name| find(name).is_none()).collect();
        assert!(missing.is_empty(), "no entry: {missing:?}");
        assert!(wanted.len() >= 140, "{} names", wanted.len());
    }

    #[test]
    fn every_entry_is_a_service() {
        let parsed = parse(SOURCE).unwrap();
        assert_eq!(parsed.len(), entries().len());
        assert!(parsed.len() >= 80, "{} entries", parsed.len());
        for entry in &parsed {
            let service = checked(entry);
            assert_eq!(service.catalogue, entry.service.name);
            assert!(!service.title.is_empty() && service.title.len() < 60, "{}", service.name);
            assert!(service.upstream.tls() && !service.allow_private, "{}", service.name);
            assert!(!crate::is_reserved_name(service.name.as_str()), "{}", service.name);
        }
    }

    #[test]
    fn names_are_unique_and_groups_and_names_stand_in_order() {
        let headers: Vec<&str> = SOURCE.lines().filter_map(|l| l.strip_prefix('[')?.strip_suffix(']')).collect();
        assert_eq!(headers.len(), entries().len());
        assert!(headers.is_sorted(), "{:?}", headers.windows(2).find(|w| w[0] > w[1]));
        assert!(entries().windows(2).all(|w| w[0].service.name < w[1].service.name), "a name stands in two groups");
        for entry in entries() {
            assert!(std::ptr::eq(find(&entry.service.name).unwrap(), entry));
        }
        assert!(find("nope").is_none());
    }

    #[test]
    fn every_template_of_the_environment_can_be_filled_in() {
        for entry in entries() {
            let (env, name) = (&entry.service.env, &entry.service.name);
            for (variable, template) in env {
                let word = |b: u8| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_';
                assert!(variable.bytes().all(word) && !variable.as_bytes()[0].is_ascii_digit(), "{name}: {variable}");
                let names = ["base", "token", "host", "aws_access_key_id", "aws_secret_access_key", "aws_region"];
                let fill = |text: String, name| text.replace(&format!("{{{name}}}"), "X");
                let filled = names.into_iter().fold(template.clone(), fill);
                assert!(!filled.contains(['{', '}', ' ', '"']), "{name}: {template}");
            }
            let has_token = |t: &String| t.contains("{token}") || t.contains("{aws_secret_access_key}");
            assert!(env.is_empty() || env.values().any(has_token), "{name} never gets its token");
        }
    }

    #[test]
    fn a_base_url_works_with_and_without_the_base_path() {
        for entry in entries() {
            let service = checked(entry);
            let with = [service.base_path.as_str(), "/x"].concat();
            let (a, b) = (Target::parse(&service, "/x").unwrap(), Target::parse(&service, &with).unwrap());
            assert_eq!((a.path(), b.path()), (with.as_str(), with.as_str()), "{}", service.name);
            for denied in &entry.service.denied_paths {
                let path = denied.split_once(' ').unwrap().1;
                let below = path.starts_with(&service.base_path) || path.starts_with("/*");
                assert!(below, "{}: {denied} is out of the base path and never matches", service.name);
            }
        }
    }

    #[test]
    fn a_test_call_is_one_that_an_agent_may_make() {
        let mut with = 0;
        for entry in entries() {
            let (service, name) = (checked(entry), &entry.service.name);
            let Some(call) = TestCall::parse(&entry.service.test).unwrap_or_else(|e| panic!("{name}: {e}")) else {
                continue;
            };
            with += 1;
            let target = Target::parse(&service, &call.target).unwrap_or_else(|e| panic!("{name}: {e}"));
            let denied = service.denied_paths.iter().any(|d| d.matches(&call.method, target.path()));
            assert!(!denied, "{name}: its own denied_paths refuse {}", call.target);
            assert!(target.path().starts_with(&service.base_path), "{name}");
            assert_eq!(call.verdict(401, b""), Verdict::Rejected, "{name}");
            assert!(call.body.is_none() || call.method == http::Method::POST, "{name}");
        }
        assert!(with >= 90, "{with} entries have a test call");
    }

    #[test]
    fn an_entry_can_be_written_out_and_read_again() {
        for entry in entries() {
            let text = toml::to_string(&ServiceSpec::from(&entry.service)).unwrap();
            let again: ServiceSpec = toml::from_str(&text).unwrap_or_else(|e| panic!("{e}\n{text}"));
            assert_eq!(again.to_wire("").unwrap(), entry.service, "{text}");
        }
    }

    #[test]
    fn the_token_stands_where_the_sdks_put_their_key() {
        let scheme = |s: &str| TokenSlot::Scheme(s.into());
        assert!(service("openai").slots.contains(&scheme("Bearer")));
        assert!(service("github").slots.contains(&scheme("token")));
        assert!(service("github").slots.iter().any(|s| matches!(s, TokenSlot::Basic(_))));
        assert!(service("gemini").slots.contains(&TokenSlot::Query("key".into())));
        assert!(service("gemini").slots.contains(&TokenSlot::Header("x-goog-api-key".parse().unwrap())));
        assert!(service("telegram").slots.contains(&TokenSlot::Path("bot".into(), String::new())));
        assert!(matches!(service("twilio").injection.as_slice(), [InjectionSite::Basic(_)]));
        assert_eq!(service("datadog").fields, ["api_key", "app_key"]);
        assert_eq!(service("supabase").injection.len(), 2);
        assert!(service("gitlab").path_rules.allow(PathRules::ENCODED_SLASH));
        assert!(find("shopify").unwrap().needs_upstream() && !find("openai").unwrap().needs_upstream());
    }

    #[test]
    fn endpoints_that_hand_out_keys_are_denied() {
        for (name, method, path) in [
            ("openai", "POST", "/v1/organization/admin_api_keys"),
            ("openai", "POST", "/v1/realtime/client_secrets"),
            ("github", "POST", "/app/installations/7/access_tokens"),
            ("gitlab", "POST", "/api/v4/projects/group%2Fproject/access_tokens"),
            ("twilio", "GET", "/2010-04-01/Accounts/AC7.json"),
            ("sendgrid", "POST", "/v3/api_keys"),
            ("slack", "POST", "/api/oauth.v2.access"),
            ("vercel", "POST", "/v3/user/tokens"),
        ] {
            let denied = service(name).denied_paths.iter().any(|d| d.matches(&method.parse().unwrap(), path));
            assert!(denied, "{name}: {method} {path}");
        }
        let openai = service("openai");
        assert!(!openai.denied_paths.iter().any(|d| d.matches(&http::Method::POST, "/v1/chat/completions")));
    }
}
