//! What operators see of requests: lines of the access log.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    non_snake_case,
    reason = "tests carry the ids of the rows that they prove"
)]

mod support;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use mesh_core::l7::cluster::Policy;
use mesh_core::l7::{
    Abort, AbortStatus, Action, Cluster, ClusterKey, Clusters, Condition, Delay, DirectResponse, Fault, Forward,
    Handling, PathKind, Retries, Rule, Share,
};
use mesh_core::telemetry::{AccessLog, LogFormat, Scopes, Telemetry};
use mesh_waypoint::Settings;
use serde_json::Value;
use support::*;
use tokio::io::AsyncWriteExt;

const VIP: &str = "10.96.0.10";
const ASK: &str = "10.96.0.10:80";

/// A log in a folder of the test's.
struct Log {
    _folder: tempfile::TempDir,
    path: PathBuf,
}

impl Log {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self { path: folder.path().join("log"), _folder: folder }
    }

    fn form(&self, format: LogFormat, filter: Option<&str>) -> AccessLog {
        AccessLog { path: path(&self.path).into(), format, filter: filter.map(Into::into) }
    }

    /// Waits for that many lines.
    async fn lines(&self, count: usize) -> Vec<String> {
        soon("lines", async {
            loop {
                let text = std::fs::read_to_string(&self.path).unwrap_or_default();
                if text.lines().count() >= count && text.ends_with('\n') {
                    return text.lines().map(str::to_owned).collect();
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await
    }
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn with(logs: Vec<AccessLog>) -> Settings {
    let waypoint = Arc::new(Telemetry { logs, ..Telemetry::default() });
    Settings { telemetry: Scopes { waypoint, ..Scopes::default() }, ..Settings::default() }
}

fn at(path: &str, handling: Handling) -> Rule {
    let condition = Condition { path: Some(PathKind::Exact(path.into()).into()), ..Condition::default() };
    Rule { conditions: vec![condition], handling: handling.into() }
}

/// The alternative has a name of its own.
fn named(path: &str, name: &str, handling: Handling) -> Rule {
    let path = Some(PathKind::Exact(path.into()).into());
    let condition = Condition { name: name.into(), path, ..Condition::default() };
    Rule { conditions: vec![condition], handling: handling.into() }
}

/// One line for each request, with what has become of it.
#[tokio::test]
async fn features_B30_each_request_has_a_line_with_its_flags() {
    let app = echo("app").await;
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    let never = server(move |request: Request<Incoming>| {
        let _ = tell.send(request.uri().path().to_owned());
        std::future::pending::<Response<Full<Bytes>>>()
    })
    .await;
    let backends = [
        Backend::new("app", VIP, &[app]),
        Backend::new("none", "10.96.0.11", &[]),
        Backend::new("gone", "10.96.0.12", &[nobody().await]),
        Backend::new("never", "10.96.0.13", &[never]),
    ];
    let delay = Some(Delay { time: Duration::from_millis(1), share: Share::ALWAYS });
    let abort = Some(Abort { status: AbortStatus::Http(StatusCode::IM_A_TEAPOT), share: Share::ALWAYS });
    let tea = DirectResponse { status: StatusCode::FORBIDDEN, body: Bytes::from_static(b"tea") };
    let rules = vec![
        at("/ok", Handling { name: "fine".into(), ..to("app") }),
        at("/fi", Handling { fault: Some(Fault { delay: None, abort }), ..to("app") }),
        at("/di", Handling { fault: Some(Fault { delay, abort: None }), ..to("app") }),
        at("/uh", to("none")),
        at("/uf", Handling { retries: Retries::default(), ..to("gone") }),
        at("/ut", Handling { timeout: Some(Duration::from_millis(50)), ..to("never") }),
        at("/dc", to("never")),
        at("/tea", Handling::new(Action::Respond(tea))),
        named("/named", "fine.well", Handling { name: "fine".into(), ..to("app") }),
    ];
    let log = Log::new();
    let waypoint =
        Waypoint::with(&backends, table("app", rules), with(vec![log.form(LogFormat::Json(Vec::new()), None)])).await;
    let paths = ["/ok?a=b", "/fi", "/di", "/uh", "/uf", "/ut", "/other", "/tea", "/named"];
    for path in paths {
        waypoint.ask(ASK, get(path)).await;
    }
    let mut stream = waypoint.stream(ASK).await.unwrap();
    stream.write_all(b"GET /dc HTTP/1.1\r\nhost: shop\r\n\r\n").await.unwrap();
    while soon("request", told.recv()).await.unwrap() != "/dc" {}
    drop(stream);
    let lines: Vec<Value> = log
        .lines(10)
        .await
        .iter()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{line}: {e}")))
        .collect();
    let of = |path: &str| lines.iter().find(|line| line["path"] == path).unwrap_or_else(|| panic!("{path}: {lines:?}"));
    for (path, code, flags, details) in [
        ("/ok?a=b", 200, "-", "via_upstream"),
        ("/fi", 418, "FI", "fault_filter_abort"),
        ("/di", 200, "DI", "via_upstream"),
        ("/uh", 503, "UH", "no_healthy_upstream"),
        ("/uf", 503, "UF,URX", "upstream_reset_before_response_started{connection_failure}"),
        ("/ut", 504, "UT", "response_timeout"),
        ("/other", 404, "NR", "route_not_found"),
        // No policy has refused it.
        ("/tea", 403, "-", "direct_response"),
        ("/dc", 0, "DC", "downstream_remote_disconnect"),
    ] {
        let line = of(path);
        let found = (&line["response_code"], &line["response_flags"], &line["response_code_details"]);
        assert_eq!(found, (&Value::from(code), &Value::from(flags), &Value::from(details)), "{path}");
    }
    let (fine, at_app) = (of("/ok?a=b"), app.to_string());
    for (key, expected) in [
        ("method", "GET"),
        ("authority", "shop"),
        ("protocol", "HTTP/1.1"),
        ("route_name", "fine"),
        ("upstream_host", at_app.as_str()),
        ("upstream_cluster", "inbound-vip|80|http|app.shop.svc.cluster.local"),
        ("downstream_local_address", ASK),
        ("src.identity", CLIENT),
        ("dst.identity", "spiffe://cluster.local/ns/shop/sa/app"),
        ("dst.service", "app.shop.svc.cluster.local"),
        ("dst.workload", "app"),
    ] {
        assert_eq!(fine[key], expected, "{key}");
    }
    assert!(fine["duration"].is_u64() && fine["upstream_service_time"].is_string(), "{fine}");
    assert_eq!((&of("/uf")["attempts"], &of("/uh")["upstream_host"]), (&Value::from(3), &Value::Null));
    assert_eq!(log.lines(10).await.len(), 10);
    assert_eq!((&of("/named")["route_name"], &of("/tea")["route_name"]), (&Value::from("fine.well"), &Value::Null));
}

#[tokio::test]
async fn features_B30_a_line_names_the_place_that_the_request_went_to() {
    let app = echo("app").await;
    let subset = ClusterKey { subset: "v2".into(), ..cluster("other") };
    let rules = vec![
        at("/other", to("other")),
        at("/v2", Handling::new(Action::Forward(Forward::to(subset.clone())))),
        rule(to("app")),
    ];
    let log = Log::new();
    let logs = vec![log.form(LogFormat::Text("%REQ(:PATH)% %UPSTREAM_CLUSTER%\n".into()), None)];
    let backends = [Backend::new("app", VIP, &[app]), Backend::new("other", "10.96.0.11", &[app])];
    let waypoint = Waypoint::with(&backends, table("app", rules), with(logs)).await;
    let said = Cluster { policy: Ok(Policy::default()), ..Cluster::closed(subset, "") };
    waypoint.state.set_clusters(Arc::new(Clusters::new([said])));
    for path in ["/", "/other", "/v2"] {
        assert_eq!(waypoint.ask(ASK, get(path)).await.status(), StatusCode::OK, "{path}");
    }
    let expected = [
        "/ inbound-vip|80|http|app.shop.svc.cluster.local",
        "/other inbound-vip|80|http|other.shop.svc.cluster.local",
        "/v2 inbound-vip|80|http/v2|other.shop.svc.cluster.local",
    ];
    assert_eq!(log.lines(3).await, expected);
}

/// Whoever looks for an attack looks here.
#[tokio::test]
async fn features_B30_what_is_refused_while_it_is_read_has_a_line_too() {
    let app = echo("app").await;
    let log = Log::new();
    let format = "%RESPONSE_CODE% %RESPONSE_FLAGS% %REQ(:METHOD)% %REQ(:AUTHORITY)% %REQ(:PATH)% %REQ(USER-AGENT)% %REQ(X-FORWARDED-FOR)% %RESPONSE_CODE_DETAILS%\n";
    let logs = vec![log.form(LogFormat::Text(format.into()), None)];
    let waypoint = Waypoint::with(&[Backend::new("app", VIP, &[app])], Default::default(), with(logs)).await;
    for (count, (request, expected)) in [
        (
            "GET /a/..%2fadmin?x HTTP/1.1\r\nhost: shop\r\nx-forwarded-for: 8.8.8.8",
            "400 - GET shop /a/..%2fadmin?x - - request_headers_failed_strict_check",
        ),
        (
            "GET /b HTTP/1.1\r\nhost: shop\r\nhost: other\r\nuser-agent: probe",
            "400 - GET shop /b probe - request_headers_failed_strict_check",
        ),
        ("TRACE /c HTTP/1.1\r\nhost: shop", "405 - TRACE shop /c - - method_not_allowed"),
        (
            "GET http://other/d HTTP/1.1\r\nhost: shop\r\nexpect: tea",
            "417 - GET other /d - - request_headers_failed_strict_check",
        ),
        ("GET /e HTTP/1.1\r\nhost: shop\r\nx-mesh-hops: 255", "508 - GET shop /e - - loop_detected"),
    ]
    .into_iter()
    .enumerate()
    {
        let answer = waypoint.raw(ASK, format!("{request}\r\nconnection: close\r\n\r\n").as_bytes()).await;
        assert!(answer.contains(&expected[..3]), "{request}: {answer}");
        assert_eq!(log.lines(count + 1).await[count], expected, "{request}");
    }
}

#[tokio::test]
async fn features_B30_a_filter_keeps_requests_back() {
    let app = echo("app").await;
    let tea = DirectResponse { status: StatusCode::IM_A_TEAPOT, body: Bytes::new() };
    let rules = vec![at("/tea", Handling::new(Action::Respond(tea))), rule(to("app"))];
    let text = |format: &str| LogFormat::Text(format.into());
    let (bad, all, user) = (Log::new(), Log::new(), Log::new());
    let logs = vec![
        bad.form(text("%REQ(:PATH)% %RESPONSE_CODE% %RESP(:STATUS)%\n"), Some("response.code >= 400")),
        // It is none, so it keeps nothing back.
        all.form(text("%REQ(:PATH)%\n"), Some("response.cod >= 400")),
        user.form(text("%REQ(:PATH)% %REQ(X-USER):3%\n"), Some("request.headers['x-user'].startsWith('jas')")),
    ];
    let waypoint = Waypoint::with(&[Backend::new("app", VIP, &[app])], table("app", rules), with(logs)).await;
    waypoint.ask(ASK, get("/a")).await;
    waypoint.ask(ASK, get("/tea")).await;
    let mut named = get("/b");
    named.headers_mut().insert("x-user", HeaderValue::from_static("jason"));
    waypoint.ask(ASK, named).await;
    assert_eq!(all.lines(3).await, ["/a", "/tea", "/b"]);
    assert_eq!(bad.lines(1).await, ["/tea 418 418"]);
    assert_eq!(user.lines(1).await, ["/b jas"]);
}

#[tokio::test]
async fn what_a_client_writes_does_not_end_a_line() {
    let app = echo("app").await;
    let log = Log::new();
    let logs = vec![log.form(LogFormat::Text("\"%REQ(X-EVIL)%\" %BYTES_RECEIVED%\n".into()), None)];
    let waypoint = Waypoint::with(&[Backend::new("app", VIP, &[app])], Default::default(), with(logs)).await;
    let mut request = get("/");
    request.headers_mut().insert("x-evil", HeaderValue::from_bytes(b"a\" 7\tb\xe2\x80\xa8c\xff").unwrap());
    waypoint.ask(ASK, request).await;
    let mut request = get("/");
    request.headers_mut().insert("x-evil", HeaderValue::from_str(&"x".repeat(20_000)).unwrap());
    waypoint.ask(ASK, request).await;
    let lines = log.lines(2).await;
    assert_eq!(lines[0], "\"a\\\" 7\\u{9}b\\u{2028}c\u{fffd}\" 0");
    assert_eq!(lines[1].len(), 4096 + 4);
}

#[tokio::test]
async fn a_change_counts_for_the_next_request_and_single_services_may_have_their_own() {
    let app = echo("app").await;
    let backends = [Backend::new("app", VIP, &[app]), Backend::new("other", "10.96.0.11", &[app])];
    let waypoint = Waypoint::start(&backends, Default::default()).await;
    let (log, own) = (Log::new(), Log::new());
    let telemetry = |log: &Log| {
        let logs = vec![log.form(LogFormat::Text("%DESTINATION_SERVICE%\n".into()), None)];
        Arc::new(Telemetry { logs, ..Telemetry::default() })
    };
    waypoint.ask(ASK, get("/")).await;
    let services = [(name("other"), telemetry(&own))].into();
    waypoint.engine.shared().set_telemetry(&Scopes { waypoint: telemetry(&log), services });
    waypoint.ask(ASK, get("/")).await;
    waypoint.ask("10.96.0.11:80", get("/")).await;
    assert_eq!(log.lines(1).await, ["app.shop.svc.cluster.local"]);
    assert_eq!(own.lines(1).await, ["other.shop.svc.cluster.local"]);
}

#[tokio::test]
async fn features_TM_the_log_says_when_all_of_a_request_was_here() {
    const PAUSE: Duration = Duration::from_millis(60);
    let log = Log::new();
    let form = LogFormat::Text("%REQ(:METHOD)% %REQUEST_DURATION%\n".into());
    let settings = with(vec![log.form(form, None)]);
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    let app = server(move |request: Request<Incoming>| {
        let tell = tell.clone();
        async move {
            if request.method() == http::Method::POST {
                let _ = tell.send(());
            }
            let _ = request.into_body().collect().await;
            Response::new(Full::<Bytes>::default())
        }
    })
    .await;
    let deny = DirectResponse { status: StatusCode::FORBIDDEN, body: Bytes::new() };
    let rules = vec![at("/deny", Handling::new(Action::Respond(deny))), at("/", to("app"))];
    let waypoint = Waypoint::with(&[Backend::new("app", VIP, &[app])], table("app", rules), settings).await;
    waypoint.ask(ASK, get("/")).await;
    assert_eq!(log.lines(1).await, ["GET 0"]);
    // One whose body nobody has waited for.
    let body = b"PUT /deny HTTP/1.1\r\nhost: shop\r\ncontent-length: 4\r\nconnection: close\r\n\r\n";
    waypoint.raw(ASK, body).await;
    assert_eq!(log.lines(2).await[1], "PUT -");
    let mut stream = waypoint.stream(ASK).await.unwrap();
    stream.write_all(b"POST / HTTP/1.1\r\nhost: shop\r\ncontent-length: 4\r\n\r\nsl").await.unwrap();
    // It is there, and waits for the rest.
    soon("request", told.recv()).await.unwrap();
    tokio::time::sleep(PAUSE).await;
    stream.write_all(b"ow").await.unwrap();
    let lines = log.lines(3).await;
    let took: u128 =
        lines[2].strip_prefix("POST ").and_then(|took| took.parse().ok()).unwrap_or_else(|| panic!("{lines:?}"));
    assert!(took >= PAUSE.as_millis(), "{lines:?}");
}
