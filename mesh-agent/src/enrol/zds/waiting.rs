//! Pods that istio-cni has named and that are not enrolled: when each is tried again, and when the snapshot may be made. Pure; [`super::client`] feeds it.
//!
//! The snapshot lets go of what an earlier agent had captured and nobody names. A pod that cannot be enrolled yet is named all the same, so the
//! snapshot waits until none is left: until then what is captured and not served stays closed.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use mesh_core::ArcStr;
use mesh_proto::convert::ZdsPod;

/// First and longest wait before a pod is tried again. istio-cni has the first for itself: it may have asked a moment too early.
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(10);
/// Pods that may wait; a node has some hundred.
const MOST: usize = 4096;

/// One that waits. `N` is what its enrolment needs and this book does not look at: its network namespace.
#[derive(Debug)]
struct Entry<N> {
    pod: ZdsPod,
    netns: N,
    /// The connection that named it last.
    named: u64,
    failures: u32,
    not_before: Instant,
    under_way: bool,
    reason: String,
}

/// The book.
#[derive(Debug)]
pub(super) struct Waiting<N> {
    pods: BTreeMap<ArcStr, Entry<N>>,
    /// Counts connections.
    connection: u64,
    /// The present connection has named all its pods, and the snapshot is not made yet.
    owed: bool,
}

impl<N> Default for Waiting<N> {
    fn default() -> Self {
        Waiting { pods: BTreeMap::new(), connection: 0, owed: false }
    }
}

impl<N: Clone> Waiting<N> {
    /// A connection begins: it will name every pod again.
    pub(super) fn opened(&mut self) {
        self.connection += 1;
        self.owed = false;
    }

    /// An enrolment that was asked for has failed.
    pub(super) fn failed(&mut self, pod: ZdsPod, netns: N, reason: String, now: Instant) {
        if self.pods.len() >= MOST && !self.pods.contains_key(&pod.uid) {
            return;
        }
        let entry = Entry {
            netns,
            named: self.connection,
            failures: 1,
            not_before: now + FIRST_WAIT,
            under_way: false,
            reason,
            pod,
        };
        self.pods.insert(entry.pod.uid.clone(), entry);
    }

    /// The pod is enrolled, kept or gone.
    pub(super) fn forget(&mut self, uid: &str) {
        self.pods.remove(uid);
    }

    /// Everything has been said: what was not named is gone.
    pub(super) fn named_all(&mut self) {
        let connection = self.connection;
        self.pods.retain(|_, entry| entry.named == connection);
        self.owed = true;
    }

    /// Whether the snapshot is to be made now: true once.
    pub(super) fn settle(&mut self) -> bool {
        let now = self.owed && self.pods.is_empty();
        self.owed &= !now;
        now
    }

    /// Pods to be tried now.
    pub(super) fn due(&mut self, now: Instant) -> Vec<(ZdsPod, N)> {
        let due = self.pods.values_mut().filter(|entry| !entry.under_way && entry.not_before <= now);
        due.map(|entry| {
            entry.under_way = true;
            (entry.pod.clone(), entry.netns.clone())
        })
        .collect()
    }

    /// When there is something to do next.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.pods.values().filter(|entry| !entry.under_way).map(|entry| entry.not_before).min()
    }

    /// An attempt of [`Waiting::due`] has ended. What became of the pod meanwhile counts more. Gives back whether it is news for people.
    pub(super) fn tried(&mut self, uid: &str, result: Result<(), String>, now: Instant) -> bool {
        let Some(entry) = self.pods.get_mut(uid).filter(|entry| entry.under_way) else { return false };
        match result {
            Ok(()) => {
                self.pods.remove(uid);
                true
            }
            Err(reason) => {
                let wait = FIRST_WAIT.saturating_mul(1 << entry.failures.min(16)).min(LONGEST_WAIT);
                let is_news = entry.reason != reason;
                (entry.under_way, entry.not_before) = (false, now + wait);
                (entry.failures, entry.reason) = (entry.failures.saturating_add(1), reason);
                is_news
            }
        }
    }

    /// Who waits, and why.
    pub(super) fn view(&self) -> impl Iterator<Item = (&ZdsPod, &str)> {
        self.pods.values().map(|entry| (&entry.pod, entry.reason.as_str()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(uid: &str) -> ZdsPod {
        ZdsPod { uid: uid.into(), namespace: "ns".into(), name: uid.into(), service_account: "sa".into() }
    }

    fn names(due: Vec<(ZdsPod, u8)>) -> Vec<String> {
        due.into_iter().map(|(pod, _)| pod.uid.to_string()).collect()
    }

    #[test]
    fn what_failed_is_tried_again_ever_later() {
        let (mut waiting, start) = (Waiting::default(), Instant::now());
        waiting.failed(pod("a"), 0, "no address".into(), start);
        assert!(waiting.due(start).is_empty());
        let mut now = start;
        let mut waits = Vec::new();
        for _ in 0..9 {
            let next = waiting.next_due().unwrap();
            waits.push((next - now).as_millis());
            now = next;
            assert_eq!(names(waiting.due(now)), ["a"]);
            assert!(waiting.due(now).is_empty() && waiting.next_due().is_none(), "one attempt at a time");
            assert!(!waiting.tried("a", Err("no address".into()), now), "said already");
        }
        assert_eq!(waits, [100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000]);
        waiting.due(now + LONGEST_WAIT);
        assert!(waiting.tried("a", Err("no cgroup".into()), now), "another reason is news");
        waiting.due(now + LONGEST_WAIT);
        assert!(waiting.tried("a", Ok(()), now) && waiting.view().next().is_none());
    }

    #[test]
    fn hardening_b132_the_snapshot_waits_for_every_pod_that_was_named() {
        let (mut waiting, now) = (Waiting::default(), Instant::now());
        waiting.opened();
        assert!(!waiting.settle());
        waiting.failed(pod("a"), 0, "not yet".into(), now);
        waiting.failed(pod("b"), 0, "not yet".into(), now);
        waiting.named_all();
        assert!(!waiting.settle());
        waiting.forget("b");
        assert!(!waiting.settle());
        waiting.due(now + FIRST_WAIT);
        waiting.tried("a", Ok(()), now);
        assert!(waiting.settle() && !waiting.settle(), "once");
    }

    #[test]
    fn hardening_b131_what_the_next_connection_does_not_name_is_forgotten() {
        let (mut waiting, now) = (Waiting::default(), Instant::now());
        waiting.opened();
        waiting.failed(pod("a"), 0, "not yet".into(), now);
        waiting.failed(pod("b"), 0, "not yet".into(), now);
        waiting.named_all();
        waiting.opened();
        assert!(!waiting.settle(), "the new connection has not said everything");
        waiting.failed(pod("b"), 1, "not yet".into(), now);
        waiting.named_all();
        assert_eq!(names(waiting.due(now + FIRST_WAIT)), ["b"]);
    }

    #[test]
    fn hardening_b131_the_end_of_an_attempt_says_nothing_of_a_pod_that_was_named_again() {
        let (mut waiting, now) = (Waiting::default(), Instant::now());
        waiting.opened();
        waiting.failed(pod("a"), 0, "not yet".into(), now);
        waiting.due(now + FIRST_WAIT);
        waiting.failed(pod("a"), 1, "another network namespace".into(), now);
        assert!(!waiting.tried("a", Ok(()), now));
        assert_eq!(waiting.due(now + FIRST_WAIT), [(pod("a"), 1)]);
        waiting.forget("a");
        assert!(!waiting.tried("a", Err("late".into()), now) && waiting.next_due().is_none());
    }

    #[test]
    fn hardening_b131_more_pods_than_a_node_has_do_not_fill_the_memory() {
        let (mut waiting, now) = (Waiting::default(), Instant::now());
        for n in 0..MOST + 10 {
            waiting.failed(pod(&n.to_string()), 0, "no".into(), now);
        }
        assert_eq!(waiting.view().count(), MOST);
    }
}
