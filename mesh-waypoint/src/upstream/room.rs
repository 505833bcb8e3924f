//! How many streams an endpoint lets a connection of HTTP/2 have at once (`SETTINGS_MAX_CONCURRENT_STREAMS`, RFC 9113 5.1.2). What is more than that waits in the
//! connection until another one ends, which for streams that never do is for ever: the pool makes another connection instead.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::client::conn::http2::Connection;
use hyper::rt::{Read, Write};
use hyper_util::rt::TokioExecutor;
use tokio::sync::oneshot;
use tokio::time::Interval;

use crate::http::RequestBody;

/// What a connection is told to begin with: no endpoint says this of itself.
pub(super) const UNSAID: usize = 0x7fff_fff1;
/// So long a connection waits at most for the first word of its endpoint, which comes at once.
const FIRST: Duration = Duration::from_secs(1);
/// And so often it looks whether it is there: hyper reads it in a task of its own, and wakes nobody.
const TICK: Duration = Duration::from_millis(1);
/// Looks at the beginning, when the endpoint says it, and from then on how seldom: to ask takes a lock.
const LOOKS: u32 = 16;
const SELDOM: u32 = 64;

/// What the endpoint of one connection has said.
#[derive(Clone)]
pub(super) struct Room(Arc<AtomicUsize>);

impl Room {
    /// So many streams, at least one; any number as long as nothing was said.
    pub(super) fn streams(&self) -> usize {
        self.0.load(Relaxed)
    }
}

/// A connection that is driven, and tells of its endpoint's limit.
pub(super) struct Driven<T>
where
    T: Read + Write + Unpin + Send + 'static,
{
    connection: Connection<T, RequestBody, TokioExecutor>,
    room: Room,
    /// Until the endpoint has said it: who is told then, and when it is looked next.
    said: Option<(oneshot::Sender<()>, Interval)>,
    polls: u32,
}

/// Ends when the endpoint has said how many it takes, or after a while.
pub(super) struct First(oneshot::Receiver<()>);

impl First {
    pub(super) async fn said(self) {
        // An end of the connection counts as well: who asks for it next sees that.
        let _ = tokio::time::timeout(FIRST, self.0).await;
    }
}

/// Drives a connection that was made with [`UNSAID`].
pub(super) fn drive<T>(connection: Connection<T, RequestBody, TokioExecutor>) -> (Driven<T>, Room, First)
where
    T: Read + Write + Unpin + Send + 'static,
{
    let (said, first) = oneshot::channel();
    let room = Room(Arc::new(AtomicUsize::new(usize::MAX)));
    let said = Some((said, tokio::time::interval(TICK)));
    (Driven { connection, room: room.clone(), said, polls: 0 }, room, First(first))
}

impl<T> Future for Driven<T>
where
    T: Read + Write + Unpin + Send + 'static,
{
    type Output = hyper::Result<()>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        let polled = Pin::new(&mut this.connection).poll(cx);
        if polled.is_pending() {
            if this.said.is_some() || this.polls < LOOKS || this.polls.is_multiple_of(SELDOM) {
                let streams = this.connection.current_max_send_streams();
                if streams != UNSAID {
                    this.room.0.store(streams.max(1), Relaxed);
                    if let Some((said, _)) = this.said.take() {
                        // Whoever has waited for it has given up.
                        let _ = said.send(());
                    }
                }
            }
            this.polls = this.polls.wrapping_add(1);
            // Once nobody waits any more, it is looked as seldom as at others.
            this.said.take_if(|(said, _)| said.is_closed());
            if let Some((_, ticks)) = &mut this.said {
                while ticks.poll_tick(cx).is_ready() {}
            }
        }
        polled
    }
}
