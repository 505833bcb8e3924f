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
    first: VecDeque<Bytes>,
    trailers: Option<HeaderMap>,
    rest: Incoming,
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
        Self { first: VecDeque::new(), trailers: None, rest }
    }
}

impl ClientBody {
    /// Waits for the body until it has ended, or more than `most` bytes of it are here.
    pub async fn look(&mut self, most: usize) -> Result<Seen, hyper::Error> {
        let mut bytes = BytesMut::new();
        // In one piece: small ones would cost much more than they are.
        self.first.drain(..).for_each(|frame| bytes.extend_from_slice(&frame));
        while bytes.len() <= most && self.trailers.is_none() {
            let frame = std::future::poll_fn(|cx| Pin::new(&mut self.rest).poll_frame(cx)).await;
            match frame.transpose()?.map(Frame::into_data) {
                None => break,
                Some(Ok(data)) => bytes.extend_from_slice(&data),
                Some(Err(frame)) => self.trailers = frame.into_trailers().ok(),
            }
        }
        let all = bytes.freeze();
        if !all.is_empty() {
            self.first.push_back(all.clone());
        }
        Ok(Seen { bytes: all.slice(..all.len().min(most)), is_whole: all.len() <= most })
    }
}

impl Body for ClientBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let this = self.get_mut();
        if let Some(data) = this.first.pop_front() {
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        if let Some(trailers) = this.trailers.take() {
            return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
        }
        Pin::new(&mut this.rest).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.first.is_empty() && self.trailers.is_none() && self.rest.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (mut hint, first) = (self.rest.size_hint(), self.first.iter().map(|data| data.len() as u64).sum::<u64>());
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper + first);
        }
        hint.set_lower(hint.lower() + first);
        hint
    }
}
