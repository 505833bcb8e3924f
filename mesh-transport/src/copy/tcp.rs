//! The copy between two sockets.

use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll};

use futures_util::future::{Either, select};
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use super::{ByteCounters, Outcome, Side, failed};
use crate::buffer::Buffer;
use crate::socket::{self, Armed};

/// Buffers moved before other tasks get their turn.
const TURN: u32 = 4;

/// Resets both ends unless the copy came to an orderly end.
struct Pair<P: AsRef<Armed>> {
    local: Armed,
    peer: P,
    orderly: bool,
}

impl<P: AsRef<Armed>> Drop for Pair<P> {
    fn drop(&mut self) {
        if self.orderly {
            self.local.disarm();
            self.peer.as_ref().disarm();
        }
    }
}

/// One direction.
#[derive(Default)]
struct Direction {
    /// What was read and not yet written.
    held: Option<(Buffer, usize, usize)>,
    done: bool,
}

pub(super) async fn copy<P: AsRef<Armed>>(
    local: Armed,
    peer: P,
    counters: Arc<ByteCounters>,
    cancel: CancellationToken,
) -> Outcome {
    let mut pair = Pair { local, peer, orderly: false };
    let mut cancelled = pin!(cancel.cancelled());
    let (mut out, mut back) = (Direction::default(), Direction::default());
    let outcome = {
        let (local, peer): (&TcpStream, &TcpStream) = (&pair.local, pair.peer.as_ref());
        // Most connections never need this.
        let mut broken: Option<Pin<Box<dyn Future<Output = Side> + Send + '_>>> = None;
        std::future::poll_fn(|cx| {
            if cancelled.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Outcome::Cancelled);
            }
            if let Err((side, error)) = out.advance(cx, (Side::Local, local), (Side::Peer, peer), &counters.sent) {
                return Poll::Ready(failed(side, error));
            }
            if let Err((side, error)) = back.advance(cx, (Side::Peer, peer), (Side::Local, local), &counters.received) {
                return Poll::Ready(failed(side, error));
            }
            if out.done && back.done {
                return Poll::Ready(Outcome::Closed);
            }
            // An end that we are not reading from tells only so that it reset its connection.
            if !(out.is_reading() && back.is_reading()) {
                let broken = broken.get_or_insert_with(|| Box::pin(broken_end(local, peer)));
                if let Poll::Ready(side) = broken.as_mut().poll(cx) {
                    let stream = if side == Side::Local { local } else { peer };
                    return Poll::Ready(failed(side, socket::error(stream)));
                }
            }
            Poll::Pending
        })
        .await
    };
    pair.orderly = matches!(outcome, Outcome::Closed);
    outcome
}

/// Resolves when one of the ends is in error.
async fn broken_end(local: &TcpStream, peer: &TcpStream) -> Side {
    let (local, peer) = (pin!(local.ready(Interest::ERROR)), pin!(peer.ready(Interest::ERROR)));
    match select(local, peer).await {
        Either::Left(_) => Side::Local,
        Either::Right(_) => Side::Peer,
    }
}

impl Direction {
    fn is_reading(&self) -> bool {
        !self.done && self.held.is_none()
    }

    /// Moves what can be moved now.
    fn advance(
        &mut self,
        cx: &mut Context<'_>,
        from: (Side, &TcpStream),
        to: (Side, &TcpStream),
        counter: &AtomicU64,
    ) -> Result<(), (Side, io::Error)> {
        let mut turn = 0;
        while !self.done {
            if let Some((buffer, start, end)) = &mut self.held {
                // Asked for only when a write was refused, which is rare.
                match socket::write_vectored(to.1, &[IoSlice::new(&buffer[*start..*end])]) {
                    Ok(count) => {
                        counter.fetch_add(count as u64, Relaxed);
                        *start += count;
                    }
                    Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                        match to.1.poll_write_ready(cx) {
                            Poll::Pending => return Ok(()),
                            Poll::Ready(Ok(())) => continue,
                            Poll::Ready(Err(error)) => return Err((to.0, error)),
                        }
                    }
                    Err(error) => return Err((to.0, error)),
                }
                if start < end {
                    continue;
                }
                self.held = None;
            }
            match from.1.poll_read_ready(cx) {
                Poll::Pending => return Ok(()),
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => return Err((from.0, error)),
            }
            if turn == TURN {
                cx.waker().wake_by_ref();
                return Ok(());
            }
            turn += 1;
            let mut buffer = Buffer::take();
            match socket::read(from.1, &mut buffer) {
                Ok(0) => {
                    socket::finish(to.1);
                    self.done = true;
                }
                Ok(count) => self.held = Some((buffer, 0, count)),
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                Err(error) => return Err((from.0, error)),
            }
        }
        Ok(())
    }
}
