//! Bodies on their way: a request's to an endpoint, a response's to the client. Streams stay streams; whoever reads slowly holds up whoever sends.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::time::{Instant, Sleep};

use super::client_body::ClientBody;
use super::count::Reading;
use super::error::BoxError;
use super::feed::FedBody;
use super::tape::Reader;
use super::until::Until;
use super::web::Web;
use super::{grpc, hop, unread};

/// What goes on of a frame.
fn passed(mut frame: Frame<Bytes>) -> Frame<Bytes> {
    if let Some(trailers) = frame.trailers_mut() {
        hop::strip_trailers(trailers);
    }
    frame
}

/// A request's body.
#[derive(Debug)]
pub enum RequestBody {
    /// None.
    Empty,
    /// The client's, as it comes; it is counted.
    Stream(ClientBody, Reading),
    /// The client's, kept as far as it has come.
    Tape(Reader),
    /// What goes by of another request's.
    Fed(FedBody),
    /// One that is all here.
    Kept(Option<Bytes>),
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self.get_mut() {
            Self::Empty => Poll::Ready(None),
            Self::Stream(body, count) => {
                let polled = Pin::new(&mut *body).poll_frame(cx);
                count.look(polled, body, cx).map_ok(passed)
            }
            Self::Tape(reader) => reader.poll(cx).map_ok(passed),
            Self::Fed(body) => Pin::new(body).poll_frame(cx).map_ok(passed),
            Self::Kept(kept) => Poll::Ready(kept.take().map(Frame::data).map(Ok)),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Stream(body, _) => body.is_end_stream(),
            Self::Tape(_) | Self::Fed(_) => false,
            Self::Kept(kept) => kept.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Stream(body, _) => body.size_hint(),
            Self::Tape(_) | Self::Fed(_) => SizeHint::default(),
            Self::Kept(kept) => SizeHint::with_exact(kept.as_ref().map_or(0, |bytes| bytes.len() as u64)),
        }
    }
}

/// What belongs to a response as long as it is on its way: what counts it, and what it holds.
pub trait Held: Send {
    /// Bytes went by.
    fn data(&mut self, bytes: &Bytes);
    /// Its trailers went by.
    fn trailers(&mut self, trailers: &HeaderMap);
    /// It is over. Called once.
    fn end(self: Box<Self>, how: Over);
}

/// How a response ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Over {
    /// In order.
    Whole,
    /// The client did not wait for its end.
    Left,
    /// Its endpoint ended it before its end.
    Lost,
    /// It was cut, for its time was over.
    Late,
    /// It was cut, for the client has not taken any of it for too long.
    Unread,
}

enum Source {
    /// Here already; taken when it is read.
    Whole(Option<Bytes>),
    /// The endpoint's.
    Stream(Incoming),
}

/// A response's body.
pub struct ResponseBody {
    source: Source,
    held: Option<Box<dyn Held>>,
    /// A call of gRPC, whose status is still to come in trailers.
    lacks_status: bool,
    /// It is of gRPC, and its client speaks gRPC-Web.
    web: Option<Web>,
    /// When it is cut.
    deadline: Option<(Pin<Box<Sleep>>, Box<Until>)>,
}

/// Whether it is over, and not at a later moment than was known when its timer was set.
fn is_over((timer, until): &mut (Pin<Box<Sleep>>, Box<Until>), cx: &mut Context<'_>) -> bool {
    while timer.as_mut().poll(cx).is_ready() {
        let now = Instant::now();
        let Some(at) = until.whole(now) else { return false };
        if at <= now {
            return true;
        }
        timer.as_mut().reset(at);
    }
    false
}

/// A response took longer than its rule allows.
#[derive(Debug, thiserror::Error)]
#[error("the time of the request is over")]
struct Late;

impl ResponseBody {
    /// A text of ours, or nothing.
    pub fn whole(bytes: Bytes) -> Self {
        Self {
            source: Source::Whole(Some(bytes).filter(|bytes| !bytes.is_empty())),
            held: None,
            lacks_status: false,
            web: None,
            deadline: None,
        }
    }

    /// The endpoint's, cut when the request is over.
    pub fn stream(body: Incoming, until: Option<Box<Until>>) -> Self {
        let deadline = until.filter(|_| !body.is_end_stream());
        let deadline =
            deadline.and_then(|until| Some((Box::pin(tokio::time::sleep_until(until.whole(Instant::now())?)), until)));
        Self { source: Source::Stream(body), held: None, lacks_status: false, web: None, deadline }
    }

    /// One of gRPC that ends without a status gets one: its client would have to guess.
    #[must_use]
    pub fn with_status(mut self, has_status: bool) -> Self {
        self.lacks_status = !has_status;
        self
    }

    /// One of gRPC for who speaks gRPC-Web. Its fields have been changed.
    #[must_use]
    pub fn in_web(mut self, web: Option<Web>) -> Self {
        self.web = web;
        self
    }

    /// A call's last frame, if this is the last one or its end, with a status if the endpoint has left it out.
    fn status(&mut self, frame: &mut Option<Result<Frame<Bytes>, BoxError>>) {
        if !self.lacks_status || !matches!(frame, None | Some(Ok(_))) {
            return;
        }
        let last = frame.get_or_insert_with(|| Ok(Frame::trailers(HeaderMap::new())));
        let Ok(Some(trailers)) = last.as_mut().map(Frame::trailers_mut) else { return };
        self.lacks_status = false;
        if !trailers.contains_key(grpc::STATUS) {
            let message = HeaderValue::from_static("the endpoint ended the call without a status");
            trailers.extend([(grpc::STATUS, HeaderValue::from(grpc::UNKNOWN)), (grpc::MESSAGE, message)]);
        }
    }

    /// What is held until it is over.
    #[must_use]
    pub fn holding(mut self, held: Box<dyn Held>) -> Self {
        self.held = Some(held);
        self
    }

    fn end(&mut self, how: Over) {
        if let Some(held) = self.held.take() {
            held.end(how);
        }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        let frame = match &mut this.source {
            Source::Whole(bytes) => bytes.take().map(|bytes| Ok(Frame::data(bytes))),
            Source::Stream(body) => match Pin::new(body).poll_frame(cx) {
                Poll::Ready(frame) => frame.map(|frame| frame.map(passed).map_err(BoxError::from)),
                Poll::Pending => {
                    if !this.deadline.as_mut().is_some_and(|deadline| is_over(deadline, cx)) {
                        unread::asked();
                        return Poll::Pending;
                    }
                    Some(Err(Late.into()))
                }
            },
        };
        let has_ended = frame.is_none();
        let mut frame = frame;
        this.status(&mut frame);
        match &frame {
            Some(Ok(frame)) if frame.is_data() => {
                let settled = this.deadline.as_ref().filter(|deadline| deadline.1.is_settled());
                unread::given(settled.and_then(|deadline| deadline.1.whole(Instant::now())));
            }
            _ => unread::asked(),
        }
        match &frame {
            None => this.end(Over::Whole),
            Some(Err(error)) => this.end(if error.is::<Late>() { Over::Late } else { Over::Lost }),
            Some(Ok(frame)) => {
                if let Some(held) = &mut this.held {
                    if let Some(data) = frame.data_ref() {
                        held.data(data);
                    } else if let Some(trailers) = frame.trailers_ref() {
                        held.trailers(trailers);
                    }
                }
                // Nothing comes after trailers, and nobody asks.
                if has_ended || frame.is_trailers() {
                    this.end(Over::Whole);
                }
            }
        }
        Poll::Ready(match this.web {
            Some(web) => frame.map(|frame| frame.map(|frame| web.frame(frame))),
            None => frame,
        })
    }

    fn is_end_stream(&self) -> bool {
        if self.lacks_status {
            return false;
        }
        match &self.source {
            Source::Whole(bytes) => bytes.is_none(),
            Source::Stream(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Source::Stream(_) if self.web.is_some() => SizeHint::default(),
            Source::Stream(body) => body.size_hint(),
        }
    }
}

impl Drop for ResponseBody {
    fn drop(&mut self) {
        unread::asked();
        // A body that says that it is over is not asked again.
        let is_whole = self.is_end_stream();
        self.end(unread::cut().unwrap_or(if is_whole { Over::Whole } else { Over::Left }));
    }
}
