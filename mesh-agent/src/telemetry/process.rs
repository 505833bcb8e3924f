//! What the process is and uses: `istio_build`, `process_*`, `tokio_*`. Read from `/proc/self` and the runtimes at scrape.
//! File descriptors and panics are mesh-runtime's, as every process of the mesh has them.

use std::fmt;

use parking_lot::RwLock;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use tokio::runtime::{Handle, RuntimeMetrics};

use super::family;
use super::labels::Pairs;

/// Resources of the process.
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

/// Numbers of `/proc/self`; what cannot be read is left out.
#[derive(Debug, Default, PartialEq)]
struct Usage {
    cpu_seconds: Option<f64>,
    resident_bytes: Option<u64>,
    virtual_bytes: Option<u64>,
    threads: Option<u64>,
}

impl Usage {
    fn read() -> Self {
        let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
        let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok().flatten().unwrap_or(4096);
        let tick = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).ok().flatten().unwrap_or(100);
        Self::parse(&stat, page.unsigned_abs(), tick.unsigned_abs())
    }

    /// The name in parentheses may hold spaces and parentheses, so fields are counted after the last one.
    fn parse(stat: &str, page: u64, tick: u64) -> Self {
        let Some((_, rest)) = stat.rsplit_once(')') else { return Self::default() };
        let fields: Vec<&str> = rest.split_whitespace().collect();
        // proc(5) counts from 1 and field 3 is the first after the name.
        let field = |number: usize| fields.get(number - 3).and_then(|field| field.parse::<u64>().ok());
        Self {
            cpu_seconds: field(14).zip(field(15)).map(|(user, system)| (user + system) as f64 / tick as f64),
            threads: field(20),
            virtual_bytes: field(23),
            resident_bytes: field(24).map(|pages| pages * page),
        }
    }
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let e = &mut encoder;
        let build = Pairs([("component", "ztunnel"), ("tag", env!("CARGO_PKG_VERSION"))]);
        family::gauges(e, "istio_build", "Build of the node proxy", [(build, 1)])?;
        let usage = Usage::read();
        let known = [
            ("process_resident_memory_bytes", "Resident memory", usage.resident_bytes.map(family::signed)),
            ("process_virtual_memory_bytes", "Virtual memory", usage.virtual_bytes.map(family::signed)),
            ("process_threads", "Threads", usage.threads.map(family::signed)),
        ];
        for (name, help, value) in known {
            if let Some(value) = value {
                family::gauge(e, name, help, value)?;
            }
        }
        if let Some(seconds) = usage.cpu_seconds {
            family::seconds(e, "process_cpu_seconds", "User and system time", seconds)?;
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_is_read_after_the_last_parenthesis() {
        let stat = "42 (a ) b) S 1 42 42 0 -1 4194560 1 0 0 0 250 50 0 0 20 0 7 0 100 8192000 300 18446744073709551615";
        let usage = Usage::parse(stat, 4096, 100);
        let expected = Usage {
            cpu_seconds: Some(3.0),
            threads: Some(7),
            virtual_bytes: Some(8_192_000),
            resident_bytes: Some(300 * 4096),
        };
        assert_eq!(usage, expected);
        assert_eq!(Usage::parse("", 4096, 100), Usage::default());
        assert_eq!(Usage::parse("1 (x) S", 4096, 100), Usage::default());
    }

    #[test]
    fn this_process_has_memory() {
        let usage = Usage::read();
        assert!(usage.resident_bytes.is_some_and(|bytes| bytes > 1 << 16), "{usage:?}");
    }
}
