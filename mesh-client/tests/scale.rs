//! A hundred thousand workloads and five thousand services, from the bytes of one message to the snapshot: how long, and how much memory.
//! Alone in its process, because it looks at the process's memory.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use mesh_client::subscription::{Limits, Subscription};
use mesh_core::{
    Change, Client, NamespacedName, Request, Route, Service, Store, Workload, resolve,
    service::{ServiceAddress, ServicePort},
    workload::{PortMapping, TunnelProtocol},
};
use mesh_proto::{
    ADDRESS_TYPE, AUTHORIZATION_TYPE, CLUSTERS_TYPE, CONNECTION_ROUTES_TYPE, OUTBOUND_TYPE, WORKLOAD_LABELS_TYPE,
    convert,
    discovery::{Any, DeltaDiscoveryResponse, Node, Resource},
};
use prost::Message;

const WORKLOADS: u32 = 100_000;
const SERVICES: u32 = 5_000;
const WRITE_TO: &str = "UNDERMESH_SCALE_WRITE_TO";

fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

fn peak_resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024
}

fn key(n: u32) -> NamespacedName {
    let n = n % SERVICES;
    NamespacedName::new(format!("ns-{}", n % 200), format!("svc-{n}.ns-{}.svc.cluster.local", n % 200))
}

fn vip(n: u32) -> IpAddr {
    IpAddr::from((0xc613_0000 + n).to_be_bytes())
}

fn workload(n: u32) -> Workload {
    let key = key(n);
    let name = format!("svc-{}-7d4b9c6f5-{n:05}", n % SERVICES);
    let ports = [(80, 8080), (443, 8443)].map(|(service_port, target_port)| PortMapping { service_port, target_port });
    let mut w = Workload::new(format!("Kubernetes//Pod/{}/{name}", key.namespace), key.namespace.clone(), name);
    w.addresses = vec![IpAddr::from((0x0a00_0000 + n).to_be_bytes())];
    w.protocol = TunnelProtocol::Hbone;
    w.service_account = format!("svc-{}", n % SERVICES).into();
    w.node = format!("ip-10-0-{}.eu-central-1.compute.internal", n % 1000).into();
    w.canonical_name = w.service_account.clone();
    w.canonical_revision = "v1".into();
    w.workload_name = w.service_account.clone();
    w.cluster_id = "Kubernetes".into();
    w.locality.region = "eu-central-1".into();
    w.locality.zone = ["eu-central-1a", "eu-central-1b"][n as usize % 2].into();
    w.authorization_policies = ["undermesh-system/strict".parse().unwrap()].into();
    w.services = Arc::new([(key, ports.to_vec())].into());
    w
}

fn service(n: u32) -> Service {
    let key = key(n);
    let mut service = Service::new(key.namespace.clone(), format!("svc-{n}"), key.name.clone());
    service.addresses = vec![ServiceAddress { network: "".into(), cidr: vip(n).into() }];
    service.ports =
        [80, 443].map(|p| ServicePort { service_port: p, target_port: 0, app_protocol: Default::default() }).to_vec();
    service
}

fn resource(name: String, value: Vec<u8>) -> Resource {
    let resource = Some(Any { type_url: ADDRESS_TYPE.into(), value: value.into() });
    Resource {
        version: format!("{:016x}", (name.len() as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)),
        name,
        resource,
        ..Resource::default()
    }
}

/// The message as it comes out of the transport, made in a child process, so that its making leaves nothing in this one's memory.
fn message() -> bytes::Bytes {
    let file = tempfile::NamedTempFile::new().unwrap();
    let mut child = std::process::Command::new(std::env::current_exe().unwrap());
    assert!(child.env(WRITE_TO, file.path()).output().unwrap().status.success());
    std::fs::read(file.path()).unwrap().into()
}

fn encoded() -> Vec<u8> {
    let workloads = (0..WORKLOADS).map(workload).map(|w| resource(w.uid.to_string(), convert::encode_workload(&w)));
    let services = (0..SERVICES).map(service).map(|s| resource(s.key().to_string(), convert::encode_service(&s)));
    let response = DeltaDiscoveryResponse {
        type_url: ADDRESS_TYPE.into(),
        nonce: "n".into(),
        resources: workloads.chain(services).collect(),
        ..DeltaDiscoveryResponse::default()
    };
    response.encode_to_vec()
}

fn time<T>(what: &str, run: impl FnOnce() -> T) -> (T, Duration) {
    let start = Instant::now();
    let value = run();
    let took = start.elapsed();
    println!("{what}: {took:.2?}, {} MiB resident", resident() >> 20);
    (value, took)
}

#[test]
fn a_hundred_thousand_workloads_fit_and_small_changes_stay_small() {
    if let Some(path) = std::env::var_os(WRITE_TO) {
        return std::fs::write(path, encoded()).unwrap();
    }
    let optimized = !cfg!(debug_assertions);
    let before = resident();
    let bytes = message();
    println!("message: {} MiB", bytes.len() >> 20);
    assert!(bytes.len() < mesh_proto::MAX_MESSAGE_BYTES);
    let mut subscription = Subscription::new(Node::default(), Limits::default());
    let mut store = Store::new();
    subscription.on_connected(0);
    let (response, decode) = time("decode", || DeltaDiscoveryResponse::decode(bytes).unwrap());
    let (received, read) = time("read", || subscription.on_message(response, 0));
    let (applied, apply) = time("apply", || store.apply(received.changes));
    drop(applied);
    let peak = peak_resident().saturating_sub(before);
    println!("sync {:.2?}, {} MiB at the peak", decode + read + apply, peak >> 20);
    assert!(received.reply.into_request().error_detail.is_none());
    assert_eq!(store.snapshot().counts(), (100_000, 5_000, 0));
    assert!(peak < 200 << 20, "{} MiB", peak >> 20);
    let bar = Duration::from_secs(if optimized { 3 } else { 90 });
    assert!(decode + read + apply < bar);

    let policies = DeltaDiscoveryResponse { type_url: AUTHORIZATION_TYPE.into(), ..DeltaDiscoveryResponse::default() };
    for type_url in [CLUSTERS_TYPE, CONNECTION_ROUTES_TYPE, OUTBOUND_TYPE, WORKLOAD_LABELS_TYPE] {
        let none = DeltaDiscoveryResponse { type_url: type_url.into(), ..policies.clone() };
        store.apply(subscription.on_message(none, 0).changes);
    }
    store.apply(subscription.on_message(policies, 0).changes);
    // The message is so large that a second part might have followed.
    store.apply(subscription.on_timer(1_000).changes);
    assert!(subscription.is_synced());
    let (requests, _) = time("reconnect request", || subscription.on_connected(1));
    println!("reconnect request: {} MiB", requests[0].encoded_len() >> 20);

    // One pod changes: the cost must not depend on the size of the mesh.
    let mut changes: Vec<Duration> = (0..200)
        .map(|n| {
            let held = store.snapshot();
            let mut changed = workload(n * 37);
            changed.canonical_revision = "v2".into();
            let start = Instant::now();
            let applied = store.apply(vec![Change::Workload(changed)]);
            let took = start.elapsed();
            assert_eq!(applied.diff.workloads.len(), 1);
            drop(held);
            took
        })
        .collect();
    changes.sort();
    println!("one change: p50 {:.0?}, p99 {:.0?}", changes[100], changes[198]);
    assert!(changes[100] < Duration::from_millis(if optimized { 2 } else { 20 }));

    let (snapshot, client) = (store.snapshot(), Client::default());
    let mut rng = rand::rng();
    let start = Instant::now();
    for n in 0..20_000 {
        let request = Request {
            source: &client,
            destination: (vip(n % SERVICES), 80).into(),
            place: None,
            now_ms: 0,
            tried: &[],
        };
        assert!(matches!(resolve(&snapshot, &request, &mut rng), Ok(Route::Hbone(_))));
    }
    println!("resolve: {:.0?} each, first use of each service included", start.elapsed() / 20_000);
}
