//! Gateways and routes in, what is listened for and what is done with requests there out. Cases are called as in the Gateway API's conformance suite where it
//! has them.

use mesh_core::listener::{self, Encryption, Listeners, Serves};

use super::*;

/// What a Gateway of ours in `shop` listens for, with these routes.
pub(super) fn gateway(listeners: &str, more: &[Json]) -> (Arc<Listeners>, Problems) {
    let spec = format!("{{gatewayClassName: undermesh, listeners: {listeners}}}");
    let mut all = vec![object(Kind::Gateway, "shop", "edge", &spec)];
    all.extend_from_slice(more);
    let (objects, settings) = (objects(&all), Settings::default());
    let indexed = super::super::super::routing::index(&objects, &settings);
    let mut around = Around::new(&objects, &settings, &indexed);
    around.datagrams = datagram::targets(&objects);
    let made = super::super::index(&settings, &around, &Served::new());
    (made.listeners[&NamespacedName::new("shop", "edge")].clone(), made.problems)
}

fn route(kind: Kind, name: &str, spec: &str) -> Json {
    object(kind, "shop", name, spec)
}

/// Where a GET of this URL goes: to a service, or a status.
pub(super) fn ask(listeners: &Listeners, bind: u16, url: &str) -> String {
    let sent = sent(&format!("GET http://{url}"));
    let Some(port) = listeners.port(bind) else { return "closed".to_owned() };
    let listener = match port.request(listener::Made::For(None), sent.authority.host()) {
        Ok(listener) => listener,
        Err(astray) => return astray.to_string(),
    };
    let Serves::Http(table) = &listener.serves else { return "no HTTP".to_owned() };
    let request = Request {
        method: &sent.method,
        scheme: "http",
        authority: &sent.authority,
        path: &sent.path,
        query: sent.query.as_deref(),
        headers: &sent.headers,
        port: listener.port,
        gateway: &listener.gateway,
        service: None,
    };
    match pick(table, &request, &Client::default(), &mut StdRng::seed_from_u64(1)) {
        Err(_) => "404".to_owned(),
        Ok(Decision { outcome: Outcome::Forward(place), .. }) => match &place.target {
            Target::Cluster(key) => format!("{}:{}", key.service.name.split('.').next().unwrap(), key.port),
            Target::Broken(why) => why.to_string(),
        },
        Ok(Decision { outcome: Outcome::Closed(_), .. }) => "500".to_owned(),
        Ok(decision) => format!("{:?}", decision.outcome),
    }
}

const HTTP: &str = "[{name: http, port: 80, protocol: HTTP}]";

#[test]
fn features_GA_3_HTTPRouteSimpleSameNamespace_and_its_neighbours() {
    let to = |service: &str| format!("rules: [{{backendRefs: [{{name: {service}, port: 80}}]}}]");
    let parent = "parentRefs: [{name: edge}]";
    let (listeners, _) = gateway(HTTP, &[route(Kind::HttpRoute, "a", &format!("{{{parent}, {}}}", to("v1")))]);
    assert_eq!(ask(&listeners, 80, "any.example/"), "v1:80");
    // HTTPRouteHostnameIntersection, HTTPRouteListenerHostnameMatching, GatewayHTTPListenerIsolation.
    let listeners = "[{name: all, port: 80, protocol: HTTP}, {name: wide, port: 80, protocol: HTTP, hostname: '*.foo.com'}, \
        {name: one, port: 80, protocol: HTTP, hostname: a.foo.com}]";
    let at = |name: &str, section: &str, hosts: &str, service: &str| {
        let spec =
            format!("{{parentRefs: [{{name: edge, sectionName: {section}}}], hostnames: [{hosts}], {}}}", to(service));
        route(Kind::HttpRoute, name, &spec)
    };
    let (listeners, _) = gateway(
        listeners,
        &[
            at("x", "all", "", "v1"),
            at("y", "wide", "'*.foo.com', b.bar.com", "v2"),
            at("z", "one", "'*.foo.com'", "v3"),
        ],
    );
    for (url, expected) in [
        ("b.bar.com/", "v1:80"),
        ("foo.com/", "v1:80"),
        ("b.foo.com/", "v2:80"),
        ("x.b.foo.com/", "v2:80"),
        ("a.foo.com/", "v3:80"),
    ] {
        assert_eq!(ask(&listeners, 80, url), expected, "{url}");
    }
    assert_eq!(ask(&listeners, 81, "a.foo.com/"), "closed");
}

#[test]
fn features_GA_3_what_leads_nowhere_is_answered_with_500_and_other_hosts_with_404() {
    let broken = "{parentRefs: [{name: edge}], hostnames: [a.com], rules: [{backendRefs: [{name: nobody, port: 80}]}]}";
    let far = "{parentRefs: [{name: edge}], hostnames: [b.com], rules: [{backendRefs: [{name: stock, namespace: far, port: 80}]}]}";
    let routes = [route(Kind::HttpRoute, "a", broken), route(Kind::HttpRoute, "b", far)];
    let (listeners, _) = gateway(HTTP, &routes);
    for (url, expected) in [("a.com/", "500"), ("b.com/", "500"), ("c.com/", "404")] {
        assert_eq!(ask(&listeners, 80, url), expected, "{url}");
    }
    // HTTPRouteReferenceGrant.
    let from = "[{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: shop}]";
    let grant =
        object(Kind::ReferenceGrant, "far", "g", &format!("{{from: {from}, to: [{{group: '', kind: Service}}]}}"));
    let (listeners, _) = gateway(HTTP, &[routes[1].clone(), grant]);
    assert_eq!(ask(&listeners, 80, "b.com/"), "stock:80");
}

#[test]
fn features_GA_listeners_that_contradict_each_other_do_not_count() {
    let listeners = "[{name: http, port: 80, protocol: HTTP}, {name: tls, port: 80, protocol: HTTPS, hostname: a.com, tls: {certificateRefs: [{name: c}]}}, \
        {name: udp, port: 53, protocol: UDP}, {name: own, port: 15008, protocol: HTTP}, {name: else, port: 81, protocol: example.com/x}, \
        {name: tcp, port: 82, protocol: TCP}, {name: dns, port: 53, protocol: TCP}, {name: mesh, port: 15009, protocol: HBONE}]";
    let (listeners, problems) = gateway(listeners, &[]);
    assert_eq!(listeners.ports().collect::<Vec<_>>(), [53, 80, 82]);
    assert_eq!(listeners.datagrams(53).map(|one| one.name.as_str()), Some("Gateway shop/edge udp"));
    let said: Vec<String> = problems.iter().map(|(_, problem)| format!("{problem:?}")).collect();
    for reason in ["ProtocolConflict", "UnsupportedProtocol", "PortUnavailable"] {
        assert!(said.iter().any(|said| said.contains(reason)), "{reason}: {said:?}");
    }
    let tunnels = "tunnels of the mesh come to port 15008: nobody listens on 15009";
    assert!(said.iter().any(|said| said.contains(tunnels)), "{said:?}");
}

#[test]
fn features_GA_a_certificate_of_another_namespace_needs_a_grant() {
    let certificates = "[{name: own}, {name: other, namespace: far}, {name: c, kind: ConfigMap}]";
    let listeners = format!(
        "[{{name: a, port: 443, protocol: HTTPS, tls: {{certificateRefs: {certificates}}}}}, \
         {{name: p, port: 443, protocol: TLS, hostname: p.com, tls: {{mode: Passthrough}}}}]"
    );
    let shown = |more: &[Json]| {
        let (listeners, _) = gateway(&listeners, more);
        assert_eq!(listeners.all()[1].encryption, Encryption::Passes);
        match &listeners.all()[0].encryption {
            Encryption::Ends(tls) => tls.certificates.iter().map(ToString::to_string).collect::<Vec<_>>(),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(shown(&[]), ["shop/own"]);
    let from = "[{group: gateway.networking.k8s.io, kind: Gateway, namespace: shop}]";
    let grant = |to: &str| {
        object(Kind::ReferenceGrant, "far", "g", &format!("{{from: {from}, to: [{{group: '', kind: Secret{to}}}]}}"))
    };
    assert_eq!(shown(&[grant("")]), ["shop/own", "far/other"]);
    assert_eq!(shown(&[grant(", name: other")]), ["shop/own", "far/other"]);
    assert_eq!(shown(&[grant(", name: another")]), ["shop/own"]);
}

#[test]
fn features_GA_5_connections_go_by_name_and_by_weight() {
    let listeners = "[{name: tls, port: 443, protocol: TLS, hostname: '*.foo.com', tls: {mode: Passthrough}}, {name: tcp, port: 82, protocol: TCP}]";
    let tls = |name: &str, hosts: &str, service: &str| {
        let spec = format!(
            "{{parentRefs: [{{name: edge}}], hostnames: [{hosts}], rules: [{{backendRefs: [{{name: {service}, port: 80}}]}}]}}"
        );
        route(Kind::TlsRoute, name, &spec)
    };
    let tcp = "{parentRefs: [{name: edge}], rules: [{backendRefs: [{name: v1, port: 80, weight: 3}, {name: nobody, port: 1}]}]}";
    let (listeners, _) = gateway(
        listeners,
        &[tls("a", "'*.foo.com'", "v1"), tls("b", "b.foo.com, else.com", "v2"), route(Kind::TcpRoute, "c", tcp)],
    );
    let at = |bind: u16, name: Option<&str>| {
        let listener = listeners.port(bind)?.named(name)?;
        let passage = listener.passage(name)?;
        let of = |place: &mesh_core::l7::Backend| match &place.target {
            Target::Cluster(key) => format!("{}*{}", key.service.name.split('.').next().unwrap(), place.weight),
            Target::Broken(_) => format!("broken*{}", place.weight),
        };
        Some(passage.forward.backends().iter().map(of).collect::<Vec<_>>().join(" "))
    };
    assert_eq!(at(443, Some("a.foo.com")).as_deref(), Some("v1*1"));
    assert_eq!(at(443, Some("b.foo.com")).as_deref(), Some("v2*1"));
    assert_eq!(at(443, Some("else.com")), None);
    assert_eq!(at(82, None).as_deref(), Some("v1*3 broken*1"));
}

#[test]
fn features_GA_TCPRouteMultipleRoutesAttachment_and_the_same_of_TLS() {
    let listeners =
        "[{name: tls, port: 443, protocol: TLS, tls: {mode: Passthrough}}, {name: tcp, port: 82, protocol: TCP}]";
    let to = |kind: Kind, name: &str, hosts: &str, service: &str, when: &str| {
        let spec = format!(
            "{{parentRefs: [{{name: edge}}], {hosts} rules: [{{backendRefs: [{{name: {service}, port: 80}}]}}]}}"
        );
        made(route(kind, name, &spec), when)
    };
    for (first, second, expected) in [("2026-01-02", "2026-01-01", "v2"), ("2026-01-01", "2026-01-02", "v1")] {
        let all = [
            to(Kind::TcpRoute, "a", "", "v1", first),
            to(Kind::TcpRoute, "b", "", "v2", second),
            to(Kind::TlsRoute, "a", "hostnames: [a.com],", "v1", first),
            to(Kind::TlsRoute, "b", "hostnames: [a.com],", "v2", second),
        ];
        let (listeners, _) = gateway(listeners, &all);
        for (port, name) in [(82, None), (443, Some("a.com"))] {
            let passage = listeners.port(port).unwrap().named(name).unwrap().passage(name).unwrap();
            let Target::Cluster(key) = &passage.forward.backends()[0].target else { panic!("{passage:?}") };
            assert!(key.service.name.starts_with(expected), "{port} {first} {second}: {}", key.service);
        }
    }
}

#[test]
fn features_GA_what_listeners_are_told() {
    let listeners = "[{name: http, port: 80, protocol: HTTP, allowedRoutes: {kinds: [{kind: HTTPRoute}, {kind: TCPRoute}]}}, \
        {name: odd, port: 81, protocol: HTTP, allowedRoutes: {kinds: [{group: example.com, kind: X}]}}, \
        {name: tls, port: 443, protocol: HTTPS, tls: {certificateRefs: [{name: c, namespace: far}]}}, \
        {name: tcp, port: 443, protocol: TCP}, {name: udp, port: 53, protocol: UDP}, {name: maps, port: 444, protocol: HTTPS, tls: {certificateRefs: [{name: c, kind: ConfigMap}]}},
        {name: strange, port: 1111, protocol: INVALID}]";
    let spec = format!("{{gatewayClassName: undermesh, listeners: {listeners}}}");
    let to = "rules: [{backendRefs: [{name: nobody, port: 80}]}]";
    let all = [
        object(Kind::Gateway, "shop", "edge", &spec),
        // Attached all the same, and once, though it leads nowhere and names it twice.
        route(
            Kind::HttpRoute,
            "a",
            &format!("{{parentRefs: [{{name: edge, sectionName: http}}, {{name: edge, port: 80}}], {to}}}"),
        ),
        route(Kind::HttpRoute, "b", &format!("{{parentRefs: [{{name: edge, sectionName: odd}}], {to}}}")),
    ];
    let (objects, settings) = (objects(&all), Settings::default());
    let view = crate::index::build(&objects, &settings);
    let told = &view.listeners_told.gateways[&NamespacedName::new("shop", "edge")];
    let word = |why: &Option<(&'static str, String)>| why.as_ref().map_or("", |why| why.0);
    let found: Vec<String> = told
        .iter()
        .map(|one| {
            let words = [word(&one.refused), word(&one.conflict), word(&one.unresolved)].join(",");
            format!("{} {} {} {words}", one.name, one.kinds.join("+"), one.attached)
        })
        .collect();
    assert_eq!(
        found,
        [
            "http HTTPRoute 1 ,,InvalidRouteKinds",
            "odd  0 ,,InvalidRouteKinds",
            "tls HTTPRoute+GRPCRoute 0 ,,RefNotPermitted",
            "tcp TCPRoute 0 ,ProtocolConflict,",
            "udp UDPRoute 0 ,,",
            "maps HTTPRoute+GRPCRoute 0 ,,InvalidCertificateRef",
            "strange  0 UnsupportedProtocol,,",
        ]
    );
    // The route is in force at a listener that is served, and told so.
    let key = |name: &str| Key { kind: Kind::HttpRoute, namespace: "shop".into(), name: name.into() };
    let belonging = view.resolved.belonging(&key("a"), &view.served, &view.listening).unwrap();
    assert_eq!((belonging.parents.len(), belonging.served.len()), (2, 2), "{belonging:?}");
    assert!(!view.problems.iter().any(|(of, problem)| *of == key("a") && problem.message.contains("not in force")));
}

/// A pod of the gateway, with the annotation `proxy.istio.io/config`.
fn pod(name: &str, account: &str, config: &str) -> Json {
    json!({ "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": name, "namespace": "shop", "labels": { "gateway.networking.k8s.io/gateway-name": "edge" },
            "annotations": { "proxy.istio.io/config": config } },
        "spec": { "nodeName": "n1", "serviceAccountName": account }, "status": { "phase": "Running" } })
}

#[test]
fn features_GW_8_what_stands_before_a_gateway_it_says_or_its_pods_or_the_mesh_settings() {
    let trusts = |count: u32| format!("gatewayTopology: {{numTrustedProxies: {count}}}");
    let (account, proxy) = ("edge-undermesh", "gatewayTopology: {proxyProtocol: {}}");
    let settings = |text: &str| {
        json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "undermesh", "namespace": "undermesh-system" },
            "data": { "mesh": format!("defaultConfig: {{{text}}}") } })
    };
    for (what, own, more, expected) in [
        ("nobody says anything", "", vec![], (0, false)),
        ("it says it", &*trusts(2), vec![], (2, false)),
        ("the mesh says it", "", vec![settings(&trusts(3))], (3, false)),
        ("both do, of different things", proxy, vec![settings(&trusts(3))], (3, true)),
        ("both do, of the same", &*trusts(2), vec![settings(&trusts(3))], (2, false)),
        ("its pods do", "", vec![pod("a", account, proxy), settings(&trusts(3))], (3, true)),
        ("its pods and it do", &*trusts(2), vec![pod("a", account, &trusts(1))], (2, false)),
        (
            "pods that disagree",
            "",
            vec![pod("a", account, &trusts(2)), pod("b", account, &trusts(1)), settings(&trusts(3))],
            (1, false),
        ),
        ("a pod of it that says nothing", "", vec![pod("a", account, &trusts(2)), pod("b", account, "")], (0, false)),
        ("pods of somebody else", "", vec![pod("a", "default", proxy)], (0, false)),
    ] {
        let annotations = json!({ "proxy.istio.io/config": own });
        let spec = format!(
            "{{gatewayClassName: undermesh, listeners: {HTTP}, infrastructure: {{annotations: {annotations}}}}}"
        );
        let all = [vec![object(Kind::Gateway, "shop", "edge", &spec)], more].concat();
        let view = crate::index::build(&objects(&all), &Settings::default());
        let found = view.listeners[&NamespacedName::new("shop", "edge")].topology().clone();
        assert_eq!((found.trusted_proxies, found.proxy_protocol), expected, "{what}");
    }
}

#[test]
fn gateways_of_others_are_none_of_ours() {
    let spec = "{gatewayClassName: nginx, listeners: [{name: http, port: 80, protocol: HTTP}]}";
    let all = [object(Kind::Gateway, "shop", "edge", spec)];
    let (objects, settings) = (objects(&all), Settings::default());
    let indexed = super::super::super::routing::index(&objects, &settings);
    assert!(
        super::super::index(&settings, &super::super::Around::new(&objects, &settings, &indexed), &Served::new())
            .listeners
            .is_empty()
    );
}
