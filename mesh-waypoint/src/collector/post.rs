//! One batch to a collector, over whatever way leads there: a tunnel where the collector is in the mesh, else plain TCP.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use http::header::{CONTENT_TYPE, HOST, HeaderName, HeaderValue, TE};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use mesh_core::l7::{Client, ClusterKey};
use mesh_core::telemetry::{Collector, CollectorKind};
use mesh_runtime::task;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use tokio::net::TcpStream;

use crate::shared::Shared;
use crate::upstream::choose::{self, Wish};
use crate::upstream::dial::dial;
use crate::upstream::{Inside, Wire};

/// Bytes of an answer that are read.
const LONGEST: usize = 64 * 1024;
/// How long a connection may take to come about.
const CONNECT: Duration = Duration::from_secs(5);

/// A connection to a collector.
pub(super) enum Connection {
    Http1(http1::SendRequest<Full<Bytes>>),
    Http2(http2::SendRequest<Full<Bytes>>),
}

/// Why a batch is lost.
#[derive(Debug, thiserror::Error)]
pub(super) enum PostError {
    #[error("no connection: {0}")]
    Connect(String),
    #[error(transparent)]
    Http(#[from] hyper::Error),
    #[error("a request cannot be written: {0}")]
    Request(#[from] http::Error),
    #[error("the collector answered {0}")]
    Status(StatusCode),
    #[error("the collector answered with status {0} of gRPC")]
    Grpc(String),
    #[error("the answer does not end")]
    Answer,
}

impl Connection {
    pub(super) async fn open(shared: &Shared, to: &Collector) -> Result<Self, PostError> {
        let wire = tokio::time::timeout(CONNECT, connect(shared, to));
        let wire = wire.await.map_err(|_| PostError::Connect("timed out".to_owned()))??;
        if to.kind == CollectorKind::OtlpGrpc {
            let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(wire)).await?;
            task::spawn("connection to a collector", async move { drop(connection.await) });
            return Ok(Self::Http2(sender));
        }
        let (sender, connection) = http1::handshake(TokioIo::new(wire)).await?;
        task::spawn("connection to a collector", async move { drop(connection.await) });
        Ok(Self::Http1(sender))
    }

    /// Whether another batch can be sent.
    pub(super) fn is_open(&self) -> bool {
        match self {
            Self::Http1(sender) => !sender.is_closed(),
            Self::Http2(sender) => !sender.is_closed(),
        }
    }

    pub(super) async fn post(&mut self, to: &Collector, batch: Vec<u8>) -> Result<(), PostError> {
        let request = request(to, batch)?;
        let response = match self {
            Self::Http1(sender) => {
                sender.ready().await?;
                sender.send_request(request).await?
            }
            Self::Http2(sender) => {
                sender.ready().await?;
                sender.send_request(request).await?
            }
        };
        let (parts, body) = response.into_parts();
        let body = Limited::new(body, LONGEST).collect().await.map_err(|_| PostError::Answer)?;
        if !parts.status.is_success() {
            return Err(PostError::Status(parts.status));
        }
        if to.kind == CollectorKind::OtlpGrpc {
            let said = body.trailers().and_then(|trailers| trailers.get("grpc-status"));
            let said = said.or_else(|| parts.headers.get("grpc-status")).map(HeaderValue::as_bytes);
            if said != Some(b"0") {
                return Err(PostError::Grpc(String::from_utf8_lossy(said.unwrap_or(b"none")).into_owned()));
            }
        }
        Ok(())
    }
}

fn request(to: &Collector, batch: Vec<u8>) -> Result<Request<Full<Bytes>>, PostError> {
    let host = format!("{}:{}", to.host, to.port);
    let usual = match to.kind {
        CollectorKind::OtlpGrpc => "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
        CollectorKind::OtlpHttp => "/v1/traces",
        CollectorKind::Zipkin => "/api/v2/spans",
    };
    let path = if to.path.is_empty() || to.kind == CollectorKind::OtlpGrpc { usual } else { &*to.path };
    let mut builder = Request::builder().method(Method::POST);
    let body = match to.kind {
        CollectorKind::OtlpGrpc => {
            builder = builder.uri(format!("http://{host}{path}")).header(CONTENT_TYPE, "application/grpc");
            builder = builder.header(TE, "trailers");
            let mut framed = BytesMut::with_capacity(batch.len() + 5);
            framed.put_u8(0);
            framed.put_u32(u32::try_from(batch.len()).unwrap_or(u32::MAX));
            framed.put_slice(&batch);
            framed.freeze()
        }
        CollectorKind::OtlpHttp => {
            builder = builder.uri(path).header(HOST, host).header(CONTENT_TYPE, "application/x-protobuf");
            batch.into()
        }
        CollectorKind::Zipkin => {
            builder = builder.uri(path).header(HOST, host).header(CONTENT_TYPE, "application/json");
            batch.into()
        }
    };
    for (name, value) in &to.headers {
        let (name, value) = (HeaderName::try_from(&**name), HeaderValue::try_from(&**value));
        if let (Ok(name), Ok(value)) = (name, value) {
            builder = builder.header(name, value);
        }
    }
    Ok(builder.body(Full::new(body))?)
}

/// To an endpoint of the service that has the host; without one, to whatever the name stands for.
async fn connect(shared: &Shared, to: &Collector) -> Result<Wire, PostError> {
    let endpoint = {
        let view = shared.state.view();
        let service = view.snapshot.service_by_host(&to.host).iter().find(|service| service.port(to.port).is_some());
        match service {
            None => None,
            Some(service) => {
                let cluster = ClusterKey { service: service.key(), port: to.port, subset: Default::default() };
                let mut rng = SmallRng::from_rng(&mut rand::rng());
                let own = &shared.own;
                let wish = Wish::new(&view, own, shared.now_ms());
                let (identity, namespace) = (Some(&own.identity), Some(&*own.identity.namespace));
                let client = Client { identity, namespace, labels: None };
                let found = choose::place(&shared.places, &wish, &cluster, &client);
                let chosen = found.and_then(|found| choose::endpoint(&found, &wish, &mut rng));
                Some(chosen.map_err(|error| PostError::Connect(error.to_string()))?)
            }
        }
    };
    let Some(endpoint) = endpoint else {
        let tcp = TcpStream::connect((&*to.host, to.port)).await;
        return tcp.map(Wire::Tcp).map_err(|error| PostError::Connect(error.to_string()));
    };
    let ip = shared.own.ip_like(endpoint.address.ip()).unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
    let own = shared.own.on_behalf_of(SocketAddr::new(ip, 0));
    let inside = if to.kind == CollectorKind::OtlpGrpc { Inside::Http2 } else { Inside::Http1 };
    dial(shared, &endpoint, &own, inside).await.map_err(|error| PostError::Connect(error.to_string()))
}
