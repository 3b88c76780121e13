//! What a 401 offers for a service.

use super::{Service, TokenSlot};

impl Service {
    /// The schemes of `Authorization` in which an agent may present its token, in the order of the
    /// slots, each once.
    #[must_use]
    pub fn auth_schemes(&self) -> Vec<&str> {
        let mut schemes: Vec<&str> = Vec::new();
        for slot in &self.slots {
            let scheme = match slot {
                TokenSlot::Scheme(scheme) if !scheme.is_empty() => scheme,
                TokenSlot::Basic(_) => "Basic",
                _ => continue,
            };
            if !schemes.iter().any(|known| known.eq_ignore_ascii_case(scheme)) {
                schemes.push(scheme);
            }
        }
        schemes
    }
}
