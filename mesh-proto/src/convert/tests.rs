//! What is refused, row by row, and that everything else survives the wire unchanged.

use std::net::IpAddr;

use mesh_core::{
    Connection, GatewayAddress, NamespacedName, Store, authorize,
    policy::{Action, Clause, Match, Rule, Scope, ServiceAccountMatch, StringMatch},
    service::{
        AppProtocol, HealthPolicy, IpFamilies, LoadBalancing, Mode, Scope as Locality, ServiceAddress, ServicePort,
        Visibility,
    },
    workload::{
        ApplicationTunnel, GatewayDestination, Health, NetworkAddress, NetworkMode, PortMapping, TunnelProtocol,
        WorkloadType,
    },
};
use proptest::{collection::vec, option, prelude::*};

use super::*;

fn workload() -> wds::Workload {
    wds::Workload {
        uid: "Kubernetes//Pod/shop/cart-1".into(),
        name: "cart-1".into(),
        namespace: "shop".into(),
        addresses: vec![vec![198, 18, 0, 1]],
        ..Default::default()
    }
}

fn service() -> wds::Service {
    wds::Service {
        name: "cart".into(),
        namespace: "shop".into(),
        hostname: "cart.shop.svc.cluster.local".into(),
        addresses: vec![wds::NetworkAddress { address: vec![198, 19, 0, 1], ..Default::default() }],
        ports: vec![wds::Port { service_port: 80, target_port: 8080, app_protocol: 0 }],
        ..Default::default()
    }
}

fn read_workload(change: impl FnOnce(&mut wds::Workload)) -> Result<AddressResource, ConvertError> {
    let mut message = workload();
    change(&mut message);
    address(&wds::Address { r#type: Some(wds::address::Type::Workload(message)) }.encode_to_vec())
}

fn read_service(change: impl FnOnce(&mut wds::Service)) -> Result<AddressResource, ConvertError> {
    let mut message = service();
    change(&mut message);
    address(&wds::Address { r#type: Some(wds::address::Type::Service(message)) }.encode_to_vec())
}

fn authorization(one: auth::Match) -> auth::Authorization {
    auth::Authorization {
        name: "p".into(),
        namespace: "shop".into(),
        scope: auth::Scope::Namespace as i32,
        rules: vec![auth::Rule { clauses: vec![auth::Clause { matches: vec![one] }] }],
        ..Default::default()
    }
}

fn read_match(change: impl FnOnce(&mut auth::Match)) -> Result<Policy, PolicyError> {
    let mut one = auth::Match::default();
    change(&mut one);
    policy(&authorization(one).encode_to_vec())
}

fn port_list(service_port: u32, target_port: u32) -> wds::PortList {
    wds::PortList { ports: vec![wds::Port { service_port, target_port, app_protocol: 0 }] }
}

const CART: &str = "shop/cart.shop.svc.cluster.local";

#[test]
fn defaults_are_ztunnels() {
    let Ok(AddressResource::Workload(w)) = read_workload(|_| ()) else { panic!("refused") };
    assert_eq!(w.identity().to_string(), "spiffe://cluster.local/ns/shop/sa/default");
    assert_eq!((w.capacity, w.protocol, w.health), (1, TunnelProtocol::None, Health::Healthy));
}

#[test]
fn hardening_B92_what_is_no_message_is_refused() {
    let whole = encode_workload(&Workload::new("c//Pod/shop/a", "shop", "a"));
    for end in 1..whole.len() {
        assert!(address(&whole[..end]).is_err(), "truncated at {end}");
    }
    assert_eq!(address(&[]), Err(ConvertError::Missing { field: "type" }));
    // A length of 2 GiB in front of nothing.
    assert!(matches!(address(&[0x0a, 0xff, 0xff, 0xff, 0xff, 0x07]), Err(ConvertError::Decode(_))));
    // Ten thousand nested groups, and as many nested messages.
    assert!(matches!(address(&[0x0b; 10_000]), Err(ConvertError::Decode(_))));
    let mut nested = Vec::new();
    for _ in 0..200 {
        let mut outer = vec![0x0a];
        prost::encode_length_delimiter(nested.len(), &mut outer).unwrap();
        outer.extend(&nested);
        nested = outer;
    }
    assert!(address(&nested).is_err());
}

#[test]
fn hardening_B92_unknown_fields_are_ignored_in_descriptions_and_refused_in_policies() {
    let unknown = [0xf8, 0x7f, 0x01]; // field 2047, varint 1
    let mut bytes = encode_workload(&Workload::new("c//Pod/shop/a", "shop", "a"));
    bytes.extend(unknown);
    assert!(address(&bytes).is_ok());
    let mut bytes = authorization(auth::Match { destination_ports: vec![80], ..Default::default() }).encode_to_vec();
    assert!(policy(&bytes).is_ok());
    bytes.extend(unknown);
    let refused = policy(&bytes).unwrap_err();
    assert_eq!((refused.scope, refused.source), (Some(Scope::Namespace), ConvertError::UnknownFields));
}

#[test]
fn hardening_B94_bad_names_are_refused() {
    let bad = ["".to_owned(), "a/b".into(), "a\0b".into(), "a\nb".into(), "x".repeat(64 << 10)];
    for name in bad {
        assert!(read_workload(|w| w.name = name.clone()).is_err(), "workload {name:.10}");
        assert!(read_workload(|w| w.namespace = name.clone()).is_err(), "namespace {name:.10}");
        assert!(read_service(|s| s.hostname = name.clone()).is_err(), "host {name:.10}");
        assert!(read_service(|s| s.namespace = name.clone()).is_err(), "service namespace {name:.10}");
        let with_name = auth::Authorization { name, ..authorization(auth::Match::default()) };
        assert!(policy(&with_name.encode_to_vec()).is_err());
    }
    for uid in ["".to_owned(), "a\0".into(), "x".repeat(64 << 10)] {
        assert!(read_workload(|w| w.uid = uid.clone()).is_err());
    }
    for (namespace, account, domain) in [
        ("shop.", "..", ""),
        ("sh op", "a", ""),
        ("shop", "a%2f", ""),
        ("shop", "a", "Cluster.Local"),
        ("shop", "ä", ""),
    ] {
        let refused = read_workload(|w| {
            (w.namespace, w.service_account, w.trust_domain) = (namespace.into(), account.into(), domain.into());
        });
        assert!(refused.is_err(), "{namespace} {account} {domain}");
    }
}

#[test]
fn hardening_B96_addresses_of_workloads() {
    let many: Vec<Vec<u8>> = (0..10_000_u32).map(|n| (0xc612_0000 + n).to_be_bytes().to_vec()).collect();
    let v4 = |a: [u8; 4]| vec![a.to_vec()];
    for (name, addresses, ok) in [
        ("none", vec![], true),
        ("two families", vec![vec![198, 18, 0, 1], vec![0xfd; 16]], true),
        ("ten thousand", many, false),
        ("twice", vec![vec![198, 18, 0, 1], vec![198, 18, 0, 1]], false),
        ("three bytes", vec![vec![198, 18, 0]], false),
        ("no bytes", vec![vec![]], false),
        ("unspecified", v4([0, 0, 0, 0]), false),
        ("loopback", v4([127, 0, 0, 1]), false),
        ("multicast", v4([224, 0, 0, 1]), false),
        ("broadcast", v4([255; 4]), false),
        ("mapped loopback", vec![vec![0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 127, 0, 0, 1]], false),
    ] {
        assert_eq!(read_workload(|w| w.addresses = addresses).is_ok(), ok, "{name}");
    }
}

#[test]
fn other_fields_of_workloads() {
    let gateway = |port, destination| Some(wds::GatewayAddress { hbone_mtls_port: port, destination });
    let loopback = wds::NetworkAddress { address: vec![127, 0, 0, 1], ..Default::default() };
    let here = wds::gateway_address::Destination::Address(loopback);
    type Change = Box<dyn FnOnce(&mut wds::Workload)>;
    let cases: Vec<(&str, Change)> = vec![
        ("legacy tunnel", Box::new(|w| w.tunnel_protocol = 2)),
        ("unknown tunnel", Box::new(|w| w.tunnel_protocol = 3)),
        ("negative enumeration", Box::new(|w| w.status = -1)),
        ("unknown type", Box::new(|w| w.workload_type = 4)),
        ("unknown mode", Box::new(|w| w.network_mode = 2)),
        ("policy without namespace", Box::new(|w| w.authorization_policies = vec!["p".into()])),
        ("service without namespace", Box::new(|w| _ = w.services.insert("cart".into(), port_list(80, 80)))),
        ("port 0", Box::new(|w| _ = w.services.insert(CART.into(), port_list(0, 80)))),
        ("port 65536", Box::new(|w| _ = w.services.insert(CART.into(), port_list(65536, 80)))),
        ("target 65616", Box::new(|w| _ = w.services.insert(CART.into(), port_list(80, 65616)))),
        ("waypoint nowhere", Box::new(move |w| w.waypoint = gateway(15008, None))),
        ("hardening_B102 waypoint on loopback", Box::new(move |w| w.waypoint = gateway(15008, Some(here)))),
        ("gateway port", Box::new(move |w| w.network_gateway = gateway(70000, None))),
    ];
    for (name, change) in cases {
        assert!(read_workload(change).is_err(), "{name}");
    }
    assert!(read_workload(|w| _ = w.services.insert(CART.into(), port_list(80, 0))).is_ok());
}

#[test]
fn hardening_B98_fields_of_services() {
    let port = |service_port, target_port| wds::Port { service_port, target_port, app_protocol: 0 };
    let ranged = |address: &[u8], length| {
        vec![wds::NetworkAddress { network: String::new(), address: address.to_vec(), length: Some(length) }]
    };
    type Change = Box<dyn FnOnce(&mut wds::Service)>;
    let cases: Vec<(&str, bool, Change)> = vec![
        ("no ports", true, Box::new(|s| s.ports.clear())),
        ("port 0", false, Box::new(move |s| s.ports = vec![port(0, 80)])),
        ("port 65536", false, Box::new(move |s| s.ports = vec![port(65536, 80)])),
        ("target 0", true, Box::new(move |s| s.ports = vec![port(80, 0)])),
        ("target 65536", false, Box::new(move |s| s.ports = vec![port(80, 65536)])),
        ("TCP and UDP", true, Box::new(move |s| s.ports = vec![port(53, 53), port(53, 53)])),
        ("unknown protocol", false, Box::new(|s| s.ports[0].app_protocol = 6)),
        ("range", true, Box::new(move |s| s.addresses = ranged(&[198, 19, 0, 0], 16))),
        ("range /33", false, Box::new(move |s| s.addresses = ranged(&[198, 19, 0, 0], 33))),
        ("range /129", false, Box::new(move |s| s.addresses = ranged(&[0xfd; 16], 129))),
        ("range /4294967295", false, Box::new(move |s| s.addresses = ranged(&[0xfd; 16], u32::MAX))),
        ("unknown families", false, Box::new(|s| s.ip_families = 4)),
        ("unknown visibility", false, Box::new(|s| s.visibility = 2)),
        (
            "unspecified scope",
            false,
            Box::new(|s| {
                s.load_balancing = Some(wds::LoadBalancing { routing_preference: vec![0], ..Default::default() })
            }),
        ),
        (
            "unknown mode",
            false,
            Box::new(|s| s.load_balancing = Some(wds::LoadBalancing { mode: 4, ..Default::default() })),
        ),
    ];
    for (name, ok, change) in cases {
        assert_eq!(read_service(change).is_ok(), ok, "{name}");
    }
    let Ok(AddressResource::Service(s)) = read_service(|s| {
        let name = wds::NamespacedHostname { namespace: "shop".into(), hostname: "wp.shop".into() };
        let destination = Some(wds::gateway_address::Destination::Hostname(name));
        let gateway = wds::GatewayAddress { destination, hbone_mtls_port: 0 };
        s.weighted_waypoints = vec![wds::WeightedWaypoint { destination: Some(gateway), weight: 1 }];
        s.subject_alt_names = vec!["example.com".into(), "spiffe://cluster.local/ns/shop/sa/cart".into()];
    }) else {
        panic!("refused")
    };
    assert_eq!(s.waypoint.unwrap().hbone_port, 15008);
    assert_eq!(s.subject_alt_names.len(), 1);
}

#[test]
fn hardening_B99_values_of_policies() {
    let net = |address: &[u8], length| vec![auth::Address { address: address.to_vec(), length }];
    let string = |match_type| vec![auth::StringMatch { match_type }];
    use auth::string_match::MatchType::{Exact, Prefix, Presence, Suffix};
    type Change = Box<dyn FnOnce(&mut auth::Match)>;
    let cases: Vec<(&str, bool, Change)> = vec![
        ("empty match", true, Box::new(|_| ())),
        ("/32", true, Box::new(move |m| m.source_ips = net(&[10, 0, 0, 1], 32))),
        ("/33", false, Box::new(move |m| m.source_ips = net(&[10, 0, 0, 1], 33))),
        ("/129", false, Box::new(move |m| m.not_source_ips = net(&[0; 16], 129))),
        ("/288", false, Box::new(move |m| m.source_ips = net(&[10, 0, 0, 1], 288))),
        ("no length", false, Box::new(move |m| m.source_ips = net(&[10, 0, 0, 1], 0))),
        ("everything", true, Box::new(move |m| m.source_ips = net(&[0; 4], 0))),
        ("no address", false, Box::new(move |m| m.destination_ips = net(&[], 0))),
        ("five bytes", false, Box::new(move |m| m.not_destination_ips = net(&[1; 5], 8))),
        ("port 65616 is not 80", false, Box::new(|m| m.destination_ports = vec![65616])),
        ("port 0", false, Box::new(|m| m.not_destination_ports = vec![0])),
        ("no kind of match", false, Box::new(move |m| m.principals = string(None))),
        ("empty exact", false, Box::new(move |m| m.principals = string(Some(Exact(String::new()))))),
        ("empty prefix", false, Box::new(move |m| m.namespaces = string(Some(Prefix(String::new()))))),
        ("empty suffix", false, Box::new(move |m| m.not_namespaces = string(Some(Suffix(String::new()))))),
        ("presence", true, Box::new(move |m| m.not_principals = string(Some(Presence(()))))),
        ("NUL", false, Box::new(move |m| m.principals = string(Some(Exact("a\0".into()))))),
        (
            "account without namespace",
            false,
            Box::new(|m| {
                m.service_accounts =
                    vec![auth::ServiceAccountMatch { service_account: "a".into(), ..Default::default() }]
            }),
        ),
        ("extension", false, Box::new(|m| m.extensions = vec![wds::Extension::default()])),
        (
            "allowed and not allowed",
            true,
            Box::new(|m| (m.destination_ports, m.not_destination_ports) = (vec![80], vec![80])),
        ),
    ];
    for (name, ok, change) in cases {
        let read = read_match(change);
        assert_eq!(read.is_ok(), ok, "{name}: {read:?}");
        if let Err(error) = read {
            assert_eq!(error.scope, Some(Scope::Namespace), "{name}");
        }
    }
    let mapped = read_match(|m| {
        let address = "::ffff:10.0.0.0".parse::<std::net::Ipv6Addr>().unwrap().octets().to_vec();
        m.source_ips = vec![auth::Address { address, length: 104 }];
    });
    assert_eq!(mapped.unwrap().rules[0].clauses[0].matches[0].source_ips, ["10.0.0.0/8".parse().unwrap()]);
    let unknown_action = auth::Authorization { action: 2, ..authorization(Default::default()) };
    assert_eq!(policy(&unknown_action.encode_to_vec()).unwrap_err().scope, Some(Scope::Namespace));
    let unknown_scope = auth::Authorization { scope: 3, ..authorization(Default::default()) };
    assert_eq!(policy(&unknown_scope.encode_to_vec()).unwrap_err().scope, None);
}

#[test]
fn hardening_B100_a_policy_without_action_and_rules_denies() {
    let bare = auth::Authorization { rules: vec![], ..authorization(Default::default()) };
    let bare = policy(&bare.encode_to_vec()).unwrap();
    assert_eq!(bare.action, Action::Allow);
    let workload = Workload::new("c//Pod/shop/a", "shop", "a");
    let snapshot = Store::new().apply(vec![mesh_core::Change::Policy(bare)]).snapshot;
    assert!(!authorize(&snapshot, &workload, &connection()).is_allowed());
}

#[test]
fn hardening_B130_enrolment_messages() {
    let add = wire_add();
    assert!(enrol_request(&add.encode_to_vec()).is_ok());
    type Change = fn(&mut crate::wire::enrol::Add);
    let cases: [(&str, Change); 12] = [
        ("no uid", |a| a.uid.clear()),
        ("uid with slash", |a| a.uid = "../x".into()),
        ("namespace with NUL", |a| a.namespace = "a\0".into()),
        ("no account", |a| a.service_account.clear()),
        ("no address", |a| a.ips.clear()),
        ("not an address", |a| a.ips = vec!["localhost".into()]),
        ("loopback", |a| a.ips = vec!["127.0.0.1".into()]),
        ("twice", |a| a.ips = vec!["198.18.0.1".into(), "::ffff:198.18.0.1".into()]),
        ("hundred", |a| a.ips = (0..100).map(|n| format!("198.18.0.{n}")).collect()),
        ("bad resolver", |a| a.dns.as_mut().unwrap().nameservers = vec!["dns".into()]),
        ("bad search", |a| a.dns.as_mut().unwrap().searches = vec!["a/b".into()]),
        ("no node", |a| a.node.clear()),
    ];
    for (name, change) in cases {
        let mut request = wire_add();
        let Some(crate::wire::enrol::request::Payload::Add(add)) = &mut request.payload else { panic!("add") };
        change(add);
        assert!(enrol_request(&request.encode_to_vec()).is_err(), "{name}");
    }
    for bytes in [&[][..], &[0x0a, 0x02, 0x08, 0x02], &[0x0a, 0x00], &[0xff; 64], &vec![0; 65_537]] {
        assert!(enrol_request(bytes).is_err(), "{bytes:.10?}");
    }
    assert_eq!(enrol_request(&[0x0a, 0x02, 0x08, 0x01]), Ok(EnrolRequest::Hello));
}

fn wire_add() -> crate::wire::enrol::Request {
    let pod = PodRequest {
        uid: "6f1b".into(),
        namespace: "shop".into(),
        name: "cart-1".into(),
        service_account: "cart".into(),
        ips: vec!["198.18.0.1".parse().unwrap(), "fd00:198::1".parse().unwrap()],
        dns: PodDnsRequest {
            nameservers: vec!["198.19.0.10".parse().unwrap()],
            searches: vec!["shop.svc.cluster.local".into()],
            ndots: 5,
        },
        node: "node-1".into(),
    };
    crate::wire::enrol::Request::decode(&encode_enrol_request(&EnrolRequest::Add(pod))[..]).unwrap()
}

fn connection() -> Connection<'static> {
    let ip = IpAddr::from([198, 18, 0, 9]);
    Connection { source_ip: ip, source: None, destination_ip: IpAddr::from([198, 18, 0, 1]), destination_port: 80 }
}

#[test]
fn replays_the_fuzz_corpus() {
    for (target, run) in
        [("xds_resources", crate::fuzz::xds_resources as fn(&[u8])), ("enrol_message", crate::fuzz::enrol_message)]
    {
        let folder = format!("{}/../fuzz/corpus/{target}", env!("CARGO_MANIFEST_DIR"));
        let files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|f| f.unwrap().path()).collect();
        assert!(files.len() >= 10, "{target}: {} files", files.len());
        files.iter().for_each(|file| run(&std::fs::read(file).unwrap()));
    }
}

fn name() -> impl Strategy<Value = mesh_core::ArcStr> {
    "[a-z0-9]([-a-z0-9.]{0,20}[a-z0-9])?".prop_map(Into::into)
}

fn maybe() -> impl Strategy<Value = mesh_core::ArcStr> {
    "[a-z0-9.]{0,12}".prop_map(Into::into)
}

fn namespaced() -> impl Strategy<Value = NamespacedName> {
    (name(), name()).prop_map(|(namespace, name)| NamespacedName { namespace, name })
}

fn host_ip() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        any::<u16>().prop_map(|n| IpAddr::from((0xc612_0000 + u32::from(n)).to_be_bytes())),
        any::<u64>().prop_map(|n| IpAddr::from((0xfd00_u128 << 112 | u128::from(n)).to_be_bytes())),
    ]
}

fn net() -> impl Strategy<Value = ipnet::IpNet> {
    (host_ip(), 1..=32_u8).prop_map(|(ip, length)| ipnet::IpNet::new(ip, length).unwrap().trunc())
}

fn gateway() -> impl Strategy<Value = GatewayAddress> {
    let address = (maybe(), host_ip()).prop_map(|(network, address)| NetworkAddress { network, address });
    let destination =
        prop_oneof![namespaced().prop_map(GatewayDestination::Service), address.prop_map(GatewayDestination::Address)];
    (destination, 1..=u16::MAX).prop_map(|(destination, hbone_port)| GatewayAddress { destination, hbone_port })
}

fn any_workload() -> impl Strategy<Value = Workload> {
    let names = (name(), name(), name(), maybe(), maybe(), maybe(), maybe(), maybe(), maybe(), maybe());
    let lists = (
        proptest::collection::btree_set(host_ip(), 0..4),
        vec(namespaced(), 0..3),
        proptest::collection::btree_map(
            namespaced(),
            proptest::collection::btree_map(1..=u16::MAX, any::<u16>(), 0..4),
            0..4,
        ),
    );
    let kinds = (0..4_u8, any::<[bool; 4]>(), any::<u32>(), (maybe(), maybe(), maybe()));
    let gateways = (option::of(gateway()), option::of(gateway()), option::of((any::<bool>(), any::<u16>())));
    (names, lists, kinds, gateways).prop_map(|(n, (addresses, policies, services), kinds, gateways)| {
        let (kind, [hbone, host, sick, native], capacity, (region, zone, subzone)) = kinds;
        let ports = |p: std::collections::BTreeMap<u16, u16>| {
            p.into_iter().map(|(service_port, target_port)| PortMapping { service_port, target_port }).collect()
        };
        Workload {
            addresses: addresses.into_iter().collect(),
            network: n.3,
            protocol: if hbone { TunnelProtocol::Hbone } else { TunnelProtocol::None },
            trust_domain: n.0.parse().unwrap(),
            service_account: n.1.clone(),
            node: n.4,
            canonical_name: n.5,
            canonical_revision: n.6,
            workload_name: n.7,
            workload_type: [WorkloadType::Deployment, WorkloadType::CronJob, WorkloadType::Pod, WorkloadType::Job]
                [usize::from(kind)],
            cluster_id: n.8,
            authorization_policies: policies.into(),
            health: if sick { Health::Unhealthy } else { Health::Healthy },
            hostname: n.9,
            services: std::sync::Arc::new(services.into_iter().map(|(k, p)| (k, ports(p))).collect()),
            locality: mesh_core::Locality { region, zone, subzone },
            network_mode: if host { NetworkMode::HostNetwork } else { NetworkMode::Standard },
            capacity,
            native_tunnel: native,
            application_tunnel: gateways.2.map(|(proxy_protocol, port)| ApplicationTunnel { proxy_protocol, port }),
            waypoint: gateways.0,
            network_gateway: gateways.1,
            ..Workload::new(format!("c//Pod/{}/{}", n.1, n.2), n.1, n.2)
        }
    })
}

fn any_service() -> impl Strategy<Value = Service> {
    let protocols = [
        AppProtocol::Unknown,
        AppProtocol::Http11,
        AppProtocol::Http2,
        AppProtocol::Grpc,
        AppProtocol::Tcp,
        AppProtocol::Tls,
    ];
    let scopes =
        [Locality::Region, Locality::Zone, Locality::Subzone, Locality::Node, Locality::Cluster, Locality::Network];
    let modes = [Mode::Unspecified, Mode::Strict, Mode::Failover, Mode::Passthrough];
    let families = [IpFamilies::Automatic, IpFamilies::Ipv4Only, IpFamilies::Ipv6Only, IpFamilies::Dual];
    let addresses = proptest::collection::btree_set((maybe(), net()), 0..3);
    let ports =
        proptest::collection::btree_map(1..=u16::MAX, (any::<u16>(), prop::sample::select(protocols.to_vec())), 0..4);
    let sans = vec((name(), name()), 0..3);
    let balancing =
        (vec(prop::sample::select(scopes.to_vec()), 0..4), prop::sample::select(modes.to_vec()), any::<bool>());
    let rest = (prop::sample::select(families.to_vec()), option::of(gateway()), any::<bool>(), any::<bool>());
    (name(), name(), name(), addresses, ports, sans, balancing, rest).prop_map(
        |(namespace, short, hostname, addresses, ports, sans, (preferences, mode, all), rest)| Service {
            addresses: addresses.into_iter().map(|(network, cidr)| ServiceAddress { network, cidr }).collect(),
            ports: ports
                .into_iter()
                .map(|(service_port, (target_port, app_protocol))| ServicePort {
                    service_port,
                    target_port,
                    app_protocol,
                })
                .collect(),
            subject_alt_names: sans
                .iter()
                .map(|(ns, sa)| mesh_core::Identity::new(Default::default(), ns, sa).unwrap())
                .collect(),
            load_balancing: LoadBalancing {
                preferences,
                mode,
                health: if all { HealthPolicy::AllowAll } else { HealthPolicy::OnlyHealthy },
            },
            ip_families: rest.0,
            waypoint: rest.1,
            canonical: rest.2,
            visibility: if rest.3 { Visibility::Namespace } else { Visibility::Public },
            ..Service::new(namespace, short, hostname)
        },
    )
}

fn string_match() -> impl Strategy<Value = StringMatch> {
    prop_oneof![
        name().prop_map(StringMatch::Exact),
        name().prop_map(StringMatch::Prefix),
        name().prop_map(StringMatch::Suffix),
        Just(StringMatch::Presence),
    ]
}

fn any_match() -> impl Strategy<Value = Match> {
    let strings = || vec(string_match(), 0..3);
    let accounts = || {
        vec((name(), name()), 0..3).prop_map(|list| {
            let one = |(namespace, service_account)| ServiceAccountMatch { namespace, service_account };
            list.into_iter().map(one).collect::<Vec<_>>()
        })
    };
    let nets = || vec(net(), 0..3);
    let ports = || vec(1..=u16::MAX, 0..3);
    (
        (strings(), strings(), strings(), strings()),
        (accounts(), accounts()),
        (nets(), nets(), nets(), nets()),
        (ports(), ports()),
    )
        .prop_map(|(s, a, n, p)| Match {
            namespaces: s.0,
            not_namespaces: s.1,
            principals: s.2,
            not_principals: s.3,
            service_accounts: a.0,
            not_service_accounts: a.1,
            source_ips: n.0,
            not_source_ips: n.1,
            destination_ips: n.2,
            not_destination_ips: n.3,
            destination_ports: p.0,
            not_destination_ports: p.1,
        })
}

fn any_policy() -> impl Strategy<Value = Policy> {
    let clause = vec(any_match(), 0..3).prop_map(|matches| Clause { matches });
    let rule = vec(clause, 0..3).prop_map(|clauses| Rule { clauses });
    let scopes = vec![Scope::Global, Scope::Namespace, Scope::WorkloadSelector];
    (namespaced(), prop::sample::select(scopes), any::<bool>(), vec(rule, 0..3), any::<bool>()).prop_map(
        |(name, scope, deny, rules, dry_run)| {
            let action = if deny { Action::Deny } else { Action::Allow };
            Policy { name, scope, action, rules, dry_run }
        },
    )
}

proptest! {
    #[test]
    fn workloads_survive_the_wire(workload in any_workload()) {
        let bytes = encode_workload(&workload);
        prop_assert_eq!(encode_workload(&workload.clone()), bytes.clone());
        prop_assert_eq!(address(&bytes), Ok(AddressResource::Workload(workload)));
    }

    #[test]
    fn services_survive_the_wire(service in any_service()) {
        prop_assert_eq!(address(&encode_service(&service)), Ok(AddressResource::Service(service)));
    }

    #[test]
    fn policies_survive_the_wire(one in any_policy()) {
        prop_assert_eq!(policy(&encode_policy(&one)), Ok(one));
    }

    #[test]
    fn a_damaged_policy_never_widens_access(
        one in any_policy(),
        flip in any::<prop::sample::Index>(),
        bit in 0..8_u8,
        seen_before in any::<bool>(),
    ) {
        // Damage that can still be read as a policy is another policy; damage that cannot must not open anything.
        let mut bytes = encode_policy(&one);
        let at = flip.index(bytes.len());
        bytes[at] ^= 1 << bit;
        let Err(error) = policy(&bytes) else { return Ok(()) };
        let workload = Workload {
            authorization_policies: [one.name.clone()].into(),
            ..Workload::new("c//Pod/x/a", one.name.namespace.clone(), "a")
        };
        let mut store = Store::new();
        store.apply(vec![mesh_core::Change::Policy(one.clone())]);
        let before = authorize(&store.snapshot(), &workload, &connection()).is_allowed();
        if !seen_before {
            store = Store::new();
        }
        let unreadable = mesh_core::Change::PolicyUnreadable { name: one.name, scope: error.scope };
        let after = authorize(&store.apply(vec![unreadable]).snapshot, &workload, &connection()).is_allowed();
        prop_assert!(before || !after);
    }

    #[test]
    fn arbitrary_bytes_do_no_harm(data in vec(any::<u8>(), 0..300)) {
        crate::fuzz::xds_resources(&data);
        crate::fuzz::enrol_message(&data);
        let _ = policy(&data);
    }
}
