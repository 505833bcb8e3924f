//! A collector of spans: takes OTLP over HTTP, and tells of each span in a line of JSON. Reads the few fields that a test asks for.
use super::servers::{listen, runtime};
use anyhow::{Context, Result};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use prost::Message;
use serde_json::json;
use std::convert::Infallible;

#[derive(Clone, PartialEq, Message)]
struct Export {
    #[prost(message, repeated, tag = "1")]
    resources: Vec<Resource>,
}

#[derive(Clone, PartialEq, Message)]
struct Resource {
    #[prost(message, repeated, tag = "2")]
    scopes: Vec<Scope>,
}

#[derive(Clone, PartialEq, Message)]
struct Scope {
    #[prost(message, repeated, tag = "2")]
    spans: Vec<Span>,
}

#[derive(Clone, PartialEq, Message)]
struct Span {
    #[prost(bytes = "vec", tag = "1")]
    trace: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    id: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    parent: Vec<u8>,
    #[prost(string, tag = "5")]
    name: String,
    #[prost(int32, tag = "6")]
    kind: i32,
    #[prost(message, repeated, tag = "9")]
    tags: Vec<Tag>,
}

#[derive(Clone, PartialEq, Message)]
struct Tag {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(message, optional, tag = "2")]
    value: Option<Text>,
}

#[derive(Clone, PartialEq, Message)]
struct Text {
    #[prost(string, tag = "1")]
    text: String,
}

/// Takes what is sent to a port.
pub fn run(port: u16) -> Result<()> {
    let listener = listen(port, false)?;
    listener.set_nonblocking(true).context("set non-blocking")?;
    runtime()?.block_on(async {
        let listener = tokio::net::TcpListener::from_std(listener).context("adopt listener")?;
        println!("ready");
        loop {
            let Ok((stream, _)) = listener.accept().await else { continue };
            tokio::spawn(async move {
                let connection = hyper::server::conn::http1::Builder::new();
                let _ = connection.serve_connection(TokioIo::new(stream), service_fn(take)).await;
            });
        }
    })
}

async fn take(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let is_traces = request.uri().path() == "/v1/traces";
    let body = request.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let mut response = Response::new(Full::default());
    match Export::decode(body).ok().filter(|_| is_traces) {
        Some(export) => export.resources.iter().flat_map(|one| &one.scopes).flat_map(|one| &one.spans).for_each(tell),
        None => *response.status_mut() = StatusCode::BAD_REQUEST,
    }
    Ok(response)
}

fn tell(span: &Span) {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let text = |tag: &Tag| (tag.key.clone(), json!(tag.value.clone().unwrap_or_default().text));
    let tags: serde_json::Map<_, _> = span.tags.iter().map(text).collect();
    let line = json!({
        "trace": hex(&span.trace), "id": hex(&span.id), "parent": hex(&span.parent), "name": span.name, "kind": span.kind, "tags": tags,
    });
    println!("{line}");
}
