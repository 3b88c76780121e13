//! Decodes wire changes into the table's own. A change that cannot be decoded rejects its whole
//! message. A record that is understood and cannot be served by this build (a service, a token)
//! takes rights away instead. The table compiles policies.

mod names;
mod token;

use bytes::Bytes;
use prost::Message as _;
use seks_proto::wire::{self, change, remove};
use seks_protocol::{SessionError, SessionKey, TableChecksum, bound_credential_aad};
use seks_service::Service;
use seks_types::{destination::Destination, id::NameError, token::Digest};

pub(super) use self::names::Names;
use crate::table::{Change, ChecksumUpdate, RecordKind};

/// Why a change can't be taken.
#[derive(Debug, thiserror::Error)]
pub(super) enum DecodeError {
    /// It isn't a message at all.
    #[error("not a message: {0}")]
    Wire(#[from] prost::DecodeError),
    /// A kind of a later version.
    #[error("a change of an unknown kind")]
    Unknown,
    /// A name that is none.
    #[error(transparent)]
    Name(#[from] NameError),
    /// A token without a proper digest or id.
    #[error("a token without a proper {0}")]
    Token(&'static str),
    /// A credential that is bound to what is no destination.
    #[error("a credential without a proper destination")]
    Destination,
    /// A credential that isn't sealed to this stream.
    #[error("a credential that does not open")]
    Credential(#[source] SessionError),
}

/// `Changes` with its records left encoded: what arrives is what is summed up, whatever a newer
/// control plane puts into it.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct EncodedChanges {
    #[prost(bytes = "bytes", repeated, tag = "1")]
    pub(super) changes: Vec<Bytes>,
}

/// Decodes one change; credentials are opened with the stream's key. The mark says what it does to
/// the table's sum.
pub(super) fn decode(
    encoded: Bytes,
    epoch: &str,
    key: &SessionKey,
    names: &mut Names,
) -> Result<(Change, Option<ChecksumUpdate>), DecodeError> {
    if let Some(token) = token::of(&encoded) {
        return Ok((token::decode(token, names)?, None));
    }
    let change = wire::Change::decode(encoded.clone())?;
    let mark = checksum_update(&change, &encoded)?;
    Ok((decode_change(change, epoch, key, names)?, mark))
}

/// Tokens and whole tenants are accounted for by the table itself.
fn checksum_update(change: &wire::Change, encoded: &[u8]) -> Result<Option<ChecksumUpdate>, DecodeError> {
    let plain = || Some(TableChecksum::of_record(encoded));
    let (kind, tenant, name, sum) = match &change.change {
        Some(change::Change::Tenant(t)) => (RecordKind::Tenant, &t.name, "", plain()),
        Some(change::Change::Agent(a)) => (RecordKind::Agent, &a.tenant, a.name.as_str(), plain()),
        Some(change::Change::Service(s)) => {
            let Some(service) = &s.service else { return Ok(None) };
            (RecordKind::Service, &service.tenant, service.name.as_str(), plain())
        }
        Some(change::Change::Credential(c)) => {
            let sum = TableChecksum::of_credential(&c.tenant, &c.name, &c.service, c.version);
            (RecordKind::Credential, &c.tenant, c.name.as_str(), Some(sum))
        }
        Some(change::Change::Policies(p)) => (RecordKind::Policies, &p.tenant, "", plain()),
        Some(change::Change::Remove(wire::Remove { what: Some(what) })) => match what {
            remove::What::Agent(n) => (RecordKind::Agent, &n.tenant, n.name.as_str(), None),
            remove::What::Service(n) => (RecordKind::Service, &n.tenant, n.name.as_str(), None),
            remove::What::Credential(n) => (RecordKind::Credential, &n.tenant, n.name.as_str(), None),
            remove::What::Policies(tenant) => (RecordKind::Policies, tenant, "", None),
            remove::What::Tenant(_) | remove::What::Token(_) => return Ok(None),
        },
        _ => return Ok(None),
    };
    Ok(Some(ChecksumUpdate { kind, tenant: tenant.as_str().try_into()?, name: name.into(), sum }))
}

fn decode_change(
    change: wire::Change,
    epoch: &str,
    key: &SessionKey,
    names: &mut Names,
) -> Result<Change, DecodeError> {
    match change.change.ok_or(DecodeError::Unknown)? {
        change::Change::Tenant(t) => Ok(Change::Tenant(t.name.try_into()?)),
        change::Change::Agent(a) => Ok(Change::Agent {
            tenant: a.tenant.try_into()?,
            name: a.name.try_into()?,
            attributes: a.attributes,
            disabled: a.disabled,
        }),
        change::Change::Service(s) => service(&s.service.unwrap_or_default()),
        change::Change::Credential(c) => {
            let destination = destination(&c.destination)?;
            let secret = match (c.sealed.is_empty(), &destination) {
                (true, Some(_)) => None,
                _ => {
                    let aad = bound_credential_aad(epoch, &c.tenant, &c.name, c.version, destination.as_ref());
                    Some(key.open(&aad, &c.sealed).map_err(DecodeError::Credential)?)
                }
            };
            let (tenant, name, service) = (c.tenant.try_into()?, c.name.try_into()?, c.service.try_into()?);
            Ok(Change::Credential { tenant, name, service, version: c.version, minted: c.minted, destination, secret })
        }
        change::Change::Policies(p) => Ok(Change::PolicyTexts(p.tenant.try_into()?, p.policies)),
        // Not as it is ever sent: with something beside it.
        change::Change::Token(t) => token::decode(t.encode_to_vec().into(), names),
        change::Change::Remove(r) => removal(r.what.ok_or(DecodeError::Unknown)?),
    }
}

/// `None`: the control plane is of an earlier version.
fn destination(bytes: &[u8]) -> Result<Option<Destination>, DecodeError> {
    match Destination::from_bytes(bytes) {
        None if !bytes.is_empty() => Err(DecodeError::Destination),
        destination => Ok(destination),
    }
}

fn service(record: &wire::Service) -> Result<Change, DecodeError> {
    match Service::try_from(record) {
        Ok(service) => Ok(Change::Service(Box::new(service))),
        Err(error) => {
            tracing::error!(seks.tenant = record.tenant, seks.service = record.name, %error, "a service can't be served here");
            Ok(Change::RemoveService(record.tenant.as_str().try_into()?, record.name.as_str().try_into()?))
        }
    }
}

fn digest(bytes: &[u8]) -> Result<Digest, DecodeError> {
    Digest::try_from(bytes).map_err(|_| DecodeError::Token("digest"))
}

fn removal(what: remove::What) -> Result<Change, DecodeError> {
    use remove::What;
    Ok(match what {
        What::Tenant(name) => Change::RemoveTenant(name.try_into()?),
        What::Agent(n) => Change::RemoveAgent(n.tenant.try_into()?, n.name.try_into()?),
        What::Service(n) => Change::RemoveService(n.tenant.try_into()?, n.name.try_into()?),
        What::Credential(n) => Change::RemoveCredential(n.tenant.try_into()?, n.name.try_into()?),
        What::Policies(tenant) => Change::RemovePolicies(tenant.try_into()?),
        What::Token(t) => Change::RevokeToken {
            digest: digest(&t.digest)?,
            id: t.id,
            tenant: t.tenant.try_into()?,
            agent: t.agent.try_into()?,
            until: t.until,
        },
    })
}
