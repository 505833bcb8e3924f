//! Our own small Bookinfo: productpage, details, reviews (v1 without stars, v2 black, v3 red) and ratings.
//!
//! Istio's paths, port, timeouts, messages and header propagation, so that its task pages read the same here. Every call opens a
//! new connection, as the original does: what a user feels is the mesh's cost per connection.
mod backends;
mod page;

use anyhow::{Context, Result};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

/// Headers that every service copies from the request it got to the requests it makes.
const PROPAGATED: [&str; 22] = [
    "x-request-id",
    "x-ot-span-context",
    "x-datadog-trace-id",
    "x-datadog-parent-id",
    "x-datadog-sampling-priority",
    "traceparent",
    "tracestate",
    "x-cloud-trace-context",
    "grpc-trace-bin",
    "x-b3-traceid",
    "x-b3-spanid",
    "x-b3-parentspanid",
    "x-b3-sampled",
    "x-b3-flags",
    "sw8",
    "end-user",
    "user-agent",
    "cookie",
    "authorization",
    "jwt",
    "b3",
    "x-canary",
];

/// Which service this process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// The page users load.
    Productpage,
    /// Facts about the book.
    Details,
    /// Reviews, with stars from ratings in v2 and v3.
    Reviews,
    /// Stars.
    Ratings,
}

/// One service process.
#[derive(Debug, Clone)]
pub struct Service {
    /// Which one.
    pub kind: Kind,
    /// Its version label.
    pub version: String,
    /// Its pod's name, shown in answers.
    pub pod: String,
    /// A random text in every answer, which the wire must never show.
    pub canary: String,
}

pub(crate) type Answer = Response<Full<Bytes>>;

/// Serves forever.
pub fn run(service: Service, port: u16) -> Result<()> {
    let listener = super::servers::listen(port, false)?;
    listener.set_nonblocking(true).context("set non-blocking")?;
    let service = Arc::new(service);
    super::servers::runtime()?.block_on(async {
        let listener = tokio::net::TcpListener::from_std(listener).context("adopt listener")?;
        println!("ready {:?} {}", service.kind, service.version);
        loop {
            let Ok((stream, _)) = listener.accept().await else { continue };
            let service = service.clone();
            tokio::spawn(async move {
                let handler = service_fn(move |request| handle(service.clone(), request));
                let _ =
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), handler).await;
            });
        }
    })
}

async fn handle(service: Arc<Service>, request: Request<Incoming>) -> Result<Answer, Infallible> {
    let mut answer = match (service.kind, request.uri().path()) {
        (_, "/health") => {
            json(StatusCode::OK, &serde_json::json!({"status": format!("{:?} is healthy", service.kind)}))
        }
        (Kind::Productpage, _) => page::handle(&service, request).await,
        (Kind::Details, path) => backends::details(path),
        (Kind::Reviews, path) => backends::reviews(&service, path, request.headers()).await,
        (Kind::Ratings, path) => backends::ratings(path),
    };
    if let Ok(value) = HeaderValue::from_str(&service.canary) {
        answer.headers_mut().insert("x-canary", value);
    }
    Ok(answer)
}

pub(crate) fn json(status: StatusCode, value: &serde_json::Value) -> Answer {
    text(status, "application/json", format!("{value}\n"))
}

pub(crate) fn text(status: StatusCode, kind: &'static str, body: String) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::from(body)));
    *answer.status_mut() = status;
    answer.headers_mut().insert("content-type", HeaderValue::from_static(kind));
    answer
}

/// The headers to pass on.
pub(crate) fn propagate(headers: &HeaderMap) -> HeaderMap {
    let mut kept = HeaderMap::new();
    for name in PROPAGATED {
        for value in headers.get_all(name) {
            kept.append(HeaderName::from_static(name), value.clone());
        }
    }
    kept
}

/// One call to another service on a connection of its own.
pub(crate) async fn call(
    host: &str,
    path: &str,
    headers: HeaderMap,
    limit: Duration,
) -> Result<(StatusCode, serde_json::Value)> {
    tokio::time::timeout(limit, async {
        let stream =
            tokio::net::TcpStream::connect((host, 9080)).await.with_context(|| format!("connect to {host}"))?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.context("start HTTP")?;
        tokio::spawn(connection);
        let mut request = Request::get(path).body(Full::<Bytes>::default()).context("build request")?;
        *request.headers_mut() = headers;
        request.headers_mut().insert("host", HeaderValue::from_str(&format!("{host}:9080")).context("host header")?);
        let response = sender.send_request(request).await.with_context(|| format!("ask {host}"))?;
        let status = response.status();
        let body = Limited::new(response.into_body(), 1 << 20).collect().await;
        let body = body.map_err(|e| anyhow::anyhow!("read answer of {host}: {e}"))?.to_bytes();
        Ok((status, serde_json::from_slice(&body).unwrap_or_default()))
    })
    .await
    .with_context(|| format!("{host} did not answer within {limit:?}"))?
}
