//! A client's body of which something may have been looked at before it goes on: what was read comes first, then what still comes. Copies of the request get
//! what goes by.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use hyper::body::{Body, Frame, Incoming, SizeHint};

use super::error::{BoxError, Polled};
use super::feed::Feed;
use super::web::Decoder;

/// A body of a request.
#[derive(Debug)]
pub struct ClientBody {
    ahead: Option<Box<Ahead>>,
    rest: Incoming,
}

/// What was read already, and who else gets it. Few bodies are looked at or copied, and each is moved often.
#[derive(Debug, Default)]
struct Ahead {
    first: VecDeque<Bytes>,
    trailers: Option<HeaderMap>,
    feeds: Vec<Feed>,
    /// What is read goes through this, if it is not to go on as it is.
    decoder: Option<Decoder>,
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
    /// What goes by from now on is given to that copy, too.
    pub fn feed(&mut self, feed: Feed) {
        self.ahead.get_or_insert_default().feeds.push(feed);
    }

    /// What goes by from now on is decoded.
    pub fn decode(&mut self, decoder: Option<Decoder>) {
        if let (Some(decoder), false) = (decoder, self.is_end_stream()) {
            self.ahead.get_or_insert_default().decoder = Some(decoder);
        }
    }

    /// Waits for the body until it has ended, or more than `most` bytes of it are here; tells when it begins.
    pub async fn look(&mut self, most: usize, begun: impl Fn()) -> Result<Seen, hyper::Error> {
        let mut bytes = BytesMut::new();
        let ahead = self.ahead.get_or_insert_default();
        // In one piece: small ones would cost much more than they are.
        ahead.first.drain(..).for_each(|frame| bytes.extend_from_slice(&frame));
        while bytes.len() <= most && ahead.trailers.is_none() {
            let frame = std::future::poll_fn(|cx| Pin::new(&mut self.rest).poll_frame(cx)).await;
            match frame.transpose()?.map(Frame::into_data) {
                None => break,
                Some(Ok(data)) => {
                    begun();
                    bytes.extend_from_slice(&data);
                }
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

impl Ahead {
    /// Whether something was read that has not gone on.
    fn holds(&self) -> bool {
        !self.first.is_empty() || self.trailers.is_some()
    }

    fn next(&mut self) -> Option<Frame<Bytes>> {
        self.first.pop_front().map(Frame::data).or_else(|| self.trailers.take().map(Frame::trailers))
    }

    /// What goes on of a frame, if anything does yet.
    fn decoded(&mut self, frame: Passing, is_over: bool) -> Option<Passing> {
        let Some(decoder) = &mut self.decoder else { return Some(frame) };
        let decoded = match frame {
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => decoder.read(&data).map(|data| Some(Frame::data(data))),
                Err(trailers) => decoder.end().map(|()| Some(trailers)),
            },
            Some(Err(error)) => return Some(Some(Err(error))),
            None => decoder.end().map(|()| None),
        };
        let whole = decoded.and_then(|frame| if is_over { decoder.end().map(|()| frame) } else { Ok(frame) });
        match whole {
            Ok(Some(frame)) if !is_over && frame.data_ref().is_some_and(Bytes::is_empty) => None,
            Ok(frame) => Some(frame.map(Ok)),
            Err(error) => Some(Some(Err(error.into()))),
        }
    }

    /// Gives copies what goes by. Whoever reads a body whose length he knows does not look for its end.
    fn tell(&mut self, frame: Option<&Result<Frame<Bytes>, BoxError>>, is_over: bool) {
        match frame {
            // Dropped before its end, the body of a copy is broken, as this one is.
            Some(Err(_)) => self.feeds.clear(),
            Some(Ok(frame)) => self.feeds.retain(|feed| feed.put(frame)),
            None => {}
        }
        if is_over || frame.is_none() {
            self.feeds.drain(..).for_each(|feed| feed.end());
        }
    }
}

/// A frame on its way, or the end.
type Passing = Option<Result<Frame<Bytes>, BoxError>>;

impl Body for ClientBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Polled {
        let this = self.get_mut();
        loop {
            let frame = match this.ahead.as_mut().and_then(|ahead| ahead.next()) {
                Some(frame) => Some(Ok(frame)),
                None => ready!(Pin::new(&mut this.rest).poll_frame(cx)).map(|frame| frame.map_err(BoxError::from)),
            };
            let Some(ahead) = &mut this.ahead else { return Poll::Ready(frame) };
            let is_over = !ahead.holds() && this.rest.is_end_stream();
            // A piece that is too small to say anything is no frame.
            let Some(frame) = ahead.decoded(frame, is_over) else { continue };
            ahead.tell(frame.as_ref(), is_over);
            if !ahead.holds() && ahead.feeds.is_empty() && ahead.decoder.is_none() {
                this.ahead = None;
            }
            return Poll::Ready(frame);
        }
    }

    fn is_end_stream(&self) -> bool {
        self.ahead.as_deref().is_none_or(|ahead| !ahead.holds()) && self.rest.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let mut hint = self.rest.size_hint();
        let Some(ahead) = &self.ahead else { return hint };
        if ahead.decoder.is_some() {
            return SizeHint::default();
        }
        let first = ahead.first.iter().map(|data| data.len() as u64).sum::<u64>();
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper + first);
        }
        hint.set_lower(hint.lower() + first);
        hint
    }
}
