//! The copy between a socket and a tunnel stream. The task only sends: what arrives is written to the socket by the tunnel's driver, and by this task
//! only as long as the socket lags behind.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll};

use tokio::io::Interest;
use tokio_util::sync::CancellationToken;

use super::{ByteCounters, Outcome, Side, failed};
use crate::hbone::{HboneStream, Received, Sent};
use crate::socket::{self, Armed};

/// Batches sent before other tasks get their turn.
const TURN: u32 = 4;

/// Aborts both ends unless the copy came to an orderly end.
struct Pair {
    local: Arc<Armed>,
    stream: HboneStream,
    orderly: bool,
}

impl Drop for Pair {
    fn drop(&mut self) {
        if self.orderly {
            self.local.disarm();
        } else {
            self.stream.abort();
        }
        self.stream.detach();
    }
}

pub(super) async fn copy(
    local: Armed,
    stream: HboneStream,
    counters: Arc<ByteCounters>,
    cancel: CancellationToken,
) -> Outcome {
    let local = Arc::new(local);
    stream.attach(local.clone(), counters.clone());
    let mut pair = Pair { local, stream, orderly: false };
    let mut cancelled = pin!(cancel.cancelled());
    // While no credit lets us read, or when there is nothing more to read, only this tells that the application reset its connection.
    let watched = pair.local.clone();
    let mut broken = pin!(watched.ready(Interest::ERROR));
    let mut state = Copy { wide: false, sending: true, receiving: true };
    let outcome = std::future::poll_fn(|cx| {
        if cancelled.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Outcome::Cancelled);
        }
        let outcome = state.poll(cx, &pair, &counters);
        if outcome.is_pending() && broken.as_mut().poll(cx).is_ready() {
            return Poll::Ready(failed(Side::Local, socket::error(&pair.local)));
        }
        outcome
    })
    .await;
    pair.orderly = matches!(outcome, Outcome::Closed);
    outcome
}

struct Copy {
    /// The last read filled a record.
    wide: bool,
    sending: bool,
    receiving: bool,
}

impl Copy {
    fn poll(&mut self, cx: &mut Context<'_>, pair: &Pair, counters: &ByteCounters) -> Poll<Outcome> {
        mesh_runtime::failpoint::pass("copy");
        if self.receiving {
            match pair.stream.poll_received(cx) {
                Poll::Pending => {}
                Poll::Ready(Received::Ended) => self.receiving = false,
                Poll::Ready(Received::Reset) => return Poll::Ready(Outcome::ResetBy(Side::Peer)),
                Poll::Ready(Received::Socket(error)) => return Poll::Ready(failed(Side::Local, error)),
            }
        }
        // The peer has ended its direction and may still abort, which receiving would not tell any more.
        if !self.receiving && pair.stream.poll_reset(cx).is_ready() {
            return Poll::Ready(Outcome::ResetBy(Side::Peer));
        }
        let mut turn = 0;
        while self.sending {
            match pair.local.poll_read_ready(cx) {
                Poll::Pending => break,
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(failed(Side::Local, error)),
            }
            if turn == TURN {
                cx.waker().wake_by_ref();
                break;
            }
            turn += 1;
            match pair.stream.try_send(cx, &pair.local, &mut self.wide) {
                Sent::Some(count) => {
                    counters.sent.fetch_add(count as u64, Relaxed);
                }
                Sent::Last(count) => {
                    counters.sent.fetch_add(count as u64, Relaxed);
                    self.sending = false;
                }
                Sent::Empty => {}
                Sent::Wait => break,
                Sent::Ended => self.sending = false,
                // If that is a reset, the receiving direction knows, or it has ended and is asked below.
                Sent::Closed => self.sending = false,
                Sent::Socket(error) => return Poll::Ready(failed(Side::Local, error)),
            }
        }
        if self.sending || self.receiving {
            return Poll::Pending;
        }
        Poll::Ready(if pair.stream.was_reset() { Outcome::ResetBy(Side::Peer) } else { Outcome::Closed })
    }
}
