//! The two TCP servers that every program of the data plane has for its operator: readiness and metrics. Called by the agent's worker and the waypoint.

use std::sync::Arc;

use ::http::{Method, Request, StatusCode};
use bytes::Bytes;
use tokio::net::TcpListener;

use crate::http::{Limits, Reply, reply, serve_tcp, text};
use crate::metrics::{self, Registry};
use crate::{DrainToken, Readiness};

/// `GET /healthz/ready`: 200 when nothing is pending, else 500 with what is.
pub async fn serve_readiness(listener: TcpListener, readiness: Readiness, drain: DrainToken) {
    let handler = move |request: Request<Bytes>| {
        let readiness = readiness.clone();
        async move { get(&request, &["/healthz/ready"], || ready(&readiness)) }
    };
    serve_tcp(listener, Limits { body: 0, ..Limits::default() }, drain, handler).await;
}

/// `GET /metrics` and `/stats/prometheus`.
pub async fn serve_metrics(listener: TcpListener, registry: Registry, drain: DrainToken) {
    let registry = Arc::new(registry);
    let handler = move |request: Request<Bytes>| {
        let registry = registry.clone();
        async move {
            get(&request, &["/metrics", "/stats/prometheus"], || {
                reply(StatusCode::OK, metrics::CONTENT_TYPE, metrics::encode(&registry).into_bytes())
            })
        }
    };
    // A few scrapers at most: each answer is in memory until it is sent.
    serve_tcp(listener, Limits { connections: 8, per_source: 4, body: 0, ..Limits::default() }, drain, handler).await;
}

fn get(request: &Request<Bytes>, paths: &[&str], answer: impl FnOnce() -> Reply) -> Reply {
    match (paths.contains(&request.uri().path()), request.method()) {
        (false, _) => text(StatusCode::NOT_FOUND, format!("there is {}\n", paths.join(" "))),
        (true, &Method::GET | &Method::HEAD) => answer(),
        (true, _) => text(StatusCode::METHOD_NOT_ALLOWED, "GET it\n"),
    }
}

fn ready(readiness: &Readiness) -> Reply {
    let pending = readiness.pending();
    if pending.is_empty() {
        return text(StatusCode::OK, "ready\n");
    }
    text(StatusCode::INTERNAL_SERVER_ERROR, format!("not ready, pending: {}\n", pending.join(", ")))
}
