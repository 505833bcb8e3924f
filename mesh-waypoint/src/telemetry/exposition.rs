//! What a scrape shows: the sum of all lanes. And what is forgotten: label sets that no lane has used for long.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use mesh_core::telemetry::Metric;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;

use super::Tools;
use super::labels::{Labels, Shown};
use super::meters::Meters;
use super::series::{BYTES, MILLISECONDS, Series, Totals};
use super::tcp::{Connections, Sums};
use super::{mirrors, ruled};

/// What a scrape shows.
pub struct Exposition(pub Vec<Arc<Meters>>);

impl fmt::Debug for Exposition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Exposition").field(&self.0.len()).finish()
    }
}

type Counts<'a, T> = [(Metric, &'a str, &'a str, fn(&T) -> u64)];

/// Names and texts: of what is opened and closed, and of bytes to clients and from them.
const CONNECTIONS: [(&str, &str); 4] = [
    ("istio_tcp_connections_opened", "TCP connections opened"),
    ("istio_tcp_connections_closed", "TCP connections closed"),
    ("istio_tcp_sent_bytes", "Bytes to clients"),
    ("istio_tcp_received_bytes", "Bytes of clients"),
];

/// The same of datagrams.
const SESSIONS: [(&str, &str); 4] = [
    ("undermesh_udp_sessions_opened", "Sessions of datagrams begun"),
    ("undermesh_udp_sessions_closed", "Sessions of datagrams ended"),
    ("undermesh_udp_sent_bytes", "Bytes of datagrams to clients"),
    ("undermesh_udp_received_bytes", "Bytes of datagrams of clients"),
];

impl Collector for Exposition {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let all: Vec<Arc<Series>> = self.0.iter().flat_map(|meters| meters.series()).collect();
        let mut sums: BTreeMap<&Labels, Totals> = BTreeMap::new();
        for series in &all {
            sums.entry(&series.labels).or_default().add(series);
        }
        let requests: &Counts<'_, Totals> =
            &[(Metric::RequestCount, "istio_requests", "Requests that are over", |totals| totals.requests)];
        counters(&mut encoder, &sums, requests)?;
        histograms(&mut encoder, &sums)?;
        sums.retain(|_, totals| totals.messages_received > 0 || totals.messages_sent > 0);
        let messages: &Counts<'_, Totals> = &[
            (Metric::GrpcRequestMessages, "istio_request_messages", "Messages of gRPC in requests", |totals| {
                totals.messages_received
            }),
            (Metric::GrpcResponseMessages, "istio_response_messages", "Messages of gRPC in answers", |totals| {
                totals.messages_sent
            }),
        ];
        counters(&mut encoder, &sums, messages)?;
        let opened: Vec<_> = self.0.iter().flat_map(|meters| meters.connections()).collect();
        connections(&mut encoder, &opened, CONNECTIONS)?;
        let sessions: Vec<_> = self.0.iter().flat_map(|meters| meters.sessions()).collect();
        connections(&mut encoder, &sessions, SESSIONS)?;
        ruled::encode(&self.0, &mut encoder)?;
        mirrors::encode(&self.0, &mut encoder)?;
        let help = "Connections of bytes that were refused because they go in a circle of proxies";
        let family = encoder.encode_descriptor("undermesh_circles_refused", help, None, MetricType::Counter)?;
        ConstCounter::new(self.0.iter().map(|meters| meters.circles()).sum::<u64>()).encode(family)?;
        let overflowed: u64 = self.0.iter().map(|meters| meters.overflowed()).sum();
        let help = "Requests and connections that are counted under the workload overflow because there are too many label sets";
        let (name, kind) = ("undermesh_requests_overflowed", MetricType::Counter);
        ConstCounter::new(overflowed).encode(encoder.encode_descriptor(name, help, None, kind)?)
    }
}

/// What is counted of connections. What Telemetry says of the metrics of those holds for sessions of datagrams, too.
fn connections(
    encoder: &mut DescriptorEncoder<'_>,
    all: &[Arc<Connections>],
    [opened, closed, sent, received]: [(&str, &str); 4],
) -> fmt::Result {
    let mut sums: BTreeMap<&Labels, Sums> = BTreeMap::new();
    for series in all {
        sums.entry(&series.labels).or_default().add(series);
    }
    let families: &Counts<'_, Sums> = &[
        (Metric::TcpOpenedConnections, opened.0, opened.1, |sums| sums.opened),
        (Metric::TcpClosedConnections, closed.0, closed.1, |sums| sums.closed),
        (Metric::TcpSentBytes, sent.0, sent.1, |sums| sums.sent),
        (Metric::TcpReceivedBytes, received.0, received.1, |sums| sums.received),
    ];
    counters(encoder, &sums, families)
}

/// What a metric shows of label sets: of those that it does not tell apart, the sum. Nothing if it is not made.
fn shown<'a, T, S: Default>(
    sums: &'a BTreeMap<&Labels, T>,
    metric: Metric,
    add: impl Fn(&mut S, &T),
) -> BTreeMap<Shown<'a>, S> {
    let mut shown: BTreeMap<Shown<'a>, S> = BTreeMap::new();
    for (labels, one) in sums {
        if let Some(labels) = labels.shown(metric) {
            add(shown.entry(labels).or_default(), one);
        }
    }
    shown
}

fn counters<T>(
    encoder: &mut DescriptorEncoder<'_>,
    sums: &BTreeMap<&Labels, T>,
    families: &Counts<'_, T>,
) -> fmt::Result {
    for (metric, name, help, value) in families {
        let shown = shown(sums, *metric, |sum: &mut u64, one| *sum += value(one));
        if shown.is_empty() {
            continue;
        }
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (labels, sum) in &shown {
            ConstCounter::new(*sum).encode(family.encode_family(labels)?)?;
        }
    }
    Ok(())
}

fn histograms(encoder: &mut DescriptorEncoder<'_>, sums: &BTreeMap<&Labels, Totals>) -> fmt::Result {
    type Part = fn(&Totals) -> (&[u64], f64);
    let families: [(Metric, &str, &str, &[f64], Part); 3] = [
        (
            Metric::RequestDuration,
            "istio_request_duration_milliseconds",
            "From the head of a request to the end of its answer",
            &MILLISECONDS,
            |t| (&t.duration, t.duration_sum),
        ),
        (Metric::RequestSize, "istio_request_bytes", "Bytes of the bodies of requests", &BYTES, |t| {
            (&t.received, t.received_sum)
        }),
        (Metric::ResponseSize, "istio_response_bytes", "Bytes of the bodies of answers", &BYTES, |t| {
            (&t.sent, t.sent_sum)
        }),
    ];
    for (metric, name, help, bounds, part) in families {
        let shown = shown(sums, metric, Totals::join);
        if shown.is_empty() {
            continue;
        }
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
        for (labels, totals) in &shown {
            let (counts, sum) = part(totals);
            let bounds = bounds.iter().copied().chain([f64::INFINITY]);
            let buckets: Vec<(f64, u64)> = bounds.zip(counts.iter().copied()).collect();
            let mut one = family.encode_family(labels)?;
            one.encode_histogram::<NoLabelSet>(sum, totals.requests, &buckets, None)?;
        }
    }
    Ok(())
}

/// What became of lines and spans.
pub struct Losses(pub Arc<Tools>);

impl fmt::Debug for Losses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Losses")
    }
}

impl Collector for Losses {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let spans = self.0.exporters.counts();
        for (name, help, value) in [
            ("undermesh_access_log_dropped", "Lines of access logs that were not written", self.0.writer.dropped()),
            ("undermesh_spans_sent", "Spans that a collector has taken", spans.sent.load(Relaxed)),
            ("undermesh_spans_dropped", "Spans that were not sent", spans.dropped.load(Relaxed)),
        ] {
            ConstCounter::new(value).encode(encoder.encode_descriptor(name, help, None, MetricType::Counter)?)?;
        }
        Ok(())
    }
}

/// Forgets the label sets that no lane has used for so long. All lanes forget one together: if one did alone, a sum would fall. `now` is the process's
/// milliseconds.
pub fn expire(lanes: &[Arc<Meters>], now: u64, unused: Duration) {
    let before = now.saturating_sub(u64::try_from(unused.as_millis()).unwrap_or(u64::MAX));
    let mut used: BTreeMap<Labels, u64> = BTreeMap::new();
    let mut note = |labels: &Labels, at: u64| {
        let last = used.entry(labels.clone()).or_default();
        *last = at.max(*last);
    };
    for lane in lanes {
        lane.series().iter().for_each(|one| note(&one.labels, one.used()));
        let copied = [lane.connections(), lane.sessions()].concat();
        copied.iter().for_each(|one| note(&one.labels, one.used().unwrap_or(u64::MAX)));
    }
    if used.values().all(|last| *last >= before) {
        return;
    }
    let is_old = |labels: &Labels| used.get(labels).is_some_and(|last| *last < before);
    lanes.iter().for_each(|lane| lane.forget(before, is_old));
}
