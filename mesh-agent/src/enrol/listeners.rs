//! The agent's sockets inside one pod: opened by a new pod, adopted from the keeper by a new worker.
//!
//! They listen on the loopback addresses on the ports that Istio's users keep free. The kernel steers by socket, not by port, so when an
//! app has one of these ports already, any other free one serves as well.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use mesh_core::ports;
use mesh_transport::netns::NetnsSockets;
use serde::{Deserialize, Serialize};

use crate::bpf::PodListenerFds;

/// Tries to find one port that is free for DNS over UDP and TCP in both families.
const DNS_TRIES: usize = 16;
const LOOPBACKS: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];

/// What a socket is for.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Captured TCP connections.
    Outbound,
    /// Plaintext from the network.
    Plaintext,
    /// HBONE from the network.
    Hbone,
    /// DNS queries.
    DnsUdp,
    /// DNS connections.
    DnsTcp,
}

/// One pod's sockets, at most one of each kind and family.
#[derive(Debug, Default)]
pub struct Listeners {
    /// Captured TCP connections.
    pub outbound: Vec<TcpListener>,
    /// Plaintext from the network.
    pub plaintext: Vec<TcpListener>,
    /// HBONE from the network.
    pub hbone: Vec<TcpListener>,
    /// DNS queries.
    pub dns_udp: Vec<UdpSocket>,
    /// DNS connections.
    pub dns_tcp: Vec<TcpListener>,
}

impl Listeners {
    /// Opens them inside the pod. A family that the pod does not have is left out; both missing is an error.
    pub async fn open(sockets: &NetnsSockets) -> io::Result<Self> {
        let mut listeners = Listeners {
            outbound: tcp(sockets, ports::OUTBOUND).await?,
            plaintext: tcp(sockets, ports::INBOUND_PLAINTEXT).await?,
            hbone: tcp(sockets, ports::HBONE).await?,
            ..Listeners::default()
        };
        (listeners.dns_udp, listeners.dns_tcp) = dns(sockets).await?;
        Ok(listeners)
    }

    /// Puts together what the keeper held: `kinds` says what each descriptor is.
    pub fn adopt(kinds: &[Kind], fds: Vec<OwnedFd>) -> io::Result<Self> {
        if kinds.len() != fds.len() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("{} sockets for {} kinds", fds.len(), kinds.len()),
            ));
        }
        let mut listeners = Listeners::default();
        for (kind, fd) in kinds.iter().zip(fds) {
            match kind {
                Kind::Outbound => listeners.outbound.push(fd.into()),
                Kind::Plaintext => listeners.plaintext.push(fd.into()),
                Kind::Hbone => listeners.hbone.push(fd.into()),
                Kind::DnsUdp => listeners.dns_udp.push(fd.into()),
                Kind::DnsTcp => listeners.dns_tcp.push(fd.into()),
            }
        }
        Ok(listeners)
    }

    /// Every socket with its kind, in a fixed order.
    pub fn all(&self) -> Vec<(Kind, BorrowedFd<'_>)> {
        let tcp = [
            (Kind::Outbound, &self.outbound),
            (Kind::Plaintext, &self.plaintext),
            (Kind::Hbone, &self.hbone),
            (Kind::DnsTcp, &self.dns_tcp),
        ];
        let mut all: Vec<_> = tcp
            .into_iter()
            .flat_map(|(kind, sockets)| sockets.iter().map(move |socket| (kind, socket.as_fd())))
            .collect();
        all.extend(self.dns_udp.iter().map(|socket| (Kind::DnsUdp, socket.as_fd())));
        all
    }

    /// As the kernel module wants them.
    pub fn for_kernel(&self) -> PodListenerFds<'_> {
        let mut fds = PodListenerFds::default();
        for listener in &self.outbound {
            *family(listener.local_addr(), &mut fds.outbound_v4, &mut fds.outbound_v6) = Some(listener.as_fd());
        }
        for listener in &self.plaintext {
            *family(listener.local_addr(), &mut fds.plaintext_v4, &mut fds.plaintext_v6) = Some(listener.as_fd());
        }
        for listener in &self.hbone {
            *family(listener.local_addr(), &mut fds.hbone_v4, &mut fds.hbone_v6) = Some(listener.as_fd());
        }
        for listener in &self.dns_tcp {
            *family(listener.local_addr(), &mut fds.dns_tcp_v4, &mut fds.dns_tcp_v6) = Some(listener.as_fd());
        }
        for socket in &self.dns_udp {
            *family(socket.local_addr(), &mut fds.dns_udp_v4, &mut fds.dns_udp_v6) = Some(socket.as_fd());
        }
        fds
    }
}

fn family<'a, T>(address: io::Result<SocketAddr>, v4: &'a mut T, v6: &'a mut T) -> &'a mut T {
    if address.is_ok_and(|address| address.is_ipv6()) { v6 } else { v4 }
}

/// One listener per family, each on `port` if it is free and on any other if not.
async fn tcp(sockets: &NetnsSockets, port: u16) -> io::Result<Vec<TcpListener>> {
    let mut listeners = Vec::new();
    let mut missing = None;
    for loopback in LOOPBACKS {
        let mut opened = sockets.listen_tcp(SocketAddr::new(loopback, port)).await;
        if is_taken(&opened) {
            opened = sockets.listen_tcp(SocketAddr::new(loopback, 0)).await;
        }
        match opened {
            Ok(listener) => listeners.push(listener),
            Err(error) if is_absent(&error) => missing = Some(error),
            Err(error) => return Err(error),
        }
    }
    present(listeners, missing)
}

/// DNS over UDP and TCP in both families on one port: replies leave from the port that was asked.
async fn dns(sockets: &NetnsSockets) -> io::Result<(Vec<UdpSocket>, Vec<TcpListener>)> {
    let mut port = ports::DNS;
    let mut result = dns_on(sockets, port).await;
    for _ in 0..DNS_TRIES {
        if !is_taken(&result) {
            break;
        }
        // Whatever the pod's kernel finds free for one of the four is probably free for the others.
        port = sockets.udp(SocketAddr::new(LOOPBACKS[0], 0)).await?.local_addr()?.port();
        result = dns_on(sockets, port).await;
    }
    result
}

async fn dns_on(sockets: &NetnsSockets, port: u16) -> io::Result<(Vec<UdpSocket>, Vec<TcpListener>)> {
    let (mut udp, mut tcp, mut missing) = (Vec::new(), Vec::new(), None);
    for loopback in LOOPBACKS {
        let address = SocketAddr::new(loopback, port);
        match sockets.udp(address).await {
            Ok(socket) => udp.push(socket),
            Err(error) if is_absent(&error) => {
                missing = Some(error);
                continue;
            }
            Err(error) => return Err(error),
        }
        tcp.push(sockets.listen_tcp(address).await?);
    }
    Ok((present(udp, missing)?, tcp))
}

fn present<T>(sockets: Vec<T>, missing: Option<io::Error>) -> io::Result<Vec<T>> {
    match missing {
        Some(error) if sockets.is_empty() => Err(error),
        _ => Ok(sockets),
    }
}

fn is_taken<T>(result: &io::Result<T>) -> bool {
    result.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::AddrInUse)
}

/// The pod has no loopback address of this family.
fn is_absent(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::AddrNotAvailable || error.raw_os_error() == Some(libc::EAFNOSUPPORT)
}
