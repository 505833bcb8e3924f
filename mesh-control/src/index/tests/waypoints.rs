//! What is bound to which waypoint, who serves one, and what is told to those who name one that does not take them.

use mesh_core::GatewayAddress;
use mesh_core::workload::GatewayDestination;

use super::*;
use crate::diagnosis::Problem;
use crate::index::Join;
use crate::resource::Objects;

pub(super) const USE: &str = "istio.io/use-waypoint";

/// A Gateway with a Service of its name.
pub(super) fn gateway(namespace: &str, name: &str, marks: &str, spec: &str) -> String {
    format!("{}{}", bare(namespace, name, marks, spec), own_service(namespace, name))
}

pub(super) fn bare(namespace: &str, name: &str, marks: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: {name}, namespace: {namespace}, {marks}}}\nspec: {spec}\n"
    )
}

pub(super) fn own_service(namespace: &str, name: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {{selector: {{gateway.networking.k8s.io/gateway-name: {name}}}, ports: [{{port: 15008}}]}}\n"
    )
}

pub(super) fn spec(class: &str, from: &str) -> String {
    let allowed = if from.is_empty() { String::new() } else { format!(", allowedRoutes: {{namespaces: {from}}}") };
    format!("{{gatewayClassName: {class}, listeners: [{{name: mesh, port: 15008, protocol: HBONE{allowed}}}]}}")
}

pub(super) fn waypoint(namespace: &str, name: &str, purpose: &str) -> String {
    let marks =
        if purpose.is_empty() { String::new() } else { format!("labels: {{istio.io/waypoint-for: {purpose}}}") };
    gateway(namespace, name, &marks, &spec("undermesh-waypoint", ""))
}

pub(super) fn namespace(name: &str, labels: &str) -> String {
    format!("---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}, labels: {{{labels}}}}}\n")
}

/// A service and a pod of it, with labels.
pub(super) fn shop(service: &str, pod: &str) -> String {
    let service = format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: web, namespace: shop, labels: {{{service}}}}}\nspec: {{selector: {{app: web}}, clusterIP: 198.19.0.1, ports: [{{port: 80}}]}}\n"
    );
    format!("{service}{}", pod_in("shop", "web-1", "198.18.0.1", &format!("app: web{pod}"), ""))
}

pub(super) fn label(name: &str) -> String {
    format!("{USE}: {name}")
}

pub(super) fn far(name: &str, namespace: &str) -> String {
    format!("{USE}: {name}, {USE}-namespace: {namespace}")
}

/// A pod of a waypoint, which no agent has enrolled.
pub(super) fn serving(namespace: &str, gateway: &str, account: &str) -> String {
    let labels = format!("gateway.networking.k8s.io/gateway-name: {gateway}");
    let pod = pod_in(namespace, "gw-1", "198.18.0.7", &labels, "");
    let pod = pod.replace("redirection: enabled", "redirection: disabled");
    pod.replace("serviceAccountName: web", &format!("serviceAccountName: {account}"))
}

/// Where clients are sent: `-` is nowhere but there, `closed` is to nobody.
pub(super) fn told(address: Option<&GatewayAddress>) -> String {
    let Some(address) = address else { return "-".into() };
    assert_eq!(address.hbone_port, 15008);
    match &address.destination {
        GatewayDestination::Service(key) if key.name.ends_with("waypoint.invalid") => "closed".into(),
        GatewayDestination::Service(key) => key.to_string(),
        GatewayDestination::Address(at) => at.address.to_string(),
    }
}

/// The waypoints of the shop's service and pod.
pub(super) fn bound(view: &View) -> (String, String) {
    let service = view.services.values().find(|s| s.name == "web").unwrap();
    let workload = &view.workloads["Kubernetes//Pod/shop/web-1"];
    (told(service.waypoint.as_ref()), told(workload.waypoint.as_ref()))
}

pub(super) fn in_full(namespace: &str, name: &str) -> String {
    format!("{namespace}/{name}.{namespace}.svc.cluster.local")
}

/// What is said of waypoints: kinds, and whether it is an error.
pub(super) fn problems(view: &View) -> Vec<(Kind, bool, Problem)> {
    let about = |p: &Problem| p.field.contains("waypoint") || p.field.contains("serviceAccountName");
    let own = view.problems.iter().filter(|(_, problem)| about(problem));
    own.map(|(key, p)| (key.kind, p.severity == crate::diagnosis::Severity::Error, p.clone())).collect()
}

#[test]
fn features_3_1_the_most_specific_label_says_which_waypoint_there_is() {
    let both = format!("{}{}", waypoint("shop", "wp", "all"), waypoint("shop", "other", "all"));
    let (wp, other) = (in_full("shop", "wp"), in_full("shop", "other"));
    let rows: [(&str, String, String, &str, &str); 10] = [
        ("", String::new(), String::new(), "-", "-"),
        (&label("wp"), String::new(), String::new(), &wp, &wp),
        (&label("wp"), label("none"), String::new(), "-", &wp),
        (&label("wp"), String::new(), label("none"), &wp, "-"),
        (&label("wp"), label("other"), String::new(), &other, &wp),
        (&label("wp"), String::new(), label("other"), &wp, &other),
        ("", label("wp"), String::new(), &wp, "-"),
        ("", String::new(), label("wp"), "-", &wp),
        (&label("none"), label("wp"), String::new(), &wp, "-"),
        (&label("wp"), label("''"), String::new(), &wp, &wp),
    ];
    for (of_namespace, service, pod, by_service, by_workload) in rows {
        let pod = if pod.is_empty() { String::new() } else { format!(", {pod}") };
        let view = view(&format!("{both}{}{}", namespace("shop", of_namespace), shop(&service, &pod)));
        assert_eq!(bound(&view), (by_service.to_owned(), by_workload.to_owned()), "{of_namespace} {service} {pod}");
        assert_eq!(problems(&view), []);
    }
}

/// The Service that two Gateways are to have is one's, and the other one has no pods behind it: what names that one is closed.
#[test]
fn the_service_of_another_gateway_of_its_name_is_no_waypoint() {
    let both = |own: &str| {
        let marks = "annotations: {gateway.istio.io/name-override: front}";
        bare("shop", own, marks, &spec("undermesh-waypoint", ""))
    };
    let front = own_service("shop", "front").replace("gateway-name: front", "gateway-name: z");
    for (named, expected) in [("z", in_full("shop", "front")), ("a", "closed".to_owned())] {
        let view = view(&format!("{}{}{front}{}", both("a"), both("z"), shop(&label(named), "")));
        assert_eq!(bound(&view).0, expected, "{named}");
    }
}

#[test]
fn features_3_1_a_workload_entry_is_bound_as_a_pod_is() {
    let entry = |labels: &str| {
        format!(
            "---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: vms, namespace: shop, labels: {{{labels}}}}}\n\
             spec: {{hosts: [vms.example.com], resolution: STATIC, ports: [{{number: 80, name: http}}], workloadSelector: {{labels: {{app: vm}}}}}}\n"
        )
    };
    let workload = |labels: &str| {
        format!(
            "---\napiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {{name: vm, namespace: shop, labels: {{{labels}}}}}\n\
             spec: {{address: 192.0.2.1, labels: {{app: vm}}}}\n"
        )
    };
    let refuse = |name: &str| format!("{}, undermesh.io/waypoint-bypass: refuse", label(name));
    let (wp, other, near) = (in_full("shop", "wp"), in_full("shop", "other"), in_full("shop", "services"));
    for (of_namespace, of_entry, of_workload, expected, is_told) in [
        ("", String::new(), String::new(), "-", false),
        ("", String::new(), label("wp"), &*wp, false),
        (&*label("wp"), String::new(), String::new(), &wp, false),
        (&label("wp"), String::new(), label("other"), &other, false),
        (&label("wp"), String::new(), label("none"), "-", false),
        // Of services: a workload is none.
        ("", label("wp"), String::new(), "-", false),
        (&label("services"), String::new(), String::new(), "-", false),
        ("", String::new(), label("services"), "-", true),
        ("", String::new(), label("missing"), "closed", true),
        // What must not be gone around goes first.
        ("", refuse("services"), label("wp"), &near, false),
    ] {
        let waypoints =
            [waypoint("shop", "wp", "all"), waypoint("shop", "other", "workload"), waypoint("shop", "services", "")];
        let text = [namespace("shop", of_namespace), entry(&of_entry), workload(&of_workload)];
        // Selected twice, told once.
        let again = entry("").replace("vms", "more");
        let view = view(&format!("{}{}{again}", waypoints.concat(), text.concat()));
        let found = &view.workloads["Kubernetes/networking.istio.io/WorkloadEntry/shop/vm"];
        assert_eq!(told(found.waypoint.as_ref()), expected, "{of_namespace} {of_entry} {of_workload}");
        let kinds: Vec<Kind> = problems(&view).into_iter().map(|(kind, ..)| kind).collect();
        let expected = if is_told { vec![Kind::WorkloadEntry] } else { vec![] };
        assert_eq!(kinds, expected, "{of_namespace} {of_entry} {of_workload}");
    }
}

#[test]
fn features_3_1_a_waypoint_is_for_services_or_workloads_or_both_or_nothing() {
    let class = "---\napiVersion: gateway.networking.k8s.io/v1\nkind: GatewayClass\nmetadata: {name: undermesh-waypoint, labels: {istio.io/waypoint-for: all}}\nspec: {controllerName: undermesh.io/gateway-controller}\n";
    for (purpose, class, services, workloads) in [
        ("", "", true, false),
        ("service", "", true, false),
        ("workload", "", false, true),
        ("all", "", true, true),
        ("none", "", false, false),
        ("", class, true, true),
        ("service", class, true, false),
        // What cannot be read is for everything: nothing goes around it.
        ("workloads", "", true, true),
    ] {
        let gateway = waypoint("shop", "wp", purpose);
        let is = |is: bool| if is { in_full("shop", "wp") } else { "-".to_owned() };
        let by_namespace = view(&format!("{class}{gateway}{}{}", namespace("shop", &label("wp")), shop("", "")));
        assert_eq!(bound(&by_namespace), (is(services), is(workloads)), "{purpose} {class}");
        // Whoever asks for it by a label of his own is told that it is not for him.
        let own = view(&format!("{class}{gateway}{}", shop(&label("wp"), &format!(", {}", label("wp")))));
        assert_eq!(bound(&own), (is(services), is(workloads)), "{purpose} {class}");
        let warned = |kind: Kind| problems(&own).iter().any(|(of, error, _)| *of == kind && !error);
        assert_eq!((warned(Kind::Service), warned(Kind::Pod)), (!services, !workloads), "{purpose}");
        assert_eq!(problems(&by_namespace).len(), usize::from(purpose == "workloads"), "{purpose}");
    }
}

#[test]
fn features_C4_what_names_a_waypoint_that_does_not_take_it_is_closed_and_told() {
    let ours = spec("undermesh-waypoint", "");
    let foreign = "---\napiVersion: gateway.networking.k8s.io/v1\nkind: GatewayClass\nmetadata: {name: theirs}\nspec: {controllerName: example.com/x}\n";
    let istiod = service("istiod", "{selector: {app: istiod}, ports: [{port: 1}]}").replace("shop", "istio-system");
    let (plain, of_wp) = (label("wp"), in_full("shop", "wp"));
    let rows = [
        ("there is none", String::new(), plain.clone(), "closed", Some(true)),
        ("it is there", gateway("shop", "wp", "", &ours), plain.clone(), &*of_wp, None),
        ("of Istio's class", gateway("shop", "wp", "", &spec("istio-waypoint", "")), plain.clone(), &of_wp, None),
        (
            "Istio's, which runs",
            format!("{istiod}{}", gateway("shop", "wp", "", &spec("istio-waypoint", ""))),
            plain.clone(),
            "-",
            Some(false),
        ),
        (
            "another controller's",
            format!("{foreign}{}", gateway("shop", "wp", "", &spec("theirs", ""))),
            plain.clone(),
            "-",
            Some(false),
        ),
        (
            "nobody's class",
            gateway("shop", "wp", "", &spec("undermesh-waipoint", "")),
            plain.clone(),
            "closed",
            Some(true),
        ),
        (
            "no tunnels",
            gateway(
                "shop",
                "wp",
                "",
                "{gatewayClassName: undermesh, listeners: [{name: http, port: 80, protocol: HTTP}]}",
            ),
            plain.clone(),
            "closed",
            Some(true),
        ),
        ("nowhere", bare("shop", "wp", "", &ours), plain.clone(), "closed", Some(true)),
        ("of another namespace", gateway("infra", "wp", "", &ours), plain.clone(), "closed", Some(true)),
        ("which takes its own only", gateway("infra", "wp", "", &ours), far("wp", "infra"), "closed", Some(true)),
        ("no name", String::new(), label("'A/b'"), "closed", Some(true)),
        ("a name that is long", String::new(), label(&"a".repeat(600)), "closed", Some(true)),
    ];
    for (what, objects, service, expected, error) in rows {
        let view = view(&format!("{objects}{}", shop(&service, "")));
        assert_eq!(bound(&view).0, expected, "{what}");
        let said: Vec<_> = problems(&view).into_iter().map(|(kind, is_error, _)| (kind, is_error)).collect();
        assert_eq!(said, error.map(|error| (Kind::Service, error)).into_iter().collect::<Vec<_>>(), "{what}");
        // Agents must be able to read it: a service that they cannot read is no service of the mesh.
        for service in view.services.values() {
            let read = mesh_proto::convert::address(&mesh_proto::convert::encode_service(service));
            assert!(read.is_ok(), "{what}: {read:?}");
        }
    }
    // A namespace is told once, whatever is in it.
    let view = view(&format!("{}{}", namespace("shop", &plain), shop("", "")));
    assert_eq!(bound(&view), ("closed".into(), "closed".into()));
    let said = problems(&view);
    assert_eq!(said.iter().map(|(kind, error, _)| (*kind, *error)).collect::<Vec<_>>(), [(Kind::Namespace, true)]);
    assert!(said[0].2.help.as_deref().is_some_and(|help| help.contains("nothing goes around")), "{said:?}");
}

#[test]
fn features_3_1_allowed_routes_say_of_which_namespaces() {
    for (from, labels, expected) in [
        ("", "", false),
        ("{from: Same}", "", false),
        ("{from: All}", "", true),
        ("{from: None}", "", false),
        ("{from: Selector, selector: {matchLabels: {team: a}}}", "team: a", true),
        ("{from: Selector, selector: {matchLabels: {team: a}}}", "team: b", false),
        ("{from: Selector, selector: {matchLabels: {kubernetes.io/metadata.name: shop}}}", "", true),
    ] {
        let gateway = gateway("infra", "wp", "", &spec("undermesh-waypoint", from));
        let view = view(&format!("{gateway}{}{}", namespace("shop", labels), shop(&far("wp", "infra"), "")));
        let expected = if expected { in_full("infra", "wp") } else { "closed".into() };
        assert_eq!(bound(&view).0, expected, "{from} {labels}");
    }
}

#[test]
fn a_waypoint_serves_ends_tunnels_itself_and_is_bound_to_none() {
    let all = waypoint("shop", "wp", "all");
    let bound_all = namespace("shop", &label("wp"));
    let uid = "Kubernetes//Pod/shop/gw-1";
    for (what, pod, serves) in [
        ("its pod", serving("shop", "wp", "wp"), true),
        ("another account", serving("shop", "wp", "web"), false),
        ("of no gateway", serving("shop", "else", "wp"), false),
    ] {
        let view = view(&format!("{NODE}{bound_all}{all}{}{pod}", shop("", "")));
        let workload = &view.workloads[uid];
        assert_eq!((workload.native_tunnel, workload.protocol == TunnelProtocol::Hbone), (serves, serves), "{what}");
        let waypoint = if serves { "-".to_owned() } else { in_full("shop", "wp") };
        assert_eq!(told(workload.waypoint.as_ref()), waypoint, "{what}");
        assert_eq!(view.waypoint_pods.len(), usize::from(serves), "{what}");
        let own = view.services.values().find(|s| s.name == "wp").unwrap();
        assert_eq!(own.waypoint, None, "{what}");
        // Its identity is not the node's to have.
        let account = workload.service_account.clone();
        let is_node_s = view.placements.contains(&"n1".into(), "shop", &account);
        assert_eq!(is_node_s, !serves, "{what}");
        assert_eq!(problems(&view).len(), usize::from(what == "another account"), "{what}");
    }
    let annotated = all.replace("labels: {", "annotations: {gateway.istio.io/service-account: gate}, labels: {");
    let of_gate = view(&format!("{NODE}{annotated}{}", serving("shop", "wp", "gate")));
    assert!(of_gate.workloads[uid].native_tunnel && of_gate.waypoint_pods.len() == 1);
    // A token that was made for a pod of no node is nobody's.
    assert!(view(&format!("{annotated}{}", serving("shop", "wp", "gate"))).waypoint_pods.is_empty());
    // Without a service it is known by the address of a pod.
    let bare = bare("shop", "wp", "", &spec("undermesh-waypoint", ""));
    let by_address = view(&format!("{bare}{}{}", shop(&label("wp"), ""), serving("shop", "wp", "wp")));
    assert_eq!(bound(&by_address).0, "198.18.0.7");
    // What an agent has captured does not end tunnels.
    let captured = serving("shop", "wp", "wp").replace("redirection: disabled", "redirection: enabled");
    let captured = view(&format!("{all}{captured}"));
    assert!(captured.problems.iter().any(|(key, p)| key.kind == Kind::Pod && p.field.contains("dataplane-mode")));
}

#[test]
fn features_GW_4_a_gateway_that_says_so_takes_tunnels() {
    let gateway = "---\napiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: edge, namespace: shop}\nspec: {gatewayClassName: undermesh, listeners: [{name: http, port: 80, protocol: HTTP}]}\n";
    for (what, label, expected) in [
        ("it says so", "networking.istio.io/tunnel: http", true),
        ("it says nothing", "a: b", false),
        ("it says another thing", "networking.istio.io/tunnel: none", false),
    ] {
        let labels = format!("gateway.networking.k8s.io/gateway-name: edge, {label}");
        let pod = |account: &str| {
            pod_in("shop", "gw-1", "198.18.0.7", &labels, "")
                .replace("redirection: enabled", "redirection: disabled")
                .replace("serviceAccountName: web", &format!("serviceAccountName: {account}"))
        };
        let tunnels = |account: &str| {
            let view = view(&format!("{NODE}{gateway}{}", pod(account)));
            let workload = &view.workloads["Kubernetes//Pod/shop/gw-1"];
            (workload.native_tunnel, workload.protocol == TunnelProtocol::Hbone)
        };
        assert_eq!(tunnels("edge-undermesh"), (expected, expected), "{what}");
        assert_eq!(tunnels("web"), (false, false), "{what}, and has another identity than the Gateway's pods");
    }
}

#[test]
fn only_what_a_waypoint_is_found_by_is_free_of_it() {
    let bare = bare("shop", "web", "", &spec("undermesh-waypoint", ""));
    // A service as any other, which has the Gateway's name: its clients go through the waypoint.
    let view =
        view(&format!("{bare}{}{}{}", namespace("shop", &label("web")), shop("", ""), serving("shop", "web", "web")));
    assert_eq!(bound(&view).0, "198.18.0.7");
}

#[test]
fn a_pod_on_the_network_of_its_node_is_told_that_it_serves_nobody() {
    let pod = serving("shop", "wp", "wp").replace("spec:\n", "spec:\n  hostNetwork: true\n");
    let view = view(&format!("{NODE}{}{pod}", waypoint("shop", "wp", "")));
    assert!(view.waypoint_pods.is_empty());
    let told: Vec<_> = view.problems.iter().filter(|(key, _)| key.kind == Kind::Pod).collect();
    assert!(told.len() == 1 && told[0].1.field == "spec.hostNetwork", "{told:?}");
}

#[test]
fn each_waypoint_has_a_table_of_what_is_bound_to_it() {
    let waypoints = format!("{}{}", waypoint("shop", "wp", ""), waypoint("shop", "idle", ""));
    let routes = "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: web, namespace: shop}\nspec: {hosts: [web], http: [{route: [{destination: {host: web}}]}]}\n";
    let view = view(&format!("{waypoints}{}{routes}", shop(&label("wp"), "")));
    let hosts = |name: &str| {
        let table = &view.tables[&mesh_core::NamespacedName::new("shop", name)];
        table.hosts().iter().map(|host| host.name.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(hosts("wp"), ["web.shop.svc.cluster.local"]);
    assert_eq!((hosts("idle"), view.tables.len()), (Vec::<String>::new(), 2));
    assert_eq!(view.waypoints[&mesh_core::NamespacedName::new("shop", "wp")].account, "wp");
}

#[test]
fn whatever_changes_bindings_are_those_of_a_fresh_join() {
    let kept = |mut new: Objects, old: &Objects| {
        for (name, pod) in &mut new.pods {
            if let Some(old) = old.pods.get(name).filter(|old| *old == pod) {
                *pod = old.clone();
            }
        }
        new
    };
    let of_pod = shop("", &format!(", {}", far("wp", "infra")));
    let team = "{from: Selector, selector: {matchLabels: {team: a}}}";
    let infra = |from: &str, purpose: &str| {
        let marks = format!("labels: {{istio.io/waypoint-for: {purpose}}}");
        bare("infra", "wp", &marks, &spec("undermesh-waypoint", from))
    };
    let class = "---\napiVersion: gateway.networking.k8s.io/v1\nkind: GatewayClass\nmetadata: {name: undermesh-waypoint}\nspec: {controllerName: example.com/x}\n";
    let pod = serving("infra", "wp", "wp");
    let refuse = "undermesh.io/waypoint-bypass: refuse";
    let all = format!("{}{of_pod}", infra("{from: All}", "all"));
    let steps = [
        of_pod.clone(),
        all.clone(),
        format!("{all}{pod}"),
        format!("{all}{}", pod.replace("198.18.0.7", "198.18.0.8")),
        format!("{all}{}{pod}", own_service("infra", "wp")),
        format!("{all}{class}{pod}"),
        format!("{}{of_pod}{pod}", infra("{from: All}", "service")),
        format!("{}{of_pod}{pod}", infra(team, "all")),
        format!("{}{of_pod}{pod}{}", infra(team, "all"), namespace("shop", "team: a")),
        format!("{}{}{pod}", infra("{from: All}", "all"), shop("", "")),
        format!("{}{}{pod}{}", infra("{from: All}", "all"), shop("", ""), namespace("shop", &far("wp", "infra"))),
        format!(
            "{}{}{pod}",
            infra("{from: All}", "all")
                .replace("labels: {", "annotations: {gateway.istio.io/service-account: x}, labels: {"),
            shop("", "")
        ),
        String::new(),
    ];
    let (mut join, mut last) = (Join::default(), Objects::default());
    let mut seen = std::collections::BTreeSet::new();
    let steps = steps.into_iter().chain([
        format!("{all}{}", namespace("shop", refuse)),
        format!("{all}{}{pod}", namespace("shop", &format!("{}, {refuse}", far("wp", "infra")))),
        format!("{}{}", infra("{from: All}", "service"), shop(&format!("{}, {refuse}", far("wp", "infra")), "")),
        format!("{}{}", infra("{from: None}", "service"), shop(&format!("{}, {refuse}", far("wp", "infra")), "")),
    ]);
    let steps: Vec<String> = steps.map(|step| if step.is_empty() { step } else { format!("{NODE}{step}") }).collect();
    for text in steps.iter().chain(steps.iter().rev()).flat_map(|step| [step, step]) {
        let now = kept(read(text), &last);
        let fresh = build(&now, &Settings::default());
        last = now.clone();
        let view = join.build(now, &Settings::default());
        assert_eq!((&view.workloads, &view.services), (&fresh.workloads, &fresh.services), "{text}");
        assert_eq!(view.policies, fresh.policies, "{text}");
        assert_eq!((&view.problems, &view.placements), (&fresh.problems, &fresh.placements), "{text}");
        assert_eq!((&view.waypoint_pods, &view.tables), (&fresh.waypoint_pods, &fresh.tables), "{text}");
        if !view.workloads.is_empty() {
            seen.insert(bound(&view).1);
        }
    }
    assert_eq!(seen.len(), 5, "{seen:?}");
}

#[test]
fn features_CL_10_a_service_entry_is_told_of_the_waypoint_that_its_hosts_are_bound_to() {
    let wp = waypoint("shop", "wp", "");
    let key = Key { kind: Kind::ServiceEntry, namespace: "shop".into(), name: "api".into() };
    let own = label("wp");
    let fixed = "hosts: [api.example.com], resolution: STATIC, endpoints: [{address: 198.18.3.3}]";
    for (what, gateways, of_namespace, labels, spec, expected) in [
        ("bound", wp.clone(), "", &*own, fixed, "accepted"),
        ("by its namespace", wp.clone(), &*own, "", fixed, "accepted"),
        ("nothing is asked for", wp.clone(), "", "", fixed, "-"),
        ("by itself by none", wp.clone(), &*own, "istio.io/use-waypoint: none", fixed, "-"),
        ("there is none", String::new(), "", &*own, fixed, "WaypointIsNotReady"),
        (
            "not started",
            bare("shop", "wp", "", &super::waypoints::spec("undermesh-waypoint", "")),
            "",
            &*own,
            fixed,
            "WaypointIsNotReady",
        ),
        ("for workloads", waypoint("shop", "wp", "workload"), "", &*own, fixed, "UnsupportedTrafficType"),
        ("for workloads, by its namespace", waypoint("shop", "wp", "workload"), &*own, "", fixed, "-"),
        (
            "of nobody",
            gateway("shop", "wp", "", &super::waypoints::spec("theirs", "")),
            "",
            &*own,
            fixed,
            "WaypointIsNotReady",
        ),
        (
            "of nobody's address",
            wp.clone(),
            "",
            &*own,
            "hosts: [api.example.com], resolution: NONE",
            "UnsupportedTrafficType",
        ),
        ("of patterns alone", String::new(), "", &*own, "hosts: ['*.example.com'], resolution: NONE", "-"),
    ] {
        let entry = format!(
            "---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: api, namespace: shop, labels: {{{labels}}}}}\nspec: {{ports: [{{number: 80, name: http, protocol: HTTP}}], {spec}}}\n"
        );
        let view = view(&format!("{gateways}{}{entry}", namespace("shop", of_namespace)));
        let said = match view.bindings.get(&key) {
            Some(Binding::Accepted(name, _)) => {
                assert_eq!(name.to_string(), "shop/wp");
                "accepted"
            }
            Some(Binding::Refused(reason, _)) => reason,
            None | Some(Binding::Untold) => "-",
        };
        assert_eq!(said, expected, "{what}");
    }
}
