//! Services, their endpoints and their addresses.

use super::*;

#[test]
fn services_and_their_endpoints() {
    let table: &[(&str, &[u16])] = &[
        ("{selector: {app: web}, ports: [{port: 80, targetPort: http}]}", &[80, 8080]),
        ("{selector: {app: web}, ports: [{port: 80, targetPort: 81}]}", &[80, 81]),
        ("{selector: {app: web}, ports: [{port: 80}]}", &[80, 80]),
        ("{selector: {app: web}, ports: [{port: 80, targetPort: '81'}]}", &[80, 81]),
        ("{selector: {app: web}, ports: [{port: 80, targetPort: absent}]}", &[]),
        (
            "{selector: {app: web}, ports: [{port: 53, targetPort: dns, protocol: UDP}, {port: 54, targetPort: dns}]}",
            &[],
        ),
    ];
    for (spec, expected) in table {
        let view = view(&format!("{}{}", pod("web-1", ""), service("web", spec)));
        let ports: Vec<u16> = view
            .workloads
            .values()
            .flat_map(|w| w.services.values())
            .flatten()
            .flat_map(|p| [p.service_port, p.target_port])
            .collect();
        assert_eq!(&ports, expected, "{spec}");
        assert_eq!(view.workloads.values().next().unwrap().services.len(), 1, "{spec}");
    }
    for other in [
        "{selector: {app: other}, ports: [{port: 80}]}",
        "{ports: [{port: 80}]}",
        "{type: ExternalName, externalName: a.b}",
    ] {
        let view = view(&format!("{}{}", pod("web-1", ""), service("web", other)));
        assert!(view.workloads.values().next().unwrap().services.is_empty(), "{other}");
    }
    // A selector selects in its own namespace only.
    let view = view(&format!(
        "{}{}",
        pod_in("other", "web-1", "198.18.0.1", "app: web", ""),
        service("web", "{selector: {app: web}, ports: [{port: 80}]}")
    ));
    assert!(view.workloads.values().next().unwrap().services.is_empty());
}

#[test]
fn features_L4_15_which_endpoints_are_preferred() {
    let balancing = |spec: &str, annotation: &str, namespace: &str| {
        let namespace = format!(
            "---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: shop, annotations: {{networking.istio.io/traffic-distribution: '{namespace}'}}}}\n"
        );
        let service = service("web", spec).replace(
            "namespace: shop}",
            &format!("namespace: shop, annotations: {{networking.istio.io/traffic-distribution: '{annotation}'}}}}"),
        );
        let view = view(&format!("{namespace}{service}"));
        let balancing = view.services.values().next().unwrap().load_balancing.clone();
        (balancing.preferences, balancing.mode, balancing.health)
    };
    let zone = vec![Locality::Network, Locality::Region, Locality::Zone];
    let node = vec![Locality::Network, Locality::Region, Locality::Zone, Locality::Subzone, Locality::Node];
    let ready = HealthPolicy::OnlyHealthy;
    assert_eq!(balancing("{ports: [{port: 1}]}", "", ""), (vec![], Mode::default(), ready));
    assert_eq!(balancing("{trafficDistribution: PreferClose}", "", ""), (zone.clone(), Mode::Failover, ready));
    assert_eq!(balancing("{trafficDistribution: PreferSameZone}", "", ""), (zone.clone(), Mode::Failover, ready));
    assert_eq!(balancing("{trafficDistribution: PreferSameNode}", "", ""), (node.clone(), Mode::Failover, ready));
    assert_eq!(balancing("{}", "preferclose", ""), (zone.clone(), Mode::Failover, ready));
    assert_eq!(balancing("{}", "", "PreferSameNode"), (node.clone(), Mode::Failover, ready));
    assert_eq!(balancing("{}", "PreferClose", "PreferSameNode"), (zone.clone(), Mode::Failover, ready));
    assert_eq!(balancing("{trafficDistribution: PreferSameNode}", "PreferClose", ""), (node, Mode::Failover, ready));
    assert_eq!(
        balancing("{internalTrafficPolicy: Local, trafficDistribution: PreferClose}", "", ""),
        (vec![Locality::Node], Mode::Strict, ready)
    );
    assert_eq!(
        balancing("{publishNotReadyAddresses: true}", "", ""),
        (vec![], Mode::default(), HealthPolicy::AllowAll)
    );
}

#[test]
fn addresses_of_services() {
    let addresses = |spec: &str| {
        let view = view(&service("web", spec));
        let service = view.services.values().next().unwrap().clone();
        (
            service.addresses.iter().map(|a| a.cidr.to_string()).collect::<Vec<_>>(),
            service.is_headless(),
            service.hostname.to_string(),
        )
    };
    let host = "web.shop.svc.cluster.local".to_owned();
    assert_eq!(
        addresses("{clusterIP: 198.18.200.1, clusterIPs: [198.18.200.1, 'fd00:198::1']}"),
        (vec!["198.18.200.1/32".into(), "fd00:198::1/128".into()], false, host.clone())
    );
    assert_eq!(addresses("{clusterIP: None}"), (vec![], true, host.clone()));
    assert_eq!(addresses("{clusterIP: bad}"), (vec![], true, host));
}

#[test]
fn endpoint_slices_serve_services_without_selector() {
    let slice = "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: ext-1, namespace: shop, labels: {kubernetes.io/service-name: ext}}\naddressType: IPv4\nports: [{port: 5432, name: pg}]\nendpoints:\n- {addresses: [198.18.9.1], conditions: {ready: false}, zone: z2}\n- {addresses: [198.18.0.1], targetRef: {kind: Pod, name: web-1}}\n- {addresses: [198.18.0.9]}\n- {addresses: [198.18.0.2], targetRef: {kind: Pod, name: other-1, namespace: other}}\n";
    let foreign = pod_in("other", "x", "198.18.0.9", "app: x", "");
    let view = view(&format!(
        "{NODE}{}{foreign}{slice}{}",
        pod("web-1", ""),
        service("ext", "{ports: [{port: 1, name: pg}]}")
    ));
    let members: Vec<String> = view
        .workloads
        .values()
        .filter(|w| !w.services.is_empty())
        .map(|w| format!("{} {:?} {}", w.uid, w.health, w.locality.zone))
        .collect();
    assert_eq!(
        members,
        [
            "Kubernetes//Pod/shop/web-1 Healthy z",
            "Kubernetes/discovery.k8s.io/EndpointSlice/shop/ext-1/198.18.9.1 Unhealthy z2"
        ]
    );
    assert_eq!(view.problems.len(), 1, "{:?}", view.problems);
}

#[test]
fn one_namespace_does_not_steer_the_traffic_of_another() {
    let slice = "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: ext-1, namespace: shop, labels: {kubernetes.io/service-name: ext}}\naddressType: IPv4\nports: [{port: 5432, name: pg}]\nendpoints: [{addresses: [198.19.0.1]}, {addresses: [198.18.9.1]}]\n";
    let bank = "---\napiVersion: v1\nkind: Service\nmetadata: {name: vault, namespace: bank}\nspec: {clusterIP: 198.19.0.1, ports: [{port: 443}]}\n";
    let view = view(&format!(
        "{NODE}{bank}{slice}{}{}{}{}",
        pod("web-1", ""),
        service("ext", "{ports: [{port: 1, name: pg}]}"),
        service("thief", "{clusterIP: 198.19.0.1, ports: [{port: 443}]}"),
        service("odd", "{clusterIP: 198.18.0.1, ports: [{port: 443}]}"),
    ));
    // As a workload the address would win against the service that has it.
    assert!(view.workloads.values().all(|w| !w.addresses.contains(&"198.19.0.1".parse().unwrap())));
    assert!(view.workloads.values().any(|w| w.addresses == ["198.18.9.1".parse::<IpAddr>().unwrap()]));
    let owners: Vec<_> = view.services.values().filter(|s| !s.addresses.is_empty()).map(|s| s.name.as_str()).collect();
    assert_eq!(owners, ["vault", "odd"]);
    let mut problems: Vec<_> = view.problems.iter().map(|(key, p)| format!("{key}: {}", p.message)).collect();
    problems.sort();
    assert_eq!(
        problems,
        [
            "EndpointSlice shop/ext-1: 198.19.0.1 is the address of Service bank/vault, it is not used",
            "Service shop/odd: 198.18.0.1 is the address of pod shop/web-1, which gets it",
            "Service shop/thief: 198.19.0.1 belongs to Service bank/vault, this one does not get it",
        ]
    );
}

#[test]
fn of_services_with_one_address_one_without_age_gets_it_then_the_oldest_then_the_first_by_name() {
    let web = |namespace: &str, created: &str| {
        let created = if created.is_empty() { String::new() } else { format!(", creationTimestamp: '{created}'") };
        format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: web, namespace: {namespace}{created}}}\nspec: {{clusterIP: 198.19.0.1, ports: [{{port: 80}}]}}\n"
        )
    };
    let (old, young) = ("2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z");
    for (ages, owner) in [
        ([("aaa", ""), ("bbb", "")], "aaa"),
        ([("aaa", ""), ("bbb", young)], "aaa"),
        ([("aaa", old), ("bbb", "")], "bbb"),
        ([("aaa", young), ("bbb", old)], "bbb"),
        ([("aaa", old), ("bbb", young)], "aaa"),
        ([("aaa", old), ("bbb", old)], "aaa"),
    ] {
        let [first, second] = ages.map(|(namespace, created)| web(namespace, created));
        // Nor does it matter which one is written first.
        for text in [format!("{first}{second}"), format!("{second}{first}")] {
            let view = view(&text);
            let owners: Vec<_> =
                view.services.values().filter(|s| !s.addresses.is_empty()).map(|s| s.namespace.as_str()).collect();
            assert_eq!(owners, [owner], "{ages:?}");
            let problems: Vec<_> = view.problems.iter().map(|(key, p)| format!("{key}: {}", p.message)).collect();
            let other = if owner == "aaa" { "bbb" } else { "aaa" };
            let told =
                format!("Service {other}/web: 198.19.0.1 belongs to Service {owner}/web, this one does not get it");
            assert_eq!(problems, [told], "{ages:?}");
        }
    }
}
