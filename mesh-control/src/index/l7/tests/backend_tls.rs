//! BackendTLSPolicies in, with which TLS a gateway and a waypoint reach a port, and what policies are told, out. Cases are called as in the Gateway API's conformance
//! suite where it has them.

use mesh_core::ArcStr;
use mesh_core::l7::ClusterKey;
use mesh_core::l7::cluster::{ServerName, Tls};
use mesh_core::listener::Certificates;

use super::*;
use crate::index::View;
use crate::index::l7::listeners::told::Why;

/// A service with the ports `web` (443) and `alt` (8443), and a gateway that routes to both.
fn around() -> Vec<Json> {
    let mut service = object(Kind::Service, "shop", "tls", "{}");
    service["spec"] = json!({ "selector": { "app": "tls" }, "ports": [
        { "name": "web", "port": 443 }, { "name": "alt", "port": 8443 },
    ] });
    let gateway = "{gatewayClassName: undermesh, listeners: [{name: http, port: 80, protocol: HTTP}]}";
    let to = |port: u16| format!("{{backendRefs: [{{name: tls, port: {port}}}]}}");
    let route = format!("{{parentRefs: [{{name: edge}}], rules: [{}, {}]}}", to(443), to(8443));
    vec![service, object(Kind::Gateway, "shop", "edge", gateway), object(Kind::HttpRoute, "shop", "r", &route)]
}

const CA: &str = "caCertificateRefs: [{group: '', kind: ConfigMap, name: ca}]";

fn policy(name: &str, section: &str, validation: &str) -> Json {
    let section = if section.is_empty() { String::new() } else { format!(", sectionName: {section}") };
    let spec = format!(
        "{{targetRefs: [{{group: '', kind: Service, name: tls{section}}}], validation: {{hostname: {name}.example, {validation}}}}}"
    );
    object(Kind::BackendTlsPolicy, "shop", name, &spec)
}

fn pem() -> String {
    rcgen::generate_simple_self_signed(vec!["a.example".to_owned()]).unwrap().cert.pem()
}

fn map(name: &str, data: Json) -> Json {
    json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": name, "namespace": "shop" }, "data": data })
}

fn view(more: &[Json]) -> View {
    crate::index::build(&objects(&[around(), more.to_vec()].concat()), &Settings::default())
}

fn edge() -> NamespacedName {
    NamespacedName::new("shop", "edge")
}

/// With which TLS the gateway reaches a port.
fn tls(view: &View, port: u16) -> Result<Tls, ArcStr> {
    let service = NamespacedName::new("shop", "tls.shop.svc.cluster.local");
    let key = ClusterKey { service, port, subset: Default::default() };
    let cluster = view.clusters[&edge()].find(&key, &Client::default()).unwrap();
    cluster.policy.as_ref().map(|policy| policy.tls.clone()).map_err(Clone::clone)
}

fn by(name: &str) -> Tls {
    Tls::Simple(ServerName {
        roots: vec!["ConfigMap shop/ca".into()],
        sni: Some(format!("{name}.example").into()),
        end_to_end: true,
        ..ServerName::default()
    })
}

/// What a policy is told: gateway, reason of Accepted, reason of ResolvedRefs.
fn told(view: &View, name: &str) -> Vec<String> {
    let key = Key { kind: Kind::BackendTlsPolicy, namespace: "shop".into(), name: name.into() };
    let Some(told) = view.policies_told.get(&key) else { return Vec::new() };
    let belonging = told.belonging();
    let broken = belonging.broken.as_ref().map_or("unread", |all| all.first().map_or("ResolvedRefs", |one| one.1));
    let of = |(parent, refused): &(_, Option<Why>)| {
        let parent: &crate::resource::routing::reference::ParentReference = parent;
        assert_eq!(parent.kind.as_deref(), Some("Gateway"));
        format!("{} {} {broken}", parent.name, refused.as_ref().map_or("Accepted", |why| why.0))
    };
    belonging.parents.iter().map(of).collect()
}

#[test]
fn features_GA_BackendTLSPolicyConflictResolution() {
    let ca = || map("ca", json!({ "ca.crt": pem() }));
    let (a, b) = (|section: &str| policy("a", section, CA), |section: &str| policy("b", section, CA));
    let accepted = ["edge Accepted ResolvedRefs"];
    let conflicted = ["edge Conflicted ResolvedRefs"];
    for (what, policies, at_443, at_8443, of_a, of_b) in [
        ("by name", [a(""), b("")], by("a"), by("a"), accepted, conflicted),
        ("by age", [made(a(""), "2026-02-01"), made(b(""), "2026-01-01")], by("b"), by("b"), conflicted, accepted),
        ("a port before all", [a(""), b("web")], by("b"), by("a"), accepted, accepted),
        ("a port and another", [a("alt"), b("web")], by("b"), by("a"), accepted, accepted),
        ("one port", [a("web"), b("web")], by("a"), Tls::Mesh, accepted, conflicted),
    ] {
        let view = view(&[&policies[..], &[ca()]].concat());
        assert_eq!((tls(&view, 443), tls(&view, 8443)), (Ok(at_443), Ok(at_8443)), "{what}");
        assert_eq!(
            (told(&view, "a"), told(&view, "b")),
            (of_a.map(Into::into).into(), of_b.map(Into::into).into()),
            "{what}"
        );
    }
    // Another age, another name: the joining does not depend on the order.
    let view = view(&[b(""), a(""), ca()]);
    assert_eq!(tls(&view, 443), Ok(by("a")));
}

#[test]
fn features_GA_BackendTLSPolicyInvalidCACertificateRef_and_its_neighbours() {
    let good = || map("ca", json!({ "ca.crt": pem() }));
    let of_kind =
        |group: &str, kind: &str| format!("caCertificateRefs: [{{group: '{group}', kind: {kind}, name: ca}}]");
    let two = "caCertificateRefs: [{group: '', kind: ConfigMap, name: ca}, {group: '', kind: ConfigMap, name: none}]";
    let secret = || {
        json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "ca", "namespace": "shop" },
            "stringData": { "ca.crt": pem() } })
    };
    let far = || {
        let mut far = good();
        far["metadata"]["namespace"] = json!("far");
        far
    };
    for (what, validation, more, expected, given) in [
        ("good", CA.to_owned(), vec![good()], "edge Accepted ResolvedRefs", 1),
        ("a Secret", of_kind("", "Secret"), vec![secret()], "edge Accepted ResolvedRefs", 1),
        ("none", CA.to_owned(), vec![], "edge NoValidCACertificate InvalidCACertificateRef", 0),
        ("another namespace's", CA.to_owned(), vec![far()], "edge NoValidCACertificate InvalidCACertificateRef", 0),
        ("no key", CA.to_owned(), vec![map("ca", json!({}))], "edge NoValidCACertificate InvalidCACertificateRef", 0),
        (
            "empty",
            CA.to_owned(),
            vec![map("ca", json!({ "ca.crt": "" }))],
            "edge NoValidCACertificate InvalidCACertificateRef",
            0,
        ),
        (
            "rubbish",
            CA.to_owned(),
            vec![map("ca", json!({ "ca.crt": "-----BEGIN CERTIFICATE-----\n?" }))],
            "edge NoValidCACertificate InvalidCACertificateRef",
            0,
        ),
        ("a kind", of_kind("", "Service"), vec![good()], "edge NoValidCACertificate InvalidKind", 0),
        ("a group", of_kind("invalid.io", "ConfigMap"), vec![good()], "edge NoValidCACertificate InvalidKind", 0),
        ("one of two", two.to_owned(), vec![good()], "edge Accepted InvalidCACertificateRef", 1),
        ("the system's", "wellKnownCACertificates: System".to_owned(), vec![], "edge Accepted ResolvedRefs", 0),
    ] {
        let view = view(&[&[policy("a", "", &validation)][..], &more].concat());
        assert_eq!(told(&view, "a"), [expected], "{what}");
        let certificates = view.certificates.get(&edge()).cloned().unwrap_or_default();
        assert_eq!(Certificates::clone(&certificates).all.len(), given, "{what}");
        // Never plaintext, and never whom the system trusts where roots are named.
        match tls(&view, 443) {
            Ok(Tls::Simple(server)) => {
                assert_eq!(server.roots.is_empty(), what == "the system's", "{what}");
                assert!(server.end_to_end);
            }
            Ok(other) => panic!("{what}: {other:?}"),
            Err(why) => assert!(expected.contains("InvalidKind"), "{what}: {why}"),
        }
        let said = view.problems.iter().filter(|(key, _)| key.kind == Kind::BackendTlsPolicy).count();
        assert_eq!(said, usize::from(!expected.ends_with(" ResolvedRefs")), "{what}: {:?}", view.problems);
    }
}

#[test]
fn features_GA_BackendTLSPolicySANValidation() {
    let names = "subjectAltNames: [{type: Hostname, hostname: b.example}, {type: URI, uri: 'spiffe://a/b'}]";
    let view = view(&[policy("a", "web", &format!("{CA}, {names}")), map("ca", json!({ "ca.crt": pem() }))]);
    let Ok(Tls::Simple(server)) = tls(&view, 443) else { panic!() };
    assert_eq!(server.names, ["b.example", "spiffe://a/b"]);
    assert_eq!(server.sni.as_deref(), Some("a.example"));
}

#[test]
fn features_GA_policies_about_nothing_that_is_reached_are_told_nothing() {
    let gone = r#"{targetRefs: [{group: "", kind: Service, name: gone}], validation: {hostname: a.b, wellKnownCACertificates: System}}"#;
    let view = view(&[
        policy("a", "none", CA),
        object(Kind::BackendTlsPolicy, "shop", "o", gone),
        object(Kind::BackendTlsPolicy, "far", "a", &gone.replace("gone", "stock")),
    ]);
    assert_eq!(tls(&view, 443), Ok(Tls::Mesh), "a port that there is not");
    assert_eq!(told(&view, "a"), ["edge TargetNotFound ResolvedRefs"], "roots that nobody needs are not asked for");
    assert_eq!(told(&view, "o"), [""; 0]);
}

#[test]
fn hardening_a_policy_that_cannot_be_read_closes_what_it_is_about() {
    let broken = |name: &str| {
        let mut policy = policy(name, "web", CA);
        policy["spec"]["validation"]["hostname"] = json!(7);
        policy
    };
    let of = |all: &[Json]| {
        let text: Vec<String> =
            [shop(), around(), all.to_vec()].concat().iter().map(|object| format!("---\n{object}\n")).collect();
        let read = file::read("a.yaml", text.concat().as_bytes());
        let scan = Scan { found: read.found.into_iter().map(|(found, _)| found).collect(), ..Scan::default() };
        crate::index::build(&Catalog::default().apply(&scan).0, &Settings::default())
    };
    let view = of(&[broken("a")]);
    assert!(tls(&view, 443).is_err_and(|why| why.contains("BackendTLSPolicy shop/a cannot be read")));
    assert_eq!(tls(&view, 8443), Ok(Tls::Mesh));
    assert_eq!(told(&view, "a"), ["edge Accepted unread"]);
    // One that can be read, and is about the same, is what counts.
    let view = of(&[broken("a"), policy("b", "web", CA), map("ca", json!({ "ca.crt": pem() }))]);
    assert_eq!(tls(&view, 443), Ok(by("b")));
    assert_eq!(told(&view, "a"), ["edge Conflicted unread"]);
}

#[test]
fn features_GA_waypoints_begin_it_too_and_agents_do_not() {
    let waypoint = "{gatewayClassName: undermesh-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}";
    let mut all = around();
    all[0]["metadata"]["labels"] = json!({ "istio.io/use-waypoint": "wp" });
    all.extend([
        object(Kind::Gateway, "shop", "wp", waypoint),
        policy("a", "", CA),
        map("ca", json!({ "ca.crt": pem() })),
        object(Kind::DestinationRule, "shop", "o", "{host: tls, trafficPolicy: {tls: {mode: DISABLE}}}"),
    ]);
    let view = crate::index::build(&objects(&all), &Settings::default());
    let name = NamespacedName::new("shop", "wp");
    let service = NamespacedName::new("shop", "tls.shop.svc.cluster.local");
    let key = ClusterKey { service: service.clone(), port: 443, subset: Default::default() };
    let found = |clusters: &Clusters| clusters.find(&key, &Client::default()).unwrap().policy.clone().unwrap().tls;
    assert_eq!(found(&view.clusters[&name]), by("a"));
    assert_eq!(found(&view.places[&service]), Tls::Plain, "agents");
    assert!(view.certificates[&name].all.contains_key("ConfigMap shop/ca"));
    assert_eq!(told(&view, "a"), ["edge Accepted ResolvedRefs", "wp Accepted ResolvedRefs"]);
    let of_rule = view.problems.iter().filter(|(key, _)| key.kind == Kind::DestinationRule);
    let said: Vec<&str> = of_rule.map(|(_, problem)| problem.message.as_str()).collect();
    assert!(said.contains(&"BackendTLSPolicy shop/a says with which TLS it is reached"), "{said:?}");
}
