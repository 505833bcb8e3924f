//! Limits and deadlines of the proxy. Every wait and every collection has one; tests shorten them.

use std::sync::Arc;
use std::time::Duration;

use mesh_core::ArcStr;
use mesh_transport::hbone::AcceptorConfig;
use mesh_transport::tls::Revocations;

use crate::bpf::Limits;

/// Limits and deadlines.
#[derive(Debug, Clone)]
pub struct ProxyConfig {
    /// The node's name: where the pods are, before their workloads are known.
    pub node: ArcStr,
    /// The network that the node's pods are in; empty in a mesh of one network.
    pub network: ArcStr,
    /// How long new connections are held before the first configuration has arrived. Then they are refused, never let through.
    pub hold_unsynced: Duration,
    /// How long a connection to an unknown address inside the mesh is held for the configuration to catch up.
    pub hold_unknown: Duration,
    /// How long a connection that is routed by its name is held for the client's first message; some clients wait for the server to begin.
    pub hold_hello: Duration,
    /// Connections of one pod that may wait so at the same time; more are refused at once. Each one looks again at every change, so a pod that walks
    /// through addresses must not have many.
    pub waiting_per_pod: u32,
    /// How long a connection waits for the pod's first certificate.
    pub certificate_wait: Duration,
    /// Deadline for one TCP connect to another node or to the outside.
    pub connect_timeout: Duration,
    /// Deadline for the connect to the local app: it is on this machine, so silence means a full backlog.
    pub app_connect_timeout: Duration,
    /// Connects to apps that may be under way at the same time, of all pods: each has a place in the kernel's table of clients until the app's backlog
    /// takes it.
    pub app_connects: u32,
    /// Pods that share them, see `turns.rs`.
    pub pods: u32,
    /// Connects to one port of a pod that are under way at the same time; more wait for a turn of this port.
    pub app_connects_per_port: usize,
    /// Endpoints tried for one connection, the first included. More would only spread an outage.
    pub tries: usize,
    /// Connections of one pod each way. High enough for any honest pod, low enough that one pod cannot take the node's descriptors.
    pub connections_per_pod: u32,
    /// Tunnels into one pod, handshakes included.
    pub tunnels_per_pod: u32,
    /// Interval of probes on idle plaintext connections to other machines. Apps are on this machine and tunnels have their own.
    pub keepalive: Option<Duration>,
    /// Connections may have been sent here by packet filters in the pod, instead of by our hooks.
    pub redirected: bool,
    /// Pods without a tunnel may come with the mutual TLS of Istio's sidecars.
    pub sidecars: bool,
    /// Handshakes that one address may begin with the pods of this node each second.
    pub handshakes_per_second: u32,
    /// Lists of revoked certificates.
    pub revocations: Option<Arc<Revocations>>,
}

impl Default for ProxyConfig {
    fn default() -> ProxyConfig {
        ProxyConfig {
            node: ArcStr::new(),
            network: ArcStr::new(),
            hold_unsynced: Duration::from_secs(10),
            hold_unknown: Duration::from_secs(2),
            hold_hello: Duration::from_secs(5),
            waiting_per_pod: 256,
            certificate_wait: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(5),
            app_connect_timeout: Duration::from_secs(4),
            app_connects: Limits::default().clients,
            pods: Limits::default().pods,
            app_connects_per_port: 512,
            tries: 3,
            connections_per_pod: 16_384,
            tunnels_per_pod: 4_096,
            keepalive: Some(Duration::from_secs(180)),
            redirected: false,
            sidecars: false,
            handshakes_per_second: AcceptorConfig::default().handshakes_per_second,
            revocations: None,
        }
    }
}
