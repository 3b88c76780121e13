//! Tokens, of which there are a million where there are tens of anything else: read where they
//! arrived, without a copy of each field.

use bytes::Bytes;
use ipnet::IpNet;
use prost::Message as _;
use seks_proto::wire;
use seks_protocol::features;
use seks_trust::{KeySet, TrustRule};
use seks_types::{
    id::{NameError, is_name},
    token::Digest,
};

use super::{DecodeError, Names};
use crate::table::{Change, TokenRecord, TrustRecord};

/// `Change`'s field of a token, as a key: number 6, length-delimited.
const TOKEN: u8 = 6 << 3 | 2;

/// The bytes of a `TableToken`, if `change` is that and nothing else.
pub(super) fn of(change: &Bytes) -> Option<Bytes> {
    let mut rest = change.strip_prefix(&[TOKEN])?;
    let length = prost::encoding::decode_varint(&mut rest).ok()?;
    (u64::try_from(rest.len()).ok()? == length).then(|| change.slice_ref(rest))
}

/// A token to honour. One that can't be enforced here is refused, and no other record with it: its
/// networks can't be read, or it requires a feature that this build lacks. What can't be checked
/// must not be ignored.
pub(super) fn decode(encoded: Bytes, names: &mut Names) -> Result<Change, DecodeError> {
    // Every field, by name: one that is added must be enforced here before this compiles.
    let record = wire::TableToken::decode(encoded)?;
    let wire::TableToken { digest, id, tenant, agent, grants, issued_at, expires_at, cidrs, .. } = record;
    let wire::TableToken { requires, trust, certificate_sha256, .. } = record;
    let digest: Digest = super::digest(&digest)?;
    let id = std::str::from_utf8(&id).ok().filter(|id| is_name(id)).ok_or(DecodeError::Token("id"))?;
    let (tenant, agent) = (names.tenant(&tenant)?, names.agent(&agent)?);
    if let Some(feature) = requires.iter().find(|feature| !features::is_known(feature)) {
        tracing::error!(seks.token.id = id, feature, "a token requires what this version lacks: it is refused here");
        return Ok(Change::RefuseToken { digest, tenant });
    }
    let cidrs: Result<Vec<IpNet>, _> = cidrs.iter().map(|c| c.parse()).collect();
    let Ok(cidrs) = cidrs else {
        tracing::error!(seks.token.id = id, "a token's networks are not readable: it is refused here");
        return Ok(Change::RefuseToken { digest, tenant });
    };
    let Some((trust, certificate)) = bindings(id, &requires, trust.as_ref(), &certificate_sha256) else {
        return Ok(Change::RefuseToken { digest, tenant });
    };
    let grant = |g: &wire::TableGrant| Ok((names.service(&g.service)?, names.credential(&g.credential)?));
    let grants = grants.iter().map(grant).collect::<Result<_, NameError>>()?;
    let id = id.to_owned();
    let record = TokenRecord { digest, id, tenant, agent, grants, issued_at, expires_at, cidrs, certificate, trust };
    Ok(Change::Token(Box::new(record)))
}

type Bindings = (Option<Box<TrustRecord>>, Option<[u8; 32]>);

/// The trust that a record is, and the certificate that a token is bound to. `None`: it cannot be
/// enforced here. A record that requires one of them and has none came through a replica that does
/// not know it.
fn bindings(id: &str, requires: &[String], trust: Option<&wire::Trust>, certificate: &[u8]) -> Option<Bindings> {
    let required = |feature: &str| requires.iter().any(|required| required == feature);
    let certificate: Option<[u8; 32]> = match certificate {
        [] => None,
        bytes => Some(bytes.try_into().ok()?),
    };
    if required(features::TRUST_V1) != trust.is_some() || required(features::CERTIFICATE_V1) != certificate.is_some() {
        tracing::error!(seks.token.id = id, "a token lacks what it requires: it is refused here");
        return None;
    }
    let Some(trust) = trust else { return Some((None, certificate)) };
    let read = || {
        Ok::<_, String>(TrustRecord {
            rule: TrustRule::try_from(trust).map_err(|error| error.to_string())?,
            keys: KeySet::parse(trust.jwks.as_bytes()).map_err(|error| error.to_string())?,
        })
    };
    match read() {
        Ok(record) => Some((Some(Box::new(record)), certificate)),
        Err(error) => {
            tracing::error!(seks.token.id = id, error, "a trust cannot be enforced: it is refused here");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use seks_proto::wire::change::Change as Kind;

    use super::*;

    fn record() -> wire::TableToken {
        wire::TableToken {
            digest: vec![7; 32].into(),
            id: "tok-0123456789abcdef".into(),
            tenant: "acme".into(),
            agent: "bot".into(),
            grants: vec![wire::TableGrant { service: "openai".into(), credential: "main".into() }],
            issued_at: 5,
            expires_at: 6,
            cidrs: vec!["10.0.0.0/8".into()],
            requires: Vec::new(),
            trust: None,
            certificate_sha256: Default::default(),
        }
    }

    fn taken(token: wire::TableToken) -> Result<Change, DecodeError> {
        let change = wire::Change { change: Some(Kind::Token(token)) };
        decode(of(&change.encode_to_vec().into()).unwrap(), &mut Names::default())
    }

    #[test]
    fn every_field_arrives() {
        let Ok(Change::Token(token)) = taken(record()) else { panic!("not a token") };
        assert_eq!((token.digest, &*token.id), (Digest([7; 32]), "tok-0123456789abcdef"));
        assert_eq!((token.tenant.as_str(), token.agent.as_str()), ("acme", "bot"));
        assert_eq!(token.grants, [("openai".parse().unwrap(), "main".parse().unwrap())]);
        assert_eq!((token.issued_at, token.expires_at), (5, 6));
        assert_eq!(token.cidrs, ["10.0.0.0/8".parse().unwrap()]);
    }

    #[test]
    fn what_is_wrong_with_one_is_an_error_and_what_cannot_be_enforced_is_refused() {
        let broken = |change: fn(&mut wire::TableToken)| {
            let mut token = record();
            change(&mut token);
            taken(token)
        };
        assert!(matches!(broken(|t| t.digest.truncate(31)), Err(DecodeError::Token("digest"))));
        assert!(matches!(broken(|t| t.id = "Tok".into()), Err(DecodeError::Token("id"))));
        assert!(matches!(broken(|t| t.agent.clear()), Err(DecodeError::Name(_))));
        assert!(matches!(broken(|t| t.grants[0].service = "a b".into()), Err(DecodeError::Name(_))));
        let requires = |feature: &str| taken(wire::TableToken { requires: vec![feature.into()], ..record() });
        assert!(matches!(requires("of-a-later-version"), Ok(Change::RefuseToken { .. })));
        assert!(matches!(requires(features::POLICY_V1), Ok(Change::Token(_))));
        assert!(matches!(broken(|t| t.cidrs = vec!["10/8".into()]), Ok(Change::RefuseToken { .. })));
    }

    #[test]
    fn only_a_change_that_is_a_token_and_nothing_else_is_taken_for_one() {
        let whole = wire::Change { change: Some(Kind::Token(record())) }.encode_to_vec();
        let mut two = whole.clone();
        two.extend(wire::Change { change: Some(Kind::Tenant(wire::TableTenant { name: "x".into() })) }.encode_to_vec());
        assert!(of(&two.into()).is_none(), "the last field of a oneof counts");
        assert!(of(&Bytes::copy_from_slice(&whole[..whole.len() - 1])).is_none());
        assert!(of(&Bytes::new()).is_none() && of(&Bytes::from_static(&[TOKEN])).is_none());
        assert_eq!(of(&Bytes::from_static(&[TOKEN, 0])), Some(Bytes::new()));
    }
}
