//! The listener of the webhook. Anybody may connect; what is answered is no secret, and how much is asked at once is limited.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use mesh_runtime::drain::DrainToken;
use mesh_runtime::http::{Reply, reply, text};
use mesh_runtime::task;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc};
use tonic::transport::server::Connected;

use super::review::review;
use crate::metrics::Metrics;
use crate::serve::tls::{self, Secured, ServerCertificate};

/// An object and what it was before, each as large as etcd takes it, with room for how JSON writes it.
const MAX_BODY: usize = 8 << 20;
/// Reviews at once. Each holds its object.
const AT_ONCE: usize = 16;
/// For a request to arrive and be answered; the API server waits no longer than that.
const REQUEST: Duration = Duration::from_secs(10);
/// Without a request. API servers keep a connection for 90 seconds: it is theirs to end, or they would send a request into one that is ending.
const IDLE: Duration = Duration::from_secs(120);
/// Requests at once on one connection.
const MAX_CALLS: u32 = 32;

/// Answers reviews until the drain starts.
pub async fn serve(
    listener: TcpListener,
    certificate: Arc<ServerCertificate>,
    metrics: Arc<Metrics>,
    drain: DrainToken,
) -> Result<(), rustls::Error> {
    let mut config = tls::config(certificate)?;
    config.alpn_protocols.push(b"http/1.1".to_vec());
    let (sender, mut secured) = mpsc::channel(64);
    task::spawn_vital("accept webhook", tls::accept(listener, Arc::new(config), drain.clone(), sender));
    let places = Arc::new(Semaphore::new(AT_ONCE));
    while let Some(stream) = secured.recv().await {
        let Ok(stream) = stream else { continue };
        // Nobody shows tokens here.
        stream.connect_info().introduce();
        let (metrics, places, drain) = (metrics.clone(), places.clone(), drain.clone());
        task::spawn("webhook connection", connection(stream, metrics, places, drain));
    }
    Ok(())
}

async fn connection(stream: Secured, metrics: Arc<Metrics>, places: Arc<Semaphore>, drain: DrainToken) {
    let service = service_fn(move |request| {
        let (metrics, places) = (metrics.clone(), places.clone());
        async move {
            let answer = tokio::time::timeout(REQUEST, answer(request, &metrics, &places)).await;
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

async fn answer(request: Request<Incoming>, metrics: &Metrics, places: &Semaphore) -> Reply {
    if request.uri().path() != "/validate" || request.method() != Method::POST {
        return text(StatusCode::NOT_FOUND, "POST /validate\n");
    }
    let Ok(_place) = places.acquire().await else { return text(StatusCode::SERVICE_UNAVAILABLE, "stopping\n") };
    let body: Bytes = match Limited::new(request.into_body(), MAX_BODY).collect().await {
        Ok(body) => body.to_bytes(),
        Err(_) => return text(StatusCode::PAYLOAD_TOO_LARGE, "request body too large or cut\n"),
    };
    // A large object takes a while to read.
    match tokio::task::spawn_blocking(move || review(&body)).await {
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
