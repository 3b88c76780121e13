//! Limits how many wrong tokens one source may present.
//!
//! A source that guesses, or an agent with a mistyped token, gets `401` first. It gets `429` with
//! `Retry-After` after more wrong tokens than a token bucket allows. Requests with a valid token
//! are never limited here, so agents behind the same address translation are not affected. The
//! table has a fixed size. A new source replaces the one that was silent for longest.

use std::{
    net::IpAddr,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Instant,
};

use parking_lot::Mutex;

use super::refusal::Refusal;
use crate::code::Code;

/// Sources that are remembered: 16 shards of 64 sets of 8.
const SHARDS: usize = 16;
const SETS: usize = 64;
const WAYS: usize = 8;
/// A full bucket is so many seconds of the rate.
const BURST_SECONDS: f32 = 10.0;

/// Sources of wrong tokens, each with what it has left.
pub(crate) struct WrongTokens {
    /// Wrong tokens a second that one source may show; the burst is ten times that.
    rate: f32,
    shards: Box<[Mutex<Vec<Set>>]>,
    hash: foldhash::quality::RandomState,
    began: Instant,
    limited: AtomicU64,
}

type Set = [Bucket; WAYS];

#[derive(Clone, Copy, Default)]
struct Bucket {
    /// 0: nobody's.
    source: u64,
    left: f32,
    /// Milliseconds since the process began.
    seen: u64,
}

impl WrongTokens {
    /// `rate` a second for each source.
    pub(crate) fn new(rate: u32) -> Self {
        let shard = || Mutex::new(vec![[Bucket::default(); WAYS]; SETS]);
        Self {
            rate: rate as f32,
            shards: std::iter::repeat_with(shard).take(SHARDS).collect(),
            hash: foldhash::quality::RandomState::default(),
            began: Instant::now(),
            limited: AtomicU64::new(0),
        }
    }

    /// How many requests were answered with `429` instead of `401`.
    pub(crate) fn limited(&self) -> u64 {
        self.limited.load(Relaxed)
    }

    /// The refusal of a request from `source`: as it is, or `limit_exceeded` when it is one wrong
    /// token too many.
    pub(crate) fn bound(&self, refusal: Refusal, source: IpAddr) -> Refusal {
        let wrong = matches!(refusal.code, Code::TokenMissing | Code::TokenMalformed | Code::TokenUnknown);
        if !wrong {
            return refusal;
        }
        let now = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        match self.take(source, now) {
            Ok(()) => refusal,
            Err(seconds) => {
                self.limited.fetch_add(1, Relaxed);
                let detail = "too many requests without a known token came from this address";
                Refusal::from(Code::LimitExceeded).with_detail(detail).retry_after(seconds)
            }
        }
    }

    /// Takes one from the source's bucket. Empty: the seconds until there is one again.
    fn take(&self, source: IpAddr, now: u64) -> Result<(), u32> {
        let source = std::hash::BuildHasher::hash_one(&self.hash, network(source)).max(1);
        let index = |bits: u64, of: usize| usize::try_from(bits).unwrap_or_default() % of;
        let Some(shard) = self.shards.get(index(source >> 32, SHARDS)) else { return Ok(()) };
        let mut shard = shard.lock();
        let Some(set) = shard.get_mut(index(source & 0xffff_ffff, SETS)) else { return Ok(()) };
        let full = self.rate * BURST_SECONDS;
        let known = set.iter().position(|bucket| bucket.source == source);
        let oldest = || set.iter().enumerate().min_by_key(|(_, bucket)| bucket.seen).map_or(0, |(at, _)| at);
        let place = known.unwrap_or_else(oldest);
        let Some(bucket) = set.get_mut(place) else { return Ok(()) };
        if known.is_none() {
            *bucket = Bucket { source, left: full, seen: now };
        }
        let passed = now.saturating_sub(bucket.seen) as f32 / 1000.0;
        bucket.left = (bucket.left + passed * self.rate).min(full);
        bucket.seen = now;
        if bucket.left >= 1.0 {
            bucket.left -= 1.0;
            return Ok(());
        }
        Err((((1.0 - bucket.left) / self.rate).ceil() as u32).max(1))
    }
}

/// What counts as one source: an IPv4 address, or the 64 bits of an IPv6 address that a network
/// gives to one host.
fn network(source: IpAddr) -> u128 {
    match source.to_canonical() {
        IpAddr::V4(v4) => u128::from(u32::from(v4)),
        IpAddr::V6(v6) => u128::from(v6) >> 64 << 64 | 1 << 40, // no IPv4 address has this bit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_source_has_a_burst_and_then_the_rate() {
        let wrong = WrongTokens::new(50);
        let served =
            |source: &str, now: u64, tries: u32| (0..tries).filter(|_| wrong.take(ip(source), now).is_ok()).count();
        assert_eq!(served("192.0.2.1", 0, 2000), 500);
        assert_eq!(served("192.0.2.2", 0, 100), 100, "another source");
        assert_eq!(served("::ffff:192.0.2.1", 0, 10), 0, "the same source, otherwise written");
        assert_eq!(served("192.0.2.1", 1000, 2000), 50);
        assert_eq!(wrong.take(ip("192.0.2.1"), 1000), Err(1));
        assert_eq!(served("192.0.2.1", 1_000_000, 2000), 500, "no more than a burst is saved up");
        assert_eq!(served("2001:db8:1:1::1", 0, 300) + served("2001:db8:1:1:ffff::2", 0, 300), 500, "one /64");
        assert_eq!(served("2001:db8:1:2::1", 0, 300), 300);
    }

    #[test]
    fn only_wrong_tokens_are_bounded_and_what_is_bounded_is_counted() {
        let wrong = WrongTokens::new(1);
        let code = |code: Code| wrong.bound(code.into(), ip("192.0.2.1")).code;
        (0..10).for_each(|_| assert_eq!(code(Code::TokenUnknown), Code::TokenUnknown));
        assert_eq!(code(Code::TokenUnknown), Code::LimitExceeded);
        assert_eq!(code(Code::TokenMissing), Code::LimitExceeded);
        assert_eq!(code(Code::TokenRevoked), Code::TokenRevoked);
        assert_eq!(code(Code::PolicyDenied), Code::PolicyDenied);
        assert_eq!(wrong.limited(), 2);
        let response = wrong.bound(Code::TokenUnknown.into(), ip("192.0.2.1")).response("x");
        assert_eq!((response.status().as_u16(), &response.headers()["retry-after"]), (429, &"1".parse().unwrap()));
    }

    #[test]
    fn any_number_of_sources_takes_the_same_memory() {
        let wrong = WrongTokens::new(50);
        for n in 0..100_000_u32 {
            assert!(wrong.take(IpAddr::from(n.to_be_bytes()), u64::from(n)).is_ok());
        }
        let sets: usize = wrong.shards.iter().map(|s| s.lock().len()).sum();
        assert_eq!(sets * WAYS, 8192);
    }
}
