//! How many requests there may be: counted by the waypoint, and by a service that counts for many.
#![allow(clippy::unwrap_used, non_snake_case, reason = "tests carry the ids of the rows that they prove")]

mod support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use mesh_core::NamespacedName;
use mesh_core::l7::limit::{Descriptor, Entry, Global, Local, Part, Rate, RateLimit, Value};
use mesh_core::l7::policy::{List, Operation, PathPattern, Rule};
use mesh_core::l7::{Security, SecurityTarget, Table};
use mesh_proto::rate_limit as wire;
use mesh_proto::rate_limit::rate_limit_service_server::{RateLimitService, RateLimitServiceServer};
use support::*;
use tokio::sync::mpsc;

const VIP: &str = "10.96.0.10";
const ASKED: &str = "10.96.0.10:80";

/// Says of a descriptor that it is over if the value of its last entry is `over`, and tells what it was asked.
struct Counts(mpsc::UnboundedSender<wire::RateLimitRequest>);

#[tonic::async_trait]
impl RateLimitService for Counts {
    async fn should_rate_limit(
        &self,
        request: tonic::Request<wire::RateLimitRequest>,
    ) -> Result<tonic::Response<wire::RateLimitResponse>, tonic::Status> {
        let request = request.into_inner();
        let last = request.descriptors.last().and_then(|one| one.entries.last()).map(|entry| entry.value.clone());
        self.0.send(request).unwrap();
        let header = |key: &str| wire::Header { key: key.into(), value: "1".into(), raw_value: Vec::new() };
        let code = match last.as_deref() {
            Some("over") => wire::Code::OverLimit,
            Some("broken") => return Err(tonic::Status::unavailable("broken")),
            Some("unknown") => wire::Code::Unknown,
            _ => wire::Code::Ok,
        };
        let limit = wire::CurrentLimit { requests_per_unit: 5, unit: wire::Unit::Hour.into() };
        let status = wire::DescriptorStatus {
            code: code.into(),
            current_limit: Some(limit),
            limit_remaining: 3,
            duration_until_reset: Some(prost_duration(90)),
        };
        Ok(tonic::Response::new(wire::RateLimitResponse {
            overall_code: code.into(),
            statuses: vec![status],
            response_headers_to_add: vec![header("x-told")],
            request_headers_to_add: vec![header("x-counted")],
            raw_body: b"slow down".to_vec(),
        }))
    }
}

fn prost_duration(seconds: i64) -> prost_types::Duration {
    prost_types::Duration { seconds, nanos: 0 }
}

async fn counting() -> (SocketAddr, mpsc::UnboundedReceiver<wire::RateLimitRequest>) {
    let (tell, told) = mpsc::unbounded_channel();
    let listener = listener().await;
    let address = listener.local_addr().unwrap();
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    let server = tonic::transport::Server::builder().add_service(RateLimitServiceServer::new(Counts(tell)));
    tokio::spawn(server.serve_with_incoming(incoming));
    (address, told)
}

fn user() -> Part {
    Part::Header(HeaderName::from_static("x-user"))
}

fn local(by: Vec<Part>, requests: u32, per: Duration) -> Local {
    let paths = List { is: vec![PathPattern::new("/productpage").unwrap()], not: vec![] };
    let rule = Rule { to: vec![Operation { paths, ..Operation::default() }], ..Rule::default() };
    Local { rules: vec![rule], by, rate: Rate { requests, per, burst: requests } }
}

fn limit(local: Vec<Local>, global: Option<Global>) -> RateLimit {
    RateLimit { name: NamespacedName::new("shop", "limit"), target: SecurityTarget::All, local, global }
}

fn global() -> Global {
    let entry = |key: &str, value| Entry { key: key.into(), value };
    let entries = vec![entry("client", Value::Of(Part::Principal)), entry("user", Value::Of(user()))];
    Global {
        domain: "shop".into(),
        place: Some(cluster("counts")),
        timeout: Duration::from_secs(10),
        fail_open: true,
        descriptors: vec![Descriptor { rules: vec![], entries }],
    }
}

fn security(limits: Vec<RateLimit>) -> Option<Arc<Security>> {
    Some(Arc::new(Security { limits: limits.into_iter().map(Arc::new).collect(), ..Security::default() }))
}

fn ask(path: &str, user: &str) -> Request<Full<Bytes>> {
    let mut request = get(path);
    request.headers_mut().insert("x-user", user.parse().unwrap());
    request
}

fn header<'a>(answer: &'a Response<Bytes>, name: &str) -> &'a str {
    answer.headers().get(name).map_or("", |value| value.to_str().unwrap())
}

async fn shop(counts: SocketAddr) -> Waypoint {
    let app = echo("app").await;
    let counts = Backend { bound: false, ..Backend::new("counts", "10.96.0.20", &[counts]) };
    Waypoint::start(&[Backend::new("app", VIP, &[app]), counts], Table::default()).await
}

#[tokio::test]
async fn features_B33_the_second_request_of_a_minute_is_refused() {
    let waypoint = shop(nobody().await).await;
    let minute = Duration::from_secs(60);
    waypoint.state.set_security(security(vec![limit(vec![local(vec![], 1, minute)], None)]));
    assert_eq!(waypoint.ask(ASKED, get("/productpage")).await.status(), StatusCode::OK);
    let answer = waypoint.ask(ASKED, get("/productpage")).await;
    assert_eq!((answer.status().as_u16(), text(&answer)), (429, "local_rate_limited"));
    let said = ["x-ratelimit-limit", "x-ratelimit-remaining", "x-envoy-ratelimited"].map(|name| header(&answer, name));
    assert_eq!(said, ["1, 1;w=60", "0", "true"]);
    let wait: u64 = header(&answer, "retry-after").parse().unwrap();
    assert!((40..=60).contains(&wait) && header(&answer, "x-ratelimit-reset") == header(&answer, "retry-after"));
    // Another path is not meant, and what was counted outlives a change of something else.
    assert_eq!(waypoint.ask(ASKED, get("/other")).await.status(), StatusCode::OK);
    let other = RateLimit { name: NamespacedName::new("shop", "other"), ..limit(vec![], None) };
    waypoint.state.set_security(security(vec![other, limit(vec![local(vec![], 1, minute)], None)]));
    let mut request = get("/productpage");
    request.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
    let answer = waypoint.ask(ASKED, request).await;
    assert_eq!((header(&answer, "grpc-status"), header(&answer, "content-type")), ("14", "application/grpc"));
    let scrape = waypoint.scrape();
    assert!(
        scrape.contains("undermesh_request_policies_total{policy=\"shop/limit\",outcome=\"limited\"} 2"),
        "{scrape}"
    );
    assert!(scrape.contains("response_flags=\"RL\""), "{scrape}");
    // Of another service it says nothing.
    let elsewhere = SecurityTarget::Services(vec![name("counts")]);
    let elsewhere = RateLimit { target: elsewhere, ..limit(vec![local(vec![], 1, minute)], None) };
    waypoint.state.set_security(security(vec![elsewhere]));
    for _ in 0..3 {
        assert_eq!(waypoint.ask(ASKED, get("/productpage")).await.status(), StatusCode::OK);
    }
}

#[tokio::test]
async fn each_value_is_counted_for_itself_and_time_gives_back() {
    let waypoint = shop(nobody().await).await;
    let by_user = |per| security(vec![limit(vec![local(vec![Part::Principal, user()], 1, per)], None)]);
    waypoint.state.set_security(by_user(Duration::from_secs(60)));
    for (user, expected) in [("a", 200), ("b", 200), ("a", 429), ("b", 429), ("c", 200)] {
        assert_eq!(waypoint.ask(ASKED, ask("/productpage", user)).await.status().as_u16(), expected, "{user}");
    }
    waypoint.state.set_security(by_user(Duration::from_secs(1)));
    assert_eq!(waypoint.ask(ASKED, ask("/productpage", "a")).await.status(), StatusCode::OK);
    soon("a token", async { while waypoint.ask(ASKED, ask("/productpage", "a")).await.status() != StatusCode::OK {} })
        .await;
}

#[tokio::test]
async fn features_B33_a_service_counts_by_who_asks_and_what_is_asked() {
    let (counts, mut asked) = counting().await;
    let waypoint = shop(counts).await;
    waypoint.state.set_security(security(vec![limit(vec![], Some(global()))]));
    let answer = waypoint.ask(ASKED, ask("/a", "me")).await;
    assert_eq!((answer.status(), header(&answer, "x-told")), (StatusCode::OK, "1"));
    assert!(text(&answer).contains("x-counted: 1\n"), "{}", text(&answer));
    let told = asked.recv().await.unwrap();
    let entries = told.descriptors[0].entries.iter().map(|one| format!("{}={}", one.key, one.value));
    assert_eq!(
        (&*told.domain, entries.collect::<Vec<_>>()),
        ("shop", vec!["client=cluster.local/ns/shop/sa/client".to_owned(), "user=me".to_owned()])
    );
    let answer = waypoint.ask(ASKED, ask("/a", "over")).await;
    assert_eq!((answer.status().as_u16(), text(&answer)), (429, "slow down"));
    let said = ["x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset", "retry-after", "x-told"];
    assert_eq!(said.map(|name| header(&answer, name)), ["5, 5;w=3600", "0", "90", "90", "1"]);
    // It is not asked about what no descriptor means.
    while asked.try_recv().is_ok() {}
    assert_eq!(waypoint.ask(ASKED, get("/a")).await.status(), StatusCode::OK);
    assert!(asked.try_recv().is_err());
    assert!(waypoint.scrape().contains("response_flags=\"RL\""));
}

#[tokio::test]
async fn hardening_3_2_without_an_answer_requests_go_on_unless_they_must_not() {
    let (counts, _asked) = counting().await;
    let never = server(|_: Request<Incoming>| std::future::pending::<Response<Full<Bytes>>>()).await;
    let nobody = nobody().await;
    for (what, at, user) in [
        ("down", nobody, "me"),
        ("late", never, "me"),
        ("broken", counts, "broken"),
        ("no answer", counts, "unknown"),
        ("nowhere", counts, "me"),
    ] {
        let waypoint = shop(at).await;
        let timeout = Duration::from_millis(if at == never { 50 } else { 10_000 });
        let place = global().place.filter(|_| what != "nowhere");
        for (fail_open, expected) in [(true, 200), (false, 500)] {
            let one = Global { fail_open, timeout, place: place.clone(), ..global() };
            waypoint.state.set_security(security(vec![limit(vec![], Some(one))]));
            assert_eq!(waypoint.ask(ASKED, ask("/a", user)).await.status().as_u16(), expected, "{what}: {fail_open}");
        }
        let scrape = waypoint.scrape();
        for outcome in ["failed", "failed_open"] {
            let line = format!("undermesh_request_policies_total{{policy=\"shop/limit\",outcome=\"{outcome}\"}} 1");
            assert!(scrape.contains(&line), "{what}: {scrape}");
        }
        assert!(scrape.contains("response_flags=\"RLSE\""), "{what}: {scrape}");
    }
}
