//! Everything that may be said survives the wire unchanged, and damage never widens access.

use mesh_core::service::Canary;

use super::*;

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
    let ways = option::of((gateway(), option::of((gateway(), 0..=100_u32))));
    let rest = (prop::sample::select(families.to_vec()), ways, any::<bool>(), any::<bool>());
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
            waypoint_optional: rest.1.is_some() && rest.2,
            canary: rest.1.as_ref().and_then(|(own, canary)| {
                let (waypoint, weight) = canary.clone().filter(|(canary, _)| canary != own)?;
                Some(Canary { waypoint, weight })
            }),
            waypoint: rest.1.map(|(own, _)| own),
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
