//! The receive window of a stream: what its peer may still send, when it is granted more, when the window grows and when it shrinks.

use super::*;

/// Largest receive window of a stream.
const WINDOW_MAX: i64 = 4 * 1024 * 1024;
/// Receive window that all streams of the process may grow beyond their first, in all.
const GROWN_MAX: i64 = if cfg!(test) { 8 } else { 256 } * 1024 * 1024;
/// A stream that was granted nothing for this long does not need what its window has grown.
const QUIET: Duration = Duration::from_secs(1);
/// Growth assumes at least this round trip: on a fast network half a window per such time is a busy stream.
const ROUND_TRIP_MIN: Duration = Duration::from_micros(500);

/// Bytes of receive window that all streams together have grown beyond their first window.
static GROWN: AtomicI64 = AtomicI64::new(0);

impl Stream {
    /// Counts received bytes against the window.
    pub(in crate::hbone) fn count_received(&self, length: i64, role: Role) -> Result<(), Unwelcome> {
        let mut inner = self.inner.lock();
        match inner.recv {
            Recv::Open if role == Role::Client && matches!(inner.answer, Answer::Waiting) => {
                return Err(Unwelcome::BeforeAnswer);
            }
            Recv::Open => {}
            Recv::Ended => return Err(Unwelcome::Ended),
            Recv::Reset(_) | Recv::Lost => return Err(Unwelcome::Over),
        }
        inner.window -= length;
        // A window that was taken back may be below zero; then only an end without bytes may come.
        if length > 0 && inner.window < 0 { Err(Unwelcome::Window) } else { Ok(()) }
    }

    /// Our SETTINGS changed the window that streams have at first, and with it every window by the difference (RFC 9113 6.9.2). Returns how much to grant:
    /// a window that is at its end now, with nothing queued that would grant it more when it is taken, would be at its end for ever.
    ///
    /// A smaller one means that memory is short: streams that do not use what they have grown leave it to others. What was granted stays granted, and
    /// counted until it is used.
    pub(in crate::hbone) fn set_first_window(&self, tunnel: &Tunnel, first: i64) -> u32 {
        let mut inner = self.inner.lock();
        let change = first - inner.first;
        inner.first = first;
        inner.window += change;
        inner.target += change;
        if change < 0 && (inner.lags() || inner.last_grant.elapsed() >= QUIET) {
            inner.target = first;
        }
        let grant = inner.grant(tunnel);
        inner.count_grown();
        grant
    }

    /// The window, and what it is filled up to.
    #[cfg(test)]
    pub(in crate::hbone) fn window(&self) -> (i64, i64) {
        let inner = self.inner.lock();
        (inner.window, inner.target)
    }

    /// As if the last grant had been long ago.
    #[cfg(test)]
    pub(in crate::hbone) fn rest(&self) {
        self.inner.lock().last_grant -= QUIET;
    }

    /// Padding is taken at once.
    pub(in crate::hbone) fn consume_padding(&self, tunnel: &Tunnel) -> u32 {
        self.inner.lock().grant(tunnel)
    }
}

impl Inner {
    /// Fills the window up when half of it is free. What the application has not taken counts as filled. A stream that empties half a window within a round
    /// trip is limited by its window, which then doubles; one whose application lags shrinks back.
    pub(super) fn grant(&mut self, tunnel: &Tunnel) -> u32 {
        if self.recv != Recv::Open {
            return 0;
        }
        // Nothing may ever be granted again to a stream whose application stalls: it shrinks already while its window is used up.
        if self.lags() && self.window < self.target / 2 {
            self.resize((self.target / 2).max(self.first));
        }
        self.count_grown();
        let queued = self.queue.len() as i64;
        if self.target - self.window - queued < self.target / 2 {
            return 0;
        }
        let now = Instant::now();
        let elapsed = now - self.last_grant;
        self.last_grant = now;
        let round_trip = Duration::from_nanos(tunnel.round_trip.load(Relaxed)).max(ROUND_TRIP_MIN);
        if self.lags() {
            self.resize((self.target / 2).max(self.first));
        } else if elapsed <= round_trip {
            self.resize((self.target * 2).min(WINDOW_MAX));
        }
        let due = (self.target - self.window - queued).max(0);
        self.window += due;
        due as u32
    }

    /// Whether the application leaves much of what arrived.
    fn lags(&self) -> bool {
        self.queue.len() as i64 * 4 > self.target
    }

    fn resize(&mut self, target: i64) {
        // What is counted already may be more than the target asks for.
        let change = (target - self.first - self.grown).max(0);
        if change > 0 && GROWN.fetch_add(change, Relaxed) + change > GROWN_MAX {
            GROWN.fetch_sub(change, Relaxed);
            return;
        }
        self.grown += change;
        self.target = target;
    }

    /// The peer sends no more: the rest of its window is for others to grow, however long the other direction takes.
    pub(super) fn receives_no_more(&mut self, why: Recv) {
        self.recv = why;
        self.count_grown();
    }

    /// No more counts for what the peer may neither send now nor be granted again.
    fn count_grown(&mut self) {
        let grown = match self.recv {
            Recv::Open => (self.target.max(self.window) - self.first).clamp(0, self.grown),
            _ => 0,
        };
        if grown < self.grown {
            GROWN.fetch_sub(self.grown - grown, Relaxed);
            self.grown = grown;
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        GROWN.fetch_sub(self.grown, Relaxed);
    }
}
