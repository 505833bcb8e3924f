//! Istio's metrics of requests. Each lane counts for itself, and a scrape adds up what the lanes have: nothing that a request touches is written by two threads.

mod labels;
mod series;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use arcstr::ArcStr;
use hashbrown::{Equivalent, HashMap};
use mesh_core::{NamespacedName, Service, Workload};
use parking_lot::Mutex;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;

use self::labels::Labels;
use self::series::{BYTES, MILLISECONDS, Series, Totals};
use crate::peer::Peer;

/// Label sets of one lane; more are counted as one.
const MOST: usize = 4096;

/// What is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// HTTP of any version.
    Http,
    /// gRPC.
    Grpc,
}

/// Between whom a request went.
pub struct Who<'a> {
    /// The client, as it has proved.
    pub peer: &'a Peer,
    /// The client, if its address belongs to that identity.
    pub client: Option<&'a Arc<Workload>>,
    /// Who answered.
    pub endpoint: Option<&'a Arc<Workload>>,
    /// The service that the endpoint was chosen for.
    pub service: Option<&'a Arc<Service>>,
    /// The service that the client asked for.
    pub asked: Option<&'a NamespacedName>,
}

/// How a request went.
pub struct Measured {
    /// 0: there was no answer.
    pub status: u16,
    /// Of gRPC.
    pub grpc_status: Option<u16>,
    /// The response flag.
    pub flag: &'static str,
    /// What was spoken.
    pub protocol: Protocol,
    /// From its head to the end of its answer.
    pub duration: Duration,
    /// Bytes of its body.
    pub received: u64,
    /// Bytes of the answer's body.
    pub sent: u64,
}

/// What makes two requests one label set.
#[derive(PartialEq, Eq, Hash)]
struct Key {
    client: ArcStr,
    endpoint: ArcStr,
    service: ArcStr,
    status: u16,
    grpc_status: Option<u16>,
    flag: &'static str,
    protocol: Protocol,
}

/// Looks a [`Key`] up without owning one.
#[derive(Hash)]
struct At<'a> {
    client: &'a str,
    endpoint: &'a str,
    service: &'a str,
    status: u16,
    grpc_status: Option<u16>,
    flag: &'static str,
    protocol: Protocol,
}

impl Equivalent<Key> for At<'_> {
    fn equivalent(&self, key: &Key) -> bool {
        self.status == key.status
            && self.grpc_status == key.grpc_status
            && self.flag == key.flag
            && self.protocol == key.protocol
            && self.client == key.client
            && self.endpoint == key.endpoint
            && self.service == key.service
    }
}

/// The numbers of one lane. Locked by that lane, and by a scrape for as long as it takes to list the series.
#[derive(Default)]
pub struct Meters {
    series: Mutex<HashMap<Key, Arc<Series>>>,
    /// Requests that found no room for their labels.
    overflow: AtomicU64,
}

impl Meters {
    /// Counts a request that is over.
    pub fn record(&self, who: &Who<'_>, measured: &Measured) {
        let at = At {
            client: who.client.map_or(&*who.peer.identity.service_account, |client| &*client.uid),
            endpoint: who.endpoint.map_or("", |endpoint| &*endpoint.uid),
            service: who.service.map_or_else(|| who.asked.map_or("", |name| &*name.name), |service| &*service.hostname),
            status: measured.status,
            grpc_status: measured.grpc_status,
            flag: measured.flag,
            protocol: measured.protocol,
        };
        let mut series = self.series.lock();
        if let Some(series) = series.get(&at) {
            return series.add(measured);
        }
        if series.len() >= MOST {
            self.overflow.fetch_add(1, Relaxed);
            return;
        }
        let fresh = Arc::new(Series::new(Labels::new(who, measured)));
        fresh.add(measured);
        let key = Key {
            client: at.client.into(),
            endpoint: at.endpoint.into(),
            service: at.service.into(),
            status: at.status,
            grpc_status: at.grpc_status,
            flag: at.flag,
            protocol: at.protocol,
        };
        series.insert(key, fresh);
    }
}

/// What a scrape shows: the sum of all lanes.
pub struct Exposition(pub Vec<Arc<Meters>>);

impl fmt::Debug for Exposition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Exposition").field(&self.0.len()).finish()
    }
}

impl Collector for Exposition {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let all: Vec<Arc<Series>> =
            self.0.iter().flat_map(|meters| meters.series.lock().values().cloned().collect::<Vec<_>>()).collect();
        let mut sums: BTreeMap<&Labels, Totals> = BTreeMap::new();
        for series in &all {
            sums.entry(&series.labels).or_default().add(series);
        }
        if !sums.is_empty() {
            let mut family =
                encoder.encode_descriptor("istio_requests", "Requests that are over", None, MetricType::Counter)?;
            for (labels, totals) in &sums {
                ConstCounter::new(totals.requests).encode(family.encode_family(*labels)?)?;
            }
        }
        type Part = fn(&Totals) -> (&[u64], f64);
        let families: [(&str, &str, &[f64], Part); 3] = [
            (
                "istio_request_duration_milliseconds",
                "From the head of a request to the end of its answer",
                &MILLISECONDS,
                |t| (&t.duration, t.duration_sum),
            ),
            ("istio_request_bytes", "Bytes of the bodies of requests", &BYTES, |t| (&t.received, t.received_sum)),
            ("istio_response_bytes", "Bytes of the bodies of answers", &BYTES, |t| (&t.sent, t.sent_sum)),
        ];
        for (name, help, bounds, part) in families {
            if sums.is_empty() {
                break;
            }
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
            for (labels, totals) in &sums {
                let (counts, sum) = part(totals);
                let bounds = bounds.iter().copied().chain([f64::MAX]);
                let buckets: Vec<(f64, u64)> = bounds.zip(counts.iter().copied()).collect();
                let mut one = family.encode_family(*labels)?;
                one.encode_histogram::<NoLabelSet>(sum, totals.requests, &buckets, None)?;
            }
        }
        let overflow: u64 = self.0.iter().map(|meters| meters.overflow.load(Relaxed)).sum();
        let help = "Requests that were not counted because there are too many label sets";
        ConstCounter::new(overflow).encode(encoder.encode_descriptor(
            "undermesh_requests_uncounted",
            help,
            None,
            MetricType::Counter,
        )?)
    }
}
