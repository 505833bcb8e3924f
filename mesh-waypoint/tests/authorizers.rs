//! Requests that somebody else is asked about: external authorizers in both of Envoy's forms.
#![allow(clippy::unwrap_used, non_snake_case, reason = "tests carry the ids of the rows that they prove")]

mod support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use mesh_core::NamespacedName;
use mesh_core::l7::authorizer::{Authorizer, BodyShown, Form, HttpForm};
use mesh_core::l7::policy::{Action, Attribute, List, Operation, PathPattern, Policy, Rule, StringMatch, When};
use mesh_core::l7::{Condition, HeaderMatch, Security, SecurityTarget, Table, Text};
use mesh_core::service::AppProtocol;
use mesh_proto::ext_authz as wire;
use mesh_proto::ext_authz::authorization_server::{Authorization, AuthorizationServer};
use mesh_proto::ext_authz::check_response::HttpResponse;
use support::*;
use tokio::sync::mpsc;

const VIP: &str = "10.96.0.10";
const ASKED: &str = "10.96.0.10:80";

/// An authorizer of HTTP: lets `x-ext-authz: allow` through, and tells what it was asked.
async fn by_http() -> (SocketAddr, mpsc::UnboundedReceiver<Request<Bytes>>) {
    let (tell, told) = mpsc::unbounded_channel();
    let address = server(move |request: Request<Incoming>| {
        let tell = tell.clone();
        async move {
            let (parts, body) = request.into_parts();
            let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
            let said =
                parts.headers.get("x-ext-authz").and_then(|value| value.to_str().ok()).unwrap_or("deny").to_owned();
            let status = match said.as_str() {
                "allow" => 200,
                "broken" => 500,
                "login" => 302,
                _ => 403,
            };
            let body_of_answer = format!("{said} by http");
            let _ = tell.send(Request::from_parts(parts, body));
            Response::builder()
                .status(status)
                .header("x-checked", "yes")
                .header("x-why", said)
                .header("x-secret", "inner")
                .header("location", "/login")
                .body(Full::new(Bytes::from(body_of_answer)))
                .unwrap()
        }
    })
    .await;
    (address, told)
}

/// An authorizer of gRPC that does the same.
struct ByGrpc(mpsc::UnboundedSender<wire::Attributes>);

#[tonic::async_trait]
impl Authorization for ByGrpc {
    async fn check(
        &self,
        request: tonic::Request<wire::CheckRequest>,
    ) -> Result<tonic::Response<wire::CheckResponse>, tonic::Status> {
        let attributes = request.into_inner().attributes.unwrap();
        let headers = attributes.request.as_ref().unwrap().http.as_ref().unwrap().headers.clone();
        self.0.send(attributes).unwrap();
        let said = headers.get("x-ext-authz").map_or("deny", String::as_str);
        let option = |key: &str, value: &str| wire::HeaderOption {
            header: Some(wire::Header { key: key.into(), value: value.into(), raw_value: Vec::new() }),
            ..Default::default()
        };
        let (code, response) = match said {
            "allow" => {
                let ok = wire::OkResponse {
                    headers: vec![option("x-checked", "yes"), option("x-route", "two")],
                    headers_to_remove: vec!["x-token".into(), "x-mesh-hops".into()],
                    response_headers_to_add: vec![option("x-told", "1")],
                    ..Default::default()
                };
                (0, HttpResponse::OkResponse(ok))
            }
            "broken" => return Err(tonic::Status::internal("broken")),
            "query" => {
                let ok = wire::OkResponse { query_parameters_to_remove: vec!["a".into()], ..Default::default() };
                (0, HttpResponse::OkResponse(ok))
            }
            _ => {
                let status = Some(wire::HttpStatus { code: 401 });
                let headers = vec![option("x-why", said)];
                (7, HttpResponse::DeniedResponse(wire::DeniedResponse { status, headers, body: "by grpc".into() }))
            }
        };
        let status = Some(wire::Status { code });
        Ok(tonic::Response::new(wire::CheckResponse { status, http_response: Some(response) }))
    }
}

async fn by_grpc() -> (SocketAddr, mpsc::UnboundedReceiver<wire::Attributes>) {
    let (tell, told) = mpsc::unbounded_channel();
    let listener = listener().await;
    let address = listener.local_addr().unwrap();
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    let server = tonic::transport::Server::builder().add_service(AuthorizationServer::new(ByGrpc(tell)));
    tokio::spawn(server.serve_with_incoming(incoming));
    (address, told)
}

fn exact(text: &str) -> StringMatch {
    StringMatch::Exact(text.into())
}

fn http_form() -> Form {
    Form::Http(HttpForm {
        path_prefix: "/check".into(),
        sent: vec![exact("x-ext-authz")],
        fixed: vec![(HeaderName::from_static("x-mesh-check"), HeaderValue::from_static("1"))],
        to_upstream: vec![exact("x-checked")],
        on_deny: vec![exact("x-why")],
        on_allow: vec![exact("x-why")],
    })
}

fn authorizer(form: Form) -> Authorizer {
    Authorizer {
        name: "ask".into(),
        place: cluster("ask"),
        form,
        timeout: Duration::from_secs(10),
        fail_open: false,
        status_on_error: StatusCode::FORBIDDEN,
        body: None,
        routes_again: false,
    }
}

/// Asks about all requests but those for `/open`.
fn custom() -> Policy {
    let paths = List { is: vec![], not: vec![PathPattern::new("/open").unwrap()] };
    let rule = Rule { to: vec![Operation { paths, ..Operation::default() }], ..Rule::default() };
    policy("custom", Action::Custom("ask".into()), rule)
}

fn policy(name: &str, action: Action, rule: Rule) -> Policy {
    let target = SecurityTarget::All;
    Policy { name: NamespacedName::new("shop", name), target, action, rules: vec![rule], dry_run: false }
}

fn security(policies: Vec<Policy>, authorizers: Vec<Authorizer>) -> Option<Arc<Security>> {
    Some(Arc::new(Security {
        policies: policies.into_iter().map(Arc::new).collect(),
        authorizers: authorizers.into_iter().map(Arc::new).collect(),
        ..Security::default()
    }))
}

fn ask(said: &str) -> Request<Full<Bytes>> {
    let mut request = get("/a?b=c");
    request.headers_mut().insert("x-ext-authz", said.parse().unwrap());
    request.headers_mut().insert("x-token", "t".parse().unwrap());
    request.headers_mut().insert("cookie", "secret".parse().unwrap());
    request
}

fn header_of<'a>(answer: &'a Response<Bytes>, name: &str) -> &'a str {
    answer.headers()[name].to_str().unwrap()
}

async fn shop(authorizer: SocketAddr) -> Waypoint {
    let (app, other) = (echo("app").await, echo("two").await);
    let ask = Backend { bound: false, ..Backend::new("ask", "10.96.0.20", &[authorizer]) };
    let backends = [Backend::new("app", VIP, &[app]), Backend::new("two", "10.96.0.11", &[other]), ask];
    let of_two = Condition {
        headers: vec![HeaderMatch {
            name: HeaderName::from_static("x-route"),
            value: Text::Exact("two".into()),
            invert: false,
        }],
        ..Condition::default()
    };
    let mut second = rule(to("two"));
    second.conditions = vec![of_two];
    Waypoint::start(&backends, table("app", vec![second, rule(to("app"))])).await
}

#[tokio::test]
async fn features_B25_an_authorizer_of_http_decides() {
    let (address, mut asked) = by_http().await;
    let waypoint = shop(address).await;
    waypoint.state.set_security(security(vec![custom()], vec![authorizer(http_form())]));
    let answer = waypoint.ask(ASKED, ask("allow")).await;
    assert_eq!((answer.status(), header_of(&answer, "x-why")), (StatusCode::OK, "allow"));
    assert!(!answer.headers().contains_key("x-secret"));
    assert!(
        text(&answer).starts_with("app GET /a?b=c") && text(&answer).contains("x-checked: yes\n"),
        "{}",
        text(&answer)
    );
    let told = asked.recv().await.unwrap();
    let header = |name: &str| told.headers().get(name).map_or("", |value| value.to_str().unwrap());
    assert_eq!(
        [
            told.method().as_str(),
            &told.uri().to_string(),
            header("host"),
            header("x-mesh-check"),
            header("content-length")
        ],
        ["GET", "/check/a?b=c", "shop", "1", "0"]
    );
    assert!(!told.headers().contains_key("cookie") && !told.headers().contains_key("x-token"));

    for (said, status) in [("deny", 403), ("login", 302)] {
        let answer = waypoint.ask(ASKED, ask(said)).await;
        assert_eq!((answer.status().as_u16(), text(&answer)), (status, &*format!("{said} by http")));
        assert_eq!((header_of(&answer, "x-why"), header_of(&answer, "location")), (said, "/login"));
        assert!(!answer.headers().contains_key("x-secret"));
    }
    // Nobody is asked about what no rule means.
    while asked.try_recv().is_ok() {}
    assert_eq!(waypoint.ask(ASKED, get("/open")).await.status(), StatusCode::OK);
    assert!(asked.try_recv().is_err());
    // To gRPC it is told in its way.
    let mut request = ask("deny");
    request.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
    let answer = waypoint.ask(ASKED, request).await;
    let header = |name: &str| answer.headers()[name].to_str().unwrap().to_owned();
    assert_eq!([header("grpc-status"), header("content-type"), header("x-why")], ["7", "application/grpc", "deny"]);
    let scrape = waypoint.scrape();
    assert!(
        scrape.contains("undermesh_request_policies_total{policy=\"shop/custom\",outcome=\"denied\"} 3"),
        "{scrape}"
    );
    assert!(scrape.contains("response_flags=\"UAEX\""), "{scrape}");
}

#[tokio::test]
async fn features_B25_an_authorizer_of_grpc_decides() {
    let (address, mut asked) = by_grpc().await;
    let waypoint = shop(address).await;
    waypoint.state.set_security(security(vec![custom()], vec![authorizer(Form::Grpc)]));
    let answer = waypoint.ask(ASKED, ask("allow")).await;
    assert_eq!((answer.status(), header_of(&answer, "x-told")), (StatusCode::OK, "1"));
    // The route is that of the request as it came.
    assert!(text(&answer).starts_with("app ") && text(&answer).contains("x-checked: yes\n"), "{}", text(&answer));
    assert!(!text(&answer).contains("x-token") && text(&answer).contains("x-mesh-hops: 1"), "{}", text(&answer));
    let told = asked.recv().await.unwrap();
    assert_eq!((told.source.unwrap().principal, told.destination.unwrap().principal), (CLIENT.into(), WAYPOINT.into()));
    let http = told.request.unwrap().http.unwrap();
    assert_eq!([&*http.method, &http.path, &http.host, &http.headers["cookie"]], ["GET", "/a?b=c", "shop", "secret"]);
    assert_eq!(http.id, http.headers["x-request-id"]);
    let answer = waypoint.ask(ASKED, ask("deny")).await;
    let told = (answer.status(), text(&answer), header_of(&answer, "x-why"));
    assert_eq!(told, (StatusCode::UNAUTHORIZED, "by grpc", "deny"));
    // It may have a say in it.
    let again = Authorizer { routes_again: true, ..authorizer(Form::Grpc) };
    waypoint.state.set_security(security(vec![custom()], vec![again]));
    assert!(text(&waypoint.ask(ASKED, ask("allow")).await).starts_with("two "));
    // What others decide is decided about what the authorizer has made of the request.
    let header = |name| {
        When::Text(Attribute::Header(HeaderName::from_static(name)), List { is: vec![exact("yes")], not: vec![] })
    };
    let checked = Rule { when: vec![header("x-checked")], ..Rule::default() };
    for (action, expected) in [(Action::Deny, 403), (Action::Allow, 200)] {
        let policies = vec![policy("other", action, checked.clone()), custom()];
        waypoint.state.set_security(security(policies, vec![authorizer(Form::Grpc)]));
        assert_eq!(waypoint.ask(ASKED, ask("allow")).await.status(), expected);
    }
}

#[tokio::test]
async fn without_an_answer_a_request_is_denied_unless_it_is_to_be_let_through() {
    let (by_http, _http) = by_http().await;
    let (by_grpc, _grpc) = by_grpc().await;
    let never = server(|_: Request<Incoming>| std::future::pending::<Response<Full<Bytes>>>()).await;
    let nobody = nobody().await;
    let usual = |form: &Form| authorizer(form.clone());
    for (what, form, at, said) in [
        ("http, down", http_form(), nobody, "allow"),
        ("grpc, down", Form::Grpc, nobody, "allow"),
        ("http, late", http_form(), never, "allow"),
        ("grpc, late", Form::Grpc, never, "allow"),
        ("http, broken", http_form(), by_http, "broken"),
        ("grpc, broken", Form::Grpc, by_grpc, "broken"),
        ("grpc, what is not done here", Form::Grpc, by_grpc, "query"),
        ("grpc, no gRPC", Form::Grpc, by_http, "allow"),
    ] {
        let waypoint = shop(at).await;
        let timeout = Duration::from_millis(if at == never { 100 } else { 10_000 });
        // Whoever has answered was not away: that may have been a refusal.
        let (open, failed, opened) = if said == "query" { (503, 3, None) } else { (200, 2, Some(1)) };
        for (fail_open, status_on_error, expected) in [(false, 403, 403), (false, 503, 503), (true, 503, open)] {
            let status_on_error = StatusCode::from_u16(status_on_error).unwrap();
            let one = Authorizer { fail_open, status_on_error, timeout, ..usual(&form) };
            waypoint.state.set_security(security(vec![custom()], vec![one]));
            assert_eq!(waypoint.ask(ASKED, ask(said)).await.status().as_u16(), expected, "{what}: {fail_open}");
        }
        let scrape = waypoint.scrape();
        for (outcome, count) in [("failed", Some(failed)), ("failed_open", opened)] {
            let Some(count) = count else { continue };
            let line =
                format!("undermesh_request_policies_total{{policy=\"shop/custom\",outcome=\"{outcome}\"}} {count}");
            assert!(scrape.contains(&line), "{what}: {scrape}");
        }
    }
    // Whoever is not known lets nobody through, and neither does a place that is not.
    let waypoint = shop(by_http).await;
    let nowhere = Authorizer { place: cluster("nowhere"), ..authorizer(http_form()) };
    for authorizers in [vec![], vec![nowhere]] {
        waypoint.state.set_security(security(vec![custom()], authorizers));
        assert_eq!(waypoint.ask(ASKED, ask("allow")).await.status(), StatusCode::FORBIDDEN);
    }
}

#[tokio::test]
async fn a_body_is_shown_as_far_as_it_is_said_and_goes_on_whole() {
    let (by_http, mut http) = by_http().await;
    let (by_grpc, mut grpc) = by_grpc().await;
    let shown = |partial, as_bytes| Some(BodyShown { most: 10, partial, as_bytes });
    let long = "0123456789abc";
    for (body, sent, partial, expected) in [
        (shown(false, false), "0123456789", "false", 200),
        (shown(false, false), long, "", 413),
        (shown(true, false), long, "true", 200),
        (shown(true, true), long, "true", 200),
        (shown(false, false), "", "false", 200),
        (None, long, "", 200),
    ] {
        let of = |request: &mut Request<Full<Bytes>>| *request.method_mut() = Method::POST;
        for (form, at) in [(http_form(), by_http), (Form::Grpc, by_grpc)] {
            let waypoint = shop(at).await;
            let is_http = form != Form::Grpc;
            let one = Authorizer { body, fail_open: true, ..authorizer(form) };
            waypoint.state.set_security(security(vec![custom()], vec![one]));
            let mut request = ask("allow").map(|_| Full::new(Bytes::from_static(sent.as_bytes())));
            of(&mut request);
            let answer = waypoint.ask(ASKED, request).await;
            assert_eq!(answer.status().as_u16(), expected, "{sent} {body:?}");
            if expected != 200 {
                continue;
            }
            assert!(text(&answer).ends_with(&format!("\n{sent}")), "{}", text(&answer));
            let seen = if body.is_some() { &sent[..sent.len().min(10)] } else { "" };
            if is_http {
                let told = http.recv().await.unwrap();
                let header = |name: &str| told.headers().get(name).map_or("", |value| value.to_str().unwrap());
                assert_eq!((&**told.body(), header("x-envoy-auth-partial-body")), (seen.as_bytes(), partial));
            } else {
                let told = grpc.recv().await.unwrap().request.unwrap().http.unwrap();
                let as_bytes = body.is_some_and(|body| body.as_bytes);
                let own = if as_bytes { told.raw_body } else { told.body.into_bytes() };
                assert_eq!(own, seen.as_bytes());
                assert_eq!(told.headers.get("x-envoy-auth-partial-body").map_or("", String::as_str), partial);
            }
        }
    }
}

#[tokio::test]
async fn hardening_CVE_2026_47205_requests_that_are_given_up_while_somebody_is_asked_leave_nothing() {
    let waiting = Arc::<AtomicUsize>::default();
    struct Waits(Arc<AtomicUsize>);
    impl Drop for Waits {
        fn drop(&mut self) {
            self.0.fetch_sub(1, Ordering::SeqCst);
        }
    }
    let count = waiting.clone();
    let never = server(move |_: Request<Incoming>| {
        count.fetch_add(1, Ordering::SeqCst);
        let waits = Waits(count.clone());
        async move {
            let _waits = waits;
            std::future::pending::<Response<Full<Bytes>>>().await
        }
    })
    .await;
    let waypoint = shop(never).await;
    waypoint.state.set_security(security(vec![custom()], vec![authorizer(http_form())]));
    for _ in 0..20 {
        let asking: Vec<_> = (0..10).map(|_| Box::pin(waypoint.ask(ASKED, ask("allow")))).collect();
        let all = futures_util::future::join_all(asking);
        tokio::select! {
            _ = all => panic!("somebody has answered"),
            () = async {
                while waiting.load(Ordering::SeqCst) < 10 {
                    tokio::task::yield_now().await;
                }
            } => {}
        }
        soon("the end of all questions", async {
            while waiting.load(Ordering::SeqCst) > 0 {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }
    assert_eq!(waypoint.ask(ASKED, get("/open")).await.status(), StatusCode::OK);
}

#[tokio::test]
async fn nobody_is_asked_about_what_is_no_http() {
    let (address, _asked) = by_http().await;
    let app = echo("app").await;
    let ask = Backend { bound: false, ..Backend::new("ask", "10.96.0.20", &[address]) };
    let waypoint =
        Waypoint::start(&[Backend::new("app", VIP, &[app]).speaking(AppProtocol::Tcp), ask], Table::default()).await;
    waypoint.state.set_security(security(vec![custom()], vec![authorizer(http_form())]));
    assert_eq!(waypoint.raw(ASKED, b"GET / HTTP/1.1\r\nhost: shop\r\nx-ext-authz: allow\r\n\r\n").await, "");
}
