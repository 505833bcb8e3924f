//! Connections to what has a waypoint: it is asked for what the app asked for, and nothing goes around it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use mesh_core::service::{AppProtocol, ServicePort};
use mesh_core::workload::{GatewayAddress, GatewayDestination, PortMapping, TunnelProtocol};
use mesh_core::{Change, Service, Workload};
use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;

use super::mesh::*;
use super::net::Netns;
use crate::proxy::Reason;

/// Where waypoints listen in their pods.
pub(super) const TUNNEL: u16 = 15108;
/// What others know as that.
const HBONE: u16 = 15008;

/// The service of the waypoints.
pub(super) fn waypoints() -> Service {
    let ports = vec![ServicePort { service_port: HBONE, target_port: TUNNEL, app_protocol: AppProtocol::Tcp }];
    Service { ports, ..Service::new(NAMESPACE, "waypoint", "waypoint.bookinfo.svc.cluster.local") }
}

pub(super) fn through() -> Option<GatewayAddress> {
    Some(GatewayAddress { destination: GatewayDestination::Service(waypoints().key()), hbone_port: HBONE })
}

/// An endpoint of the waypoints' service.
pub(super) fn endpoint(name: &str, last: u8) -> Workload {
    let mut workload = workload(name, vec![v4(last)]);
    workload.protocol = TunnelProtocol::Hbone;
    let mapping = vec![PortMapping { service_port: HBONE, target_port: TUNNEL }];
    workload.services = Arc::new([(waypoints().key(), mapping)].into());
    workload
}

pub(super) type Texts = Arc<Mutex<Vec<String>>>;

/// A waypoint that the test itself serves: it echoes, or refuses with `status`.
pub(super) struct Waypoint {
    _netns: Netns,
    /// What it was asked for.
    pub(super) asked: Texts,
    /// What was said of whose sake.
    pub(super) said: Texts,
    /// Who has its only permit holds its answers back.
    pub(super) answers: Arc<Semaphore>,
}

impl Waypoint {
    pub(super) fn start(pair: &Pair, name: &str, last: u8, status: StatusCode) -> Waypoint {
        let netns = pair.hub.attach(&[v4(last)]);
        let listener = netns.listen(SocketAddr::new(v4(last), TUNNEL));
        listener.set_nonblocking(true).unwrap();
        let listener = TcpListener::from_std(listener).unwrap();
        let tls = TlsAcceptor::from(pair.authority.issue(&identity(name)).server_config());
        let (asked, said) = <(Texts, Texts)>::default();
        let answers = Arc::new(Semaphore::new(1));
        let (heard, turn) = ((asked.clone(), said.clone()), answers.clone());
        tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                tokio::spawn(tunnel(tls.clone(), tcp, status, heard.clone(), turn.clone()));
            }
        });
        Waypoint { _netns: netns, asked, said, answers }
    }
}

async fn tunnel(
    tls: TlsAcceptor,
    tcp: TcpStream,
    status: StatusCode,
    (heard, said): (Texts, Texts),
    turn: Arc<Semaphore>,
) {
    let Ok(tls) = tls.accept(tcp).await else { return };
    let Ok(mut h2) = h2::server::handshake(tls).await else { return };
    while let Some(Ok((request, mut respond))) = h2.accept().await {
        heard.lock().push(request.uri().authority().unwrap().to_string());
        let forwarded = request.headers().get("forwarded").map_or("", |value| value.to_str().unwrap());
        said.lock().push(forwarded.to_owned());
        drop(turn.acquire().await.unwrap());
        let response = Response::builder().status(status).body(()).unwrap();
        let Ok(answer) = respond.send_response(response, status != StatusCode::OK) else { continue };
        if status == StatusCode::OK {
            tokio::spawn(echo_back(request, answer));
        }
    }
}

async fn echo_back(request: Request<h2::RecvStream>, mut answer: h2::SendStream<Bytes>) {
    let mut body = request.into_body();
    while let Some(Ok(bytes)) = body.data().await {
        let _ = body.flow_control().release_capacity(bytes.len());
        let _ = answer.send_data(bytes, false);
    }
    let _ = answer.send_data(Bytes::new(), true);
}

fn ejected(pair: &Pair) -> Vec<String> {
    let snapshot = pair.near.state.snapshot_owned();
    let set = snapshot.endpoints(&waypoints().key()).unwrap();
    let now = pair.near.shared.now_ms();
    let members = set.members().iter().filter(|endpoint| endpoint.is_ejected(now));
    members.map(|endpoint| endpoint.workload.name.to_string()).collect()
}

/// What the app asked for is asked of the waypoint, also when that is the pod itself: it decides what becomes of it.
#[tokio::test(flavor = "multi_thread")]
async fn a_waypoint_is_asked_for_what_the_app_asked_for() {
    let pair = Pair::start().await;
    let around = [pair.server.echo(APP, "around "), pair.client.echo(APP, "around ")];
    let waypoint = Waypoint::start(&pair, "waypoint", 66, StatusCode::OK);
    let itself = Workload { waypoint: through(), ..pair.client.workload() };
    pair.apply(vec![
        Change::Service(waypoints()),
        Change::Workload(endpoint("waypoint", 66)),
        Change::Service(Service { waypoint: through(), ..service() }),
        Change::Workload(itself),
    ]);
    let own = SocketAddr::new(pair.client.ip(), APP);
    for destination in [pair.service_address(), own] {
        let mut app = pair.client.connect(destination).await;
        exchange(&mut app, "through the waypoint").await;
    }
    assert_eq!(*waypoint.asked.lock(), [pair.service_address().to_string(), own.to_string()]);
    assert_eq!(around.map(|apps| apps.load(SeqCst)), [0, 0]);
    eventually("closed", || pair.client.live() == 0).await;
    let log = pair.near.log();
    for part in [
        "dst.workload=\"waypoint\"",
        "dst.service=\"server.bookinfo.svc.cluster.local\"",
        "dst.identity=\"spiffe://cluster.local/ns/bookinfo/sa/waypoint\"",
        "dst.hbone_addr=198.18.100.1:80",
    ] {
        assert!(log.contains(part), "{part} in {log}");
    }
}

/// One that cannot be reached is replaced, and ejected in the end; one that says what became of the service that was asked for is replaced, too, but it
/// is there for the others.
#[tokio::test(flavor = "multi_thread")]
async fn another_endpoint_of_the_waypoint_is_tried_and_only_one_that_is_not_there_is_ejected() {
    let pair = Pair::start().await;
    let around = pair.server.echo(APP, "around ");
    let _good = Waypoint::start(&pair, "good", 66, StatusCode::OK);
    let refusing = Waypoint::start(&pair, "refusing", 67, StatusCode::SERVICE_UNAVAILABLE);
    // An address of a namespace that nothing listens in.
    let _dead = pair.hub.attach(&[v4(68)]);
    let service = Service { waypoint: through(), ..service() };
    pair.apply(vec![Change::Service(waypoints()), Change::Service(service)]);
    let there = |name: &str, last| pair.apply(vec![Change::Workload(endpoint(name, last))]);
    // Five failures in a row would eject.
    let ask_until = async |enough: &dyn Fn() -> bool| {
        for n in 0..200 {
            if enough() {
                return;
            }
            let mut app = pair.client.connect(pair.service_address()).await;
            exchange(&mut app, &format!("request {n}")).await;
        }
    };
    there("good", 66);
    there("refusing", 67);
    ask_until(&|| refusing.asked.lock().len() > 6).await;
    assert_eq!((refusing.asked.lock().len() > 6, ejected(&pair)), (true, vec![]));
    there("dead", 68);
    ask_until(&|| !ejected(&pair).is_empty()).await;
    assert_eq!(ejected(&pair), ["dead"]);
    assert_eq!(around.load(SeqCst), 0);
}

/// A service is let go, or bound: the waypoint hears of it first, or the agent does. Neither is a connection that fails.
#[tokio::test(flavor = "multi_thread")]
async fn a_waypoint_that_knows_more_or_less_than_the_agent_is_asked_again() {
    let pair = Pair::start().await;
    let direct = pair.server.echo(APP, "direct ");
    let first = Waypoint::start(&pair, "first", 66, StatusCode::BAD_REQUEST);
    pair.apply(vec![
        Change::Service(waypoints()),
        Change::Workload(endpoint("first", 66)),
        Change::Service(Service { waypoint: through(), ..service() }),
        Change::Workload(serving(pair.server.workload())),
    ]);
    let held = first.answers.acquire().await.unwrap();
    let mut app = pair.client.connect(pair.service_address()).await;
    eventually("the waypoint is asked", || !first.asked.lock().is_empty()).await;
    pair.apply(vec![Change::Service(service())]);
    drop(held);
    expect(&mut app, "direct ").await;
    exchange(&mut app, "at last").await;
    assert_eq!(direct.load(SeqCst), 1);
    // One that never hears of it is asked a few times, then the client is told.
    pair.apply(vec![Change::Service(Service { waypoint: through(), ..service() })]);
    let before = first.asked.lock().len();
    pair.client.expect_refused(pair.service_address()).await;
    assert_eq!((first.asked.lock().len() - before, direct.load(SeqCst)), (7, 1));
}

/// Nothing goes around a waypoint that is not there.
#[tokio::test(flavor = "multi_thread")]
async fn what_has_a_waypoint_that_is_gone_is_refused_and_nothing_is_dialled() {
    let pair = Pair::start().await;
    let around = pair.server.echo(APP, "around ");
    let waypoint = Waypoint::start(&pair, "waypoint", 66, StatusCode::OK);
    let there = endpoint("waypoint", 66);
    let uid = there.uid.clone();
    pair.apply(vec![
        Change::Service(Service { waypoint: through(), ..service() }),
        Change::Workload(Workload { waypoint: through(), ..serving(pair.server.workload()) }),
        Change::Workload(there),
    ]);
    let refused = async |times: u64| {
        for destination in [pair.service_address(), pair.server_address()] {
            pair.client.expect_refused(destination).await;
        }
        assert_eq!(pair.near.refused(Reason::NoWaypoint), times, "{:?}", pair.near.log());
    };
    // Its service is not known; then no endpoint of it is left.
    refused(2).await;
    pair.apply(vec![Change::Service(waypoints()), Change::RemoveAddress(uid)]);
    refused(4).await;
    assert_eq!((pair.near.shared.pool.stats().tunnels, around.load(SeqCst)), (0, 0));
    assert!(waypoint.asked.lock().is_empty() && !pair.far.log().contains("connection"));
}

/// Who comes without an identity does not go around the waypoint of the pod, and is no other one for having come through its agent.
#[tokio::test(flavor = "multi_thread")]
async fn design_10_9_who_has_no_identity_is_led_through_the_waypoint_of_the_pod() {
    use super::plaintext::{plain, plain_refused};
    use crate::bpf::InboundMode;
    use mesh_core::policy::{Action, GUARD, Match, Policy, Scope, StringMatch};
    use mesh_transport::hbone::Authority;
    let pair = Pair::start().await;
    let served = pair.server.echo(APP, "");
    let waypoint = Waypoint::start(&pair, "waypoint", 66, StatusCode::OK);
    let own = identity("waypoint").principal();
    let deny = Match { not_principals: vec![StringMatch::Exact(own.into())], ..Match::default() };
    let guard = policy(&format!("{GUARD}x"), Scope::WorkloadSelector, Action::Deny, vec![vec![deny]]);
    let through_policy = Policy::through(NAMESPACE.into());
    let mut server = Workload { waypoint: through(), ..serving(pair.server.workload()) };
    server.authorization_policies = [through_policy.name.clone(), guard.name.clone()].into();
    pair.apply(vec![
        Change::Policy(through_policy.clone()),
        Change::Policy(guard.clone()),
        Change::Service(waypoints()),
        Change::Workload(endpoint("waypoint", 66)),
        Change::Workload(server.clone()),
    ]);
    // The guard refuses whoever goes around: that nobody does is no reason to refuse him in the kernel. His datagrams nobody leads.
    let open = InboundMode { default_strict: false, ports: vec![], undecided: false };
    eventually("the kernel is in step", || pair.server.mode() == InboundMode { undecided: true, ..open.clone() }).await;
    let mut app = plain(&pair, APP).await;
    exchange(&mut app, "through the waypoint").await;
    // As no waypoint is asked that would take him for the pod.
    assert_eq!(*waypoint.asked.lock(), [Authority::of_stranger(pair.server_address()).to_string()]);
    let client = app.local_addr().unwrap();
    assert_eq!(*waypoint.said.lock(), [format!("for=\"{client}\";identity=\"none\"")]);
    drop(app);
    let line = [&*format!("src.addr={client}"), "dst.workload=\"waypoint\""];
    eventually("the connection in the log", || {
        pair.far.log().lines().any(|l| line.iter().all(|part| l.contains(part)))
    })
    .await;
    assert!(!pair.far.log().contains("src.identity="), "{}", pair.far.log());
    // The waypoint itself does not come to itself.
    let itself = Workload { services: endpoint("waypoint", 66).services, ..pair.client.workload() };
    pair.apply(vec![Change::Workload(itself)]);
    plain_refused(&pair, APP).await;
    pair.apply(vec![Change::Workload(pair.client.workload())]);
    // It is gone, and so is the way.
    pair.apply(vec![Change::RemoveAddress(endpoint("waypoint", 66).uid)]);
    plain_refused(&pair, APP).await;
    assert_eq!((pair.far.refused(Reason::NoWaypoint), served.load(SeqCst)), (2, 0));
    // Nobody is to be led: the guard refuses, in the kernel.
    server.authorization_policies = [guard.name.clone()].into();
    pair.apply(vec![Change::Workload(server.clone())]);
    eventually("the kernel is in step", || pair.server.mode() == InboundMode { default_strict: true, ..open.clone() })
        .await;
    plain_refused(&pair, APP).await;
    // Nor refused.
    server.authorization_policies = [].into();
    pair.apply(vec![Change::Workload(server)]);
    eventually("the kernel is in step", || pair.server.mode() == open).await;
    let mut app = plain(&pair, APP).await;
    exchange(&mut app, "as it was").await;
    assert_eq!((waypoint.asked.lock().len(), served.load(SeqCst)), (1, 1));
}

/// Whom a waypoint of the service names is the client, for policies, for the app and in the log. Of anybody else that is only talk.
#[tokio::test(flavor = "multi_thread")]
async fn design_10_10_a_waypoint_says_who_the_client_is() {
    use super::inbound::{ask_with, status};
    use mesh_core::policy::{Action, Match, Scope, StringMatch};
    use mesh_transport::hbone::{Claimed, ConnectRequest, Forwarded};
    let pair = Pair::start().await;
    pair.server.echo(APP, "");
    let from: SocketAddr = SocketAddr::new(v4(77), 40_001);
    let ask = async |who: Option<&str>| {
        let claimed = who.map(|who| if who == "-" { Claimed::Nobody } else { Claimed::Identity(identity(who)) });
        let said = Forwarded { client: Some(from), identity: claimed, ..Forwarded::default() };
        let request = ConnectRequest { forwarded: Some(said), ..ConnectRequest::to(pair.server_address()) };
        status(ask_with(&pair, request).await)
    };
    let friend =
        Match { principals: vec![StringMatch::Exact(identity("friend").principal().into())], ..Match::default() };
    let own = Match { principals: vec![StringMatch::Exact(identity("client").principal().into())], ..Match::default() };
    let only = |who: Match| Change::Policy(policy("only", Scope::Namespace, Action::Allow, vec![vec![who]]));
    // Nobody's waypoint.
    pair.apply(vec![only(friend.clone())]);
    assert_eq!((ask(Some("friend")).await, ask(None).await), (401, 401));
    pair.apply(vec![only(own.clone())]);
    // Nobody says of itself that it is nobody.
    assert_eq!((ask(Some("friend")).await, ask(Some("-")).await), (200, 503));
    assert_eq!(pair.far.kernel.clients.lock().last().unwrap().ip(), pair.client.ip());
    // The service's.
    let mut waypoint = pair.client.workload();
    let mapping = vec![PortMapping { service_port: HBONE, target_port: TUNNEL }];
    waypoint.services = Arc::new([(waypoints().key(), mapping)].into());
    let bound = Service { waypoint: through(), ..service() };
    pair.apply(vec![Change::Service(waypoints()), Change::Workload(waypoint), Change::Service(bound)]);
    assert_eq!((ask(Some("friend")).await, ask(None).await), (401, 200));
    pair.apply(vec![only(friend)]);
    assert_eq!((ask(Some("friend")).await, ask(Some("guest")).await, ask(None).await), (200, 401, 401));
    assert!(pair.far.kernel.clients.lock().contains(&from));
    // A client that has no identity has none behind a waypoint either.
    assert_eq!(ask(Some("-")).await, 401);
    pair.apply(vec![Change::RemovePolicy(policy_name("only"))]);
    let before = pair.far.kernel.clients.lock().len();
    assert_eq!(ask(Some("-")).await, 200);
    assert_eq!(pair.far.kernel.clients.lock()[before..], [from]);
    let friend = "src.identity=\"spiffe://cluster.local/ns/bookinfo/sa/friend\"";
    eventually("the client in the log", || pair.far.log().contains(friend)).await;
}
