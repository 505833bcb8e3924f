//! How the network carries connections between two ends: what was counted of the TCP of such a pair, under whatever labels tell pairs apart, bounded, forgotten
//! when nobody counts there any more, and printed as `undermesh_tcp_*`.
//!
//! ```text
//!  who opens a connection -> PathTable::counters(labels) -> PathCounters <- Progress: whoever looks at the socket
//!                            full: one label set for the rest
//!  scrape: what was counted so far       expire: nobody holds it, nobody has asked for it in the grace time, and its ends are gone
//! ```
//! A socket's numbers say what its own end has sent; what the other end has sent is for the other end to tell.

mod labels;

use std::collections::HashMap;
use std::fmt::{self, Debug};
use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::RwLock;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;

pub use labels::{PathEnd, PathLabels};

/// Upper bounds of the buckets of round trips, in microseconds: from inside a node to around the earth, two in each decade.
const ROUND_TRIPS: [u32; 9] = [100, 300, 1_000, 3_000, 10_000, 30_000, 100_000, 300_000, 1_000_000];

/// What has happened on a connection since somebody last looked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    /// The smoothed round trip, if it was measured meanwhile.
    pub round_trip: Option<Duration>,
    /// Segments with data that were sent, those that were sent again among them.
    pub sent: u32,
    /// Segments that were sent again.
    pub retransmitted: u32,
    /// Segments that the receiver has told to have had twice: sent again in vain.
    pub duplicates: u32,
}

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
    /// Smoothed round trips that were seen, in each bucket alone.
    pub round_trips: [u64; ROUND_TRIPS.len() + 1],
    /// Their sum in microseconds.
    pub round_trip_sum: u64,
}

impl PathCounters {
    /// Counts what has happened.
    pub fn add(&self, progress: &Progress) {
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

    /// What was counted so far; none if nobody was able to look at a connection yet.
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

/// The counters of all pairs.
#[derive(Debug)]
pub struct PathTable<L> {
    cap: usize,
    /// Locked for a look-up per plain connection and per tunnel, of the rest for two; for writing when a pair is new, and by `expire`.
    table: RwLock<HashMap<L, Entry>>,
}

#[derive(Debug)]
struct Entry {
    counters: Arc<PathCounters>,
    /// When somebody last asked for them, or was seen to hold them.
    used: AtomicU64,
}

impl Entry {
    /// Somebody counts here.
    fn used(&self, now: u64) -> Arc<PathCounters> {
        self.used.fetch_max(now, Relaxed);
        Arc::clone(&self.counters)
    }
}

impl<L: Eq + Hash + Clone> PathTable<L> {
    /// Room for so many pairs.
    pub fn new(cap: usize) -> Self {
        Self { cap, table: RwLock::default() }
    }

    /// Where connections of these labels are counted; if there is no room for them, where all such are. `now` is milliseconds since whenever.
    pub fn counters(&self, labels: L, overflow: impl Fn() -> L, now: u64) -> Arc<PathCounters> {
        let find = |table: &HashMap<L, Entry>| {
            let rest = || if table.len() < self.cap { None } else { table.get(&overflow()) };
            table.get(&labels).or_else(rest).map(|entry| entry.used(now))
        };
        if let Some(counters) = find(&self.table.read()) {
            return counters;
        }
        let mut table = self.table.write();
        if let Some(counters) = find(&table) {
            return counters;
        }
        let labels = if table.len() >= self.cap { overflow() } else { labels };
        table.entry(labels).or_insert_with(|| Entry { counters: Arc::default(), used: now.into() }).used(now)
    }

    /// Forgets the pairs that nobody counts for, nor has for `grace`, and whose ends are gone. `is_known` is made only if it is needed.
    pub fn expire<K: Fn(&L) -> bool>(&self, is_known: impl FnOnce() -> K, now: u64, grace: Duration) {
        let grace = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
        let mut table = self.table.write();
        // Who has the counters got them under this lock: nobody gets them while they are judged.
        for entry in table.values_mut().filter(|entry| Arc::strong_count(&entry.counters) > 1) {
            *entry.used.get_mut() = now;
        }
        let is_idle = |entry: &Entry| now.saturating_sub(entry.used.load(Relaxed)) > grace;
        if table.values().any(is_idle) {
            let is_known = is_known();
            table.retain(|labels, entry| !is_idle(entry) || is_known(labels));
        }
    }
}

/// The name of a counter, what it is, and where it stands.
type Family = (&'static str, &'static str, fn(&PathTotals) -> u64);

impl<L> Collector for PathTable<L>
where
    L: EncodeLabelSet + Eq + Hash + Clone + Debug + Send + Sync + 'static,
{
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        // What nobody could look at is not known, and not nothing.
        let read = |(labels, entry): (&L, &Entry)| Some((labels.clone(), entry.counters.totals()?));
        let all: Vec<(L, PathTotals)> = self.table.read().iter().filter_map(read).collect();
        if all.is_empty() {
            return Ok(());
        }
        let counters: [Family; 3] = [
            (
                "undermesh_tcp_segments",
                "TCP segments with data that this end has sent over the network, those sent again among them",
                |totals| totals.sent,
            ),
            ("undermesh_tcp_retransmitted_segments", "TCP segments that this end has sent again", |totals| {
                totals.retransmitted
            }),
            (
                "undermesh_tcp_duplicate_segments",
                "TCP segments that the other end has told to have had twice: they were sent again in vain",
                |totals| totals.duplicates,
            ),
        ];
        for (name, help, value) in counters {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for (labels, totals) in &all {
                ConstCounter::new(value(totals)).encode(family.encode_family(labels)?)?;
            }
        }
        round_trips(&mut encoder, &all)
    }
}

/// Of pairs where one was measured.
fn round_trips<L: EncodeLabelSet>(encoder: &mut DescriptorEncoder<'_>, all: &[(L, PathTotals)]) -> fmt::Result {
    let mut measured = all.iter().filter(|(_, totals)| totals.round_trips.iter().any(|count| *count > 0)).peekable();
    if measured.peek().is_none() {
        return Ok(());
    }
    let help = "Smoothed round trips of TCP over the network, seen every ten seconds of a connection on which something was acknowledged, and at its end";
    let mut family = encoder.encode_descriptor("undermesh_tcp_rtt_seconds", help, None, MetricType::Histogram)?;
    for (labels, totals) in measured {
        let bounds = ROUND_TRIPS.iter().map(|micros| f64::from(*micros) / 1e6).chain([f64::INFINITY]);
        let buckets: Vec<(f64, u64)> = bounds.zip(totals.round_trips).collect();
        let (sum, count) = (totals.round_trip_sum as f64 / 1e6, totals.round_trips.iter().sum());
        family.encode_family(labels)?.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{Registry, encode};

    const GRACE: Duration = Duration::from_secs(300);
    type Labels = [(&'static str, &'static str); 1];

    fn pair(name: &'static str) -> Labels {
        [("pair", name)]
    }

    fn table(cap: usize) -> Arc<PathTable<Labels>> {
        Arc::new(PathTable::new(cap))
    }

    fn counters(table: &PathTable<Labels>, name: &'static str) -> Arc<PathCounters> {
        table.counters(pair(name), || pair("overflow"), 0)
    }

    /// The samples of a scrape, sorted.
    fn samples(table: &Arc<PathTable<Labels>>) -> Vec<String> {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(table.clone()));
        let text = encode(&registry);
        let mut samples: Vec<_> = text.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect();
        samples.sort_unstable();
        samples
    }

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

    #[test]
    fn what_was_counted_is_shown_and_nothing_that_nobody_has_looked_at() {
        let table = table(8);
        let held = counters(&table, "a");
        assert_eq!(samples(&table), [""; 0]);
        held.add(&Progress { sent: 5, retransmitted: 2, ..Progress::default() });
        let only_counters = [
            "undermesh_tcp_duplicate_segments_total{pair=\"a\"} 0",
            "undermesh_tcp_retransmitted_segments_total{pair=\"a\"} 2",
            "undermesh_tcp_segments_total{pair=\"a\"} 5",
        ];
        assert_eq!(samples(&table), only_counters, "no round trip was measured");
        for micros in [200, 250, 2_000_000] {
            counters(&table, "a").add(&Progress {
                round_trip: Some(Duration::from_micros(micros)),
                duplicates: 1,
                ..Progress::default()
            });
        }
        let shown = samples(&table);
        for line in [
            "undermesh_tcp_duplicate_segments_total{pair=\"a\"} 3",
            "undermesh_tcp_rtt_seconds_bucket{le=\"0.0001\",pair=\"a\"} 0",
            "undermesh_tcp_rtt_seconds_bucket{le=\"0.0003\",pair=\"a\"} 2",
            "undermesh_tcp_rtt_seconds_bucket{le=\"1.0\",pair=\"a\"} 2",
            "undermesh_tcp_rtt_seconds_bucket{le=\"+Inf\",pair=\"a\"} 3",
            "undermesh_tcp_rtt_seconds_count{pair=\"a\"} 3",
            "undermesh_tcp_rtt_seconds_sum{pair=\"a\"} 2.00045",
            "undermesh_tcp_segments_total{pair=\"a\"} 5",
        ] {
            assert!(shown.iter().any(|one| one == line), "{line} in {shown:#?}");
        }
    }

    #[test]
    fn pairs_past_the_cap_share_one_label_set() {
        let table = table(2);
        for name in ["a", "b", "c", "d", "a"] {
            counters(&table, name).add(&Progress { sent: 1, ..Progress::default() });
        }
        let shown = samples(&table);
        let of = |name: &str| {
            let start = format!("undermesh_tcp_segments_total{{pair=\"{name}\"}} ");
            shown.iter().find_map(|line| line.strip_prefix(&start))
        };
        assert_eq!(["a", "b", "c", "overflow"].map(of), [Some("2"), Some("1"), None, Some("2")], "{shown:?}");
    }

    #[test]
    fn pairs_are_forgotten_when_their_ends_are_gone_and_nobody_counts_for_them() {
        let table = table(8);
        let later = |times: u32| u64::try_from((GRACE * times).as_millis()).unwrap() + 1;
        let expire = |now| {
            table.expire(|| |labels: &Labels| *labels == pair("there"), now, GRACE);
            let mut left: Vec<_> = table.table.read().keys().map(|[(_, name)]| *name).collect();
            left.sort_unstable();
            left
        };
        let open = counters(&table, "gone");
        drop((counters(&table, "also gone"), counters(&table, "there")));
        assert_eq!(expire(later(0)), ["also gone", "gone", "there"], "the last values are still to be scraped");
        assert_eq!(expire(later(1)), ["gone", "there"], "one has a connection, the other one its ends");
        drop(open);
        assert_eq!(expire(later(2)), ["gone", "there"], "until a moment ago");
        assert_eq!(expire(later(2) + 1), ["there"]);
    }

    /// A short connection between two sweeps is seen by none of them.
    #[test]
    fn pairs_that_are_asked_for_are_kept_though_no_sweep_sees_it() {
        let table = table(1);
        let count = |name: &'static str, now: u64| {
            table.counters(pair(name), || pair("overflow"), now).add(&Progress { sent: 1, ..Progress::default() });
        };
        let grace = u64::try_from(GRACE.as_millis()).unwrap();
        let mut now = 0;
        for _ in 0..3 {
            // The one of the table, one of those that have no room there, and a clock that another thread has read later.
            for (name, asked) in [("a", now), ("b", now), ("b", 0)] {
                count(name, asked);
            }
            now += grace;
            table.expire(|| |_: &Labels| false, now, GRACE);
        }
        let sent: Vec<_> = samples(&table).into_iter().filter(|line| line.contains("tcp_segments_total")).collect();
        let expected =
            [r#"undermesh_tcp_segments_total{pair="a"} 3"#, r#"undermesh_tcp_segments_total{pair="overflow"} 6"#];
        assert_eq!(sent, expected);
        table.expire(|| |_: &Labels| false, now + 1, GRACE);
        assert_eq!(samples(&table), [""; 0]);
    }
}
