//! What is refused, row by row.

use super::*;

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
    assert_eq!((s.waypoint.unwrap().hbone_port, s.canary), (15008, None));
    assert_eq!(s.subject_alt_names.len(), 1);
}

/// Istio says the waypoint itself among those that are weighed, and its share is what is left.
#[test]
fn features_CL_3_a_weighted_set_is_a_waypoint_and_its_canary() {
    let at = |name: &str| {
        let name = wds::NamespacedHostname { namespace: "shop".into(), hostname: format!("{name}.shop") };
        let destination = Some(wds::gateway_address::Destination::Hostname(name));
        wds::GatewayAddress { destination, hbone_mtls_port: 0 }
    };
    for (weighted, expected) in [
        (vec![("own", 95), ("new", 5)], Some(("new", 5))),
        (vec![("new", 5), ("own", 95)], Some(("new", 5))),
        (vec![("own", 1), ("new", 1)], Some(("new", 50))),
        (vec![("own", 0), ("new", 7)], Some(("new", 100))),
        (vec![("own", 0), ("new", 0)], Some(("new", 0))),
        (vec![("own", u32::MAX), ("new", u32::MAX)], Some(("new", 50))),
        (vec![("own", 100)], None),
        (vec![], None),
    ] {
        let read = read_service(|s| {
            s.waypoint = Some(at("own"));
            let one =
                |(name, weight): &(&str, u32)| wds::WeightedWaypoint { destination: Some(at(name)), weight: *weight };
            s.weighted_waypoints = weighted.iter().map(one).collect();
        });
        let Ok(AddressResource::Service(service)) = read else { panic!("refused") };
        let canary = service.canary.map(|canary| (canary.waypoint.destination, canary.weight));
        let named = |name: &str| GatewayDestination::Service(format!("shop/{name}.shop").parse().unwrap());
        assert_eq!(canary, expected.map(|(name, weight)| (named(name), weight)), "{weighted:?}");
    }
    // A canary that cannot be read is no reason to go around the waypoint, or to it alone: nobody knows what was meant.
    let nowhere = wds::GatewayAddress { destination: None, hbone_mtls_port: 0 };
    let broken = wds::WeightedWaypoint { destination: Some(nowhere), weight: 5 };
    assert!(read_service(|s| (s.waypoint, s.weighted_waypoints) = (Some(at("own")), vec![broken.clone()])).is_err());
}

/// Comparing each entry with all before it would take hours here.
#[test]
fn hardening_B98_long_lists_are_read_in_one_pass() {
    let ports: Vec<_> =
        (0..1 << 20).map(|n| wds::Port { service_port: n % 65_535 + 1, target_port: 80, app_protocol: 0 }).collect();
    let addresses: Vec<_> = (0..1_u32 << 18)
        .map(|n| wds::NetworkAddress { address: (0x0a00_0000 + n).to_be_bytes().to_vec(), ..Default::default() })
        .collect();
    let counts = read_service(|s| (s.ports, s.addresses) = (ports.clone(), addresses)).map(|read| match read {
        AddressResource::Service(service) => (service.ports.len(), service.addresses.len()),
        AddressResource::Workload(_) => (0, 0),
    });
    assert_eq!(counts, Ok((65_535, 1 << 18)));
    assert!(read_workload(|w| _ = w.services.insert(CART.into(), wds::PortList { ports })).is_ok());
}

#[test]
fn hardening_B102_a_waypoint_is_somewhere_else() {
    let gateway = |address: &[u8]| wds::GatewayAddress {
        destination: Some(wds::gateway_address::Destination::Address(wds::NetworkAddress {
            address: address.to_vec(),
            ..Default::default()
        })),
        hbone_mtls_port: 15008,
    };
    let mapped = "::ffff:127.0.0.1".parse::<std::net::Ipv6Addr>().unwrap().octets();
    let loopback = std::net::Ipv6Addr::LOCALHOST.octets();
    for bad in
        [&[127, 0, 0, 1][..], &[127, 128, 0, 7], &[0; 4], &[224, 0, 0, 1], &loopback, &mapped, &[0; 16], &[1; 5], &[]]
    {
        assert!(read_workload(|w| w.waypoint = Some(gateway(bad))).is_err(), "{bad:?}");
        assert!(read_workload(|w| w.network_gateway = Some(gateway(bad))).is_err(), "{bad:?}");
        assert!(read_service(|s| s.waypoint = Some(gateway(bad))).is_err(), "{bad:?}");
    }
    assert!(read_workload(|w| w.waypoint = Some(wds::GatewayAddress::default())).is_err());
    assert!(read_workload(|w| w.waypoint = Some(gateway(&[198, 18, 0, 9]))).is_ok());
}

#[test]
fn hardening_B108_text_that_metrics_and_logs_show_is_bounded() {
    type Field = fn(&mut wds::Workload) -> &mut String;
    let fields: [Field; 9] = [
        |w| &mut w.name,
        |w| &mut w.node,
        |w| &mut w.cluster_id,
        |w| &mut w.network,
        |w| &mut w.hostname,
        |w| &mut w.canonical_name,
        |w| &mut w.canonical_revision,
        |w| &mut w.workload_name,
        |w| &mut w.uid,
    ];
    for (at, field) in fields.into_iter().enumerate() {
        for bad in ["a\u{1b}[31m", "a\nb", "a\0", "\u{85}", &"x".repeat(1 << 20)] {
            assert!(
                read_workload(|w| *field(w) = bad.to_owned()).is_err(),
                "field {at}: {:?}",
                &bad[..bad.len().min(9)]
            );
        }
        assert!(read_workload(|w| *field(w) = "\u{1F600}".to_owned()).is_ok(), "field {at}");
    }
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
        rules: Box::default(),
    };
    crate::wire::enrol::Request::decode(&encode_enrol_request(&EnrolRequest::Add(pod))[..]).unwrap()
}

#[test]
fn replays_the_fuzz_corpus() {
    for (target, run, least) in [
        ("xds_resources", crate::fuzz::xds_resources as fn(&[u8]), 10),
        ("enrol_message", crate::fuzz::enrol_message, 10),
        ("l4_routes", crate::fuzz::l4_routes, 4),
        ("l7_clusters", crate::fuzz::l7_clusters, 4),
        ("l7_tables", crate::fuzz::l7_tables, 6),
        ("authorizer_answers", crate::fuzz::authorizer_answers, 10),
    ] {
        let folder = format!("{}/../fuzz/corpus/{target}", env!("CARGO_MANIFEST_DIR"));
        let files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|f| f.unwrap().path()).collect();
        assert!(files.len() >= least, "{target}: {} files", files.len());
        files.iter().for_each(|file| run(&std::fs::read(file).unwrap()));
    }
}
