//! Tripwires: records that an agent in order does not cause. They are looked for as records arrive,
//! so requests pay nothing for it.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
};

use seks_audit::record::{Decision, FieldsOf, Kind, Value, field};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use super::LastUsed;

/// Tokens whose networks are remembered. Beyond that none are.
const MAX_TOKENS: usize = 100_000;
/// Networks of one token. A token from more places than this has no usual place.
const MAX_NETWORKS: usize = 8;
/// Events that may wait. Further ones are counted as dropped.
const QUEUE: usize = 1024;
/// How the node writes a path that held a token.
const CLEANED_TOKENS: [&[u8]; 2] = [b"seks_token_***", b"(a token in an escaped path)"];
/// Refusals of a request with a token where no token belongs.
const MISPLACED: [&[u8]; 4] = [b"request_invalid", b"token_ambiguous", b"token_missing", b"token_malformed"];

/// What has happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum AlarmKind {
    /// A token that grants nothing and is only there to be found was used.
    Canary,
    /// A revoked token was used.
    RevokedToken,
    /// A well-formed token of ours that no table has was used.
    UnknownToken,
    /// A token was used for a service that it does not grant.
    ServiceNotGranted,
    /// A token of ours was in the path of a request for a service that takes none there.
    TokenInPath,
    /// A token was used from a network (IPv4 /24, IPv6 /48) that it was not used from before.
    /// Learnt by this replica since its start.
    NewNetwork,
}

impl AlarmKind {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Canary,
        Self::RevokedToken,
        Self::UnknownToken,
        Self::ServiceNotGranted,
        Self::TokenInPath,
        Self::NewNetwork,
    ];

    /// As it is in metrics, logs and configuration.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Canary => "canary",
            Self::RevokedToken => "revoked_token",
            Self::UnknownToken => "unknown_token",
            Self::ServiceNotGranted => "service_not_granted",
            Self::TokenInPath => "token_in_path",
            Self::NewNetwork => "new_network",
        }
    }

    /// The one that a request trips by what its record alone says.
    #[must_use]
    pub fn of(token: &[u8], reason: &[u8], path: &[u8]) -> Option<Self> {
        let is_canary = token.starts_with(seks_types::id::CANARY_PREFIX.as_bytes());
        let holds_token = || CLEANED_TOKENS.iter().any(|mark| path.windows(mark.len()).any(|part| part == *mark));
        match reason {
            _ if is_canary => Some(Self::Canary),
            b"token_revoked" => Some(Self::RevokedToken),
            b"token_unknown" => Some(Self::UnknownToken),
            b"service_not_granted" => Some(Self::ServiceNotGranted),
            reason if MISPLACED.contains(&reason) && holds_token() => Some(Self::TokenInPath),
            _ => None,
        }
    }
}

/// A request that tripped a wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alarm {
    /// Which wire.
    pub tripwire: AlarmKind,
    /// The token's tenant; empty: it is not known.
    pub tenant: String,
    /// The token's id; empty: it is not known.
    pub token: String,
    /// Its agent.
    pub agent: String,
    /// The service that was named.
    pub service: String,
    /// Where the request came from.
    pub source: Option<IpAddr>,
    /// The node that refused or served it.
    pub node: String,
    /// When it began, in Unix microseconds.
    pub began_us: u64,
}

/// Looks at records as they arrive. For the thread that writes the trail.
pub(super) struct Watch {
    alarms: mpsc::Sender<Alarm>,
    dropped: u64,
    networks: HashMap<Box<[u8]>, Networks>,
    last_used: Arc<LastUsed>,
}

enum Networks {
    Known(Vec<IpAddr>),
    /// There are too many.
    Any,
}

/// What is read of a record.
#[derive(Default)]
pub(super) struct Facts<'a> {
    kind: u64,
    decision: u64,
    pub(super) began_us: u64,
    tenant: &'a [u8],
    token: &'a [u8],
    agent: &'a [u8],
    service: &'a [u8],
    reason: &'a [u8],
    path: &'a [u8],
    source: Option<IpAddr>,
}

impl<'a> Facts<'a> {
    pub(super) fn of(record: &'a [u8]) -> Self {
        let mut facts = Self::default();
        for (number, value) in FieldsOf::new(record).flatten() {
            match (number, value) {
                (field::KIND, Value::Number(kind)) => facts.kind = kind,
                (field::DECISION, Value::Number(decision)) => facts.decision = decision,
                (field::BEGAN_US, Value::Number(time)) => facts.began_us = time,
                (field::TENANT, Value::Bytes(tenant)) => facts.tenant = tenant,
                (field::TOKEN_ID, Value::Bytes(token)) => facts.token = token,
                (field::AGENT, Value::Bytes(agent)) => facts.agent = agent,
                (field::SERVICE, Value::Bytes(service)) => facts.service = service,
                (field::REASON, Value::Bytes(reason)) => facts.reason = reason,
                (field::PATH, Value::Bytes(path)) => facts.path = path,
                (field::SOURCE, Value::Bytes(source)) => facts.source = address(source),
                _ => {}
            }
        }
        facts
    }

    pub(super) fn is_intent(&self) -> bool {
        self.kind == Kind::Intent as u64
    }
}

impl Watch {
    /// A watch, and its alarms.
    pub(super) fn new(last_used: Arc<LastUsed>) -> (Self, mpsc::Receiver<Alarm>) {
        let (alarms, received) = mpsc::channel(QUEUE);
        (Self { alarms, dropped: 0, networks: HashMap::new(), last_used }, received)
    }

    /// Notes the use of a token alone, for a record that was looked at by an earlier process.
    pub(super) fn note_use(&self, record: &[u8]) {
        let facts = Facts::of(record);
        self.last_used.note(facts.token, facts.began_us);
    }

    /// Looks at a record that is new in the trail, and no intent.
    pub(super) fn look(&mut self, node: &str, facts: &Facts<'_>) -> Option<AlarmKind> {
        self.last_used.note(facts.token, facts.began_us);
        let tripwire = AlarmKind::of(facts.token, facts.reason, facts.path);
        let is_allowed = facts.decision == Decision::Allow as u64;
        let new_network = || (is_allowed && self.is_from_new_network(facts)).then_some(AlarmKind::NewNetwork);
        let tripwire = tripwire.or_else(new_network)?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let alarm = Alarm {
            tripwire,
            tenant: text(facts.tenant),
            token: text(facts.token),
            agent: text(facts.agent),
            service: text(facts.service),
            source: facts.source,
            node: node.to_owned(),
            began_us: facts.began_us,
        };
        self.dropped += u64::from(self.alarms.try_send(alarm).is_err());
        Some(tripwire)
    }

    /// Alarms that were lost since this was last asked.
    pub(super) fn take_dropped(&mut self) -> u64 {
        std::mem::take(&mut self.dropped)
    }

    /// The first network of a token is where it belongs.
    fn is_from_new_network(&mut self, facts: &Facts<'_>) -> bool {
        let (Some(source), false) = (facts.source, facts.token.is_empty()) else { return false };
        let (network, is_full) = (network(source), self.networks.len() >= MAX_TOKENS);
        match self.networks.get_mut(facts.token) {
            Some(Networks::Any) => false,
            Some(Networks::Known(known)) if known.contains(&network) => false,
            Some(place @ Networks::Known(_)) => {
                match place {
                    Networks::Known(known) if known.len() < MAX_NETWORKS => known.push(network),
                    place => *place = Networks::Any,
                }
                true
            }
            None if is_full => false,
            None => {
                self.networks.insert(facts.token.into(), Networks::Known(vec![network]));
                false
            }
        }
    }
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = || <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from);
    v4().or_else(|| <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from))
}

/// What counts as one network: an IPv4 /24, or an IPv6 /48.
pub(crate) fn network(source: IpAddr) -> IpAddr {
    match source.to_canonical() {
        IpAddr::V4(v4) => {
            let [a, b, c, _] = v4.octets();
            IpAddr::from([a, b, c, 0])
        }
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() >> 80 << 80).into(),
    }
}

#[cfg(test)]
mod tests {
    use seks_audit::record::RecordWriter;

    use super::*;

    fn record(token: &str, reason: &str, path: &str, source: [u8; 4]) -> Vec<u8> {
        let mut writer = RecordWriter::default();
        writer.number(field::KIND, Kind::Whole as u64);
        writer.text(field::TENANT, "acme");
        writer.text(field::TOKEN_ID, token);
        writer.text(field::PATH, path);
        writer.bytes(field::SOURCE, &source);
        writer.text(field::REASON, reason);
        writer.number(field::DECISION, if reason.is_empty() { Decision::Allow } else { Decision::Deny } as u64);
        writer.as_bytes().to_vec()
    }

    #[test]
    fn alarms_beyond_the_queue_are_counted() {
        let (mut watch, alarms) = Watch::new(Arc::default());
        for _ in 0..QUEUE + 3 {
            watch.look("n-1", &Facts::of(&record("", "token_unknown", "/", [10, 0, 0, 1])));
        }
        assert_eq!((alarms.len(), watch.take_dropped(), watch.take_dropped()), (QUEUE, 3, 0));
    }

    #[test]
    fn each_tripwire_has_its_records_and_ordinary_ones_have_none() {
        let (mut watch, mut alarms) = Watch::new(Arc::default());
        let mut trip = |token: &str, reason: &str, path: &str, source: [u8; 4]| {
            let tripped = watch.look("n-1", &Facts::of(&record(token, reason, path, source)));
            assert_eq!(alarms.try_recv().ok().map(|alarm| alarm.tripwire), tripped);
            tripped
        };
        let home = [10, 0, 0, 1];
        for (token, reason, path, wanted) in [
            ("tok-1", "", "/v1/models", None),
            ("tok-1", "policy_denied", "/v1/models", None),
            ("", "token_missing", "/v1/models", None),
            ("", "token_malformed", "/v1/models", None),
            ("tok-1", "token_expired", "/v1/models", None),
            ("tok-1", "token_revoked", "/v1/models", Some(AlarmKind::RevokedToken)),
            ("", "token_unknown", "/v1/models", Some(AlarmKind::UnknownToken)),
            ("tok-1", "service_not_granted", "/v1/models", Some(AlarmKind::ServiceNotGranted)),
            ("tok-1", "request_invalid", "/v1/seks_token_***/x", Some(AlarmKind::TokenInPath)),
            ("", "token_missing", "(a token in an escaped path)", Some(AlarmKind::TokenInPath)),
            ("tok-1", "", "/bot:seks_token_***/getMe", None),
            ("tok-canary-1", "service_not_granted", "/v1/models", Some(AlarmKind::Canary)),
            ("tok-canary-1", "", "/", Some(AlarmKind::Canary)),
        ] {
            assert_eq!(trip(token, reason, path, home), wanted, "{token} {reason} {path}");
        }
        assert_eq!(trip("tok-1", "", "/", [10, 0, 0, 77]), None, "the same /24");
        assert_eq!(trip("tok-1", "", "/", [192, 0, 2, 1]), Some(AlarmKind::NewNetwork));
        assert_eq!(trip("tok-1", "", "/", [192, 0, 2, 9]), None, "it is known by now");
        assert_eq!(trip("tok-2", "", "/", [192, 0, 2, 1]), None, "the first of another token");
        assert_eq!(trip("tok-1", "policy_denied", "/", [198, 51, 100, 1]), None, "it was refused anyway");
        let many = (0..40).filter(|n| trip("tok-3", "", "/", [*n, 0, 0, 1]).is_some()).count();
        assert_eq!(many, MAX_NETWORKS, "a token that is used from everywhere is not reported for ever");
    }
}
