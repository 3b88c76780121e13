//! One-time links to this replica's page, and the sessions that they open.
//!
//! A session has an id, which is part of every address of the page, and a key, which is in a cookie
//! for these addresses alone. Neither is enough without the other. A browser sends a cookie to
//! every port of a host. A server on another port of the same host does not know the id, so the
//! browser never sends it the key.

use std::{
    collections::HashMap,
    net::SocketAddr,
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use parking_lot::Mutex;
use seks_types::id::OperatorName;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

use crate::{
    authority::{Identity, Peer},
    clock::unix_now,
};

/// How long a link can be opened.
const LINK_TTL: Duration = Duration::from_secs(600);
/// How long a session lasts.
const SESSION_TTL: Duration = Duration::from_secs(8 * 3600);
/// Most links and most sessions of one operator. One more ends its oldest.
const MAX_PER_OPERATOR: usize = 16;
/// Most links and most sessions in all. One more ends the oldest.
const MAX: usize = 1024;

/// The links and the sessions of a page.
pub struct PageSessions {
    /// Where the page listens.
    address: SocketAddr,
    /// Where browsers reach the page: an origin.
    url: String,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// By the digest of their code.
    links: HashMap<[u8; 32], Grant>,
    /// By their id.
    sessions: HashMap<String, Session>,
}

/// Who may read, and until when.
#[derive(Clone)]
struct Grant {
    operator: OperatorName,
    enrolment: String,
    ends: Instant,
}

struct Session {
    grant: Grant,
    key_digest: [u8; 32],
}

/// A link that nobody has opened yet.
pub struct PageLink {
    /// Its address, which holds the secret.
    pub url: Zeroizing<String>,
    /// Until when it can be opened, in Unix seconds.
    pub expires_at: i64,
}

/// A session that has just begun.
pub struct NewSession {
    /// Part of every address.
    pub id: String,
    /// For the cookie.
    pub key: Zeroizing<String>,
}

impl PageSessions {
    /// No sessions yet. The page listens on `address`. `url` is the origin at which browsers reach
    /// it.
    #[must_use]
    pub fn new(address: SocketAddr, url: String) -> Self {
        Self { address, url, state: Mutex::default() }
    }

    /// Where the page listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The origin at which browsers reach the page.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// A link for an operator, by its name and the enrolment in its record.
    ///
    /// # Errors
    /// When the operating system has no random bytes.
    pub fn link(&self, operator: OperatorName, enrolment: String) -> Result<PageLink, getrandom::Error> {
        let code = random()?;
        let ends = Instant::now() + LINK_TTL;
        let mut state = self.state.lock();
        make_room(&mut state.links, &operator, |grant| grant);
        state.links.insert(digest(&code), Grant { operator, enrolment, ends });
        let expires_at = unix_now() + i64::try_from(LINK_TTL.as_secs()).unwrap_or_default();
        Ok(PageLink { url: Zeroizing::new(format!("{}/link/{}", self.url, code.as_str())), expires_at })
    }

    /// Opens a link. The link ends with this. `None`: there is no such link any more.
    pub fn open(&self, code: &str) -> Option<NewSession> {
        let (id, key) = (random().ok()?.to_string(), random().ok()?);
        let mut state = self.state.lock();
        let mut grant = state.links.remove(&digest(code))?;
        if grant.ends <= Instant::now() {
            return None;
        }
        grant.ends = Instant::now() + SESSION_TTL;
        make_room(&mut state.sessions, &grant.operator.clone(), |session| &session.grant);
        state.sessions.insert(id.clone(), Session { grant, key_digest: digest(&key) });
        Some(NewSession { id, key })
    }

    /// Whom the session `id` reads as, if one of `keys` is its key. The peer has the rights of the
    /// operator's record, as with a certificate.
    pub fn peer<'a>(&self, id: &str, keys: impl Iterator<Item = &'a str>) -> Option<Peer> {
        let mut state = self.state.lock();
        let session = state.sessions.get(id)?;
        if session.grant.ends <= Instant::now() {
            state.sessions.remove(id);
            return None;
        }
        let is_key = |key: &str| bool::from(digest(key).ct_eq(&session.key_digest));
        if !keys.map(is_key).fold(false, |found, is| found | is) {
            return None;
        }
        let Grant { operator, enrolment, .. } = session.grant.clone();
        let now = unix_now();
        Some(Peer { identity: Identity::Operator(operator), enrolment, signed_at: now, expires_at: i64::MAX })
    }
}

/// Removes what has ended, and the oldest where there is no room for one more of `operator`.
fn make_room<K: Clone + Eq + std::hash::Hash, V>(
    entries: &mut HashMap<K, V>,
    operator: &OperatorName,
    grant: impl Fn(&V) -> &Grant,
) {
    let now = Instant::now();
    entries.retain(|_, entry| grant(entry).ends > now);
    let oldest = |entries: &HashMap<K, V>, of: Option<&OperatorName>, most: usize| {
        let mut ends: Vec<(Instant, K)> = entries
            .iter()
            .filter(|(_, entry)| of.is_none_or(|operator| grant(entry).operator == *operator))
            .map(|(key, entry)| (grant(entry).ends, key.clone()))
            .collect();
        ends.sort_by_key(|(ends, _)| *ends);
        (ends.len() >= most).then(|| ends.into_iter().next().map(|(_, key)| key)).flatten()
    };
    for (of, most) in [(Some(operator), MAX_PER_OPERATOR), (None, MAX)] {
        if let Some(key) = oldest(entries, of, most) {
            entries.remove(&key);
        }
    }
}

/// 256 random bits as text for an address.
fn random() -> Result<Zeroizing<String>, getrandom::Error> {
    let mut bytes = Zeroizing::new([0; 32]);
    getrandom::fill(bytes.as_mut())?;
    Ok(Zeroizing::new(URL_SAFE_NO_PAD.encode(bytes.as_ref())))
}

fn digest(secret: &str) -> [u8; 32] {
    Sha256::digest(secret.as_bytes()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(sessions: &PageSessions, operator: &str) -> String {
        let link = sessions.link(operator.parse().unwrap(), "e1".into()).unwrap();
        link.url.strip_prefix("https://h/link/").unwrap().to_owned()
    }

    #[test]
    fn a_link_opens_one_session_which_needs_its_id_and_its_key() {
        let sessions = PageSessions::new(([127, 0, 0, 1], 1).into(), "https://h".into());
        let code = link(&sessions, "ann");
        assert!(sessions.open("wrong").is_none());
        let new = sessions.open(&code).unwrap();
        assert!(sessions.open(&code).is_none(), "spent");
        let peer = |id: &str, keys: &[&str]| sessions.peer(id, keys.iter().copied());
        let found = peer(&new.id, &["", "x", &new.key]).unwrap();
        assert_eq!(found.identity, Identity::Operator("ann".parse().unwrap()));
        assert_eq!(found.enrolment, "e1");
        assert!(peer(&new.id, &[]).is_none() && peer(&new.id, &["x"]).is_none() && peer("x", &[&new.key]).is_none());
        let other = sessions.open(&link(&sessions, "bob")).unwrap();
        assert!(peer(&other.id, &[&new.key]).is_none(), "a key opens no other session");
    }

    #[test]
    fn an_operator_ends_none_but_its_own_sessions() {
        let sessions = PageSessions::new(([127, 0, 0, 1], 1).into(), "https://h".into());
        let first = sessions.open(&link(&sessions, "ann")).unwrap();
        let of_bob: Vec<_> = (0..40).map(|_| sessions.open(&link(&sessions, "bob")).unwrap()).collect();
        let is_open =
            |session: &NewSession| sessions.peer(&session.id, std::iter::once(session.key.as_str())).is_some();
        assert!(is_open(&first));
        assert_eq!(of_bob.iter().filter(|session| is_open(session)).count(), MAX_PER_OPERATOR);
        let unopened: Vec<_> = (0..40).map(|_| link(&sessions, "bob")).collect();
        assert_eq!(unopened.iter().filter(|code| sessions.open(code).is_some()).count(), MAX_PER_OPERATOR);
    }
}
