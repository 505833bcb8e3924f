//! What goes around a waypoint: who may reach a pod whose service has one, as it is said, and as it is where a policy is bound to the waypoint.

use super::waypoints::{far, label, namespace, problems, shop, waypoint};
use super::*;
use crate::verdict::Binding;

/// A policy, or something else of security, that is bound to `target`.
pub(super) fn bound_to(kind: &str, of: &str, target: &str, more: &str) -> String {
    let spec = match kind {
        "AuthorizationPolicy" => "rules: [{to: [{operation: {methods: [GET]}}]}]",
        _ => "jwtRules: [{issuer: a, jwks: '{\"keys\":[]}'}]",
    };
    format!(
        "---\napiVersion: security.istio.io/v1\nkind: {kind}\nmetadata: {{name: p, namespace: {of}}}\nspec: {{targetRefs: [{target}], {spec}{more}}}\n"
    )
}

/// Whose tokens are believed, and nobody can read it.
fn unread_tokens(target: &str) -> String {
    bound_to("RequestAuthentication", "shop", target, "").replace("issuer", "issuers")
}

pub(super) const GATEWAY: &str = "{group: gateway.networking.k8s.io, kind: Gateway, name: wp}";
pub(super) const CLASS: &str = "{group: gateway.networking.k8s.io, kind: GatewayClass, name: undermesh-waypoint}";
pub(super) const SERVICE: &str = "{group: '', kind: Service, name: web}";
pub(super) const ROOT: &str = "undermesh-system";

#[test]
fn design_10_9_what_goes_around_a_waypoint_is_refused_where_a_policy_is_bound_to_it() {
    const ALL: &str = "waypoint other client plain";
    let policy = |target: &str, more: &str| bound_to("AuthorizationPolicy", "shop", target, more);
    let of_root = |target: &str| bound_to("AuthorizationPolicy", ROOT, target, "");
    let wp = label("wp");
    let here = || waypoint("shop", "wp", "");
    let unreadable = |of: &str, target: &str| bound_to("AuthorizationPolicy", of, target, ", action: X");
    let rows: [(&str, String, String, String, &str, &str); 20] = [
        ("to the Gateway", here(), policy(GATEWAY, ""), wp.clone(), "waypoint", ALL),
        ("to the service", here(), policy(SERVICE, ""), wp.clone(), "waypoint", ALL),
        ("to another service", here(), policy(&SERVICE.replace("web", "x"), ""), wp.clone(), ALL, ALL),
        ("to another Gateway", here(), policy(&GATEWAY.replace("wp", "x"), ""), wp.clone(), ALL, ALL),
        ("to the class", here(), of_root(CLASS), wp.clone(), "waypoint", ALL),
        ("to another class", here(), of_root(&CLASS.replace("undermesh", "istio")), wp.clone(), ALL, ALL),
        ("to the class, elsewhere", here(), policy(CLASS, ""), wp.clone(), ALL, ALL),
        ("that only reports", here(), policy(SERVICE, ", action: AUDIT"), wp.clone(), ALL, ALL),
        ("of tokens", here(), bound_to("RequestAuthentication", "shop", SERVICE, ""), wp.clone(), "waypoint", ALL),
        ("to what has no waypoint", here(), policy(SERVICE, ""), String::new(), ALL, ALL),
        ("that nobody can read", here(), unreadable("shop", GATEWAY), wp.clone(), "waypoint", ALL),
        ("to nobody knows what", here(), unreadable("shop", "{kind: Gateway}"), wp.clone(), "waypoint", ALL),
        ("tokens that nobody can read", here(), unread_tokens(GATEWAY), wp.clone(), "waypoint", ALL),
        ("of nobody knows what", here(), unread_tokens("{kind: Pod}"), wp.clone(), "waypoint", ALL),
        ("the same elsewhere", here(), unreadable("infra", "{kind: Gateway}"), wp.clone(), ALL, ALL),
        ("the same for all", here(), unreadable(ROOT, "{kind: Gateway}"), wp.clone(), "waypoint", ALL),
        ("whatever the namespace allows", here(), policy(SERVICE, ""), format!("{wp}, {ALLOW}"), ALL, ALL),
        (
            "for workloads, too",
            waypoint("shop", "wp", "all"),
            policy(GATEWAY, ""),
            String::new(),
            "waypoint",
            "waypoint",
        ),
        ("which is not there", String::new(), policy(GATEWAY, ""), wp.clone(), "", ALL),
        ("whose class nobody knows", String::new(), of_root(CLASS), wp.clone(), "", ALL),
    ];
    for (what, gateway, policy, of_service, at_service, elsewhere) in rows {
        // Bound as a workload where the service is not bound.
        let of_pod = if of_service.is_empty() { format!(", {wp}") } else { String::new() };
        let view = view(&format!("{NODE}{gateway}{policy}{}", shop(&of_service, &of_pod)));
        assert_eq!((&*let_in(&view, 80), &*let_in(&view, 9090)), (at_service, elsewhere), "{what}");
    }
}

const ALLOW: &str = "undermesh.io/waypoint-bypass: allow";

#[test]
fn a_service_with_another_waypoint_is_not_cut_off_by_a_policy_of_its_neighbour() {
    let policy = bound_to("AuthorizationPolicy", "shop", SERVICE, "");
    let two = "{selector: {app: web}, clusterIP: 198.19.0.2, ports: [{port: 8080, targetPort: 80}]}";
    let two = |labels: &str| service("two", two).replace("name: two,", &format!("name: two, labels: {{{labels}}},"));
    let waypoints = format!("{}{}", waypoint("shop", "wp", ""), waypoint("shop", "other", ""));
    for (labels, expected) in [(label("other"), "waypoint other"), (String::new(), "waypoint")] {
        let view = view(&format!("{NODE}{waypoints}{policy}{}{}", shop(&label("wp"), ""), two(&labels)));
        assert_eq!([80, 81].map(|port| let_in(&view, port)), [expected, "waypoint other client plain"], "{labels}");
    }
}

#[test]
fn design_10_9_a_canary_reaches_the_pods_that_nothing_may_go_around() {
    const ALL: &str = "waypoint other client plain";
    let waypoints = format!("{}{}", waypoint("shop", "wp", ""), waypoint("shop", "other", ""));
    let policy = |of: &str| bound_to("AuthorizationPolicy", "shop", &GATEWAY.replace("wp", of), "");
    let canary = format!("{}, istio.io/use-waypoint-canary: other", label("wp"));
    let refuse = "undermesh.io/waypoint-bypass: refuse";
    for (what, labels, policy, expected) in [
        ("asked for", format!("{canary}, {refuse}"), String::new(), "waypoint other"),
        ("by a policy at the waypoint", canary.clone(), policy("wp"), "waypoint other"),
        ("by a policy at the canary", canary.clone(), policy("other"), "waypoint other"),
        ("by neither", canary, policy("third"), ALL),
        ("no canary", format!("{}, {refuse}", label("wp")), String::new(), "waypoint"),
    ] {
        let view = view(&format!("{NODE}{waypoints}{policy}{}", shop(&labels, "")));
        assert_eq!(let_in(&view, 80), expected, "{what}");
    }
}

/// A ServiceEntry of port 80 whose endpoints are the shop's pod.
fn entry(labels: &str, endpoints: &str) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: api, namespace: shop, labels: {{{labels}}}}}\nspec: {{hosts: [api.example.com], location: MESH_INTERNAL, resolution: STATIC, ports: [{{number: 8080, name: http, protocol: HTTP, targetPort: 80}}], {endpoints}}}\n"
    )
}

const SELECTED: &str = "workloadSelector: {labels: {app: web}}";
const ENTRY: &str = "{group: networking.istio.io, kind: ServiceEntry, name: api}";

#[test]
fn design_10_9_pods_of_a_service_entry_are_held_as_those_of_a_service() {
    const ALL: &str = "waypoint other client plain";
    let policy = |target: &str| bound_to("AuthorizationPolicy", "shop", target, "");
    let wp = label("wp");
    let refuse = format!("{wp}, undermesh.io/waypoint-bypass: refuse");
    let named = "endpoints: [{address: 198.18.0.1}]";
    let listed = "endpoints: [{address: 198.18.0.1, ports: {http: 81}}]";
    let here = || waypoint("shop", "wp", "");
    for (what, gateway, policy, entry, expected) in [
        ("not asked for", here(), String::new(), entry(&wp, SELECTED), [ALL, ALL]),
        ("by the entry", here(), String::new(), entry(&refuse, SELECTED), ["waypoint", ALL]),
        ("by a policy bound to it", here(), policy(ENTRY), entry(&wp, SELECTED), ["waypoint", ALL]),
        ("to another", here(), policy(&ENTRY.replace("api", "x")), entry(&wp, SELECTED), [ALL, ALL]),
        ("to the Gateway", here(), policy(GATEWAY), entry(&wp, SELECTED), ["waypoint", ALL]),
        ("without a waypoint", here(), policy(ENTRY), entry("", SELECTED), [ALL, ALL]),
        ("which is not there", String::new(), policy(ENTRY), entry(&wp, SELECTED), ["", ALL]),
        ("by its address", here(), policy(ENTRY), entry(&wp, named), ["waypoint", ALL]),
        ("at a port of its own", here(), policy(ENTRY), entry(&wp, listed), [ALL, "waypoint"]),
        ("let in", here(), policy(ENTRY), entry(&format!("{wp}, {ALLOW}"), SELECTED), [ALL, ALL]),
    ] {
        let view = view(&format!("{NODE}{gateway}{policy}{entry}{}", shop("", "")));
        assert_eq!([80, 81].map(|port| let_in(&view, port)), expected, "{what}");
    }
    // With a service of the same waypoint, and with one of another: at their port both must let somebody pass.
    for (other, expected) in [("wp", "waypoint"), ("other", "")] {
        let service = shop(&format!("{}, undermesh.io/waypoint-bypass: refuse", label(other)), "");
        let waypoints = format!("{}{}", here(), waypoint("shop", "other", ""));
        let view = view(&format!("{NODE}{waypoints}{}{}{service}", policy(ENTRY), entry(&wp, SELECTED)));
        assert_eq!(let_in(&view, 80), expected, "{other}");
    }
}

#[test]
fn design_10_9_who_has_no_identity_is_led_through_a_waypoint_for_workloads() {
    let refuse = "undermesh.io/waypoint-bypass: refuse";
    let wp = label("wp");
    let all = || waypoint("shop", "wp", "all");
    for (what, gateway, of_namespace, expected) in [
        ("for workloads", all(), wp.clone(), true),
        ("for services", waypoint("shop", "wp", ""), wp.clone(), false),
        ("bound to none", all(), String::new(), false),
        ("which is not there", String::new(), wp.clone(), false),
        ("let in", all(), format!("{wp}, {ALLOW}"), false),
        ("refused", all(), format!("{wp}, {refuse}"), false),
    ] {
        let text = format!("{NODE}{gateway}{}{}", namespace("shop", &of_namespace), shop("", ""));
        let leads = |view: &View| {
            let name = mesh_core::policy::Policy::through("shop".into()).name;
            let listed = view.workloads.values().any(|workload| workload.authorization_policies.contains(&name));
            assert_eq!(view.policies.contains_key(&name), listed, "{what}");
            listed && view.workloads.values().all(|workload| workload.leads_strangers_through())
        };
        assert_eq!(leads(&view(&text)), expected, "{what}");
        // Before an agent has it, and after, others know of no tunnel to it.
        assert!(!leads(&view(&text.replace("redirection: enabled", "redirection: disabled"))), "{what}");
    }
}

#[test]
fn design_10_9_who_asks_for_a_headless_service_is_led_or_it_says_that_nobody_gets_there() {
    let policy = || bound_to("AuthorizationPolicy", "shop", GATEWAY, "");
    let (wp, refuse) = (label("wp"), "undermesh.io/waypoint-bypass: refuse");
    let cut = "the service has no address, waypoint shop/wp takes no connections to addresses of pods, and its pods let nothing go around it: nobody reaches them at the ports of the service";
    let around = "the service has no address, waypoint shop/wp takes no connections to addresses of pods, and connections go around it";
    let all = || waypoint("shop", "wp", "all");
    let services = || waypoint("shop", "wp", "");
    let explicit = format!("{wp}, {refuse}");
    // Who may connect, whether clients and who has no identity are led through the waypoint, and what the service is told.
    for (what, gateway, policy, of_service, of_namespace, may, led, told) in [
        ("for pods, held", all(), policy(), &*wp, "", "waypoint", [true, true], ""),
        ("for pods, by its namespace", all(), policy(), "", &*wp, "waypoint", [true, true], ""),
        ("for pods, refused", all(), String::new(), &explicit, "", "waypoint", [true, false], ""),
        ("for pods, not held", all(), String::new(), &wp, "", "waypoint other client plain", [false, false], ""),
        ("for services, held", services(), policy(), &wp, "", "waypoint", [false, false], cut),
        ("for services, by its namespace", services(), policy(), "", &wp, "waypoint", [false, false], cut),
        (
            "for services, not held",
            services(),
            String::new(),
            &wp,
            "",
            "waypoint other client plain",
            [false, false],
            around,
        ),
        (
            "that its namespace asks for",
            services(),
            String::new(),
            "",
            &wp,
            "waypoint other client plain",
            [false, false],
            "",
        ),
        (
            "let in",
            services(),
            policy(),
            &format!("{wp}, {ALLOW}"),
            "",
            "waypoint other client plain",
            [false, false],
            around,
        ),
    ] {
        let shop = shop(of_service, "").replace("clusterIP: 198.19.0.1", "clusterIP: None");
        let view = view(&format!("{NODE}{gateway}{policy}{}{shop}", namespace("shop", of_namespace)));
        assert_eq!(let_in(&view, 80), may, "{what}");
        let workload = view.workloads.values().next().unwrap();
        assert_eq!([workload.waypoint.is_some(), workload.leads_strangers_through()], led, "{what}");
        let binding = &binding(&view);
        let said = match binding {
            Some(Binding::Refused("UnsupportedTrafficType", why)) => why.split(" (").next().unwrap().to_owned(),
            _ => String::new(),
        };
        assert_eq!(said, told, "{what}: {binding:?}");
        let problems = problems(&view);
        assert_eq!(problems.iter().any(|(kind, ..)| *kind == Kind::Service), !told.is_empty(), "{what}: {problems:?}");
    }
}

#[test]
fn features_GW_7_F7_gateways_go_through_a_waypoint_that_nothing_may_go_around() {
    let edge = "---\napiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: edge, namespace: shop}\nspec: {gatewayClassName: undermesh, listeners: [{name: a, port: 80, protocol: HTTP}]}\n---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: r, namespace: shop}\nspec: {parentRefs: [{name: edge}], rules: [{backendRefs: [{name: web, port: 80}]}]}\n";
    let wp = label("wp");
    let mut join = crate::index::Join::default();
    for (what, policy, of_service, expected) in [
        ("no policy", String::new(), wp.clone(), false),
        ("a policy", bound_to("AuthorizationPolicy", "shop", GATEWAY, ""), wp.clone(), true),
        ("no policy any more", String::new(), wp.clone(), false),
        ("asked for", String::new(), format!("{wp}, undermesh.io/waypoint-bypass: refuse"), true),
        (
            "whatever is said of gateways",
            bound_to("AuthorizationPolicy", "shop", GATEWAY, ""),
            format!("{wp}, istio.io/ingress-use-waypoint: 'false'"),
            true,
        ),
    ] {
        let objects = read(&format!("{NODE}{edge}{}{policy}{}", waypoint("shop", "wp", ""), shop(&of_service, "")));
        let view = join.build(objects, &Settings::default());
        let listeners = &view.listeners[&mesh_core::NamespacedName::new("shop", "edge")];
        assert_eq!(!listeners.waypoint_services().is_empty(), expected, "{what}");
    }
}

#[test]
fn what_a_policy_holds_is_that_of_a_fresh_join_whatever_changes() {
    let own = format!("{}{}", waypoint("infra", "wp", ""), shop(&far("wp", "infra"), ""));
    let other = namespace("infra", "");
    let class = bound_to("AuthorizationPolicy", ROOT, CLASS, "");
    let steps = [
        own.clone(),
        // Of another namespace than what it is about.
        format!("{own}{}", bound_to("AuthorizationPolicy", "infra", GATEWAY, "")),
        format!("{own}{class}"),
        format!("{}{class}", own.replace("undermesh-waypoint", "istio-waypoint")),
        format!("{}{class}", shop(&far("wp", "infra"), "")),
        format!("{own}{}", bound_to("RequestAuthentication", "shop", SERVICE, "")),
        format!("{own}{}", bound_to("AuthorizationPolicy", "shop", SERVICE, "")),
        format!("{own}{}", bound_to("AuthorizationPolicy", "infra", "{kind: Gateway}", "")),
        format!("{own}{other}"),
        format!("{own}{}{}", entry(&far("wp", "infra"), SELECTED), bound_to("AuthorizationPolicy", "shop", ENTRY, "")),
    ];
    let mut join = crate::index::Join::default();
    let mut last = crate::resource::Objects::default();
    let mut seen = std::collections::BTreeSet::new();
    for text in steps.iter().chain(steps.iter().rev()).chain([&steps[0], &steps[6], &steps[1], &steps[0]]) {
        let mut now = read(&format!("{NODE}{text}"));
        for (name, pod) in &mut now.pods {
            if let Some(old) = last.pods.get(name).filter(|old| *old == pod) {
                *pod = old.clone();
            }
        }
        last = now.clone();
        let fresh = build(&now, &Settings::default());
        let view = join.build(now, &Settings::default());
        assert_eq!((&view.workloads, &view.policies), (&fresh.workloads, &fresh.policies), "{text}");
        seen.insert(let_in(&view, 80));
    }
    assert_eq!(seen.len(), 2, "{seen:?}");
}

/// Who may connect to the shop's pod at a port: the waypoint, another one, a client with a certificate, one without.
pub(super) fn let_in(view: &View, port: u16) -> String {
    let all = ["wp", "other", "web"].map(|account| format!("spiffe://cluster.local/ns/shop/sa/{account}"));
    let may = |from: Option<&str>| super::policies::allowed(view, from, port);
    let all = all.iter().map(|from| may(Some(from))).chain([may(None)]);
    all.zip(["waypoint", "other", "client", "plain"])
        .filter(|(may, _)| *may)
        .map(|(_, who)| who)
        .collect::<Vec<_>>()
        .join(" ")
}

#[test]
fn design_10_9_what_goes_around_a_waypoint_is_refused_where_that_is_asked_for() {
    const ALL: &str = "waypoint other client plain";
    let refuse = "undermesh.io/waypoint-bypass: refuse";
    let allow = "undermesh.io/waypoint-bypass: allow";
    let both = |one: &str, two: &str| format!("{one}, {two}");
    let wp = label("wp");
    let rows: [(&str, String, String, String, &str, &str); 12] = [
        ("not asked for", waypoint("shop", "wp", ""), String::new(), wp.clone(), ALL, ALL),
        ("by the service", waypoint("shop", "wp", ""), String::new(), both(&wp, refuse), "waypoint", ALL),
        ("by the namespace", waypoint("shop", "wp", ""), both(&wp, refuse), String::new(), "waypoint", ALL),
        ("not by the service", waypoint("shop", "wp", ""), both(&wp, refuse), allow.into(), ALL, ALL),
        ("bound to none", waypoint("shop", "wp", ""), both(&wp, refuse), label("none"), ALL, ALL),
        (
            "a word that says nothing",
            waypoint("shop", "wp", ""),
            String::new(),
            both(&wp, "undermesh.io/waypoint-bypass: x"),
            "waypoint",
            ALL,
        ),
        ("for workloads, too", waypoint("shop", "wp", "all"), both(&wp, refuse), String::new(), "waypoint", "waypoint"),
        (
            "for workloads alone",
            waypoint("shop", "wp", "workload"),
            both(&wp, refuse),
            String::new(),
            "waypoint",
            "waypoint",
        ),
        ("for nothing", waypoint("shop", "wp", "none"), both(&wp, refuse), String::new(), ALL, ALL),
        ("which is not there", String::new(), String::new(), both(&wp, refuse), "", ALL),
        ("which is not there, for all", String::new(), both(&wp, refuse), String::new(), "", ""),
        (
            "of another account",
            waypoint("shop", "wp", "").replacen(
                "metadata: {",
                "metadata: {annotations: {gateway.istio.io/service-account: other}, ",
                1,
            ),
            String::new(),
            both(&wp, refuse),
            "other",
            ALL,
        ),
    ];
    for (what, gateway, of_namespace, of_service, at_service, elsewhere) in rows {
        let shop = shop(&of_service, "");
        let objects = format!("{NODE}{gateway}{}{shop}", namespace("shop", &of_namespace));
        let view = view(&objects);
        assert_eq!((&*let_in(&view, 80), &*let_in(&view, 9090)), (at_service, elsewhere), "{what}");
    }
    // By annotation as well; and who asks for it without a waypoint is told.
    let annotated = shop("", "").replacen("labels: {", &format!("annotations: {{{refuse}}}, labels: {{{wp}"), 1);
    assert_eq!(let_in(&view(&format!("{NODE}{}{annotated}", waypoint("shop", "wp", ""))), 80), "waypoint");
    let told = |text: &str| problems(&view(text)).iter().filter(|(kind, ..)| *kind == Kind::Service).count();
    assert_eq!((told(&shop(refuse, "")), told(&shop("", ""))), (1, 0));
}

#[test]
fn a_port_of_two_services_is_for_the_waypoints_of_both() {
    let refuse = "undermesh.io/waypoint-bypass: refuse";
    let two = service(
        "two",
        "{selector: {app: web}, clusterIP: 198.19.0.2, ports: [{port: 8080, targetPort: 80}, {port: 81}]}",
    );
    let two = two.replace("name: two,", &format!("name: two, labels: {{{}, {refuse}}},", label("other")));
    let one = shop(&format!("{}, {refuse}", label("wp")), "");
    let view = view(&format!("{NODE}{}{}{one}{two}", waypoint("shop", "wp", ""), waypoint("shop", "other", "")));
    assert_eq!(
        [80, 81, 82].map(|port| let_in(&view, port)),
        ["waypoint other", "other", "waypoint other client plain"]
    );
}

#[test]
fn pods_that_an_endpoint_slice_names_are_guarded_as_those_that_a_service_selects() {
    let refuse = format!("{}, undermesh.io/waypoint-bypass: refuse", label("wp"));
    let listed = shop(&refuse, "").replace("selector: {app: web}, ", "");
    let slice = "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: s, namespace: shop, labels: {kubernetes.io/service-name: web}}\naddressType: IPv4\nports: [{port: 80}]\nendpoints: [{addresses: [198.18.0.1]}]\n";
    let view = view(&format!("{NODE}{}{listed}{slice}", waypoint("shop", "wp", "")));
    assert_eq!([80, 81].map(|port| let_in(&view, port)), ["waypoint", "waypoint other client plain"]);
}

#[test]
fn design_10_9_endpoints_of_a_headless_service_without_a_selector_are_led_as_pods_that_it_selects() {
    let policy = || bound_to("AuthorizationPolicy", "shop", GATEWAY, "");
    let slice = "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: s, namespace: shop, labels: {kubernetes.io/service-name: web}}\naddressType: IPv4\nports: [{port: 80}]\nendpoints: [{addresses: [198.18.0.1]}, {addresses: [198.18.9.9]}]\n";
    let wp = label("wp");
    let refuse = format!("{wp}, undermesh.io/waypoint-bypass: refuse");
    let (all, services) = (|| waypoint("shop", "wp", "all"), || waypoint("shop", "wp", ""));
    let none = format!(", {}", label("none"));
    // Whether clients of the pod and who has no identity are led through the waypoint, and clients of what is no pod.
    for (what, gateway, policy, of_service, of_pod, led) in [
        ("held", all(), policy(), &wp, "", [true, true, true]),
        ("refused", all(), String::new(), &refuse, "", [true, false, true]),
        ("a pod that wants none", all(), policy(), &wp, &*none, [false, false, true]),
        ("not held", all(), String::new(), &wp, "", [false, false, false]),
        ("for services", services(), policy(), &wp, "", [false, false, false]),
    ] {
        let shop = shop(of_service, of_pod).replace("selector: {app: web}, clusterIP: 198.19.0.1", "clusterIP: None");
        let view = view(&format!("{NODE}{gateway}{policy}{shop}{slice}"));
        let at = |address: &str| {
            let address: IpAddr = address.parse().unwrap();
            view.workloads.values().find(|workload| workload.addresses.contains(&address)).unwrap()
        };
        let (pod, other) = (at("198.18.0.1"), at("198.18.9.9"));
        let found = [pod.waypoint.is_some(), pod.leads_strangers_through(), other.waypoint.is_some()];
        assert_eq!(found, led, "{what}");
        let through = mesh_core::policy::Policy::through("shop".into()).name;
        assert_eq!(view.policies.contains_key(&through), led[1], "{what}");
        assert!(!other.leads_strangers_through() && other.authorization_policies.is_empty(), "{what}");
    }
}
