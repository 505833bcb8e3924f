//! A client's stream whose bytes are counted as they pass, where what copies does not count by itself: TLS on either side. Used by `connection` and `edge::bytes`.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll, ready};

use mesh_transport::copy::ByteCounters;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The stream: what is read of it was received, what is written to it was sent.
pub struct Counted<S> {
    stream: S,
    counters: Arc<ByteCounters>,
    /// The client is gone.
    failed: bool,
}

impl<S> Counted<S> {
    /// With its bytes counted in these.
    pub fn new(stream: S, counters: Arc<ByteCounters>) -> Self {
        Self { stream, counters, failed: false }
    }

    /// What is counted.
    pub fn stream(&self) -> &S {
        &self.stream
    }

    /// How a copy between the stream and an endpoint has ended, in Envoy's word: whose end failed first.
    pub fn ended<T, E>(&self, copied: &Result<T, E>) -> &'static str {
        match copied {
            Ok(_) => "-",
            Err(_) if self.failed => "DC",
            Err(_) => "UC",
        }
    }

    fn sent(&self, bytes: usize) -> usize {
        self.counters.sent.fetch_add(bytes as u64, Relaxed);
        bytes
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Counted<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buffer);
        self.counters.received.fetch_add((buffer.filled().len() - before) as u64, Relaxed);
        self.failed |= matches!(polled, Poll::Ready(Err(_)));
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Counted<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write(cx, bytes));
        self.failed |= written.is_err();
        Poll::Ready(written.map(|written| self.sent(written)))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, parts));
        self.failed |= written.is_err();
        Poll::Ready(written.map(|written| self.sent(written)))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn bytes_are_counted_as_they_pass_and_not_at_the_end() {
        let (near, mut far) = tokio::io::duplex(64);
        let counters = Arc::new(ByteCounters::default());
        let mut near = Counted::new(near, Arc::clone(&counters));
        let counted = || (counters.received.load(Relaxed), counters.sent.load(Relaxed));
        far.write_all(b"question").await.unwrap();
        let mut buffer = [0; 5];
        near.read_exact(&mut buffer).await.unwrap();
        assert_eq!(counted(), (5, 0));
        near.write_all(b"answer").await.unwrap();
        assert_eq!(counted(), (5, 6));
        let parts = [IoSlice::new(b"and"), IoSlice::new(b"more")];
        let written = near.write_vectored(&parts).await.unwrap();
        assert_eq!(counted(), (5, 6 + written as u64));
    }
}
