//! What the agent tells the outside of itself: Istio's TCP and DNS metrics, how the network carries connections, the access log, and its own health.
//!
//! ```text
//!  proxy   -> Telemetry::open -> ConnectionGuard -> series (metrics), access_log (lines), tap (who listens)
//!             Telemetry::path -> counters of a pair of workloads (round trips, segments sent again)
//!  dns     -> Telemetry::dns          enrol -> Telemetry::workload_manager
//!  kernel, certificates, pool -> Telemetry::health (polled at scrape)
//! ```
//! Names and labels of metrics are declared here and nowhere else. Nothing here waits: counters are atomics, lines go to a bounded queue.

mod access_log;
mod connection;
mod dns;
mod family;
mod handle;
mod health;
mod labels;
mod path;
mod process;
mod series;
mod tap;
#[cfg(test)]
mod tests;
mod upkeep;
mod workload_manager;

pub use access_log::AccessLog;
pub use connection::{ConnectionGuard, ConnectionLabels, Outcome};
pub use dns::{DnsCounters, DnsEvent, DnsMetrics, DnsProtocol, DnsSource};
pub use handle::{SocketGuard, Telemetry, TelemetryConfig};
pub use health::{CertificateExpiry, Health, MapUsage, RevocationHealth};
pub use labels::{PeerLabels, Reporter, ResponseFlags, Security, ServiceLabels};
pub use mesh_runtime::limit::{Bucket, Rate};
pub use series::Peer;
pub(crate) use series::{End, Ends};
pub use tap::{Parties, Refusal};
pub use upkeep::{follow_kernel, sweep};
pub use workload_manager::WorkloadManagerMetrics;
