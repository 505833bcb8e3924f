//! The production environment: an enrolled pod, the agent's view of the mesh, the kernel's slots.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket as StdUdpSocket};
use std::sync::Arc;

use mesh_core::ArcStr;
use mesh_core::names::{self, Families, NameAnswer, Question, RecordType};
use mesh_transport::netns::Family;
use tokio::net::{TcpSocket, UdpSocket};

use super::environment::Environment;
use super::server::{DnsConfig, DnsServer};
use crate::bpf::Kernel;
use crate::pod::Pod;
use crate::state::StateHandle;
use crate::telemetry::{DnsSource, Telemetry};

/// Where nameservers listen.
const PORT: u16 = 53;

/// Where the node is: what names mean there.
#[derive(Clone, Debug)]
pub struct DnsZone {
    /// The domain below which the cluster names its services.
    pub cluster_domain: ArcStr,
    /// The network that the node's pods are in; empty in a mesh of one network.
    pub network: ArcStr,
}

impl DnsServer {
    /// Serves a pod on listeners that stand in its network namespace. Needs a runtime.
    ///
    /// # Errors
    /// If a listener cannot be registered with the runtime.
    pub fn start(
        pod: Arc<Pod>,
        zone: DnsZone,
        udp: Vec<StdUdpSocket>,
        tcp: Vec<TcpListener>,
        state: Arc<StateHandle>,
        kernel: Arc<Kernel>,
        telemetry: Telemetry,
    ) -> io::Result<Self> {
        let searches = pod.dns.searches.iter().map(|search| search.trim_matches('.').into()).collect();
        let environment = Arc::new(PodEnvironment { pod, zone, searches, state, kernel });
        Self::serve(environment, DnsConfig::default(), udp, tcp, telemetry)
    }
}

struct PodEnvironment {
    pod: Arc<Pod>,
    zone: DnsZone,
    searches: Vec<ArcStr>,
    state: Arc<StateHandle>,
    kernel: Arc<Kernel>,
}

impl Environment for PodEnvironment {
    fn names(&self, host: &str, asked: RecordType) -> NameAnswer {
        if !self.state.is_synced() {
            return NameAnswer::NotMesh;
        }
        let question = Question {
            name: host,
            record: asked,
            namespace: &self.pod.namespace,
            network: &self.zone.network,
            families: Families {
                v4: self.pod.ips.iter().any(IpAddr::is_ipv4),
                v6: self.pod.ips.iter().any(IpAddr::is_ipv6),
            },
            searches: &self.searches,
            cluster_domain: &self.zone.cluster_domain,
        };
        names::answer(&self.state.snapshot(), &question)
    }

    fn source(&self) -> DnsSource {
        let snapshot = self.state.snapshot();
        // Only labels, yet an address may still belong to an earlier pod in this view.
        let own = self.pod.ips.iter().find_map(|ip| snapshot.workload_by_address(&self.zone.network, ip));
        match own.filter(|workload| workload.namespace == self.pod.namespace && workload.name == self.pod.name) {
            Some(workload) => DnsSource::new(&workload.canonical_name, &workload.canonical_revision),
            None => DnsSource::new(&ArcStr::new(), &ArcStr::new()),
        }
    }

    fn owns(&self, peer: IpAddr) -> bool {
        // The kernel gives a slot only packets of the pod's own; loopback is what an unbound socket sends from.
        peer.is_loopback() || self.pod.ips.contains(&peer)
    }

    fn nameserver(&self, local: SocketAddr) -> Option<SocketAddr> {
        self.kernel.original_destination(self.pod.netns_cookie, local).or_else(|| {
            // A slot of before a restart may be forgotten; then the first resolver of the pod is the likeliest.
            let nameservers = &self.pod.dns.nameservers;
            let same = nameservers.iter().find(|ip| ip.is_ipv4() == local.ip().to_canonical().is_ipv4());
            same.or(nameservers.first()).map(|ip| SocketAddr::new(*ip, PORT))
        })
    }

    async fn udp(&self, nameserver: SocketAddr) -> io::Result<UdpSocket> {
        let any: IpAddr = match nameserver {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let socket = self.pod.sockets.udp(SocketAddr::new(any, 0)).await?;
        socket.set_nonblocking(true)?;
        UdpSocket::from_std(socket)
    }

    async fn tcp(&self, nameserver: SocketAddr) -> io::Result<TcpSocket> {
        let family = if nameserver.is_ipv4() { Family::V4 } else { Family::V6 };
        self.pod.sockets.tcp_socket(family).await
    }
}
