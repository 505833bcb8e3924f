//! Frames about the tunnel itself, and the price of those that cost the peer nothing.

use super::*;

impl<H: FnMut(InboundRequest)> Driver<H> {
    pub(super) fn on_settings(&mut self, head: Head, payload: &[u8]) -> Checked {
        if head.stream != 0 {
            return Err(Violation(code::PROTOCOL_ERROR, "settings_on_stream"));
        }
        if head.flags & flag::ACK != 0 {
            if !payload.is_empty() {
                return Err(Violation(code::FRAME_SIZE_ERROR, "bad_settings"));
            }
            if self.unacknowledged.take().is_some() {
                self.tunnel.acknowledged();
            }
            return self.pay(1.0);
        }
        if !payload.len().is_multiple_of(6) {
            return Err(Violation(code::FRAME_SIZE_ERROR, "bad_settings"));
        }
        self.pay(8.0)?;
        let (mut window, mut streams) = (None, None);
        for entry in payload.chunks_exact(6) {
            let &[i0, i1, v0, v1, v2, v3] = entry else { continue };
            let value = u32::from_be_bytes([v0, v1, v2, v3]);
            match u16::from_be_bytes([i0, i1]) {
                setting::ENABLE_PUSH if value > 1 => return Err(Violation(code::PROTOCOL_ERROR, "bad_settings")),
                setting::MAX_CONCURRENT_STREAMS => streams = Some(value),
                setting::INITIAL_WINDOW_SIZE if i64::from(value) > frame::MAX_WINDOW => {
                    return Err(Violation(code::FLOW_CONTROL_ERROR, "bad_settings"));
                }
                setting::INITIAL_WINDOW_SIZE => window = Some(i64::from(value)),
                setting::MAX_FRAME_SIZE if !(16_384..1 << 24).contains(&value) => {
                    return Err(Violation(code::PROTOCOL_ERROR, "bad_settings"));
                }
                _ => {}
            }
        }
        if !self.tunnel.configured(window, streams) {
            return Err(Violation(code::FLOW_CONTROL_ERROR, "window_overflow"));
        }
        frame::settings_ack(&mut self.out);
        Ok(())
    }

    pub(super) fn on_ping(&mut self, head: Head, payload: &[u8]) -> Checked {
        let Ok(opaque) = <[u8; 8]>::try_from(payload) else {
            return Err(Violation(code::FRAME_SIZE_ERROR, "bad_ping"));
        };
        if head.stream != 0 {
            return Err(Violation(code::PROTOCOL_ERROR, "ping_on_stream"));
        }
        self.pay(2.0)?;
        if head.flags & flag::ACK == 0 {
            frame::ping(&mut self.out, true, opaque);
            return Ok(());
        }
        if ![PING_ALIVE, PING_GOODBYE].contains(&opaque) {
            return Ok(());
        }
        if let Some(sent) = self.ping_sent.take() {
            let sample = sent.elapsed().as_nanos() as u64;
            let old = self.tunnel.round_trip.load(Relaxed);
            self.tunnel.round_trip.store(if old == 0 { sample } else { (old * 7 + sample) / 8 }, Relaxed);
            self.measured_at = Some(Instant::now());
        }
        // An answer to an earlier PING says nothing about what the peer knows.
        if opaque == PING_GOODBYE && self.goaway_sent == Goaway::Announced {
            self.goaway_sent = Goaway::Final;
            frame::goaway(&mut self.out, self.last_peer_stream, code::NO_ERROR, "");
        }
        Ok(())
    }

    /// Offers streams less while the process holds much for applications that do not read, and again as before when it does not.
    pub(super) fn adapt_window(&mut self) {
        let window = match queued_in_all() {
            queued if queued > QUEUED_LIMIT => SMALL_WINDOW,
            queued if queued < QUEUED_LIMIT / 2 => STREAM_WINDOW,
            _ => return,
        };
        if window != self.offered && self.unacknowledged.is_none() {
            self.offered = window;
            self.unacknowledged = self.tunnel.offer(window).then(Instant::now);
        }
    }

    /// Charges for a frame that costs the peer nothing.
    pub(super) fn pay(&mut self, price: f64) -> Checked {
        self.patience -= price;
        if self.patience >= 0.0 {
            return Ok(());
        }
        let now = Instant::now();
        let earned = (now - self.patience_at).as_secs_f64() * PATIENCE_PER_SECOND;
        self.patience_at = now;
        self.patience = (self.patience + earned).min(PATIENCE);
        if self.patience < 0.0 { Err(Violation(code::ENHANCE_YOUR_CALM, "flood")) } else { Ok(()) }
    }
}
