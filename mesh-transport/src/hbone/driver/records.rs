//! From received bytes to content: records are opened in place, tickets and key updates followed, alerts obeyed.

use std::time::{Duration, Instant};

use super::{Checked, Driver, KEY_UPDATES, POST_HANDSHAKE_LIMIT, Violation};
use crate::hbone::frame::{self, code};
use crate::hbone::server::InboundRequest;
use crate::hbone::tunnel::{Closed, Role};
use crate::tls::{CONTENT_ALERT, CONTENT_DATA, CONTENT_HANDSHAKE, Front, Opener};

impl<H: FnMut(InboundRequest)> Driver<H> {
    /// Opens and follows what was received, then sends what that called for.
    pub(super) fn turn(&mut self, end: Option<usize>) {
        if let Some(end) = end {
            self.end = end;
        }
        let result = self.records();
        self.adapt_window();
        if !self.out.is_empty() {
            let out = std::mem::take(&mut self.out);
            self.tunnel.control(|frames| frames.extend_from_slice(&out));
            self.out = out;
            self.out.clear();
        }
        if let Err(Violation(code, word)) = result {
            self.violated(code, word);
        }
    }

    pub(super) fn violated(&self, code: u32, word: &'static str) {
        tracing::debug!(peer = %self.tunnel.peer, from = %self.tunnel.remote, word, "tunnel violates the protocol");
        self.tunnel.control(|out| frame::goaway(out, self.last_peer_stream, code, word));
        self.tunnel.close(Closed::Protocol(word));
    }

    pub(super) fn records(&mut self) -> Checked {
        if !self.opened.is_empty() {
            let opened = std::mem::take(&mut self.opened);
            self.content(&opened, 0..opened.len())?;
            self.deliver(&opened);
        }
        let Some(mut buffer) = self.buffer.take() else { return Ok(()) };
        let result = self.records_in(&mut buffer);
        self.deliver(&buffer);
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.start > 0 {
            buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        self.buffer = Some(buffer);
        result
    }

    pub(super) fn records_in(&mut self, buffer: &mut [u8]) -> Checked {
        loop {
            let length = match Opener::front(&buffer[self.start..self.end]) {
                Ok(Front::Record(length)) => length,
                Ok(Front::Incomplete(_)) => return Ok(()),
                Err(_) => return Err(Violation(code::PROTOCOL_ERROR, "bad_record")),
            };
            let at = self.start;
            let (content_type, range) = self
                .opener
                .open(&mut buffer[at..at + length])
                .map_err(|_| Violation(code::PROTOCOL_ERROR, "bad_record"))?;
            self.start += length;
            let range = at + range.start..at + range.end;
            // A handshake message may be cut in pieces, but nothing may stand between them (RFC 8446 5.1).
            if content_type != CONTENT_HANDSHAKE && !self.post_handshake.is_empty() {
                return Err(Violation(code::PROTOCOL_ERROR, "interrupted_post_handshake"));
            }
            match content_type {
                CONTENT_DATA => {
                    if range.is_empty() {
                        self.pay(1.0)?;
                    }
                    self.content(buffer, range)?;
                }
                // Only application data may be empty.
                CONTENT_HANDSHAKE if !range.is_empty() => self.post_handshake(&buffer[range])?,
                CONTENT_ALERT if range.len() == 2 => {
                    let reason = match buffer[range.start + 1] {
                        0 if self.tunnel.active() == 0 => Closed::Done("peer closed"),
                        0 => Closed::Lost("peer closed with open streams".into()),
                        alert => Closed::Alert(alert),
                    };
                    self.deliver(buffer);
                    self.tunnel.close(reason);
                    return Ok(());
                }
                _ => return Err(Violation(code::PROTOCOL_ERROR, "bad_record")),
            }
        }
    }

    /// Tickets are ignored, key updates followed (RFC 8446 4.6).
    pub(super) fn post_handshake(&mut self, bytes: &[u8]) -> Checked {
        self.post_handshake.extend_from_slice(bytes);
        if self.post_handshake.len() > POST_HANDSHAKE_LIMIT {
            return Err(Violation(code::ENHANCE_YOUR_CALM, "post_handshake_flood"));
        }
        while let Some(&[message, l0, l1, l2]) = self.post_handshake.first_chunk::<4>() {
            let length = 4 + u32::from_be_bytes([0, l0, l1, l2]) as usize;
            if length > POST_HANDSHAKE_LIMIT {
                return Err(Violation(code::PROTOCOL_ERROR, "bad_post_handshake"));
            }
            if self.post_handshake.len() < length {
                return Ok(());
            }
            let requested = self.post_handshake.get(4).copied();
            self.post_handshake.drain(..length);
            match (message, self.tunnel.role) {
                (4, Role::Client) => self.pay(16.0)?,
                (24, _) if length == 5 && matches!(requested, Some(0 | 1)) && self.post_handshake.is_empty() => {
                    let (since, count) = &mut self.key_updates;
                    if since.elapsed() > Duration::from_secs(10) {
                        (*since, *count) = (Instant::now(), 0);
                    }
                    *count += 1;
                    if *count > KEY_UPDATES {
                        return Err(Violation(code::ENHANCE_YOUR_CALM, "key_update_flood"));
                    }
                    self.opener =
                        self.tunnel.next_opener().map_err(|_| Violation(code::PROTOCOL_ERROR, "bad_key_update"))?;
                    if requested == Some(1) {
                        self.tunnel.answer_key_update();
                    }
                }
                _ => return Err(Violation(code::PROTOCOL_ERROR, "bad_post_handshake")),
            }
        }
        Ok(())
    }
}
