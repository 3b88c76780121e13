//! Answers nodes that need more of a limit's budget. The rules are in `seks_limits`.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;
use seks_limits::{Cut, Limit, Share, Window};
use seks_proto::wire;

use crate::{
    clock::unix_now_millis,
    registry::{Budget, Registry, RegistryError},
};

/// Shares that are kept. Above it, those whose window has ended are dropped.
const MAX_IDLE: usize = 4096;
/// Where the store cannot be asked: when a node asks again.
const STORE_RETRY_MS: u64 = 500;

/// Which share: a limit that was changed is another one.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    budget: Budget,
    limit: Limit,
}

/// What this replica has taken of each window, and not given to a node yet.
#[derive(Default)]
pub(crate) struct LimitShares {
    /// An asynchronous lock for each: one step is taken at a time.
    shares: Mutex<HashMap<Key, Arc<tokio::sync::Mutex<Share>>>>,
}

/// A node's question, read.
pub(crate) struct LimitQuestion {
    budget: Budget,
    limit: Limit,
    window: Window,
    wire: wire::LimitQuestion,
}

impl LimitQuestion {
    /// `None`: it names no limit that has a window.
    pub(crate) fn read(wire: wire::LimitQuestion) -> Option<Self> {
        let agent = match wire.agent.as_str() {
            "" => None,
            name => Some(name.parse().ok()?),
        };
        let budget = Budget { tenant: wire.tenant.parse().ok()?, limit: wire.limit.parse().ok()?, agent };
        let limit: Limit = wire.text.parse().ok()?;
        (limit.each_agent == budget.agent.is_some()).then_some(())?;
        Some(Self { window: limit.window?, budget, limit, wire })
    }

    pub(crate) fn budget(&self) -> &Budget {
        &self.budget
    }
}

impl LimitShares {
    /// The answer to `question` of the node that `node` identifies.
    pub(crate) async fn answer(&self, registry: &Registry, node: u64, question: LimitQuestion) -> wire::LimitSlice {
        let wire::LimitQuestion { tenant, limit, agent, asked_ms, .. } = question.wire.clone();
        let answer = |amount, window, ends_in_ms, again_in_ms| wire::LimitSlice {
            tenant,
            limit,
            agent,
            asked_ms,
            amount,
            ends_in_ms,
            again_in_ms,
            window,
        };
        let left_until = |end: u64| end.saturating_sub(unix_now_millis());
        match self.slice(registry, node, &question).await {
            Ok(Slice { amount: 0, start, end }) => answer(0, start, left_until(end), left_until(end)),
            Ok(Slice { amount, start, end }) => answer(amount, start, left_until(end), 0),
            Err(error) => {
                tracing::warn!(%error, "a limit's budget cannot be read: nodes refuse what would need more of it");
                answer(0, 0, STORE_RETRY_MS, STORE_RETRY_MS)
            }
        }
    }

    async fn slice(&self, registry: &Registry, node: u64, question: &LimitQuestion) -> Result<Slice, RegistryError> {
        let LimitQuestion { budget, limit, window, wire } = question;
        let share = self.share(Key { budget: budget.clone(), limit: *limit });
        let mut share = share.lock().await;
        let wanted = wire.wanted.clamp(1, limit.amount);
        loop {
            let now = unix_now_millis();
            if let Cut::Slice { amount, start, end } = share.cut(now, node, wanted) {
                return Ok(Slice { amount, start, end });
            }
            let step = registry.take_limit_step(budget, (limit.amount, *window), now, wanted).await?;
            share.add(step.span, step.amount);
            // Nothing is left, or less than one request needs: requests that need less may have it.
            if step.amount == 0 || share.left(now) < wanted {
                return Ok(Slice { amount: 0, start: step.span.start, end: step.span.end });
            }
        }
    }

    fn share(&self, key: Key) -> Arc<tokio::sync::Mutex<Share>> {
        let mut shares = self.shares.lock();
        if shares.len() >= MAX_IDLE && !shares.contains_key(&key) {
            let now = unix_now_millis();
            let is_used = |share: &Arc<tokio::sync::Mutex<Share>>| {
                Arc::strong_count(share) > 1 || share.try_lock().is_ok_and(|share| share.left(now) > 0)
            };
            shares.retain(|_, share| is_used(share));
        }
        shares.entry(key).or_default().clone()
    }
}

struct Slice {
    amount: u64,
    start: u64,
    end: u64,
}
