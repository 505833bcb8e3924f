//! A request's body that is kept as far as it has come, so that another attempt can have it; up to a bound, after which it only goes by.

use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::HeaderMap;
use hyper::body::{Body, Frame};
use parking_lot::Mutex;

use super::client_body::ClientBody;
use super::count::Count;
use super::error::Polled;
use super::kept::kept;

/// One body, kept.
#[derive(Debug)]
pub struct Tape {
    inner: Mutex<Inner>,
    limit: usize,
    count: Arc<Count>,
}

#[derive(Debug)]
struct Inner {
    source: ClientBody,
    frames: Vec<Bytes>,
    bytes: usize,
    trailers: Option<HeaderMap>,
    state: Kept,
    /// Whose turn it is: a reader of an attempt that was given up reads no more.
    turn: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kept {
    /// All that has come.
    SoFar,
    /// All of it.
    Whole,
    /// Nothing: it is too long, or broken.
    Nothing,
}

/// The body as one attempt reads it.
#[derive(Debug)]
pub struct Reader {
    tape: Arc<Tape>,
    turn: u32,
    next: usize,
    trailers_read: bool,
}

/// Another attempt reads the body now.
#[derive(Debug, thiserror::Error)]
#[error("another attempt has the body")]
struct Superseded;

impl Tape {
    /// Keeps at most `limit` bytes, what each piece takes included; `count` counts what the client sent.
    pub fn new(source: ClientBody, limit: usize, count: Arc<Count>) -> Arc<Self> {
        let inner = Inner { source, frames: Vec::new(), bytes: 0, trailers: None, state: Kept::SoFar, turn: 0 };
        Arc::new(Self { inner: Mutex::new(inner), limit, count })
    }

    /// The body from its beginning, for the next attempt; `None` if that is not here any more.
    pub fn read(self: &Arc<Self>) -> Option<Reader> {
        let mut inner = self.inner.lock();
        if inner.state == Kept::Nothing {
            return None;
        }
        inner.turn += 1;
        Some(Reader { tape: Arc::clone(self), turn: inner.turn, next: 0, trailers_read: false })
    }

    /// Whether some of it has been read and more is to come.
    pub fn is_underway(&self) -> bool {
        let inner = self.inner.lock();
        inner.bytes > 0 && inner.state == Kept::SoFar && !inner.source.is_end_stream()
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        // Who has it now may still wait.
        if self.tape.inner.lock().turn == self.turn {
            self.tape.count.left();
        }
    }
}

impl Inner {
    fn settle(&mut self, state: Kept) {
        self.state = state;
        if state == Kept::Nothing {
            self.frames = Vec::new();
        }
    }
}

impl Reader {
    /// The next frame.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Polled {
        let tape = Arc::clone(&self.tape);
        let mut guard = tape.inner.lock();
        let inner = &mut *guard;
        if inner.turn != self.turn {
            return Poll::Ready(Some(Err(Superseded.into())));
        }
        if let Some(frame) = inner.frames.get(self.next) {
            self.next += 1;
            return Poll::Ready(Some(Ok(Frame::data(frame.clone()))));
        }
        if inner.state == Kept::Whole {
            let trailers = inner.trailers.clone().filter(|_| !std::mem::replace(&mut self.trailers_read, true));
            return Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))));
        }
        let polled = std::pin::Pin::new(&mut inner.source).poll_frame(cx);
        match tape.count.look(polled, &inner.source, cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(None) => {
                if inner.state == Kept::SoFar {
                    inner.settle(Kept::Whole);
                }
                Poll::Ready(None)
            }
            Poll::Ready(Some(Err(error))) => {
                inner.settle(Kept::Nothing);
                Poll::Ready(Some(Err(error)))
            }
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(data) = frame.data_ref() {
                    if inner.state == Kept::SoFar {
                        let (piece, more) = kept(data);
                        if inner.bytes + more <= tape.limit {
                            inner.bytes += more;
                            inner.frames.push(piece);
                            self.next += 1;
                        } else {
                            inner.settle(Kept::Nothing);
                        }
                    }
                } else if let Some(trailers) = frame.trailers_ref() {
                    inner.trailers = Some(trailers.clone());
                    self.trailers_read = true;
                    // Nothing comes behind them, and nobody asks whether something does.
                    if inner.state == Kept::SoFar {
                        inner.settle(Kept::Whole);
                    }
                }
                Poll::Ready(Some(Ok(frame)))
            }
        }
    }
}
