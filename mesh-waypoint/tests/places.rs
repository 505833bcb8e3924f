//! What DestinationRules say of the places that requests go to, on real sockets: subsets, limits, endpoints that are left out, who goes to the same endpoint.
#![allow(clippy::unwrap_used, non_snake_case, reason = "tests carry the ids of the rows that they prove")]

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use mesh_core::l7::cluster::{Balancer, HashKey, HashTable, Outliers, Policy, Pool};
use mesh_core::l7::{
    Action, Cluster, ClusterKey, Clusters, Condition, Forward, Handling, Labels, Retries, Rule, Table,
};
use mesh_core::service::AppProtocol;
use support::*;
use tokio::io::AsyncWriteExt;
use tokio::sync::Semaphore;

const A: &str = "10.96.0.11";
const ASK: &str = "10.96.0.11:80";

fn labels(text: &str) -> Labels {
    text.split_terminator(',').filter_map(|pair| pair.split_once('=')).map(|(k, v)| (k.into(), v.into())).collect()
}

fn key(subset: &str) -> ClusterKey {
    ClusterKey { subset: subset.into(), ..cluster("a") }
}

/// A subset of `a`, by its labels; of the whole of it the name is empty.
fn place(subset: &str, text: &str, policy: Policy) -> Cluster {
    Cluster { labels: labels(text), policy: Ok(policy), ..Cluster::closed(key(subset), "") }
}

fn to_subset(subset: &str) -> Table {
    let handling = Handling { retries: Retries::none(), ..Handling::new(Action::Forward(Forward::to(key(subset)))) };
    table("a", vec![rule(handling)])
}

/// Tells labels of endpoints of `a`, by their number.
fn label(waypoint: &Waypoint, of: &[(usize, &str)]) {
    let change =
        |(index, text): &(usize, &str)| (format!("c//Pod/shop/a-{index}").into(), Some(Arc::new(labels(text))));
    waypoint.state.set_labels(of.iter().map(change).collect());
}

/// How often each endpoint says that it answers, of so many requests.
async fn answers(
    waypoint: &Waypoint,
    count: usize,
    request: impl Fn() -> Request<Full<Bytes>>,
) -> BTreeMap<String, usize> {
    let mut answers = BTreeMap::new();
    for _ in 0..count {
        let answer = waypoint.ask(ASK, request()).await;
        let who = match answer.status() {
            StatusCode::OK => text(&answer).split(' ').next().unwrap_or_default().to_owned(),
            status => status.as_u16().to_string(),
        };
        *answers.entry(who).or_default() += 1;
    }
    answers
}

fn names(answers: &BTreeMap<String, usize>) -> Vec<&str> {
    answers.keys().map(String::as_str).collect()
}

#[tokio::test]
async fn features_DR_2_a_subset_is_its_endpoints_and_follows_their_labels() {
    let all = [echo("one").await, echo("two").await, echo("three").await];
    let waypoint = Waypoint::start(&[Backend::new("a", A, &all)], to_subset("v1")).await;
    // Nothing is said of it: nobody may guess.
    let refused = waypoint.ask(ASK, get("/")).await;
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    waypoint.state.set_clusters(Arc::new(Clusters::new([place("v1", "version=v1", Policy::default())])));
    let none = waypoint.ask(ASK, get("/")).await;
    assert_eq!((none.status(), text(&none)), (StatusCode::SERVICE_UNAVAILABLE, "no healthy upstream"));
    label(&waypoint, &[(0, "version=v1"), (1, "version=v1,x=y"), (2, "version=v2")]);
    assert_eq!(names(&answers(&waypoint, 20, || get("/")).await), ["one", "two"]);
    label(&waypoint, &[(0, "version=v2"), (2, "version=v1")]);
    assert_eq!(names(&answers(&waypoint, 20, || get("/")).await), ["three", "two"]);
    // What cannot be carried out says so.
    waypoint.state.set_clusters(Arc::new(Clusters::new([Cluster::closed(key("v1"), "no such subset")])));
    assert_eq!(waypoint.ask(ASK, get("/")).await.status(), StatusCode::INTERNAL_SERVER_ERROR);
}

#[tokio::test]
async fn places_that_are_gone_serve_until_the_routes_that_name_them_are() {
    let waypoint = Waypoint::start(&[Backend::new("a", A, &[echo("one").await])], to_subset("old")).await;
    label(&waypoint, &[(0, "v=1")]);
    waypoint.state.set_clusters(Arc::new(Clusters::new([place("old", "v=1", Policy::default())])));
    waypoint.state.set_clusters(Arc::new(Clusters::new([place("new", "v=1", Policy::default())])));
    assert_eq!(names(&answers(&waypoint, 2, || get("/")).await), ["one"]);
    waypoint.state.set_table(Arc::new(to_subset("new")));
    assert_eq!(names(&answers(&waypoint, 2, || get("/")).await), ["one"]);
}

#[tokio::test]
async fn features_VS_7_labels_of_the_client_choose_its_rule() {
    let waypoint = Waypoint::start(&[Backend::new("a", A, &[echo("one").await])], Table::default()).await;
    let tea = mesh_core::l7::DirectResponse { status: StatusCode::IM_A_TEAPOT, body: Bytes::new() };
    let condition = Condition { source_labels: labels("app=x"), ..Condition::default() };
    let handling = Handling::new(Action::Respond(tea)).into();
    let rules = vec![Rule { conditions: vec![condition], handling }, rule(to("a"))];
    waypoint.state.set_table(Arc::new(table("a", rules)));
    assert_eq!(names(&answers(&waypoint, 1, || get("/")).await), ["one"]);
    // The client is the workload that has its address and its identity.
    let mut client = mesh_core::Workload::new("c//Pod/shop/client", "shop", "client");
    client.addresses = vec![[127, 0, 0, 1].into()];
    client.service_account = "client".into();
    let mut waypoint = waypoint;
    let snapshot = waypoint.store.apply(vec![mesh_core::Change::Workload(client)]).snapshot;
    waypoint.state.set_snapshot(snapshot);
    assert_eq!(names(&answers(&waypoint, 1, || get("/")).await), ["one"]);
    waypoint.state.set_labels(vec![("c//Pod/shop/client".into(), Some(Arc::new(labels("app=x"))))]);
    assert_eq!(names(&answers(&waypoint, 1, || get("/")).await), ["418"]);
}

#[tokio::test]
async fn features_DR_5_the_same_user_goes_to_the_same_endpoint() {
    let all = [echo("one").await, echo("two").await, echo("three").await];
    let waypoint = Waypoint::start(&[Backend::new("a", A, &all)], Table::default()).await;
    let by = |key: HashKey, table: HashTable| {
        let policy = Policy { balancer: Balancer::Hash(key, table), ..Policy::default() };
        waypoint.state.set_clusters(Arc::new(Clusters::new([place("", "", policy)])));
    };
    by(HashKey::Header("x-user".into()), HashTable::Ring(1024));
    let mut seen = BTreeMap::new();
    // So many that each endpoint gets one, whatever its port is.
    for user in 0..50 {
        let of_user = || {
            let mut request = get("/");
            request.headers_mut().insert("x-user", format!("user-{user}").parse().unwrap());
            request
        };
        let answers = answers(&waypoint, 2, of_user).await;
        assert_eq!(answers.len(), 1, "{answers:?}");
        seen.extend(answers);
    }
    assert_eq!(names(&seen), ["one", "three", "two"]);
    by(HashKey::Source, HashTable::Maglev(65_537));
    assert_eq!(answers(&waypoint, 6, || get("/")).await.len(), 1);

    let cookie = HashKey::Cookie {
        name: "user".into(),
        path: Some("/".into()),
        lasts: Some(Duration::from_secs(60)),
        attributes: Vec::new(),
    };
    by(cookie, HashTable::Ring(1024));
    for _ in 0..6 {
        let first = waypoint.ask(ASK, get("/")).await;
        let made = first.headers()["set-cookie"].to_str().unwrap().to_owned();
        let (pair, rest) = made.split_once(';').unwrap();
        assert_eq!(rest, " Max-Age=60; Path=/; HttpOnly");
        let mut request = get("/");
        request.headers_mut().insert("cookie", pair.parse().unwrap());
        let again = waypoint.ask(ASK, request).await;
        assert_eq!(text(&again).split(' ').next(), text(&first).split(' ').next());
        assert!(!again.headers().contains_key("set-cookie"));
    }
}

#[tokio::test]
async fn a_request_that_is_tried_again_twice_needs_one_place_for_that() {
    let (app, mut told) = noting(StatusCode::SERVICE_UNAVAILABLE).await;
    let mut retries = Retries { backoff: Duration::from_millis(1), ..Retries::default() };
    retries.on.statuses.push(503);
    let handling = Handling { retries, ..Handling::new(Action::Forward(Forward::to(key("")))) };
    let waypoint = Waypoint::start(&[Backend::new("a", A, &[app])], table("a", vec![rule(handling)])).await;
    let policy = Policy { pool: Pool { retries: 1, ..Pool::default() }, ..Policy::default() };
    waypoint.state.set_clusters(Arc::new(Clusters::new([place("", "", policy)])));
    assert_eq!(waypoint.ask(ASK, get("/")).await.status(), StatusCode::SERVICE_UNAVAILABLE);
    let attempts = std::iter::from_fn(|| told.try_recv().ok()).count();
    assert_eq!(attempts, 3, "the place of the second attempt is free for the third");
}

/// A server that answers when it is let, and how many requests it has.
async fn gate() -> (std::net::SocketAddr, Arc<Semaphore>, Arc<AtomicUsize>) {
    let (open, inside) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicUsize::new(0)));
    let (gate, count) = (open.clone(), inside.clone());
    let address = server(move |_: Request<Incoming>| {
        let (gate, count) = (gate.clone(), count.clone());
        async move {
            count.fetch_add(1, SeqCst);
            gate.acquire().await.unwrap().forget();
            count.fetch_sub(1, SeqCst);
            Response::new(Full::new(Bytes::from_static(b"ok ")))
        }
    })
    .await;
    (address, open, inside)
}

async fn until(what: &str, mut done: impl FnMut() -> bool) {
    soon(what, async {
        while !done() {
            tokio::task::yield_now().await;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
}

/// An endpoint of HTTP/2 that takes three streams on a connection, and holds each until it is let; how many it has, and on how many connections.
async fn three_on_each() -> (std::net::SocketAddr, Arc<Semaphore>, Arc<AtomicUsize>, Arc<AtomicUsize>) {
    let (open, inside, connections) = (Arc::new(Semaphore::new(0)), Arc::<AtomicUsize>::default(), Arc::default());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (gate, count, accepted) = (open.clone(), inside.clone(), Arc::clone(&connections));
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            AtomicUsize::fetch_add(&accepted, 1, SeqCst);
            let (gate, count) = (gate.clone(), count.clone());
            let service = hyper::service::service_fn(move |_: Request<Incoming>| {
                let (gate, count) = (gate.clone(), count.clone());
                async move {
                    count.fetch_add(1, SeqCst);
                    gate.acquire().await.unwrap().forget();
                    Ok::<_, std::convert::Infallible>(Response::new(Full::new(Bytes::from_static(b"ok"))))
                }
            });
            let executor = hyper_util::rt::TokioExecutor::new();
            let serving = hyper::server::conn::http2::Builder::new(executor)
                .max_concurrent_streams(3)
                .serve_connection(hyper_util::rt::TokioIo::new(tcp), service);
            tokio::spawn(serving);
        }
    });
    (address, open, inside, connections)
}

/// What an endpoint does not take on one connection would wait there for one that ends, and a stream of gRPC may never end.
#[tokio::test]
async fn what_an_endpoint_does_not_take_on_one_connection_comes_on_another() {
    let (address, open, inside, connections) = three_on_each().await;
    let backend = Backend::new("a", A, &[address]).speaking(AppProtocol::Http2);
    let waypoint = Arc::new(Waypoint::start(&[backend], Table::default()).await);
    let ask = |_| {
        let waypoint = waypoint.clone();
        tokio::spawn(async move { waypoint.ask(ASK, get("/")).await.status() })
    };
    let asked: Vec<_> = (0..10).map(ask).collect();
    until("all ten", || inside.load(SeqCst) == 10).await;
    assert!(connections.load(SeqCst) >= 4, "{}", connections.load(SeqCst));
    open.add_permits(10);
    for one in asked {
        assert_eq!(soon("answer", one).await.unwrap(), StatusCode::OK);
    }
    // Where there may be no second one they wait for the first.
    let pool = Pool { connections: 1, ..Pool::default() };
    let (address, open, inside, connections) = three_on_each().await;
    let backend = Backend::new("a", A, &[address]).speaking(AppProtocol::Http2);
    let waypoint = Arc::new(Waypoint::start(&[backend], Table::default()).await);
    waypoint.state.set_clusters(Arc::new(Clusters::new([place("", "", Policy { pool, ..Policy::default() })])));
    let ask = |_| {
        let waypoint = waypoint.clone();
        tokio::spawn(async move { waypoint.ask(ASK, get("/")).await.status() })
    };
    let first: Vec<_> = (0..3).map(ask).collect();
    until("three", || inside.load(SeqCst) == 3).await;
    let more: Vec<_> = (0..4).map(ask).collect();
    open.add_permits(7);
    for one in first.into_iter().chain(more) {
        assert_eq!(soon("answer", one).await.unwrap(), StatusCode::OK);
    }
    assert_eq!((inside.load(SeqCst), connections.load(SeqCst)), (7, 1));
}

#[tokio::test]
async fn features_B10_one_is_served_one_waits_and_all_others_are_refused() {
    let (address, open, inside) = gate().await;
    let waypoint = Arc::new(Waypoint::start(&[Backend::new("a", A, &[address])], Table::default()).await);
    let pool = Pool { connections: 1, pending: 1, requests_per_connection: 1, ..Pool::default() };
    let outliers = Outliers { errors: 1, most_percent: 100, ..Outliers::default() };
    let policy = Policy { pool, outliers: Some(outliers), ..Policy::default() };
    waypoint.state.set_clusters(Arc::new(Clusters::new([place("", "", policy)])));
    let ask = || {
        let waypoint = waypoint.clone();
        tokio::spawn(async move { waypoint.ask(ASK, get("/")).await })
    };
    let first = ask();
    until("the first", || inside.load(SeqCst) == 1).await;
    let second = ask();
    // The second has its place when a third is refused.
    let mut refused = 0;
    soon("a refusal", async {
        loop {
            let answer = tokio::time::timeout(Duration::from_millis(200), waypoint.ask(ASK, get("/"))).await;
            let Ok(answer) = answer else { continue };
            assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
            let body = "upstream connect error or disconnect/reset before headers. reset reason: overflow";
            assert_eq!((text(&answer), &answer.headers()["x-envoy-overloaded"]), (body, &"true".parse().unwrap()));
            refused += 1;
            if refused == 3 {
                return;
            }
        }
    })
    .await;
    assert_eq!(inside.load(SeqCst), 1, "the limit holds");
    open.add_permits(100);
    for waiting in [first, second] {
        assert_eq!(soon("an answer", waiting).await.unwrap().status(), StatusCode::OK);
    }
    // One by one all are served: a refusal of ours is no error of the endpoint.
    assert_eq!(names(&answers(&waypoint, 5, || get("/")).await), ["ok"]);
    let shown = waypoint.scrape();
    assert!(shown.contains("response_code=\"503\",response_flags=\"UO\""), "{shown}");
    let line = "undermesh_upstream_overflow_total{destination_service=\"a.shop.svc.cluster.local\"";
    let counted = shown.lines().find(|one| one.starts_with(line)).unwrap();
    assert!(counted.ends_with(&format!(" {refused}")), "{counted}");
    assert!(shown.contains("undermesh_outlier_ejections_total") && shown.contains("port=\"80\",subset=\"\"} 0"));
}

#[tokio::test]
async fn a_connection_that_waits_for_one_client_makes_room_for_another() {
    let one = echo("one").await;
    let waypoint = Waypoint::start(&[Backend::new("a", A, &[one])], Table::default()).await;
    let pool = Pool { connections: 1, ..Pool::default() };
    waypoint.state.set_clusters(Arc::new(Clusters::new([place("", "", Policy { pool, ..Policy::default() })])));
    // The connection waits after the answer; another kind of request needs another one.
    assert_eq!(names(&answers(&waypoint, 3, || get("/")).await), ["one"]);
    assert_eq!(waypoint.engine.here().pool.open(), 1);
    let two = echo("two").await;
    let mut waypoint = waypoint;
    let changes = Backend::new("a", A, &[two]).changes();
    let snapshot = waypoint.store.apply(changes).snapshot;
    waypoint.state.set_snapshot(snapshot);
    assert_eq!(names(&answers(&waypoint, 3, || get("/")).await), ["two"]);
    until("the first to be closed", || waypoint.engine.here().pool.open() == 1).await;
}

/// What was open before a rule came is not used around it.
#[tokio::test]
async fn connections_of_before_a_limit_are_not_used_any_more() {
    let (address, open, inside) = gate().await;
    let waypoint = Arc::new(Waypoint::start(&[Backend::new("a", A, &[address])], Table::default()).await);
    let ask = || {
        let waypoint = waypoint.clone();
        tokio::spawn(async move { waypoint.ask(ASK, get("/")).await.status() })
    };
    let before: Vec<_> = (0..3).map(|_| ask()).collect();
    until("three at once", || inside.load(SeqCst) == 3).await;
    open.add_permits(3);
    for asked in before {
        assert_eq!(soon("an answer", asked).await.unwrap(), StatusCode::OK);
    }
    let pool = Pool { connections: 1, pending: 1, ..Pool::default() };
    waypoint.state.set_clusters(Arc::new(Clusters::new([place("", "", Policy { pool, ..Policy::default() })])));
    let mut after = tokio::task::JoinSet::new();
    (0..3).for_each(|_| drop(after.spawn(ask())));
    let mut statuses = Vec::new();
    // One is inside and one waits for its connection: the third is refused, and nobody else is let in before the gate opens.
    statuses.push(soon("a refusal", after.join_next()).await.unwrap().unwrap().unwrap());
    until("one inside", || inside.load(SeqCst) == 1).await;
    open.add_permits(100);
    while let Some(answer) = soon("an answer", after.join_next()).await {
        statuses.push(answer.unwrap().unwrap());
    }
    // A request whose connection is being made waits, too: the second may have been one too many.
    assert_eq!((statuses[0], statuses[2]), (StatusCode::SERVICE_UNAVAILABLE, StatusCode::OK));
}

#[tokio::test]
async fn features_DR_10_requests_at_once_are_limited_in_http2_too() {
    let (address, open, inside) = gate().await;
    let waypoint = Arc::new(Waypoint::start(&[Backend::new("a", A, &[address])], Table::default()).await);
    let pool = Pool { requests: 2, speaks: mesh_core::l7::cluster::Speaks::Http2, ..Pool::default() };
    waypoint.state.set_clusters(Arc::new(Clusters::new([place("", "", Policy { pool, ..Policy::default() })])));
    let ask = || {
        let waypoint = waypoint.clone();
        tokio::spawn(async move { waypoint.ask(ASK, get("/")).await })
    };
    let under_way = [ask(), ask()];
    until("both", || inside.load(SeqCst) == 2).await;
    assert_eq!(waypoint.engine.here().pool.open(), 1, "they share a connection");
    assert_eq!(waypoint.ask(ASK, get("/")).await.status(), StatusCode::SERVICE_UNAVAILABLE);
    open.add_permits(10);
    for one in under_way {
        assert_eq!(soon("an answer", one).await.unwrap().status(), StatusCode::OK);
    }
    assert_eq!(waypoint.ask(ASK, get("/")).await.status(), StatusCode::OK);
}

/// None of them is answered before all have arrived, so there are as many connections as their streams take.
#[tokio::test]
async fn a_burst_on_an_endpoint_with_few_streams_waits_for_its_connections() {
    const BURST: usize = 200;
    let (address, open, inside) = gate().await;
    let waypoint = Waypoint::start(&[Backend::new("a", A, &[address])], to_subset("")).await;
    let pool = Pool { streams: 5, speaks: mesh_core::l7::cluster::Speaks::Http2, ..Pool::default() };
    waypoint.state.set_clusters(Arc::new(Clusters::new([place("", "", Policy { pool, ..Policy::default() })])));
    let client = waypoint.client();
    let mut senders = Vec::new();
    for _ in 0..BURST {
        let stream = soon("stream", client.stream(ASK)).await.unwrap();
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        senders.push(sender);
    }
    let mut asked = tokio::task::JoinSet::new();
    for mut sender in senders {
        asked.spawn(async move { sender.send_request(get("/")).await.unwrap().status() });
    }
    until("an end of the burst", || inside.load(SeqCst) == BURST || asked.try_join_next().is_some()).await;
    assert_eq!(inside.load(SeqCst), BURST, "nobody is refused");
    assert_eq!(waypoint.engine.here().pool.open(), BURST / 5);
    open.add_permits(BURST);
    while let Some(status) = soon("an answer", asked.join_next()).await {
        assert_eq!(status.unwrap(), StatusCode::OK);
    }
}

/// Each row: connections that the place may have, and how many are made side by side for fifteen requests of which one takes five.
#[tokio::test]
async fn connections_are_made_side_by_side_for_those_who_wait() {
    for (connections, expected) in [(u32::MAX, 3), (2, 2), (1, 1)] {
        let listener = listener().await;
        let address = listener.local_addr().unwrap();
        let waypoint = Waypoint::start(&[Backend::new("a", A, &[address])], to_subset("")).await;
        let speaks = mesh_core::l7::cluster::Speaks::Http2;
        let pool = Pool { connections, streams: 5, speaks, ..Pool::default() };
        let policy = Policy { pool, tls: mesh_core::l7::cluster::Tls::Simple(Default::default()), ..Policy::default() };
        waypoint.state.set_clusters(Arc::new(Clusters::new([place("", "", policy)])));
        let client = Arc::new(waypoint.client());
        let mut asked = tokio::task::JoinSet::new();
        for _ in 0..15 {
            let client = Arc::clone(&client);
            asked.spawn(async move {
                let stream = soon("stream", client.stream(ASK)).await.unwrap();
                let (mut sender, connection) =
                    hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
                tokio::spawn(connection);
                sender.send_request(get("/")).await.unwrap().status()
            });
        }
        let mut held = Vec::new();
        // Nobody answers what begins TLS, so none of them is over before the next begins.
        while held.len() < expected {
            held.push(soon("another connection", listener.accept()).await.unwrap().0);
        }
        until("all wait", || waypoint.engine.here().pool.open() == expected).await;
        assert_eq!(asked.len(), 15, "nobody is refused");
        drop(held);
        drop(listener);
        while let Some(status) = soon("an end", asked.join_next()).await {
            assert_eq!(status.unwrap(), StatusCode::SERVICE_UNAVAILABLE);
        }
        assert_eq!(waypoint.engine.here().pool.open(), 0);
    }
}

/// Of those that wait for a connection that fails, one tries again for all.
#[tokio::test]
async fn an_endpoint_that_is_gone_is_not_dialled_by_each_request_that_waits() {
    let listener = listener().await;
    let address = listener.local_addr().unwrap();
    let waypoint = Waypoint::start(&[Backend::new("a", A, &[address])], to_subset("")).await;
    let pool = Pool {
        connect_timeout: Duration::from_millis(300),
        speaks: mesh_core::l7::cluster::Speaks::Http2,
        ..Pool::default()
    };
    let policy = Policy { pool, tls: mesh_core::l7::cluster::Tls::Simple(Default::default()), ..Policy::default() };
    waypoint.state.set_clusters(Arc::new(Clusters::new([place("", "", policy)])));
    let dialled = Arc::new(AtomicUsize::new(0));
    let count = dialled.clone();
    tokio::spawn(async move {
        let mut held = Vec::new();
        // Nobody answers what begins TLS.
        while let Ok((tcp, _)) = listener.accept().await {
            count.fetch_add(1, SeqCst);
            held.push(tcp);
        }
    });
    let (mut asked, client) = (tokio::task::JoinSet::new(), Arc::new(waypoint.client()));
    let mut senders = Vec::new();
    for _ in 0..20 {
        let stream = soon("stream", client.stream(ASK)).await.unwrap();
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        senders.push(sender);
    }
    // At once: who comes when the others have failed dials anew.
    for mut sender in senders {
        asked.spawn(async move { sender.send_request(get("/")).await.unwrap().status() });
    }
    while let Some(status) = soon("an answer", asked.join_next()).await {
        assert_eq!(status.unwrap(), StatusCode::SERVICE_UNAVAILABLE);
    }
    assert!((1..=4).contains(&dialled.load(SeqCst)), "{}", dialled.load(SeqCst));
}

#[tokio::test]
async fn features_B11_who_answers_with_errors_gets_nothing_for_a_while() {
    let failing = Arc::new(AtomicBool::new(true));
    let (fails, asked) = (failing.clone(), Arc::new(AtomicUsize::new(0)));
    let count = asked.clone();
    let bad = server(move |_: Request<Incoming>| {
        count.fetch_add(1, SeqCst);
        let mut response = Response::new(Full::new(Bytes::from_static(b"bad ")));
        if fails.load(SeqCst) {
            *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
        }
        std::future::ready(response)
    })
    .await;
    let all = [bad, echo("two").await, echo("three").await];
    let waypoint = Waypoint::start(&[Backend::new("a", A, &all)], to_subset("")).await;
    let base = Duration::from_millis(1500);
    let outliers = Outliers { base, interval: Duration::from_secs(10), ..Outliers::default() };
    let policy = Policy { balancer: Balancer::RoundRobin, outliers: Some(outliers), ..Policy::default() };
    waypoint.state.set_clusters(Arc::new(Clusters::new([place("", "", policy)])));
    let first = answers(&waypoint, 40, || get("/")).await;
    assert_eq!((first["500"], asked.load(SeqCst)), (5, 5), "five in a row, then none: {first:?}");
    let shown = waypoint.scrape();
    let has = |name: &str| shown.lines().any(|line| line.starts_with(name) && line.ends_with("subset=\"\"} 1"));
    assert!(has("undermesh_outlier_ejections_total") && has("undermesh_outlier_ejected"), "{shown}");
    // It is asked again when its time is over.
    failing.store(false, SeqCst);
    soon("its return", async { while !answers(&waypoint, 3, || get("/")).await.contains_key("bad") {} }).await;
    assert!(waypoint.scrape().contains("undermesh_outlier_ejected{"));
}

/// Asks an endpoint that never answers, until it is left out; how often it was asked.
async fn asked_in_vain(timeout: Option<Duration>, pool: Pool, ask: impl AsyncFn(&Waypoint)) -> usize {
    let (silent, asked) = (listener().await, Arc::new(AtomicUsize::new(0)));
    let (address, count) = (silent.local_addr().unwrap(), asked.clone());
    server_at(silent, move |_: Request<Incoming>| {
        count.fetch_add(1, SeqCst);
        std::future::pending::<Response<Full<Bytes>>>()
    });
    let forward = Action::Forward(Forward::to(key("")));
    let handling = Handling { retries: Retries::none(), timeout, ..Handling::new(forward) };
    let waypoint = Waypoint::start(&[Backend::new("a", A, &[address])], table("a", vec![rule(handling)])).await;
    let outliers = Outliers { most_percent: 100, ..Outliers::default() };
    let policy = Policy { outliers: Some(outliers), pool, ..Policy::default() };
    waypoint.state.set_clusters(Arc::new(Clusters::new([place("", "", policy)])));
    for _ in 0..8 {
        ask(&waypoint).await;
    }
    asked.load(SeqCst)
}

/// A client's own deadline and its slow body are none of the endpoint's, or any client could have endpoints left out for all others.
#[tokio::test]
async fn features_B11_an_endpoint_is_not_left_out_for_a_client_that_has_no_patience_or_is_slow() {
    const SHORT: Duration = Duration::from_millis(50);
    let with = async |timeout, headers: &[(&'static str, &'static str)]| {
        let ask = async |waypoint: &Waypoint| {
            let mut request = get("/");
            for (name, value) in headers {
                request.headers_mut().insert(*name, value.parse().unwrap());
            }
            waypoint.ask(ASK, request).await;
        };
        asked_in_vain(timeout, Pool::default(), ask).await
    };
    let (long, own) = (Some(Duration::from_secs(20)), "x-envoy-upstream-rq-timeout-ms");
    assert_eq!(with(Some(SHORT), &[]).await, 5, "the rule's time is the endpoint's");
    assert_eq!(with(Some(SHORT), &[(own, "100")]).await, 5, "and it has had more than that");
    assert_eq!(with(None, &[("content-type", "application/grpc"), ("grpc-timeout", "50m")]).await, 8);
    assert_eq!(with(long, &[("content-type", "application/grpc"), ("grpc-timeout", "50m")]).await, 8);
    assert_eq!(with(None, &[(own, "50")]).await, 8);
    assert_eq!(with(long, &[(own, "50")]).await, 8);
    // A body that ends when the rule's time would be over runs out of nobody's time, and a client that gives up in between says nothing of the endpoint.
    let slow = async |waypoint: &Waypoint| {
        let mut stream = soon("stream", waypoint.stream(ASK)).await.unwrap();
        stream.write_all(b"POST / HTTP/1.1\r\nhost: shop\r\ncontent-length: 10\r\n\r\nslow").await.unwrap();
        tokio::time::sleep(3 * SHORT).await;
    };
    assert_eq!(asked_in_vain(Some(SHORT), Pool::default(), slow).await, 8);
}

/// Nor for requests that wait for others: there is one connection, of which nobody gives an answer.
#[tokio::test]
async fn features_B11_an_endpoint_is_not_left_out_for_requests_that_had_no_turn() {
    let rounds = AtomicUsize::new(0);
    let ask = async |waypoint: &Waypoint| {
        if rounds.fetch_add(1, SeqCst) < 2 {
            let all = (0..6).map(|_| waypoint.ask(ASK, get("/")));
            for answer in futures_util::future::join_all(all).await {
                assert_eq!(answer.status(), StatusCode::GATEWAY_TIMEOUT);
            }
        }
    };
    let pool = Pool { connections: 1, ..Pool::default() };
    assert!(asked_in_vain(Some(Duration::from_millis(300)), pool, ask).await >= 2);
}

#[tokio::test]
async fn what_is_not_spoken_yet_is_refused() {
    let waypoint = Waypoint::start(&[Backend::new("a", A, &[echo("one").await])], Table::default()).await;
    let policy = Policy { proxy_protocol: Some(1), ..Policy::default() };
    waypoint.state.set_clusters(Arc::new(Clusters::new([place("", "", policy)])));
    assert_eq!(waypoint.ask(ASK, get("/")).await.status(), StatusCode::INTERNAL_SERVER_ERROR);
}

#[tokio::test]
async fn features_DR_9_a_connection_to_an_endpoint_is_used_for_as_long_as_is_said() {
    let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n".to_vec();
    for lifetime in [None, Some(Duration::from_millis(300))] {
        let (app, connections, _told) = scripted(vec![(answer.clone(), false)]).await;
        let waypoint = Waypoint::start(&[Backend::new("a", A, &[app])], table("a", vec![rule(to("a"))])).await;
        let pool = Pool { lifetime, ..Pool::default() };
        waypoint.state.set_clusters(Arc::new(Clusters::new([place("", "", Policy { pool, ..Policy::default() })])));
        let stream = soon("stream", waypoint.stream(ASK)).await.unwrap();
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let began = std::time::Instant::now();
        let is_over = || match lifetime {
            None => began.elapsed() >= Duration::from_millis(600),
            Some(_) => connections.load(SeqCst) > 1,
        };
        soon("requests", async {
            while !is_over() {
                sender.ready().await.unwrap();
                assert_eq!(whole(sender.send_request(get("/")).await.unwrap()).await.status(), StatusCode::OK);
            }
        })
        .await;
        match lifetime {
            None => assert_eq!(connections.load(SeqCst), 1),
            // It is measured by ticks of the clock, and by the first request of many.
            Some(limit) => assert!(began.elapsed() >= limit / 2, "{:?}", began.elapsed()),
        }
    }
}
