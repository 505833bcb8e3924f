//! The listener of the webhook. Anybody may connect; what is answered is no secret, and how much is asked at once is limited.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use http::{Method, Request, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use mesh_runtime::drain::DrainToken;
use mesh_runtime::http::{Reply, reply, text};
use mesh_runtime::task;
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tonic::transport::server::Connected;

use super::review::review;
use crate::index::View;
use crate::metrics::Metrics;
use crate::serve::tls::{self, Secured, ServerCertificate};

/// An object and what it was before, each as large as etcd takes it (1.5 MiB), and how JSON writes it.
const MAX_BODY: usize = 4 << 20;
/// Reviews at once. Each holds what its object becomes when it is read, some tens of times its size.
const AT_ONCE: usize = 4;
/// Bytes of requests that are not whole or have no turn yet, all together.
const ARRIVING: usize = 64 << 20;
/// Requests of one connection that may be whole or on their way.
const ARRIVING_OF_ONE: usize = 4;
/// For a request to arrive whole: who is slow keeps nobody else's place.
const ARRIVAL: Duration = Duration::from_secs(2);
/// For it to be answered; the API server waits no longer than that.
const REQUEST: Duration = Duration::from_secs(10);
/// Without a request. API servers keep a connection for 90 seconds: it is theirs to end, or they would send a request into one that is ending.
const IDLE: Duration = Duration::from_secs(120);
/// Requests at once on one connection.
const MAX_CALLS: u32 = 32;

/// Answers reviews until the drain starts.
pub async fn serve(
    listener: TcpListener,
    certificate: Arc<ServerCertificate>,
    view: watch::Receiver<Arc<View>>,
    metrics: Arc<Metrics>,
    drain: DrainToken,
) -> Result<(), rustls::Error> {
    let mut config = tls::config(certificate)?;
    config.alpn_protocols.push(b"http/1.1".to_vec());
    let (sender, mut secured) = mpsc::channel(64);
    task::spawn_vital("accept webhook", tls::accept(listener, Arc::new(config), drain.clone(), sender));
    let places = Places::new();
    while let Some(stream) = secured.recv().await {
        let Ok(stream) = stream else { continue };
        let (view, metrics, places) = (view.clone(), metrics.clone(), places.of_a_connection());
        task::spawn("webhook connection", connection(stream, view, metrics, places, drain.clone()));
    }
    Ok(())
}

/// What strangers may hold.
#[derive(Clone)]
struct Places {
    /// Bytes of requests.
    bytes: Arc<Semaphore>,
    /// Reviews.
    reviews: Arc<Semaphore>,
    /// Requests of this connection.
    own: Arc<Semaphore>,
}

impl Places {
    fn new() -> Self {
        let [bytes, reviews, own] = [ARRIVING, AT_ONCE, ARRIVING_OF_ONE].map(|n| Arc::new(Semaphore::new(n)));
        Self { bytes, reviews, own }
    }

    fn of_a_connection(&self) -> Self {
        Self { own: Arc::new(Semaphore::new(ARRIVING_OF_ONE)), ..self.clone() }
    }
}

async fn connection(
    stream: Secured,
    view: watch::Receiver<Arc<View>>,
    metrics: Arc<Metrics>,
    places: Places,
    drain: DrainToken,
) {
    let known = stream.connect_info();
    let service = service_fn(move |request| {
        // Nobody shows tokens here; but who asks for nothing has a deadline.
        known.introduce();
        let (metrics, places) = (metrics.clone(), places.clone());
        let with_istio = view.borrow().settings.istio_runs;
        async move {
            let answer = tokio::time::timeout(REQUEST, answer(request, with_istio, &metrics, &places)).await;
            Ok::<_, Infallible>(answer.unwrap_or_else(|_| text(StatusCode::REQUEST_TIMEOUT, "too slow\n")))
        }
    });
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(IDLE);
    let mut h2 = builder.http2();
    h2.timer(TokioTimer::new()).max_concurrent_streams(MAX_CALLS);
    h2.keep_alive_interval(Duration::from_secs(30)).keep_alive_timeout(Duration::from_secs(10));
    let served = builder.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(served);
    let ended = tokio::select! {
        ended = served.as_mut() => ended,
        () = drain.started() => {
            served.as_mut().graceful_shutdown();
            tokio::select! {
                ended = served => ended,
                () = drain.forced() => return,
            }
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection of the webhook ended");
    }
}

async fn answer(request: Request<Incoming>, with_istio: bool, metrics: &Metrics, places: &Places) -> Reply {
    if request.uri().path() != "/validate" || request.method() != Method::POST {
        return text(StatusCode::NOT_FOUND, "POST /validate\n");
    }
    let stopping = || text(StatusCode::SERVICE_UNAVAILABLE, "stopping\n");
    let Ok(_own) = places.own.acquire().await else { return stopping() };
    let (body, held) = match tokio::time::timeout(ARRIVAL, arrive(request.into_body(), &places.bytes)).await {
        Ok(Some(arrived)) => arrived,
        Ok(None) => return text(StatusCode::PAYLOAD_TOO_LARGE, "request body too large or cut\n"),
        Err(_) => return text(StatusCode::REQUEST_TIMEOUT, "the request body comes too slowly\n"),
    };
    let Ok(place) = places.reviews.clone().acquire_owned().await else { return stopping() };
    // A large object takes a while to read, also when nobody waits for the answer any more: until then it has its place.
    let read = move || {
        let answer = review(&body, with_istio);
        drop((place, held));
        answer
    };
    match tokio::task::spawn_blocking(read).await {
        Ok(Ok(answer)) => {
            match answer.allowed {
                true => metrics.validated.inc(),
                false => metrics.invalidated.inc(),
            };
            reply(StatusCode::OK, "application/json", answer.json().to_string().into_bytes())
        }
        Ok(Err(why)) => text(StatusCode::BAD_REQUEST, format!("{why}\n")),
        Err(_) => text(StatusCode::INTERNAL_SERVER_ERROR, "the reader failed on it\n"),
    }
}

/// The whole body, and its place among `bytes`; `None` if it is too large or cut.
async fn arrive(mut body: Incoming, bytes: &Arc<Semaphore>) -> Option<(BytesMut, Option<OwnedSemaphorePermit>)> {
    let (mut whole, mut held) = (BytesMut::new(), None::<OwnedSemaphorePermit>);
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.ok()?.into_data() else { continue };
        if whole.len() + data.len() > MAX_BODY {
            return None;
        }
        let more = bytes.clone().acquire_many_owned(u32::try_from(data.len()).ok()?).await.ok()?;
        match &mut held {
            Some(held) => held.merge(more),
            None => held = Some(more),
        }
        whole.extend_from_slice(&data);
    }
    Some((whole, held))
}
