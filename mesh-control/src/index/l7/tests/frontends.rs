//! Gateways with `spec.tls` in; what is asked of clients and shown to backends, and what Gateways and listeners are told, out. Cases are called as in the Gateway API's
//! conformance suite where it has them.

use mesh_core::ArcStr;
use mesh_core::l7::ClusterKey;
use mesh_core::l7::cluster::Tls;
use mesh_core::listener::{Clients, Encryption};

use super::*;
use crate::index::View;

fn pem() -> String {
    rcgen::generate_simple_self_signed(vec!["a.example".to_owned()]).unwrap().cert.pem()
}

fn map(namespace: &str, name: &str, text: &str) -> Json {
    json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": name, "namespace": namespace }, "data": { "ca.crt": text } })
}

fn secret(name: &str, with_key: bool) -> Json {
    let made = rcgen::generate_simple_self_signed(vec!["a.example".to_owned()]).unwrap();
    let data = match with_key {
        true => {
            json!({ "tls.crt": made.cert.pem(), "tls.key": made.signing_key.serialize_pem(), "ca.crt": made.cert.pem() })
        }
        false => json!({}),
    };
    json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": name, "namespace": "shop" }, "stringData": data })
}

const LISTENERS: &str = "{name: http, port: 80, protocol: HTTP}, {name: https, port: 443, protocol: HTTPS, tls: {certificateRefs: [{name: c}]}}, \
    {name: other, port: 8443, protocol: HTTPS, tls: {certificateRefs: [{name: c}]}}";

fn view(tls: &str, more: &[Json]) -> View {
    let spec = format!("{{gatewayClassName: undermesh, listeners: [{LISTENERS}], tls: {tls}}}");
    let all = [&[object(Kind::Gateway, "shop", "edge", &spec), secret("c", true)][..], more].concat();
    crate::index::build(&objects(&all), &Settings::default())
}

fn edge() -> NamespacedName {
    NamespacedName::new("shop", "edge")
}

/// What a listener asks of clients.
fn clients(view: &View, port: u16) -> Option<Clients> {
    let listener = view.listeners[&edge()].port(port)?.named(None)?;
    match &listener.encryption {
        Encryption::Ends(tls) => tls.clients.clone(),
        _ => None,
    }
}

/// Of each listener its name, and the reasons for `Accepted: False` and `ResolvedRefs: False`.
fn told(view: &View) -> Vec<String> {
    let word = |why: &Option<(&'static str, String)>| why.as_ref().map_or("-", |why| why.0);
    let of = |one: &crate::index::l7::listeners::told::ListenerTold| {
        let served = if one.why_not().is_none() { "served" } else { "closed" };
        format!("{} {} {} {served}", one.name, word(&one.refused), word(&one.unresolved))
    };
    view.listeners_told.gateways[&edge()].iter().map(of).collect()
}

fn validation(refs: &str) -> String {
    format!("{{validation: {{caCertificateRefs: [{refs}]}}}}")
}

const CA: &str = "{group: '', kind: ConfigMap, name: ca}";

#[test]
fn features_GA_GatewayFrontendClientCertificateValidation() {
    let own = "{group: '', kind: Secret, name: c}";
    let tls =
        format!("{{frontend: {{default: {}, perPort: [{{port: 8443, tls: {}}}]}}}}", validation(CA), validation(own));
    let view = view(&tls, &[map("shop", "ca", &pem())]);
    let asked = |root: &str| Some(Clients { required: true, roots: vec![root.into()], ..Clients::default() });
    assert_eq!((clients(&view, 443), clients(&view, 8443)), (asked("ConfigMap shop/ca"), asked("shop/c")));
    assert_eq!(told(&view), ["http - - served", "https - - served", "other - - served"]);
    let given = &view.certificates[&edge()].all;
    assert_eq!(given.keys().map(ArcStr::as_str).collect::<Vec<_>>(), ["ConfigMap shop/ca", "shop/c"]);
    assert!(!given["shop/c"].roots.is_empty() && !given["shop/c"].chain.is_empty());
    // A port of which it says nothing is not asked.
    let tls = format!("{{frontend: {{default: {}, perPort: [{{port: 8443, tls: {{}}}}]}}}}", validation(CA));
    let view = self::view(&tls, &[map("shop", "ca", &pem())]);
    assert_eq!((clients(&view, 443).is_some(), clients(&view, 8443)), (true, None));
    assert!(!view.gateways_told[&edge()].insecure);
    // In any case nobody is let in whom nobody knows: what is asked for stays asked for.
    let insecure = tls.replace("{validation: {", "{validation: {mode: AllowInsecureFallback, ");
    let view = self::view(&insecure, &[map("shop", "ca", &pem())]);
    let asked = Clients { unverified: true, roots: vec!["ConfigMap shop/ca".into()], ..Clients::default() };
    assert_eq!(clients(&view, 443), Some(asked));
    assert!(view.gateways_told[&edge()].insecure);
}

#[test]
fn features_GA_GatewayInvalidFrontendClientCertificateValidation() {
    let far = "{group: '', kind: ConfigMap, name: ca, namespace: far}";
    let from = "[{group: gateway.networking.k8s.io, kind: Gateway, namespace: shop}]";
    let grant = object(
        Kind::ReferenceGrant,
        "far",
        "g",
        &format!("{{from: {from}, to: [{{group: '', kind: ConfigMap, name: ca}}]}}"),
    );
    let none = "{group: '', kind: ConfigMap, name: none}";
    let two = format!("{CA}, {none}");
    for (what, refs, more, expected) in [
        ("good", CA, vec![map("shop", "ca", &pem())], "https - - served"),
        ("missing", CA, vec![], "https NoValidCACertificate InvalidCACertificateRef closed"),
        ("empty", CA, vec![map("shop", "ca", "")], "https NoValidCACertificate InvalidCACertificateRef closed"),
        ("rubbish", CA, vec![map("shop", "ca", "hello")], "https NoValidCACertificate InvalidCACertificateRef closed"),
        (
            "a kind",
            "{group: '', kind: Service, name: v1}",
            vec![],
            "https NoValidCACertificate InvalidCACertificateKind closed",
        ),
        ("not granted", far, vec![map("far", "ca", &pem())], "https NoValidCACertificate RefNotPermitted closed"),
        ("granted", far, vec![map("far", "ca", &pem()), grant], "https - - served"),
        ("one of two", &two, vec![map("shop", "ca", &pem())], "https - InvalidCACertificateRef served"),
    ] {
        let tls = format!("{{frontend: {{default: {{}}, perPort: [{{port: 443, tls: {}}}]}}}}", validation(refs));
        let view = view(&tls, &more);
        assert_eq!(told(&view), ["http - - served", expected, "other - - served"], "{what}");
        // However broken it is, clients are asked.
        assert!(clients(&view, 443).is_some_and(|clients| clients.required), "{what}");
        assert_eq!(clients(&view, 8443), None, "{what}");
        let said = view.problems.iter().filter(|(key, _)| key.kind == Kind::Gateway).count();
        assert_eq!(said, usize::from(!expected.contains("- -")), "{what}: {:?}", view.problems);
    }
}

#[test]
fn features_GA_GatewayInvalidTLSBackendConfiguration() {
    for (what, reference, more, expected) in [
        ("nothing", "", vec![], None),
        ("good", "{name: own}", vec![secret("own", true)], Some("ResolvedRefs")),
        ("missing", "{name: own}", vec![], Some("InvalidClientCertificateRef")),
        ("malformed", "{name: own}", vec![secret("own", false)], Some("InvalidClientCertificateRef")),
        ("a kind", "{kind: WrongKind, name: own}", vec![secret("own", true)], Some("InvalidClientCertificateRef")),
        (
            "a group",
            "{group: wrong.io, kind: Secret, name: own}",
            vec![secret("own", true)],
            Some("InvalidClientCertificateRef"),
        ),
        ("not granted", "{name: own, namespace: far}", vec![], Some("RefNotPermitted")),
    ] {
        let tls = match reference {
            "" => "{}".to_owned(),
            reference => format!("{{backend: {{clientCertificateRef: {reference}}}}}"),
        };
        let policy = "{targetRefs: [{group: '', kind: Service, name: v1}], validation: {hostname: v.example, wellKnownCACertificates: System}}";
        let route = "{parentRefs: [{name: edge}], rules: [{backendRefs: [{name: v1, port: 80}]}]}";
        let around = [object(Kind::BackendTlsPolicy, "shop", "p", policy), object(Kind::HttpRoute, "shop", "r", route)];
        let view = view(&tls, &[&around[..], &more].concat());
        let told = view.gateways_told[&edge()].shown.as_ref();
        let told = told.map(|told| told.as_ref().map_or_else(|why| why.0, |()| "ResolvedRefs"));
        assert_eq!(told, expected, "{what}");
        let service = NamespacedName::new("shop", "v1.shop.svc.cluster.local");
        let key = ClusterKey { service, port: 80, subset: Default::default() };
        let policy = &view.clusters[&edge()].find(&key, &Client::default()).unwrap().policy;
        // It is shown, or the place is closed, here or by the gateway that does not know it.
        let given = view.certificates[&edge()].all.contains_key("shop/own");
        match (expected, policy.as_ref().map(|policy| &policy.tls)) {
            (None, Ok(Tls::Simple(server))) => assert_eq!(server.shown, None),
            (Some(reason), Ok(Tls::Simple(server))) => {
                assert_eq!(server.shown.as_deref(), Some("shop/own"), "{what}");
                assert_eq!(given, reason == "ResolvedRefs", "{what}");
            }
            (Some(reason), Err(_)) => assert!(reason != "ResolvedRefs" && !given, "{what}"),
            other => panic!("{what}: {other:?}"),
        }
        let said = view.problems.iter().filter(|(key, _)| key.kind == Kind::Gateway).count();
        assert_eq!(said, usize::from(expected.is_some_and(|reason| reason != "ResolvedRefs")), "{what}");
    }
}

#[test]
fn a_listener_set_does_not_say_whom_its_gateway_believes() {
    let set = "{parentRef: {name: edge}, listeners: [{name: l, port: 9443, protocol: HTTPS, tls: {certificateRefs: [{name: c}], \
        frontendValidation: {mode: AllowInsecureFallback, caCertificateRefs: [{group: '', kind: ConfigMap, name: none}]}}}]}";
    let of = |frontend: String| {
        let tls = format!("{{frontend: {frontend}}}, allowedListeners: {{namespaces: {{from: All}}}}");
        view(&tls, &[map("shop", "ca", &pem()), object(Kind::ListenerSet, "shop", "more", set)])
    };
    let asked = of(format!("{{default: {}}}", validation(CA)));
    let roots = |view: &View| clients(view, 9443).map(|clients| (clients.required, clients.roots));
    assert_eq!(roots(&asked), Some((true, vec!["ConfigMap shop/ca".into()])));
    let said = |(key, problem): &&(Key, Problem)| {
        key.kind == Kind::ListenerSet && problem.field == "spec.listeners[0].tls.frontendValidation"
    };
    assert_eq!(asked.problems.iter().filter(said).count(), 1);
    assert!(!asked.gateways_told[&edge()].insecure);
    // What the Gateway lets in there it is told of, whoever listens there.
    let insecure = validation(CA).replace("{validation: {", "{validation: {mode: AllowInsecureFallback, ");
    let let_in = of(format!("{{default: {{}}, perPort: [{{port: 9443, tls: {insecure}}}]}}"));
    assert_eq!(roots(&let_in).map(|(required, _)| required), Some(false));
    assert!(let_in.gateways_told[&edge()].insecure);
}
