//! Who dials us: handshakes at once and how often per source address and in all, and tunnels, per source address and pod, and in all. Asked by the
//! acceptor before it spends anything on a connection.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;

/// Sources remembered before those that have been quiet are forgotten.
const SWEEP: usize = 1024;

/// The limits.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Under way at once, from one address and in all.
    pub(super) per_source: usize,
    pub(super) total: usize,
    /// Begun by one address each second, and at once after a quiet time.
    pub(super) per_second: u32,
    pub(super) burst: u32,
    /// Tunnels of one address to one of ours, handshakes included. A source has one for each of its threads and each pod that it talks to.
    pub(super) tunnels: usize,
    /// Tunnels in all, handshakes included; one address has a quarter of them at most.
    pub(super) tunnels_in_all: usize,
}

/// Which limit refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Limited {
    UnderWay,
    Rate,
    Tunnels,
}

/// Handshakes under way, and the recent ones.
#[derive(Debug)]
pub(super) struct HalfOpen {
    limits: Limits,
    /// Locked to count up or down.
    table: Mutex<Table>,
}

#[derive(Debug)]
struct Table {
    total: usize,
    tunnels: usize,
    /// Handshakes under way and tunnels by both addresses.
    pairs: HashMap<(IpAddr, IpAddr), usize>,
    sources: HashMap<IpAddr, Source>,
    sweep_at: usize,
}

/// What one address does.
#[derive(Debug)]
struct Source {
    under_way: usize,
    tunnels: usize,
    /// Handshakes that it may begin now; it earns more with time.
    credit: f64,
    at: Instant,
}

impl Source {
    fn earn(&mut self, limits: &Limits, now: Instant) {
        let earned = now.saturating_duration_since(self.at).as_secs_f64() * f64::from(limits.per_second);
        self.credit = (self.credit + earned).min(f64::from(limits.burst));
        self.at = now;
    }
}

/// A handshake under way, then the tunnel that it made.
#[derive(Debug)]
pub(super) struct Guard {
    half_open: Arc<HalfOpen>,
    source: IpAddr,
    local: IpAddr,
    is_tunnel: bool,
}

impl HalfOpen {
    pub(super) fn new(limits: Limits) -> Self {
        let (pairs, sources) = (HashMap::new(), HashMap::new());
        Self { limits, table: Mutex::new(Table { total: 0, tunnels: 0, pairs, sources, sweep_at: SWEEP }) }
    }

    pub(super) fn total(&self) -> usize {
        self.table.lock().total
    }

    pub(super) fn enter(self: &Arc<Self>, source: IpAddr, local: IpAddr, now: Instant) -> Result<Guard, Limited> {
        let limits = &self.limits;
        let mut table = self.table.lock();
        let table = &mut *table;
        if table.total >= limits.total {
            return Err(Limited::UnderWay);
        }
        let pair = table.pairs.get(&(source, local)).copied().unwrap_or_default();
        if pair >= limits.tunnels || table.total + table.tunnels >= limits.tunnels_in_all {
            return Err(Limited::Tunnels);
        }
        if table.sources.len() >= table.sweep_at {
            table.sweep(limits, now);
        }
        let fresh = || Source { under_way: 0, tunnels: 0, credit: f64::from(limits.burst), at: now };
        let entry = table.sources.entry(source).or_insert_with(fresh);
        if entry.under_way >= limits.per_source {
            return Err(Limited::UnderWay);
        }
        if entry.under_way + entry.tunnels >= limits.tunnels_in_all / 4 {
            return Err(Limited::Tunnels);
        }
        entry.earn(limits, now);
        if entry.credit < 1.0 {
            return Err(Limited::Rate);
        }
        entry.credit -= 1.0;
        entry.under_way += 1;
        table.total += 1;
        table.pairs.insert((source, local), pair + 1);
        Ok(Guard { half_open: self.clone(), source, local, is_tunnel: false })
    }
}

impl Table {
    /// Forgets sources that are as good as new.
    fn sweep(&mut self, limits: &Limits, now: Instant) {
        self.sources.retain(|_, source| {
            source.earn(limits, now);
            source.under_way + source.tunnels > 0 || source.credit < f64::from(limits.burst)
        });
        self.sweep_at = (2 * self.sources.len()).max(SWEEP);
    }
}

impl Guard {
    /// The handshake is done.
    pub(super) fn opened(&mut self) {
        let mut table = self.half_open.table.lock();
        self.is_tunnel = true;
        table.total -= 1;
        table.tunnels += 1;
        if let Some(source) = table.sources.get_mut(&self.source) {
            source.under_way -= 1;
            source.tunnels += 1;
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let mut table = self.half_open.table.lock();
        match self.is_tunnel {
            true => table.tunnels -= 1,
            false => table.total -= 1,
        }
        if let Entry::Occupied(mut pair) = table.pairs.entry((self.source, self.local)) {
            match pair.get() {
                0 | 1 => drop(pair.remove()),
                _ => *pair.get_mut() -= 1,
            }
        }
        if let Some(source) = table.sources.get_mut(&self.source) {
            match self.is_tunnel {
                true => source.tunnels -= 1,
                false => source.under_way -= 1,
            }
        }
    }
}

#[cfg(test)]
#[expect(non_snake_case, reason = "tests carry the ids of their rows")]
mod tests {
    use std::time::Duration;

    use super::*;

    const POD: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(198, 18, 0, 1));
    const SIBLING: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(198, 18, 0, 2));

    fn half_open() -> Arc<HalfOpen> {
        Arc::new(HalfOpen::new(Limits {
            per_source: 3,
            total: 5,
            per_second: 2,
            burst: 4,
            tunnels: 6,
            tunnels_in_all: 40,
        }))
    }

    fn address(number: u32) -> IpAddr {
        IpAddr::from((0x0a00_0000 + number).to_be_bytes())
    }

    #[test]
    fn hardening_F35_handshakes_under_way_are_capped_per_source_and_in_all() {
        let (half_open, now) = (half_open(), Instant::now());
        let enter = |number| half_open.enter(address(number), POD, now);
        let first: Vec<_> = (0..3).map(|_| enter(1).unwrap()).collect();
        assert!(matches!(enter(1), Err(Limited::UnderWay)));
        let others = [enter(2).unwrap(), enter(3).unwrap()];
        assert!(matches!(enter(4), Err(Limited::UnderWay)), "five in all");
        drop(others);
        assert!(enter(4).is_ok());
        drop(first);
        assert!(enter(1).is_ok(), "its credit is not used up");
        assert_eq!(half_open.total(), 0);
    }

    #[test]
    fn hardening_B23_handshakes_of_one_source_have_a_rate() {
        let (half_open, start) = (half_open(), Instant::now());
        // All of these end at once: nothing is under way, and still one address may only begin so many.
        let count = |number, now| (0..100).filter(|_| half_open.enter(address(number), POD, now).is_ok()).count();
        assert_eq!(count(1, start), 4, "the burst");
        assert!(matches!(half_open.enter(address(1), POD, start), Err(Limited::Rate)));
        assert_eq!(count(2, start), 4, "others are not affected");
        assert_eq!(count(1, start + Duration::from_secs(1)), 2, "two a second");
        assert_eq!(count(1, start + Duration::from_secs(60)), 4, "and never more than the burst");
    }

    #[test]
    fn hardening_F35_tunnels_of_one_source_are_capped_per_pod_and_in_all() {
        let (half_open, start) = (half_open(), Instant::now());
        let open = |source, pod, number| {
            let mut guard = half_open.enter(address(source), pod, start + Duration::from_secs(number)).unwrap();
            guard.opened();
            guard
        };
        let mut tunnels: Vec<_> = (0..6).map(|number| open(1, POD, number)).collect();
        let later = start + Duration::from_secs(60);
        assert_eq!(half_open.total(), 0);
        let refused = |source, pod| half_open.enter(address(source), pod, later).err();
        assert_eq!(refused(1, POD), Some(Limited::Tunnels));
        assert_eq!(refused(2, POD), None, "others are not affected");
        tunnels.pop();
        assert_eq!(refused(1, POD), None);

        // Five to one pod, then five to another one: a quarter of all that may be.
        let siblings: Vec<_> = (0..5).map(|number| open(1, SIBLING, 60 + number)).collect();
        assert_eq!([refused(1, POD), refused(1, SIBLING)], [Some(Limited::Tunnels); 2]);
        let others: Vec<_> = (0..30).map(|number| open(10 + number, POD, 70)).collect();
        assert_eq!(refused(2, POD), Some(Limited::Tunnels), "forty in all");
        drop((tunnels, siblings, others));
        assert_eq!([refused(1, POD), refused(2, SIBLING)], [None; 2]);
        let table = half_open.table.lock();
        assert_eq!((table.tunnels, table.pairs.len()), (0, 0));
    }

    #[test]
    fn quiet_sources_are_forgotten_and_busy_ones_are_not() {
        let (half_open, start) = (half_open(), Instant::now());
        let busy = half_open.enter(address(1 << 20), POD, start).unwrap();
        for number in 1..SWEEP as u32 {
            half_open.enter(address(number), POD, start).unwrap();
        }
        assert_eq!(half_open.table.lock().sources.len(), SWEEP);
        half_open.enter(address(1 << 21), POD, start + Duration::from_secs(60)).unwrap();
        assert_eq!(half_open.table.lock().sources.len(), 2);
        drop(busy);
        assert_eq!(half_open.total(), 0);
    }
}
