//! A gateway's UDP ports: sessions of clients from outside of the mesh, and what becomes of datagrams that lead nowhere.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]
#![allow(non_snake_case, reason = "tests carry the ids of the rows they prove")]

mod support;

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use mesh_core::l7::{HostPattern, Table, Target};
use mesh_core::listener::{DatagramPlace, DatagramRoute, Encryption, Listener, Listeners, Serves, Transport};
use mesh_core::telemetry::{AccessLog, Scopes, Telemetry};
use mesh_runtime::Drained;
use mesh_waypoint::Settings;
use mesh_waypoint::edge::ports;
use support::{Backend, Waypoint, cluster, soon};
use tokio::net::UdpSocket;

const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// Says its name and what it was told.
async fn echo(name: &'static str, at: &str) -> SocketAddr {
    counting(name, at).await.0
}

/// The same, with the bytes that came and that went.
async fn counting(name: &'static str, at: &str) -> (SocketAddr, Arc<[AtomicU64; 2]>) {
    let socket = UdpSocket::bind(at).await.unwrap();
    let address = socket.local_addr().unwrap();
    let bytes: Arc<[AtomicU64; 2]> = Arc::default();
    let counted = bytes.clone();
    tokio::spawn(async move {
        let mut buffer = [0; 2000];
        while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
            let answer = [name.as_bytes(), b" ", &buffer[..length]].concat();
            let sent = socket.send_to(&answer, from).await.unwrap_or_default();
            counted[0].fetch_add(length as u64, Relaxed);
            counted[1].fetch_add(sent as u64, Relaxed);
        }
    });
    (address, bytes)
}

/// No session is over because the machine was busy.
fn patient() -> Settings {
    Settings { datagram_answered: Duration::from_secs(60), ..Settings::default() }
}

async fn free() -> u16 {
    UdpSocket::bind((HERE, 0)).await.unwrap().local_addr().unwrap().port()
}

fn place(service: &str, at: SocketAddr, weight: u32) -> DatagramPlace {
    DatagramPlace { target: Target::Cluster(cluster(service)), port: at.port(), weight }
}

/// A gateway with these services, whose port `port` leads to these places.
async fn gateway(backends: &[Backend], settings: Settings, port: u16, places: Vec<DatagramPlace>) -> Waypoint {
    let gateway = Waypoint::with(backends, Table::default(), settings).await;
    tokio::spawn(ports::keep(gateway.engine.clone(), HERE, vec![gateway.address.port()], gateway.drain.token()));
    lead(&gateway, port, Some(places));
    gateway
}

fn lead(gateway: &Waypoint, port: u16, places: Option<Vec<DatagramPlace>>) {
    lead_all(gateway, vec![(port, places)]);
}

fn lead_all(gateway: &Waypoint, ports: Vec<(u16, Option<Vec<DatagramPlace>>)>) {
    let listener = |(port, places): (u16, Option<Vec<DatagramPlace>>)| {
        let route = places.map(|places| DatagramRoute::new("UDPRoute shop/a", places).unwrap());
        Arc::new(Listener {
            name: "Gateway shop/edge udp".into(),
            gateway: "shop/edge".into(),
            port,
            bind: port,
            transport: Transport::Udp,
            hosts: vec![HostPattern::Any],
            encryption: Encryption::None,
            serves: Serves::Datagrams(route),
        })
    };
    gateway.state.set_listeners(Arc::new(Listeners::new("shop/edge", ports.into_iter().map(listener).collect())));
}

async fn client(port: u16) -> UdpSocket {
    let client = UdpSocket::bind((HERE, 0)).await.unwrap();
    client.connect((HERE, port)).await.unwrap();
    client
}

/// Asks until there is an answer: datagrams get lost, and at first the port is not open.
async fn ask(client: &UdpSocket, what: &str) -> String {
    soon(what, async {
        let mut buffer = [0; 2000];
        loop {
            let _ = client.send(what.as_bytes()).await;
            match tokio::time::timeout(Duration::from_millis(200), client.recv(&mut buffer)).await {
                Ok(Ok(length)) if buffer[..length].ends_with(what.as_bytes()) => {
                    return String::from_utf8_lossy(&buffer[..length]).into_owned();
                }
                Ok(Err(_)) => tokio::time::sleep(Duration::from_millis(10)).await,
                _ => {}
            }
        }
    })
    .await
}

/// Asks once: whoever goes on after an answer talks.
async fn ask_once(client: &UdpSocket, what: &str) -> String {
    client.send(what.as_bytes()).await.unwrap();
    let mut buffer = [0; 2000];
    let length = soon(what, client.recv(&mut buffer)).await.unwrap();
    String::from_utf8_lossy(&buffer[..length]).into_owned()
}

/// Sends what is not answered until a line of the metrics is there.
async fn drop_until(gateway: &Waypoint, client: &UdpSocket, line: &str) {
    soon(line, async {
        loop {
            let _ = client.send(b"x").await;
            if value(gateway, line) > 0 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

fn value(gateway: &Waypoint, start: &str) -> u64 {
    let shown = gateway.scrape();
    let lines = shown.lines().filter(|line| line.starts_with(start));
    lines.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
}

async fn until(gateway: &Waypoint, start: &str, expected: u64) {
    soon(start, async {
        while value(gateway, start) != expected {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

fn backend(service: &'static str, vip: &'static str, at: SocketAddr) -> Backend {
    // That the service has a waypoint means nothing to datagrams.
    Backend::new(service, vip, &[at])
}

#[tokio::test]
async fn features_GA_UDPRoute_a_session_goes_to_one_endpoint_is_counted_and_logged() {
    let (at, app) = counting("app", "127.0.0.1:0").await;
    let (backends, port) = ([backend("app", "10.96.0.1", at)], free().await);
    let first = gateway(&backends, patient(), port, vec![place("app", at, 1)]).await;
    let talking = client(port).await;
    for what in ["one", "two", "three"] {
        assert_eq!(ask(&talking, what).await, format!("app {what}"));
    }
    // The first datagram of a session arrives, too.
    assert_eq!(ask_once(&client(port).await, "once").await, "app once");
    until(&first, &format!("undermesh_udp_sessions{{port=\"{port}\"}}"), 2).await;
    assert_eq!(value(&first, "undermesh_udp_sessions_opened_total{"), 2);
    // What is asked twice because the machine is busy is counted twice by both.
    let bytes = |kind: &str| value(&first, &format!("undermesh_udp_{kind}_bytes_total{{"));
    soon("as many bytes as the app has seen", async {
        while [bytes("received"), bytes("sent")] != app.each_ref().map(|seen| seen.load(Relaxed)) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    let shown = first.scrape();
    assert!(bytes("received") >= 15 && bytes("sent") >= 31, "{shown}");
    let line = shown.lines().find(|line| line.starts_with("undermesh_udp_received_bytes_total")).unwrap();
    for label in [
        "destination_service=\"app.shop.svc.cluster.local\"",
        "destination_workload=\"app\"",
        "request_protocol=\"udp\"",
        "connection_security_policy=\"unknown\"",
    ] {
        assert!(line.contains(label), "{label}: {line}");
    }

    // Who asked once and was answered is soon forgotten; who talks stays.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    let log = AccessLog { path: path.to_str().unwrap().into(), ..AccessLog::default() };
    let telemetry = Telemetry { logs: vec![log], ..Telemetry::default() };
    let telemetry = Scopes { waypoint: Arc::new(telemetry), ..Scopes::default() };
    let settings = Settings { telemetry, datagram_answered: Duration::from_millis(50), ..Settings::default() };
    let port = free().await;
    let second = gateway(&backends, settings, port, vec![place("app", at, 1)]).await;
    let talking = client(port).await;
    let opened = || value(&second, "undermesh_udp_sessions_opened_total{");
    soon("two questions in one session", async {
        for turn in 0.. {
            ask(&talking, &format!("one {turn}")).await;
            let before = opened();
            ask(&talking, &format!("two {turn}")).await;
            if opened() == before {
                return;
            }
        }
    })
    .await;
    let asked = client(port).await;
    assert_eq!(ask_once(&asked, "once").await, "app once");
    until(&second, &format!("undermesh_udp_sessions{{port=\"{port}\"}}"), 1).await;
    let before = opened();
    until(&second, "undermesh_udp_sessions_closed_total{", before - 1).await;
    assert_eq!(ask(&talking, "four").await, "app four");
    assert_eq!(opened(), before, "it was forgotten");
    let name = asked.local_addr().unwrap().to_string();
    let line = soon("a line of the log", async {
        loop {
            let written = std::fs::read_to_string(&path).unwrap_or_default();
            let mut lines = written.split_inclusive('\n').filter(|line| line.ends_with('\n'));
            if let Some(line) = lines.find(|line| line.contains(&name)) {
                return line.to_owned();
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    assert!(line.contains(&at.to_string()) && line.contains(" 4 8 "), "{line}");
    assert!(line.contains("\"- - -\" 0 - - - ") && line.contains("|udp|app.shop"), "{line}");
}

#[tokio::test]
async fn features_GA_UDPRoute_sessions_follow_edits_and_an_endpoint_that_is_not_there_is_left() {
    let (one, port) = (echo("one", "127.0.0.1:0").await, free().await);
    let two = echo("two", "127.0.0.2:0").await;
    // Below the ports that sockets get by themselves, at an address of its own.
    let nobody = SocketAddr::new([127, 0, 0, 3].into(), free().await / 2);
    let backends =
        [backend("one", "10.96.0.1", one), backend("two", "10.96.0.2", two), backend("nobody", "10.96.0.3", nobody)];
    let gateway = gateway(&backends, patient(), port, vec![place("one", one, 1), place("two", two, 0)]).await;
    let talking = client(port).await;
    assert_eq!(ask(&talking, "a").await, "one a");
    lead(&gateway, port, Some(vec![place("one", one, 3), place("two", two, 0)]));
    assert_eq!(ask(&talking, "b").await, "one b");
    assert_eq!(value(&gateway, "undermesh_udp_sessions_opened_total{"), 1, "it is the same session");
    lead(&gateway, port, Some(vec![place("one", one, 0), place("two", two, 1)]));
    assert_eq!(ask(&talking, "c").await, "two c");
    // Nobody is at that port; ICMP says so, and what comes next is a session of its own.
    lead(&gateway, port, Some(vec![place("nobody", nobody, 1)]));
    drop_until(&gateway, &talking, &format!("undermesh_udp_dropped_total{{port=\"{port}\",reason=\"unreachable\"}}"))
        .await;
    echo("back", &nobody.to_string()).await;
    assert_eq!(ask(&talking, "d").await, "back d");
    // Without the listener nobody is there either.
    gateway.state.set_listeners(Arc::new(Listeners::new("shop/edge", vec![])));
    soon("the port is closed", async {
        let mut buffer = [0; 100];
        loop {
            let _ = talking.send(b"x").await;
            let heard = tokio::time::timeout(Duration::from_millis(50), talking.recv(&mut buffer)).await;
            if heard.is_ok_and(|heard| heard.is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)) {
                return;
            }
        }
    })
    .await;
    until(&gateway, &format!("undermesh_udp_sessions{{port=\"{port}\"}}"), 0).await;
}

#[tokio::test]
async fn features_GA_UDPRoute_what_leads_nowhere_is_dropped_and_counted() {
    let (at, port) = (echo("app", "127.0.0.1:0").await, free().await);
    let empty = Backend { endpoints: vec![], ..backend("empty", "10.96.0.2", at) };
    let gateway = gateway(&[backend("app", "10.96.0.1", at), empty], Settings::default(), port, vec![]).await;
    let client = client(port).await;
    let dropped = |why: &str| format!("undermesh_udp_dropped_total{{port=\"{port}\",reason=\"{why}\"}}");
    let broken = DatagramPlace { target: Target::Broken("gone".into()), port: 0, weight: 1 };
    for (places, why) in [
        (None, "no_route"),
        (Some(vec![place("app", at, 0)]), "no_route"),
        (Some(vec![broken]), "no_route"),
        (Some(vec![place("empty", at, 1)]), "no_endpoint"),
        (Some(vec![place("unknown", at, 1)]), "no_endpoint"),
    ] {
        lead(&gateway, port, places);
        let before = value(&gateway, &dropped(why));
        soon(why, async {
            while value(&gateway, &dropped(why)) == before {
                let _ = client.send(b"x").await;
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
    }
    assert_eq!(value(&gateway, "undermesh_udp_sessions_opened_total"), 0);
    // Nothing is let through while nothing is known of policies.
    lead(&gateway, port, Some(vec![place("app", at, 1)]));
    assert_eq!(ask(&client, "a").await, "app a");
    gateway.state.set_security(None);
    drop_until(&gateway, &client, &dropped("denied")).await;
    gateway.state.set_security(Some(Arc::default()));
    assert_eq!(ask(&client, "b").await, "app b");
}

#[tokio::test]
async fn hardening_a_flood_of_clients_displaces_nobody_who_talks() {
    let (at, port) = (echo("app", "127.0.0.1:0").await, free().await);
    let settings = Settings { datagram_sessions: 4, client_datagram_sessions: 100, ..patient() };
    let backends = [backend("app", "10.96.0.1", at)];
    let first = gateway(&backends, settings, port, vec![place("app", at, 1)]).await;
    let talking = client(port).await;
    assert_eq!(ask(&talking, "a").await, "app a");
    assert_eq!(ask(&talking, "b").await, "app b");
    for _ in 0..20 {
        assert_eq!(ask_once(&client(port).await, "flood").await, "app flood");
    }
    assert!(value(&first, "undermesh_udp_displaced_total") >= 17, "{}", first.scrape());
    assert_eq!(value(&first, &format!("undermesh_udp_sessions{{port=\"{port}\"}}")), 4);
    let opened = value(&first, "undermesh_udp_sessions_opened_total{");
    assert_eq!(ask(&talking, "c").await, "app c");
    assert_eq!(value(&first, "undermesh_udp_sessions_opened_total{"), opened, "it was not displaced");
    // One client has its share.
    let (settings, port) = (Settings { client_datagram_sessions: 2, ..patient() }, free().await);
    let second = gateway(&backends, settings, port, vec![place("app", at, 1)]).await;
    let (one, two, three) = (client(port).await, client(port).await, client(port).await);
    assert_eq!((ask(&one, "1").await, ask(&two, "2").await), ("app 1".to_owned(), "app 2".to_owned()));
    let line = format!("undermesh_udp_dropped_total{{port=\"{port}\",reason=\"client_session_limit\"}}");
    drop_until(&second, &three, &line).await;
}

#[tokio::test]
async fn hardening_the_process_has_its_limit_and_a_flood_at_one_port_takes_nothing_from_another() {
    let (at, port, other) = (echo("app", "127.0.0.1:0").await, free().await, free().await);
    let settings = Settings { datagram_sessions_together: 3, ..patient() };
    let gateway = gateway(&[backend("app", "10.96.0.1", at)], settings, port, vec![place("app", at, 1)]).await;
    let places = || Some(vec![place("app", at, 1)]);
    lead_all(&gateway, vec![(port, places()), (other, places())]);
    let (one, two) = (client(port).await, client(other).await);
    for client in [&one, &two] {
        assert_eq!((ask(client, "a").await, ask(client, "b").await), ("app a".to_owned(), "app b".to_owned()));
    }
    for _ in 0..5 {
        assert_eq!(ask_once(&client(port).await, "flood").await, "app flood");
    }
    let displaced = |at: u16| value(&gateway, &format!("undermesh_udp_displaced_total{{port=\"{at}\"}}"));
    assert_eq!((displaced(port), displaced(other)), (4, 0), "the silent make room for each other");
    let line = format!("undermesh_udp_dropped_total{{port=\"{other}\",reason=\"process_session_limit\"}}");
    drop_until(&gateway, &client(other).await, &line).await;
    assert_eq!((displaced(port), displaced(other)), (4, 0), "nobody makes room for a stranger of another port");
    let opened = value(&gateway, "undermesh_udp_sessions_opened_total{");
    assert_eq!((ask(&one, "c").await, ask(&two, "c").await), ("app c".to_owned(), "app c".to_owned()));
    assert_eq!(value(&gateway, "undermesh_udp_sessions_opened_total{"), opened, "both go on");
    // What ends gives its place back.
    lead_all(&gateway, vec![(port, None), (other, places())]);
    let line = format!("undermesh_udp_dropped_total{{port=\"{port}\",reason=\"no_route\"}}");
    drop_until(&gateway, &one, &line).await;
    assert_eq!(ask(&client(other).await, "d").await, "app d");
    assert_eq!(displaced(other), 0);
}

#[tokio::test]
async fn a_drain_lets_sessions_end_and_begins_none() {
    let (at, port) = (echo("app", "127.0.0.1:0").await, free().await);
    let settings = Settings { drain_idle: Duration::from_secs(10), ..patient() };
    let gateway = gateway(&[backend("app", "10.96.0.1", at)], settings, port, vec![place("app", at, 1)]).await;
    let talking = client(port).await;
    assert_eq!(ask(&talking, "a").await, "app a");
    gateway.drain.start();
    let fresh = client(port).await;
    let line = format!("undermesh_udp_dropped_total{{port=\"{port}\",reason=\"draining\"}}");
    soon("a session goes on", async {
        while value(&gateway, &line) == 0 {
            assert_eq!(ask(&talking, "b").await, "app b");
            fresh.send(b"x").await.unwrap();
        }
    })
    .await;
    assert_eq!(gateway.drain.drain(Duration::from_secs(40)).await, Drained::Clean);
    assert_eq!(value(&gateway, &format!("undermesh_udp_sessions{{port=\"{port}\"}}")), 0);
}
