//! Serves one connection of a client: hyper with our limits, its deadlines, and its end when the process drains.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use mesh_runtime::{DrainToken, Rarely};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, Sleep};

use super::body::ResponseBody;
use super::cork::{Spare, cork};
use super::io::{Io, TooSlow, Watch};
use super::sniff::Spoken;
use super::unread::{Cutting, Streams, Unread};
use super::window::{CLIENT_WINDOW, STREAM_WINDOW, connection_window};
use crate::settings::Settings;

/// Least size of the buffer of an HTTP/1.1 connection: a header of the largest size and something more.
const SLACK: usize = 16 * 1024;
/// Streams that a client may have reset before they were looked at; then it has what is called a rapid reset in mind.
const RESET_STREAMS: usize = 20;
/// Streams that may be reset because of what the client sent in them; then it sends it for that.
const ERROR_STREAMS: usize = 256;
/// A client of HTTP/2 that does not answer a ping for this long is gone.
const PING: Duration = Duration::from_secs(20);

/// What a connection is served with.
pub struct Serve<'a> {
    /// Limits.
    pub settings: &'a Settings,
    /// What the connection does.
    pub watch: Arc<Watch>,
    /// When the process stops.
    pub drain: &'a DrainToken,
    /// Of the lane.
    pub spare: &'a Arc<Spare>,
    /// Its client is a proxy of the mesh, which asks for many.
    pub of_proxy: bool,
    /// How long the client may take for its first byte.
    pub silent: Duration,
}

/// Serves until the connection ends. An error is the client's, or of the way to it.
pub async fn serve<S, H, F>(serve: Serve<'_>, spoken: Spoken, stream: S, prefix: Bytes, handle: H) -> Result<(), End>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    H: Fn(Request<Incoming>) -> F,
    F: Future<Output = Result<Response<ResponseBody>, Infallible>> + Send + 'static,
{
    let Serve { settings, watch, drain, spare, of_proxy, silent } = serve;
    let io = Io::new(stream, prefix, Arc::clone(&watch));
    // In a box of its own: it is moved several times before it runs, and is large.
    let service = service_fn(move |request| Box::pin(handle(request)));
    match spoken {
        Spoken::Http2 => {
            let window = if of_proxy { connection_window(settings.streams) } else { CLIENT_WINDOW };
            let (cork, corked) = cork(io.calmed(), Arc::clone(spare));
            let connection = http2::Builder::new(Streams::new(settings.stream_idle))
                .timer(TokioTimer::new())
                .max_concurrent_streams(settings.streams)
                .max_header_list_size(u32::try_from(settings.header_bytes).unwrap_or(u32::MAX))
                .max_pending_accept_reset_streams(RESET_STREAMS)
                .max_local_error_reset_streams(Some(ERROR_STREAMS))
                .enable_connect_protocol()
                .initial_stream_window_size(STREAM_WINDOW)
                .initial_connection_window_size(window)
                .max_send_buf_size(256 * 1024)
                .keep_alive_interval(PING)
                .keep_alive_timeout(PING)
                .serve_connection(TokioIo::new(corked), service);
            let shutdown = http2::Connection::graceful_shutdown;
            let idle = settings.idle_timeout;
            // Streams are too slow each for itself.
            let streams = Some(settings.body_timeout);
            // Each of them sees for itself whether it is read.
            let (body, unread, drain_idle) = (Duration::MAX, Duration::MAX, Duration::ZERO);
            let patience = Patience { silent, header: None, body, unread, streams, idle, drain: drain_idle };
            drive(std::pin::pin!(Some(connection)), shutdown, |cx| cork.send(cx), patience, &watch, drain).await
        }
        Spoken::Http1 | Spoken::Other => {
            let connection = http1::Builder::new()
                .header_read_timeout(None)
                .max_header_size(settings.header_bytes)
                .max_buf_size(settings.header_bytes + SLACK)
                .serve_connection(TokioIo::new(io.guarded()), service)
                .with_upgrades();
            let shutdown = http1::UpgradeableConnection::graceful_shutdown;
            let header = Some(settings.header_timeout);
            let (body, idle, drain_idle) = (settings.body_timeout, settings.idle_timeout, settings.drain_idle);
            let unread = settings.stream_idle;
            let patience = Patience { silent, header, body, unread, streams: None, idle, drain: drain_idle };
            drive(std::pin::pin!(Some(connection)), shutdown, |_| (), patience, &watch, drain).await
        }
    }
}

/// Why a connection ended out of order.
#[derive(Debug, thiserror::Error)]
pub enum End {
    /// The client, or the way to it.
    #[error(transparent)]
    Http(#[from] hyper::Error),
    /// The client has never said anything.
    #[error("nothing was said in time")]
    Silent,
    /// A header began and did not end in time.
    #[error("the header of a request did not end in time")]
    SlowHeader,
    /// A body began and did not go on, or hardly.
    #[error("the body of a request did not go on in time")]
    SlowBody,
    /// The client does not read what it has asked for.
    #[error("an answer was not read in time")]
    Unread,
    /// The process has no more time.
    #[error("cut")]
    Cut,
}

/// How long a connection may wait.
struct Patience {
    /// For the first byte.
    silent: Duration,
    /// For the end of a header that has begun.
    header: Option<Duration>,
    /// For the next bytes of a body, of which there have to be some thousand.
    body: Duration,
    /// For the client to take some of an answer.
    unread: Duration,
    /// For bodies of each stream of HTTP/2.
    streams: Option<Duration>,
    /// For a request.
    idle: Duration,
    /// For a request, once the process is to stop.
    drain: Duration,
}

/// Runs a connection, with one timer for whatever it waits for: a timer for each request would cost more than the request's routing.
async fn drive<C>(
    mut connection: Pin<&mut Option<C>>,
    shutdown: impl Fn(Pin<&mut C>),
    end_of_round: impl Fn(&mut Context<'_>),
    patience: Patience,
    watch: &Watch,
    drain: &DrainToken,
) -> Result<(), End>
where
    C: Future<Output = hyper::Result<()>>,
{
    let streams = patience.streams.unwrap_or(Duration::MAX);
    let first = patience.header.unwrap_or(patience.idle).min(streams).min(patience.silent);
    let mut timer = Rarely::new(tokio::time::sleep(first));
    let mut started = Rarely::new(drain.started());
    let mut forced = Rarely::new(drain.forced());
    let wait = |timer: &mut Rarely<Sleep>, time: Duration| timer.change(|timer| timer.reset(Instant::now() + time));
    let (mut draining, mut closing, mut silent) = (false, false, false);
    let mut unread = Unread::new(patience.unread);
    std::future::poll_fn(|cx| {
        loop {
            let Some(running) = connection.as_mut().as_pin_mut() else { return Poll::Ready(Err(End::Unread)) };
            let ended = unread.poll(cx, |cx| running.poll(cx));
            end_of_round(cx);
            match ended {
                Poll::Ready(Ok(_)) if silent => return Poll::Ready(Err(End::Silent)),
                Poll::Ready(Ok(result)) => return Poll::Ready(result.map_err(End::from)),
                Poll::Ready(Err(how)) => {
                    let _cutting = Cutting::begin(how);
                    connection.set(None);
                    continue;
                }
                Poll::Pending => {}
            }
            if !draining && Pin::new(&mut started).poll(cx).is_ready() {
                draining = true;
                wait(&mut timer, patience.drain);
            }
            if draining && Pin::new(&mut forced).poll(cx).is_ready() {
                return Poll::Ready(Err(End::Cut));
            }
            if (closing && patience.streams.is_none()) || Pin::new(&mut timer).poll(cx).is_pending() {
                return Poll::Pending;
            }
            // What is under way when a connection is to end is looked at to its own end.
            if let Some(limit) = patience.streams.filter(|_| closing) {
                wait(&mut timer, watch.look(limit));
                continue;
            }
            match watch.left(patience.silent, patience.header, patience.body, patience.idle) {
                Err(TooSlow::Header) => return Poll::Ready(Err(End::SlowHeader)),
                Err(TooSlow::Body) => return Poll::Ready(Err(End::SlowBody)),
                Ok(left) if !draining => {
                    wait(&mut timer, patience.streams.map_or(left, |limit| left.min(watch.look(limit))))
                }
                // HTTP/2 has not begun: there is nothing that could be ended in order, and hyper waits for it to begin.
                _ if patience.streams.is_some() && watch.is_silent() => {
                    return Poll::Ready(if draining { Ok(()) } else { Err(End::Silent) });
                }
                end => {
                    silent = end == Err(TooSlow::Silent);
                    closing = true;
                    connection.as_mut().as_pin_mut().into_iter().for_each(&shutdown);
                    if let Some(limit) = patience.streams {
                        wait(&mut timer, watch.look(limit));
                    }
                }
            }
        }
    })
    .await
}
