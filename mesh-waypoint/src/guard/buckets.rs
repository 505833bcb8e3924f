//! What is counted of requests by the waypoint itself: buckets of all lanes together. They outlive changes of the configuration that leave a limit as it is.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::Arc;

use hashbrown::HashMap;
use mesh_core::l7::limit::{Bucket, Local, RateLimit, Verdict};
use mesh_core::l7::policy::Subject;
use parking_lot::Mutex;

/// Buckets of one limit that is counted by something; more share one, so that whoever invents values gets no more by it.
const MOST: usize = 10_000;
/// How often room is looked for, in nanoseconds: it costs a look at all of them, and whoever invents values asks for it each time.
const SWEEP: u64 = 1_000_000_000;

/// A rate limit with what is counted of it.
pub struct Limiter {
    /// What is said.
    pub limit: Arc<RateLimit>,
    local: Vec<Arc<Buckets>>,
}

/// What is counted of one limit.
struct Buckets {
    of: Local,
    /// By what requests have in common.
    by_key: Mutex<Known>,
    /// Of those that there is no room for, or of all.
    rest: Bucket,
    hasher: RandomState,
}

#[derive(Default)]
struct Known {
    buckets: HashMap<u64, Arc<Bucket>>,
    /// When room was looked for.
    swept: Option<u64>,
}

impl Limiter {
    /// Of a limit; what was counted of the same before goes on.
    #[must_use]
    pub fn new(limit: &Arc<RateLimit>, before: Option<&Self>) -> Self {
        let known = |index: usize, of: &Local| {
            let old = before?.local.get(index)?;
            (old.of == *of).then(|| Arc::clone(old))
        };
        let buckets =
            |(index, of): (usize, &Local)| known(index, of).unwrap_or_else(|| Arc::new(Buckets::new(of.clone())));
        Self { limit: Arc::clone(limit), local: limit.local.iter().enumerate().map(buckets).collect() }
    }

    /// Counts a request at `now`, in nanoseconds of a clock that never goes back: the first limit that has no room for it, and what it says.
    #[must_use]
    pub fn count(&self, subject: &Subject<'_>, now: u64) -> Option<(&Local, Verdict)> {
        let about = self.local.iter().filter(|buckets| buckets.of.is_about(subject));
        let mut taken = about.map(|buckets| (&buckets.of, buckets.take(subject, now)));
        taken.find(|(_, verdict)| matches!(verdict, Verdict::Over { .. }))
    }
}

impl Buckets {
    fn new(of: Local) -> Self {
        Self { of, by_key: Mutex::default(), rest: Bucket::default(), hasher: RandomState::new() }
    }

    fn take(&self, subject: &Subject<'_>, now: u64) -> Verdict {
        let rate = &self.of.rate;
        if self.of.by.is_empty() {
            return self.rest.take(rate, now);
        }
        let mut key = String::new();
        self.of.key(subject, &mut key);
        match self.bucket(self.hasher.hash_one(&key), now) {
            Some(bucket) => bucket.take(rate, now),
            None => self.rest.take(rate, now),
        }
    }

    fn bucket(&self, key: u64, now: u64) -> Option<Arc<Bucket>> {
        let mut known = self.by_key.lock();
        let Known { buckets: all, swept } = &mut *known;
        if let Some(bucket) = all.get(&key) {
            return Some(Arc::clone(bucket));
        }
        if all.len() >= MOST {
            if swept.is_none_or(|last| now.saturating_sub(last) >= SWEEP) {
                *swept = Some(now);
                // One that is full says nothing that a new one would not.
                all.retain(|_, bucket| !bucket.is_full(now));
            }
            if all.len() >= MOST {
                return None;
            }
        }
        let bucket = Arc::<Bucket>::default();
        all.insert(key, Arc::clone(&bucket));
        Some(bucket)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use mesh_core::l7::SecurityTarget;
    use mesh_core::l7::limit::{Part, Rate};
    use mesh_core::{Identity, NamespacedName};

    use super::*;

    fn limit(by: Vec<Part>, requests: u32) -> Arc<RateLimit> {
        let rate = Rate { requests, per: Duration::from_secs(60), burst: requests };
        Arc::new(RateLimit {
            name: NamespacedName::new("shop", "limit"),
            target: SecurityTarget::All,
            local: vec![Local { rules: vec![], by, rate }],
            global: None,
        })
    }

    /// Whether a client may ask.
    fn may(limiter: &Limiter, client: &str, now: u64) -> bool {
        let identity: Identity = format!("spiffe://a/ns/shop/sa/{client}").parse().unwrap();
        let principal = identity.principal();
        let subject = Subject {
            identity: Some(&identity),
            principal: &principal,
            source: [10, 0, 0, 1].into(),
            remote: [10, 0, 0, 1].into(),
            destination: None,
            sni: None,
            port: 80,
            also: &[],
            request: None,
            plainest: None,
            token: None,
        };
        limiter.count(&subject, now).is_none()
    }

    #[test]
    fn each_client_has_a_bucket_of_its_own() {
        let together = Limiter::new(&limit(vec![], 2), None);
        assert_eq!(["a", "b", "c"].map(|client| may(&together, client, 0)), [true, true, false]);
        let apart = Limiter::new(&limit(vec![Part::Principal], 1), None);
        assert_eq!(["a", "b", "a", "b"].map(|client| may(&apart, client, 0)), [true, true, false, false]);
        assert!(may(&apart, "a", 60_000_000_000));
    }

    #[test]
    fn what_was_counted_goes_on_unless_the_limit_changes() {
        let first = Limiter::new(&limit(vec![], 1), None);
        assert!(may(&first, "a", 0));
        assert!(!may(&Limiter::new(&limit(vec![], 1), Some(&first)), "a", 0));
        assert!(may(&Limiter::new(&limit(vec![], 2), Some(&first)), "a", 0));
    }

    #[test]
    fn invented_values_take_no_more_room_and_no_more_requests() {
        let limiter = Limiter::new(&limit(vec![Part::Principal], 1), None);
        let let_through = (0..2 * MOST).filter(|number| may(&limiter, &format!("c{number}"), 0)).count();
        assert_eq!((let_through, limiter.local[0].by_key.lock().buckets.len()), (MOST + 1, MOST));
        // When they are full again, there is room.
        assert!(may(&limiter, "new", 60_000_000_000) && may(&limiter, "other", 60_000_000_000));
        assert_eq!(limiter.local[0].by_key.lock().buckets.len(), 2);
    }
}
