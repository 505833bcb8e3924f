//! What the process is and what its runtimes do: `istio_build` and `tokio_*`. Read at scrape.
//! What is true of any process of the mesh, `process_*` and panics, is mesh-runtime's.

use std::fmt;

use parking_lot::RwLock;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use tokio::runtime::{Handle, RuntimeMetrics};

use super::family;
use super::labels::Pairs;

/// Build and runtimes of the process.
#[derive(Debug, Default)]
pub struct Process {
    runtimes: RwLock<Vec<(String, Handle)>>,
}

impl Process {
    /// The runtimes to show, by name.
    pub fn watch_runtimes(&self, runtimes: Vec<(String, Handle)>) {
        *self.runtimes.write() = runtimes;
    }
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let e = &mut encoder;
        let build = Pairs([("component", "ztunnel"), ("tag", env!("CARGO_PKG_VERSION"))]);
        family::gauges(e, "istio_build", "Build of the node proxy", [(build, 1)])?;
        self.encode_runtimes(e)
    }
}

impl Process {
    fn encode_runtimes(&self, e: &mut DescriptorEncoder) -> fmt::Result {
        let runtimes = self.runtimes.read().clone();
        let gauge = |read: fn(&Handle) -> usize| {
            let rows = runtimes
                .iter()
                .map(move |(name, handle)| (Pairs([("runtime", name.as_str())]), family::signed(read(handle))));
            rows.collect::<Vec<_>>()
        };
        family::gauges(e, "tokio_num_workers", "Worker threads", gauge(|h| h.metrics().num_workers()))?;
        family::gauges(e, "tokio_num_alive_tasks", "Tasks alive", gauge(|h| h.metrics().num_alive_tasks()))?;
        let depth = gauge(|h| h.metrics().global_queue_depth());
        family::gauges(e, "tokio_global_queue_depth", "Tasks waiting in the global queue", depth)?;
        encode_workers(e, &runtimes)
    }
}

/// What each worker thread did so far.
fn encode_workers(e: &mut DescriptorEncoder, runtimes: &[(String, Handle)]) -> fmt::Result {
    let workers: Vec<_> = runtimes
        .iter()
        .flat_map(|(name, handle)| {
            (0..handle.metrics().num_workers()).map(move |n| (name.as_str(), n.to_string(), handle.metrics(), n))
        })
        .collect();
    let labels = |name, worker| Pairs([("runtime", name), ("worker", worker)]);
    let busy = workers.iter().map(|(name, worker, metrics, n)| {
        (labels(*name, worker.as_str()), metrics.worker_total_busy_duration(*n).as_secs_f64())
    });
    family::counters(e, "tokio_worker_total_busy_duration_seconds", "Time that a worker was busy", busy)?;
    let counts = |read: fn(&RuntimeMetrics, usize) -> u64| {
        workers.iter().map(move |(name, worker, metrics, n)| (labels(*name, worker.as_str()), read(metrics, *n)))
    };
    family::counters(
        e,
        "tokio_worker_park_count",
        "Times a worker had nothing to do",
        counts(|m, n| m.worker_park_count(n)),
    )?;
    let name = "tokio_worker_park_unpark_count";
    family::counters(e, name, "Times a worker stopped or went on", counts(|m, n| m.worker_park_unpark_count(n)))
}
