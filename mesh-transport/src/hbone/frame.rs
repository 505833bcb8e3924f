//! HTTP/2 frames (RFC 9113): numbers, headers, and the small frames that both sides write.

pub(super) const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
pub(super) const HEADER: usize = 9;

/// Frame types.
pub(super) mod kind {
    pub(in crate::hbone) const DATA: u8 = 0;
    pub(in crate::hbone) const HEADERS: u8 = 1;
    pub(in crate::hbone) const PRIORITY: u8 = 2;
    pub(in crate::hbone) const RST_STREAM: u8 = 3;
    pub(in crate::hbone) const SETTINGS: u8 = 4;
    pub(in crate::hbone) const PUSH_PROMISE: u8 = 5;
    pub(in crate::hbone) const PING: u8 = 6;
    pub(in crate::hbone) const GOAWAY: u8 = 7;
    pub(in crate::hbone) const WINDOW_UPDATE: u8 = 8;
    pub(in crate::hbone) const CONTINUATION: u8 = 9;
}

/// Frame flags.
pub(super) mod flag {
    pub(in crate::hbone) const END_STREAM: u8 = 0x1;
    pub(in crate::hbone) const ACK: u8 = 0x1;
    pub(in crate::hbone) const END_HEADERS: u8 = 0x4;
    pub(in crate::hbone) const PADDED: u8 = 0x8;
    pub(in crate::hbone) const PRIORITY: u8 = 0x20;
}

/// Error codes.
pub(super) mod code {
    pub(in crate::hbone) const NO_ERROR: u32 = 0;
    pub(in crate::hbone) const PROTOCOL_ERROR: u32 = 1;
    pub(in crate::hbone) const FLOW_CONTROL_ERROR: u32 = 3;
    pub(in crate::hbone) const SETTINGS_TIMEOUT: u32 = 4;
    pub(in crate::hbone) const STREAM_CLOSED: u32 = 5;
    pub(in crate::hbone) const FRAME_SIZE_ERROR: u32 = 6;
    pub(in crate::hbone) const REFUSED_STREAM: u32 = 7;
    pub(in crate::hbone) const CANCEL: u32 = 8;
    pub(in crate::hbone) const COMPRESSION_ERROR: u32 = 9;
    /// The TCP connection behind a CONNECT was reset: what an aborted connection is told with (RFC 9113 8.5).
    pub(in crate::hbone) const CONNECT_ERROR: u32 = 10;
    pub(in crate::hbone) const ENHANCE_YOUR_CALM: u32 = 11;
}

/// Settings identifiers.
pub(super) mod setting {
    pub(in crate::hbone) const ENABLE_PUSH: u16 = 2;
    pub(in crate::hbone) const MAX_CONCURRENT_STREAMS: u16 = 3;
    pub(in crate::hbone) const INITIAL_WINDOW_SIZE: u16 = 4;
    pub(in crate::hbone) const MAX_FRAME_SIZE: u16 = 5;
    pub(in crate::hbone) const MAX_HEADER_LIST_SIZE: u16 = 6;
}

/// The protocol's own window before anybody said otherwise.
pub(super) const DEFAULT_WINDOW: i64 = 65_535;
/// Largest window.
pub(super) const MAX_WINDOW: i64 = 0x7fff_ffff;

/// A frame's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) length: usize,
    pub(super) kind: u8,
    pub(super) flags: u8,
    pub(super) stream: u32,
}

impl Head {
    pub(super) fn parse(bytes: &[u8; HEADER]) -> Self {
        let [l0, l1, l2, kind, flags, s0, s1, s2, s3] = *bytes;
        // The reserved bit is ignored.
        Self {
            length: u32::from_be_bytes([0, l0, l1, l2]) as usize,
            kind,
            flags,
            stream: u32::from_be_bytes([s0, s1, s2, s3]) & 0x7fff_ffff,
        }
    }

    pub(super) fn bytes(self) -> [u8; HEADER] {
        let [_, l0, l1, l2] = (self.length as u32).to_be_bytes();
        let [s0, s1, s2, s3] = self.stream.to_be_bytes();
        [l0, l1, l2, self.kind, self.flags, s0, s1, s2, s3]
    }
}

fn put(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    out.extend_from_slice(&Head { length: payload.len(), kind, flags, stream }.bytes());
    out.extend_from_slice(payload);
}

pub(super) fn settings(out: &mut Vec<u8>, values: &[(u16, u32)]) {
    let payload: Vec<u8> =
        values.iter().flat_map(|(id, value)| id.to_be_bytes().into_iter().chain(value.to_be_bytes())).collect();
    put(out, kind::SETTINGS, 0, 0, &payload);
}

pub(super) fn settings_ack(out: &mut Vec<u8>) {
    put(out, kind::SETTINGS, flag::ACK, 0, &[]);
}

pub(super) fn ping(out: &mut Vec<u8>, ack: bool, opaque: [u8; 8]) {
    put(out, kind::PING, if ack { flag::ACK } else { 0 }, 0, &opaque);
}

pub(super) fn window_update(out: &mut Vec<u8>, stream: u32, increment: u32) {
    put(out, kind::WINDOW_UPDATE, 0, stream, &increment.to_be_bytes());
}

pub(super) fn rst_stream(out: &mut Vec<u8>, stream: u32, code: u32) {
    put(out, kind::RST_STREAM, 0, stream, &code.to_be_bytes());
}

pub(super) fn goaway(out: &mut Vec<u8>, last: u32, code: u32, debug: &str) {
    let mut payload = Vec::with_capacity(8 + debug.len());
    payload.extend_from_slice(&last.to_be_bytes());
    payload.extend_from_slice(&code.to_be_bytes());
    payload.extend_from_slice(debug.as_bytes());
    put(out, kind::GOAWAY, 0, 0, &payload);
}

/// A header block; ours are far below the smallest frame limit of 16 KiB, which is asserted where they are made.
pub(super) fn headers(out: &mut Vec<u8>, stream: u32, end_stream: bool, block: &[u8]) {
    put(out, kind::HEADERS, flag::END_HEADERS | if end_stream { flag::END_STREAM } else { 0 }, stream, block);
}
