//! One connection to an endpoint that speaks HTTP, as a request uses it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use futures_util::FutureExt;
use futures_util::future::Either;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http1, http2};

use super::key::Key;
use super::life::Life;
use crate::http::RequestBody;
use crate::http::io::Watch;

/// A connection that takes one request.
pub struct Connection {
    pub(super) sender: Sender,
    /// It has served a request before.
    pub reused: bool,
    pub(super) life: Life,
}

pub(super) enum Sender {
    /// Alone on it.
    Http1(Single, Arc<Key>),
    /// One stream of it, which is counted.
    Http2(http2::SendRequest<RequestBody>, #[expect(dead_code, reason = "held for its drop")] Active),
}

/// A connection of HTTP/1.1, and what bounds the heads that come before the answer's.
pub(super) struct Single {
    pub(super) sender: http1::SendRequest<RequestBody>,
    pub(super) watch: Arc<Watch>,
    /// Bytes of heads for one request.
    pub(super) heads: usize,
}

/// Counts a stream while it lives.
pub(super) struct Active(Arc<AtomicUsize>);

impl Active {
    pub(super) fn of(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Relaxed);
        Self(Arc::clone(count))
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// Why a request has no answer.
#[derive(Debug)]
pub enum SendError {
    /// Nothing of it was sent; here it is again.
    NotSent(Box<Request<RequestBody>>),
    /// The endpoint says that it has not looked at it.
    Refused,
    /// The connection or the stream ended before an answer.
    Lost(hyper::Error),
}

impl Connection {
    /// Sends a request, at once; what is given back waits for the head of its answer. The request is moved as seldom as can be: it is large.
    pub fn send(
        &mut self,
        request: Request<RequestBody>,
    ) -> impl Future<Output = Result<Response<Incoming>, SendError>> + use<> {
        let (sent, watch) = match &mut self.sender {
            Sender::Http1(single, _) => {
                single.watch.await_head(single.heads);
                (Either::Left(single.sender.try_send_request(request)), Some(Arc::clone(&single.watch)))
            }
            Sender::Http2(sender, _) => (Either::Right(sender.try_send_request(request)), None),
        };
        sent.map(move |sent| {
            watch.iter().for_each(|watch| watch.has_head());
            sent.map_err(lost)
        })
    }

    /// Whether it speaks HTTP/2.
    #[must_use]
    pub fn is_http2(&self) -> bool {
        matches!(self.sender, Sender::Http2(..))
    }
}

fn lost(mut error: TrySendError<Request<RequestBody>>) -> SendError {
    match error.take_message() {
        Some(request) => SendError::NotSent(Box::new(request)),
        None => {
            let error = error.into_error();
            if is_refused(&error) { SendError::Refused } else { SendError::Lost(error) }
        }
    }
}

fn is_refused(error: &hyper::Error) -> bool {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = source {
        if let Some(error) = error.downcast_ref::<h2::Error>() {
            // A GOAWAY that does not count the stream says the same.
            return error.reason() == Some(h2::Reason::REFUSED_STREAM)
                || (error.is_go_away() && error.is_remote() && error.reason() == Some(h2::Reason::NO_ERROR));
        }
        source = error.source();
    }
    false
}
