//! A client's body of which something may have been looked at before it goes on: what was read comes first, then what still comes.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use hyper::body::{Body, Frame, Incoming, SizeHint};

/// A body of a request.
#[derive(Debug)]
pub struct ClientBody {
    ahead: Option<Box<Ahead>>,
    rest: Incoming,
}

/// What was read already. Few bodies are looked at, and each is moved often.
#[derive(Debug, Default)]
struct Ahead {
    first: VecDeque<Bytes>,
    trailers: Option<HeaderMap>,
}

/// What was looked at.
#[derive(Debug)]
pub struct Seen {
    /// Its beginning, at most as much as was asked for.
    pub bytes: Bytes,
    /// There is no more.
    pub is_whole: bool,
}

impl From<Incoming> for ClientBody {
    fn from(rest: Incoming) -> Self {
        Self { ahead: None, rest }
    }
}

impl ClientBody {
    /// Waits for the body until it has ended, or more than `most` bytes of it are here.
    pub async fn look(&mut self, most: usize) -> Result<Seen, hyper::Error> {
        let mut bytes = BytesMut::new();
        let ahead = self.ahead.get_or_insert_default();
        // In one piece: small ones would cost much more than they are.
        ahead.first.drain(..).for_each(|frame| bytes.extend_from_slice(&frame));
        while bytes.len() <= most && ahead.trailers.is_none() {
            let frame = std::future::poll_fn(|cx| Pin::new(&mut self.rest).poll_frame(cx)).await;
            match frame.transpose()?.map(Frame::into_data) {
                None => break,
                Some(Ok(data)) => bytes.extend_from_slice(&data),
                Some(Err(frame)) => ahead.trailers = frame.into_trailers().ok(),
            }
        }
        let all = bytes.freeze();
        if !all.is_empty() {
            ahead.first.push_back(all.clone());
        }
        Ok(Seen { bytes: all.slice(..all.len().min(most)), is_whole: all.len() <= most })
    }
}

impl Body for ClientBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let this = self.get_mut();
        if let Some(ahead) = &mut this.ahead {
            let trailers = || ahead.trailers.take().map(Frame::trailers);
            if let Some(frame) = ahead.first.pop_front().map(Frame::data).or_else(trailers) {
                return Poll::Ready(Some(Ok(frame)));
            }
            this.ahead = None;
        }
        Pin::new(&mut this.rest).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        let nothing = |ahead: &Ahead| ahead.first.is_empty() && ahead.trailers.is_none();
        self.ahead.as_deref().is_none_or(nothing) && self.rest.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let mut hint = self.rest.size_hint();
        let Some(ahead) = &self.ahead else { return hint };
        let first = ahead.first.iter().map(|data| data.len() as u64).sum::<u64>();
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper + first);
        }
        hint.set_lower(hint.lower() + first);
        hint
    }
}
