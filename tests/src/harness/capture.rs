//! The canary oracle: reads every frame that crosses the fabric and looks for tokens that must never appear in clear.
//!
//! A packet socket in the fabric's namespace sees each frame once, as it enters the bridge. Payloads are searched flow by flow with
//! the tail of the previous segment in front, so a token cut by a segment edge is found as well. Losses are counted: an absence
//! proves something only if nothing was lost.
use super::netns::Netns;
use super::process::lock;
use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, LinkAddr, SockFlag, SockProtocol, SockType, recvfrom, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;
use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

const OUTGOING: u8 = 4;
/// Bytes of a segment that are kept to be shown.
const SAMPLE: usize = 64;

/// Direction of one flow on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Flow {
    /// Sender.
    pub source: (IpAddr, u16),
    /// Receiver.
    pub destination: (IpAddr, u16),
    /// IP protocol number.
    pub protocol: u8,
}

/// A token seen in clear.
#[derive(Debug, Clone)]
pub struct Sighting {
    /// The token.
    pub token: String,
    /// Where.
    pub flow: Flow,
    /// The start of the segment that ended it.
    pub start: Vec<u8>,
}

/// What has been seen so far.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// TCP and UDP packets with payload.
    pub packets: u64,
    /// Payload bytes to or from port 15008.
    pub hbone_bytes: u64,
    /// Packets to or from port 15008.
    pub hbone_packets: u64,
    /// Tokens found.
    pub sightings: Vec<Sighting>,
    /// The flow and the start of the last large segment to or from port 15008.
    pub hbone_sample: Option<(Flow, Vec<u8>)>,
    /// TLS records of type handshake seen at the start of a segment of an HBONE flow.
    pub tls_handshakes: u64,
    /// Frames that the kernel dropped because we were too slow.
    pub lost: u64,
    /// Payload bytes of TCP to or from the port that was named.
    pub port_bytes: u64,
    /// Those that were sent by strangers: they speak in clear whoever listens, and are looked into no further.
    pub strangers_bytes: u64,
    port: Option<u16>,
    strangers: Vec<IpAddr>,
    tokens: Vec<Vec<u8>>,
    tails: HashMap<Flow, Vec<u8>>,
}

impl Seen {
    /// Sightings of one token.
    pub fn count(&self, token: &str) -> usize {
        self.sightings.iter().filter(|s| s.token == token).count()
    }
}

/// A running capture.
pub struct Capture {
    seen: Arc<Mutex<Seen>>,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Capture {
    /// Starts to read the fabric.
    pub fn start(fabric: &Netns, tokens: &[&str]) -> Result<Capture> {
        Ok(Capture::over(fabric.run(open)?, tokens, None, &[]))
    }

    /// Starts to read what crosses this process's own network, and counts the bytes of TCP to and from a port. What `strangers` send counts apart.
    pub fn here(tokens: &[&str], port: u16, strangers: &[IpAddr]) -> Result<Capture> {
        Ok(Capture::over(open()?, tokens, Some(port), strangers))
    }

    fn over(socket: OwnedFd, tokens: &[&str], port: Option<u16>, strangers: &[IpAddr]) -> Capture {
        let seen = Arc::new(Mutex::new(Seen {
            tokens: tokens.iter().map(|t| t.as_bytes().to_vec()).collect(),
            port,
            strangers: strangers.to_vec(),
            ..Seen::default()
        }));
        let stop = Arc::new(AtomicBool::new(false));
        let (s, e) = (seen.clone(), stop.clone());
        let thread = std::thread::spawn(move || read(&socket, &s, &e));
        Capture { seen, stop, thread: Some(thread) }
    }

    /// A copy of what has been seen.
    pub fn seen(&self) -> Seen {
        lock(&self.seen).clone()
    }

    /// Forgets counts and sightings, keeps the tokens.
    pub fn reset(&self) {
        let mut seen = lock(&self.seen);
        let (tokens, strangers) = (std::mem::take(&mut seen.tokens), std::mem::take(&mut seen.strangers));
        *seen = Seen { tokens, strangers, port: seen.port, ..Seen::default() };
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn open() -> Result<OwnedFd> {
    let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll)
        .context("open packet socket")?;
    setsockopt(&socket, sockopt::RcvBufForce, &(64 << 20)).context("grow packet buffer")?;
    setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::new(0, 50_000)).context("set packet timeout")?;
    Ok(socket)
}

fn read(socket: &OwnedFd, seen: &Mutex<Seen>, stop: &AtomicBool) {
    let mut buffer = vec![0; 128 << 10];
    while !stop.load(Ordering::Relaxed) {
        match recvfrom::<LinkAddr>(socket.as_raw_fd(), &mut buffer) {
            Ok((n, from)) => {
                if from.is_none_or(|f| f.pkttype() != OUTGOING) {
                    frame(&mut lock(seen), &buffer[..n]);
                }
            }
            Err(Errno::EAGAIN | Errno::EINTR) => lock(seen).lost += lost(socket),
            Err(_) => return,
        }
    }
    lock(seen).lost += lost(socket);
}

/// Frames lost since the last question.
fn lost(socket: &OwnedFd) -> u64 {
    let mut stats = [0u32; 2];
    let mut length = size_of_val(&stats) as libc::socklen_t;
    // SAFETY: the pointers are to a local array of the size given in `length`, which the kernel fills at most.
    let done = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_STATISTICS,
            stats.as_mut_ptr().cast(),
            &mut length,
        )
    };
    if done == 0 { stats[1].into() } else { 0 }
}

fn frame(seen: &mut Seen, bytes: &[u8]) {
    let Some((flow, payload)) = parse(bytes) else { return };
    if payload.is_empty() {
        return;
    }
    seen.packets += 1;
    let ports = [flow.source.1, flow.destination.1];
    if ports.contains(&15008) {
        seen.hbone_packets += 1;
        seen.hbone_bytes += payload.len() as u64;
        if payload.len() > 5 && payload[0] == 22 && payload[1] == 3 {
            seen.tls_handshakes += 1;
        } else if payload.len() > 2 * SAMPLE {
            seen.hbone_sample = Some((flow, payload[..SAMPLE].to_vec()));
        }
    }
    if seen.strangers.contains(&flow.source.0) {
        seen.strangers_bytes += payload.len() as u64;
        return;
    }
    if i32::from(flow.protocol) == libc::IPPROTO_TCP && seen.port.is_some_and(|port| ports.contains(&port)) {
        seen.port_bytes += payload.len() as u64;
    }
    let keep = seen.tokens.iter().map(Vec::len).max().unwrap_or(1).saturating_sub(1);
    let mut text = seen.tails.remove(&flow).unwrap_or_default();
    let old = text.len();
    text.extend_from_slice(payload);
    for token in &seen.tokens {
        let ends_in_new = |at: usize| at + token.len() > old;
        if text.windows(token.len()).enumerate().any(|(at, w)| w == token.as_slice() && ends_in_new(at)) {
            let (token, start) =
                (String::from_utf8_lossy(token).into_owned(), payload[..payload.len().min(SAMPLE)].to_vec());
            seen.sightings.push(Sighting { token, flow, start });
        }
    }
    text.drain(..text.len().saturating_sub(keep));
    seen.tails.insert(flow, text);
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]))
}

fn parse(bytes: &[u8]) -> Option<(Flow, &[u8])> {
    let (protocol, source, destination, transport) = match be16(bytes, 12)? {
        0x0800 => {
            let ip = bytes.get(14..)?;
            let header = usize::from(*ip.first()? & 15) * 4;
            let total = usize::from(be16(ip, 2)?);
            let address = |at: usize| Some(IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(ip.get(at..at + 4)?).ok()?)));
            let end = if total == 0 { ip.len() } else { total.min(ip.len()) };
            (*ip.get(9)?, address(12)?, address(16)?, ip.get(header..end)?)
        }
        0x86dd => {
            let ip = bytes.get(14..)?;
            let address =
                |at: usize| Some(IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(ip.get(at..at + 16)?).ok()?)));
            (*ip.get(6)?, address(8)?, address(24)?, ip.get(40..)?)
        }
        _ => return None,
    };
    let header = match i32::from(protocol) {
        libc::IPPROTO_TCP => usize::from(*transport.get(12)? >> 4) * 4,
        libc::IPPROTO_UDP => 8,
        _ => return None,
    };
    let flow =
        Flow { source: (source, be16(transport, 0)?), destination: (destination, be16(transport, 2)?), protocol };
    Some((flow, transport.get(header..)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(port: u16, payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; 12];
        bytes.extend([8, 0, 0x45, 0]);
        bytes.extend((40 + payload.len() as u16).to_be_bytes());
        bytes.extend([0, 0, 0, 0, 64, 6, 0, 0, 198, 18, 1, 10, 198, 18, 2, 10]);
        bytes.extend([1, 2]);
        bytes.extend(port.to_be_bytes());
        bytes.extend([0; 8]);
        bytes.extend([0x50, 0, 0, 0, 0, 0, 0, 0]);
        bytes.extend(payload);
        bytes
    }

    #[test]
    fn a_token_is_found_across_a_segment_edge_and_only_once() {
        let mut seen = Seen { tokens: vec![b"CANARY".to_vec()], ..Seen::default() };
        for part in [&b"xxCAN"[..], b"ARYyy", b"CANXARY", b"zCANARYz"] {
            frame(&mut seen, &segment(80, part));
        }
        frame(&mut seen, &segment(81, b"ARY"));
        assert_eq!(seen.count("CANARY"), 2);
        assert_eq!((seen.packets, seen.hbone_packets), (5, 0));
    }

    #[test]
    fn hbone_is_counted_apart_and_so_is_the_port_that_was_named() {
        let mut seen = Seen { port: Some(80), ..Seen::default() };
        frame(&mut seen, &segment(15008, &[22, 3, 1, 0, 5, 1]));
        frame(&mut seen, &segment(80, b"x"));
        assert_eq!(seen.port_bytes, 1);
        assert_eq!((seen.hbone_packets, seen.hbone_bytes, seen.tls_handshakes, seen.packets), (1, 6, 1, 2));
    }

    #[test]
    fn what_strangers_say_counts_apart_and_what_they_are_told_does_not() {
        let mut seen = Seen { port: Some(80), tokens: vec![b"CANARY".to_vec()], ..Seen::default() };
        seen.strangers = vec![IpAddr::from([198, 18, 1, 10])];
        frame(&mut seen, &segment(80, b"CANARY"));
        assert_eq!((seen.strangers_bytes, seen.port_bytes, seen.sightings.len()), (6, 0, 0));
        seen.strangers = vec![IpAddr::from([198, 18, 2, 10])];
        frame(&mut seen, &segment(80, b"CANARY"));
        assert_eq!((seen.strangers_bytes, seen.port_bytes, seen.sightings.len()), (6, 6, 1));
    }

    #[test]
    fn cut_frames_are_left_alone() {
        let whole = segment(80, b"payload");
        for n in 0..whole.len() {
            let _ = parse(&whole[..n]);
        }
        assert!(parse(&[]).is_none());
    }
}
