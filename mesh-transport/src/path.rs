//! How the network carries connections, by what the kernel tells of their sockets: counted for all connections of one pair of ends, read by telemetry.
//!
//! ```text
//!  tunnel: its driver, at each PING and at its end ─┐
//!  plain socket: Watch, from time to time           ├─ Leg::look ── what is new since the last look ──> PathCounters
//!                Measured, when it is dropped       ┘
//! ```
//! A socket's counters say what this end has sent; what the other end has sent it counts itself. Nothing here is on the way of a byte.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use tokio::net::TcpStream;

use crate::socket::{Armed, Progress, TcpInfo};

/// Upper bounds of the buckets of round trips, in microseconds: from inside a node to around the earth, three in two decades.
pub const ROUND_TRIPS: [u32; 9] = [100, 300, 1_000, 3_000, 10_000, 30_000, 100_000, 300_000, 1_000_000];

/// What was counted for one pair of ends.
#[derive(Debug, Default)]
pub struct PathCounters {
    sent: AtomicU64,
    retransmitted: AtomicU64,
    duplicates: AtomicU64,
    /// By bucket; the last one is of those beyond all bounds.
    round_trips: [AtomicU64; ROUND_TRIPS.len() + 1],
    round_trip_sum: AtomicU64,
    is_known: AtomicBool,
}

/// The same, read.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct PathTotals {
    /// Segments with data that were sent, those that were sent again among them.
    pub sent: u64,
    /// Segments that were sent again.
    pub retransmitted: u64,
    /// Segments that the receiver has told to have had twice.
    pub duplicates: u64,
    /// Smoothed round trips that were seen, in each bucket of [`ROUND_TRIPS`] alone, and beyond.
    pub round_trips: [u64; ROUND_TRIPS.len() + 1],
    /// Their sum in microseconds.
    pub round_trip_sum: u64,
}

impl PathCounters {
    fn add(&self, progress: &Progress) {
        self.is_known.store(true, Relaxed);
        for (counter, more) in [
            (&self.sent, progress.sent),
            (&self.retransmitted, progress.retransmitted),
            (&self.duplicates, progress.duplicates),
        ] {
            counter.fetch_add(more.into(), Relaxed);
        }
        if let Some(round_trip) = progress.round_trip {
            let micros = round_trip.as_micros();
            let bucket = ROUND_TRIPS.partition_point(|bound| u128::from(*bound) < micros);
            self.round_trips[bucket].fetch_add(1, Relaxed);
            self.round_trip_sum.fetch_add(u64::try_from(micros).unwrap_or(u64::MAX), Relaxed);
        }
    }

    /// What was counted so far; none if the kernel has told of no connection yet.
    pub fn totals(&self) -> Option<PathTotals> {
        self.is_known.load(Relaxed).then(|| PathTotals {
            sent: self.sent.load(Relaxed),
            retransmitted: self.retransmitted.load(Relaxed),
            duplicates: self.duplicates.load(Relaxed),
            round_trips: self.round_trips.each_ref().map(|bucket| bucket.load(Relaxed)),
            round_trip_sum: self.round_trip_sum.load(Relaxed),
        })
    }
}

/// Where one connection is counted, and what of it was.
#[derive(Debug)]
pub(crate) struct Leg {
    counters: Arc<PathCounters>,
    /// The last look. Locked for one system call that does not wait, so that two looks never count the same.
    counted: Mutex<Option<TcpInfo>>,
}

impl Leg {
    pub(crate) fn new(counters: Arc<PathCounters>) -> Self {
        Self { counters, counted: Mutex::new(None) }
    }

    /// Counts what has happened since the last look.
    pub(crate) fn look(&self, socket: &TcpStream) {
        let mut counted = self.counted.lock();
        if let Some(now) = TcpInfo::of(socket) {
            self.counters.add(&now.since(counted.as_ref()));
            *counted = Some(now);
        }
    }
}

/// A socket over the network that is counted whenever somebody looks, and when it is dropped.
#[derive(Debug)]
pub struct Measured(Arc<Inner>);

/// Looks at a [`Measured`] socket as long as there is one, and does not keep it.
#[derive(Debug, Clone)]
pub struct Watch(Weak<Inner>);

#[derive(Debug)]
struct Inner {
    leg: Leg,
    socket: Armed,
}

impl Measured {
    /// Counts `socket` from its beginning.
    pub fn new(socket: Armed, counters: Arc<PathCounters>) -> Self {
        Self(Arc::new(Inner { leg: Leg::new(counters), socket }))
    }

    /// To look at it while somebody else has it.
    pub fn watch(&self) -> Watch {
        Watch(Arc::downgrade(&self.0))
    }
}

impl AsRef<Armed> for Measured {
    fn as_ref(&self) -> &Armed {
        &self.0.socket
    }
}

impl Watch {
    /// Counts what has happened since the last look.
    pub fn look(&self) {
        if let Some(inner) = self.0.upgrade() {
            inner.leg.look(&inner.socket);
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.leg.look(&self.socket);
    }
}

#[cfg(test)]
#[expect(non_snake_case, reason = "tests carry the ids of their rows")]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    #[test]
    fn round_trips_are_in_the_bucket_of_the_next_bound() {
        for (micros, bucket) in [(1, 0), (100, 0), (101, 1), (3_000, 3), (999_999, 8), (1_000_000, 8), (1_000_001, 9)] {
            let counters = PathCounters::default();
            assert_eq!(counters.totals(), None, "nobody has looked");
            counters.add(&Progress { round_trip: Some(Duration::from_micros(micros)), ..Progress::default() });
            let mut expected = PathTotals { round_trip_sum: micros, ..PathTotals::default() };
            expected.round_trips[bucket] = 1;
            assert_eq!(counters.totals(), Some(expected), "{micros}");
        }
    }

    #[tokio::test]
    async fn features_TM_13_what_was_counted_while_a_socket_lived_is_not_counted_again_at_its_end() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let socket = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut far, _) = listener.accept().await.unwrap();
        let counters = Arc::new(PathCounters::default());
        let measured = Measured::new(Armed::new(socket), counters.clone());
        let (near, watch) = (measured.as_ref(), measured.watch());
        let mut sent = Vec::new();
        for _ in 0..3 {
            near.try_write(b"x").unwrap();
            far.read_exact(&mut [0; 1]).await.unwrap();
            // The answer acknowledges what it answers.
            far.write_all(b"y").await.unwrap();
            near.readable().await.unwrap();
            near.try_read(&mut [0; 1]).unwrap();
            watch.look();
            sent.push(counters.totals().unwrap().sent);
        }
        assert_eq!(sent, [1, 2, 3]);
        let before = counters.totals().unwrap();
        assert_eq!(before.round_trips.iter().sum::<u64>(), 3, "one for each look at something new: {before:?}");
        watch.look();
        assert_eq!(counters.totals(), Some(before), "nothing has happened since");
        near.try_write(b"z").unwrap();
        drop(measured);
        let after = counters.totals().unwrap();
        assert_eq!(after.sent, 4, "and the rest at its end");
        watch.look();
        assert_eq!(counters.totals(), Some(after), "it is gone");
    }
}
