//! Turns of connects to apps. Each connect that is under way has a place in the kernel's table of clients, and an app that does not accept keeps it for
//! long; [`super::deliver`] takes a turn for each, so that neither a pod nor a port gets what others need.
//!
//! ```text
//! port    so many at a time; more wait for a turn of this port
//!         a port holds no more than a quarter of what the pod has left
//! pod     its own share of the table, and no more than a quarter of what is free in the rest
//! ```
//! So what waits for a port that does not answer is in nobody's way, and no number of pods fills the table: their own shares always fit.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use mesh_common::decide;
use parking_lot::Mutex;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

/// How soon the first in line of a port looks again for a place, if none of the pod is given back before: what another pod gives back may do, and who
/// was woken may have been one that may not have it. So wait ports that hold more than their part, and all of them when the pod has no place left.
const AGAIN: Duration = Duration::from_millis(20);
/// And how soon after many looks in vain.
const AGAIN_AT_LAST: Duration = Duration::from_millis(160);

/// The part of the table that belongs to no pod; one for the node.
#[derive(Debug)]
pub struct Table {
    /// Places that each pod has for itself.
    share: u32,
    /// Places for all.
    pool: u32,
    /// Of the pool.
    taken: AtomicU32,
}

/// The turns of one pod.
#[derive(Debug)]
pub struct Turns {
    table: Arc<Table>,
    per_port: usize,
    /// A short lock, twice per connect to an app of the pod, never over an await.
    held: Mutex<Held>,
    /// A place was given back.
    freed: Notify,
}

#[derive(Debug, Default)]
struct Held {
    /// Places of all ports.
    places: u32,
    /// Those that somebody connects to.
    ports: HashMap<SocketAddr, Port>,
}

#[derive(Debug)]
struct Port {
    turns: Arc<Semaphore>,
    /// Who has a turn and no place yet, one at a time, in the order of their coming.
    door: Arc<Semaphore>,
    places: u32,
    /// Who has a turn or waits for one.
    users: u32,
}

/// One connect may be under way; over when dropped.
#[derive(Debug)]
pub struct Turn<'a> {
    placed: bool,
    _permit: Option<OwnedSemaphorePermit>,
    turns: &'a Turns,
    target: SocketAddr,
}

impl Table {
    /// A table with places for `places` connects, of which half belong to the `pods` that there may be.
    pub fn new(places: u32, pods: u32) -> Arc<Table> {
        let (share, pool) = decide::divide(places, pods);
        Arc::new(Table { share, pool, taken: AtomicU32::new(0) })
    }

    /// One more place for a port that holds `port` of the pod's `pod`; false if there is none.
    fn take(&self, pod: u32, port: u32) -> bool {
        let of_pool = (pod + 1).saturating_sub(self.share);
        // Made before the comparison, so that what does not fit is given back.
        let before = match of_pool {
            0 => self.taken.load(Ordering::Acquire),
            _ => self.taken.fetch_add(1, Ordering::AcqRel),
        };
        let of_others = before.saturating_sub(of_pool.saturating_sub(1));
        // A quarter of what is free when the pod has taken it is a fifth of what is free without the pod.
        let pod_may = self.share + self.pool.saturating_sub(of_others) / 5;
        let fair = (of_pool == 0 || decide::is_fair(of_pool.into(), u64::from(before) + 1, self.pool.into()))
            && decide::is_fair(u64::from(port) + 1, u64::from(pod) + 1, pod_may.into());
        if !fair {
            self.give_back(pod + 1);
        }
        fair
    }

    /// The last place of a pod that holds `pod`.
    fn give_back(&self, pod: u32) {
        if pod > self.share {
            self.taken.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

impl Turns {
    /// Those of a pod, whose every port has `per_port`.
    pub fn new(table: Arc<Table>, per_port: usize) -> Turns {
        Turns { table, per_port, held: Mutex::default(), freed: Notify::new() }
    }

    /// Waits until a connect to `target` may begin. Connects to other ports are waited for only when the pod has no place left at all.
    pub async fn take(&self, target: SocketAddr) -> io::Result<Turn<'_>> {
        let mut turn = Turn { placed: false, _permit: None, turns: self, target };
        let (turns, door) = self.enter(target);
        turn._permit = Some(turns.acquire_owned().await.map_err(io::Error::other)?);
        // The others of this port would find none either, and look in vain.
        let _first = door.acquire().await.map_err(io::Error::other)?;
        let mut again = AGAIN;
        while !self.place(target) {
            if tokio::time::timeout(again, self.freed.notified()).await.is_err() {
                again = (again * 2).min(AGAIN_AT_LAST);
            }
        }
        turn.placed = true;
        Ok(turn)
    }

    /// Counted once for each [`Turn`], which leaves again.
    fn enter(&self, target: SocketAddr) -> (Arc<Semaphore>, Arc<Semaphore>) {
        let mut held = self.held.lock();
        let port = held.ports.entry(target).or_insert_with(|| Port {
            turns: Arc::new(Semaphore::new(self.per_port)),
            door: Arc::new(Semaphore::new(1)),
            places: 0,
            users: 0,
        });
        port.users += 1;
        (port.turns.clone(), port.door.clone())
    }

    fn place(&self, target: SocketAddr) -> bool {
        let held = &mut *self.held.lock();
        let Some(port) = held.ports.get_mut(&target) else { return false };
        let taken = self.table.take(held.places, port.places);
        held.places += u32::from(taken);
        port.places += u32::from(taken);
        taken
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let held = &mut *self.turns.held.lock();
        let Some(port) = held.ports.get_mut(&self.target) else { return };
        if self.placed {
            self.turns.freed.notify_one();
            self.turns.table.give_back(held.places);
            held.places -= 1;
            port.places -= 1;
        }
        port.users -= 1;
        if port.users == 0 {
            held.ports.remove(&self.target);
        }
    }
}

#[cfg(test)]
#[allow(non_snake_case, reason = "tests carry the ids of the rows that they prove")]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Waker};

    use super::*;

    fn port(port: u16) -> SocketAddr {
        SocketAddr::from(([198, 18, 0, 1], port))
    }

    /// As many turns as there are at once.
    async fn exhaust(turns: &Turns, target: SocketAddr) -> Vec<Turn<'_>> {
        let mut all = Vec::new();
        while let Some(turn) = now(turns.take(target)) {
            all.push(turn);
        }
        all
    }

    fn now<'a>(take: impl Future<Output = io::Result<Turn<'a>>>) -> Option<Turn<'a>> {
        // Without the limit that sends a task to the back of the queue.
        match pin!(tokio::task::unconstrained(take)).poll(&mut Context::from_waker(Waker::noop())) {
            std::task::Poll::Ready(turn) => Some(turn.unwrap()),
            std::task::Poll::Pending => None,
        }
    }

    #[tokio::test]
    async fn hardening_R20_a_port_waits_for_its_own_turns_only() {
        let turns = Turns::new(Table::new(32_768, 1_024), 512);
        let hung = exhaust(&turns, port(1)).await;
        assert_eq!(hung.len(), 512);
        // Each further port that hangs gets less, and the next one still enough.
        let mut all: Vec<_> = Vec::new();
        for other in 2..=16 {
            all.extend(exhaust(&turns, port(other)).await);
        }
        let next = exhaust(&turns, port(17)).await;
        assert!(next.len() >= 16, "{} and {} leave {}", hung.len(), all.len(), next.len());
        drop(hung);
        assert!(now(turns.take(port(1))).is_some());
        drop((next, all));
        assert!(turns.held.lock().ports.is_empty() && turns.held.lock().places == 0);
        assert_eq!(turns.table.taken.load(Ordering::Acquire), 0);
    }

    #[tokio::test]
    async fn hardening_R20_pods_do_not_fill_the_table_of_the_node() {
        let (places, pods) = (3_200, 100);
        let table = Table::new(places, pods);
        let greedy: Vec<Turns> = (0..pods).map(|_| Turns::new(table.clone(), 512)).collect();
        let mut held = Vec::new();
        for (n, turns) in greedy.iter().enumerate() {
            let before = held.len();
            for target in 1..=200 {
                held.extend(exhaust(turns, port(target)).await);
            }
            // The own share, whoever came before.
            assert!(held.len() - before >= 16, "pod {n}: {}", held.len() - before);
            if n == 1 {
                assert!(held.len() < places as usize / 2, "two pods hold {}", held.len());
            }
        }
        assert!(held.len() <= places as usize, "{}", held.len());
        held.clear();
        assert_eq!(table.taken.load(Ordering::Acquire), 0);
    }

    /// What waits for a place of the pod, not for the port's turn, goes on when one is given back: no time passes in this test.
    #[tokio::test(start_paused = true)]
    async fn a_place_is_handed_on() {
        let turns = Turns::new(Table::new(32, 1), 512);
        let mut all = exhaust(&turns, port(1)).await;
        assert!(all.len() < 32);
        let mut waits = Box::pin(turns.take(port(1)));
        let mut context = Context::from_waker(Waker::noop());
        assert!(waits.as_mut().poll(&mut context).is_pending());
        all.pop();
        assert!(waits.as_mut().poll(&mut context).is_ready());
    }

    /// A port's next in line goes on when a turn is over, and one that gives up waiting leaves nothing behind.
    #[tokio::test]
    async fn a_turn_is_handed_on() {
        let turns = Turns::new(Table::new(32_768, 1_024), 1);
        let first = now(turns.take(port(1))).unwrap();
        let mut second = Box::pin(turns.take(port(1)));
        let mut context = Context::from_waker(Waker::noop());
        assert!(second.as_mut().poll(&mut context).is_pending());
        assert!(now(turns.take(port(1))).is_none());
        assert!(now(turns.take(port(2))).is_some(), "another port");
        drop(first);
        let second = second.await.unwrap();
        drop(second);
        assert!(turns.held.lock().ports.is_empty());
    }
}
