//! The PROXY protocol, versions 1 and 2: whoever stands in front says where the client is. Only read where it is asked for, and then a connection without it
//! is closed: a client could write one itself.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt};

use crate::refused::Reason;

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// A line of version 1 with its end.
const LONGEST_LINE: usize = 107;
/// Most bytes behind the head of version 2: addresses, and what else is said.
const LONGEST: usize = 4096;
/// The type of the checksum, among what else is said.
const CRC32C: u8 = 0x03;

/// Why a connection is closed.
#[derive(Debug, thiserror::Error)]
pub enum NoProxy {
    /// The client, or the way to it.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// It does not begin with a header, or with one that is not as it should be.
    #[error("a PROXY header is expected: {0}")]
    Malformed(&'static str),
    /// It does not end in time.
    #[error("a PROXY header is expected: it did not end in time")]
    Late,
}

impl NoProxy {
    /// Its word.
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            Self::Io(_) => Reason::HandshakeClosed,
            Self::Malformed(_) | Self::Late => Reason::ProxyHeader,
        }
    }
}

/// Reads the header, and not a byte more. `None`: whoever connects speaks for itself.
pub async fn read<S: AsyncRead + Unpin>(stream: &mut S, limit: Duration) -> Result<Option<SocketAddr>, NoProxy> {
    tokio::time::timeout(limit, header(stream)).await.map_err(|_| NoProxy::Late)?
}

async fn header<S: AsyncRead + Unpin>(stream: &mut S) -> Result<Option<SocketAddr>, NoProxy> {
    let mut first = [0; SIGNATURE.len()];
    stream.read_exact(&mut first).await?;
    if first == SIGNATURE {
        return version_2(stream).await;
    }
    if !first.starts_with(b"PROXY ") {
        return Err(NoProxy::Malformed("there is none"));
    }
    let mut line = first.to_vec();
    while !line.ends_with(b"\r\n") {
        if line.len() >= LONGEST_LINE {
            return Err(NoProxy::Malformed("the line is too long"));
        }
        line.push(stream.read_u8().await?);
    }
    let line = std::str::from_utf8(&line[..line.len() - 2]).map_err(|_| NoProxy::Malformed("the line is no text"))?;
    version_1(line).map_err(NoProxy::Malformed)
}

/// `PROXY TCP4 198.51.100.22 203.0.113.7 35646 80`
fn version_1(line: &str) -> Result<Option<SocketAddr>, &'static str> {
    let parts: Vec<&str> = line.split(' ').collect();
    if parts.get(1) == Some(&"UNKNOWN") {
        return Err("the client is not known");
    }
    let [_, family, from, to, from_port, to_port] = parts[..] else { return Err("the line has not six words") };
    let address = |text: &str| -> Result<IpAddr, &'static str> {
        match family {
            "TCP4" => text.parse::<Ipv4Addr>().map(IpAddr::from).map_err(|_| "not an address of IPv4"),
            "TCP6" => text.parse::<Ipv6Addr>().map(IpAddr::from).map_err(|_| "not an address of IPv6"),
            _ => Err("neither TCP4 nor TCP6"),
        }
    };
    let port = |text: &str| match text.bytes().all(|b| b.is_ascii_digit()) {
        true => text.parse::<u16>().map_err(|_| "not a port"),
        false => Err("not a port"),
    };
    address(to)?;
    port(to_port)?;
    Ok(Some(SocketAddr::new(address(from)?, port(from_port)?)))
}

async fn version_2<S: AsyncRead + Unpin>(stream: &mut S) -> Result<Option<SocketAddr>, NoProxy> {
    let mut head = [0; 4];
    stream.read_exact(&mut head).await?;
    let length = usize::from(u16::from_be_bytes([head[2], head[3]]));
    if length > LONGEST {
        return Err(NoProxy::Malformed("it is too long"));
    }
    let mut rest = vec![0; length];
    stream.read_exact(&mut rest).await?;
    let (address, said) = match (head[0], head[1]) {
        // Whoever stands in front asks for itself, as for its health checks.
        (0x20, _) => (None, rest.get(own_length(head[1])..)),
        (0x21, 0x11) => (v4(&rest), rest.get(12..)),
        (0x21, 0x21) => (v6(&rest), rest.get(36..)),
        (0x21, _) => return Err(NoProxy::Malformed("not TCP of IPv4 or IPv6")),
        _ => return Err(NoProxy::Malformed("neither version 2 nor a command of it")),
    };
    let said_from = rest.len() - said.map_or(0, <[u8]>::len);
    if said.is_none() || (head[0] == 0x21 && address.is_none()) {
        return Err(NoProxy::Malformed("it is shorter than its addresses"));
    }
    let whole = [&SIGNATURE[..], &head, &rest].concat();
    check(&whole, SIGNATURE.len() + head.len() + said_from).map_err(NoProxy::Malformed)?;
    Ok(address)
}

/// Bytes of the addresses, which count for nothing.
fn own_length(family: u8) -> usize {
    match family {
        0x11 | 0x12 => 12,
        0x21 | 0x22 => 36,
        _ => 0,
    }
}

fn v4(rest: &[u8]) -> Option<SocketAddr> {
    let ip: [u8; 4] = rest.get(..4)?.try_into().ok()?;
    Some(SocketAddr::new(Ipv4Addr::from(ip).into(), u16::from_be_bytes(rest.get(8..10)?.try_into().ok()?)))
}

fn v6(rest: &[u8]) -> Option<SocketAddr> {
    let ip: [u8; 16] = rest.get(..16)?.try_into().ok()?;
    let port = u16::from_be_bytes(rest.get(32..34)?.try_into().ok()?);
    Some(SocketAddr::new(IpAddr::from(Ipv6Addr::from(ip)).to_canonical(), port))
}

/// What is said from `at` on is whole, and the checksum fits if there is one.
fn check(whole: &[u8], mut at: usize) -> Result<(), &'static str> {
    while at < whole.len() {
        let Some([kind, high, low]) = whole.get(at..at + 3) else { return Err("something is cut off") };
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        let Some(value) = whole.get(at + 3..at + 3 + length) else { return Err("something is cut off") };
        if *kind == CRC32C {
            let said: [u8; 4] = value.try_into().map_err(|_| "the checksum is not one")?;
            let mut zeroed = whole.to_vec();
            zeroed[at + 3..at + 7].fill(0);
            if u32::from_be_bytes(said) != crc32c(&zeroed) {
                return Err("the checksum does not fit");
            }
        }
        at += 3 + length;
    }
    Ok(())
}

fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 })
    })
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    async fn ask(bytes: &[u8]) -> Result<(Option<String>, usize), String> {
        let (mut client, mut server) = tokio::io::duplex(128 * 1024);
        client.write_all(bytes).await.unwrap();
        drop(client);
        let read = read(&mut server, Duration::from_secs(5)).await.map_err(|error| error.to_string())?;
        let mut left = Vec::new();
        server.read_to_end(&mut left).await.unwrap();
        Ok((read.map(|address| address.to_string()), left.len()))
    }

    fn v2(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let length = u16::try_from(rest.len()).unwrap().to_be_bytes();
        [&SIGNATURE[..], &[command, family], &length, rest].concat()
    }

    #[tokio::test]
    async fn hardening_B188_version_1() {
        for (line, expected) in [
            ("PROXY TCP4 198.51.100.22 203.0.113.7 35646 80\r\n", Some("198.51.100.22:35646")),
            ("PROXY TCP6 2001:db8::1 2001:db8::2 1 65535\r\n", Some("[2001:db8::1]:1")),
            ("PROXY TCP4 2001:db8::1 203.0.113.7 1 80\r\n", None),
            ("PROXY TCP4 198.51.100.22 203.0.113.7 65536 80\r\n", None),
            ("PROXY TCP4 198.51.100.22 203.0.113.7 +1 80\r\n", None),
            ("PROXY TCP4 198.51.100.22 203.0.113.7 1 80 9\r\n", None),
            ("PROXY UNKNOWN\r\n______", None),
            ("proxy TCP4 198.51.100.22 203.0.113.7 1 80\r\n", None),
            ("GET / HTTP/1.1\r\nhost: a\r\n\r\n", None),
            ("PROXY TCP4 198.51.100.22 203.0.113.7 1 80\n", None),
        ] {
            let bytes = format!("{line}rest");
            let read = ask(bytes.as_bytes()).await.ok();
            assert_eq!(read, expected.map(|address| (Some(address.to_owned()), 4)), "{line:?}");
        }
        let long = format!("PROXY TCP4 {}\r\n", "1".repeat(100));
        assert!(ask(long.as_bytes()).await.unwrap_err().contains("too long"));
    }

    #[tokio::test]
    async fn hardening_B189_version_2() {
        let four = [198, 51, 100, 22, 203, 0, 113, 7, 0x8b, 0x3e, 0, 80];
        let six: Vec<u8> = [[0x20; 16], [0x30; 16]].concat().into_iter().chain([0, 7, 0, 80]).collect();
        let with = |more: &[u8]| [&four[..], more].concat();
        let good = Some(Some("198.51.100.22:35646"));
        for (bytes, expected) in [
            (v2(0x21, 0x11, &four), good),
            (v2(0x21, 0x21, &six), Some(Some("[2020:2020:2020:2020:2020:2020:2020:2020]:7"))),
            (v2(0x20, 0x00, &[]), Some(None)),
            (v2(0x20, 0x11, &four), Some(None)),
            (v2(0x21, 0x11, &four[..11]), None),
            (v2(0x21, 0x31, &four), None),
            (v2(0x21, 0x12, &four), None),
            (v2(0x31, 0x11, &four), None),
            (v2(0x21, 0x11, &with(&[4, 0, 1, 9])), good),
            (v2(0x21, 0x11, &with(&[4, 0, 9, 9])), None),
            (v2(0x21, 0x11, &with(&[4, 0])), None),
            (v2(0x21, 0x11, &with(&[CRC32C, 0, 4, 0, 0, 0, 0])), None),
            (v2(0x21, 0x11, &[0; 5000]), None),
        ] {
            let read = ask(&bytes).await.ok().map(|(address, _)| address);
            assert_eq!(read, expected.map(|address| address.map(str::to_owned)), "{bytes:?}");
        }
        let mut bytes = v2(0x21, 0x11, &with(&[CRC32C, 0, 4, 0, 0, 0, 0]));
        let sum = crc32c(&bytes).to_be_bytes();
        let at = bytes.len() - 4;
        bytes[at..].copy_from_slice(&sum);
        assert!(ask(&bytes).await.is_ok());
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }
}
