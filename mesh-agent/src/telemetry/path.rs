//! How the network carries connections, for each pair of workloads: round trips and segments that were sent again, as the kernel of the reporter's end
//! tells of its own sockets.
//!
//! ```text
//!  proxy -> Telemetry::path(ends) -> PathCounters of that label set <- looks at sockets (mesh_transport::path)
//!                                    full: one overflow set per reporter and security
//!  scrape: what was counted so far       expire: no connection has it, unused for the grace time, and an end is not configured any more
//! ```
//! The leg that is measured is the one over the network, never that to the app of this node. A tunnel carries many connections, to whatever service: its labels
//! are those of the two workloads at its ends, so there are none of services here.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use arcstr::ArcStr;
use mesh_transport::path::{PathCounters, PathTotals, ROUND_TRIPS};
use parking_lot::RwLock;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, LabelSetEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;

use super::family;
use super::labels::{OVERFLOW, Pairs, PeerLabels, Reporter, Security, UNKNOWN};
use super::series::{Ends, Known};

/// What tells two pairs apart, and is shown.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct PathLabels {
    reporter: Reporter,
    security: Security,
    source: End,
    destination: End,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct End {
    workload: ArcStr,
    namespace: ArcStr,
    principal: ArcStr,
    cluster: ArcStr,
}

impl From<PeerLabels> for End {
    fn from(labels: PeerLabels) -> Self {
        let PeerLabels { workload, namespace, principal, cluster, .. } = labels;
        Self { workload, namespace, principal, cluster }
    }
}

impl PathLabels {
    fn of(ends: &Ends) -> Self {
        let (source, destination) = (ends.source.labels().into(), ends.destination.labels().into());
        Self { reporter: ends.reporter, security: ends.security, source, destination }
    }

    /// The one label set that takes what does not fit under the cap.
    fn overflow(reporter: Reporter, security: Security) -> Self {
        let end = End { workload: OVERFLOW, ..PeerLabels::unknown().into() };
        Self { reporter, security, source: end.clone(), destination: end }
    }
}

impl EncodeLabelSet for &PathLabels {
    fn encode(&self, encoder: &mut LabelSetEncoder) -> fmt::Result {
        let (source, destination) = (&self.source, &self.destination);
        Pairs([
            ("reporter", self.reporter.as_str()),
            ("source_workload", &source.workload),
            ("source_workload_namespace", &source.namespace),
            ("source_principal", &source.principal),
            ("source_cluster", &source.cluster),
            ("destination_workload", &destination.workload),
            ("destination_workload_namespace", &destination.namespace),
            ("destination_principal", &destination.principal),
            ("destination_cluster", &destination.cluster),
            ("connection_security_policy", self.security.as_str()),
        ])
        .encode(encoder)
    }
}

/// The counters of all pairs.
#[derive(Debug)]
pub(crate) struct PathTable {
    cap: usize,
    /// Locked for a look-up per plain connection and per tunnel; for writing when a pair is new, and by `expire`.
    table: RwLock<HashMap<PathLabels, Entry>>,
}

#[derive(Debug)]
struct Entry {
    counters: Arc<PathCounters>,
    /// Milliseconds since the telemetry began, when it was last seen to have a connection.
    used: u64,
}

impl PathTable {
    pub(crate) fn new(cap: usize) -> Self {
        Self { cap, table: RwLock::default() }
    }

    /// Where connections between these ends are counted.
    pub(crate) fn counters(&self, ends: &Ends, now: u64) -> Arc<PathCounters> {
        let labels = PathLabels::of(ends);
        if let Some(entry) = self.table.read().get(&labels) {
            return entry.counters.clone();
        }
        let mut table = self.table.write();
        let is_full = table.len() >= self.cap && !table.contains_key(&labels);
        let labels = if is_full { PathLabels::overflow(ends.reporter, ends.security) } else { labels };
        let fresh = || Entry { counters: Arc::default(), used: now };
        table.entry(labels).or_insert_with(fresh).counters.clone()
    }

    /// Forgets the pairs that no connection has, nor had for `grace`, and that name a workload which is gone.
    pub(crate) fn expire<'a>(&self, known: impl FnOnce() -> Known<'a>, now: u64, grace: Duration) {
        let grace = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
        let mut table = self.table.write();
        // Who has the counters got them under this lock: nobody gets them while they are judged.
        for entry in table.values_mut().filter(|entry| Arc::strong_count(&entry.counters) > 1) {
            entry.used = now;
        }
        let is_idle = |entry: &Entry| now.saturating_sub(entry.used) > grace;
        if table.values().any(is_idle) {
            let known = known();
            let has = |end: &End| end.workload == UNKNOWN || known.has_workload(&end.namespace, &end.workload);
            table.retain(|labels, entry| !is_idle(entry) || (has(&labels.source) && has(&labels.destination)));
        }
    }
}

impl Collector for PathTable {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        // What nobody could look at is not known, and not nothing.
        let read = |(labels, entry): (&PathLabels, &Entry)| Some((labels.clone(), entry.counters.totals()?));
        let totals: Vec<(PathLabels, PathTotals)> = self.table.read().iter().filter_map(read).collect();
        let e = &mut encoder;
        let rows = |value: fn(&PathTotals) -> u64| totals.iter().map(move |(labels, totals)| (labels, value(totals)));
        let help = "TCP segments with data that the reporter has sent over the network, those sent again among them";
        family::counters(e, "undermesh_tcp_segments", help, rows(|totals| totals.sent))?;
        let help = "TCP segments that the reporter has sent again";
        family::counters(e, "undermesh_tcp_retransmitted_segments", help, rows(|totals| totals.retransmitted))?;
        let help = "TCP segments of the reporter that the other end has told to have had twice: they were not lost when they were sent again";
        family::counters(e, "undermesh_tcp_duplicate_segments", help, rows(|totals| totals.duplicates))?;
        let measured: Vec<_> =
            totals.iter().filter(|(_, totals)| totals.round_trips.iter().any(|count| *count > 0)).collect();
        if measured.is_empty() {
            return Ok(());
        }
        let (name, help) = (
            "undermesh_tcp_rtt_seconds",
            "Smoothed round trips of TCP over the network, each time that one was looked at: every ten seconds with traffic, and at its end",
        );
        let mut family = e.encode_descriptor(name, help, None, MetricType::Histogram)?;
        for (labels, totals) in measured {
            let bounds = ROUND_TRIPS.iter().map(|micros| f64::from(*micros) / 1e6).chain([f64::INFINITY]);
            let buckets: Vec<(f64, u64)> = bounds.zip(totals.round_trips).collect();
            let (sum, count) = (totals.round_trip_sum as f64 / 1e6, totals.round_trips.iter().sum());
            family.encode_family(&labels)?.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)?;
        }
        Ok(())
    }
}

#[cfg(test)]
#[expect(non_snake_case, reason = "tests carry the ids of their rows")]
mod tests {
    use std::sync::Arc;

    use mesh_core::{Change, Identity, Store, TrustDomain, Workload};
    use mesh_runtime::metrics::Registry;
    use mesh_transport::path::Measured;
    use mesh_transport::socket::Armed;
    use tokio::net::{TcpListener, TcpStream};

    use super::*;
    use crate::telemetry::{End as Who, Peer};

    const GRACE: Duration = Duration::from_secs(300);

    fn workload(name: &str) -> Workload {
        let mut workload = Workload::new(format!("Kubernetes//Pod/shop/{name}-pod"), "shop", format!("{name}-pod"));
        workload.workload_name = name.into();
        workload.cluster_id = "Kubernetes".into();
        workload
    }

    fn ends(destination: &str) -> Ends {
        let identity = |account: &str| Some(Identity::new(TrustDomain::default(), "shop", account).unwrap());
        let who = |name: &str| Who { peer: Peer::from(Arc::new(workload(name))), identity: identity(name) };
        Ends {
            reporter: Reporter::Source,
            security: Security::MutualTls,
            source: who("web"),
            destination: who(destination),
            service: None,
        }
    }

    /// A connection that was there and is gone.
    async fn pass(table: &PathTable, ends: &Ends) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let socket = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        socket.try_write(b"x").unwrap();
        drop(Measured::new(Armed::new(socket), table.counters(ends, 0)));
    }

    fn scrape(table: &Arc<PathTable>) -> String {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(table.clone()));
        mesh_runtime::metrics::encode(&registry)
    }

    fn samples(scrape: &str, family: &str) -> Vec<String> {
        scrape.lines().filter(|line| line.starts_with(&format!("{family}{{"))).map(str::to_owned).collect()
    }

    #[tokio::test]
    async fn features_TM_13_a_pair_has_the_labels_of_its_ends_and_nothing_that_nobody_has_looked_at() {
        let table = Arc::new(PathTable::new(8));
        let held = table.counters(&ends("db"), 0);
        assert!(!scrape(&table).contains("undermesh_tcp"), "{}", scrape(&table));
        drop(held);
        for _ in 0..2 {
            pass(&table, &ends("db")).await;
        }
        let labels = "reporter=\"source\",source_workload=\"web\",source_workload_namespace=\"shop\",\
            source_principal=\"spiffe://cluster.local/ns/shop/sa/web\",source_cluster=\"Kubernetes\",destination_workload=\"db\",\
            destination_workload_namespace=\"shop\",destination_principal=\"spiffe://cluster.local/ns/shop/sa/db\",\
            destination_cluster=\"Kubernetes\",connection_security_policy=\"mutual_tls\"";
        let shown = scrape(&table);
        for (name, value) in [
            ("undermesh_tcp_segments_total", 2),
            ("undermesh_tcp_retransmitted_segments_total", 0),
            ("undermesh_tcp_duplicate_segments_total", 0),
            ("undermesh_tcp_rtt_seconds_count", 2),
        ] {
            assert_eq!(samples(&shown, name), [format!("{name}{{{labels}}} {value}")], "{shown}");
        }
        let buckets = samples(&shown, "undermesh_tcp_rtt_seconds_bucket");
        assert_eq!(buckets.len(), ROUND_TRIPS.len() + 1);
        assert!(buckets.iter().any(|line| line.contains("le=\"0.0003\"")), "{shown}");
        assert!(buckets.last().is_some_and(|line| line.contains("le=\"+Inf\"") && line.ends_with(" 2")), "{shown}");
    }

    #[tokio::test]
    async fn pairs_past_the_cap_share_one_label_set() {
        let table = Arc::new(PathTable::new(2));
        for name in ["a", "b", "c", "d", "a"] {
            pass(&table, &ends(name)).await;
        }
        let shown = samples(&scrape(&table), "undermesh_tcp_segments_total");
        let value = |workload: &str| {
            let label = format!("destination_workload=\"{workload}\"");
            shown.iter().find(|line| line.contains(&label)).and_then(|line| line.rsplit(' ').next())
        };
        assert_eq!(["a", "b", "c", "overflow"].map(value), [Some("2"), Some("1"), None, Some("2")], "{shown:?}");
    }

    #[test]
    fn pairs_are_forgotten_when_an_end_is_gone_and_no_connection_is_left() {
        let table = PathTable::new(8);
        let mut store = Store::new();
        let snapshot = store.apply(vec![Change::Workload(workload("web")), Change::Workload(workload("db"))]).snapshot;
        let later = |times: u32| u64::try_from((GRACE * times).as_millis()).unwrap() + 1;
        let expire = |now| {
            table.expire(|| Known::of(&snapshot), now, GRACE);
            let mut left: Vec<_> =
                table.table.read().keys().map(|labels| labels.destination.workload.clone()).collect();
            left.sort_unstable();
            left
        };
        let open = table.counters(&ends("gone"), 0);
        drop(table.counters(&ends("also-gone"), 0));
        drop(table.counters(&ends("db"), 0));
        assert_eq!(expire(later(0)), ["also-gone", "db", "gone"], "the last values are still to be scraped");
        assert_eq!(expire(later(1)), ["db", "gone"], "one has a connection, the other one its workloads");
        drop(open);
        assert_eq!(expire(later(2)), ["db", "gone"], "until a moment ago");
        assert_eq!(expire(later(2) + 1), ["db"]);
    }
}
