//! A request's body as copies of it are sent on while it goes by. Each copy has room for so many bytes; one that does not take them fast enough gets no more, and
//! never holds up the request.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http::HeaderMap;
use hyper::body::{Body, Frame};
use parking_lot::Mutex;

use super::error::BoxError;
use super::kept::{PIECE, kept};

/// How far a copy's body has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fed {
    /// More may come.
    Open,
    /// All of it has come.
    Whole,
    /// It has ended before its end, for the request has.
    Cut,
    /// There was no room for more of it.
    Full,
    /// Nobody reads it any more.
    Left,
}

/// Room for the bodies of copies: of each, and of all that share it.
#[derive(Clone, Debug)]
pub struct Room {
    /// Bytes of one.
    pub one: usize,
    /// Bytes of all.
    pub all: usize,
    /// What all have in use.
    pub used: Arc<AtomicUsize>,
}

#[derive(Debug)]
struct Buffer {
    pieces: VecDeque<Bytes>,
    bytes: usize,
    /// All bytes that have come.
    passed: u64,
    trailers: Option<HeaderMap>,
    state: Fed,
    reader: Option<Waker>,
    /// Who waits for it to be broken.
    watcher: Option<Waker>,
    /// Nobody reads it any more.
    is_left: bool,
    room: Room,
}

/// Where a copy's body is put.
#[derive(Debug)]
pub struct Feed(Arc<Mutex<Buffer>>);

/// A copy's body.
#[derive(Debug)]
pub struct FedBody(Arc<Mutex<Buffer>>);

/// Tells how far a copy's body has come.
#[derive(Clone, Debug)]
pub struct Gauge(Arc<Mutex<Buffer>>);

/// The body of a copy ends before its end.
#[derive(Debug, thiserror::Error)]
#[error("the body of the copy has no end")]
struct Unfinished;

/// Both ends of a copy's body.
#[must_use]
pub fn feed(room: Room) -> (Feed, FedBody, Gauge) {
    let buffer = Arc::new(Mutex::new(Buffer {
        pieces: VecDeque::new(),
        bytes: 0,
        passed: 0,
        trailers: None,
        state: Fed::Open,
        reader: None,
        watcher: None,
        is_left: false,
        room,
    }));
    (Feed(Arc::clone(&buffer)), FedBody(Arc::clone(&buffer)), Gauge(buffer))
}

impl Buffer {
    fn settle(&mut self, state: Fed) {
        if self.state != Fed::Open {
            return;
        }
        self.state = state;
        if state != Fed::Whole {
            self.empty();
            self.watcher.take().into_iter().for_each(Waker::wake);
        }
        self.reader.take().into_iter().for_each(Waker::wake);
    }

    fn empty(&mut self) {
        self.pieces = VecDeque::new();
        self.room.used.fetch_sub(std::mem::take(&mut self.bytes), Relaxed);
    }

    fn take(&mut self) -> Option<Bytes> {
        let piece = self.pieces.pop_front()?;
        self.bytes -= piece.len() + PIECE;
        self.room.used.fetch_sub(piece.len() + PIECE, Relaxed);
        Some(piece)
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.empty();
    }
}

impl Feed {
    /// What goes by. False: nothing more has to.
    pub fn put(&self, frame: &Frame<Bytes>) -> bool {
        let mut buffer = self.0.lock();
        if buffer.is_left {
            buffer.settle(Fed::Left);
        }
        if buffer.state != Fed::Open {
            return false;
        }
        if let Some(data) = frame.data_ref().filter(|data| !data.is_empty()) {
            let (piece, more) = kept(data);
            let room = &buffer.room;
            let before = room.used.fetch_add(more, Relaxed);
            if buffer.bytes + more > room.one || before + more > room.all {
                room.used.fetch_sub(more, Relaxed);
                buffer.settle(Fed::Full);
                return false;
            }
            buffer.bytes += more;
            buffer.passed += data.len() as u64;
            buffer.pieces.push_back(piece);
        } else if let Some(trailers) = frame.trailers_ref() {
            buffer.trailers = Some(trailers.clone());
        }
        buffer.reader.take().into_iter().for_each(Waker::wake);
        true
    }

    /// That was all.
    pub fn end(&self) {
        self.0.lock().settle(Fed::Whole);
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        self.0.lock().settle(Fed::Cut);
    }
}

impl Gauge {
    /// How far it has come.
    #[must_use]
    pub fn state(&self) -> Fed {
        self.0.lock().state
    }

    /// Waits until it is known that it never gets its end. Who cannot be written to does not ask for more of it, and would not hear of that.
    pub async fn broken(&self) {
        std::future::poll_fn(|cx| {
            let mut buffer = self.0.lock();
            match buffer.state {
                Fed::Cut | Fed::Full => Poll::Ready(()),
                Fed::Open | Fed::Whole | Fed::Left => {
                    buffer.watcher = Some(cx.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await;
    }

    /// Bytes that have come.
    #[must_use]
    pub fn passed(&self) -> u64 {
        self.0.lock().passed
    }
}

impl Body for FedBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let mut buffer = self.0.lock();
        if let Some(piece) = buffer.take() {
            return Poll::Ready(Some(Ok(Frame::data(piece))));
        }
        match buffer.state {
            Fed::Open => {
                buffer.reader = Some(cx.waker().clone());
                Poll::Pending
            }
            Fed::Whole => Poll::Ready(buffer.trailers.take().map(|trailers| Ok(Frame::trailers(trailers)))),
            Fed::Cut | Fed::Full | Fed::Left => Poll::Ready(Some(Err(Unfinished.into()))),
        }
    }
}

impl Drop for FedBody {
    fn drop(&mut self) {
        let mut buffer = self.0.lock();
        buffer.is_left = true;
        buffer.empty();
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    fn room(one: usize, all: usize) -> Room {
        Room { one, all, used: Arc::default() }
    }

    fn data(text: &'static str) -> Frame<Bytes> {
        Frame::data(Bytes::from_static(text.as_bytes()))
    }

    #[tokio::test]
    async fn what_goes_by_comes_out_with_its_trailers() {
        let room = room(1024, 1024);
        let (feed, body, gauge) = feed(room.clone());
        assert!(feed.put(&data("one")) && feed.put(&data("two")));
        assert_eq!(room.used.load(Relaxed), 6 + 2 * PIECE);
        let mut trailers = HeaderMap::new();
        trailers.insert("x-sum", http::HeaderValue::from_static("1"));
        assert!(feed.put(&Frame::trailers(trailers.clone())));
        feed.end();
        assert!(!feed.put(&data("late")));
        drop(feed);
        let whole = body.collect().await.unwrap();
        assert_eq!((gauge.state(), whole.trailers()), (Fed::Whole, Some(&trailers)));
        assert_eq!((whole.to_bytes().as_ref(), room.used.load(Relaxed)), (&b"onetwo"[..], 0));
    }

    /// Each row: bytes of one copy, bytes of all, what others have in use, and what becomes of the second piece.
    #[tokio::test]
    async fn a_copy_that_is_too_slow_gets_no_more() {
        for (one, all, used, expected) in [
            (2 * (3 + PIECE), 4096, 0, Fed::Whole),
            (2 * (3 + PIECE) - 1, 4096, 0, Fed::Full),
            (4096, 4096, 4096 - 2 * (3 + PIECE), Fed::Whole),
            (4096, 4096, 4097 - 2 * (3 + PIECE), Fed::Full),
        ] {
            let room = room(one, all);
            room.used.store(used, Relaxed);
            let (feed, body, gauge) = feed(room.clone());
            assert!(feed.put(&data("one")));
            assert_eq!(feed.put(&data("two")), expected == Fed::Whole);
            feed.end();
            assert_eq!((gauge.state(), body.collect().await.is_ok()), (expected, expected == Fed::Whole));
            assert_eq!(room.used.load(Relaxed), used);
        }
    }

    #[tokio::test]
    async fn a_body_that_is_cut_has_no_end_and_one_that_nobody_reads_takes_nothing() {
        let room = room(1024, 1024);
        let (writer, body, gauge) = feed(room.clone());
        let read = tokio::spawn(body.collect());
        tokio::task::yield_now().await;
        drop(writer);
        assert!(read.await.unwrap().is_err() && gauge.state() == Fed::Cut);
        let (writer, body, _) = feed(room.clone());
        assert!(writer.put(&data("one")));
        drop(body);
        assert!(!writer.put(&data("two")));
        assert_eq!(room.used.load(Relaxed), 0);
    }
}
