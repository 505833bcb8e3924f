//! Questions as a pod's resolver asks them.

use std::sync::Arc;

use super::*;
use crate::{
    Change, Store, Workload,
    service::{LoadBalancing, Mode, ServiceAddress, Visibility},
    workload::Health,
};

fn service(namespace: &str, host: &str, addresses: &[&str]) -> Service {
    let mut service = Service::new(namespace, host.split('.').next().unwrap(), host);
    let address = |text: &&str| ServiceAddress { network: "".into(), cidr: text.parse::<IpAddr>().unwrap().into() };
    service.addresses = addresses.iter().map(address).collect();
    service
}

fn pod(name: &str, address: &str, host: &str) -> Workload {
    let mut workload = Workload::new(format!("c//Pod/shop/{name}"), "shop", name);
    workload.addresses = vec![address.parse().unwrap()];
    workload.services = Arc::new([(crate::NamespacedName::new("shop", host), vec![])].into());
    workload
}

fn mesh() -> Arc<Snapshot> {
    let headless = "db.shop.svc.cluster.local";
    let mut ranged = service("shop", "ranged.shop.svc.cluster.local", &[]);
    ranged.addresses = vec![ServiceAddress { network: "".into(), cidr: "198.19.9.0/24".parse().unwrap() }];
    let outer_range = |host: &str| {
        let mut service = service("shop", host, &[]);
        service.addresses = vec![ServiceAddress { network: "".into(), cidr: "203.0.113.0/24".parse().unwrap() }];
        service
    };
    let passthrough = LoadBalancing { mode: Mode::Passthrough, ..LoadBalancing::default() };
    let mut far = service("shop", "far.example.com", &["198.19.0.8"]);
    far.addresses[0].network = "n2".into();
    let hidden =
        Service { visibility: Visibility::Namespace, ..service("other", "hidden.example.com", &["198.19.0.9"]) };
    let both = service("shop", "both.shop.svc.cluster.local", &["198.19.0.2", "fd00:199::2"]);
    let only_v6 = Service {
        ip_families: IpFamilies::Ipv6Only,
        ..service("shop", "six.shop.svc.cluster.local", &["198.19.0.3", "fd00:199::3"])
    };
    let mut store = Store::new();
    let applied = store.apply(vec![
        Change::Service(service("shop", "cart.shop.svc.cluster.local", &["198.19.0.1"])),
        Change::Service(both),
        Change::Service(only_v6),
        Change::Service(ranged),
        Change::Service(outer_range("ranged.example.com")),
        Change::Service(Service { load_balancing: passthrough, ..outer_range("passed.shop.svc.cluster.local") }),
        Change::Service(far),
        Change::Service(hidden),
        Change::Service(service("shop", headless, &[])),
        Change::Service(service("shop", "idle.shop.svc.cluster.local", &[])),
        Change::Service(service("shop", "api.example.com", &["198.19.0.4"])),
        Change::Service(service("shop", "pass.example.com", &[])),
        Change::Service(service("shop", "db.othercluster.local", &[])),
        Change::Service(service("shop", "*.wild.example.com", &["198.19.0.5"])),
        Change::Service(service("shop", "*.deep.wild.example.com", &["198.19.0.6"])),
        Change::Service(service("shop", "exact.wild.example.com", &["198.19.0.7"])),
        Change::Service(service("a", "*.shop", &["198.19.6.2"])),
        Change::Service(service("a", "*.cluster.local", &["198.19.6.3"])),
        Change::Service(service("a", "twice.example.com", &["198.19.1.1"])),
        Change::Service(service("shop", "twice.example.com", &["198.19.1.2"])),
        Change::Workload(pod("db-0", "198.18.0.10", headless)),
        Change::Workload(pod("db-1", "198.18.0.11", headless)),
        Change::Workload(Workload { health: Health::Unhealthy, ..pod("db-2", "198.18.0.12", headless) }),
    ]);
    applied.snapshot
}

fn ask(snapshot: &Snapshot, name: &str, record: RecordType, namespace: &str, families: Families) -> String {
    let searches = [
        format!("{namespace}.svc.cluster.local").into(),
        "svc.cluster.local".into(),
        "cluster.local".into(),
        "corp.example".into(),
    ];
    let question = Question {
        name,
        record,
        namespace,
        network: "",
        families,
        searches: &searches,
        cluster_domain: "cluster.local",
    };
    match answer(snapshot, &question) {
        NameAnswer::Addresses(ips) => ips.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "),
        other => format!("{other:?}"),
    }
}

#[test]
fn features_B29_names_of_the_mesh() {
    let mesh = mesh();
    for (name, expected) in [
        ("cart.shop.svc.cluster.local.", "198.19.0.1"),
        ("CART.Shop.svc.Cluster.local", "198.19.0.1"),
        ("cart.shop.svc", "198.19.0.1"),
        ("cart.shop", "198.19.0.1"),
        ("cart", "198.19.0.1"),
        ("cart.shop.shop.svc.cluster.local", "198.19.0.1"),
        ("cart.shop.svc.cluster.local.shop.svc.cluster.local", "198.19.0.1"),
        ("cart.corp.example", "198.19.0.1"),
        ("api.example.com", "198.19.0.4"),
        ("api.example.com.shop.svc.cluster.local", "198.19.0.4"),
        ("db.shop.svc.cluster.local", "198.18.0.10 198.18.0.11"),
        ("db-1.db.shop.svc.cluster.local", "198.18.0.11"),
        ("db-1.db", "198.18.0.11"),
        ("db-2.db.shop.svc.cluster.local", "198.18.0.12"),
        ("db-9.db.shop.svc.cluster.local", "NotMesh"),
        ("idle.shop.svc.cluster.local", "NoData"),
        ("ranged.shop.svc.cluster.local", "NoData"),
        // Of a host of which only ranges are known somebody else has the addresses.
        ("ranged.example.com", "NotMesh"),
        ("passed.shop.svc.cluster.local", "NotMesh"),
        ("far.example.com", "NoData"),
        ("pass.example.com", "NotMesh"),
        // Not of this cluster, although its name ends alike.
        ("db.othercluster.local", "NotMesh"),
        ("x.wild.example.com", "198.19.0.5"),
        ("y.x.wild.example.com", "198.19.0.5"),
        ("x.deep.wild.example.com", "198.19.0.6"),
        ("exact.wild.example.com", "198.19.0.7"),
        ("wild.example.com", "NotMesh"),
        ("x.wild.example.com.shop.svc.cluster.local", "198.19.0.5"),
        // Whatever a wildcard says, it means no names of the cluster.
        ("www.example.com.shop.svc.cluster.local", "NotMesh"),
        ("www.example.com.svc.cluster.local", "NotMesh"),
        ("a.shop", "198.19.6.2"),
        ("twice.example.com", "198.19.1.2"),
        ("hidden.example.com", "NotMesh"),
        ("example.com", "NotMesh"),
        ("other.shop.svc.cluster.local", "NotMesh"),
        ("cart.", "198.19.0.1"),
        (".", "NotMesh"),
        ("", "NotMesh"),
        ("..", "NotMesh"),
        (".svc", "NotMesh"),
    ] {
        assert_eq!(ask(&mesh, name, RecordType::A, "shop", Families { v4: true, v6: true }), expected, "{name}");
    }
    assert_eq!(ask(&mesh, &"a.".repeat(200), RecordType::A, "shop", Families { v4: true, v6: true }), "NotMesh");
}

#[test]
fn short_names_belong_to_the_clients_namespace() {
    let mesh = mesh();
    let families = Families { v4: true, v6: true };
    assert_eq!(ask(&mesh, "cart", RecordType::A, "elsewhere", families), "NotMesh");
    assert_eq!(ask(&mesh, "cart.shop.elsewhere.svc.cluster.local", RecordType::A, "elsewhere", families), "198.19.0.1");
    assert_eq!(ask(&mesh, "hidden.example.com", RecordType::A, "other", families), "198.19.0.9");
}

#[test]
fn records_and_families() {
    let mesh = mesh();
    let (both, v4) = (Families { v4: true, v6: true }, Families { v4: true, v6: false });
    for (name, record, families, expected) in [
        ("cart", RecordType::Aaaa, both, "NoData"),
        ("cart", RecordType::Other, both, "NoData"),
        ("both", RecordType::A, both, "198.19.0.2"),
        ("both", RecordType::Aaaa, both, "fd00:199::2"),
        ("both", RecordType::Aaaa, v4, "NoData"),
        ("six", RecordType::A, both, "NoData"),
        ("six", RecordType::Aaaa, both, "fd00:199::3"),
        ("nobody.example.com", RecordType::Other, both, "NotMesh"),
    ] {
        assert_eq!(ask(&mesh, name, record, "shop", families), expected, "{name} {record:?}");
    }
}
