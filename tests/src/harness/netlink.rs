//! The few rtnetlink requests that the lab needs, spoken directly, so that no `ip` binary has to be installed.
//!
//! Each function acts in the network namespace of the calling thread (see `netns::Netns::run`). `Message` is also the encoder that
//! `nft` uses.
use anyhow::{Context, Result, bail};
use nix::sys::socket::{AddressFamily, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, sendto, socket};
use nix::sys::socket::{MsgFlags, setsockopt, sockopt};
use nix::sys::time::TimeVal;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

const ACK: u16 = libc::NLM_F_ACK as u16;
/// The gateway is taken to be on the link (`linux/rtnetlink.h`; libc does not have it).
const RTNH_F_ONLINK: u32 = 4;
const CREATE: u16 = (libc::NLM_F_CREATE | libc::NLM_F_EXCL) as u16;

/// One netlink message under construction: header, fixed part, attributes.
#[derive(Debug, Clone)]
pub struct Message {
    bytes: Vec<u8>,
}

impl Message {
    /// A message of `kind` with `flags` (besides `NLM_F_REQUEST`) and the fixed part that its kind wants.
    pub fn new(kind: u16, flags: u16, fixed: &[u8]) -> Message {
        let mut bytes = vec![0; 16];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&(flags | libc::NLM_F_REQUEST as u16).to_ne_bytes());
        bytes.extend_from_slice(fixed);
        let mut message = Message { bytes };
        message.pad();
        message
    }

    /// Appends one attribute.
    pub fn attr(mut self, kind: u16, value: &[u8]) -> Message {
        self.bytes.extend_from_slice(&((value.len() + 4) as u16).to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self.pad();
        self
    }

    /// Appends a NUL-terminated string attribute.
    pub fn text(self, kind: u16, value: &str) -> Message {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.attr(kind, &bytes)
    }

    /// Appends a nested attribute whose content `fill` writes.
    pub fn nest(mut self, kind: u16, fill: impl FnOnce(Message) -> Message) -> Message {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 4]);
        let mut filled = fill(self);
        let length = (filled.bytes.len() - start) as u16;
        filled.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        filled.bytes[start + 2..start + 4].copy_from_slice(&(kind | libc::NLA_F_NESTED as u16).to_ne_bytes());
        filled
    }

    /// Appends raw bytes that stand before the attributes of a nested part (a veth peer carries a whole link header there).
    pub fn raw(mut self, bytes: &[u8]) -> Message {
        self.bytes.extend_from_slice(bytes);
        self.pad();
        self
    }

    /// The finished bytes with sequence number `seq`.
    pub fn finish(mut self, seq: u32) -> Vec<u8> {
        let length = self.bytes.len() as u32;
        self.bytes[0..4].copy_from_slice(&length.to_ne_bytes());
        self.bytes[8..12].copy_from_slice(&seq.to_ne_bytes());
        self.bytes
    }

    fn pad(&mut self) {
        while !self.bytes.len().is_multiple_of(4) {
            self.bytes.push(0);
        }
    }
}

/// A netlink socket in the calling thread's network namespace.
pub struct Netlink {
    socket: OwnedFd,
}

impl Netlink {
    /// Opens a socket of one netlink family.
    pub fn open(family: SockProtocol) -> Result<Netlink> {
        let socket = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, family)
            .context("open netlink socket")?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 0)).context("bind netlink socket")?;
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::new(5, 0)).context("set netlink timeout")?;
        Ok(Netlink { socket })
    }

    /// Sends `bytes` and waits until the kernel has answered each sequence number up to `last`; the first error it names is returned.
    pub fn send(&self, bytes: &[u8], last: u32) -> Result<()> {
        sendto(self.socket.as_raw_fd(), bytes, &NetlinkAddr::new(0, 0), MsgFlags::empty()).context("send netlink")?;
        let mut buffer = vec![0; 65536];
        loop {
            let n = recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty()).context("receive netlink answer")?;
            let mut rest = &buffer[..n];
            while rest.len() >= 20 {
                let length = u32::from_ne_bytes([rest[0], rest[1], rest[2], rest[3]]) as usize;
                let kind = u16::from_ne_bytes([rest[4], rest[5]]);
                let seq = u32::from_ne_bytes([rest[8], rest[9], rest[10], rest[11]]);
                let code = i32::from_ne_bytes([rest[16], rest[17], rest[18], rest[19]]);
                if kind == libc::NLMSG_ERROR as u16 {
                    if code != 0 {
                        bail!("netlink request {seq}: {}", nix::errno::Errno::from_raw(-code));
                    }
                    if seq == last {
                        return Ok(());
                    }
                }
                if length < 16 || length > rest.len() {
                    break;
                }
                rest = &rest[length.next_multiple_of(4).min(rest.len())..];
            }
        }
    }
}

fn request(message: Message) -> Result<()> {
    Netlink::open(SockProtocol::NetlinkRoute)?.send(&message.finish(1), 1)
}

fn link_header(index: u32, up: bool) -> [u8; 16] {
    let mut header = [0; 16];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    if up {
        header[8..12].copy_from_slice(&(libc::IFF_UP as u32).to_ne_bytes());
        header[12..16].copy_from_slice(&(libc::IFF_UP as u32).to_ne_bytes());
    } else {
        header[12..16].copy_from_slice(&(libc::IFF_UP as u32).to_ne_bytes());
    }
    header
}

/// The index of a device.
pub fn index(name: &str) -> Result<u32> {
    nix::net::if_::if_nametoindex(name).with_context(|| format!("find device {name}"))
}

/// Creates a bridge.
pub fn add_bridge(name: &str) -> Result<()> {
    let message = Message::new(libc::RTM_NEWLINK, ACK | CREATE, &[0; 16])
        .text(libc::IFLA_IFNAME, name)
        .nest(libc::IFLA_LINKINFO, |m| m.text(libc::IFLA_INFO_KIND, "bridge"));
    request(message).with_context(|| format!("create bridge {name}"))
}

/// Creates a veth pair; the far end appears in `peer_namespace`.
pub fn add_veth(name: &str, peer: &str, peer_namespace: BorrowedFd<'_>) -> Result<()> {
    const VETH_INFO_PEER: u16 = 1;
    let message = Message::new(libc::RTM_NEWLINK, ACK | CREATE, &[0; 16]).text(libc::IFLA_IFNAME, name).nest(
        libc::IFLA_LINKINFO,
        |m| {
            m.text(libc::IFLA_INFO_KIND, "veth").nest(libc::IFLA_INFO_DATA, |m| {
                m.nest(VETH_INFO_PEER, |m| {
                    m.raw(&[0; 16])
                        .text(libc::IFLA_IFNAME, peer)
                        .attr(libc::IFLA_NET_NS_FD, &(peer_namespace.as_raw_fd() as u32).to_ne_bytes())
                })
            })
        },
    );
    request(message).with_context(|| format!("create veth {name}"))
}

/// Sets a device up or down.
pub fn set_up(name: &str, up: bool) -> Result<()> {
    let header = link_header(index(name)?, up);
    request(Message::new(libc::RTM_NEWLINK, ACK, &header)).with_context(|| format!("set {name} up={up}"))
}

/// Makes `name` a port of `bridge`.
pub fn set_master(name: &str, bridge: &str) -> Result<()> {
    let mut header = [0; 16];
    header[4..8].copy_from_slice(&index(name)?.to_ne_bytes());
    let master = index(bridge)?.to_ne_bytes();
    request(Message::new(libc::RTM_NEWLINK, ACK, &header).attr(libc::IFLA_MASTER, &master))
        .with_context(|| format!("put {name} on {bridge}"))
}

/// Deletes a device.
pub fn delete_link(name: &str) -> Result<()> {
    let mut header = [0; 16];
    header[4..8].copy_from_slice(&index(name)?.to_ne_bytes());
    request(Message::new(libc::RTM_DELLINK, ACK, &header)).with_context(|| format!("delete {name}"))
}

fn family(ip: IpAddr) -> u8 {
    if ip.is_ipv4() { libc::AF_INET as u8 } else { libc::AF_INET6 as u8 }
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

/// Gives a device an address; IPv6 ones skip duplicate address detection.
pub fn add_address(name: &str, ip: IpAddr, prefix: u8) -> Result<()> {
    let mut header = [0; 8];
    header[0] = family(ip);
    header[1] = prefix;
    header[2] = if ip.is_ipv6() { libc::IFA_F_NODAD as u8 } else { 0 };
    header[4..8].copy_from_slice(&index(name)?.to_ne_bytes());
    let mut message = Message::new(libc::RTM_NEWADDR, ACK | CREATE, &header);
    if ip.is_ipv4() {
        message = message.attr(libc::IFA_LOCAL, &octets(ip));
    }
    request(message.attr(libc::IFA_ADDRESS, &octets(ip))).with_context(|| format!("add {ip}/{prefix} to {name}"))
}

/// Takes an address from a device.
pub fn delete_address(name: &str, ip: IpAddr, prefix: u8) -> Result<()> {
    let mut header = [0; 8];
    header[0] = family(ip);
    header[1] = prefix;
    header[4..8].copy_from_slice(&index(name)?.to_ne_bytes());
    request(Message::new(libc::RTM_DELADDR, ACK, &header).attr(libc::IFA_LOCAL, &octets(ip)))
        .with_context(|| format!("delete {ip}/{prefix} from {name}"))
}

/// Where a route leads.
#[derive(Debug, Clone, Copy)]
pub enum Via<'a> {
    /// Straight out of a device.
    Device(&'a str),
    /// To a gateway that is taken to be on the device's link.
    Gateway(IpAddr, &'a str),
    /// To this host itself (AnyIP).
    Local,
    /// Nowhere: packets are dropped in silence.
    Blackhole,
}

fn route_message(kind: u16, flags: u16, ip: IpAddr, prefix: u8, via: Via<'_>) -> Result<Message> {
    const RTPROT_STATIC: u8 = 4;
    let (table, scope, route_kind) = match via {
        Via::Device(_) => (libc::RT_TABLE_MAIN, libc::RT_SCOPE_LINK, libc::RTN_UNICAST),
        Via::Gateway(..) => (libc::RT_TABLE_MAIN, libc::RT_SCOPE_UNIVERSE, libc::RTN_UNICAST),
        Via::Local => (libc::RT_TABLE_LOCAL, libc::RT_SCOPE_HOST, libc::RTN_LOCAL),
        Via::Blackhole => (libc::RT_TABLE_MAIN, libc::RT_SCOPE_UNIVERSE, libc::RTN_BLACKHOLE),
    };
    let mut header = [0; 12];
    header[0] = family(ip);
    header[1] = prefix;
    header[4] = table;
    header[5] = RTPROT_STATIC;
    header[6] = scope;
    header[7] = route_kind;
    if let Via::Gateway(..) = via {
        header[8..12].copy_from_slice(&RTNH_F_ONLINK.to_ne_bytes());
    }
    let mut message = Message::new(kind, ACK | flags, &header);
    if prefix > 0 {
        message = message.attr(libc::RTA_DST, &octets(ip));
    }
    message = match via {
        Via::Device(device) => message.attr(libc::RTA_OIF, &index(device)?.to_ne_bytes()),
        Via::Gateway(gateway, device) => {
            message.attr(libc::RTA_GATEWAY, &octets(gateway)).attr(libc::RTA_OIF, &index(device)?.to_ne_bytes())
        }
        Via::Local => message.attr(libc::RTA_OIF, &index("lo")?.to_ne_bytes()),
        Via::Blackhole => message,
    };
    Ok(message)
}

/// Adds a route.
pub fn add_route(ip: IpAddr, prefix: u8, via: Via<'_>) -> Result<()> {
    request(route_message(libc::RTM_NEWROUTE, CREATE, ip, prefix, via)?)
        .with_context(|| format!("add route {ip}/{prefix} {via:?}"))
}

/// Lets a device send so many bytes a second and drop what finds more than `queue` bytes waiting: what is sent through it comes late, and is lost.
pub fn congest(name: &str, rate: u32, queue: u32) -> Result<()> {
    const ROOT: u32 = 0xffff_ffff;
    const TBF_PARAMETERS: u16 = 1;
    const TBF_BURST: u16 = 6;
    const ETHERNET: u8 = 1;
    /// More than one frame: larger ones are cut into segments.
    const BURST: u32 = 4096;
    let mut header = [0; 20];
    header[4..8].copy_from_slice(&index(name)?.to_ne_bytes());
    header[12..16].copy_from_slice(&ROOT.to_ne_bytes());
    // struct tc_tbf_qopt: a rate, a peak rate that there is not, the limit, and two that TBF_BURST stands for.
    let mut parameters = [0; 36];
    parameters[1] = ETHERNET;
    parameters[8..12].copy_from_slice(&rate.to_ne_bytes());
    parameters[24..28].copy_from_slice(&queue.to_ne_bytes());
    let message = Message::new(libc::RTM_NEWQDISC, ACK | CREATE, &header)
        .text(libc::TCA_KIND, "tbf")
        .nest(libc::TCA_OPTIONS, |m| m.attr(TBF_PARAMETERS, &parameters).attr(TBF_BURST, &BURST.to_ne_bytes()));
    request(message).with_context(|| format!("limit what {name} sends (the kernel needs sch_tbf)"))
}

/// Writes a network sysctl (`net.` is implied) of the calling thread's namespace.
pub fn sysctl(name: &str, value: &str) -> Result<()> {
    let path = format!("/proc/sys/net/{}", name.replace('.', "/"));
    std::fs::write(&path, value).with_context(|| format!("write {path}"))
}
