//! Packets written by hand onto the wire between a pod and the host outside, with whatever addresses.

use std::{
    mem::MaybeUninit,
    net::{IpAddr, SocketAddr},
    os::fd::AsRawFd,
};

use socket2::Socket;

use super::{Pod, ip_output};

/// The outside end of the pod's cable.
pub struct Wire {
    socket: Socket,
    device: i32,
    pod_mac: [u8; 6],
    own_mac: [u8; 6],
}

impl Wire {
    pub fn new(pod: &Pod) -> Self {
        let socket = pod.outside.socket(libc::AF_PACKET, libc::SOCK_RAW, 0);
        let (index, own_mac) = device(&ip_output(&pod.outside_netns, "-o link show eth0"));
        let (_, pod_mac) = device(&ip_output(&pod.netns, "-o link show eth0"));
        Self { socket, device: index, pod_mac, own_mac }
    }

    /// Sends a SYN.
    pub fn send_syn(&self, source: IpAddr, source_port: u16, to: SocketAddr) {
        let mut tcp = Vec::new();
        tcp.extend(source_port.to_be_bytes());
        tcp.extend(to.port().to_be_bytes());
        tcp.extend([0, 0, 0, 1, 0, 0, 0, 0, 5 << 4, 0x02, 0xff, 0xff, 0, 0, 0, 0]);
        let octets = |ip: IpAddr| match ip {
            IpAddr::V4(ip) => ip.octets().to_vec(),
            IpAddr::V6(ip) => ip.octets().to_vec(),
        };
        let (from, destination) = (octets(source), octets(to.ip()));
        assert_eq!(from.len(), destination.len(), "{source} {to}");
        let pseudo = [&from[..], &destination, &[0, 0, 0, tcp.len() as u8, 0, 0, 0, 6], &tcp].concat();
        let sum = checksum(&pseudo);
        tcp[16..18].copy_from_slice(&sum.to_be_bytes());
        let header = if from.len() == 4 {
            let mut header = vec![0x45, 0, 0, 20 + tcp.len() as u8, 0, 1, 0x40, 0, 64, 6, 0, 0];
            header.extend(from.iter().chain(&destination));
            let sum = checksum(&header);
            header[10..12].copy_from_slice(&sum.to_be_bytes());
            header
        } else {
            [&[0x60, 0, 0, 0, 0, tcp.len() as u8, 6, 64], &from[..], &destination].concat()
        };
        let kind: u16 = if from.len() == 4 { 0x0800 } else { 0x86dd };
        let frame = [&self.pod_mac[..], &self.own_mac, &kind.to_be_bytes(), &header, &tcp].concat();
        let mut address: libc::sockaddr_ll = unsafe { MaybeUninit::zeroed().assume_init() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_ifindex = self.device;
        let sent = unsafe {
            libc::sendto(
                self.socket.as_raw_fd(),
                frame.as_ptr().cast(),
                frame.len(),
                0,
                (&raw const address).cast(),
                size_of_val(&address) as u32,
            )
        };
        assert_eq!(sent, frame.len() as isize, "{}", std::io::Error::last_os_error());
    }
}

/// Index and address in a line of `ip -o link`.
fn device(line: &str) -> (i32, [u8; 6]) {
    let index = line.split(':').next().unwrap().parse().unwrap();
    let mac = line.split("link/ether ").nth(1).unwrap().split(' ').next().unwrap();
    let bytes: Vec<u8> = mac.split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
    (index, bytes.try_into().unwrap())
}

fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let sum: u32 = words.sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !((folded & 0xffff) + (folded >> 16)) as u16
}
