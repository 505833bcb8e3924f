//! Hosts of ServiceEntries: their addresses, endpoints and waypoints.

use mesh_core::workload::GatewayDestination;

use super::*;
use crate::diagnosis::Severity;

fn entry(name: &str, labels: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: {name}, namespace: shop, labels: {{{labels}}}}}\nspec: {spec}\n"
    )
}

const PORTS: &str =
    "ports: [{number: 80, name: http, protocol: HTTP, targetPort: 8080}, {number: 443, name: tls, protocol: TLS}]";

fn said(view: &View) -> Vec<String> {
    let of_entries = view.problems.iter().filter(|(key, _)| key.kind == Kind::ServiceEntry);
    of_entries.map(|(key, problem)| format!("{} {}: {}", key.name, problem.field, problem.message)).collect()
}

#[test]
fn features_SE_2_SE_3_SE_5_a_host_has_addresses_ports_and_endpoints() {
    let spec = format!(
        "{{hosts: [API.example.com], resolution: STATIC, {PORTS}, endpoints: [{{address: 192.0.2.1, ports: {{http: 81}}, weight: 3, locality: r/z}}, {{address: 192.0.2.2}}]}}"
    );
    let text = entry("api", "", &spec.replace("API", "api"));
    let first = view(&text);
    assert_eq!(said(&first), [""; 0]);
    let service = &first.services[&"shop/api.example.com".parse().unwrap()];
    let addresses: Vec<String> = service.addresses.iter().map(|a| a.cidr.to_string()).collect();
    assert!(addresses[0].starts_with("240.240.") && addresses[1].starts_with("2001:2::"), "{addresses:?}");
    let ports: Vec<_> = service.ports.iter().map(|p| (p.service_port, p.target_port)).collect();
    assert_eq!(ports, [(80, 8080), (443, 443)]);
    let workload = |address: &str| {
        let address: IpAddr = address.parse().unwrap();
        first.workloads.values().find(|w| w.addresses == [address]).unwrap().clone()
    };
    let ports = |workload: &mesh_core::Workload| -> Vec<u16> {
        workload.services.values().flatten().map(|port| port.target_port).collect()
    };
    assert_eq!((ports(&workload("192.0.2.1")), ports(&workload("192.0.2.2"))), (vec![81, 443], vec![8080, 443]));
    let one = workload("192.0.2.1");
    assert_eq!((one.capacity, &*one.locality.zone, one.protocol), (3, "z", TunnelProtocol::None));
    assert_eq!(&*one.uid, "Kubernetes/networking.istio.io/ServiceEntry/shop/api/192.0.2.1");
    // The address is that of the host, whatever else there is.
    let more = view(&format!(
        "{}{text}",
        entry(
            "a",
            "",
            "{hosts: [a.example.com, b.example.com], resolution: STATIC, endpoints: [{address: 192.0.2.9}]}"
        )
    ));
    assert_eq!(more.services[&"shop/api.example.com".parse().unwrap()].addresses, service.addresses);
    let given: std::collections::BTreeSet<_> =
        more.services.values().flat_map(|s| s.addresses.iter().map(|a| a.cidr)).collect();
    assert_eq!(given.len(), 6, "no two hosts have one");
    // Who wants none gets none.
    let off = view(&entry("api", "networking.istio.io/enable-autoallocate-ip: 'false'", &spec.replace("API", "api")));
    assert!(off.services.values().all(|service| service.addresses.is_empty()));
}

#[test]
fn features_SE_6_pods_are_endpoints_by_selector_or_by_address() {
    for endpoints in ["workloadSelector: {labels: {app: web}}", "endpoints: [{address: 198.18.0.1}]"] {
        let spec =
            format!("{{hosts: [api.example.com], location: MESH_INTERNAL, resolution: STATIC, {PORTS}, {endpoints}}}");
        let view = view(&format!("{}{}", pod("web-1", ""), entry("api", "", &spec)));
        assert_eq!(said(&view), [""; 0]);
        assert_eq!(view.workloads.len(), 1);
        let pod = view.workloads.values().next().unwrap();
        assert_eq!(pod.services.keys().map(ToString::to_string).collect::<Vec<_>>(), ["shop/api.example.com"]);
        assert_eq!(pod.protocol, TunnelProtocol::Hbone);
    }
}

#[test]
fn what_belongs_to_others_is_not_taken_and_what_is_not_built_is_told() {
    let around = || {
        format!(
            "{}{}",
            service("web", "{clusterIP: 198.19.0.1, ports: [{port: 80}]}"),
            pod_in("far", "p", "198.18.0.9", "app: web", "")
        )
    };
    let end = "endpoints: [{address: 192.0.2.1}]";
    for (spec, expected) in [
        (
            "{hosts: [web.shop.svc.cluster.local], resolution: STATIC, END}",
            "spec.hosts[0]: web.shop.svc.cluster.local is the host of Service shop/web, which counts: only subjectAltNames are used, not endpoints",
        ),
        (
            "{hosts: [a.example.com], addresses: [198.19.0.1], resolution: STATIC, END}",
            "spec.addresses[0]: 198.19.0.1 belongs to Service shop/web, this one does not get it",
        ),
        (
            "{hosts: [a.example.com], resolution: STATIC, endpoints: [{address: 198.19.0.1}]}",
            "spec.endpoints[0].address: 198.19.0.1 is the address of Service shop/web, it is not used",
        ),
        (
            "{hosts: [a.example.com], resolution: STATIC, endpoints: [{address: 198.18.0.9}]}",
            "spec.endpoints[0].address: 198.18.0.9 is pod far/p of another namespace, it is not used",
        ),
        (
            "{hosts: ['*.example.com'], resolution: NONE}",
            "spec.hosts[0]: known, not in force: nobody can find *.example.com",
        ),
        (
            "{hosts: ['*.example.com'], exportTo: ['.'], resolution: DYNAMIC_DNS}",
            "spec.hosts[0]: a waypoint looks up what requests to *.example.com ask for, and there is none",
        ),
        (
            "{hosts: ['*.cluster.local'], resolution: DYNAMIC_DNS}",
            "spec.hosts[0]: *.cluster.local means names of the cluster, cluster.local: it is not used",
        ),
        ("{hosts: ['*.local'], resolution: DYNAMIC_DNS}", "spec.hosts[0]: *.local means names of the cluster"),
        ("{hosts: ['*.far.svc.cluster.local'], resolution: DYNAMIC_DNS}", "means names of the cluster"),
        ("{hosts: [a.example.com], resolution: DYNAMIC_DNS}", "spec.hosts[0]: a.example.com has not been looked up"),
        (
            "{hosts: [a.example.com], exportTo: [far], resolution: STATIC, END}",
            "spec.exportTo: agents know it in all namespaces",
        ),
    ] {
        let view = view(&format!("{}{}", around(), entry("o", "", &spec.replace("END", end))));
        let said = said(&view);
        assert!(said.len() == 1 && said[0].contains(expected), "{spec}: {said:?}");
        let web = &view.services[&"shop/web.shop.svc.cluster.local".parse().unwrap()];
        assert_eq!((&*web.name, web.addresses.len()), ("web", 1));
    }
    let only_here =
        view(&entry("o", "", &format!("{{hosts: [a.example.com], exportTo: ['.'], resolution: STATIC, {end}}}")));
    let service = only_here.services.values().next().unwrap();
    assert!(service.visible_from("shop") && !service.visible_from("far"));
}

#[test]
fn features_SE_5_without_resolution_the_client_s_own_choice_counts() {
    let view = view(&entry(
        "o",
        "",
        "{hosts: [a.example.com], addresses: [192.0.2.0/24], ports: [{number: 443, name: tls, protocol: TLS}]}",
    ));
    let service = &view.services[&"shop/a.example.com".parse().unwrap()];
    assert_eq!(service.load_balancing.mode, Mode::Passthrough);
    assert_eq!(service.addresses[0].cidr.to_string(), "192.0.2.0/24");
}

#[test]
fn an_entry_is_bound_to_a_waypoint_as_services_are_and_rules_for_its_host_are_the_waypoint_s() {
    let gateway = "---\napiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: wp, namespace: shop}\nspec: {gatewayClassName: undermesh-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}\n---\napiVersion: v1\nkind: Service\nmetadata: {name: wp, namespace: shop}\nspec: {selector: {a: b}, ports: [{port: 15008}]}\n";
    let rules = "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: v, namespace: shop}\nspec: {hosts: [api.example.com], http: [{timeout: 3s, route: [{destination: {host: api.example.com, port: {number: 80}}}]}]}\n---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: d, namespace: shop}\nspec: {host: api.example.com, trafficPolicy: {tls: {mode: SIMPLE}}}\n";
    let spec =
        format!("{{hosts: [api.example.com], resolution: STATIC, {PORTS}, endpoints: [{{address: 192.0.2.1}}]}}");
    let view = view(&format!("{gateway}{rules}{}", entry("api", "istio.io/use-waypoint: wp", &spec)));
    let service = &view.services[&"shop/api.example.com".parse().unwrap()];
    let wp = "shop/wp.shop.svc.cluster.local".parse().unwrap();
    assert_eq!(service.waypoint.as_ref().unwrap().destination, GatewayDestination::Service(wp));
    let gateway = "shop/wp".parse().unwrap();
    assert_eq!(view.tables[&gateway].hosts().len(), 1);
    let clusters: Vec<_> = view.clusters[&gateway].iter().collect();
    assert_eq!(clusters.len(), 2);
    assert!(clusters.iter().all(|c| matches!(c.policy.as_ref().unwrap().tls, mesh_core::l7::cluster::Tls::Simple(_))));
    for kind in [Kind::VirtualService, Kind::DestinationRule, Kind::ServiceEntry] {
        assert!(view.at_waypoints.iter().any(|key| key.kind == kind), "{kind:?}");
    }
}

#[test]
fn features_SE_5_endpoints_are_what_names_stand_for() {
    let table: &[(&str, &[&str], &[&str])] = &[
        (
            "{hosts: [a.example.com, b.example.com], resolution: DNS, PORTS}",
            &["a 192.0.2.1", "a 192.0.2.2", "b 192.0.2.2"],
            &[],
        ),
        ("{hosts: [a.example.com], resolution: DNS_ROUND_ROBIN, PORTS}", &["a 192.0.2.1"], &[]),
        (
            "{hosts: [c.example.com], resolution: DNS, PORTS, endpoints: [{address: a.example.com}, {address: 192.0.2.9}]}",
            &["c 192.0.2.1", "c 192.0.2.2", "c 192.0.2.9"],
            &[],
        ),
        (
            "{hosts: [n.example.com], resolution: DNS, PORTS}",
            &[],
            &["o spec.hosts[0]: n.example.com has not been looked up: it has no endpoint until it is"],
        ),
    ];
    for (spec, expected, problems) in table {
        let mut objects = read(&entry("o", "", &spec.replace("PORTS", PORTS)));
        let ip = |last: u8| IpAddr::from([192, 0, 2, last]);
        objects.looked_up =
            Arc::new([("a.example.com".into(), vec![ip(1), ip(2)]), ("b.example.com".into(), vec![ip(2)])].into());
        let view = build(&objects, &Settings::default());
        let mut found: Vec<String> = Vec::new();
        for workload in view.workloads.values() {
            let short = |key: &mesh_core::NamespacedName| key.name.split('.').next().unwrap_or_default().to_owned();
            found.extend(workload.services.keys().map(|key| format!("{} {}", short(key), workload.addresses[0])));
        }
        found.sort();
        assert_eq!(
            (found, said(&view)),
            (expected.iter().map(|s| (*s).to_owned()).collect(), problems.iter().map(|s| (*s).to_owned()).collect()),
            "{spec}"
        );
    }
}

#[test]
fn features_WE_1_a_workload_entry_with_a_name_has_what_is_found_where_names_are_looked_up() {
    let vm = |name: &str| {
        format!(
            "---\napiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {{name: {}, namespace: shop}}\nspec: {{address: {name}, labels: {{app: db}}, serviceAccount: db}}\n",
            name.split('.').next().unwrap()
        )
    };
    for (resolution, expected, problems) in [
        (
            "DNS",
            &["vm1/192.0.2.1", "vm1/192.0.2.2"][..],
            "vm2 vm2.corp has not been looked up: it has no endpoint until it is",
        ),
        ("DNS_ROUND_ROBIN", &["vm1/192.0.2.1"], "vm2 vm2.corp has not been looked up: it has no endpoint until it is"),
        ("STATIC", &[], "vm1 \"vm1.corp\" is no address: it is not used"),
    ] {
        let spec = format!(
            "{{hosts: [db.corp], resolution: {resolution}, {PORTS}, workloadSelector: {{labels: {{app: db}}}}}}"
        );
        let mut objects = read(&format!("{}{}{}", entry("db", "", &spec), vm("vm1.corp"), vm("vm2.corp")));
        let ip = |last: u8| IpAddr::from([192, 0, 2, last]);
        objects.looked_up = Arc::new([("vm1.corp".into(), vec![ip(1), ip(2)])].into());
        let view = build(&objects, &Settings::default());
        let own = "Kubernetes/networking.istio.io/WorkloadEntry/shop/";
        let found: Vec<&str> = view.workloads.values().filter_map(|w| w.uid.strip_prefix(own)).collect();
        assert_eq!(found, expected, "{resolution}");
        for workload in view.workloads.values() {
            let addresses: Vec<String> = workload.addresses.iter().map(ToString::to_string).collect();
            assert!(workload.uid.ends_with(&addresses.concat()) && *workload.service_account == *"db", "{workload:?}");
            assert!(workload.services.contains_key(&"shop/db.corp".parse().unwrap()));
        }
        let of_workloads = view.problems.iter().filter(|(key, _)| key.kind == Kind::WorkloadEntry);
        let told: Vec<String> =
            of_workloads.map(|(key, problem)| format!("{} {}", key.name, problem.message)).collect();
        assert!(told.iter().any(|told| told == problems), "{told:?}");
    }
}

#[test]
fn features_SE_6_WE_1_workload_entries_are_endpoints_of_those_that_select_them() {
    let workload = |namespace: &str, name: &str, spec: &str| {
        format!(
            "---\napiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n"
        )
    };
    let own = entry(
        "vms",
        "",
        &format!(
            "{{hosts: [vms.example.com], location: MESH_INTERNAL, resolution: STATIC, {PORTS}, workloadSelector: {{labels: {{app: vm}}}}}}"
        ),
    );
    let text = [
        own,
        workload(
            "shop",
            "vm-1",
            "{address: 192.0.2.1, labels: {app: vm, version: v1}, ports: {http: 81}, weight: 3, locality: r/z, serviceAccount: vm}",
        ),
        workload("shop", "vm-2", "{address: 192.0.2.2, labels: {app: vm}}"),
        workload("shop", "other", "{address: 192.0.2.3, labels: {app: other}}"),
        workload("far", "vm-3", "{address: 192.0.2.4, labels: {app: vm}}"),
        workload("shop", "named", "{address: vm.example.com, labels: {app: vm}}"),
        workload("shop", "own", "{address: 127.0.0.1, labels: {app: vm}}"),
    ];
    let view = view(&text.concat());
    let of: std::collections::BTreeMap<String, &std::sync::Arc<mesh_core::Workload>> =
        view.workloads.values().map(|w| (w.addresses[0].to_string(), w)).collect();
    assert_eq!(of.keys().collect::<Vec<_>>(), ["192.0.2.1", "192.0.2.2"]);
    let one = of["192.0.2.1"];
    assert_eq!(&*one.uid, "Kubernetes/networking.istio.io/WorkloadEntry/shop/vm-1");
    assert_eq!((&*one.name, &*one.service_account, one.capacity, &*one.locality.zone), ("vm-1", "vm", 3, "z"));
    assert_eq!((&*one.canonical_name, &*one.canonical_revision), ("vm", "v1"));
    let ports: Vec<u16> =
        one.services[&"shop/vms.example.com".parse().unwrap()].iter().map(|p| p.target_port).collect();
    assert_eq!(ports, [81, 443]);
    let of_workloads = view.problems.iter().filter(|(key, _)| key.kind == Kind::WorkloadEntry);
    let mut told: Vec<String> =
        of_workloads.map(|(key, problem)| format!("{} {}", key.name, problem.message)).collect();
    told.sort();
    let idle = "known, not in force: no ServiceEntry of its namespace selects it";
    let expected = [
        "named \"vm.example.com\" is no address: it is not used".to_owned(),
        format!("named {idle}"),
        format!("other {idle}"),
        "own \"127.0.0.1\" is a machine's own, or what clouds tell it: it is not used".to_owned(),
        format!("own {idle}"),
        format!("vm-3 {idle}"),
    ];
    assert_eq!(told, expected);
}

#[test]
fn features_WE_1_DR_2_subsets_have_endpoints_that_are_no_pods() {
    let spec = |endpoints: &str| format!("{{hosts: [vms.example.com], resolution: STATIC, {PORTS}, {endpoints}}}");
    let workload = |name: &str, address: &str, version: &str| {
        format!(
            "---\napiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{address: {address}, labels: {{app: vm, version: {version}}}}}\n"
        )
    };
    let rule = "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: vms, namespace: shop}\nspec: {host: vms.example.com, subsets: [{name: v1, labels: {version: v1}}]}\n";
    let route = "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: vms, namespace: shop}\nspec: {hosts: [vms.example.com], http: [{route: [{destination: {host: vms.example.com, subset: v1}}]}]}\n";
    let gateway = "---\napiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: exit, namespace: shop}\nspec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}\n---\napiVersion: v1\nkind: Service\nmetadata: {name: exit, namespace: shop}\nspec: {selector: {a: b}, ports: [{port: 15008}]}\n";
    let one = "Kubernetes/networking.istio.io/WorkloadEntry/shop/vm-1 version=v1";
    let inline = "Kubernetes/networking.istio.io/ServiceEntry/shop/vms/192.0.2.1 version=v1";
    for (endpoints, more, expected) in [
        (
            "workloadSelector: {labels: {app: vm}}",
            [workload("vm-1", "192.0.2.1", "v1"), workload("vm-2", "192.0.2.2", "v2")].concat(),
            &[one][..],
        ),
        (
            "endpoints: [{address: 192.0.2.1, labels: {version: v1}}, {address: 192.0.2.2, labels: {version: v2}}, {address: 192.0.2.3}]",
            String::new(),
            &[inline],
        ),
        ("endpoints: [{address: 192.0.2.3}]", String::new(), &[]),
    ] {
        let view = view(&format!(
            "{gateway}{}{more}{rule}{route}",
            entry("vms", "istio.io/use-waypoint: exit", &spec(endpoints))
        ));
        let told = &view.labels[&mesh_core::NamespacedName::new("shop", "exit")];
        let told =
            told.iter().flat_map(|(uid, labels)| labels.iter().map(move |(key, value)| format!("{uid} {key}={value}")));
        assert_eq!(told.collect::<Vec<_>>(), expected, "{endpoints}");
        assert_eq!(said(&view), [""; 0], "{endpoints}");
    }
}

#[test]
fn features_SE_1_SE_5_a_pattern_is_a_service_without_endpoints_that_its_waypoint_serves() {
    let gateway = "---\napiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: exit, namespace: shop}\nspec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}\n";
    let text = entry(
        "wild",
        "istio.io/use-waypoint: exit",
        &format!("{{hosts: ['*.example.com'], resolution: DYNAMIC_DNS, {PORTS}}}"),
    );
    let view = view(&format!("{gateway}{text}"));
    let key = "shop/*.example.com".parse().unwrap();
    let service = &view.services[&key];
    assert!(service.waypoint.is_some() && !service.addresses.is_empty());
    // It stands in nobody else's way.
    assert!(service.visible_from("shop") && !service.visible_from("far"));
    assert!(said(&view).iter().any(|said| said.contains("only its own namespace knows it")), "{:?}", said(&view));
    assert!(view.workloads.is_empty() && view.served.contains(&key));
    assert!(!said(&view).iter().any(|said| said.contains("there is none: they are refused")), "{:?}", said(&view));
    // Agents can be told of it, and answer for every name below it.
    let mut store = Store::new();
    let wire = mesh_proto::convert::encode_service(service);
    let Ok(mesh_proto::convert::AddressResource::Service(read)) = mesh_proto::convert::address(&wire) else { panic!() };
    let snapshot = store.apply(vec![Change::Service(read), Change::Synced]).snapshot;
    assert_eq!(snapshot.service_by_host("*.example.com").len(), 1);
}

#[test]
fn features_B19_who_addresses_an_endpoint_itself_comes_to_the_waypoint_where_nothing_may_go_around_it() {
    let gateway = "---\napiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: exit, namespace: shop}\nspec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}\n";
    let spec =
        format!("{{hosts: [api.example.com], resolution: STATIC, {PORTS}, endpoints: [{{address: 192.0.2.1}}]}}");
    for (labels, expected) in [
        ("istio.io/use-waypoint: exit", false),
        ("istio.io/use-waypoint: exit, undermesh.io/waypoint-bypass: allow", false),
        ("istio.io/use-waypoint: exit, undermesh.io/waypoint-bypass: refuse", true),
        ("istio.io/use-waypoint: exit, undermesh.io/waypoint-bypass: maybe", true),
        ("undermesh.io/waypoint-bypass: refuse", false),
    ] {
        let view = view(&format!("{gateway}{}", entry("api", labels, &spec)));
        let guarded: Vec<bool> = view.workloads.values().map(|workload| workload.waypoint.is_some()).collect();
        assert_eq!(guarded, [expected], "{labels}");
    }
    // Also where an older one without a waypoint names the same address.
    let labels = "istio.io/use-waypoint: exit, undermesh.io/waypoint-bypass: refuse";
    let older = entry("a", "", &spec.replace("api.example.com", "a.example.com"));
    let both = view(&format!("{gateway}{older}{}", entry("api", labels, &spec)));
    assert_eq!(both.workloads.values().map(|workload| workload.waypoint.is_some()).collect::<Vec<_>>(), [true]);
    // Others must not be led to the waypoint of what they do not see.
    let private = spec.replace("{hosts", "{exportTo: ['.'], hosts");
    let private = view(&format!("{gateway}{}", entry("api", labels, &private)));
    assert!(private.workloads.values().all(|workload| workload.waypoint.is_none()));
    assert!(said(&private).iter().any(|said| said.contains("goes around the waypoint")), "{:?}", said(&private));
}

#[test]
fn features_WE_1_an_endpoint_that_is_written_into_an_entry_names_its_waypoint() {
    let gateway = |purpose: &str| {
        format!(
            "---\napiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: exit, namespace: shop, labels: {{istio.io/waypoint-for: {purpose}}}}}\nspec: {{gatewayClassName: istio-waypoint, listeners: [{{name: mesh, port: 15008, protocol: HBONE}}]}}\n"
        )
    };
    let namespace =
        "---\napiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {istio.io/use-waypoint: exit}}\n";
    for (what, purpose, labels, around, bound, told) in [
        ("of workloads", "workload", "istio.io/use-waypoint: exit", "", true, ""),
        ("of both", "all", "istio.io/use-waypoint: exit", "", true, ""),
        (
            "of services alone",
            "service",
            "istio.io/use-waypoint: exit",
            "",
            false,
            "Gateway shop/exit is not for workloads",
        ),
        ("none", "all", "istio.io/use-waypoint: none", namespace, false, ""),
        ("nothing is said: a namespace means objects", "all", "app: a", namespace, false, ""),
        (
            "one that there is not: nothing goes around it",
            "all",
            "istio.io/use-waypoint: gone",
            "",
            true,
            "there is no Gateway shop/gone",
        ),
    ] {
        let spec = format!(
            "{{hosts: [api.example.com], resolution: STATIC, {PORTS}, endpoints: [{{address: 192.0.2.1, labels: {{{labels}}}}}]}}"
        );
        let own = service("exit", "{clusterIP: 198.19.0.9, ports: [{port: 15008}]}");
        let view = view(&format!("{}{own}{around}{}", gateway(purpose), entry("api", "", &spec)));
        let workload = view.workloads.values().next().unwrap();
        assert_eq!(workload.waypoint.is_some(), bound, "{what}");
        let said = said(&view);
        match told {
            "" => assert_eq!(said, [""; 0], "{what}"),
            _ => assert_eq!(said.len(), 1, "{what}: {said:?}"),
        }
        let field = "api spec.endpoints[0].labels[\"istio.io/use-waypoint\"]: ";
        assert!(said.iter().all(|one| one.starts_with(&format!("{field}{told}"))), "{what}: {said:?}");
    }
}

#[test]
fn an_entry_whose_waypoint_does_not_take_it_is_told_so_whoever_names_that() {
    let namespace = |labels: &str| {
        format!("---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: shop, labels: {{{labels}}}}}\n")
    };
    let spec = |host: &str, resolution: &str| {
        format!("{{hosts: ['{host}'], exportTo: ['.'], resolution: {resolution}, {PORTS}}}")
    };
    let (plain, pattern) =
        (spec("a.example.com", "STATIC, endpoints: [{address: 192.0.2.1}]"), spec("*.example.com", "DYNAMIC_DNS"));
    let gone = "istio.io/use-waypoint: gone";
    const OWN: &str = "o metadata.labels[\"istio.io/use-waypoint\"]: there is no Gateway shop/gone";
    const OF_NAMESPACE: &str = "o spec.hosts: there is no Gateway shop/gone, which the namespace names";
    const NOBODY: &str = "o spec.hosts[0]: a waypoint looks up what requests to *.example.com ask for, and there is none: they are refused";
    for (what, labels, of_namespace, spec, expected) in [
        ("it names it", gone, "", &plain, &[OWN][..]),
        ("its namespace does", "", gone, &plain, &[OF_NAMESPACE]),
        ("nobody does", "", "", &plain, &[]),
        ("it wants none", "istio.io/use-waypoint: none", gone, &plain, &[]),
        ("a pattern", gone, "", &pattern, &[OWN, NOBODY]),
    ] {
        let view = view(&format!("{}{}", namespace(of_namespace), entry("o", labels, spec)));
        let mut found = said(&view);
        found.sort_by_key(|said| said.starts_with("o spec.hosts[0]"));
        assert_eq!(found, expected, "{what}");
        let is_closed = view.services.values().all(|service| service.waypoint.is_some());
        let of_entry = view.problems.iter().filter(|(key, _)| key.kind == Kind::ServiceEntry);
        let is_error = of_entry.into_iter().any(|(_, problem)| problem.severity == Severity::Error);
        assert_eq!((is_closed, is_error), (!expected.is_empty(), !expected.is_empty()), "{what}");
    }
}
