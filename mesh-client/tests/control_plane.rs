//! The stream driver against an ADS server over TLS: what goes over the wire, and what happens when either side misbehaves.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]
#![allow(non_snake_case, reason = "tests carry the ids of the rows they prove")]

mod common;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use common::{ControlPlane, no_authority, until};
use mesh_client::{ClientMetrics, ControlConfig};
use mesh_core::{Change, Snapshot, Store, Workload};
use mesh_proto::{
    ADDRESS_TYPE, AUTHORIZATION_TYPE, CLUSTERS_TYPE, CONNECTION_ROUTES_TYPE, OUTBOUND_TYPE, WORKLOAD_LABELS_TYPE,
    convert,
    discovery::{Any, DeltaDiscoveryResponse, Resource},
};
use parking_lot::Mutex;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
};
use tonic::Status;

/// A client with a store behind it.
struct Agent {
    snapshot: Arc<Mutex<Arc<Snapshot>>>,
    metrics: ClientMetrics,
    want: tokio::sync::mpsc::Sender<std::net::IpAddr>,
    task: JoinHandle<()>,
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Agent {
    fn start(config: ControlConfig) -> Self {
        Self::with_fault(config, || None)
    }

    /// `fault` makes the sink refuse.
    fn with_fault(config: ControlConfig, fault: impl Fn() -> Option<String> + Send + 'static) -> Self {
        let (mut store, metrics) = (Store::new(), ClientMetrics::default());
        let snapshot = Arc::new(Mutex::new(store.snapshot()));
        let published = Arc::clone(&snapshot);
        let sink = move |changes: Vec<Change>| {
            if let Some(problem) = fault() {
                return Err(problem);
            }
            *published.lock() = store.apply(changes).snapshot;
            Ok(())
        };
        let counted = metrics.clone();
        let (want, wanted) = tokio::sync::mpsc::channel(8);
        let task =
            tokio::spawn(async move { match mesh_client::run(Arc::new(config), sink, wanted, counted).await {} });
        Self { snapshot, metrics, want, task }
    }

    fn workloads(&self) -> usize {
        self.snapshot.lock().counts().0
    }

    fn is_synced(&self) -> bool {
        self.snapshot.lock().is_synced()
    }
}

fn workload(n: usize) -> Resource {
    let mut workload = Workload::new(format!("c//Pod/shop/cart-{n}"), "shop", format!("cart-{n}"));
    workload.addresses = vec![std::net::IpAddr::from((0xc612_0000 + n as u32).to_be_bytes())];
    Resource {
        name: workload.uid.to_string(),
        version: format!("{n:016x}"),
        resource: Some(Any { type_url: ADDRESS_TYPE.into(), value: convert::encode_workload(&workload).into() }),
        ..Resource::default()
    }
}

fn addresses(nonce: &str, resources: Vec<Resource>) -> DeltaDiscoveryResponse {
    DeltaDiscoveryResponse {
        type_url: ADDRESS_TYPE.into(),
        nonce: nonce.into(),
        resources,
        ..DeltaDiscoveryResponse::default()
    }
}

fn no_policies() -> DeltaDiscoveryResponse {
    DeltaDiscoveryResponse { type_url: AUTHORIZATION_TYPE.into(), nonce: "p".into(), ..Default::default() }
}

#[tokio::test]
async fn subscribes_applies_and_acknowledges() {
    let mut server = ControlPlane::start(no_authority()).await;
    let agent = Agent::start(server.config());
    let mut stream = server.stream().await;
    assert_eq!(stream.metadata.get("authorization").unwrap(), "Bearer secret-1");
    assert_eq!(stream.metadata.get("clusterid").unwrap(), "Kubernetes");
    let mut requests = Vec::new();
    for _ in 0..6 {
        requests.push(stream.request().await);
    }
    let types: Vec<_> = requests.iter().map(|request| &*request.type_url).collect();
    let ours = [CLUSTERS_TYPE, CONNECTION_ROUTES_TYPE, OUTBOUND_TYPE, WORKLOAD_LABELS_TYPE];
    assert_eq!(types, [&[ADDRESS_TYPE, AUTHORIZATION_TYPE], &ours[..]].concat());
    let node = requests[0].node.clone().unwrap();
    assert_eq!(node.id, "ztunnel~1.1.1.1~node-1.undermesh-system~undermesh-system.svc.cluster.local");
    assert!(
        ["NODE_NAME", "CLUSTER_ID", "NAMESPACE"].iter().all(|k| node
            .metadata
            .as_ref()
            .unwrap()
            .fields
            .contains_key(*k))
    );

    stream.respond(addresses("n1", vec![workload(1), workload(2)])).await;
    let ack = stream.request().await;
    assert_eq!((&*ack.type_url, &*ack.response_nonce, ack.error_detail), (ADDRESS_TYPE, "n1", None));
    // The answer comes after the changes are in force.
    assert_eq!(agent.workloads(), 2);
    assert!(!agent.is_synced());
    stream.respond(no_policies()).await;
    stream.request().await;
    assert!(!agent.is_synced());
    for type_url in ours {
        stream.respond(DeltaDiscoveryResponse { type_url: type_url.into(), ..no_policies() }).await;
        stream.request().await;
    }
    assert!(agent.is_synced() && agent.metrics.is_connected());

    let bad = Resource { name: "c//Pod/shop/bad".into(), ..workload(9) };
    stream.respond(addresses("n2", vec![bad, workload(3)])).await;
    let nack = stream.request().await;
    assert!(nack.error_detail.unwrap().message.contains("c//Pod/shop/bad"));
    assert_eq!(agent.workloads(), 3);
}

#[tokio::test]
async fn a_batch_that_cannot_be_applied_is_refused() {
    let mut server = ControlPlane::start(no_authority()).await;
    let _agent = Agent::with_fault(server.config(), || Some("kernel map full".into()));
    let mut stream = server.stream().await;
    stream.respond(addresses("n1", vec![workload(1)])).await;
    let nack = loop {
        let request = stream.request().await;
        if !request.response_nonce.is_empty() {
            break request;
        }
    };
    assert_eq!(nack.error_detail.unwrap().message, "kernel map full");
}

#[tokio::test]
async fn reconnects_with_versions_and_a_new_token() {
    let mut server = ControlPlane::start(no_authority()).await;
    let agent = Agent::start(server.config());
    let stream = server.stream().await;
    stream.respond(addresses("n1", vec![workload(1), workload(2)])).await;
    stream.respond(no_policies()).await;
    until("the state", || agent.workloads() == 2 && agent.is_synced()).await;
    std::fs::write(server.path("token"), "secret-2").unwrap();
    stream.fail(Status::internal("restart")).await;
    let mut stream = server.stream().await;
    assert_eq!(stream.metadata.get("authorization").unwrap(), "Bearer secret-2");
    let request = stream.request().await;
    assert_eq!(request.initial_resource_versions.len(), 2);
    assert_eq!(request.initial_resource_versions["c//Pod/shop/cart-2"], "0000000000000002");
    // What was known stays known throughout.
    assert!(agent.workloads() == 2 && agent.is_synced());
}

#[tokio::test]
async fn hardening_B106_every_way_to_end_a_stream_is_followed_by_a_growing_delay() {
    let mut server = ControlPlane::start(no_authority()).await;
    let _agent = Agent::start(server.config());
    let (start, mut streams) = (Instant::now(), 0);
    while start.elapsed() < Duration::from_secs(4) {
        if let Ok(stream) = tokio::time::timeout(Duration::from_millis(50), server.stream()).await {
            streams += 1;
            match streams % 4 {
                0 => stream.fail(Status::internal("x")).await,
                1 => stream.fail(Status::resource_exhausted("x")).await,
                2 => stream.fail(Status::unavailable("x")).await,
                _ => drop(stream),
            }
        }
    }
    assert!((2..=20).contains(&streams), "{streams} streams in four seconds");
}

#[tokio::test]
async fn hardening_B107_a_control_plane_that_is_not_ours_gets_nothing() {
    let other = ControlPlane::start(no_authority()).await;
    for wrong in ["authority", "name", "no root file", "empty root file", "no token file", "token of two lines"] {
        let mut server = ControlPlane::start(no_authority()).await;
        let mut config = server.config();
        match wrong {
            "authority" => config.root_cert = other.path("root.pem"),
            "name" => config.server_name = "someone.else".into(),
            "no root file" => config.root_cert = server.path("absent"),
            "empty root file" => {
                std::fs::write(server.path("empty"), "").unwrap();
                config.root_cert = server.path("empty");
            }
            "no token file" => config.token = Some(server.path("absent")),
            _ => std::fs::write(server.path("token"), "one\ntwo").unwrap(),
        }
        let agent = Agent::start(config);
        until(wrong, || agent.metrics.last_error().is_some()).await;
        assert!(server.try_stream().is_none() && !agent.metrics.is_connected(), "{wrong}");
    }
}

#[tokio::test]
async fn the_servers_name_may_differ_from_its_address() {
    let mut server = ControlPlane::start(no_authority()).await;
    let _agent = Agent::start(ControlConfig { server_name: "istiod.test".into(), ..server.config() });
    server.stream().await;
}

#[tokio::test]
async fn features_F9_a_control_plane_that_comes_late_is_found() {
    let mut server = ControlPlane::start(no_authority()).await;
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let config = ControlConfig { address: free.to_string(), ..server.config() };
    let agent = Agent::start(config);
    until("a failure", || agent.metrics.last_error().is_some()).await;
    assert!(!agent.is_synced());
    let _relay = relay(free, server.address).await;
    server.stream().await;
}

#[tokio::test]
async fn hardening_F13_an_empty_state_is_not_believed_at_once() {
    let mut server = ControlPlane::start(no_authority()).await;
    let mut config = server.config();
    config.limits.hold_ms = 1_000;
    let agent = Agent::start(config);
    let mut stream = server.stream().await;
    stream.respond(addresses("n1", (0..20).map(workload).collect())).await;
    stream.respond(no_policies()).await;
    until("the state", || agent.workloads() == 20).await;
    let names: Vec<String> = (0..20).map(|n| format!("c//Pod/shop/cart-{n}")).collect();
    let emptied = || DeltaDiscoveryResponse { removed_resources: names.clone(), ..addresses("n2", vec![]) };
    stream.respond(emptied()).await;
    while stream.request().await.response_nonce != "n2" {}
    assert_eq!(agent.workloads(), 20);
    // The client asks again by itself, on a new stream that lists everything.
    let mut second = server.stream().await;
    assert_eq!(second.request().await.initial_resource_versions.len(), 20);
    assert_eq!(agent.workloads(), 20);
    second.respond(emptied()).await;
    until("the removal", || agent.workloads() == 0).await;
}

/// A large state arrives in one message, within the limit of 64 MiB.
#[tokio::test]
async fn thirty_thousand_workloads_in_one_message() {
    let mut server = ControlPlane::start(no_authority()).await;
    let agent = Agent::start(server.config());
    let mut stream = server.stream().await;
    stream.respond(addresses("n1", (0..30_000).map(workload).collect())).await;
    until("the state", || agent.workloads() == 30_000).await;
    while stream.request().await.response_nonce.is_empty() {}
    stream.fail(Status::unavailable("restart")).await;
    let mut stream = server.stream().await;
    assert_eq!(stream.request().await.initial_resource_versions.len(), 30_000);
}

/// On a runtime with one thread, which is what an agent's control plane has: while the sink works, everything else goes on. A sink that was
/// called on that thread would wait for the other task in vain.
#[tokio::test]
async fn hardening_B103_a_batch_of_a_hundred_thousand_holds_up_nobody() {
    const COUNT: usize = 100_000;
    let mut server = ControlPlane::start(no_authority()).await;
    let (tick, ticks) = std::sync::mpsc::channel();
    let longest = Arc::new(Mutex::new(Duration::ZERO));
    let pauses = Arc::clone(&longest);
    let others = tokio::spawn(async move {
        let mut last = Instant::now();
        while tick.send(()).is_ok() {
            tokio::time::sleep(Duration::from_millis(1)).await;
            let mut longest = pauses.lock();
            *longest = longest.max(last.elapsed());
            last = Instant::now();
        }
    });
    let (mut store, metrics) = (Store::new(), ClientMetrics::default());
    let (applied, mut seen) = watch::channel(0);
    let sink = move |changes: Vec<Change>| {
        let before = Instant::now();
        let snapshot = store.apply(changes).snapshot;
        println!("applied {} workloads in {:.0?}", snapshot.counts().0, before.elapsed());
        ticks.try_iter().for_each(drop);
        ticks.recv_timeout(common::SOON).map_err(|_| "nobody else had a turn".to_owned())?;
        applied.send_replace(snapshot.counts().0);
        Ok(())
    };
    let config = Arc::new(server.config());
    let client =
        tokio::spawn(
            async move { match mesh_client::run(config, sink, tokio::sync::mpsc::channel(1).1, metrics).await {} },
        );
    let mut stream = server.stream().await;
    while stream.request().await.type_url != WORKLOAD_LABELS_TYPE {}
    stream.respond(addresses("n1", (0..COUNT).map(workload).collect())).await;
    let ack = tokio::time::timeout(Duration::from_secs(120), stream.request()).await.unwrap();
    assert_eq!((ack.response_nonce.as_str(), ack.error_detail), ("n1", None));
    assert_eq!(*seen.borrow_and_update(), COUNT);
    // For the record: making and taking apart the message are this thread's work, too.
    println!("the longest turn of the other tasks: {:.0?}", *longest.lock());
    client.abort();
    others.abort();
}

/// Forwards one port to another until frozen, and then keeps all connections open in silence.
async fn relay(from: std::net::SocketAddr, to: std::net::SocketAddr) -> watch::Sender<bool> {
    let listener = TcpListener::bind(from).await.unwrap();
    let (freeze, frozen) = watch::channel(false);
    tokio::spawn(async move {
        loop {
            let (client, _) = listener.accept().await.unwrap();
            let server = TcpStream::connect(to).await.unwrap();
            // A connection made after the freeze works.
            let mut frozen = frozen.clone();
            frozen.mark_unchanged();
            tokio::spawn(async move {
                let ((mut cr, mut cw), (mut sr, mut sw)) = (client.into_split(), server.into_split());
                let forward = async {
                    let (mut up, mut down) = ([0; 8192], [0; 8192]);
                    loop {
                        tokio::select! {
                            n = cr.read(&mut up) => match n { Ok(n) if n > 0 => sw.write_all(&up[..n]).await.unwrap(), _ => return },
                            n = sr.read(&mut down) => match n { Ok(n) if n > 0 => cw.write_all(&down[..n]).await.unwrap(), _ => return },
                        }
                    }
                };
                tokio::select! {
                    () = forward => {}
                    _ = frozen.changed() => std::future::pending().await,
                }
            });
        }
    });
    freeze
}

#[tokio::test]
async fn hardening_F14_a_silent_control_plane_is_left_within_35_s() {
    let mut server = ControlPlane::start(no_authority()).await;
    let front = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let freeze = relay(front, server.address).await;
    let agent = Agent::start(ControlConfig { address: front.to_string(), ..server.config() });
    let _stream = server.stream().await;
    until("the stream", || agent.metrics.is_connected()).await;
    let start = Instant::now();
    freeze.send(true).unwrap();
    let again = tokio::time::timeout(Duration::from_secs(35), async {
        loop {
            if let Some(stream) = server.try_stream() {
                return stream;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    again.await.expect("a new stream within 35 s");
    assert!(start.elapsed() > Duration::from_secs(5), "not by accident");
}

#[tokio::test]
async fn an_address_that_a_connection_waits_for_is_asked_for_on_the_open_stream() {
    let mut server = ControlPlane::start(no_authority()).await;
    let mut config = ControlConfig { network: "east".into(), ..server.config() };
    config.limits.demand_ms = 50;
    let agent = Agent::start(config);
    let mut stream = server.stream().await;
    stream.respond(addresses("a", vec![workload(1)])).await;
    stream.respond(no_policies()).await;
    until("the state", || agent.is_synced()).await;
    agent.want.send([198, 18, 0, 7].into()).await.unwrap();
    let asked = loop {
        let request = stream.request().await;
        if !request.resource_names_subscribe.is_empty() {
            break request;
        }
    };
    assert_eq!(
        (asked.type_url.as_str(), &*asked.resource_names_subscribe),
        (ADDRESS_TYPE, &["east/198.18.0.7".to_owned()][..])
    );
    stream.respond(addresses("b", vec![workload(7)])).await;
    until("the answer", || agent.workloads() == 2).await;
    let taken_back = loop {
        let request = stream.request().await;
        if !request.resource_names_unsubscribe.is_empty() {
            break request;
        }
    };
    assert_eq!(taken_back.resource_names_unsubscribe, ["east/198.18.0.7"]);
}
