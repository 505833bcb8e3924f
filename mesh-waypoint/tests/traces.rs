//! What operators see of requests: spans, as a collector gets them, and what others are told of the trace.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    non_snake_case,
    reason = "tests carry the ids of the rows that they prove"
)]

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use mesh_core::l7::{Retries, Share, Table};
use mesh_core::telemetry::{Collector, CollectorKind, Scopes, SpanTag, Telemetry, Tracing};
use mesh_waypoint::Settings;
use prost::Message;
use serde_json::Value;
use support::*;
use tokio::sync::mpsc;

const VIP: &str = "10.96.0.10";
const ASK: &str = "10.96.0.10:80";
const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const SPAN: &str = "b7ad6b7169203331";

/// A span as a test looks at it.
#[derive(Clone, Debug, Default)]
struct Seen {
    trace: String,
    id: String,
    parent: String,
    server: bool,
    name: String,
    failed: bool,
    tags: BTreeMap<String, String>,
}

/// A collector that takes whatever is sent.
async fn collector() -> (std::net::SocketAddr, mpsc::UnboundedReceiver<(String, Bytes)>) {
    let (tell, told) = mpsc::unbounded_channel();
    let address = server(move |request: Request<Incoming>| {
        let tell = tell.clone();
        async move {
            let path = request.uri().path().to_owned();
            let body = request.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
            let grpc = path.ends_with("/Export");
            let _ = tell.send((path, body));
            let trailers = HeaderMap::from_iter([("grpc-status".parse().unwrap(), HeaderValue::from_static("0"))]);
            let frames = grpc.then(|| Ok::<_, std::convert::Infallible>(Frame::trailers(trailers)));
            Response::new(StreamBody::new(futures_util::stream::iter(frames)))
        }
    })
    .await;
    (address, told)
}

fn to_collector(kind: CollectorKind, at: std::net::SocketAddr) -> Collector {
    let (path, headers) = (Default::default(), vec![("x-token".into(), "t".into())]);
    Collector { kind, host: at.ip().to_string().into(), port: at.port(), path, headers }
}

fn with(tracing: Tracing) -> Settings {
    let waypoint = Arc::new(Telemetry { tracing: Some(tracing), ..Telemetry::default() });
    let telemetry = Scopes { waypoint, ..Scopes::default() };
    Settings { telemetry, span_flush: Duration::from_millis(20), ..Settings::default() }
}

fn always(collector: Collector) -> Tracing {
    Tracing { collector: Some(collector), share: Share::ALWAYS, ..Tracing::default() }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Reads the protobuf by hand: only what is asked here, by the numbers of its fields.
fn otlp(bytes: &[u8]) -> Vec<Seen> {
    #[derive(Clone, PartialEq, Message)]
    struct Many {
        #[prost(bytes = "vec", repeated, tag = "1")]
        one: Vec<Vec<u8>>,
        #[prost(bytes = "vec", repeated, tag = "2")]
        two: Vec<Vec<u8>>,
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
        #[prost(int64, tag = "3")]
        number: i64,
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
        #[prost(fixed64, tag = "7")]
        start: u64,
        #[prost(fixed64, tag = "8")]
        end: u64,
        #[prost(message, repeated, tag = "9")]
        tags: Vec<Tag>,
        #[prost(bytes = "vec", optional, tag = "15")]
        status: Option<Vec<u8>>,
    }
    let mut seen = Vec::new();
    for resource in Many::decode(bytes).unwrap().one {
        let resource = Many::decode(&*resource).unwrap();
        let named = Tag::decode(&*Many::decode(&*resource.one[0]).unwrap().one[0]).unwrap();
        assert_eq!((&*named.key, &*named.value.unwrap().text), ("service.name", "waypoint.shop"));
        for scope in resource.two {
            for span in Many::decode(&*scope).unwrap().two {
                let span = Span::decode(&*span).unwrap();
                assert!(span.end > span.start && span.start > 1_700_000_000_000_000_000);
                let text = |tag: Tag| {
                    let value = tag.value.unwrap();
                    (tag.key, if value.text.is_empty() { value.number.to_string() } else { value.text })
                };
                seen.push(Seen {
                    trace: hex(&span.trace),
                    id: hex(&span.id),
                    parent: hex(&span.parent),
                    server: span.kind == 2,
                    name: span.name,
                    failed: span.status.is_some_and(|status| status == [0x18, 2]),
                    tags: span.tags.into_iter().map(text).collect(),
                });
            }
        }
    }
    seen
}

fn zipkin(bytes: &[u8]) -> Vec<Seen> {
    let Value::Array(spans) = serde_json::from_slice(bytes).unwrap() else { panic!("no array") };
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let one = |span: &Value| {
        assert_eq!(span["localEndpoint"]["serviceName"], "waypoint.shop");
        assert!(span["timestamp"].as_u64() > Some(1_700_000_000_000_000) && span["duration"].as_u64() > Some(0));
        let tags = span["tags"].as_object().unwrap();
        Seen {
            trace: text(&span["traceId"]),
            id: text(&span["id"]),
            parent: text(&span["parentId"]),
            server: span["kind"] == "SERVER",
            name: text(&span["name"]),
            failed: tags.get("error").is_some(),
            tags: tags.iter().map(|(key, value)| (key.clone(), text(value))).collect(),
        }
    };
    spans.iter().map(one).collect()
}

async fn spans(told: &mut mpsc::UnboundedReceiver<(String, Bytes)>, count: usize) -> Vec<Seen> {
    let mut seen = Vec::new();
    while seen.len() < count {
        let (path, body) = soon("spans", told.recv()).await.unwrap();
        seen.extend(match &*path {
            "/opentelemetry.proto.collector.trace.v1.TraceService/Export" => {
                let length = u32::from_be_bytes(body[1..5].try_into().unwrap());
                assert_eq!((body[0], length as usize), (0, body.len() - 5));
                otlp(&body[5..])
            }
            "/v1/traces" => otlp(&body),
            "/api/v2/spans" => zipkin(&body),
            other => panic!("{other}"),
        });
    }
    assert_eq!(seen.len(), count);
    seen
}

/// A client's span, the waypoint's, and one for each attempt: each the child of the one before, over each protocol.
#[tokio::test]
async fn features_B31_a_collector_gets_spans_with_the_right_parents() {
    for kind in [CollectorKind::OtlpGrpc, CollectorKind::OtlpHttp, CollectorKind::Zipkin] {
        let (at, mut told) = collector().await;
        let (app, mut asked) = noting(StatusCode::SERVICE_UNAVAILABLE).await;
        let mut handling = to("app");
        handling.retries = Retries { attempts: 1, ..Retries::default() };
        handling.retries.on.statuses.push(503);
        let table = table("app", vec![rule(handling)]);
        let tags =
            [("who".into(), SpanTag::Header("X-User".into(), None)), ("lit".into(), SpanTag::Literal("l".into()))];
        let tracing = Tracing { tags: tags.into(), ..always(to_collector(kind, at)) };
        let waypoint = Waypoint::with(&[Backend::new("app", VIP, &[app])], table, with(tracing)).await;
        let mut request = get("/a?b");
        let parent = format!("00-{TRACE}-{SPAN}-01");
        request.headers_mut().insert("traceparent", HeaderValue::from_str(&parent).unwrap());
        request.headers_mut().insert("tracestate", HeaderValue::from_static("v=1"));
        request.headers_mut().insert("x-user", HeaderValue::from_static("jason"));
        waypoint.ask(ASK, request).await;
        let seen = spans(&mut told, 3).await;
        let server = seen.iter().find(|span| span.server).unwrap();
        assert!(seen.iter().all(|span| span.trace == TRACE), "{kind:?} {seen:#?}");
        assert_eq!((&*server.parent, &*server.name), (SPAN, "app.shop.svc.cluster.local:80/*"));
        for (tag, value) in [
            ("http.method", "GET"),
            ("http.url", "http://shop/a?b"),
            ("http.status_code", "503"),
            ("who", "jason"),
            ("lit", "l"),
            ("istio.namespace", "shop"),
            ("upstream_cluster", "inbound-vip|80|http|app.shop.svc.cluster.local"),
        ] {
            assert_eq!(server.tags.get(tag).map(String::as_str), Some(value), "{kind:?} {tag}");
        }
        let mut clients: Vec<_> = seen.iter().filter(|span| !span.server).collect();
        assert_eq!(clients.len(), 2);
        assert!(server.failed && clients.iter().all(|span| span.failed && span.parent == server.id));
        // What the endpoint was told is the span of the attempt.
        let mut told_ids = Vec::new();
        for _ in 0..2 {
            let headers = soon("request", asked.recv()).await.unwrap();
            let headers = headers.headers();
            let parts: Vec<_> = headers["traceparent"].to_str().unwrap().split('-').map(str::to_owned).collect();
            assert_eq!((&*parts[1], &*parts[3], &headers["tracestate"]), (TRACE, "01", &"v=1".parse().unwrap()));
            assert_eq!(headers.contains_key("x-b3-traceid"), kind == CollectorKind::Zipkin);
            told_ids.push(parts[2].clone());
        }
        clients.sort_by_key(|span| told_ids.iter().position(|id| *id == span.id));
        let found: Vec<_> = clients.iter().map(|span| &span.id).collect();
        assert_eq!(found, told_ids.iter().collect::<Vec<_>>());
        let sent =
            || waypoint.engine.shared().telemetry.exporters.counts().sent.load(std::sync::atomic::Ordering::Relaxed);
        soon("count", async {
            while sent() < 3 {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }
}

#[tokio::test]
async fn features_TM_10_garbage_is_not_sent_on_and_without_tracing_nothing_is_changed() {
    let (app, mut asked) = noting(StatusCode::OK).await;
    let tracing = Tracing { collector: None, ..Tracing::default() };
    let waypoint = Waypoint::with(&[Backend::new("app", VIP, &[app])], Table::default(), with(tracing)).await;
    for (name, value, style) in [
        ("traceparent", "00-garbage", "traceparent"),
        ("b3", "x", "b3"),
        ("x-b3-traceid", "123", "x-b3-traceid"),
        ("x-none", "1", "traceparent"),
    ] {
        let mut request = get("/");
        request.headers_mut().insert(name, HeaderValue::from_static(value));
        waypoint.ask(ASK, request).await;
        let headers = soon("request", asked.recv()).await.unwrap().headers().clone();
        // A trace of its own begins, said in the client's way too; nobody records it.
        let (w3c, said) = (headers["traceparent"].to_str().unwrap(), headers[style].to_str().unwrap());
        assert!(w3c.len() == 55 && w3c.ends_with("-00") && said.contains(&w3c[3..35]), "{name}: {headers:?}");
        assert_eq!(headers.get("x-b3-sampled").is_some(), name == "x-b3-traceid");
    }
    let plain = Waypoint::start(&[Backend::new("app", VIP, &[app])], Table::default()).await;
    let mut request = get("/");
    request.headers_mut().insert("b3", HeaderValue::from_static("0"));
    plain.ask(ASK, request).await;
    let headers = soon("request", asked.recv()).await.unwrap().headers().clone();
    assert!(headers["b3"] == "0" && !headers.contains_key("traceparent"), "{headers:?}");
}

#[tokio::test]
async fn the_client_decides_what_is_recorded_and_request_ids_tell() {
    let (at, mut told) = collector().await;
    let (app, mut asked) = noting(StatusCode::OK).await;
    let tracing = always(to_collector(CollectorKind::Zipkin, at));
    let waypoint = Waypoint::with(&[Backend::new("app", VIP, &[app])], Table::default(), with(tracing)).await;
    let mut request = get("/not");
    request.headers_mut().insert("b3", HeaderValue::from_static("0"));
    waypoint.ask(ASK, request).await;
    let headers = soon("request", asked.recv()).await.unwrap().headers().clone();
    assert_eq!((&headers["x-b3-sampled"], &headers["x-request-id"].as_bytes()[14]), (&"0".parse().unwrap(), &b'4'));
    waypoint.ask(ASK, get("/yes")).await;
    let headers = soon("request", asked.recv()).await.unwrap().headers().clone();
    assert_eq!((&headers["x-b3-sampled"], &headers["x-request-id"].as_bytes()[14]), (&"1".parse().unwrap(), &b'9'));
    let seen = spans(&mut told, 2).await;
    assert!(seen.iter().all(|span| span.tags["http.url"] == "http://shop/yes"), "{seen:?}");
}

#[tokio::test]
async fn a_collector_that_is_away_costs_spans_and_no_request() {
    let app = echo("app").await;
    let tracing = always(to_collector(CollectorKind::OtlpHttp, nobody().await));
    let waypoint = Waypoint::with(&[Backend::new("app", VIP, &[app])], Table::default(), with(tracing)).await;
    assert_eq!(waypoint.ask(ASK, get("/")).await.status(), StatusCode::OK);
    let counts = &waypoint.engine.shared().telemetry.exporters;
    soon("count", async {
        while counts.counts().dropped.load(std::sync::atomic::Ordering::Relaxed) < 2 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(counts.counts().sent.load(std::sync::atomic::Ordering::Relaxed), 0);
}
