//! Istio's Gateways and VirtualServices in, what a gateway listens for and does out.

use mesh_core::listener::{self, Encryption, Listeners, Serves};
use mesh_core::spoken::TlsVersion;

use super::*;
use crate::index::certificates::Part;
use crate::resource::Labels;
use crate::resource::waypoint::TUNNEL;

/// A gateway of the Gateway API whose pods are called as Istio's Gateways select them.
fn edge() -> Json {
    let spec = "{gatewayClassName: undermesh, infrastructure: {labels: {istio: ingressgateway}}, \
        listeners: [{name: own, port: 80, protocol: HTTP, hostname: own.example}]}";
    object(Kind::Gateway, "shop", "edge", spec)
}

fn made(more: &[Json]) -> Made {
    made_of(&[vec![edge()], more.to_vec()].concat())
}

fn made_of(all: &[Json]) -> Made {
    let (objects, settings) = (objects(all), Settings::default());
    let indexed = super::super::super::routing::index(&objects, &settings);
    super::super::index(&settings, &Around::new(&objects, &settings, &indexed), &Served::new())
}

fn listened(made: &Made) -> &Listeners {
    &made.listeners[&NamespacedName::new("shop", "edge")]
}

fn gateway(namespace: &str, name: &str, servers: &str) -> Json {
    object(Kind::IstioGateway, namespace, name, &format!("{{selector: {{istio: ingressgateway}}, servers: {servers}}}"))
}

fn routes(namespace: &str, name: &str, gateways: &str, hosts: &str, rules: &str) -> Json {
    object(
        Kind::VirtualService,
        namespace,
        name,
        &format!("{{gateways: [{gateways}], hosts: [{hosts}], http: [{rules}]}}"),
    )
}

fn to(service: &str) -> String {
    format!("{{route: [{{destination: {{host: {service}, port: {{number: 80}}}}}}]}}")
}

/// Where a GET of this URL goes.
fn ask(listeners: &Listeners, bind: u16, sni: Option<&str>, url: &str) -> String {
    ask_by("http", listeners, bind, sni, url)
}

/// The same of a client that came so to whoever is trusted.
fn ask_by(scheme: &str, listeners: &Listeners, bind: u16, sni: Option<&str>, url: &str) -> String {
    let sent = sent(&format!("GET http://{url}"));
    let Some(port) = listeners.port(bind) else { return "closed".to_owned() };
    let listener = match port.request(listener::Made::For(sni), sent.authority.host()) {
        Ok(listener) => listener,
        Err(astray) => return astray.to_string(),
    };
    let table = match &listener.serves {
        Serves::Http(table) => table,
        Serves::Closed(why) => return format!("closed: {why}"),
        Serves::Bytes(_) => return "bytes".to_owned(),
        Serves::Datagrams(_) => return "datagrams".to_owned(),
    };
    let request = Request {
        method: &sent.method,
        scheme,
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
        Ok(Decision { outcome: Outcome::Redirect(redirect), condition, .. }) => redirect.location(&request, condition),
        Ok(decision) => format!("{:?}", decision.outcome),
    }
}

const PLAIN: &str = "[{port: {number: 80, name: http, protocol: HTTP}, hosts: ['*']}]";

#[test]
fn features_B15_servers_and_virtual_services_meet_by_gateway_and_host() {
    let made = made(&[
        gateway(
            "shop",
            "one",
            "[{port: {number: 80, name: http, protocol: HTTP}, hosts: [httpbin.example.com, '*.shop.com']}]",
        ),
        gateway(
            "far",
            "two",
            "[{port: {number: 80, name: http, protocol: HTTP}, hosts: ['./*.far.com', 'shop/x.far.com']}]",
        ),
        routes(
            "shop",
            "a",
            "one",
            "httpbin.example.com",
            &format!("{{match: [{{uri: {{prefix: /status}}}}], {}", &to("v1")[1..]),
        ),
        routes("shop", "b", "shop/one", "'*'", &to("v2")),
        routes("shop", "c", "far/two", "'*.far.com'", &to("v1")),
        routes("far", "d", "two", "a.far.com", &to("stock")),
        routes("far", "e", "one", "e.shop.com", &to("stock")),
        object(
            Kind::VirtualService,
            "far",
            "hidden",
            &format!("{{gateways: [shop/one], hosts: [h.shop.com], exportTo: [.], http: [{}]}}", to("stock")),
        ),
        routes("far", "f", "shop/one", "f.shop.com", &format!("{{match: [{{gateways: [two]}}], {}", &to("stock")[1..])),
    ]);
    let all = listened(&made);
    for (url, expected) in [
        ("httpbin.example.com/status/200", "v1:80"),
        // What a wildcard takes comes after what the name's own rules say.
        ("httpbin.example.com/headers", "v2:80"),
        ("x.shop.com/", "v2:80"),
        // Of its own namespace only, or of the one that is named.
        ("x.far.com/", "v1:80"),
        ("a.far.com/", "stock:80"),
        ("b.far.com/", "404"),
        // `one` of its own namespace is another Gateway, and what is not exported is not seen.
        ("e.shop.com/", "v2:80"),
        ("h.shop.com/", "v2:80"),
        // A rule that is for another Gateway is none here.
        ("f.shop.com/", "v2:80"),
        ("other.com/", "no listener has the host"),
        ("own.example/", "404"),
    ] {
        assert_eq!(ask(all, 80, None, url), expected, "{url}");
    }
    let acted: Vec<String> = made.in_force.iter().map(ToString::to_string).collect();
    for key in ["VirtualService shop/a", "VirtualService far/d", "Gateway.networking.istio.io far/two"] {
        assert!(acted.iter().any(|one| one == key), "{key}: {acted:?}");
    }
    assert!(!acted.iter().any(|one| one == "VirtualService far/e"), "{acted:?}");
}

#[test]
fn ports_of_a_service_that_lead_to_one_of_the_pods_are_one_listener() {
    let mut edge = edge();
    edge["metadata"]["annotations"] = json!({ "undermesh.io/service-ports": "http2=80:8080" });
    let server = |number: u16, host: &str| {
        format!("[{{port: {{number: {number}, name: http, protocol: HTTP}}, hosts: ['{host}']}}]")
    };
    let more = [
        gateway("shop", "one", &server(80, "a.com")),
        gateway("shop", "two", &server(8080, "*")),
        routes("shop", "a", "one", "a.com", &to("v1")),
        routes("shop", "b", "two", "'*'", &to("v2")),
    ];
    let made = made_of(&[vec![edge], more.to_vec()].concat());
    let all = listened(&made);
    let expected = [(8080, "a.com/", "v1:80"), (8080, "b.com/", "v2:80"), (80, "a.com/", "closed")];
    for (bind, url, expected) in expected {
        assert_eq!(ask(all, bind, None, url), expected, "{bind} {url}");
    }
    // Its own listener comes from its own port as well, and the first server says what its clients think of.
    assert_eq!(ask(all, 8080, None, "own.example/"), "404");
    let ports: Vec<_> = all.all().iter().map(|one| (one.port, one.bind)).collect();
    assert_eq!(ports, [(80, 8080), (80, 8080)]);
    assert!(made.problems.is_empty(), "{:?}", made.problems);
}

#[test]
fn gateways_that_select_nobody_of_ours_are_not_acted_on() {
    let spec = format!("{{selector: {{istio: egressgateway}}, servers: {PLAIN}}}");
    let made =
        made(&[object(Kind::IstioGateway, "shop", "one", &spec), routes("shop", "a", "one", "x.com", &to("v1"))]);
    assert_eq!(ask(listened(&made), 80, None, "x.com/"), "no listener has the host");
    assert!(made.in_force.is_empty());
}

#[test]
fn features_GW_httpsRedirect_comes_before_routes_and_is_for_its_hosts() {
    let servers = "[{port: {number: 80, name: a, protocol: HTTP}, hosts: [a.com], tls: {httpsRedirect: true}}, \
        {port: {number: 80, name: b, protocol: HTTP}, hosts: [b.com]}]";
    let made = made(&[gateway("shop", "one", servers), routes("shop", "a", "one", "a.com, b.com", &to("v1"))]);
    assert_eq!(ask(listened(&made), 80, None, "a.com/x?y=1"), "https://a.com/x?y=1");
    assert_eq!(ask(listened(&made), 80, None, "b.com/x"), "v1:80");
    // Who came by HTTPS to a proxy in front is not sent there again.
    let by_https = ["a.com/x", "b.com/x"].map(|url| ask_by("https", listened(&made), 80, None, url));
    assert_eq!(by_https, ["v1:80", "v1:80"]);
    assert!(made.in_force.iter().any(|key| key.kind == Kind::VirtualService));
    let none = self::made(&[gateway("shop", "one", servers)]);
    let bare = ["http", "https"].map(|scheme| ask_by(scheme, listened(&none), 80, None, "a.com/x"));
    assert_eq!(bare, ["https://a.com/x", "404"]);
}

#[test]
fn what_is_asked_for_by_https_is_not_served_without_by_a_name_of_it() {
    let redirect = |host: &str| {
        format!("{{port: {{number: 80, name: a, protocol: HTTP}}, hosts: [{host}], tls: {{httpsRedirect: true}}}}")
    };
    let plain = |host: &str| format!("{{port: {{number: 80, name: b, protocol: HTTP}}, hosts: [{host}]}}");
    for (servers, expected) in [
        ([redirect("'*.example.com'"), plain("'*'")], ["https://a.example.com/", "https://b.example.com/", "v1:80"]),
        ([plain("'*'"), redirect("'*.example.com'")], ["https://a.example.com/", "https://b.example.com/", "v1:80"]),
        // The server with the narrower host says what is done.
        (
            [redirect("'*.example.com'"), plain("a.example.com")],
            ["v1:80", "https://b.example.com/", "no listener has the host"],
        ),
        ([redirect("'*'"), plain("'*.example.com'")], ["v1:80", "v1:80", "https://a.org/"]),
        ([redirect("a.example.com"), plain("'*'")], ["https://a.example.com/", "v1:80", "v1:80"]),
    ] {
        let hosts = "a.example.com, '*.example.com', '*'";
        let servers = format!("[{}]", servers.join(", "));
        let made = made(&[gateway("shop", "one", &servers), routes("shop", "a", "one", hosts, &to("v1"))]);
        let asked = ["a.example.com/", "b.example.com/", "a.org/"].map(|url| ask(listened(&made), 80, None, url));
        assert_eq!(asked, expected, "{servers}");
    }
}

#[test]
fn a_virtual_service_counts_at_gateways_whose_pods_see_it_and_the_oldest_first() {
    let hidden = |name: &str, export: &str| {
        object(
            Kind::VirtualService,
            "far",
            name,
            &format!("{{gateways: [far/one], hosts: [a.com], exportTo: [{export}], http: [{}]}}", to("stock")),
        )
    };
    for (export, expected) in [("'*'", "stock:80"), ("shop", "stock:80"), (".", "404"), ("far", "404")] {
        // The pods are of shop.
        let made = made(&[gateway("far", "one", PLAIN), hidden("a", export)]);
        assert_eq!(ask(listened(&made), 80, None, "a.com/"), expected, "{export}");
    }
    // By the order of their hosts the younger one would come first.
    let server = "[{port: {number: 9000, name: tcp, protocol: TCP}, hosts: ['*']}]";
    let tcp = |name: &str, host: &str, service: &str| {
        let spec = "{gateways: [one], hosts: [HOST], tcp: [{route: [{destination: {host: TO, port: {number: 80}}}]}]}";
        object(Kind::VirtualService, "shop", name, &spec.replace("HOST", host).replace("TO", service))
    };
    let dated = super::made;
    let made = made(&[
        gateway("shop", "one", server),
        dated(tcp("young", "a.com", "v1"), "2024-02-02"),
        dated(tcp("old", "b.com", "v2"), "2024-01-01"),
    ]);
    assert_eq!(goes(&made, 9000, None).as_deref(), Some("v2"));
}

/// Where bytes go.
fn goes(made: &Made, bind: u16, name: Option<&str>) -> Option<String> {
    let passage = listened(made).port(bind)?.named(name)?.passage(name)?;
    match &passage.forward.backends()[0].target {
        Target::Cluster(key) => Some(key.service.name.split('.').next().unwrap().to_owned()),
        Target::Broken(why) => Some(why.to_string()),
    }
}

/// What a server with this TLS comes to, and what was said.
fn secured(tls: &str) -> (Made, String) {
    let server = format!("[{{port: {{number: 443, name: https, protocol: HTTPS}}, hosts: [a.com], tls: {{{tls}}}}}]");
    let made = made(&[gateway("shop", "one", &server), routes("shop", "a", "one", "a.com", &to("v1"))]);
    let said: Vec<String> = made.problems.iter().map(|(_, problem)| problem.message.clone()).collect();
    (made, said.join("; "))
}

#[test]
fn features_B16_TLS_of_servers() {
    let (made, said) = secured("mode: SIMPLE, credentialName: c, minProtocolVersion: TLSV1_3");
    let listener = listened(&made).port(443).unwrap().named(Some("a.com")).unwrap();
    let Encryption::Ends(tls) = &listener.encryption else { panic!("{listener:?}") };
    assert_eq!(
        (tls.certificates.as_slice(), tls.spoken.oldest, &tls.clients),
        (&["shop/c".into()][..], TlsVersion::V1_3, &None)
    );
    assert_eq!(ask(listened(&made), 443, Some("a.com"), "a.com/"), "v1:80");
    assert_eq!(said, "");

    let spki = STANDARD_32;
    let (made, _) = secured(&format!(
        "mode: MUTUAL, credentialName: c, subjectAltNames: [x], verifyCertificateSpki: ['{spki}'], verifyCertificateHash: ['{}']",
        "0a".repeat(32)
    ));
    let listener = listened(&made).port(443).unwrap().named(Some("a.com")).unwrap();
    let Encryption::Ends(tls) = &listener.encryption else { panic!("{listener:?}") };
    let clients = tls.clients.as_ref().unwrap();
    assert!(clients.required && clients.keys == [[0; 32]] && clients.hashes == [[10; 32]] && clients.names == ["x"]);
    assert_eq!(clients.roots, ["shop/c-cacert"]);
    let named: Vec<_> = made
        .references
        .iter()
        .map(|one| (one.holder.to_string(), one.or.as_ref().map(ToString::to_string), one.part))
        .collect();
    let expected = [
        ("Secret shop/c".to_owned(), None, Part::Shown),
        ("Secret shop/c-cacert".to_owned(), Some("Secret shop/c".to_owned()), Part::Believed),
    ];
    assert_eq!(named, expected);

    // Who need not show a certificate is let in without one; one that is shown is looked at as closely.
    for (mode, required) in [("MUTUAL", true), ("OPTIONAL_MUTUAL", false)] {
        let (made, said) = secured(&format!("mode: {mode}, credentialName: c, subjectAltNames: [x]"));
        let listener = listened(&made).port(443).unwrap().named(Some("a.com")).unwrap();
        let Encryption::Ends(tls) = &listener.encryption else { panic!("{listener:?}") };
        let clients = tls.clients.as_ref().unwrap();
        assert_eq!((clients.required, clients.unverified, said.as_str()), (required, false, ""), "{mode}");
        assert!(clients.names == ["x"] && clients.roots == ["shop/c-cacert"], "{mode}: {clients:?}");
    }

    for (tls, oldest, suites, warned) in [
        (
            "cipherSuites: [ECDHE-RSA-AES256-GCM-SHA384]",
            TlsVersion::V1_2,
            &["TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384"][..],
            "",
        ),
        ("cipherSuites: [AES128-SHA]", TlsVersion::V1_3, &[], "\"AES128-SHA\" is not spoken"),
    ] {
        let (made, said) = secured(&format!("mode: SIMPLE, credentialName: c, {tls}"));
        let listener = listened(&made).port(443).unwrap().named(Some("a.com")).unwrap();
        let Encryption::Ends(read) = &listener.encryption else { panic!("{listener:?}") };
        assert_eq!(
            (read.spoken.oldest, read.spoken.suites.iter().map(|s| s.as_str()).collect::<Vec<_>>()),
            (oldest, suites.to_vec())
        );
        assert_eq!(said, warned);
    }
}

/// 32 bytes of nothing.
const STANDARD_32: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";

#[test]
fn what_cannot_be_served_is_closed_and_told() {
    for (tls, expected) in [
        ("mode: AUTO_PASSTHROUGH", "AUTO_PASSTHROUGH is not served"),
        ("mode: ISTIO_MUTUAL, subjectAltNames: [a]", "who comes from the mesh is not told apart here"),
        ("mode: SIMPLE, serverCertificate: /a, privateKey: /b", "files of the proxy are not read"),
        (
            "mode: SIMPLE, credentialName: 'kubernetes-gateway://far/c'",
            "\"kubernetes-gateway://far/c\" is no name of a Secret of shop",
        ),
        ("mode: SIMPLE, credentialName: c, maxProtocolVersion: TLSV1_1", "nothing before TLS 1.2 is spoken"),
        (
            "mode: SIMPLE, credentialName: c, maxProtocolVersion: TLSV1_2, cipherSuites: [AES128-SHA]",
            "\"AES128-SHA\" is not spoken; none of them is spoken, and TLS 1.3 is not wanted",
        ),
        ("mode: MUTUAL, credentialName: c, verifyCertificateHash: [ab]", "it is no SHA-256"),
    ] {
        let (made, said) = secured(tls);
        let last = expected.rsplit("; ").next().unwrap();
        assert!(said.contains(last), "{tls}: {said}");
        let listener = listened(&made).port(443).unwrap().named(Some("a.com")).unwrap();
        assert!(matches!(&listener.serves, Serves::Closed(why) if *why == last), "{tls}: {listener:?}");
    }
    for (bind, listens) in [("127.0.0.1", false), ("192.0.2.1", false), ("0.0.0.0", true), ("'::'", true)] {
        let bound = format!("[{{port: {{number: 81, name: a, protocol: HTTP}}, hosts: ['*'], bind: {bind}}}]");
        let made = made(&[gateway("shop", "one", &bound)]);
        let told = made.problems.iter().filter(|(_, problem)| problem.field.ends_with(".bind")).count();
        assert_eq!((listened(&made).port(81).is_some(), told == 0), (listens, listens), "{bind}: {:?}", made.problems);
    }
}

#[test]
fn features_GW_4_a_server_with_the_mesh_s_own_tls_serves_who_comes_in_tunnels() {
    let (mutual, said) = secured("mode: ISTIO_MUTUAL");
    let port = listened(&mutual).port(443).unwrap();
    assert_eq!((port.named(Some("a.com")).unwrap().encryption.clone(), said.as_str()), (Encryption::Mesh, ""));
    let found = port.request(listener::Made::Inside, "a.com").map(|found| matches!(found.serves, Serves::Http(_)));
    assert_eq!((found, mutual.references.len()), (Ok(true), 0));
    assert_eq!(ask(listened(&mutual), 443, None, "a.com/"), "the connection is another listener's");
    let (_, said) = secured("mode: ISTIO_MUTUAL, maxProtocolVersion: TLSV1_2");
    assert_eq!(said, "clients come in tunnels of the mesh, whose versions and suites are the mesh's");
    // Of bytes there is no name.
    let server = "[{port: {number: 443, name: tls, protocol: TLS}, hosts: [a.com], tls: {mode: ISTIO_MUTUAL}}]";
    let rule = "{gateways: [one], hosts: [a.com], tcp: [{route: [{destination: {host: v1, port: {number: 80}}}]}]}";
    let bytes = made(&[gateway("shop", "one", server), object(Kind::VirtualService, "shop", "a", rule)]);
    assert_eq!(bytes.problems.len(), 0, "{:?}", bytes.problems);
    let passage = listened(&bytes).port(443).unwrap().all_inside().unwrap().passage(None).unwrap();
    assert_eq!(passage.hosts, [mesh_core::l7::HostPattern::Any]);
    // Where both say where they go the oldest says it.
    let second = object(Kind::VirtualService, "shop", "b", &rule.replace("v1", "v2"));
    let both = made(&[gateway("shop", "one", server), object(Kind::VirtualService, "shop", "a", rule), second]);
    let told: Vec<_> = both.problems.iter().map(|(key, problem)| (key.to_string(), problem.field.as_str())).collect();
    assert_eq!(told, [("VirtualService shop/b".to_owned(), "spec.tcp[0]")]);
    let other = server.replace("a.com", "b.com");
    let two = made(&[gateway("shop", "one", server), gateway("shop", "two", &other)]);
    let told: Vec<_> = two.problems.iter().filter(|(_, problem)| problem.message.contains("several servers")).collect();
    assert_eq!(told.len(), 2, "{:?}", two.problems);
}

#[test]
fn features_GW_4_who_writes_the_mesh_s_own_tls_hears_that_no_pod_takes_tunnels() {
    let server = "[{port: {number: 443, name: tls, protocol: TLS}, hosts: [a.com], tls: {mode: ISTIO_MUTUAL}}]";
    let (objects, settings) = (objects(&[edge(), gateway("shop", "one", server)]), Settings::default());
    let indexed = super::super::super::routing::index(&objects, &settings);
    let pod = |tunnel: &str| Labels::from([(TUNNEL.to_owned(), tunnel.to_owned())]);
    for (pods, expected) in
        [(vec![], 0), (vec![pod("none")], 1), (vec![Labels::new()], 1), (vec![pod("none"), pod("http")], 0)]
    {
        let pods = [(NamespacedName::new("shop", "edge"), pods.iter().cloned().collect())].into();
        let around = Around::new(&objects, &settings, &indexed).with_pods(pods, Default::default());
        let made = super::super::index(&settings, &around, &Served::new());
        let told = made.problems.iter().filter(|(_, problem)| problem.field == "spec.servers[0].tls.mode");
        assert_eq!(told.count(), expected, "{:?}", made.problems);
    }
}

#[test]
fn features_GW_2_a_server_of_any_kind_of_http_is_listened_for() {
    for protocol in ["GRPC-WEB", "GRPC", "HTTP", "HTTP2"] {
        let server = format!("[{{port: {{number: 81, name: a, protocol: {protocol}}}, hosts: ['*']}}]");
        let made = made(&[gateway("shop", "one", &server)]);
        assert_eq!(
            (listened(&made).port(81).is_some(), made.problems.len()),
            (true, 0),
            "{protocol}: {:?}",
            made.problems
        );
    }
}

#[test]
fn features_B16_what_is_passed_on_goes_by_name_and_plain_connections_by_port() {
    let servers = "[{port: {number: 443, name: tls, protocol: TLS}, hosts: [nginx.example.com, '*.db.com'], tls: {mode: PASSTHROUGH}}, \
        {port: {number: 9000, name: tcp, protocol: TCP}, hosts: ['*']}]";
    let rule = |sni: &str, service: &str| {
        format!(
            "{{match: [{{port: 443, sniHosts: [{sni}]}}], route: [{{destination: {{host: {service}, port: {{number: 80}}}}}}]}}"
        )
    };
    let spec = format!(
        "{{gateways: [one], hosts: ['*'], tls: [{}, {}, {}, {}], tcp: [{{match: [{{port: 9000}}], route: [{{destination: {{host: v3}}}}]}}, \
         {{match: [{{port: 1}}], route: [{{destination: {{host: v1}}}}]}}]}}",
        // Its other name is narrow, this one is not.
        rule("c.db.com, '*.db.com'", "v1"),
        rule("d.db.com", "v3"),
        rule("a.db.com", "v2"),
        rule("other.com", "v3")
    );
    let made = made(&[gateway("shop", "one", servers), object(Kind::VirtualService, "shop", "a", &spec)]);
    let at = |bind: u16, name: Option<&str>| goes(&made, bind, name);
    assert_eq!(at(443, Some("d.db.com")).as_deref(), Some("v3"));
    assert_eq!(at(443, Some("b.db.com")).as_deref(), Some("v1"));
    assert_eq!(at(443, Some("a.db.com")).as_deref(), Some("v2"));
    assert_eq!((at(443, Some("nginx.example.com")), at(443, Some("other.com"))), (None, None));
    assert_eq!(at(9000, None).as_deref(), Some("v3"));
}

#[test]
fn what_destination_rules_say_of_the_places_of_a_gateway_is_in_force_there() {
    let rule = "{host: v1, trafficPolicy: {connectionPool: {tcp: {maxConnections: 1}}}, subsets: [{name: s, labels: {version: x}}]}";
    let to = "{route: [{destination: {host: v1, port: {number: 80}, subset: s}}]}";
    let made = made(&[
        gateway("shop", "one", PLAIN),
        routes("shop", "a", "one", "x.com", to),
        object(Kind::DestinationRule, "shop", "r", rule),
        object(Kind::DestinationRule, "shop", "other", "{host: v2}"),
    ]);
    let clusters = &made.clusters[&NamespacedName::new("shop", "edge")];
    let cluster = clusters.iter().find(|cluster| &*cluster.key.subset == "s").unwrap();
    assert!(cluster.labels.iter().any(|(key, value)| (key.as_str(), value.as_str()) == ("version", "x")));
    let acted: Vec<String> = made.in_force.iter().map(ToString::to_string).collect();
    assert!(
        acted.contains(&"DestinationRule shop/r".to_owned())
            && !acted.contains(&"DestinationRule shop/other".to_owned())
    );
    assert!(!made.tables.contains_key(&NamespacedName::new("shop", "edge")), "it is no waypoint");
}

#[test]
fn features_GW_7_services_that_ask_for_it_are_reached_through_their_waypoints() {
    for (own, of_namespace, expected) in
        [("", "", false), ("true", "", true), ("", "true", true), ("false", "true", false), ("yes", "", false)]
    {
        let label = |value: &str| match value {
            "" => json!({}),
            value => json!({ "istio.io/ingress-use-waypoint": value }),
        };
        let mut service = service("shop", "front", &[80]);
        service["metadata"]["labels"] = label(own);
        let namespace = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "shop", "labels": label(of_namespace) } });
        let all =
            [gateway("shop", "one", PLAIN), routes("shop", "a", "one", "x.com", &to("front")), service, namespace];
        let made = made(&all);
        let through = listened(&made).waypoint_services().iter().any(|one| one.name.starts_with("front."));
        assert_eq!(through, expected, "{own:?} {of_namespace:?}");
    }
    let spec = "{hosts: [out.example], ports: [{number: 80, name: http, protocol: HTTP}], location: MESH_EXTERNAL, resolution: DNS}";
    for (own, expected) in [("{}", false), ("{istio.io/ingress-use-waypoint: 'true'}", true)] {
        let mut entry = object(Kind::ServiceEntry, "shop", "out", spec);
        entry["metadata"]["labels"] = serde_saphyr::from_str(own).unwrap();
        let made =
            made(&[gateway("shop", "one", PLAIN), routes("shop", "a", "one", "x.com", &to("out.example")), entry]);
        let through = listened(&made).waypoint_services().iter().any(|one| one.name == "out.example");
        assert_eq!(through, expected, "{own}");
    }
}

#[test]
fn features_B18_a_host_that_nobody_knows_is_502_at_an_egress_gateway_where_only_the_registry_counts() {
    let spec = "{gatewayClassName: undermesh, infrastructure: {labels: {istio: egressgateway}}, \
        listeners: [{name: own, port: 8099, protocol: HTTP, hostname: own.example}]}";
    let exit = object(Kind::Gateway, "shop", "exit", spec);
    let server = "[{port: {number: 80, name: http, protocol: HTTP}, hosts: [v1.example.com]}]";
    let out = object(
        Kind::IstioGateway,
        "shop",
        "out",
        &format!("{{selector: {{istio: egressgateway}}, servers: {server}}}"),
    );
    let all =
        [edge(), exit, out, gateway("shop", "in", PLAIN), routes("shop", "a", "out", "v1.example.com", &to("v1"))];
    for (registry_only, expected) in [(true, "BAD_GATEWAY"), (false, "no listener has the host")] {
        let settings = Settings { registry_only, ..Settings::default() };
        let objects = objects(&all);
        let indexed = super::super::super::routing::index(&objects, &settings);
        let made = super::super::index(&settings, &Around::new(&objects, &settings, &indexed), &Served::new());
        let exit = &made.listeners[&NamespacedName::new("shop", "exit")];
        assert_eq!(ask(exit, 80, None, "v1.example.com/"), "v1:80");
        let other = ask(exit, 80, None, "other.example.com/");
        assert!(other.contains(expected) || other.contains("502"), "{other}");
        // It is nothing to those who come in.
        assert_eq!(ask(listened(&made), 80, None, "other.example.com/"), "404");
    }
}
