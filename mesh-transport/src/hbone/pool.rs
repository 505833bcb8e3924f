//! The pool of tunnels that a node dialled.
use std::{future::Future, io, net::{IpAddr, SocketAddr}, sync::Arc, time::Duration};
use arcstr::ArcStr;
use mesh_core::identity::Identity;
use tokio::net::TcpStream;
use super::{ConnectRequest, ConnectResponse, HboneError, HboneStream};
use crate::tls::IdentityCertificate;

/// What makes two connections share a tunnel: nothing of the source or the destination may differ.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TunnelKey {
    /// Identity of the source workload.
    pub source: Identity,
    /// Enrolment uid of the source pod.
    pub source_uid: ArcStr,
    /// Address that the tunnel is dialled from.
    pub source_ip: IpAddr,
    /// Tunnel address of the destination.
    pub destination: SocketAddr,
    /// Workload uid of the destination.
    pub destination_uid: ArcStr,
    /// Changes when the destination's address changed owner.
    pub destination_generation: u64,
    /// Who may answer.
    pub expected: Arc<[Identity]>,
}

/// Limits and deadlines of the pool.
#[derive(Debug, Clone)]
pub struct PoolConfig {
    /// TCP connect deadline.
    pub dial_timeout: Duration,
    /// TLS handshake deadline.
    pub tls_timeout: Duration,
    /// Deadline for the peer's SETTINGS.
    pub preface_timeout: Duration,
    /// Deadline for the answer to a CONNECT.
    pub request_timeout: Duration,
    /// A tunnel without streams is closed after this time.
    pub idle_timeout: Duration,
    /// Streams per tunnel, or less if the peer allows less.
    pub max_streams: u32,
    /// Tunnels per key.
    pub max_tunnels_per_key: usize,
    /// Tunnels in all.
    pub max_tunnels: usize,
    /// PING interval.
    pub ping_interval: Duration,
    /// A tunnel is closed when a PING is not answered in this time.
    pub ping_timeout: Duration,
}

impl Default for PoolConfig {
    fn default() -> Self {
        Self {
            dial_timeout: Duration::from_secs(5),
            tls_timeout: Duration::from_secs(5),
            preface_timeout: Duration::from_secs(5),
            request_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(300),
            max_streams: 100,
            max_tunnels_per_key: 8,
            max_tunnels: 65_536,
            ping_interval: Duration::from_secs(10),
            ping_timeout: Duration::from_secs(20),
        }
    }
}

/// Counts for metrics.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PoolStats {
    /// Keys known.
    pub keys: usize,
    /// Open tunnels.
    pub tunnels: usize,
    /// Open streams.
    pub streams: usize,
    /// Dials under way.
    pub dialing: usize,
}

/// The tunnels of this process. Clones share them.
#[derive(Debug, Clone)]
pub struct Pool { config: Arc<PoolConfig> }

impl Pool {
    /// An empty pool.
    pub fn new(config: PoolConfig) -> Self { Self { config: Arc::new(config) } }
    /// Opens a stream: through a tunnel of `key` with room, or through a new one that `dial` begins.
    pub async fn connect<D, F>(&self, key: &TunnelKey, cert: Arc<IdentityCertificate>, dial: D, request: ConnectRequest) -> Result<(HboneStream, ConnectResponse), HboneError>
    where D: FnOnce() -> F + Send + 'static, F: Future<Output = io::Result<TcpStream>> + Send + 'static {
        let _ = (key, cert, dial, request, &self.config);
        Err(HboneError::Overloaded)
    }
    /// Closes every tunnel to this workload, or only those of generations before `generation`. Returns how many.
    pub fn purge_destination(&self, uid: &str, generation: Option<u64>) -> usize { let _ = (uid, generation); 0 }
    /// Closes every tunnel of this source pod, streams included. Returns how many.
    pub fn purge_source(&self, uid: &str) -> usize { let _ = uid; 0 }
    /// Tells all peers that no more streams come; open streams go on.
    pub fn drain(&self) {}
    /// Counts for metrics.
    pub fn stats(&self) -> PoolStats { PoolStats::default() }
}
