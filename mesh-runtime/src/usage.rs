//! What this process uses: `process_cpu_seconds_total`, memory and threads, by the names that Prometheus' own clients have. Read from `/proc/self` at scrape;
//! registered by `metrics` for every process of the mesh.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

/// Reads when it is asked.
#[derive(Debug)]
pub(crate) struct Process;

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let usage = Usage::read();
        let gauges = [
            ("process_resident_memory_bytes", "Resident memory", usage.resident_bytes),
            ("process_virtual_memory_bytes", "Virtual memory", usage.virtual_bytes),
            ("process_threads", "Threads", usage.threads),
        ];
        for (name, help, value) in gauges {
            if let Some(value) = value {
                let value = i64::try_from(value).unwrap_or(i64::MAX);
                ConstGauge::new(value).encode(encoder.encode_descriptor(name, help, None, MetricType::Gauge)?)?;
            }
        }
        let Some(seconds) = usage.cpu_seconds else { return Ok(()) };
        let (name, help) = ("process_cpu_seconds", "User and system time");
        ConstCounter::new(seconds).encode(encoder.encode_descriptor(name, help, None, MetricType::Counter)?)
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
