//! kube-proxy's part: service addresses are translated outside the pods, in the node's namespace, by nftables rules written over
//! netlink. Source addresses stay, a refusal of the endpoint reaches the client as a refusal, and nothing here knows the mesh.
//!
//! ```text
//! prerouting: l4proto == P, daddr == VIP, dport == PORT, [random % n == 0] -> dnat to ENDPOINT:TARGET     (one rule per endpoint)
//! ```
use super::netlink::{Message, Netlink};
use anyhow::{Context, Result};
use nix::sys::socket::SockProtocol;
use std::net::{IpAddr, SocketAddr};

const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NEW_TABLE: u16 = SUBSYSTEM << 8;
const DEL_TABLE: u16 = (SUBSYSTEM << 8) | 2;
const NEW_CHAIN: u16 = (SUBSYSTEM << 8) | 3;
const NEW_RULE: u16 = (SUBSYSTEM << 8) | 6;
const CREATE: u16 = libc::NLM_F_CREATE as u16;
const APPEND: u16 = (libc::NLM_F_CREATE | libc::NLM_F_APPEND) as u16;
const ACK: u16 = libc::NLM_F_ACK as u16;
const TABLE: &str = "lab-services";
const CHAIN: &str = "services";

/// The transport of a translated port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// One service port: where clients connect and what stands behind it.
#[derive(Debug, Clone)]
pub struct Translation {
    /// TCP or UDP.
    pub transport: Transport,
    /// Service address and port.
    pub service: SocketAddr,
    /// Endpoints, chosen at random with equal weight.
    pub endpoints: Vec<SocketAddr>,
}

/// Replaces all translations of the calling thread's namespace in one transaction.
pub fn replace(translations: &[Translation]) -> Result<()> {
    for (family, v4) in [(libc::NFPROTO_IPV4 as u8, true), (libc::NFPROTO_IPV6 as u8, false)] {
        let mut batch = Batch { bytes: Vec::new(), seq: 0 };
        batch.push(BATCH_BEGIN, 0, [0, 0, 0, SUBSYSTEM as u8], |m| m);
        let header = [family, 0, 0, 0];
        batch.push(NEW_TABLE, CREATE, header, |m| m.text(1, TABLE));
        batch.push(DEL_TABLE, 0, header, |m| m.text(1, TABLE));
        batch.push(NEW_TABLE, CREATE, header, |m| m.text(1, TABLE));
        let rules: Vec<_> = translations.iter().filter(|t| t.service.is_ipv4() == v4).collect();
        let chain_flags = if rules.iter().all(|t| t.endpoints.is_empty()) { CREATE | ACK } else { CREATE };
        batch.push(NEW_CHAIN, chain_flags, header, |m| {
            m.text(1, TABLE).text(3, CHAIN).nest(4, |m| be32(be32(m, 1, 0), 2, (-100i32) as u32)).text(7, "nat")
        });
        let mut last = batch.seq;
        let total: usize = rules.iter().map(|t| t.endpoints.len()).sum();
        let mut written = 0;
        for translation in rules {
            for (i, endpoint) in translation.endpoints.iter().enumerate() {
                written += 1;
                let flags = if written == total { APPEND | ACK } else { APPEND };
                let left = (translation.endpoints.len() - i) as u32;
                batch.push(NEW_RULE, flags, header, |m| rule(m, translation, *endpoint, left));
                last = batch.seq;
            }
        }
        batch.push(BATCH_END, 0, [0, 0, 0, SUBSYSTEM as u8], |m| m);
        Netlink::open(SockProtocol::NetlinkNetFilter)?
            .send(&batch.bytes, last)
            .context("write nftables rules (the kernel needs nf_tables with NAT)")?;
    }
    Ok(())
}

struct Batch {
    bytes: Vec<u8>,
    seq: u32,
}

impl Batch {
    fn push(&mut self, kind: u16, flags: u16, header: [u8; 4], fill: impl FnOnce(Message) -> Message) {
        self.seq += 1;
        self.bytes.extend(fill(Message::new(kind, flags, &header)).finish(self.seq));
    }
}

fn be32(message: Message, kind: u16, value: u32) -> Message {
    message.attr(kind, &value.to_be_bytes())
}

fn expression(message: Message, name: &str, fill: impl FnOnce(Message) -> Message) -> Message {
    message.nest(1, |m| m.text(1, name).nest(2, fill))
}

fn compare(message: Message, value: &[u8]) -> Message {
    expression(message, "cmp", |m| be32(be32(m, 1, 1), 2, 0).nest(3, |m| m.attr(1, value)))
}

fn load_payload(message: Message, base: u32, offset: u32, length: u32) -> Message {
    expression(message, "payload", |m| be32(be32(be32(be32(m, 1, 1), 2, base), 3, offset), 4, length))
}

fn rule(message: Message, translation: &Translation, endpoint: SocketAddr, left: u32) -> Message {
    const META_L4PROTO: u32 = 16;
    const NETWORK: u32 = 1;
    const TRANSPORT: u32 = 2;
    let proto = match translation.transport {
        Transport::Tcp => libc::IPPROTO_TCP as u8,
        Transport::Udp => libc::IPPROTO_UDP as u8,
    };
    let (offset, family) =
        if translation.service.is_ipv4() { (16, libc::NFPROTO_IPV4) } else { (24, libc::NFPROTO_IPV6) };
    let address = bytes(translation.service.ip());
    message.text(1, TABLE).text(2, CHAIN).nest(4, |m| {
        let m = expression(m, "meta", |m| be32(be32(m, 1, 1), 2, META_L4PROTO));
        let m = compare(m, &[proto]);
        let m = load_payload(m, NETWORK, offset, address.len() as u32);
        let m = compare(m, &address);
        let m = load_payload(m, TRANSPORT, 2, 2);
        let mut m = compare(m, &translation.service.port().to_be_bytes());
        if left > 1 {
            m = expression(m, "numgen", |m| be32(be32(be32(m, 1, 1), 2, left), 3, 1));
            m = compare(m, &0u32.to_ne_bytes());
        }
        let m = expression(m, "immediate", |m| be32(m, 1, 1).nest(2, |m| m.attr(1, &bytes(endpoint.ip()))));
        let m = expression(m, "immediate", |m| be32(m, 1, 2).nest(2, |m| m.attr(1, &endpoint.port().to_be_bytes())));
        expression(m, "nat", |m| {
            let m = be32(be32(m, 1, 1), 2, family as u32);
            be32(be32(be32(be32(m, 3, 1), 4, 1), 5, 2), 6, 2)
        })
    })
}

fn bytes(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}
