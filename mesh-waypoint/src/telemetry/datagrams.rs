//! Numbers of UDP ports: what was dropped and why, and how many sessions there are. Kept by port for the process, because who sends what is dropped is mostly
//! nobody that has labels.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};

use parking_lot::Mutex;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

/// Why datagrams are dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Dropped {
    /// No route, none with a weight, or what was drawn leads nowhere.
    NoRoute,
    /// The place has no endpoint that may be asked.
    NoEndpoint,
    /// A policy denies it.
    Denied,
    /// There may be no sessions.
    Sessions,
    /// The process has as many sessions as it may have, and the port none that would make room.
    SessionsTogether,
    /// The client has as many sessions as one may have.
    ClientSessions,
    /// The process stops: nothing new is begun.
    Draining,
    /// A socket could not be had, or does not take it for a reason that has nothing to do with the endpoint.
    System,
    /// The endpoint does not take more for now.
    EndpointBusy,
    /// The way to the client does not take more for now.
    ClientBusy,
    /// The endpoint, or somebody on the way to it, says that nobody is there (ICMP).
    Unreachable,
    /// They came faster than they were read, says the kernel.
    Queue,
}

impl Dropped {
    const ALL: [Dropped; 12] = [
        Dropped::NoRoute,
        Dropped::NoEndpoint,
        Dropped::Denied,
        Dropped::Sessions,
        Dropped::SessionsTogether,
        Dropped::ClientSessions,
        Dropped::Draining,
        Dropped::System,
        Dropped::EndpointBusy,
        Dropped::ClientBusy,
        Dropped::Unreachable,
        Dropped::Queue,
    ];

    fn text(self) -> &'static str {
        match self {
            Dropped::NoRoute => "no_route",
            Dropped::NoEndpoint => "no_endpoint",
            Dropped::Denied => "denied",
            Dropped::Sessions => "session_limit",
            Dropped::SessionsTogether => "process_session_limit",
            Dropped::ClientSessions => "client_session_limit",
            Dropped::Draining => "draining",
            Dropped::System => "system",
            Dropped::EndpointBusy => "endpoint_busy",
            Dropped::ClientBusy => "client_busy",
            Dropped::Unreachable => "unreachable",
            Dropped::Queue => "receive_queue",
        }
    }
}

/// Numbers of one port.
#[derive(Debug, Default)]
pub struct PortCounts {
    dropped: [AtomicU64; Dropped::ALL.len()],
    displaced: AtomicU64,
    sessions: AtomicI64,
}

impl PortCounts {
    /// Datagrams were dropped.
    pub fn dropped(&self, why: Dropped, count: u64) {
        self.dropped[why as usize].fetch_add(count, Relaxed);
    }

    /// A session has made room for another one.
    pub fn displaced(&self) {
        self.displaced.fetch_add(1, Relaxed);
    }

    /// There is one session more.
    pub fn began(&self) {
        self.sessions.fetch_add(1, Relaxed);
    }

    /// There is one less.
    pub fn ended(&self) {
        self.sessions.fetch_sub(1, Relaxed);
    }
}

/// Numbers of all ports that were ever open.
#[derive(Debug, Default)]
pub struct Datagrams(Mutex<BTreeMap<u16, Arc<PortCounts>>>);

impl Datagrams {
    /// Those of a port.
    pub fn of(&self, port: u16) -> Arc<PortCounts> {
        Arc::clone(self.0.lock().entry(port).or_default())
    }
}

/// What a scrape shows of them.
#[derive(Debug)]
pub struct DatagramsShown(pub Arc<Datagrams>);

impl Collector for DatagramsShown {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let all = self.0.0.lock().clone();
        if all.is_empty() {
            return Ok(());
        }
        let help = "Datagrams that were dropped";
        let mut family = encoder.encode_descriptor("undermesh_udp_dropped", help, None, MetricType::Counter)?;
        for (port, counts) in &all {
            for why in Dropped::ALL {
                let value = counts.dropped[why as usize].load(Relaxed);
                let labels = [("port", port.to_string()), ("reason", why.text().to_owned())];
                ConstCounter::new(value).encode(family.encode_family(&labels)?)?;
            }
        }
        let help = "Sessions that have made room for others";
        let mut family = encoder.encode_descriptor("undermesh_udp_displaced", help, None, MetricType::Counter)?;
        for (port, counts) in &all {
            let labels = [("port", port.to_string())];
            ConstCounter::new(counts.displaced.load(Relaxed)).encode(family.encode_family(&labels)?)?;
        }
        let help = "Sessions that there are";
        let mut family = encoder.encode_descriptor("undermesh_udp_sessions", help, None, MetricType::Gauge)?;
        for (port, counts) in &all {
            let labels = [("port", port.to_string())];
            ConstGauge::new(counts.sessions.load(Relaxed)).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_is_counted_by_port() {
        let datagrams = Arc::new(Datagrams::default());
        for (index, why) in Dropped::ALL.into_iter().enumerate() {
            assert_eq!(why as usize, index, "{why:?} has a place of its own");
            datagrams.of(53).dropped(why, index as u64 + 1);
        }
        datagrams.of(53).displaced();
        datagrams.of(54).began();
        let mut registry = mesh_runtime::metrics::Registry::default();
        registry.register_collector(Box::new(DatagramsShown(datagrams)));
        let shown = mesh_runtime::metrics::encode(&registry);
        for line in [
            "undermesh_udp_dropped_total{port=\"53\",reason=\"no_route\"} 1",
            "undermesh_udp_dropped_total{port=\"53\",reason=\"receive_queue\"} 12",
            "undermesh_udp_dropped_total{port=\"54\",reason=\"no_route\"} 0",
            "undermesh_udp_displaced_total{port=\"53\"} 1",
            "undermesh_udp_sessions{port=\"54\"} 1",
        ] {
            assert!(shown.contains(line), "{line} is not in {shown}");
        }
    }
}
