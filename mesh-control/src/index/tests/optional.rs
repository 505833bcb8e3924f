//! Services whose clients may go without a waypoint that does not answer: where somebody says so, nothing is bound that refuses anybody, and nobody refuses at the pods.

use super::bypass::{CLASS, GATEWAY, ROOT, SERVICE, bound_to, let_in};
use super::waypoints::{bare, label, namespace, problems, shop, spec, waypoint};
use super::*;
use crate::verdict::{Attached, Binding, Optional};

const OPTIONAL: &str = "undermesh.io/waypoint-optional: 'true'";
const REFUSE: &str = "undermesh.io/waypoint-bypass: refuse";
const ALLOW: &str = "undermesh.io/waypoint-bypass: allow";

fn limit(of: &str, target: &str) -> String {
    format!(
        "---\napiVersion: undermesh.io/v1alpha1\nkind: RateLimit\nmetadata: {{name: l, namespace: {of}}}\nspec: {{targetRefs: [{target}], local: [{{requests: 1, per: 1s}}]}}\n"
    )
}

/// Of the service `shop/web`: whether its clients are told so, and what it is told.
fn told(view: &View) -> (bool, String) {
    let key = mesh_core::NamespacedName::new("shop", "web.shop.svc.cluster.local");
    let is_told = view.services[&key].waypoint_optional;
    let said = match binding(view) {
        Some(Binding::Accepted(_, Attached { optional: Optional::Unsaid, .. })) => "bound".to_owned(),
        Some(Binding::Accepted(_, Attached { optional: Optional::InForce, .. })) => "optional".to_owned(),
        Some(Binding::Accepted(_, Attached { optional: Optional::Closed(why), .. })) => {
            format!("not optional: {}", &why[..20])
        }
        Some(Binding::Refused(reason, why)) if why.contains("optional") => format!("{reason}, optional"),
        Some(Binding::Refused(reason, _)) => (*reason).to_owned(),
        Some(Binding::Untold) => "untold".to_owned(),
        None => "nothing".to_owned(),
    };
    (is_told, said)
}

#[test]
fn hardening_3_2_a_waypoint_is_optional_where_somebody_says_so_and_nothing_is_bound_that_refuses() {
    const HELD: &str = "not optional: an AuthorizationPoli";
    const LIMITED: &str = "not optional: a RateLimit is bound";
    const REFUSED: &str = "not optional: `undermesh.io/waypoi";
    let wp = label("wp");
    let both = format!("{wp}, {OPTIONAL}");
    let no = "undermesh.io/waypoint-optional: 'false'";
    let here = || waypoint("shop", "wp", "");
    let policy = |target: &str, more: &str| bound_to("AuthorizationPolicy", "shop", target, more);
    let tokens = |target: &str| bound_to("RequestAuthentication", "shop", target, "");
    let elsewhere = SERVICE.replace("web", "x");
    let none = String::new;
    // What there is besides, the service's labels, its namespace's.
    let rows: Vec<(&str, String, String, String, bool, &str)> = vec![
        ("nobody says so", here(), wp.clone(), none(), false, "bound"),
        ("the service says so", here(), both.clone(), none(), true, "optional"),
        ("its namespace does", here(), wp.clone(), OPTIONAL.into(), true, "optional"),
        ("it does not", here(), format!("{wp}, {no}"), OPTIONAL.into(), false, "bound"),
        ("nobody can read it", here(), both.replace("'true'", "maybe"), none(), false, "bound"),
        ("the namespace's waypoint", here(), none(), both.clone(), true, "optional"),
        ("a policy for the service", here() + &policy(SERVICE, ""), both.clone(), none(), false, HELD),
        ("for the waypoint", here() + &policy(GATEWAY, ""), both.clone(), none(), false, HELD),
        (
            "for its class",
            here() + &bound_to("AuthorizationPolicy", ROOT, CLASS, ""),
            both.clone(),
            none(),
            false,
            HELD,
        ),
        (
            "asked elsewhere",
            here() + &policy(SERVICE, ", action: CUSTOM, provider: {name: x}"),
            both.clone(),
            none(),
            false,
            HELD,
        ),
        ("that nobody can read", here() + &policy(GATEWAY, ", action: X"), both.clone(), none(), false, HELD),
        ("of tokens", here() + &tokens(SERVICE), both.clone(), none(), false, HELD),
        ("which only reports", here() + &policy(SERVICE, ", action: AUDIT"), both.clone(), none(), true, "optional"),
        ("for another service", here() + &policy(&elsewhere, ""), both.clone(), none(), true, "optional"),
        ("whatever goes around it", here() + &policy(SERVICE, ""), format!("{both}, {ALLOW}"), none(), false, HELD),
        ("requests are counted", here() + &limit("shop", SERVICE), both.clone(), none(), false, LIMITED),
        ("at the waypoint", here() + &limit("shop", GATEWAY), both.clone(), none(), false, LIMITED),
        ("at all of its class", here() + &limit(ROOT, CLASS), both.clone(), none(), false, LIMITED),
        ("elsewhere", here() + &limit("shop", &elsewhere), both.clone(), none(), true, "optional"),
        ("the pods refuse", here(), format!("{both}, {REFUSE}"), none(), false, REFUSED),
        ("as the namespace says", here(), both.clone(), REFUSE.into(), false, REFUSED),
        ("but not these", here(), format!("{both}, {ALLOW}"), REFUSE.into(), true, "optional"),
        (
            "but not these, of which others are refused",
            waypoint("shop", "wp", "all"),
            format!("{both}, {ALLOW}"),
            REFUSE.into(),
            false,
            REFUSED,
        ),
        ("there is no Gateway", none(), both.clone(), none(), false, "WaypointIsNotReady"),
        (
            "it has no pod and no Service",
            bare("shop", "wp", "", &spec("undermesh-waypoint", "")),
            both.clone(),
            none(),
            true,
            "WaypointIsNotReady, optional",
        ),
        (
            "it is not for services",
            waypoint("shop", "wp", "workload"),
            both.clone(),
            none(),
            false,
            "UnsupportedTrafficType",
        ),
        ("there is none", here(), OPTIONAL.into(), none(), false, "nothing"),
    ];
    for (what, more, of_service, of_namespace, is_told, said) in rows {
        let shop = shop(&of_service, "");
        let view = view(&format!("{NODE}{more}{}{shop}", namespace("shop", &of_namespace)));
        assert_eq!(told(&view), (is_told, said.to_owned()), "{what}");
        // Who goes directly is let in.
        assert!(!is_told || let_in(&view, 80).contains("client"), "{what}: {}", let_in(&view, 80));
        // Whoever says it himself, and does not get it, is told.
        let is_problem = |(kind, _, problem): &(Kind, bool, crate::diagnosis::Problem)| {
            *kind == Kind::Service && problem.field.contains("waypoint-optional")
        };
        let wants = of_service.contains(OPTIONAL);
        assert_eq!(problems(&view).iter().any(is_problem), wants && !is_told, "{what}: {:?}", problems(&view));
    }
}

#[test]
fn hardening_3_2_while_it_is_not_known_what_is_bound_no_waypoint_is_optional() {
    let text = format!(
        "{NODE}{}{}{}",
        waypoint("shop", "wp", ""),
        namespace("shop", ""),
        shop(&format!("{}, {OPTIONAL}", label("wp")), "")
    );
    for unheard in [Kind::RequestAuthentication, Kind::RateLimit] {
        let mut objects = read(&text);
        assert!(told(&build(&objects, &Settings::default())).0);
        objects.unheard.insert(unheard);
        assert!(!told(&build(&objects, &Settings::default())).0, "{unheard:?}");
    }
    // A service without an address is asked for by those of its pods, which no waypoint for services hears of.
    let headless = text.replace("clusterIP: 198.19.0.1", "clusterIP: None");
    assert!(!told(&view(&headless)).0);
}
