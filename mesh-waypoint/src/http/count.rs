//! What went by in a body: bytes, and of gRPC its messages, of which only the heads are looked at.

use std::ops::Deref;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::Body;
use mesh_runtime::ticks;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::client_body::ClientBody;
use super::error::{BoxError, Polled, TooSlow};
use super::io::Watch;
use super::wait::Wait;

/// A message of gRPC begins with a byte of flags and its length.
const HEAD: usize = 5;

/// Counts the messages of one direction. Their heads may be cut anywhere.
#[derive(Clone, Debug, Default)]
pub struct Messages {
    /// Messages that have begun.
    pub count: u64,
    head: [u8; HEAD],
    /// Bytes of the head that are here.
    have: usize,
    /// Bytes of the message that are still to come.
    left: u32,
}

impl Messages {
    /// The next bytes of the body.
    pub fn feed(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let skipped = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len());
            bytes = &bytes[skipped..];
            self.left -= u32::try_from(skipped).unwrap_or(self.left);
            let taken = if self.left > 0 { 0 } else { (HEAD - self.have).min(bytes.len()) };
            self.head[self.have..self.have + taken].copy_from_slice(&bytes[..taken]);
            bytes = &bytes[taken..];
            self.have += taken;
            if self.have == HEAD {
                let [_, length @ ..] = self.head;
                (self.left, self.have) = (u32::from_be_bytes(length), 0);
                self.count += 1;
            }
        }
    }
}

/// A request's body, which several tasks may read one after the other.
#[derive(Debug, Default)]
pub struct Count {
    bytes: AtomicU64,
    /// Of gRPC only.
    messages: Option<Mutex<Messages>>,
    /// Why there will be no more of it.
    broken: OnceLock<Broken>,
    /// The connection, if it is to come at some rate.
    connection: Option<Arc<Watch>>,
    /// The connection, if that is to know when it begins.
    awaited: Option<Arc<Watch>>,
    /// Where it is noted there since it was waited for.
    noted: Mutex<Option<usize>>,
    /// When its end was here.
    ended: OnceLock<Instant>,
    /// When something of it has come last, or whoever read it has left; 0 is never.
    moved_ms: AtomicU64,
    /// Whether whoever wants it waits for the client.
    pub wait: Wait,
}

/// Why a body has no end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    /// It did not come at the rate that it has to come at.
    Slow,
    /// The client has not ended it, or not as it should.
    Unended,
}

impl Count {
    /// Nothing has come. `awaited`: whose connection waits for its beginning. If there is a connection, the body has to come at some rate, which whoever serves that looks at.
    #[must_use]
    pub fn new(grpc: bool, connection: Option<Arc<Watch>>, awaited: Option<Arc<Watch>>) -> Self {
        let (bytes, broken, noted, ended, moved_ms, wait) = Default::default();
        Self { bytes, messages: grpc.then(Mutex::default), broken, connection, awaited, noted, ended, moved_ms, wait }
    }

    /// What has come of `body`, or the end of one that is too slow.
    pub fn look(&self, polled: Polled, body: &ClientBody, cx: &Context<'_>) -> Polled {
        let polled = match &self.connection {
            Some(connection) => self.paced(connection, polled, cx),
            None => polled,
        };
        match &polled {
            Poll::Pending => self.wait.begin(),
            Poll::Ready(_) => self.wait.end(),
        }
        match &polled {
            Poll::Ready(Some(Ok(frame))) => frame.data_ref().into_iter().for_each(|data| self.add(data)),
            Poll::Ready(Some(Err(error))) => self.failed(error),
            Poll::Ready(None) | Poll::Pending => {}
        }
        if polled.is_ready() {
            self.moved_ms.store(ticks::now_ms(), Relaxed);
            // Whoever reads one whose length he knows does not look for its end, and in HTTP/2 that may come in a frame of its own.
            let is_over = || body.size_hint().exact() == Some(0) || body.is_end_stream();
            if self.ended.get().is_none() && (matches!(polled, Poll::Ready(None)) || is_over()) {
                self.ended(Instant::now());
            }
        }
        polled
    }

    /// Whoever read it reads no more.
    pub fn left(&self) {
        if self.wait.is_on() {
            self.wait.end();
            self.moved_ms.store(ticks::now_ms(), Relaxed);
        }
    }

    /// Since when nobody waits for the client: all of it is here, or no more of it is taken. `None`: none of it was ever asked for.
    #[must_use]
    pub fn rests_since(&self, now: Instant) -> Option<Instant> {
        match (self.ended_at(), self.moved_ms.load(Relaxed)) {
            (Some(ended), _) => Some(ended),
            _ if self.wait.is_on() => Some(now),
            (None, 0) => None,
            (None, moved) => now.checked_sub(Duration::from_millis(ticks::now_ms().saturating_sub(moved))),
        }
    }

    /// All of it is here, since that moment.
    pub fn ended(&self, now: Instant) {
        let _ = self.ended.set(now);
    }

    /// Since when all of it is here.
    #[must_use]
    pub fn ended_at(&self) -> Option<Instant> {
        self.ended.get().copied()
    }

    fn paced(&self, connection: &Watch, polled: Polled, cx: &Context<'_>) -> Polled {
        let mut noted = self.noted.lock();
        let bytes = match &polled {
            Poll::Pending if connection.stall(&mut noted, cx.waker()) => return polled,
            Poll::Pending => return Poll::Ready(Some(Err(TooSlow.into()))),
            Poll::Ready(Some(Ok(frame))) => frame.data_ref().map_or(0, Bytes::len),
            Poll::Ready(_) => 0,
        };
        noted.iter().for_each(|at| connection.hear_of(*at, bytes));
        polled
    }

    /// There will be no more of it.
    fn failed(&self, error: &BoxError) {
        let _ = self.broken.set(if error.is::<TooSlow>() { Broken::Slow } else { Broken::Unended });
    }

    /// Why there is no more of it.
    #[must_use]
    pub fn broken(&self) -> Option<Broken> {
        self.broken.get().copied()
    }

    fn add(&self, data: &[u8]) {
        self.bytes.fetch_add(data.len() as u64, Relaxed);
        self.awaited.iter().for_each(|watch| watch.has_body());
        if let Some(messages) = &self.messages {
            messages.lock().feed(data);
        }
    }

    /// So many went by elsewhere.
    pub fn passed(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Relaxed);
    }

    /// Bytes so far.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Relaxed)
    }

    /// Messages so far.
    pub fn messages(&self) -> u64 {
        self.messages.as_ref().map_or(0, |messages| messages.lock().count)
    }
}

/// Somebody reads a body.
#[derive(Debug)]
pub struct Reading(Arc<Count>);

impl From<Arc<Count>> for Reading {
    fn from(count: Arc<Count>) -> Self {
        Self(count)
    }
}

impl Deref for Reading {
    type Target = Count;

    fn deref(&self) -> &Count {
        &self.0
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        self.0.left();
    }
}

impl Drop for Count {
    fn drop(&mut self) {
        if let (Some(connection), Some(at)) = (&self.connection, *self.noted.get_mut()) {
            connection.leave(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_counted_wherever_they_are_cut() {
        // Three: of 3 bytes, of none, of 260.
        let mut body = vec![0, 0, 0, 0, 3, 1, 2, 3, 1, 0, 0, 0, 0, 0, 0, 0, 1, 4];
        body.extend([7; 260]);
        for cut in 1..body.len() {
            let count = Count::new(true, None, None);
            body.chunks(cut).for_each(|part| count.add(part));
            assert_eq!((count.messages(), count.bytes()), (3, body.len() as u64), "cut at {cut}");
        }
        let count = Count::new(false, None, None);
        count.add(&body);
        assert_eq!((count.messages(), count.bytes()), (0, body.len() as u64));
    }

    #[test]
    fn what_is_no_message_counts_as_one_that_does_not_end() {
        let mut messages = Messages::default();
        messages.feed(&[0xff; 1000]);
        assert_eq!(messages.count, 1);
    }
}
