//! Timers of a tunnel, and how it ends: drained, idle, silent, or at the end of a certificate; and the last words that its peer is owed.

use super::*;

/// Times of a peer's silence that it has to acknowledge our SETTINGS: they come behind all that is queued at this end, and the answer behind all that is
/// queued at the other. On a link of 1 Mbit/s that is some fifty seconds each way.
const SETTINGS_PATIENCE: u32 = 6;
/// How long a peer has to take our last word, and to close.
const LINGER: Duration = Duration::from_millis(500);
/// And what is left of streams that ended in order, however slowly it takes it: some MiB.
const LINGER_AT_MOST: Duration = Duration::from_secs(600);

impl<H: FnMut(InboundRequest)> Driver<H> {
    /// Returns whether it did something.
    pub(super) fn poll_drain(&mut self, cx: &mut Context<'_>, mut status: Status) -> bool {
        let before = self.goaway_sent;
        if self.drain.as_mut().is_some_and(|drain| drain.as_mut().poll(cx).is_ready()) {
            self.drain = None;
            self.tunnel.drain();
        }
        if self.goaway_sent == Goaway::No && self.tunnel.drain_requested.load(Relaxed) {
            // First without a limit, so that requests under way are not lost; the answer to the PING shows that the peer knows (RFC 9113 6.8).
            self.goaway_sent = Goaway::Announced;
            self.announced = Some(Instant::now());
            self.tunnel.control(|out| {
                frame::goaway(out, 0x7fff_ffff, code::NO_ERROR, "");
                frame::ping(out, false, PING_GOODBYE);
            });
            self.ping_sent = Some(Instant::now());
            status = self.tunnel.status();
        }
        if status.finished && (self.tunnel.role == Role::Client || self.goaway_sent != Goaway::Announced) {
            self.say_goodbye("drained");
        }
        before != self.goaway_sent
    }

    fn say_goodbye(&mut self, why: &'static str) {
        if self.goaway_sent != Goaway::Final {
            self.goaway_sent = Goaway::Final;
            self.tunnel.control(|out| frame::goaway(out, self.last_peer_stream, code::NO_ERROR, ""));
        }
        self.tunnel.say_goodbye();
        self.tunnel.close(Closed::Done(why));
    }

    /// Returns whether a timer was due.
    pub(super) fn poll_tick(&mut self, cx: &mut Context<'_>) -> bool {
        let mut due = false;
        while self.tick.as_mut().poll(cx).is_ready() {
            due = true;
            self.tunnel.look();
            if !self.tunnel.settled() {
                self.tunnel.close(Closed::Preface);
                return true;
            }
            if self.retire.is_some_and(|at| at <= Instant::now()) {
                self.retire = None;
                match self.tunnel.role {
                    Role::Client => self.tunnel.retire(),
                    Role::Server => self.tunnel.drain(),
                }
            }
            if self.timers.idle.is_some_and(|limit| self.tunnel.retire_if_idle(limit)) {
                self.say_goodbye("idle");
                return true;
            }
            // A peer that is silent about our first GOAWAY does not keep the tunnel with that.
            if self.goaway_sent == Goaway::Announced
                && self.announced.is_some_and(|at| at.elapsed() >= self.timers.ping_timeout)
            {
                self.goaway_sent = Goaway::Final;
                self.tunnel.control(|out| frame::goaway(out, self.last_peer_stream, code::NO_ERROR, ""));
                cx.waker().wake_by_ref();
            }
            // Anything received proves that the peer lives, except a drip of headers that never end.
            let lives =
                std::mem::take(&mut self.heard) && self.block.is_none() && !matches!(self.place, Place::Whole(_));
            if !lives && self.ping_sent.is_some_and(|sent| sent.elapsed() >= self.timers.ping_timeout) {
                self.tunnel.close(Closed::Lost("peer does not answer".into()));
                return true;
            }
            // Whoever never takes on a smaller window would be out of the process's limit (RFC 9113 6.5.3).
            if self.unacknowledged.is_some_and(|since| since.elapsed() >= self.timers.ping_timeout * SETTINGS_PATIENCE)
            {
                self.violated(code::SETTINGS_TIMEOUT, "settings_not_acknowledged");
                return true;
            }
            if self.ping_sent.is_none() {
                self.ping_sent = Some(Instant::now());
                self.tunnel.control(|out| frame::ping(out, false, PING_ALIVE));
            }
            let mut next = self.timers.ping_interval.min(self.timers.idle.unwrap_or(self.timers.ping_interval));
            if let Some(at) = self.retire {
                next = next.min(at.saturating_duration_since(Instant::now()));
            }
            self.tick.as_mut().reset(tokio::time::Instant::now() + next);
        }
        due
    }

    /// After the last frame: sends what is queued, then FIN, and reads on for a moment, so that the peer gets our reason before the socket's close. A
    /// closed socket answers what the peer still says with a reset, and with that the last bytes of streams that ended in order would be lost: they are
    /// waited for as long as the peer takes some.
    pub(super) async fn linger(&mut self, end: ServeEnd) {
        if end == ServeEnd::Lost {
            socket::close(&self.tunnel.socket);
            return;
        }
        let sent = async {
            while self.tunnel.has_pending() {
                self.tunnel.socket.writable().await?;
                self.tunnel.flush()?;
                // Another task may be in the system call, and the socket writable all the while.
                tokio::task::yield_now().await;
            }
            io::Result::Ok(())
        };
        // Only after a drain were there streams that have ended in order.
        let drained = matches!(self.tunnel.closed(), Some(Closed::Done("drained")));
        let began = Instant::now();
        let (mut left, mut progress) = (self.tunnel.untaken(), began);
        let mut still_taken = || {
            let now = self.tunnel.untaken();
            if now < left {
                (left, progress) = (now, Instant::now());
            }
            let in_time = progress.elapsed() < self.timers.ping_timeout && began.elapsed() < LINGER_AT_MOST;
            drained && now > 0 && in_time
        };
        let mut sent = std::pin::pin!(sent);
        while tokio::time::timeout(LINGER, sent.as_mut()).await.is_err() && still_taken() {}
        socket::finish(&self.tunnel.socket);
        let heard = async {
            let mut buffer = Buffer::take();
            let mut read = 0;
            while read < 64 * BUFFER {
                self.tunnel.socket.readable().await?;
                match socket::read(&self.tunnel.socket, &mut buffer) {
                    Ok(0) => break,
                    Ok(count) => read += count,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error),
                }
            }
            io::Result::Ok(())
        };
        let mut heard = std::pin::pin!(heard);
        while tokio::time::timeout(LINGER, heard.as_mut()).await.is_err() && still_taken() {}
        socket::close(&self.tunnel.socket);
    }
}

/// Whoever drops the driver ends the tunnel.
pub(super) struct CloseOnDrop(pub(super) Arc<Tunnel>);

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        self.0.close(Closed::Lost("tunnel was cut".into()));
        self.0.look();
        socket::close(&self.0.socket);
    }
}
