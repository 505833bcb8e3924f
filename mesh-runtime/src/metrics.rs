//! The metrics registry and its text form. Families register themselves where they are counted; this module only prints them.

use prometheus_client::encoding::text::encode as encode_text;
use prometheus_client::metrics::gauge::Gauge;
pub use prometheus_client::registry::Registry;

/// Content type of [`encode`]'s output.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The whole registry as OpenMetrics text.
pub fn encode(registry: &Registry) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail; a collector that returns an error leaves what was written before it.
    let _ = encode_text(&mut text, registry);
    text
}

/// Registers what is true of any process: panics, open file descriptors and their limit, CPU time, memory and threads.
pub fn register_process(registry: &mut Registry) {
    crate::task::register(registry);
    registry.register_collector(Box::new(crate::usage::Process));
    registry.register("process_open_fds", "Open file descriptors", Gauge::<i64, OpenFds>::default());
    registry.register("process_max_fds", "Limit of open file descriptors", Gauge::<i64, MaxFds>::default());
}

/// A gauge that is read when scraped and never set.
macro_rules! read_only_gauge {
    ($name:ident, $read:expr) => {
        #[derive(Debug, Default)]
        struct $name;

        impl prometheus_client::metrics::gauge::Atomic<i64> for $name {
            fn inc(&self) -> i64 {
                self.get()
            }
            fn inc_by(&self, _: i64) -> i64 {
                self.get()
            }
            fn dec(&self) -> i64 {
                self.get()
            }
            fn dec_by(&self, _: i64) -> i64 {
                self.get()
            }
            fn set(&self, _: i64) -> i64 {
                self.get()
            }
            fn get(&self) -> i64 {
                $read
            }
        }
    };
}

read_only_gauge!(OpenFds, crate::fds::open() as i64);
read_only_gauge!(MaxFds, crate::fds::limit() as i64);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn process_metrics_are_read_when_scraped() {
        let mut registry = Registry::default();
        register_process(&mut registry);
        let open = |registry: &Registry| -> i64 {
            let text = encode(registry);
            let line = text.lines().find(|line| line.starts_with("process_open_fds ")).map(str::to_owned);
            line.and_then(|line| line.rsplit(' ').next().and_then(|value| value.parse().ok())).unwrap()
        };
        assert!(open(&registry) > 2);
        let text = encode(&registry);
        for name in ["process_cpu_seconds_total ", "process_resident_memory_bytes ", "process_threads "] {
            assert!(text.lines().any(|line| line.starts_with(name)), "{name}");
        }
        assert!(text.ends_with("# EOF\n"));
    }
}
