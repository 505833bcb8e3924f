//! Gathers what a connection of HTTP/2 writes. h2 flushes after each frame that carries more than some bytes, and a call for each frame costs more than all else
//! that is done for a small answer. Here what is written in one round of the connection's task goes out at its end, in one call. Used by `serve.rs` towards
//! clients; towards endpoints hyper runs the connection in a task of its own, whose rounds nobody sees the end of.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes that may wait; more are sent before the round has ended.
const MOST: usize = 64 * 1024;

/// Room for what waits, which the connections of a lane take in turn: rounds come one after the other, so one that nobody holds up needs it for its round only.
#[derive(Debug, Default)]
pub struct Spare(Mutex<Vec<u8>>);

impl Spare {
    fn take(&self) -> Vec<u8> {
        let mut room = std::mem::take(&mut *self.0.lock());
        room.reserve_exact(MOST);
        room
    }

    fn put(&self, mut room: Vec<u8>) {
        room.clear();
        *self.0.lock() = room;
    }
}

/// The stream below, shared by the connection, which reads and writes it as [`Corked`], and by whoever runs the connection and ends its rounds. Both are of one
/// task.
#[derive(Debug)]
pub struct Cork<S>(Mutex<Gathered<S>>);

#[derive(Debug)]
struct Gathered<S> {
    stream: S,
    out: Vec<u8>,
    /// So many of `out` are sent.
    sent: usize,
    /// The stream has taken all, and may still hold some of it, as TLS does.
    is_held: bool,
    /// What went wrong between two writes; the next one is told.
    broken: Option<io::Error>,
    spare: Arc<Spare>,
}

/// What the connection sees of it: a flush does nothing, the round's end does.
#[derive(Debug)]
pub struct Corked<S>(Arc<Cork<S>>);

/// Around a stream: what ends the rounds, and what the connection gets.
pub fn cork<S>(stream: S, spare: Arc<Spare>) -> (Arc<Cork<S>>, Corked<S>) {
    let gathered = Gathered { stream, out: Vec::new(), sent: 0, is_held: false, broken: None, spare };
    let cork = Arc::new(Cork(Mutex::new(gathered)));
    (Arc::clone(&cork), Corked(cork))
}

impl<S: AsyncWrite + Unpin> Cork<S> {
    /// Ends a round: sends what was gathered, as far as the stream takes it. The rest follows in a later round, for which the task is woken.
    pub fn send(&self, cx: &mut Context<'_>) {
        let mut gathered = self.0.lock();
        if let Poll::Ready(Err(error)) = gathered.drain(cx) {
            gathered.broken = Some(error);
            // The connection learns of it when it runs.
            cx.waker().wake_by_ref();
        }
    }
}

impl<S: AsyncWrite + Unpin> Gathered<S> {
    fn drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.sent < self.out.len() {
            match ready!(Pin::new(&mut self.stream).poll_write(cx, &self.out[self.sent..])) {
                Ok(0) => return self.fail(io::ErrorKind::WriteZero.into()),
                Ok(count) => self.sent += count,
                Err(error) => return self.fail(error),
            }
        }
        self.is_held |= !self.out.is_empty();
        self.empty();
        if self.is_held {
            ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
            self.is_held = false;
        }
        Poll::Ready(Ok(()))
    }

    /// Nobody will get what waits.
    fn fail(&mut self, error: io::Error) -> Poll<io::Result<()>> {
        self.empty();
        Poll::Ready(Err(error))
    }

    fn empty(&mut self) {
        self.sent = 0;
        if self.out.capacity() > 0 {
            self.spare.put(std::mem::take(&mut self.out));
        }
    }

    fn check(&mut self) -> io::Result<()> {
        self.broken.take().map_or(Ok(()), Err)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Corked<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0.0.lock().stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Corked<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut gathered = self.0.0.lock();
        gathered.check()?;
        if gathered.out.len() >= MOST {
            ready!(gathered.drain(cx))?;
        }
        if gathered.out.capacity() == 0 {
            gathered.out = gathered.spare.take();
        }
        let taken = bytes.len().min(MOST - gathered.out.len());
        gathered.out.extend_from_slice(&bytes[..taken]);
        Poll::Ready(Ok(taken))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.0.0.lock().check())
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut gathered = self.0.0.lock();
        gathered.check()?;
        ready!(gathered.drain(cx))?;
        Pin::new(&mut gathered.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    use super::*;

    fn pair(room: usize) -> (Arc<Cork<DuplexStream>>, Corked<DuplexStream>, DuplexStream) {
        let (near, far) = duplex(room);
        let (cork, corked) = cork(near, Arc::default());
        (cork, corked, far)
    }

    fn cx() -> Context<'static> {
        Context::from_waker(Waker::noop())
    }

    fn read(far: &mut DuplexStream) -> usize {
        let mut bytes = vec![0; 2 * MOST];
        let mut buffer = ReadBuf::new(&mut bytes);
        let _ = Pin::new(far).poll_read(&mut cx(), &mut buffer);
        buffer.filled().len()
    }

    #[tokio::test]
    async fn a_round_is_one_piece() {
        let (cork, mut corked, mut far) = pair(MOST);
        for _ in 0..3 {
            corked.write_all(b"frame").await.unwrap();
            corked.flush().await.unwrap();
        }
        assert_eq!(read(&mut far), 0, "nothing goes before the end of the round");
        cork.send(&mut cx());
        assert_eq!(read(&mut far), 15);
        cork.send(&mut cx());
        assert_eq!(read(&mut far), 0);
    }

    #[tokio::test]
    async fn what_the_stream_does_not_take_waits_and_holds_up_the_writer() {
        let (cork, mut corked, mut far) = pair(16 * 1024);
        corked.write_all(&vec![1; MOST]).await.unwrap();
        assert!(Pin::new(&mut corked).poll_write(&mut cx(), b"more").is_pending());
        let mut all = 0;
        while all < MOST {
            cork.send(&mut cx());
            let now = read(&mut far);
            assert!(now > 0);
            all += now;
        }
        cork.send(&mut cx());
        assert_eq!(cork.0.lock().out.capacity(), 0, "nothing is kept");
        assert!(Pin::new(&mut corked).poll_write(&mut cx(), b"more").is_ready());
    }

    #[tokio::test]
    async fn connections_take_turns_with_one_room_unless_they_are_held_up() {
        let spare = Arc::new(Spare::default());
        let capacity = || spare.0.lock().capacity();
        let ((near, mut far), (held, _held_far)) = (duplex(MOST), duplex(1));
        let (cork_one, mut one) = cork(near, Arc::clone(&spare));
        let (cork_two, mut two) = cork(held, Arc::clone(&spare));
        one.write_all(b"first").await.unwrap();
        assert_eq!((capacity(), cork_one.0.lock().out.capacity()), (0, MOST));
        cork_one.send(&mut cx());
        assert_eq!((capacity(), cork_one.0.lock().out.capacity()), (MOST, 0));
        two.write_all(b"waits").await.unwrap();
        cork_two.send(&mut cx());
        assert_eq!(capacity(), 0, "it keeps what it could not send");
        one.write_all(b"second").await.unwrap();
        cork_one.send(&mut cx());
        assert_eq!((read(&mut far), capacity()), (11, MOST));
        // No more is taken than there is room for.
        let taken = Pin::new(&mut one).poll_write(&mut cx(), &vec![0; MOST + 1]);
        assert!(matches!(taken, Poll::Ready(Ok(MOST))), "{taken:?}");
        assert_eq!(cork_one.0.lock().out.capacity(), MOST);
    }

    /// As TLS: it takes what is written, and sends it when a flush is asked for once more.
    #[derive(Debug, Default)]
    struct Holding {
        flushes: usize,
    }

    impl AsyncWrite for Holding {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            Poll::Ready(Ok(bytes.len()))
        }
        fn poll_flush(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            self.flushes += 1;
            if self.flushes == 1 { Poll::Pending } else { Poll::Ready(Ok(())) }
        }
        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn what_the_stream_holds_is_flushed_until_it_is_gone() {
        let (cork, mut corked) = cork(Holding::default(), Arc::default());
        corked.write_all(b"record").await.unwrap();
        for expected in [1, 2, 2] {
            cork.send(&mut cx());
            assert_eq!(cork.0.lock().stream.flushes, expected);
        }
    }

    #[tokio::test]
    async fn the_end_sends_what_waits_and_a_loss_is_told() {
        let (_, mut corked, mut far) = pair(MOST);
        corked.write_all(b"goodbye").await.unwrap();
        corked.shutdown().await.unwrap();
        let mut text = String::new();
        far.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "goodbye");
        let (cork, mut corked, far) = pair(MOST);
        corked.write_all(b"lost").await.unwrap();
        drop(far);
        cork.send(&mut cx());
        assert!(corked.write_all(b"more").await.is_err());
    }
}
