//! What is bound while Gateways and their classes have not been heard of.

use super::waypoints::*;
use super::*;
use crate::resource::mesh_config::IstioNames;

#[test]
fn what_was_bound_stays_bound_while_gateways_cannot_be_listed() {
    let all = waypoint("shop", "wp", "all");
    let of_all =
        format!("{NODE}{}{all}{}{}", namespace("shop", &label("wp")), shop("", ""), serving("shop", "wp", "wp"));
    let without = format!("{NODE}{}{}{}", namespace("shop", &label("wp")), shop("", ""), serving("shop", "wp", "wp"));
    let heard = view(&of_all);
    let lost = |text: &str, kind: Kind| {
        let mut objects = read(text);
        objects.routes = crate::resource::Routes::default();
        objects.unheard.insert(kind);
        build(&objects, &Settings::default())
    };
    let unheard = lost(&of_all, Kind::Gateway);
    assert_eq!(bound(&unheard), bound(&heard));
    // A waypoint that was known by an address of a pod is not found meanwhile.
    let nowhere = lost(&without, Kind::Gateway);
    assert_eq!(bound(&nowhere), (in_full("shop", "wp"), in_full("shop", "wp")));
    assert!(!nowhere.services.keys().any(|key| key.to_string() == in_full("shop", "wp")));
    // And its identity is not its node's meanwhile, unless an agent has captured the pod: then it serves nobody.
    let is_node_s = |view: &View| view.placements.contains(&"n1".into(), "shop", &"wp".into());
    assert!(!is_node_s(&heard) && !is_node_s(&unheard));
    let captured = of_all.replace("redirection: disabled", "redirection: enabled");
    assert!(is_node_s(&lost(&captured, Kind::Gateway)));
}

#[test]
fn a_kind_that_was_never_heard_of_binds_by_name_and_is_not_told_of() {
    let mut objects = read(&format!("{}{}", shop(&label("wp"), ""), own_service("shop", "wp")));
    objects.unheard.insert(Kind::Gateway);
    let view = build(&objects, &Settings::default());
    assert_eq!(bound(&view).0, in_full("shop", "wp"));
    assert_eq!(problems(&view), []);
}

#[test]
fn classes_that_were_never_heard_of_bind_everything_that_they_may() {
    let all = || format!("{}{}", namespace("shop", &label("wp")), shop("", ""));
    let marked = |purpose: &str| format!("labels: {{istio.io/waypoint-for: {purpose}}}");
    for (class, marks, expected, served) in [
        // The class may say that it is for workloads, too.
        ("undermesh-waypoint", String::new(), (true, true), true),
        ("undermesh-waypoint", marked("service"), (true, false), true),
        ("undermesh-waypoint", marked("none"), (false, false), true),
        // Somebody may claim these: bound by name, and not ours to serve.
        ("istio-waypoint", String::new(), (true, true), false),
        ("theirs", marked("service"), (true, true), false),
    ] {
        let mut objects = read(&format!("{}{}", all(), gateway("shop", "wp", &marks, &spec(class, ""))));
        objects.unheard.insert(Kind::GatewayClass);
        let view = build(&objects, &Settings::default());
        let is = |is: bool| if is { in_full("shop", "wp") } else { "-".to_owned() };
        assert_eq!(bound(&view), (is(expected.0), is(expected.1)), "{class} {marks}");
        assert_eq!(view.tables.len(), usize::from(served), "{class} {marks}");
        assert!(problems(&view).is_empty(), "{class} {marks}");
    }
}

#[test]
fn a_route_and_a_binding_are_told_the_same_of_a_class() {
    let route = "---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: r, namespace: shop}\nspec: {parentRefs: [{name: wp}], rules: [{}]}\n";
    let istiod = service("istiod", "{selector: {app: istiod}, ports: [{port: 1}]}").replace("shop", "istio-system");
    for (class, around, names, ours) in [
        ("undermesh-waypoint", "", IstioNames::Auto, true),
        ("istio-waypoint", "", IstioNames::Auto, true),
        ("istio-waypoint", &*istiod, IstioNames::Auto, false),
        ("istio-waypoint", &*istiod, IstioNames::Own, true),
        ("istio-waypoint", "", IstioNames::Off, false),
        ("istio", "", IstioNames::Auto, true),
        ("theirs", "", IstioNames::Auto, false),
    ] {
        let objects = read(&format!("{around}{}{route}", gateway("shop", "wp", "", &spec(class, ""))));
        let view = build(&objects, &Settings { istio_names: names, ..Settings::default() });
        assert_eq!((view.tables.len(), view.resolved.routes.len()), (usize::from(ours), usize::from(ours)), "{class}");
    }
}
