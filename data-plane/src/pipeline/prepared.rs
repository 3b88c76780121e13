//! What is made once for a service and a version of its credential, and used by all requests with
//! them.

use std::sync::Arc;

use base64::Engine as _;
use bytes::Bytes;
use http::{HeaderName, HeaderValue, header};
use seks_service::{InjectionSite, Service, Template};
use seks_types::{secret::Fields, token::aws};
use zeroize::Zeroize as _;

use super::{scrub::Needles, signed_url::UrlKey};

/// What is the same for every request with one version of one credential to one service: made once,
/// kept beside the pool of connections for exactly that, dropped with it. It holds the credential
/// in the forms that are searched for and in the headers that are sent: for as long, the
/// connections' own buffers do too.
pub(crate) struct PreparedInjection {
    pub(super) needles: Needles,
    pub(super) host: HeaderValue,
    /// What each of the service's sites puts in, where that is a header of its own: the same bytes
    /// for every request.
    pub(super) headers: Vec<Option<(HeaderName, HeaderValue)>>,
    /// Signs URLs that are used without a key, if the credential brings the tenant's key along.
    pub(super) url_key: Option<Arc<UrlKey>>,
}

impl PreparedInjection {
    pub(super) fn new(service: &Service, fields: &Fields) -> Option<Self> {
        let host = service.upstream.host_header().ok()?;
        let is_secret = |name: &str| name != aws::KEY_FIELD && !service.public.iter().any(|public| public == name);
        // Beside the fields themselves: what Basic makes of them is one value to an upstream that
        // decodes it. It is a secret where a part of it is.
        let pairs = service.injection.iter().filter_map(|site| match site {
            InjectionSite::Basic(template)
                if service.fields.iter().any(|f| is_secret(f) && template.contains_field(f)) =>
            {
                plain(template, fields)
            }
            _ => None,
        });
        let mut pairs: Vec<Vec<u8>> = pairs.collect();
        let secrets = fields.iter().filter(|(name, _)| std::str::from_utf8(name).is_ok_and(is_secret));
        let needles = Needles::new(secrets.map(|(_, value)| value).chain(pairs.iter().map(Vec::as_slice)));
        pairs.iter_mut().for_each(zeroize::Zeroize::zeroize);
        let headers = service.injection.iter().map(|site| rendered(site, fields)).collect::<Option<_>>()?;
        let url_key = UrlKey::of(fields).map(Arc::new);
        Some(Self { needles, host, headers, url_key })
    }
}

/// The fields that a signed request is made with: not the one that agents' own signatures are
/// verified with.
fn injected(fields: &Fields) -> impl Iterator<Item = &[u8]> {
    fields.iter().filter(|(name, _)| *name != aws::KEY_FIELD.as_bytes()).map(|(_, value)| value)
}

/// A signature is put into one request only.
pub(super) fn needles_with_signature(fields: &Fields, signature: &str) -> Needles {
    Needles::new(injected(fields).chain([signature.as_bytes()]))
}

/// The header that a site is; within, `None`: it is none. `None` when it can't be written.
#[allow(clippy::option_option, reason = "collected into one")]
fn rendered(site: &InjectionSite, fields: &Fields) -> Option<Option<(HeaderName, HeaderValue)>> {
    let (name, value) = match site {
        InjectionSite::Header(name, template) => (name.clone(), plain(template, fields)?),
        InjectionSite::Basic(template) => {
            let mut pair = plain(template, fields)?;
            let mut value = Vec::with_capacity(6 + pair.len().div_ceil(3) * 4);
            value.extend_from_slice(b"Basic ");
            let mut encoded = base64::engine::general_purpose::STANDARD.encode(&pair);
            value.extend_from_slice(encoded.as_bytes());
            encoded.zeroize();
            pair.zeroize();
            (header::AUTHORIZATION, value)
        }
        InjectionSite::Query(..) | InjectionSite::Path(_) => return Some(None),
    };
    // No copy: the wiping allocator clears the one there is.
    let mut value = HeaderValue::from_maybe_shared(Bytes::from(value)).ok()?;
    value.set_sensitive(true);
    Some(Some((name, value)))
}

/// Renders fields as they are, into a buffer of just their length: `Bytes` then takes it as it is.
fn plain(template: &Template, fields: &Fields) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(template.plain_len(fields)?);
    template.render(fields, &mut out, |b, o| o.extend_from_slice(b))?;
    Some(out)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use seks_service::spec::ServiceSpec;
    use seks_types::secret::Secret;

    use super::*;
    use crate::pipeline::{audit::Counters, scrub::Messages};

    /// What an agent reads of a text, with these lines in the service's definition.
    fn read(lines: &str, credential: &serde_json::Value, text: &str) -> String {
        let definition = format!("name = 'acme'\nupstream = 'https://acme.test'\n{lines}");
        let service = toml::from_str::<ServiceSpec>(&definition).unwrap().to_service("default").unwrap();
        let fields = Fields::parse(&service.fields, &Secret::new(credential.to_string().into_bytes())).unwrap();
        let needles = PreparedInjection::new(&service, &fields).unwrap().needles;
        let clean = Messages::new(needles, Arc::<Counters>::default()).alone(text.as_bytes());
        clean.map_or(text.to_owned(), |clean| String::from_utf8(clean).unwrap())
    }

    const BASIC: &str = "inject = { basic = '{user}:{secret}' }\npublic = ['user']";

    #[test]
    fn a_public_field_is_searched_for_nowhere_it_is_injected() {
        let lines =
            "inject = { headers = { a = '{user}', b = '{user}-{secret}' }, path = '/{user}' }\npublic = ['user']";
        let credential = serde_json::json!({"user": "elastic", "secret": "s3cr3t-value"});
        assert_eq!(
            read(lines, &credential, "elasticsearch elastic-s3cr3t-value"),
            "elasticsearch elastic-************"
        );
    }

    proptest! {
        #[test]
        fn nothing_public_is_masked_and_no_secret_is_missed(
            user in "[a-z0-9@.]{1,24}", secret in "[A-Z0-9_-]{12,40}", before in "[a-z \"/]{0,12}", after in "[a-z \"/]{0,12}",
        ) {
            use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
            let credential = serde_json::json!({"user": user, "secret": secret});
            let public = format!("{before}{user}{after}/{user}search");
            prop_assert_eq!(read(BASIC, &credential, &public), public);

            let hex: String = secret.bytes().map(|byte| format!("{byte:02x}")).collect();
            let pair = format!("{user}:{secret}");
            for hidden in [secret.clone(), pair.clone(), STANDARD.encode(&pair), STANDARD_NO_PAD.encode(&secret), hex] {
                let text = format!("{before}|{hidden}|{after}");
                let seen = read(BASIC, &credential, &text);
                // Of base64 the characters that hold bits of what stands beside the value may stay.
                let core = hidden.get(4..hidden.len() - 4).unwrap();
                prop_assert!(!seen.contains(&hidden) && !seen.contains(core), "{} in {}", hidden, seen);
                prop_assert_eq!(seen.len(), text.len());
            }
        }
    }
}
