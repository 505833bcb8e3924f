//! The numbers of the requests of one label set.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::labels::Labels;
use super::{Measured, Protocol};

/// Upper ends of durations, Envoy's.
pub(super) const MILLISECONDS: [f64; 19] = [
    0.5,
    1.0,
    5.0,
    10.0,
    25.0,
    50.0,
    100.0,
    250.0,
    500.0,
    1_000.0,
    2_500.0,
    5_000.0,
    10_000.0,
    30_000.0,
    60_000.0,
    300_000.0,
    600_000.0,
    1_800_000.0,
    3_600_000.0,
];
/// Upper ends of sizes: the same numbers, as Envoy does it.
pub(super) const BYTES: [f64; 19] = MILLISECONDS;

const COUNT: usize = MILLISECONDS.len() + 1;

/// Counted by one thread, read by a scrape.
#[derive(Debug)]
pub(super) struct Series {
    pub(super) labels: Labels,
    /// When the last request ended, in the lane's milliseconds.
    used: AtomicU64,
    requests: AtomicU64,
    duration: [AtomicU64; COUNT],
    /// Microseconds.
    duration_sum: AtomicU64,
    received: [AtomicU64; COUNT],
    received_sum: AtomicU64,
    sent: [AtomicU64; COUNT],
    sent_sum: AtomicU64,
    messages_received: AtomicU64,
    messages_sent: AtomicU64,
}

impl Series {
    pub(super) fn new(labels: Labels) -> Self {
        let counts = || std::array::from_fn(|_| AtomicU64::new(0));
        Self {
            labels,
            used: AtomicU64::new(0),
            requests: AtomicU64::new(0),
            duration: counts(),
            duration_sum: AtomicU64::new(0),
            received: counts(),
            received_sum: AtomicU64::new(0),
            sent: counts(),
            sent_sum: AtomicU64::new(0),
            messages_received: AtomicU64::new(0),
            messages_sent: AtomicU64::new(0),
        }
    }

    /// When it was used last.
    pub(super) fn used(&self) -> u64 {
        self.used.load(Relaxed)
    }

    /// Counts a request. Only one thread at a time may: it holds the lock under which the series is found.
    pub(super) fn add(&self, measured: &Measured, now: u64) {
        self.used.store(now, Relaxed);
        more(&self.requests, 1);
        let micros = u64::try_from(measured.duration.as_micros()).unwrap_or(u64::MAX);
        more(&self.duration[bucket(&MILLISECONDS, micros as f64 / 1000.0)], 1);
        more(&self.duration_sum, micros);
        more(&self.received[bucket(&BYTES, measured.received as f64)], 1);
        more(&self.received_sum, measured.received);
        more(&self.sent[bucket(&BYTES, measured.sent as f64)], 1);
        more(&self.sent_sum, measured.sent);
        if measured.protocol == Protocol::Grpc {
            more(&self.messages_received, measured.messages_received);
            more(&self.messages_sent, measured.messages_sent);
        }
    }
}

/// Adds to a number that one thread writes and others read: an addition that others may write beside costs ten times as much.
fn more(number: &AtomicU64, by: u64) {
    number.store(number.load(Relaxed).wrapping_add(by), Relaxed);
}

fn bucket(bounds: &[f64], value: f64) -> usize {
    bounds.partition_point(|bound| *bound < value)
}

/// Sums of several lanes.
#[derive(Debug, Default)]
pub(super) struct Totals {
    pub(super) requests: u64,
    pub(super) duration: [u64; COUNT],
    pub(super) duration_sum: f64,
    pub(super) received: [u64; COUNT],
    pub(super) received_sum: f64,
    pub(super) sent: [u64; COUNT],
    pub(super) sent_sum: f64,
    pub(super) messages_received: u64,
    pub(super) messages_sent: u64,
}

impl Totals {
    pub(super) fn add(&mut self, series: &Series) {
        let sum = |to: &mut [u64; COUNT], from: &[AtomicU64; COUNT]| {
            to.iter_mut().zip(from).for_each(|(to, from)| *to += from.load(Relaxed));
        };
        self.requests += series.requests.load(Relaxed);
        sum(&mut self.duration, &series.duration);
        sum(&mut self.received, &series.received);
        sum(&mut self.sent, &series.sent);
        self.duration_sum += series.duration_sum.load(Relaxed) as f64 / 1000.0;
        self.received_sum += series.received_sum.load(Relaxed) as f64;
        self.sent_sum += series.sent_sum.load(Relaxed) as f64;
        self.messages_received += series.messages_received.load(Relaxed);
        self.messages_sent += series.messages_sent.load(Relaxed);
    }

    /// Adds those of another label set.
    pub(super) fn join(&mut self, other: &Self) {
        let sum =
            |to: &mut [u64; COUNT], from: &[u64; COUNT]| to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
        self.requests += other.requests;
        sum(&mut self.duration, &other.duration);
        sum(&mut self.received, &other.received);
        sum(&mut self.sent, &other.sent);
        self.duration_sum += other.duration_sum;
        self.received_sum += other.received_sum;
        self.sent_sum += other.sent_sum;
        self.messages_received += other.messages_received;
        self.messages_sent += other.messages_sent;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_in_the_first_bucket_whose_end_it_does_not_exceed() {
        for (value, expected) in [(0.0, 0), (0.5, 0), (0.6, 1), (1.0, 1), (3_600_000.0, 18), (3_600_001.0, 19)] {
            assert_eq!(bucket(&MILLISECONDS, value), expected, "{value}");
        }
    }
}
