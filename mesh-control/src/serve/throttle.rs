//! How many streams do at once what takes much. When a thousand nodes come back together, each of them lists what it has, which is many times larger in
//! memory than a stream is otherwise, and is then sent what it lacks: one after the other they are done sooner, and not all of it is there at the same
//! time. Streams ask before they read, and before they send; each node has one place: no node keeps the others waiting. The waypoints of
//! a namespace have one, too, and all waypoints together places of their own: nobody who may make pods keeps agents waiting.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use mesh_runtime::task;
use parking_lot::Mutex;
use tokio::sync::{Semaphore, oneshot};

use crate::access::who::Share;

/// Responses that are smaller do not count.
const LARGE: usize = 1 << 20;
/// Streams with large responses under way at once.
const AT_ONCE: usize = 16;
/// The same of waypoints, of each limit that agents have.
const WAYPOINTS: usize = 4;
/// A client that has not answered after this holds up nobody any longer.
const PATIENCE: Duration = Duration::from_secs(60);
/// Streams whose first requests are read at once.
const READ_AT_ONCE: usize = 8;
/// For them to arrive, as far as others wait for it.
const READ_PATIENCE: Duration = Duration::from_secs(5);

/// Whether a response of so many bytes needs a place.
pub fn is_large(bytes: usize) -> bool {
    bytes >= LARGE
}

/// Shared by all streams.
#[derive(Clone, Debug)]
pub struct Throttle {
    nodes: Arc<Semaphore>,
    waypoints: Arc<Semaphore>,
    /// One for each share of which there is a place or somebody wants one. A short critical section.
    turns: Arc<Mutex<HashMap<Share, Arc<Semaphore>>>>,
    patience: Duration,
}

/// A place, held until it is dropped or the patience is over.
#[derive(Debug)]
pub struct Place(#[expect(dead_code, reason = "its end is what counts")] oneshot::Sender<()>);

impl Default for Throttle {
    fn default() -> Self {
        Self::new(AT_ONCE, PATIENCE)
    }
}

impl Throttle {
    /// For first requests.
    pub fn reading() -> Self {
        Self::new(READ_AT_ONCE, READ_PATIENCE)
    }

    fn new(at_once: usize, patience: Duration) -> Self {
        let places = |most: usize| Arc::new(Semaphore::new(most));
        Self { nodes: places(at_once), waypoints: places(at_once.min(WAYPOINTS)), turns: Arc::default(), patience }
    }

    /// Waits for the turn of whose share it is and then for a place. `None` only if the process ends.
    pub async fn place(&self, share: &Share) -> Option<Place> {
        let own = self.turn(share).acquire_owned().await.ok()?;
        let places = match share {
            Share::Node(_) => &self.nodes,
            Share::Waypoints(_) => &self.waypoints,
        };
        let permit = (own, places.clone().acquire_owned().await.ok()?);
        let (place, left) = oneshot::channel();
        let patience = self.patience;
        task::spawn("large response", async move {
            let _ = tokio::time::timeout(patience, left).await;
            drop(permit);
        });
        Some(Place(place))
    }

    fn turn(&self, share: &Share) -> Arc<Semaphore> {
        let mut turns = self.turns.lock();
        // Whoever holds a turn or waits for one holds the semaphore.
        turns.retain(|_, turn| Arc::strong_count(turn) > 1);
        turns.entry(share.clone()).or_insert_with(|| Arc::new(Semaphore::new(1))).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str) -> Share {
        Share::Node(name.into())
    }

    fn of(namespace: &str) -> Share {
        Share::Waypoints(namespace.into())
    }

    #[tokio::test]
    async fn waypoints_have_places_of_their_own_and_a_namespace_has_one() {
        let throttle = Throttle::new(2, Duration::from_secs(3600));
        let wait = |share: Share| {
            let throttle = throttle.clone();
            async move { tokio::time::timeout(Duration::from_secs(20), throttle.place(&share)).await.unwrap() }
        };
        let (_a, b) = (wait(of("a")).await, wait(of("b")).await);
        let queued: Vec<_> = ["a", "c"].map(|namespace| tokio::spawn(wait(of(namespace)))).into();
        // All places of waypoints are taken, and a node called as a namespace is nobody of them.
        let _nodes = (wait(node("a")).await, wait(node("b")).await);
        assert!(queued.iter().all(|task| !task.is_finished()));
        drop(b);
        let mut queued = queued.into_iter();
        let (again, other) = (queued.next().unwrap(), queued.next().unwrap());
        assert!(other.await.unwrap().is_some() && !again.is_finished());
    }

    #[tokio::test]
    async fn hardening_B103_large_responses_take_turns() {
        let throttle = Throttle::new(2, Duration::from_secs(3600));
        let first = throttle.place(&node("a")).await;
        let _second = throttle.place(&node("b")).await;
        let other = throttle.clone();
        let third = tokio::spawn(async move { other.place(&node("c")).await });
        tokio::task::yield_now().await;
        assert!(!third.is_finished());
        drop(first);
        let third = tokio::time::timeout(Duration::from_secs(20), third).await;
        assert!(third.unwrap().unwrap().is_some());
    }

    #[tokio::test]
    async fn a_client_that_does_not_answer_loses_its_place() {
        let throttle = Throttle::new(1, Duration::from_millis(10));
        let silent = throttle.place(&node("a")).await;
        assert!(tokio::time::timeout(Duration::from_secs(20), throttle.place(&node("a"))).await.unwrap().is_some());
        drop(silent);
    }

    #[tokio::test]
    async fn hardening_B103_one_node_does_not_hold_every_place() {
        let throttle = Throttle::new(2, Duration::from_secs(3600));
        let first = throttle.place(&node("a")).await;
        let again = throttle.clone();
        let again = tokio::spawn(async move { again.place(&node("a")).await });
        tokio::task::yield_now().await;
        let other = tokio::time::timeout(Duration::from_secs(20), throttle.place(&node("b"))).await;
        assert!(other.unwrap().is_some() && !again.is_finished());
        drop(first);
        assert!(tokio::time::timeout(Duration::from_secs(20), again).await.unwrap().unwrap().is_some());
    }
}
