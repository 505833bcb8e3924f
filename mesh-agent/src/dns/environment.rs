//! What a pod's DNS server needs from around it: names, the nameserver behind an address, sockets in the pod's network namespace.
//!
//! A trait because there are two: the pod as enrolled (here), and a fake nameserver on the loopback of a test.

use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};

use mesh_core::names::{NameAnswer, RecordType};
use tokio::net::{TcpSocket, UdpSocket};

use crate::telemetry::DnsSource;

/// Everything outside the server.
pub trait Environment: Send + Sync + 'static {
    /// What the mesh knows of a host (lower case, no last dot). [`NameAnswer::NotMesh`] while nothing is known yet.
    fn names(&self, host: &str, asked: RecordType) -> NameAnswer;

    /// The labels of the pod.
    fn source(&self) -> DnsSource;

    /// Whether queries from this address are the pod's own.
    fn owns(&self, peer: IpAddr) -> bool;

    /// The nameserver that the application asked, by the address at which the query arrived.
    fn nameserver(&self, local: SocketAddr) -> Option<SocketAddr>;

    /// A UDP socket in the pod's network namespace, bound to a random port.
    fn udp(&self, nameserver: SocketAddr) -> impl Future<Output = io::Result<UdpSocket>> + Send;

    /// A TCP socket in the pod's network namespace.
    fn tcp(&self, nameserver: SocketAddr) -> impl Future<Output = io::Result<TcpSocket>> + Send;
}
