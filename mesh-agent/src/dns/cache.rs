//! A pod's small cache of its nameservers' answers. Pure: time is an argument.
//!
//! One per pod, not one per node: a pod can redirect packets inside its own network namespace, so what a nameserver seems to say to one
//! pod must not be repeated to another. An entry is found only by the exact question that was asked, so records about other names in an
//! answer are never used. An expired entry is kept a little longer for when the nameserver is silent.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::wire::{Answer, Query};

/// Entries of a pod.
const ENTRIES: usize = 512;
/// Longest answer kept; with [`ENTRIES`] this bounds a pod's cache to 2 MiB, and usual answers are a tenth of it.
const LONGEST: usize = 4096;
/// How long past its time an answer may stand in for a nameserver that is silent.
pub(crate) const STALE: Duration = Duration::from_secs(30);

#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    server: SocketAddr,
    question: Vec<u8>,
    variant: (u16, Option<bool>),
}

impl Key {
    /// The key of a query, if answers to it may be shared.
    pub(crate) fn of(query: &Query, server: SocketAddr) -> Option<Self> {
        query.cacheable().then(|| Self {
            server,
            question: query.question().to_ascii_lowercase(),
            variant: query.variant(),
        })
    }
}

#[derive(Clone)]
struct Entry {
    bytes: Arc<[u8]>,
    stored: Instant,
    lifetime: Duration,
}

/// An answer from the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cached {
    pub(crate) bytes: Arc<[u8]>,
    /// Seconds since it came.
    pub(crate) age: u32,
    /// Whether its time is over.
    pub(crate) stale: bool,
}

/// Answers by question.
#[derive(Default)]
pub(crate) struct Cache {
    entries: HashMap<Key, Entry>,
    order: VecDeque<Key>,
}

impl Cache {
    /// The answer, fresh or at most [`STALE`] over its time.
    pub(crate) fn find(&self, key: &Key, now: Instant) -> Option<Cached> {
        let entry = self.entries.get(key)?;
        let age = now.saturating_duration_since(entry.stored);
        (age < entry.lifetime + STALE).then(|| Cached {
            bytes: entry.bytes.clone(),
            age: u32::try_from(age.as_secs()).unwrap_or(u32::MAX),
            stale: age >= entry.lifetime,
        })
    }

    /// Keeps an answer that may be kept.
    pub(crate) fn store(&mut self, key: Key, answer: &Answer, now: Instant) {
        let Some(lifetime) = answer.lifetime.filter(|_| answer.bytes.len() <= LONGEST) else { return };
        let entry = Entry {
            bytes: answer.bytes.as_slice().into(),
            stored: now,
            lifetime: Duration::from_secs(u64::from(lifetime)),
        };
        if self.entries.insert(key.clone(), entry).is_some() {
            return;
        }
        self.order.push_back(key);
        // The oldest question goes first. Each key is in the queue once, so the queue is as long as the map.
        if self.order.len() > ENTRIES
            && let Some(oldest) = self.order.pop_front()
        {
            self.entries.remove(&oldest);
        }
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        debug_assert_eq!(self.entries.len(), self.order.len());
        self.entries.len()
    }
}
