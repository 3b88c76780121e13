//! Tokens, of which there are a million where there are tens of anything else: taken from the message's own bytes, without a copy of
//! each field.

use bytes::Bytes;
use ipnet::IpNet;
use prost::Message;
use seks_types::{
    id::{NameError, is_name},
    token::Digest,
};

use super::{DecodeError, Names, digest};
use crate::table::{Change, TokenRecord};

/// `Change`'s field of a token, as a key: number 6, length-delimited.
const TOKEN: u8 = 6 << 3 | 2;

/// `TableToken`, each field a piece of the message that it came in.
#[derive(Clone, PartialEq, Message)]
struct Encoded {
    #[prost(bytes = "bytes", tag = "1")]
    digest: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    id: Bytes,
    #[prost(bytes = "bytes", tag = "3")]
    tenant: Bytes,
    #[prost(bytes = "bytes", tag = "4")]
    agent: Bytes,
    #[prost(message, repeated, tag = "5")]
    grants: Vec<EncodedGrant>,
    #[prost(int64, tag = "6")]
    issued_at: i64,
    #[prost(int64, tag = "7")]
    expires_at: i64,
    #[prost(string, repeated, tag = "8")]
    cidrs: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
struct EncodedGrant {
    #[prost(bytes = "bytes", tag = "1")]
    service: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    credential: Bytes,
}

/// The bytes of a `TableToken`, if `change` is that and nothing else.
pub(super) fn of(change: &Bytes) -> Option<Bytes> {
    let mut rest = change.strip_prefix(&[TOKEN])?;
    let length = prost::encoding::decode_varint(&mut rest).ok()?;
    (u64::try_from(rest.len()).ok()? == length).then(|| change.slice_ref(rest))
}

/// A token to honour; one whose networks can't be read is revoked instead: what can't be checked must not be ignored.
pub(super) fn decode(encoded: Bytes, names: &mut Names) -> Result<Change, DecodeError> {
    let token = Encoded::decode(encoded)?;
    let digest: Digest = digest(&token.digest)?;
    let id = std::str::from_utf8(&token.id).ok().filter(|id| is_name(id)).ok_or(DecodeError::Token("id"))?;
    let (tenant, agent) = (names.tenant(&token.tenant)?, names.agent(&token.agent)?);
    let cidrs: Result<Vec<IpNet>, _> = token.cidrs.iter().map(|c| c.parse()).collect();
    let Ok(cidrs) = cidrs else {
        tracing::error!(seks.token.id = id, "a token's networks are not readable: it is not honoured");
        return Ok(Change::RevokeToken { digest, id: id.to_owned(), tenant, agent, until: 0 });
    };
    let grant = |g: &EncodedGrant| Ok((names.service(&g.service)?, names.credential(&g.credential)?));
    let grants = token.grants.iter().map(grant).collect::<Result<_, NameError>>()?;
    let (issued_at, expires_at) = (token.issued_at, token.expires_at);
    Ok(Change::Token(Box::new(TokenRecord {
        digest,
        id: id.to_owned(),
        tenant,
        agent,
        grants,
        issued_at,
        expires_at,
        cidrs,
    })))
}

#[cfg(test)]
mod tests {
    use seks_proto::wire::{self, change::Change as Kind};

    use super::*;

    fn record() -> wire::TableToken {
        wire::TableToken {
            digest: vec![7; 32],
            id: "tok-0123456789abcdef".into(),
            tenant: "acme".into(),
            agent: "bot".into(),
            grants: vec![wire::Grant { service: "openai".into(), credential: "main".into() }],
            issued_at: 5,
            expires_at: 6,
            cidrs: vec!["10.0.0.0/8".into()],
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
    fn what_is_wrong_with_one_is_an_error_and_a_network_that_is_none_revokes() {
        let broken = |change: fn(&mut wire::TableToken)| {
            let mut token = record();
            change(&mut token);
            taken(token)
        };
        assert!(matches!(broken(|t| t.digest.truncate(31)), Err(DecodeError::Token("digest"))));
        assert!(matches!(broken(|t| t.id = "Tok".into()), Err(DecodeError::Token("id"))));
        assert!(matches!(broken(|t| t.agent.clear()), Err(DecodeError::Name(_))));
        assert!(matches!(broken(|t| t.grants[0].service = "a b".into()), Err(DecodeError::Name(_))));
        assert!(matches!(broken(|t| t.cidrs = vec!["10/8".into()]), Ok(Change::RevokeToken { until: 0, .. })));
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
