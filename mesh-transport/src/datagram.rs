//! Datagrams with their local address: what comes to an address is answered from the very same.
//!
//! The socket is bound to the wildcard address and datagrams come to many of them (an agent's: one slot for each nameserver of the pod; a gateway's: those of its
//! pod), and whoever has connected his socket hears nobody else. Used by the agent's DNS and by the UDP ports of gateways.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd;

use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg, setsockopt, sockopt,
};
use tokio::io::Interest;
use tokio::net::UdpSocket;

/// A UDP socket that tells and sets the local address of each datagram.
#[derive(Debug)]
pub struct DatagramSocket {
    socket: UdpSocket,
    port: u16,
}

/// Where a datagram came from and where to, and how long it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// Bytes; more than the buffer has if the rest was cut off.
    pub length: usize,
    /// Where it came from.
    pub peer: SocketAddr,
    /// Where it came to.
    pub local: SocketAddr,
    /// How many the socket has lost so far because nobody read them in time; counts in a circle.
    pub lost: u32,
}

impl DatagramSocket {
    /// Takes over a bound socket. Needs a runtime.
    pub fn new(socket: std::net::UdpSocket) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        let local = socket.local_addr()?;
        if local.is_ipv4() {
            setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?;
        } else {
            setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)?;
        }
        setsockopt(&socket, sockopt::RxqOvfl, &1)?;
        Ok(Self { socket: UdpSocket::from_std(socket)?, port: local.port() })
    }

    /// The next one.
    pub async fn receive(&self, buffer: &mut [u8]) -> io::Result<Received> {
        self.socket.async_io(Interest::READABLE, || self.receive_now(buffer)).await
    }

    /// Waits until there may be one.
    pub async fn readable(&self) -> io::Result<()> {
        self.socket.readable().await
    }

    /// The next one if it is there; `WouldBlock` if there is none.
    pub fn try_receive(&self, buffer: &mut [u8]) -> io::Result<Received> {
        self.socket.try_io(Interest::READABLE, || self.receive_now(buffer))
    }

    fn receive_now(&self, buffer: &mut [u8]) -> io::Result<Received> {
        let mut control = nix::cmsg_space!(libc::in_pktinfo, libc::in6_pktinfo, u32);
        let mut parts = [IoSliceMut::new(buffer)];
        let fd = self.socket.as_raw_fd();
        let message = recvmsg::<SockaddrStorage>(fd, &mut parts, Some(&mut control), MsgFlags::MSG_TRUNC)?;
        let (mut local, mut lost) = (None, 0);
        for control in message.cmsgs()? {
            match control {
                ControlMessageOwned::Ipv4PacketInfo(info) => {
                    local = Some(IpAddr::V4(Ipv4Addr::from(info.ipi_addr.s_addr.to_ne_bytes())));
                }
                ControlMessageOwned::Ipv6PacketInfo(info) => {
                    local = Some(IpAddr::V6(Ipv6Addr::from(info.ipi6_addr.s6_addr)));
                }
                ControlMessageOwned::RxqOvfl(count) => lost = count,
                _ => {}
            }
        }
        let peer = message.address.as_ref().and_then(address);
        match (local, peer) {
            (Some(local), Some(peer)) => {
                Ok(Received { length: message.bytes, peer, local: SocketAddr::new(local, self.port), lost })
            }
            _ => Err(io::Error::new(io::ErrorKind::InvalidData, "datagram without addresses")),
        }
    }

    /// Sends from `local`, which is where what it answers came to.
    pub async fn send(&self, bytes: &[u8], local: IpAddr, peer: SocketAddr) -> io::Result<usize> {
        self.socket.async_io(Interest::WRITABLE, || self.send_now(bytes, local, peer)).await
    }

    /// The same if there is room at once; `WouldBlock` if there is none.
    pub fn try_send(&self, bytes: &[u8], local: IpAddr, peer: SocketAddr) -> io::Result<usize> {
        self.socket.try_io(Interest::WRITABLE, || self.send_now(bytes, local, peer))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_answer_comes_from_where_the_question_went() {
        for (bind, from, to) in [
            ("0.0.0.0:0", "127.0.0.1:0", "127.0.0.7"),
            ("[::]:0", "127.0.0.1:0", "127.0.0.7"),
            ("[::]:0", "[::1]:0", "::1"),
        ] {
            let socket = std::net::UdpSocket::bind(bind).unwrap();
            let to = SocketAddr::new(to.parse().unwrap(), socket.local_addr().unwrap().port());
            let server = DatagramSocket::new(socket).unwrap();
            let client = UdpSocket::bind(from).await.unwrap();
            client.send_to(b"question", to).await.unwrap();
            let mut buffer = [0; 4];
            let came = server.receive(&mut buffer).await.unwrap();
            assert_eq!((&buffer, came.length, came.lost), (b"ques", 8, 0), "{bind}");
            assert_eq!((came.local.ip().to_canonical(), came.local.port()), (to.ip(), to.port()), "{bind}");
            assert_eq!(server.try_receive(&mut buffer).unwrap_err().kind(), io::ErrorKind::WouldBlock);
            server.send(b"a", came.local.ip(), came.peer).await.unwrap();
            let (_, answered) = client.recv_from(&mut buffer).await.unwrap();
            assert_eq!(answered, to, "{bind}");
        }
    }

    #[tokio::test]
    async fn what_nobody_reads_in_time_is_counted() {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let to = socket.local_addr().unwrap();
        setsockopt(&socket, sockopt::RcvBuf, &2048).unwrap();
        let server = DatagramSocket::new(socket).unwrap();
        let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        for _ in 0..64 {
            client.send_to(&[0; 512], to).await.unwrap();
        }
        let (mut buffer, mut came) = ([0; 512], 0);
        while server.receive_now(&mut buffer).is_ok() {
            came += 1;
        }
        // Those that are lost are told of with the next one, and some may have been under way until now.
        client.send_to(&[0; 1], to).await.unwrap();
        let lost = loop {
            let received = server.receive(&mut buffer).await.unwrap();
            if received.length == 1 {
                break received.lost;
            }
            came += 1;
        };
        assert_eq!((came + lost, lost > 0), (64, true), "{came} came");
    }
}
