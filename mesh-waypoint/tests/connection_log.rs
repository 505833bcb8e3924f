//! Lines of the access log for connections that are no HTTP, at waypoints and gateways: one when each is over, also if it was refused.
#![allow(clippy::unwrap_used, clippy::panic, non_snake_case, reason = "tests carry the ids of the rows they prove")]

mod support;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use mesh_core::l4::{ConnectionRoutes, Group, Place, Rule as Route, Split};
use mesh_core::l7::cluster::{Keepalive, Policy as Said, Pool};
use mesh_core::l7::policy::{Action, Policy, Rule};
use mesh_core::l7::security::Target as Of;
use mesh_core::l7::{Backend as To, Cluster, Clusters, Forward, HostPattern, Security, Table, Target};
use mesh_core::listener::{Encryption, Listener, Listeners, Passage, Serves, Transport};
use mesh_core::service::AppProtocol;
use mesh_core::telemetry::{AccessLog, LogFormat, Scopes, Telemetry};
use mesh_core::{Change, NamespacedName};
use mesh_waypoint::Settings;
use mesh_waypoint::edge::ports;
use serde_json::Value;
use support::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

struct Log(tempfile::TempDir);

impl Log {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn of(&self, name: &str, format: LogFormat, filter: Option<&str>) -> AccessLog {
        AccessLog { path: self.path(name).to_str().unwrap().into(), format, filter: filter.map(Into::into) }
    }

    /// Waits for that many lines.
    async fn lines(&self, name: &str, count: usize) -> Vec<String> {
        soon("lines", async {
            loop {
                let text = std::fs::read_to_string(self.path(name)).unwrap_or_default();
                if text.lines().count() >= count && text.ends_with('\n') {
                    return text.lines().map(str::to_owned).collect();
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await
    }

    async fn json(&self, count: usize) -> Vec<Value> {
        let lines = self.lines("json", count).await;
        lines.iter().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{line}: {e}"))).collect()
    }
}

fn with(logs: Vec<AccessLog>) -> Settings {
    let waypoint = Arc::new(Telemetry { logs, ..Telemetry::default() });
    Settings { telemetry: Scopes { waypoint, ..Scopes::default() }, ..Settings::default() }
}

/// A server that hears until its client ends, and says six bytes then.
async fn app() -> SocketAddr {
    let listener = listener().await;
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut tcp, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let _ = tcp.read_to_end(&mut Vec::new()).await;
                let _ = tcp.write_all(b"answer").await;
            });
        }
    });
    address
}

/// What comes back over a connection in which this is said; nothing if it is cut.
async fn talk<S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin>(mut stream: S, bytes: &[u8]) -> String {
    let mut heard = String::new();
    let _ = stream.write_all(bytes).await;
    let _ = stream.shutdown().await;
    let _ = soon("end", stream.read_to_string(&mut heard)).await;
    heard
}

fn policies(action: Action) -> Option<Arc<Security>> {
    let name = NamespacedName::new("shop", "p");
    let policy = Policy { name, target: Of::All, action, rules: vec![Rule::default()], dry_run: false };
    Some(Arc::new(Security { policies: vec![Arc::new(policy)], ..Security::default() }))
}

#[tokio::test]
async fn features_TM_7_each_connection_at_a_waypoint_has_a_line_with_its_flags() {
    let app = app().await;
    let gone = nobody().await;
    let backends = [
        Backend::new("app", "10.96.0.11", &[app]).speaking(AppProtocol::Tcp),
        Backend::new("tls", "10.96.0.12", &[app]).speaking(AppProtocol::Tls),
        Backend::new("none", "10.96.0.13", &[]).speaking(AppProtocol::Tcp),
        Backend::new("gone", "10.96.0.14", &[gone]).speaking(AppProtocol::Tcp),
        Backend::new("routed", "10.96.0.15", &[]).speaking(AppProtocol::Tcp),
        Backend::new("closed", "10.96.0.16", &[app]).speaking(AppProtocol::Tcp),
        Backend::new("full", "10.96.0.17", &[app]).speaking(AppProtocol::Tcp),
    ];
    let log = Log::new();
    let text = "%UPSTREAM_CLUSTER% %RESPONSE_FLAGS% %REQ(:METHOD)% %PROTOCOL% %RESPONSE_CODE_DETAILS%\n";
    let logs = vec![
        log.of("json", LogFormat::Json(Vec::new()), None),
        log.of("flags", LogFormat::Text(text.into()), Some("response.flags != 0")),
        log.of(
            "named",
            LogFormat::Text("%BYTES_SENT%\n".into()),
            Some("connection.requested_server_name == 'x.example'"),
        ),
        // There are no requests here.
        log.of("none", LogFormat::Text("%DURATION%\n".into()), Some("response.code >= 400")),
    ];
    let mut waypoint = Waypoint::with(&backends, Table::default(), with(logs)).await;
    let to = |service: &str, split| {
        let rules = vec![Route { origin: "TCPRoute shop/a".into(), conditions: vec![], split }];
        let groups = vec![Group { rules, ..Group::default() }];
        Change::Connections(ConnectionRoutes { service: name(service), groups })
    };
    let place = Place { target: Target::Cluster(cluster("app")), weight: 1 };
    let routes =
        vec![to("routed", Split::new(vec![place]).unwrap()), to("closed", Split::closed("there is no such service"))];
    waypoint.state.set_snapshot(waypoint.store.apply(routes).snapshot);
    let pool = Pool { requests: 0, ..Pool::default() };
    let full = Cluster { policy: Ok(Said { pool, ..Said::default() }), ..Cluster::closed(cluster("full"), "") };
    waypoint.state.set_clusters(Arc::new(Clusters::new([full])));
    let ask = async |address: &str, bytes: &[u8]| {
        let stream = soon("stream", waypoint.stream(address)).await.unwrap();
        talk(stream, bytes).await
    };
    assert_eq!(ask("10.96.0.11:80", b"said").await, "answer");
    assert_eq!(ask("10.96.0.12:80", &hello("x.example")).await, "answer");
    for number in 13..=17 {
        ask(&format!("10.96.0.{number}:80"), b"said").await;
    }
    waypoint.state.set_security(policies(Action::Deny));
    assert_eq!(ask("10.96.0.11:80", b"said").await, "");
    waypoint.state.set_security(policies(Action::Custom("nobody".into())));
    assert_eq!(ask("10.96.0.11:80", b"said").await, "");
    let lines = log.json(9).await;
    assert_eq!(lines.len(), 9, "{lines:?}");
    let asked = |number: usize| format!("10.96.0.{number}:80");
    let hello = hello("x.example").len() as u64;
    let found = |line: &Value, key: &str| line[key].as_str().map_or_else(|| line[key].to_string(), str::to_owned);
    for (index, number, flags, ended, received, sent, attempts, route) in [
        (0, 11, "-", "null", 4, 6, 1, "null"),
        (1, 12, "-", "null", hello, 6, 1, "null"),
        (2, 13, "UH", "null", 0, 0, 0, "null"),
        (3, 14, "UF", "null", 0, 0, 1, "null"),
        (4, 15, "-", "null", 4, 6, 1, "TCPRoute shop/a"),
        (5, 16, "NR", "null", 0, 0, 0, "TCPRoute shop/a"),
        (6, 17, "UO", "null", 0, 0, 0, "null"),
        (7, 11, "-", "rbac_access_denied", 0, 0, 0, "null"),
        (8, 11, "UAEX", "null", 0, 0, 0, "null"),
    ] {
        let line = &lines[index];
        let keys = ["downstream_local_address", "response_flags", "connection_termination_details", "route_name"];
        assert_eq!(keys.map(|key| found(line, key)), [asked(number).as_str(), flags, ended, route], "{line}");
        let keys = ["bytes_received", "bytes_sent", "attempts"];
        assert_eq!(keys.map(|key| line[key].as_u64().unwrap()), [received, sent, attempts], "{line}");
        assert!(line["duration"].is_u64() && line["method"].is_null() && line["protocol"].is_null(), "{line}");
        assert_eq!(line["src.identity"], CLIENT, "{line}");
    }
    let (plain, tls, gone_line) = (&lines[0], &lines[1], &lines[3]);
    assert_eq!(plain["upstream_host"], app.to_string());
    assert_eq!(plain["upstream_cluster"], "inbound-vip|80|tcp|app.shop.svc.cluster.local");
    assert_eq!(plain["dst.service"], "app.shop.svc.cluster.local");
    assert_eq!((&plain["requested_server_name"], &tls["requested_server_name"]), (&Value::Null, &"x.example".into()));
    assert_eq!(gone_line["upstream_host"], gone.to_string());
    assert!(found(gone_line, "upstream_transport_failure_reason").starts_with("delayed_connect_error"), "{gone_line}");
    let flags = log.lines("flags", 5).await;
    assert_eq!(flags[1], "inbound-vip|80|tcp|gone.shop.svc.cluster.local UF - - -");
    assert_eq!(flags.len(), 5, "{flags:?}");
    assert_eq!(log.lines("named", 1).await, ["6"]);
    assert!(!log.path("none").exists() || std::fs::read_to_string(log.path("none")).unwrap().is_empty());
}

/// A client or a server that resets the connection is said to have done so, and a line comes when it is over and not before.
#[tokio::test]
async fn features_TM_7_a_line_says_who_has_cut_a_connection() {
    let (held, mut connections) = tokio::sync::mpsc::unbounded_channel();
    let server = listener().await;
    let app = server.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((tcp, _)) = server.accept().await {
            let _ = held.send(tcp);
        }
    });
    let log = Log::new();
    let logs = vec![log.of("flags", LogFormat::Text("%RESPONSE_FLAGS% %BYTES_RECEIVED%\n".into()), None)];
    let backend = Backend::new("app", "10.96.0.11", &[app]).speaking(AppProtocol::Tcp);
    let waypoint = Waypoint::with(&[backend], Table::default(), with(logs)).await;
    let mut begin = async || {
        let mut stream = soon("stream", waypoint.stream("10.96.0.11:80")).await.unwrap();
        stream.write_all(b"said").await.unwrap();
        let mut tcp: TcpStream = soon("connection", connections.recv()).await.unwrap();
        soon("said", tcp.read_exact(&mut [0; 4])).await.unwrap();
        (stream, tcp)
    };
    let (stream, tcp) = begin().await;
    assert!(!log.path("flags").exists() || std::fs::read(log.path("flags")).unwrap().is_empty());
    drop(stream);
    assert_eq!(log.lines("flags", 1).await, ["DC 4"]);
    drop(tcp);
    let (_stream, tcp) = begin().await;
    socket2::SockRef::from(&tcp).set_linger(Some(Duration::ZERO)).unwrap();
    drop(tcp);
    assert_eq!(log.lines("flags", 2).await, ["DC 4", "UC 4"]);
    let (_stream, _tcp) = begin().await;
    waypoint.drain.cut();
    assert_eq!(log.lines("flags", 3).await, ["DC 4", "UC 4", "LR 4"]);
}

/// What is said of a place: how long its connections may be silent, and signs of life.
fn silent(silence: Option<Duration>, keepalive: Option<Keepalive>) -> Arc<Clusters> {
    let pool = Pool { silence, keepalive, ..Pool::default() };
    let said = Cluster { policy: Ok(Said { pool, ..Said::default() }), ..Cluster::closed(cluster("app"), "") };
    Arc::new(Clusters::new([said]))
}

#[tokio::test]
async fn features_DR_9_a_connection_that_is_silent_for_too_long_is_closed() {
    let log = Log::new();
    let format = "%RESPONSE_FLAGS% %CONNECTION_TERMINATION_DETAILS% %BYTES_RECEIVED%\n";
    let logs = vec![log.of("flags", LogFormat::Text(format.into()), None)];
    let echoes = listener().await;
    let app = echoes.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((tcp, _)) = echoes.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = tcp.into_split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });
    let backend = Backend::new("app", "10.96.0.11", &[app]).speaking(AppProtocol::Tcp);
    let waypoint = Waypoint::with(&[backend], Table::default(), with(logs)).await;
    waypoint.state.set_clusters(silent(Some(Duration::from_millis(300)), None));
    let mut stream = soon("stream", waypoint.stream("10.96.0.11:80")).await.unwrap();
    let began = std::time::Instant::now();
    // What says something now and then stays, for twice as long.
    for _ in 0..12 {
        stream.write_all(b"x").await.unwrap();
        soon("echo", stream.read_exact(&mut [0; 1])).await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(began.elapsed() >= Duration::from_millis(600));
    assert!(soon("end", stream.read(&mut [0; 1])).await.is_err(), "it is reset");
    assert_eq!(log.lines("flags", 1).await, ["SI tcp_session_idle_timeout 12"]);
    // One that goes on talking lasts as long as is said.
    let pool = Pool { lifetime: Some(Duration::from_millis(300)), ..Pool::default() };
    let said = Cluster { policy: Ok(Said { pool, ..Said::default() }), ..Cluster::closed(cluster("app"), "") };
    waypoint.state.set_clusters(Arc::new(Clusters::new([said])));
    let began = std::time::Instant::now();
    let mut stream = soon("stream", waypoint.stream("10.96.0.11:80")).await.unwrap();
    let talk = async { while stream.write_all(b"x").await.is_ok() && stream.read_exact(&mut [0; 1]).await.is_ok() {} };
    soon("end", talk).await;
    // By a clock that goes in ticks.
    assert!(began.elapsed() >= Duration::from_millis(150));
    let line = log.lines("flags", 2).await.pop().unwrap();
    assert!(line.starts_with("DT duration_timeout "), "{line}");
}

#[tokio::test]
async fn features_DR_9_connections_to_endpoints_show_signs_of_life_where_that_is_said() {
    let app = app().await;
    let backend = Backend::new("app", "10.96.0.11", &[app]).speaking(AppProtocol::Tcp);
    let waypoint = Waypoint::with(&[backend], Table::default(), with(Vec::new())).await;
    // Of the socket that is connected to the server (state 1): which timer runs, 2 is that of signs of life.
    let SocketAddr::V4(v4) = app else { panic!("{app}") };
    let remote = format!("{:08X}:{:04X}", u32::from_ne_bytes(v4.ip().octets()), v4.port());
    let timer = || {
        let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
        let socket = table
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>())
            .find(|line| line[2] == remote && line[3] == "01");
        socket.map(|line| line[5][..2].to_owned())
    };
    let after = Some(Duration::from_secs(60));
    for (keepalive, expected) in [(None, "00"), (Some(Keepalive { after, ..Keepalive::default() }), "02")] {
        waypoint.state.set_clusters(silent(None, keepalive));
        let stream = soon("stream", waypoint.stream("10.96.0.11:80")).await.unwrap();
        soon(expected, async {
            while timer().as_deref() != Some(expected) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
        talk(stream, b"").await;
        soon("end", async {
            while timer().is_some() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
    }
}

/// One answer of `echo`.
async fn asks<S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin>(stream: &mut S) -> std::io::Result<()> {
    stream.write_all(b"said").await?;
    soon("echo", stream.read_exact(&mut [0; 4])).await.map(drop)
}

/// A server that says what it hears.
async fn parrot() -> SocketAddr {
    let listener = listener().await;
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = tcp.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });
    address
}

/// Features 3.6: what is open is judged again when policies change, and ended if they deny it now.
#[tokio::test]
async fn features_3_6_open_connections_end_when_policies_deny_them() {
    let app = parrot().await;
    let log = Log::new();
    let text = "%RESPONSE_FLAGS% %CONNECTION_TERMINATION_DETAILS% %BYTES_RECEIVED%\n";
    let logs = vec![log.of("ended", LogFormat::Text(text.into()), None)];
    let backend = Backend::new("app", "10.96.0.11", &[app]).speaking(AppProtocol::Tcp);
    let waypoint = Waypoint::with(&[backend], Table::default(), with(logs)).await;
    let mut dry = Security::clone(&policies(Action::Deny).unwrap());
    dry.policies = vec![Arc::new(Policy { dry_run: true, ..Policy::clone(&dry.policies[0]) })];
    let dry = Arc::new(dry);
    for (round, action) in [Action::Deny, Action::Custom("nobody".into())].into_iter().enumerate() {
        waypoint.state.set_security(Some(Arc::default()));
        let mut stream = soon("stream", waypoint.stream("10.96.0.11:80")).await.unwrap();
        asks(&mut stream).await.unwrap();
        // What lets it through, and what would only have denied it, changes nothing.
        for security in [policies(Action::Allow), Some(Arc::clone(&dry))] {
            waypoint.state.set_security(security);
            asks(&mut stream).await.unwrap();
        }
        waypoint.state.set_security(policies(action));
        let ended = soon("end", stream.read(&mut [0; 1])).await;
        assert!(ended.is_err(), "{ended:?}");
        let lines = log.lines("ended", round + 1).await;
        assert!(lines.len() == round + 1 && lines.iter().all(|line| line == "- rbac_access_denied 12"), "{lines:?}");
    }
}

#[tokio::test]
async fn features_TM_7_each_connection_at_a_gateway_has_a_line_with_its_flags() {
    let app = app().await;
    let backends = [Backend::new("app", "10.96.0.11", &[app]), Backend::new("none", "10.96.0.12", &[])];
    let log = Log::new();
    let logs = vec![log.of("json", LogFormat::Json(Vec::new()), None)];
    let gateway = Waypoint::with(&backends, Table::default(), with(logs)).await;
    tokio::spawn(ports::keep(gateway.engine.clone(), HERE, vec![gateway.address.port()], gateway.drain.token()));
    let mut ports = Vec::new();
    for _ in 0..3 {
        ports.push(TcpListener::bind((HERE, 0)).await.unwrap().local_addr().unwrap().port());
    }
    let passage = |host: &str, service: &str| {
        let forward = Forward::new(vec![To::new(Target::Cluster(cluster(service)), 1)]).unwrap();
        let hosts = vec![HostPattern::parse(host).unwrap()];
        Serves::Bytes(vec![Passage { origin: format!("Route shop/{service}").as_str().into(), hosts, forward }])
    };
    let listener = |bind: u16, encryption, host: &str, serves| {
        let (name, gateway) = (format!("l{bind}").as_str().into(), "shop/edge".into());
        let hosts = vec![HostPattern::parse(host).unwrap()];
        let transport = Transport::Tcp;
        Arc::new(Listener { name, gateway, port: bind, bind, transport, hosts, encryption, serves })
    };
    let all = vec![
        listener(ports[0], Encryption::None, "*", passage("*", "app")),
        listener(ports[1], Encryption::Passes, "*.example", passage("a.example", "app")),
        listener(ports[2], Encryption::None, "*", passage("*", "none")),
    ];
    gateway.state.set_listeners(Arc::new(Listeners::new("shop/edge", all)));
    let ask = async |port: u16, bytes: &[u8]| {
        let connected = soon("the port is open", async {
            loop {
                match TcpStream::connect((HERE, port)).await {
                    Ok(tcp) => return tcp,
                    Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
                }
            }
        });
        let tcp = connected.await;
        let from = tcp.local_addr().unwrap().to_string();
        (from, talk(tcp, bytes).await)
    };
    let good = hello("a.example");
    let mut clients = Vec::new();
    for (port, bytes, expected) in [
        (ports[0], &b"said"[..], "answer"),
        (ports[1], &good, "answer"),
        // The route has not the name; no listener has the other one.
        (ports[1], &hello("b.example"), ""),
        (ports[1], &hello("elsewhere.test"), ""),
        (ports[2], b"said", ""),
    ] {
        let (from, heard) = ask(port, bytes).await;
        assert!(heard.starts_with(expected) && (expected.is_empty() || heard == expected), "{port}: {heard:?}");
        clients.push(from);
        log.json(clients.len()).await;
    }
    let lines = log.json(5).await;
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    for (index, flags, name, route, received, sent) in [
        (0, "-", "-", "Route shop/app", 4, 6),
        (1, "-", "a.example", "Route shop/app", good.len() as u64, 6),
        (2, "NR", "b.example", "-", 0, 0),
        (3, "NR", "elsewhere.test", "-", 0, 0),
        (4, "UH", "-", "Route shop/none", 0, 0),
    ] {
        let line = &lines[index];
        let keys = ["response_flags", "requested_server_name", "route_name"];
        assert_eq!(keys.map(|key| text(&line[key])), [flags, name, route], "{line}");
        assert_eq!(["bytes_received", "bytes_sent"].map(|key| line[key].as_u64().unwrap()), [received, sent], "{line}");
        assert_eq!(text(&line["downstream_remote_address"]), clients[index]);
    }
    // The numbers mean the same as the lines.
    let said = |metric: &str| {
        let shown = gateway.scrape();
        let of_app = |line: &&str| line.starts_with(metric) && line.contains("destination_service_name=\"app\"");
        let values = shown.lines().filter(of_app).filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok());
        values.sum::<u64>()
    };
    assert_eq!(
        (said("istio_tcp_received_bytes_total"), said("istio_tcp_sent_bytes_total")),
        (4 + good.len() as u64, 12)
    );
    // What is open is judged again when policies change.
    let mut open = TcpStream::connect((HERE, ports[0])).await.unwrap();
    open.write_all(b"said").await.unwrap();
    soon("it is counted", async {
        while said("istio_tcp_received_bytes_total") < 8 + good.len() as u64 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    gateway.state.set_security(policies(Action::Deny));
    let ended = soon("end", open.read(&mut [0; 1])).await;
    assert!(ended.is_err(), "{ended:?}");
    let line = log.json(6).await.pop().unwrap();
    assert_eq!(text(&line["connection_termination_details"]), "rbac_access_denied", "{line}");
}
