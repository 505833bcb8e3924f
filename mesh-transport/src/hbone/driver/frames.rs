//! From content to frames: DATA is gathered and delivered as it passes, other frames are collected whole.

use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use super::*;

impl<H: FnMut(InboundRequest)> Driver<H> {
    /// Follows the frames in `base[range]`.
    pub(super) fn content(&mut self, base: &[u8], mut range: Range<usize>) -> Checked {
        while !range.is_empty() {
            match &mut self.place {
                Place::Preface(matched) => {
                    let wanted = &frame::PREFACE[*matched..];
                    let length = wanted.len().min(range.len());
                    if base[range.start..range.start + length] != wanted[..length] {
                        return Err(Violation(code::PROTOCOL_ERROR, "bad_preface"));
                    }
                    range.start += length;
                    *matched += length;
                    if *matched == frame::PREFACE.len() {
                        self.place = Place::Head([0; frame::HEADER], 0);
                    }
                }
                Place::Head(bytes, have) => {
                    let length = (frame::HEADER - *have).min(range.len());
                    bytes[*have..*have + length].copy_from_slice(&base[range.start..range.start + length]);
                    range.start += length;
                    *have += length;
                    if *have == frame::HEADER {
                        let head = Head::parse(bytes);
                        self.place = self.begin(head)?;
                        self.complete_if_empty(base)?;
                    }
                }
                Place::Data { stream, left, padding, .. } => {
                    if padding.is_none() {
                        let pad = usize::from(base[range.start]);
                        range.start += 1;
                        *left -= 1;
                        if pad > *left {
                            return Err(Violation(code::PROTOCOL_ERROR, "bad_padding"));
                        }
                        *left -= pad;
                        *padding = Some(pad);
                    }
                    let length = (*left).min(range.len());
                    if length > 0 {
                        let piece = range.start..range.start + length;
                        range.start += length;
                        *left -= length;
                        if let Some(stream) = stream.clone() {
                            self.gather(base, stream, piece);
                        }
                    }
                    if let Place::Data { left: 0, padding: Some(padding), .. } = &mut self.place {
                        let length = (*padding).min(range.len());
                        range.start += length;
                        *padding -= length;
                    }
                    self.complete_if_empty(base)?;
                }
                Place::Whole(head) => {
                    let length = (head.length - self.payload.len()).min(range.len());
                    self.payload.extend_from_slice(&base[range.start..range.start + length]);
                    range.start += length;
                    self.complete_if_empty(base)?;
                }
                Place::Skip(left) => {
                    let length = (*left).min(range.len());
                    range.start += length;
                    *left -= length;
                    self.complete_if_empty(base)?;
                }
            }
        }
        Ok(())
    }

    pub(super) fn gather(&mut self, base: &[u8], stream: Arc<Stream>, piece: Range<usize>) {
        let other = self.gathered_for.as_ref().is_some_and(|current| !Arc::ptr_eq(current, &stream));
        if other || self.gathered.len() == GATHER {
            self.deliver(base);
        }
        self.gathered_for = Some(stream);
        self.gathered.push(piece);
    }

    /// Hands over what was gathered. Must run before `base` changes and before anything that ends the stream.
    pub(super) fn deliver(&mut self, base: &[u8]) {
        let Some(stream) = self.gathered_for.take() else { return };
        let grant = stream.deliver(&self.tunnel, base, &self.gathered);
        self.gathered.clear();
        self.grant(&stream, grant);
    }

    pub(super) fn grant(&mut self, stream: &Stream, grant: u32) {
        if grant == 0 {
            return;
        }
        frame::window_update(&mut self.out, stream.id, grant);
        if self.ping_sent.is_none() && self.measured_at.is_none_or(|at| at.elapsed() > MEASURE_INTERVAL) {
            self.ping();
        }
    }

    pub(super) fn ping(&mut self) {
        self.ping_sent = Some(Instant::now());
        frame::ping(&mut self.out, false, PING_ALIVE);
    }

    /// Judges a frame by its header and decides how its payload is read.
    pub(super) fn begin(&mut self, head: Head) -> Checked<Place> {
        if head.length > FRAME_LIMIT {
            return Err(Violation(code::FRAME_SIZE_ERROR, "frame_too_large"));
        }
        if std::mem::replace(&mut self.first_frame, false)
            && (head.kind != kind::SETTINGS || head.flags & flag::ACK != 0)
        {
            return Err(Violation(code::PROTOCOL_ERROR, "no_settings"));
        }
        if let Some(block) = &self.block
            && (head.kind != kind::CONTINUATION || head.stream != block.stream)
        {
            return Err(Violation(code::PROTOCOL_ERROR, "interrupted_headers"));
        }
        self.payload.clear();
        match head.kind {
            kind::DATA => return self.begin_data(head),
            kind::HEADERS | kind::CONTINUATION => {
                let before = self.block.as_ref().map_or(0, |block| block.bytes.len());
                if before + head.length > BLOCK_LIMIT {
                    return Err(Violation(code::ENHANCE_YOUR_CALM, "headers_too_large"));
                }
            }
            kind::PRIORITY
            | kind::RST_STREAM
            | kind::SETTINGS
            | kind::PUSH_PROMISE
            | kind::PING
            | kind::GOAWAY
            | kind::WINDOW_UPDATE => {
                if head.length > CONTROL_LIMIT {
                    return Err(Violation(code::FRAME_SIZE_ERROR, "frame_too_large"));
                }
            }
            _ => {
                self.pay(1.0 + head.length as f64 / 1024.0)?;
                return Ok(Place::Skip(head.length));
            }
        }
        Ok(Place::Whole(head))
    }

    pub(super) fn begin_data(&mut self, head: Head) -> Checked<Place> {
        if head.stream == 0 {
            return Err(Violation(code::PROTOCOL_ERROR, "data_on_stream_0"));
        }
        let end = head.flags & flag::END_STREAM != 0;
        let padded = head.flags & flag::PADDED != 0;
        if padded && head.length == 0 {
            return Err(Violation(code::FRAME_SIZE_ERROR, "bad_padding"));
        }
        if head.length == usize::from(padded) && !end {
            // Nothing but a frame header: RUSTSEC-2026-0258's flood.
            self.pay(1.0)?;
        }
        let length = head.length as i64;
        self.connection_window -= length;
        if self.connection_window < 0 {
            return Err(Violation(code::FLOW_CONTROL_ERROR, "connection_window"));
        }
        let used = CONNECTION_WINDOW - self.connection_window;
        if used >= CONNECTION_REFILL {
            frame::window_update(&mut self.out, 0, used as u32);
            self.connection_window = CONNECTION_WINDOW;
        }
        let cached = self.gathered_for.as_ref().filter(|stream| stream.id == head.stream).cloned();
        let stream = match cached.or_else(|| self.tunnel.stream(head.stream)) {
            Some(stream) => match stream.count_received(length, self.tunnel.role) {
                Ok(()) => Some(stream),
                Err(Unwelcome::Window) => return Err(Violation(code::FLOW_CONTROL_ERROR, "stream_window")),
                Err(Unwelcome::Ended) => {
                    self.stream_error(&stream, code::STREAM_CLOSED)?;
                    None
                }
                Err(Unwelcome::BeforeAnswer) => {
                    self.stream_error(&stream, code::PROTOCOL_ERROR)?;
                    None
                }
                Err(Unwelcome::Over) => None,
            },
            None if self.is_idle(head.stream) => return Err(Violation(code::PROTOCOL_ERROR, "data_on_idle_stream")),
            // Still under way when we ended the stream.
            None => None,
        };
        Ok(Place::Data { stream, left: head.length, padding: if padded { None } else { Some(0) }, end })
    }

    /// Whether nobody has ever opened this stream.
    pub(super) fn is_idle(&self, id: u32) -> bool {
        match self.tunnel.role {
            Role::Server => id.is_multiple_of(2) || id > self.last_peer_stream,
            Role::Client => id.is_multiple_of(2) || !self.tunnel.was_opened(id),
        }
    }

    /// Acts on the current frame if its payload is complete.
    pub(super) fn complete_if_empty(&mut self, base: &[u8]) -> Checked {
        let head_place = || Place::Head([0; frame::HEADER], 0);
        match &self.place {
            Place::Data { left: 0, padding: Some(0), .. } => {
                let Place::Data { stream, end, .. } = std::mem::replace(&mut self.place, head_place()) else {
                    return Ok(());
                };
                let Some(stream) = stream else { return Ok(()) };
                if end {
                    self.deliver(base);
                    stream.end();
                    self.tunnel.settle(&stream);
                } else if self.gathered_for.as_ref().is_none_or(|current| !Arc::ptr_eq(current, &stream)) {
                    // Padding alone filled the window.
                    let grant = stream.consume_padding(&self.tunnel);
                    self.grant(&stream, grant);
                }
            }
            Place::Whole(head) if self.payload.len() == head.length => {
                let head = *head;
                self.place = head_place();
                let payload = std::mem::take(&mut self.payload);
                let result = self.act(base, head, &payload);
                self.payload = payload;
                if self.payload.capacity() > CONTROL_LIMIT {
                    self.payload = Vec::new();
                }
                result?;
            }
            Place::Skip(0) => self.place = head_place(),
            _ => {}
        }
        Ok(())
    }

    pub(super) fn act(&mut self, base: &[u8], head: Head, payload: &[u8]) -> Checked {
        match head.kind {
            kind::HEADERS => self.on_headers(base, head, payload),
            kind::CONTINUATION => self.on_continuation(base, head, payload),
            kind::SETTINGS => {
                // An acknowledgement grants what is taken, and bytes that are counted and not delivered look so.
                self.deliver(base);
                self.on_settings(head, payload)
            }
            kind::PING => self.on_ping(head, payload),
            kind::RST_STREAM => {
                let &[c0, c1, c2, c3] = payload else {
                    return Err(Violation(code::FRAME_SIZE_ERROR, "bad_rst_stream"));
                };
                if head.stream == 0 || self.is_idle(head.stream) {
                    return Err(Violation(code::PROTOCOL_ERROR, "rst_on_idle_stream"));
                }
                self.deliver(base);
                match self.tunnel.stream(head.stream) {
                    Some(stream) => {
                        let unanswered = stream.peer_reset(u32::from_be_bytes([c0, c1, c2, c3]));
                        self.tunnel.settle(&stream);
                        if unanswered {
                            self.pay(4.0)?;
                        }
                    }
                    None => self.pay(1.0)?,
                }
                Ok(())
            }
            kind::WINDOW_UPDATE => {
                let &[w0, w1, w2, w3] = payload else {
                    return Err(Violation(code::FRAME_SIZE_ERROR, "bad_window_update"));
                };
                let increment = i64::from(u32::from_be_bytes([w0, w1, w2, w3]) & 0x7fff_ffff);
                if head.stream != 0 && self.is_idle(head.stream) {
                    return Err(Violation(code::PROTOCOL_ERROR, "window_on_idle_stream"));
                }
                if increment < 1024 {
                    self.pay(1.0)?;
                }
                if increment == 0 && head.stream == 0 {
                    return Err(Violation(code::PROTOCOL_ERROR, "empty_window_update"));
                }
                if increment == 0 || !self.tunnel.granted(head.stream, increment) {
                    if head.stream == 0 {
                        return Err(Violation(code::FLOW_CONTROL_ERROR, "window_overflow"));
                    }
                    let error = if increment == 0 { code::PROTOCOL_ERROR } else { code::FLOW_CONTROL_ERROR };
                    match self.tunnel.stream(head.stream) {
                        Some(stream) => self.stream_error(&stream, error)?,
                        None => self.pay(4.0)?,
                    }
                }
                Ok(())
            }
            kind::GOAWAY => {
                let Some(&[l0, l1, l2, l3]) = payload.first_chunk::<4>() else {
                    return Err(Violation(code::FRAME_SIZE_ERROR, "bad_goaway"));
                };
                if head.stream != 0 {
                    return Err(Violation(code::PROTOCOL_ERROR, "goaway_on_stream"));
                }
                self.pay(4.0)?;
                self.peer_gone = true;
                self.tunnel.gone_away(u32::from_be_bytes([l0, l1, l2, l3]) & 0x7fff_ffff);
                Ok(())
            }
            kind::PRIORITY => {
                if payload.len() != 5 || head.stream == 0 {
                    return Err(Violation(code::FRAME_SIZE_ERROR, "bad_priority"));
                }
                self.pay(1.0)
            }
            _ => Err(Violation(code::PROTOCOL_ERROR, "push_promise")),
        }
    }
}
