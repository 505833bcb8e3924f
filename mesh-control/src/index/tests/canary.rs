//! A second waypoint beside the first: which share it has, and who is told.

use mesh_core::NamespacedName;

use super::waypoints::*;
use super::*;

fn canary(name: &str, weight: &str) -> String {
    format!("{USE}-canary: {name}}}, annotations: {{{USE}-canary-weight: '{weight}'")
}

/// What clients are told of the shop's service, what is said of the canary, and the condition's reason.
fn beside(view: &View) -> (String, Option<u32>, Vec<Kind>, Option<&'static str>) {
    let service = view.services.values().find(|s| s.name == "web").unwrap();
    let told = told(service.canary.as_ref().map(|canary| &canary.waypoint));
    let said = view.problems.iter().filter(|(_, problem)| problem.field.contains("canary")).map(|(key, _)| key.kind);
    let reason = match binding(view).unwrap() {
        Binding::Accepted(_, beside) => beside.no_canary.as_ref().map(|(reason, _)| *reason),
        other => panic!("{other:?}"),
    };
    (told, service.canary.as_ref().map(|canary| canary.weight), said.collect(), reason)
}

#[test]
fn features_CL_3_a_second_waypoint_has_a_share_of_what_comes_for_a_service() {
    let here = format!("{}{}", waypoint("shop", "wp", ""), waypoint("shop", "new", ""));
    let new = in_full("shop", "new");
    let own = |more: &str| format!("{}, {more}", label("wp"));
    let (none, web, shops) = (vec![], vec![Kind::Service], vec![Kind::Namespace]);
    let workloads = format!("{}{}", waypoint("shop", "wp", ""), waypoint("shop", "new", "workload"));
    let bare = format!("{}{}", waypoint("shop", "wp", ""), bare("shop", "new", "", &spec("undermesh-waypoint", "")));
    let denied = gateway("infra", "new", "", &spec("undermesh-waypoint", "{from: Same}"));
    let denied = format!("{}{denied}", waypoint("shop", "wp", ""));
    let far = format!("{USE}-canary-namespace: infra, {}", canary("new", "5"));
    let one = waypoint("shop", "wp", "");
    let ready = "WaypointCanaryNotReady";
    type Row<'a> = (&'a str, &'a str, String, String, &'a str, Option<u32>, Vec<Kind>, Option<&'a str>);
    let rows: [Row<'_>; 15] = [
        ("of the service", &here, String::new(), own(&canary("new", "5")), &new, Some(5), none.clone(), None),
        (
            "without a weight",
            &here,
            String::new(),
            own(&format!("{USE}-canary: new")),
            &new,
            Some(0),
            none.clone(),
            None,
        ),
        ("of the namespace", &here, own(&canary("new", "7")), String::new(), &new, Some(7), none.clone(), None),
        ("beside the namespace's", &here, label("wp"), canary("new", "9"), &new, Some(9), none.clone(), None),
        ("not for one with its own", &here, own(&canary("new", "7")), label("wp"), "-", None, none.clone(), None),
        (
            "before the namespace's",
            &here,
            own(&canary("new", "7")),
            canary("new", "1"),
            &new,
            Some(1),
            none.clone(),
            None,
        ),
        (
            "no number",
            &here,
            String::new(),
            own(&canary("new", "5%")),
            "-",
            None,
            web.clone(),
            Some("CanaryInvalidWeight"),
        ),
        (
            "the same",
            &here,
            String::new(),
            own(&canary("wp", "5")),
            "-",
            None,
            web.clone(),
            Some("CanarySameAsPrimary"),
        ),
        (
            "the same, of all",
            &here,
            own(&canary("wp", "5")),
            String::new(),
            "-",
            None,
            shops,
            Some("CanarySameAsPrimary"),
        ),
        ("there is none", &one, String::new(), own(&canary("new", "5")), "-", None, web.clone(), Some(ready)),
        ("nobody is there", &bare, String::new(), own(&canary("new", "5")), "-", None, web.clone(), Some(ready)),
        (
            "for workloads",
            &workloads,
            String::new(),
            own(&canary("new", "5")),
            "-",
            None,
            web.clone(),
            Some("CanaryUnsupportedTrafficType"),
        ),
        ("it takes nothing", &denied, String::new(), own(&far), "-", None, web, Some("CanaryAttachmentDenied")),
        ("an empty name", &here, String::new(), own(&canary("''", "5")), "-", None, none.clone(), None),
        (
            "only a weight",
            &here,
            own(""),
            format!("a: b}}, annotations: {{{USE}-canary-weight: '5'"),
            "-",
            None,
            none,
            None,
        ),
    ];
    for (what, gateways, of_namespace, service, address, weight, said, reason) in rows {
        let view = view(&format!("{gateways}{}{}", namespace("shop", &of_namespace), shop(&service, "")));
        assert_eq!(bound(&view).0, in_full("shop", "wp"), "{what}");
        assert_eq!(beside(&view), (address.to_owned(), weight, said, reason), "{what}");
    }
}

/// A canary serves what the waypoint serves before it has a share of it, and however it is found.
#[test]
fn features_CL_3_a_canary_has_the_table_of_what_it_has_a_share_of() {
    for gateway in [waypoint("shop", "new", ""), bare("shop", "new", "", &spec("undermesh-waypoint", ""))] {
        let labels = format!("{}, {USE}-canary: new", label("wp"));
        let entry = format!(
            "---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: api, namespace: shop, labels: {{{labels}}}, annotations: {{{USE}-canary-weight: '30'}}}}\nspec: {{hosts: [api.example.com], resolution: STATIC, ports: [{{number: 80, name: http, protocol: HTTP}}], endpoints: [{{address: 198.18.3.3}}]}}\n"
        );
        let routes = "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: web, namespace: shop}\nspec: {hosts: [web, api.example.com], http: [{route: [{destination: {host: web}}]}]}\n";
        let view = view(&format!("{gateway}{}{entry}{routes}{}", waypoint("shop", "wp", ""), shop(&labels, "")));
        let hosts = |name: &str| {
            let table = &view.tables[&NamespacedName::new("shop", name)];
            table.hosts().iter().map(|host| host.name.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(hosts("wp"), hosts("new"));
        assert!(hosts("new").len() == 2, "{:?}", hosts("new"));
        let weight =
            |name: &str| view.services.values().find(|s| s.name == name).unwrap().canary.as_ref().map(|c| c.weight);
        let is_there = gateway.contains("kind: Service");
        assert_eq!([weight("web"), weight("api")], [is_there.then_some(0), is_there.then_some(30)]);
    }
}
