//! Datagrams with their local address: a query is answered from the very address it was sent to.
//!
//! The socket is bound to the wildcard address and queries come to many slot addresses, one for each nameserver of the pod; an application
//! with a connected socket hears nobody else. Called by `server`.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd;

use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg, setsockopt, sockopt,
};
use tokio::io::Interest;
use tokio::net::UdpSocket;

/// A UDP socket that tells and sets the local address of each datagram.
pub(crate) struct DatagramSocket {
    socket: UdpSocket,
    port: u16,
}

/// Where a datagram came from and where to, and how long it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Received {
    pub(crate) length: usize,
    pub(crate) peer: SocketAddr,
    pub(crate) local: SocketAddr,
}

impl DatagramSocket {
    /// Takes over a bound socket. Needs a runtime.
    pub(crate) fn new(socket: std::net::UdpSocket) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        let local = socket.local_addr()?;
        if local.is_ipv4() {
            setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?;
        } else {
            setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)?;
        }
        Ok(Self { socket: UdpSocket::from_std(socket)?, port: local.port() })
    }

    pub(crate) async fn receive(&self, buffer: &mut [u8]) -> io::Result<Received> {
        self.socket.async_io(Interest::READABLE, || self.receive_now(buffer)).await
    }

    fn receive_now(&self, buffer: &mut [u8]) -> io::Result<Received> {
        let mut control = nix::cmsg_space!(libc::in_pktinfo, libc::in6_pktinfo);
        let mut parts = [IoSliceMut::new(buffer)];
        let fd = self.socket.as_raw_fd();
        let message = recvmsg::<SockaddrStorage>(fd, &mut parts, Some(&mut control), MsgFlags::MSG_TRUNC)?;
        let local = message.cmsgs()?.find_map(|control| match control {
            ControlMessageOwned::Ipv4PacketInfo(info) => {
                Some(IpAddr::V4(Ipv4Addr::from(info.ipi_addr.s_addr.to_ne_bytes())))
            }
            ControlMessageOwned::Ipv6PacketInfo(info) => Some(IpAddr::V6(Ipv6Addr::from(info.ipi6_addr.s6_addr))),
            _ => None,
        });
        let peer = message.address.as_ref().and_then(address);
        match (local, peer) {
            (Some(local), Some(peer)) => {
                Ok(Received { length: message.bytes, peer, local: SocketAddr::new(local, self.port) })
            }
            _ => Err(io::Error::new(io::ErrorKind::InvalidData, "datagram without addresses")),
        }
    }

    /// Sends from `local`, which is where the query came to.
    pub(crate) async fn send(&self, bytes: &[u8], local: IpAddr, peer: SocketAddr) -> io::Result<usize> {
        self.socket.async_io(Interest::WRITABLE, || self.send_now(bytes, local, peer)).await
    }

    fn send_now(&self, bytes: &[u8], local: IpAddr, peer: SocketAddr) -> io::Result<usize> {
        let (fd, parts, peer) = (self.socket.as_raw_fd(), [IoSlice::new(bytes)], SockaddrStorage::from(peer));
        let sent = match local {
            IpAddr::V4(v4) => {
                let source = libc::in_addr { s_addr: u32::from_ne_bytes(v4.octets()) };
                let info =
                    libc::in_pktinfo { ipi_ifindex: 0, ipi_spec_dst: source, ipi_addr: libc::in_addr { s_addr: 0 } };
                sendmsg(fd, &parts, &[ControlMessage::Ipv4PacketInfo(&info)], MsgFlags::empty(), Some(&peer))
            }
            IpAddr::V6(v6) => {
                let info = libc::in6_pktinfo { ipi6_addr: libc::in6_addr { s6_addr: v6.octets() }, ipi6_ifindex: 0 };
                sendmsg(fd, &parts, &[ControlMessage::Ipv6PacketInfo(&info)], MsgFlags::empty(), Some(&peer))
            }
        };
        Ok(sent?)
    }
}

fn address(storage: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = storage.as_sockaddr_in().map(|v4| SocketAddr::new(v4.ip().into(), v4.port()));
    v4.or_else(|| storage.as_sockaddr_in6().map(|v6| SocketAddr::from(std::net::SocketAddrV6::from(*v6))))
}
