//! HTTP/2 frame by frame, for what no client would send.

use std::time::Duration;

use bytes::{Buf, BytesMut};
use mesh_transport::hbone::HboneStream;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;
pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;

/// A frame.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut out = vec![length[1], length[2], length[3], kind, flags];
    out.extend(stream.to_be_bytes());
    out.extend(payload);
    out
}

fn integer(out: &mut Vec<u8>, mut value: usize) {
    if value < 127 {
        return out.push(value as u8);
    }
    out.push(127);
    value -= 127;
    while value >= 128 {
        out.push((value % 128) as u8 | 128);
        value /= 128;
    }
    out.push(value as u8);
}

/// Fields, each as it is and without an index.
pub fn block(fields: &[(&[u8], &[u8])]) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, value) in fields {
        out.push(0);
        integer(&mut out, name.len());
        out.extend(*name);
        integer(&mut out, value.len());
        out.extend(*value);
    }
    out
}

/// The fields of a usual request, and more.
pub fn request<'a>(method: &'a str, more: &[(&'a [u8], &'a [u8])]) -> Vec<(&'a [u8], &'a [u8])> {
    let usual: [(&[u8], &[u8]); 4] =
        [(b":method", method.as_bytes()), (b":scheme", b"http"), (b":authority", b"shop"), (b":path", b"/")];
    usual.into_iter().chain(more.iter().copied()).collect()
}

/// What became of a stream, or of all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Status(u16),
    Reset(u32),
    GoAway(u32),
    Closed,
    /// Nothing came for so long, and what we send is not read either.
    Silent,
}

impl End {
    /// Whether it is what a malformed request gets.
    pub fn is_refusal(self) -> bool {
        matches!(self, Self::Status(400 | 405 | 431) | Self::Reset(_) | Self::GoAway(1..) | Self::Closed)
    }
}

/// A connection.
pub struct Raw {
    pub stream: HboneStream,
    buffer: BytesMut,
}

impl Raw {
    /// Says that HTTP/2 is spoken.
    pub async fn open(mut stream: HboneStream) -> Self {
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
        stream.write_all(&frame(SETTINGS, 0, 0, &[])).await.unwrap();
        Self { stream, buffer: BytesMut::new() }
    }

    pub async fn send(&mut self, bytes: &[u8]) -> bool {
        self.stream.write_all(bytes).await.is_ok() && self.stream.flush().await.is_ok()
    }

    /// Sends, and hears meanwhile what is answered, which is forgotten up to what ends the connection. False: it has ended.
    pub async fn send_and_hear(&mut self, bytes: &[u8]) -> bool {
        let (mut read, mut write) = tokio::io::split(&mut self.stream);
        let mut sent = std::pin::pin!(async { write.write_all(bytes).await.is_ok() && write.flush().await.is_ok() });
        let is_good = loop {
            tokio::select! {
                sent = &mut sent => break sent,
                heard = read.read_buf(&mut self.buffer) => if !matches!(heard, Ok(1..)) { break false },
            }
        };
        while self.buffer.get(3).is_some_and(|kind| *kind != GOAWAY) && self.take().is_some() {}
        is_good && self.buffer.get(3) != Some(&GOAWAY)
    }

    /// A frame that is here.
    fn take(&mut self) -> Option<(u8, u8, u32, Vec<u8>)> {
        let [a, b, c, kind, flags, w, x, y, z, rest @ ..] = &self.buffer[..] else { return None };
        let length = u32::from_be_bytes([0, *a, *b, *c]) as usize;
        let payload = rest.get(..length)?.to_vec();
        let frame = (*kind, *flags, u32::from_be_bytes([*w, *x, *y, *z]), payload);
        self.buffer.advance(9 + length);
        Some(frame)
    }

    /// The next frame: kind, flags, stream and payload.
    pub async fn next(&mut self) -> Option<(u8, u8, u32, Vec<u8>)> {
        loop {
            if let Some(frame) = self.take() {
                return Some(frame);
            }
            if !matches!(self.stream.read_buf(&mut self.buffer).await, Ok(1..)) {
                return None;
            }
        }
    }

    /// What becomes of that stream.
    pub async fn end(&mut self, stream: u32, limit: Duration) -> End {
        let ended = async {
            loop {
                let Some((kind, flags, of, payload)) = self.next().await else { return End::Closed };
                let code =
                    |at: usize| payload.get(at..at + 4).map_or(0, |code| u32::from_be_bytes(code.try_into().unwrap()));
                match kind {
                    HEADERS if of == stream => return End::Status(status(&payload)),
                    RST_STREAM if of == stream => return End::Reset(code(0)),
                    GOAWAY if code(4) != 0 => return End::GoAway(code(4)),
                    SETTINGS if flags & 1 == 0 => {
                        self.send(&frame(SETTINGS, 1, 0, &[])).await;
                    }
                    _ => {}
                }
            }
        };
        tokio::time::timeout(limit, ended).await.unwrap_or(End::Silent)
    }
}

/// The status, which comes first: of the static table, or a literal of three digits, which may be in Huffman's code.
fn status(block: &[u8]) -> u16 {
    // Sizes of the table may be told before.
    let start = block.iter().position(|byte| byte & 0xe0 != 0x20).unwrap_or(0);
    match &block[start..] {
        [indexed @ 0x88..=0x8e, ..] => [200, 204, 206, 304, 400, 404, 500][usize::from(indexed - 0x88)],
        [0x08..=0x0e | 0x18..=0x1e | 0x48..=0x4e, 3, a, b, c, ..] => {
            std::str::from_utf8(&[*a, *b, *c]).unwrap().parse().unwrap()
        }
        [0x08..=0x0e | 0x18..=0x1e | 0x48..=0x4e, coded, rest @ ..] if coded & 0x80 != 0 => {
            digits(&rest[..usize::from(coded & 0x7f)])
        }
        other => panic!("no status in {:?}", &other[..other.len().min(8)]),
    }
}

/// Digits in Huffman's code: 0, 1 and 2 have five bits, the others six.
fn digits(bytes: &[u8]) -> u16 {
    let bits: Vec<u8> = bytes.iter().flat_map(|byte| (0..8).rev().map(move |bit| byte >> bit & 1)).collect();
    let (mut value, mut at) = (0, 0);
    for _ in 0..3 {
        let read = |count: usize| bits[at..at + count].iter().fold(0_u16, |code, bit| code << 1 | u16::from(*bit));
        let (digit, used) = match read(5) {
            digit @ 0..=2 => (digit, 5),
            _ => (read(6) - 0x19 + 3, 6),
        };
        (value, at) = (value * 10 + digit, at + used);
    }
    value
}
