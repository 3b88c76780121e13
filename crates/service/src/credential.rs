//! What a service asks of a credential's fields, beside their names.

use seks_types::secret::Fields;

use super::{InjectionSite, Service};

impl Service {
    /// Gives the field that cannot stand where the service puts it: a user name of HTTP Basic holds
    /// no colon, because servers split `user:password` at the first (RFC 7617, 2).
    #[must_use]
    pub fn unusable_field(&self, fields: &Fields) -> Option<&str> {
        let basic = self.injection.iter().filter_map(|site| match site {
            InjectionSite::Basic(template) => Some(template),
            _ => None,
        });
        let mut users = basic.flat_map(|template| template.fields_before(':'));
        users.find(|name| fields.get(name).is_some_and(|value| value.contains(&b':')))
    }
}

#[cfg(test)]
mod tests {
    use seks_types::secret::{Fields, Secret};

    #[test]
    fn a_user_name_of_basic_holds_no_colon() {
        let file = "name = 'a'\nupstream = 'https://a.test'\ninject = { basic = '{user}:{secret}' }";
        let spec: crate::spec::ServiceSpec = toml::from_str(file).unwrap();
        let service = spec.to_service("default").unwrap();
        let unusable = |json: &str| {
            let fields = Fields::parse(&service.fields, &Secret::new(json.into())).unwrap();
            service.unusable_field(&fields).map(str::to_owned)
        };
        assert_eq!(unusable(r#"{"user":"a:b","secret":"c"}"#).as_deref(), Some("user"));
        assert_eq!(unusable(r#"{"user":"ab","secret":"c:d"}"#), None);
    }
}
