//! Routes and objects of Istio are in force where a waypoint serves what they speak of.

use mesh_core::NamespacedName;
use mesh_core::workload::GatewayDestination;

use super::waypoints::*;
use super::*;
use crate::resource::Key;

#[test]
fn a_route_is_in_force_where_a_waypoint_serves_its_service() {
    let route = "---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: r, namespace: shop}\nspec: {parentRefs: [{group: \"\", kind: Service, name: web}]}\n";
    let key = Key { kind: Kind::HttpRoute, namespace: "shop".into(), name: "r".into() };
    for (what, text, acts) in [
        ("bound", format!("{}{}{route}", waypoint("shop", "wp", ""), shop(&label("wp"), "")), true),
        ("not bound", format!("{}{}{route}", waypoint("shop", "wp", ""), shop("", "")), false),
        (
            "bound for workloads",
            format!("{}{}{route}", waypoint("shop", "wp", "workload"), shop(&label("wp"), "")),
            false,
        ),
        ("no waypoint", format!("{}{route}", shop(&label("wp"), "")), false),
    ] {
        let view = view(&text);
        let route = view.resolved.belonging(&key, &view.served, &view.listening).unwrap();
        assert_eq!((route.parents.len(), route.served.len()), (1, usize::from(acts)), "{what}");
        let idle = view.problems.iter().any(|(of, problem)| *of == key && problem.message.contains("not in force"));
        assert_eq!(idle, !acts, "{what}: {:?}", view.problems);
    }
}

#[test]
fn a_waypoint_whose_objects_are_called_otherwise_is_found_by_their_names() {
    let long = "w".repeat(200);
    let named = |gateway: &str, marks: &str, own: &str, label: &str| {
        let service =
            own_service("shop", own).replace(&format!("gateway-name: {own}"), &format!("gateway-name: {label}"));
        let pod = pod_in("shop", "gw-1", "198.18.0.7", &format!("gateway.networking.k8s.io/gateway-name: {label}"), "")
            .replace("annotations: {ambient.istio.io/redirection: enabled}", "annotations: {}")
            .replace("serviceAccountName: web", &format!("serviceAccountName: {own}"));
        format!("{}{service}{pod}", bare("shop", gateway, marks, &spec("undermesh-waypoint", "")))
    };
    let hashed = crate::resource::waypoint::gateway_label(&long);
    let own = crate::resource::waypoint::deployed_name(&long, "undermesh-waypoint", true, &Default::default());
    for (gateway, marks, own, label) in [
        ("wp", "annotations: {gateway.istio.io/name-override: front}", "front", "wp"),
        (&long, "annotations: {}", &*own, &*hashed),
    ] {
        let objects = named(gateway, marks, own, label);
        let view = view(&format!("{NODE}{objects}{}", shop(&self::label(gateway), "")));
        let service = view.services.values().find(|service| service.name == "web").unwrap();
        let expected =
            GatewayDestination::Service(NamespacedName::new("shop", format!("{own}.shop.svc.cluster.local")));
        assert_eq!(service.waypoint.as_ref().map(|at| &at.destination), Some(&expected), "{gateway}");
        let served: Vec<String> = view.waypoint_pods.values().map(|pod| pod.gateway.name.to_string()).collect();
        assert_eq!(served, [gateway], "{:?}", view.problems);
    }
}

#[test]
fn istios_objects_are_in_force_where_a_waypoint_serves_their_host() {
    let of = |kind: &str, name: &str, spec: &str| {
        format!(
            "---\napiVersion: networking.istio.io/v1\nkind: {kind}\nmetadata: {{name: {name}, namespace: shop}}\nspec: {spec}\n"
        )
    };
    let objects = [
        of("VirtualService", "vs", "{hosts: [web], http: [{delegate: {name: inner}}]}"),
        of("VirtualService", "inner", "{http: [{route: [{destination: {host: web}}]}]}"),
        of("DestinationRule", "dr", "{host: web.shop.svc.cluster.local}"),
        of("DestinationRule", "other", "{host: other}"),
    ]
    .concat();
    for (served, expected) in [
        (&["DestinationRule dr", "VirtualService inner", "VirtualService vs"][..], label("wp")),
        (&["DestinationRule dr"][..], String::new()),
    ]
    .map(|(expected, label)| (label, expected))
    {
        let view = view(&format!("{}{}{objects}", waypoint("shop", "wp", ""), shop(&served, "")));
        let mut acting: Vec<String> =
            view.at_waypoints.iter().map(|key| format!("{} {}", key.kind.name(), key.name)).collect();
        acting.sort();
        assert_eq!(acting, expected, "{:?}", view.problems);
        for (key, problem) in &view.problems {
            let idle = problem.message == crate::resource::routing::NO_WAYPOINT;
            assert!(!idle || !view.at_waypoints.contains(key), "{key}: {problem:?}");
        }
    }
}
