//! ServiceEntries for hosts of Kubernetes' services: they say who the endpoints may be, and nothing else.

use super::*;

const HOST: &str = "web.shop.svc.cluster.local";

fn entry(namespace: &str, labels: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: more, namespace: {namespace}, labels: {{{labels}}}}}\nspec: {spec}\n"
    )
}

fn said(view: &View) -> Vec<String> {
    let of_entries = view.problems.iter().filter(|(key, _)| key.kind == Kind::ServiceEntry);
    of_entries.map(|(_, problem)| format!("{}: {}", problem.field, problem.message)).collect()
}

#[test]
fn features_SE_1_a_host_of_kubernetes_is_decorated_and_never_taken_over() {
    const NAME: &str = "spiffe://cluster.local/ns/legacy/sa/web";
    let names = format!("subjectAltNames: ['{NAME}', web.example.com]");
    let around =
        [service("web", "{clusterIP: 198.19.0.1, ports: [{port: 80}], selector: {app: web}}"), pod("web-1", "")]
            .concat();
    let before = view(&around);
    for (what, namespace, spec, added, told) in [
        ("its names", "shop", format!("{{hosts: [{HOST}], NAMES}}"), true, ""),
        ("of the root namespace", "undermesh-system", format!("{{hosts: [{HOST}], NAMES}}"), true, ""),
        ("written otherwise", "shop", format!("{{hosts: [{}], NAMES}}", HOST.to_uppercase()), true, ""),
        ("no names", "shop", format!("{{hosts: [{HOST}]}}"), false, ""),
        (
            "endpoints of its own",
            "shop",
            format!("{{hosts: [{HOST}], NAMES, resolution: STATIC, endpoints: [{{address: 192.0.2.1}}]}}"),
            true,
            "only subjectAltNames are used, not endpoints",
        ),
        (
            "addresses of its own",
            "shop",
            format!("{{hosts: [{HOST}], NAMES, addresses: [192.0.2.7]}}"),
            true,
            "only subjectAltNames are used, not addresses",
        ),
        (
            "another namespace widens nothing",
            "far",
            format!("{{hosts: [{HOST}], NAMES, resolution: STATIC, endpoints: [{{address: 192.0.2.1}}]}}"),
            false,
            "is the host of Service shop/web, which counts; nothing of this entry is used",
        ),
        (
            "nor for itself alone",
            "far",
            format!("{{hosts: [{HOST}], NAMES, exportTo: ['.'], resolution: DNS}}"),
            false,
            "nothing of this entry is used",
        ),
    ] {
        let view = view(&format!("{around}{}", entry(namespace, "", &spec.replace("NAMES", &names))));
        assert_eq!(view.services.keys().collect::<Vec<_>>(), before.services.keys().collect::<Vec<_>>(), "{what}");
        assert_eq!(view.workloads, before.workloads, "{what}");
        let service = view.services.values().next().unwrap();
        let expected: Vec<Identity> = added.then(|| NAME.parse().unwrap()).into_iter().collect();
        assert_eq!(service.subject_alt_names, expected, "{what}");
        let others = mesh_core::Service { subject_alt_names: Vec::new(), ..(**service).clone() };
        assert_eq!(others, **before.services.values().next().unwrap(), "{what}");
        let said: Vec<String> = said(&view).into_iter().filter(|one| !one.contains("is not verified")).collect();
        match told {
            "" => assert_eq!(said, [""; 0], "{what}"),
            _ => assert!(said.len() == 1 && said[0].contains(told), "{what}: {said:?}"),
        }
        let is_in_force = view.at_waypoints.iter().any(|key| key.kind == Kind::ServiceEntry);
        assert_eq!(is_in_force, namespace != "far", "{what}");
    }
}

#[test]
fn features_SE_1_names_of_several_are_added_once_and_a_host_that_is_none_of_kubernetes_is_as_ever() {
    let service = service("web", "{clusterIP: 198.19.0.1, ports: [{port: 80}]}");
    let of = |namespace: &str, account: &str| {
        entry(
            namespace,
            "",
            &format!(
                "{{hosts: [{HOST}, other.example.com], subjectAltNames: ['spiffe://cluster.local/ns/a/sa/{account}', 'spiffe://cluster.local/ns/a/sa/both']}}"
            ),
        )
    };
    let view = view(&[service, of("shop", "x"), of("undermesh-system", "y")].concat());
    let names: Vec<String> = view.services[&format!("shop/{HOST}").parse().unwrap()]
        .subject_alt_names
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(names.len(), 3, "{names:?}");
    assert!(view.services.contains_key(&"shop/other.example.com".parse().unwrap()), "its other host is one of its own");
}
