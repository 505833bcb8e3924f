//! The owner's handle of a stream: for the copy, and as an ordinary byte stream.

use super::*;

/// How the peer's direction ended, for the copy.
#[derive(Debug)]
pub(crate) enum Received {
    /// In order; FIN was passed on.
    Ended,
    /// The peer aborted, or the tunnel is gone.
    Reset,
    /// The application's socket failed.
    Socket(io::Error),
}

/// How an attempt to send ended, for the copy.
pub(crate) enum Sent {
    /// Some bytes went out.
    Some(usize),
    /// The last bytes went out.
    Last(usize),
    /// The application ended its direction; so did we.
    Ended,
    /// Nothing to read.
    Empty,
    /// No credit; the task is woken when there is.
    Wait,
    /// The tunnel or the stream is over.
    Closed,
    /// The application's socket failed.
    Socket(io::Error),
}

/// A bidirectional byte stream through a tunnel. Dropping it before both directions ended aborts it, which the peer sees as a reset.
pub struct HboneStream {
    tunnel: Arc<Tunnel>,
    stream: Arc<Stream>,
}

impl std::fmt::Debug for HboneStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HboneStream").field("id", &self.stream.id).field("peer", &self.tunnel.peer).finish()
    }
}

impl HboneStream {
    pub(in crate::hbone) fn new(tunnel: Arc<Tunnel>, stream: Arc<Stream>) -> Self {
        Self { tunnel, stream }
    }

    /// The identity that the other end of the tunnel proved.
    pub fn peer(&self) -> &Identity {
        &self.tunnel.peer
    }

    /// Counts the health of the tunnel's connection, with all that it was before. Asked for the first stream of a tunnel only: a tunnel is between two ends,
    /// whatever its streams are for.
    pub fn measure(&self, counters: impl FnOnce() -> Arc<PathCounters>) {
        self.tunnel.measure(counters);
    }

    /// Waits for the answer to our request.
    pub(in crate::hbone) async fn answer(&self) -> Result<ConnectResponse, HboneError> {
        match std::future::poll_fn(|cx| self.stream.poll_answer(cx)).await {
            Ok((StatusCode::OK, baggage)) => Ok(ConnectResponse { baggage }),
            Ok((status, _)) => Err(HboneError::Refused(status)),
            Err(Recv::Reset(code)) => Err(HboneError::Reset(code)),
            Err(_) => Err(self.tunnel.closed_error()),
        }
    }

    /// Gives up before an answer: nothing was exchanged, so the peer is told CANCEL.
    pub(in crate::hbone) fn cancel(&self) {
        self.tunnel.reset(&self.stream, code::CANCEL);
    }

    /// Aborts both directions: the far application sees a reset.
    pub(crate) fn abort(&self) {
        self.tunnel.reset(&self.stream, code::CONNECT_ERROR);
    }

    /// A grant, a reset, a commit: in this order nothing may be lost.
    #[cfg(test)]
    pub(in crate::hbone) fn a_reset_gives_the_credit_back(&self) {
        let before = self.tunnel.credit();
        let Credit::Granted(granted) = self.tunnel.reserve(&self.stream, 1000, Waker::noop()) else {
            panic!("no credit");
        };
        assert_eq!(granted, 1000);
        self.stream.peer_reset(code::CANCEL);
        self.tunnel.commit(&self.stream, Buffer::take(), 600, 400, false);
        assert_eq!(self.tunnel.credit(), before);
    }

    /// Credit to send that this stream has.
    #[cfg(test)]
    pub(in crate::hbone) fn send_window(&self) -> i64 {
        self.stream.send_window.load(Relaxed)
    }

    /// From now on received bytes go to `tcp` directly; [`HboneStream::poll_received`] must be polled.
    pub(crate) fn attach(&self, tcp: Arc<Armed>, counters: Arc<ByteCounters>) {
        self.stream.inner.lock().sink = Some(Sink { tcp, counters });
    }

    /// The socket is the caller's alone again.
    pub(crate) fn detach(&self) {
        self.stream.inner.lock().sink = None;
    }

    /// Passes on what the attached socket did not take at once, and tells how the peer's direction ended.
    pub(crate) fn poll_received(&self, cx: &mut Context<'_>) -> Poll<Received> {
        let mut guard = self.stream.inner.lock();
        let inner = &mut *guard;
        let mut grant = 0;
        let outcome = loop {
            if let Some(error) = inner.sink_error.take() {
                break Poll::Ready(Received::Socket(error));
            }
            if inner.queue.is_empty() {
                match inner.recv {
                    Recv::Open => {
                        inner.wait_to_read(cx.waker());
                        break Poll::Pending;
                    }
                    Recv::Ended => {
                        if !std::mem::replace(&mut inner.fin_passed, true)
                            && let Some(sink) = &inner.sink
                        {
                            socket::finish(&sink.tcp);
                        }
                        break Poll::Ready(Received::Ended);
                    }
                    Recv::Reset(_) | Recv::Lost => break Poll::Ready(Received::Reset),
                }
            }
            // A lost tunnel may still owe the application bytes, but not an orderly end; what is queued is worthless without it.
            if matches!(inner.recv, Recv::Reset(_) | Recv::Lost) {
                break Poll::Ready(Received::Reset);
            }
            let Some(sink) = &inner.sink else { break Poll::Pending };
            match sink.tcp.poll_write_ready(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => break Poll::Ready(Received::Socket(error)),
                Poll::Pending => {
                    inner.wait_to_read(cx.waker());
                    break Poll::Pending;
                }
            }
            let mut slices = [IoSlice::new(&[]); SLICES];
            let count = inner.queue.slices(&mut slices);
            match socket::write_vectored(&sink.tcp, &slices[..count]) {
                Ok(written) => {
                    sink.counters.received.fetch_add(written as u64, Relaxed);
                    inner.queue.consume(written);
                    grant += inner.grant(&self.tunnel);
                }
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                Err(error) => break Poll::Ready(Received::Socket(error)),
            }
        };
        drop(guard);
        self.send_grant(grant);
        outcome
    }

    /// Resolves when the peer aborts, or the tunnel is gone.
    pub(crate) fn poll_reset(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.stream.poll_given_up(cx)
    }

    /// Whether the peer has aborted, or the tunnel is gone before both directions ended.
    pub(crate) fn was_reset(&self) -> bool {
        self.stream.is_reset()
    }

    fn send_grant(&self, grant: u32) {
        if grant > 0 {
            self.tunnel.control(|out| frame::window_update(out, self.stream.id, grant));
        }
    }

    /// Reads from the application once and sends what it had. `wide` remembers whether the last read filled a record: then a whole batch is read at once.
    pub(crate) fn try_send(&self, cx: &mut Context<'_>, tcp: &Armed, wide: &mut bool) -> Sent {
        let wanted = if *wide { usize::MAX } else { PAYLOAD };
        let granted = match self.tunnel.reserve(&self.stream, wanted, cx.waker()) {
            Credit::Granted(granted) => granted,
            Credit::Wait => return Sent::Wait,
            Credit::Closed => return Sent::Closed,
        };
        let mut buffer = Buffer::take();
        let read = if granted <= PAYLOAD {
            socket::read(tcp, &mut buffer[PAYLOAD_AT..PAYLOAD_AT + granted])
        } else {
            let mut room = granted;
            let mut slots: [io::IoSliceMut<'_>; crate::hbone::tunnel::SLOTS] =
                std::array::from_fn(|_| io::IoSliceMut::new(&mut []));
            let mut count = 0;
            for (slot, space) in slots.iter_mut().zip(buffer.chunks_mut(STRIDE)) {
                let length = room.min(PAYLOAD);
                if length == 0 {
                    break;
                }
                *slot = io::IoSliceMut::new(&mut space[PAYLOAD_AT..PAYLOAD_AT + length]);
                room -= length;
                count += 1;
            }
            socket::read_vectored(tcp, &mut slots[..count])
        };
        match read {
            Ok(0) => {
                self.tunnel.commit(&self.stream, buffer, 0, granted, true);
                Sent::Ended
            }
            Ok(mut length) => {
                *wide = length >= PAYLOAD.min(granted);
                let mut ended = false;
                // A short answer and a close come together: then one record carries both, and the far end needs to wake once only.
                if length < granted.min(PAYLOAD) && socket::may_have_ended(tcp) {
                    let room = PAYLOAD_AT + length..PAYLOAD_AT + granted.min(PAYLOAD);
                    match socket::read(tcp, &mut buffer[room]) {
                        Ok(0) => ended = true,
                        Ok(more) => length += more,
                        // An error will be there for the next read.
                        Err(_) => {}
                    }
                }
                self.tunnel.commit(&self.stream, buffer, length, granted - length, ended);
                if ended { Sent::Last(length) } else { Sent::Some(length) }
            }
            Err(error) => {
                self.tunnel.release(&self.stream, granted);
                match error.kind() {
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Sent::Empty,
                    _ => Sent::Socket(error),
                }
            }
        }
    }
}

impl Drop for HboneStream {
    fn drop(&mut self) {
        self.detach();
        self.abort();
    }
}

impl AsyncRead for HboneStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut inner = self.stream.inner.lock();
        if inner.queue.is_empty() {
            return match inner.recv {
                Recv::Open => {
                    inner.wait_to_read(cx.waker());
                    Poll::Pending
                }
                Recv::Ended => Poll::Ready(Ok(())),
                Recv::Reset(_) | Recv::Lost => Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
            };
        }
        let mut slices = [IoSlice::new(&[]); 1];
        inner.queue.slices(&mut slices);
        let length = slices[0].len().min(buffer.remaining());
        buffer.put_slice(&slices[0][..length]);
        inner.queue.consume(length);
        let grant = inner.grant(&self.tunnel);
        drop(inner);
        self.send_grant(grant);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for HboneStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let granted = match self.tunnel.reserve(&self.stream, bytes.len(), cx.waker()) {
            Credit::Granted(granted) => granted,
            Credit::Wait => return Poll::Pending,
            Credit::Closed => return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
        };
        let mut buffer = Buffer::take();
        for (slot, piece) in buffer.chunks_mut(STRIDE).zip(bytes[..granted].chunks(PAYLOAD)) {
            slot[PAYLOAD_AT..PAYLOAD_AT + piece.len()].copy_from_slice(piece);
        }
        self.tunnel.commit(&self.stream, buffer, granted, 0, false);
        Poll::Ready(Ok(granted))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.stream.send_over() {
            self.tunnel.commit(&self.stream, Buffer::take(), 0, 0, true);
        }
        Poll::Ready(Ok(()))
    }
}
