//! The byte stream below HTTP: gives back what was read to find out what is spoken, notes when something was heard, and ends in order.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

/// How long the other end may take to end its direction after we have ended ours.
const LINGER: Duration = Duration::from_secs(2);

/// What a connection does, for its deadlines. Written by one thread.
#[derive(Debug)]
pub struct Watch {
    began: Instant,
    /// Requests that are not answered yet.
    requests: AtomicU32,
    /// Something was heard since the last request.
    heard: AtomicBool,
    /// When the connection began to wait, in milliseconds since it began.
    since: AtomicU64,
}

impl Default for Watch {
    fn default() -> Self {
        Self {
            began: Instant::now(),
            requests: AtomicU32::new(0),
            heard: AtomicBool::new(false),
            since: AtomicU64::new(0),
        }
    }
}

impl Watch {
    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn hear(&self) {
        if !self.heard.load(Relaxed) && self.requests.load(Relaxed) == 0 {
            self.since.store(self.now(), Relaxed);
        }
        self.heard.store(true, Relaxed);
    }

    /// A request has come.
    pub fn begin(&self) {
        self.requests.fetch_add(1, Relaxed);
        self.heard.store(false, Relaxed);
    }

    /// A request is answered, with all of its body.
    pub fn end(&self) {
        if self.requests.fetch_sub(1, Relaxed) == 1 {
            self.since.store(self.now(), Relaxed);
            self.heard.store(false, Relaxed);
        }
    }

    /// Whether no request is under way.
    pub fn is_idle(&self) -> bool {
        self.requests.load(Relaxed) == 0
    }

    /// What is left of the time that the connection may wait. With a limit for headers, what is heard between requests is the header of one; without it
    /// that may be anything.
    pub fn left(&self, header: Option<Duration>, idle: Duration) -> Result<Duration, TooSlow> {
        let look = header.unwrap_or(idle).min(idle);
        if !self.is_idle() {
            return Ok(look);
        }
        let waited = Duration::from_millis(self.now().saturating_sub(self.since.load(Relaxed)));
        let (limit, slow) = match header.filter(|_| self.heard.load(Relaxed)) {
            Some(header) => (header, TooSlow::Header),
            None => (idle, TooSlow::Idle),
        };
        // A header may begin at any time, and nobody tells.
        limit.checked_sub(waited).filter(|left| !left.is_zero()).map(|left| left.min(look)).ok_or(slow)
    }
}

/// Why a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TooSlow {
    /// The header of a request does not end.
    Header,
    /// Nothing is asked.
    Idle,
}

/// See the module. Dropped before it was shut down, it aborts as the stream below does.
#[derive(Debug)]
pub struct Io<S: AsyncRead + Unpin + Send + 'static> {
    prefix: Bytes,
    inner: Option<S>,
    watch: Arc<Watch>,
    shut: bool,
    over: bool,
}

impl<S: AsyncRead + Unpin + Send + 'static> Io<S> {
    /// `prefix` was read already.
    pub fn new(inner: S, prefix: Bytes, watch: Arc<Watch>) -> Self {
        if !prefix.is_empty() {
            watch.hear();
        }
        Self { prefix, inner: Some(inner), watch, shut: false, over: false }
    }
}

fn gone() -> io::Error {
    io::ErrorKind::NotConnected.into()
}

impl<S: AsyncRead + Unpin + Send + 'static> AsyncRead for Io<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if !this.prefix.is_empty() {
            let length = this.prefix.len().min(buffer.remaining());
            buffer.put_slice(&this.prefix[..length]);
            this.prefix.advance(length);
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        let inner = this.inner.as_mut().ok_or_else(gone)?;
        let result = ready!(Pin::new(inner).poll_read(cx, buffer));
        if result.is_err() || buffer.filled().len() == before {
            this.over = true;
        } else {
            this.watch.hear();
        }
        Poll::Ready(result)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> AsyncWrite for Io<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(self.inner.as_mut().ok_or_else(gone)?).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(self.inner.as_mut().ok_or_else(gone)?).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = ready!(Pin::new(self.inner.as_mut().ok_or_else(gone)?).poll_shutdown(cx));
        self.shut = result.is_ok();
        Poll::Ready(result)
    }
}

impl<S: AsyncRead + Unpin + Send + 'static> Drop for Io<S> {
    fn drop(&mut self) {
        // What was sent is complete. Dropped at once the stream would be reset, and the client might not read all of it.
        let Some(mut inner) = self.inner.take().filter(|_| self.shut && !self.over) else { return };
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                let mut rest = [0; 1024];
                let end = async { while matches!(inner.read(&mut rest).await, Ok(1..)) {} };
                let _ = tokio::time::timeout(LINGER, end).await;
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_may_wait_long_for_a_request_and_not_long_for_its_end() {
        let (header, idle) = (Duration::from_secs(10), Duration::from_secs(3600));
        let watch = |waited: u64, heard: bool, requests: u32| Watch {
            began: Instant::now() - Duration::from_secs(waited),
            requests: AtomicU32::new(requests),
            heard: AtomicBool::new(heard),
            since: AtomicU64::new(0),
        };
        // (seconds, heard, requests, expected)
        for (waited, heard, requests, expected) in [
            (0, false, 0, None),
            (11, false, 0, None),
            (3600, false, 0, Some(TooSlow::Idle)),
            (9, true, 0, None),
            (10, true, 0, Some(TooSlow::Header)),
            (4000, true, 1, None),
        ] {
            let left = watch(waited, heard, requests).left(Some(header), idle);
            assert_eq!(left.err(), expected, "{waited} {heard} {requests}");
        }
        // In HTTP/2 a ping is heard as well.
        assert!(watch(100, true, 0).left(None, idle).is_ok());
        assert_eq!(watch(3600, true, 0).left(None, idle), Err(TooSlow::Idle));
        let watch = watch(100, false, 0);
        watch.hear();
        assert!(watch.left(Some(header), idle).is_ok(), "the header begins when its first byte is heard");
    }
}
