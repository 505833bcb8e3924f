//! Manifests in, where connections go out.

use mesh_core::l4::{Ask, Choice, ServerName};
use rand::SeedableRng;
use rand::rngs::StdRng;
use serde_json::{Value as Json, json};

use super::*;
use crate::index::routing;
use crate::manifest::file;
use crate::resource::catalog::{Catalog, Scan};

fn object(kind: Kind, namespace: &str, name: &str, spec: &str) -> Json {
    let spec: Json = serde_saphyr::from_str(spec).unwrap_or_else(|e| panic!("{spec}: {e}"));
    json!({ "apiVersion": kind.api_versions()[0], "kind": kind.name(), "spec": spec,
        "metadata": { "name": name, "namespace": namespace } })
}

/// A service with a port for each kind of protocol.
fn service(namespace: &str, name: &str) -> Json {
    let ports = [("tcp", 9000), ("tcp-more", 9001), ("tls", 443), ("other", 7000), ("http", 80)];
    let ports: Vec<Json> = ports.iter().map(|(name, port)| json!({ "name": name, "port": port })).collect();
    let mut service = object(Kind::Service, namespace, name, "{}");
    service["spec"] = json!({ "ports": ports, "selector": { "app": name } });
    service
}

fn made(more: &[Json]) -> Made {
    made_with(Settings::default(), more)
}

fn made_with(settings: Settings, more: &[Json]) -> Made {
    let objects = objects(more);
    let indexed = routing::index(&objects, &settings);
    super::index(&objects, &settings, &Around::new(&objects, &settings, &indexed))
}

fn objects(more: &[Json]) -> Objects {
    let mut all = vec![service("shop", "echo"), service("shop", "v1"), service("shop", "v2"), service("far", "away")];
    all.extend(more.iter().cloned());
    let text: Vec<String> = all.iter().map(|object| format!("---\n{object}\n")).collect();
    let read = file::read("a.yaml", text.concat().as_bytes());
    assert!(read.diagnoses.iter().all(|d| d.severity < crate::diagnosis::Severity::Error), "{:?}", read.diagnoses);
    let scan = Scan { found: read.found.into_iter().map(|(found, _)| found).collect(), ..Scan::default() };
    Catalog::default().apply(&scan).0
}

/// Where a connection to `echo` goes, in words: the port, then `~blog` for the client's namespace, `+app=a` for its label, `@a.example` for the name that it asks for, `@` for none.
fn ask(made: &Made, line: &str) -> String {
    let mut words = line.split(' ');
    let port = words.next().unwrap().parse().unwrap();
    let (mut namespace, mut server_name, mut labels) = ("shop", ServerName::Unread, None);
    for word in words {
        match word.split_at(1) {
            ("~", name) => namespace = name,
            ("+", label) => labels = label.split_once('=').map(|(key, value)| [(key.into(), value.into())].into()),
            ("@", "") => server_name = ServerName::Absent,
            ("@", name) => server_name = ServerName::Is(name),
            _ => panic!("{word}"),
        }
    }
    let Some(routes) = made.routes.get(&NamespacedName::new("shop", "echo.shop.svc.cluster.local")) else {
        return "-".into();
    };
    let ask = Ask { address: "198.19.0.1".parse().unwrap(), port, namespace, labels: labels.as_ref(), server_name };
    match routes.choose(&ask, &mut StdRng::seed_from_u64(1)) {
        Choice::Own => "-".to_owned(),
        Choice::Look => "look".to_owned(),
        Choice::To(key) => {
            let subset = if key.subset.is_empty() { String::new() } else { format!("/{}", key.subset) };
            format!("{}{subset}:{}", key.service.name.split('.').next().unwrap(), key.port)
        }
        Choice::Closed(_, why) => format!("closed: {why}"),
    }
}

/// Objects, and connections of their mesh with where they go.
type Row<'a> = (&'a [Json], &'a [(&'a str, &'a str)]);

fn check(rows: &[Row<'_>]) {
    for (objects, connections) in rows {
        let made = made(objects);
        for (line, expected) in *connections {
            assert_eq!(ask(&made, line), *expected, "{line}\nof {objects:#?}\n{:?}", made.problems);
        }
    }
}

fn virtual_service(spec: &str) -> Json {
    object(Kind::VirtualService, "shop", "o", spec)
}

#[test]
fn virtual_services_lead_connections() {
    let split = virtual_service(
        "{hosts: [echo], tcp: [{match: [{port: 9000}], route: [{destination: {host: v1, port: {number: 9001}}, weight: 0}, \
         {destination: {host: v2}, weight: 100}]}, {match: [{port: 9001, sourceNamespace: test}], route: [{destination: {host: v1}}]}]}",
    );
    let everything = virtual_service("{hosts: [echo], tcp: [{route: [{destination: {host: v1}}]}]}");
    let names = virtual_service(
        "{hosts: [echo, a.example, '*.b.example'], tls: [{match: [{sniHosts: [a.example], port: 443}], route: [{destination: {host: v1}}]}, \
         {match: [{sniHosts: ['*.b.example']}], route: [{destination: {host: v2}}]}]}",
    );
    let subnets = virtual_service(
        "{hosts: [echo], tcp: [{match: [{destinationSubnets: [198.18.0.0/16]}], route: [{destination: {host: v1}}]}, \
         {match: [{destinationSubnets: [198.19.0.1]}], route: [{destination: {host: v2}}]}]}",
    );
    let at_gateway = virtual_service(
        "{hosts: [echo], gateways: [mesh, in], tcp: [{match: [{gateways: [in]}], route: [{destination: {host: v1}}]}, \
         {match: [{sourceLabels: {app: a}}], route: [{destination: {host: v1}}]}]}",
    );
    let by_labels = virtual_service(
        "{hosts: [echo, a.example], tls: [{match: [{sniHosts: [a.example], sourceLabels: {app: b}}], route: [{destination: {host: v2}}]}], \
         tcp: [{match: [{sourceLabels: {app: a}, sourceNamespace: shop}], route: [{destination: {host: v1}}]}, {route: [{destination: {host: v2}}]}]}",
    );
    let nowhere =
        virtual_service("{hosts: [echo], tcp: [{match: [{port: 9000}], route: [{destination: {host: nothing}}]}]}");
    let http = virtual_service("{hosts: [echo], http: [{route: [{destination: {host: v1}}]}]}");
    check(&[
        (&[split], &[("9000", "v2:9000"), ("9001", "-"), ("9001 ~test", "v1:9001"), ("443", "-"), ("80", "-")]),
        // Ports of HTTP are the waypoint's.
        (&[everything], &[("9000", "v1:9000"), ("7000", "v1:7000"), ("443", "v1:443"), ("80", "-")]),
        (
            &[names],
            &[
                ("443", "look"),
                ("443 @a.example", "v1:443"),
                ("443 @x.b.example", "v2:443"),
                ("443 @other", "-"),
                ("443 @", "-"),
                ("7000", "look"),
                ("7000 @a.example", "-"),
                ("9000", "-"),
            ],
        ),
        (&[subnets], &[("9000", "v2:9000")]),
        (&[at_gateway], &[("9000", "-"), ("9000 +app=a", "v1:9000"), ("9000 +app=b", "-")]),
        (
            &[by_labels],
            &[
                ("9000 +app=a", "v1:9000"),
                ("9000 +app=a ~blog", "v2:9000"),
                ("9000", "v2:9000"),
                ("443 +app=b @a.example", "v2:443"),
                ("443 +app=a @a.example", "v1:443"),
            ],
        ),
        (
            &[nowhere],
            &[
                (
                    "9000",
                    "closed: there is no service and no ServiceEntry with the host nothing.shop.svc.cluster.local",
                ),
                ("9001", "-"),
            ],
        ),
        (&[http], &[("9000", "-")]),
    ]);
}

#[test]
fn routes_of_the_gateway_api_lead_connections() {
    let route = |kind, namespace: &str, more: &str| {
        object(
            kind,
            namespace,
            "o",
            &format!("{{parentRefs: [{{group: '', kind: Service, name: echo, namespace: shop}}], {more}}}"),
        )
    };
    let tcp = route(
        Kind::TcpRoute,
        "shop",
        "rules: [{backendRefs: [{name: v1, port: 9000, weight: 0}, {name: v2, port: 9001}]}]",
    );
    let consumer = route(Kind::TcpRoute, "far", "rules: [{backendRefs: [{name: away, port: 9000}]}]");
    let on_port = object(
        Kind::TcpRoute,
        "shop",
        "o",
        "{parentRefs: [{group: '', kind: Service, name: echo, port: 9001}], rules: [{backendRefs: [{name: v1, port: 9000}]}]}",
    );
    let tls = |name: &str, hosts: &str, to: &str| {
        let mut object = route(
            Kind::TlsRoute,
            "shop",
            &format!("hostnames: {hosts}, rules: [{{backendRefs: [{{name: {to}, port: 443}}]}}]"),
        );
        object["metadata"]["name"] = json!(name);
        object
    };
    let missing = route(Kind::TcpRoute, "shop", "rules: [{backendRefs: [{name: nothing, port: 1}]}]");
    check(&[
        (std::slice::from_ref(&tcp), &[("9000", "v2:9001"), ("80", "v2:9001")]),
        (&[tcp.clone(), consumer.clone()], &[("9000", "v2:9001"), ("9000 ~far", "away:9000")]),
        (&[consumer], &[("9000", "-"), ("9000 ~far", "away:9000")]),
        (&[on_port], &[("9000", "-"), ("9001", "v1:9000")]),
        (
            &[tls("a", "['*.b.example']", "v1"), tls("b", "[x.b.example]", "v2")],
            &[
                ("443", "look"),
                ("443 @x.b.example", "v2:443"),
                ("443 @y.b.example", "v1:443"),
                ("443 @other", "closed: no rule of the routes of this service means it"),
                ("443 @", "closed: no rule of the routes of this service means it"),
            ],
        ),
        // A name that another route has is that route's, however long the other names are.
        (
            &[tls("a", "[long.name.example, '*.b.example']", "v1"), tls("b", "[x.b.example]", "v2")],
            &[("443 @long.name.example", "v1:443"), ("443 @x.b.example", "v2:443"), ("443 @y.b.example", "v1:443")],
        ),
        (&[missing], &[("9000", "closed: there is no Service shop/nothing")]),
    ]);
}

#[test]
fn what_cannot_be_done_is_told_and_refused() {
    let made = made(&[virtual_service(
        "{hosts: [echo], tcp: [{match: [{port: 9000, destinationSubnets: [198.19.0.0/16]}], route: [{destination: {host: v1}, weight: 2147483647}, \
         {destination: {host: v1}, weight: 2147483647}, {destination: {host: v2}, weight: 2}]}]}",
    )]);
    assert_eq!(
        ask(&made, "9000"),
        "closed: spec.tcp[0].route: all weights together are 4294967296, the limit is 4294967295"
    );
    let told: Vec<&str> = made.problems.iter().map(|(_, problem)| &*problem.field).collect();
    assert_eq!(told, ["spec.tcp[0].route"]);
}

#[test]
fn agents_are_told_how_the_places_of_services_are_reached() {
    let rule = object(
        Kind::DestinationRule,
        "shop",
        "o",
        "{host: echo, subsets: [{name: v1, labels: {version: v1}}], trafficPolicy: {connectionPool: {tcp: {maxConnections: 7}, http: {maxRetries: 1}}}}",
    );
    let split = virtual_service(
        "{hosts: [echo], tcp: [{match: [{port: 9000}], route: [{destination: {host: echo, subset: v1}}]}]}",
    );
    let nothing = made(std::slice::from_ref(&split));
    let service = NamespacedName::new("shop", "echo.shop.svc.cluster.local");
    let of = |made: &Made, port, subset: &str| {
        let key = ClusterKey { service: service.clone(), port, subset: subset.into() };
        let cluster = made.places.get(&service)?.find(&key, &mesh_core::l7::Client::default())?.clone();
        Some((cluster.labels.len(), cluster.policy.as_ref().map(|policy| policy.pool.connections).ok()))
    };
    assert!(of(&nothing, 9000, "v1").is_none_or(|(_, policy)| policy.is_none()), "nobody has described the subset");
    let made = made(&[rule, split]);
    assert_eq!(of(&made, 9000, "v1"), Some((1, Some(7))));
    assert_eq!(of(&made, 443, ""), Some((0, Some(7))));
    assert_eq!(of(&made, 443, "v1"), None, "no route names it");
    assert_eq!(made.places.len(), 1);
    let acting: BTreeSet<&str> = made.in_force.iter().map(|key| key.kind.name()).collect();
    assert_eq!(acting, ["DestinationRule", "VirtualService"].into());
}

#[test]
fn features_DR_9_what_of_a_rule_has_no_effect_is_told_by_who_acts_on_it() {
    let rule = |spec: &str| object(Kind::DestinationRule, "shop", "o", &format!("{{host: echo, {spec}}}"));
    let of_waypoints = "agents do not act on it: only a waypoint of the service does";
    let tcp = |at: &str| format!("{at}.connectionPool.tcp");
    let own = tcp("trafficPolicy");
    let idle = "trafficPolicy: {connectionPool: {tcp: {idleTimeout: 1m, connectTimeout: 1s}}}";
    let never = "trafficPolicy: {connectionPool: {tcp: {idleTimeout: 0s, connectTimeout: 1s}}}";
    let alive = "trafficPolicy: {connectionPool: {tcp: {tcpKeepalive: {time: 1m}}}}";
    let deep = "subsets: [{name: v1, labels: {a: b}, trafficPolicy: {portLevelSettings: [{port: {number: 80}, connectionPool: {tcp: {idleTimeout: 1m}}}]}}]";
    let only = "trafficPolicy: {retryBudget: {percent: 20}, connectionPool: {tcp: {maxConnectionDuration: 1m}, http: {maxRetries: 1}}}";
    for (spec, at_agents, at_waypoints) in [
        (idle, vec![format!("{own}.idleTimeout: {of_waypoints}")], Vec::<String>::new()),
        (never, vec![], vec![]),
        (alive, vec![], vec![]),
        (
            deep,
            vec![format!("{}.idleTimeout: {of_waypoints}", tcp("subsets[0].trafficPolicy.portLevelSettings[0]"))],
            vec![],
        ),
        (
            only,
            vec![
                format!("trafficPolicy.retryBudget: {of_waypoints}"),
                format!("trafficPolicy.connectionPool.http: {of_waypoints}"),
                format!("{own}.maxConnectionDuration: {of_waypoints}"),
            ],
            vec![],
        ),
    ] {
        let objects = objects(&[rule(spec)]);
        let settings = Settings::default();
        let indexed = routing::index(&objects, &settings);
        let around = Around::new(&objects, &settings, &indexed);
        let made = super::index(&objects, &settings, &around);
        let told = |at_waypoints: &BTreeSet<Key>| {
            let all = places::left_out(&made.in_force, at_waypoints, &around);
            let one = |(_, told): &(Key, crate::diagnosis::Problem)| {
                format!("{}: {}", told.field.trim_start_matches("spec."), told.message)
            };
            all.iter().map(one).collect::<Vec<_>>()
        };
        assert_eq!(told(&BTreeSet::new()), at_agents, "{spec}");
        assert_eq!(told(&made.in_force), at_waypoints, "{spec}");
    }
}

/// The ways of connections to `edition.example.com`, of a ServiceEntry of the namespace `shop`.
fn outside(made: &Made, port: u16, namespace: &str, server_name: ServerName<'_>) -> String {
    let Some(routes) = made.routes.get(&NamespacedName::new("shop", "edition.example.com")) else { return "-".into() };
    let ask = Ask { address: "240.240.0.1".parse().unwrap(), port, namespace, labels: None, server_name };
    match routes.choose(&ask, &mut StdRng::seed_from_u64(1)) {
        Choice::Own => "-".to_owned(),
        Choice::Look => "look".to_owned(),
        Choice::To(key) => format!("{}:{}", key.service.name.split('.').next().unwrap(), key.port),
        Choice::Closed(_, why) => format!("closed: {why}"),
    }
}

#[test]
fn features_B18_B20_hosts_of_service_entries_are_led_through_an_egress_gateway() {
    let entry = object(
        Kind::ServiceEntry,
        "shop",
        "edition",
        "{hosts: [edition.example.com], resolution: STATIC, endpoints: [{address: 192.0.2.1}], \
         ports: [{number: 80, name: http, protocol: HTTP}, {number: 443, name: tls, protocol: TLS}]}",
    );
    let through = |more: &str, first: &str| {
        virtual_service(&format!(
            "{{hosts: [edition.example.com], gateways: [out, mesh], http: [{first}\
             {{match: [{{gateways: [mesh], port: 80}}], route: [{{destination: {{host: v1, port: {{number: 9001}}}}}}]{more}}}, \
             {{match: [{{gateways: [out], port: 80, uri: {{prefix: /a}}}}], timeout: 3s, route: [{{destination: {{host: edition.example.com, port: {{number: 80}}}}}}]}}], \
             tls: [{{match: [{{gateways: [mesh], port: 443, sniHosts: [edition.example.com]}}], route: [{{destination: {{host: v2, port: {{number: 443}}}}}}]}}]}}"
        ))
    };
    let is = |name| ServerName::Is(name);
    let made_of = |objects: &[Json]| made(&[std::slice::from_ref(&entry), objects].concat());
    let made = made_of(&[through("", "")]);
    assert_eq!(outside(&made, 80, "shop", ServerName::Unread), "v1:9001");
    assert_eq!(outside(&made, 443, "shop", ServerName::Unread), "look");
    assert_eq!(outside(&made, 443, "shop", is("edition.example.com")), "v2:443");
    assert_eq!(outside(&made, 443, "shop", is("other.example.com")), "-");
    assert!(made.in_force.contains(&key_of(&NamespacedName::new("shop", "o"))));
    // What looks at requests or changes them is for a waypoint, and so is all behind it.
    let by_path =
        "{match: [{gateways: [mesh], uri: {prefix: /x}}], route: [{destination: {host: v2, port: {number: 9000}}}]}, ";
    for (more, first) in
        [(", timeout: 3s", ""), (", fault: {abort: {httpStatus: 500, percentage: {value: 100}}}", ""), ("", by_path)]
    {
        assert_eq!(outside(&made_of(&[through(more, first)]), 80, "shop", ServerName::Unread), "-", "{more}{first}");
    }
    // Routes of the Gateway API are for all hosts of the entry.
    let route = object(
        Kind::TcpRoute,
        "shop",
        "o",
        "{parentRefs: [{group: networking.istio.io, kind: ServiceEntry, name: edition, port: 443}], rules: [{backendRefs: [{name: v1, port: 9000}]}]}",
    );
    let made = made_of(&[route]);
    assert_eq!([80, 443].map(|port| outside(&made, port, "shop", ServerName::Unread)), ["-", "v1:9000"]);
    // Namespaces of clients tell connections, and who is meant by no rule goes where it wanted to.
    let some = "{match: [{gateways: [mesh], sourceNamespace: far}], route: [{destination: {host: v2, port: {number: 9000}}}]}, ";
    let made = made_of(&[through("", some)]);
    assert_eq!(outside(&made, 80, "far", ServerName::Unread), "v2:9000");
    assert_eq!(outside(&made, 80, "shop", ServerName::Unread), "v1:9001");
    // So do labels, and they are asked for.
    let some = "{match: [{gateways: [mesh], sourceLabels: {app: a}}], route: [{destination: {host: v2, port: {number: 9000}}}]}, ";
    let labelled = made_of(&[through("", some)]);
    assert_eq!(outside(&labelled, 80, "shop", ServerName::Unread), "v1:9001");
    assert!(labelled.wanted.asks_of_clients() && !made.wanted.asks_of_clients());
    assert_eq!(outside(&made_of(&[]), 80, "shop", ServerName::Unread), "-");
}

/// Settings with these defaults.
fn settings(mesh: &str) -> Settings {
    let mut problems = Vec::new();
    let tree = crate::yaml::node::parse(mesh).unwrap();
    let defaults = crate::resource::mesh_defaults::MeshDefaults::read(&tree, "mesh", &mut problems);
    assert!(problems.is_empty(), "{problems:?}");
    Settings { defaults, ..Settings::default() }
}

#[test]
fn features_EX_5_what_the_mesh_says_of_places_is_told_of_every_service() {
    let entry = "{hosts: [api.example.com], resolution: DNS, ports: [{number: 443, name: tls, protocol: TLS}]}";
    let entry = object(Kind::ServiceEntry, "shop", "api", entry);
    let rule = "{host: v1, trafficPolicy: {connectionPool: {tcp: {connectTimeout: 1s}}}}";
    let rule = object(Kind::DestinationRule, "shop", "o", rule);
    let ruled = "v1.shop.svc.cluster.local 1s";
    let told = |made: &Made| {
        let of = |(service, places): (&NamespacedName, &Arc<Clusters>)| {
            let policies: Vec<_> = places.iter().map(|one| one.policy.clone().unwrap()).collect();
            assert!(policies.windows(2).all(|two| two[0] == two[1]), "{service}: all ports are the same");
            let locality = &policies[0].locality;
            let shares = if locality.distribute.is_empty() { "" } else { " shares" };
            assert!(locality.failover.is_empty() && locality.priority.is_empty(), "{service}: {locality:?}");
            format!("{} {:?}{shares}", service.name, policies[0].pool.connect_timeout)
        };
        made.places.iter().map(of).collect::<Vec<_>>()
    };
    let all = |said: &str, ruled: &str| {
        let mut all: Vec<String> = ["away.far.svc.cluster.local", "api.example.com", "echo.shop.svc.cluster.local"]
            .iter()
            .map(|name| format!("{name} {said}"))
            .collect();
        all.extend([ruled.to_owned(), format!("v2.shop.svc.cluster.local {said}")]);
        all
    };
    let shares = "localityLbSetting: {distribute: [{from: a/*, to: {a/*: 80, b/*: 20}}]}";
    for (mesh, expected) in [
        ("{}", vec![ruled.to_owned()]),
        ("connectTimeout: 3s", all("3s", ruled)),
        (shares, all("10s shares", &format!("{ruled} shares"))),
        // Nobody is left out without a rule that says when: nothing comes of these.
        ("localityLbSetting: {enabled: false}", vec![ruled.to_owned()]),
        ("localityLbSetting: {enabled: true}", vec![ruled.to_owned()]),
    ] {
        let made = made_with(settings(mesh), &[entry.clone(), rule.clone()]);
        assert_eq!(told(&made), expected, "{mesh}");
    }
    // Those for whoever is left out are heeded where a rule says who is.
    let near = "{failoverPriority: [example.com/rack]}, connectTimeout: 3s";
    let made = made_with(settings(&format!("{{localityLbSetting: {near}}}")), std::slice::from_ref(&entry));
    assert_eq!(told(&made), all("3s", "v1.shop.svc.cluster.local 3s"));
    assert_eq!(*made.wanted, Wanted::default(), "no labels of all workloads");
    // A rule for hosts of ServiceEntries is not for agents, and nothing is said over it.
    let rule =
        object(Kind::DestinationRule, "shop", "o", "{host: api.example.com, trafficPolicy: {tls: {mode: SIMPLE}}}");
    let made = made_with(settings("connectTimeout: 3s"), &[entry, rule]);
    assert!(made.places.len() == 4 && !made.places.contains_key(&NamespacedName::new("shop", "api.example.com")));
}

#[test]
fn features_EX_5_what_every_service_is_told_is_little() {
    let services: Vec<Json> = (0..5_000)
        .map(|index| {
            let mut service = object(Kind::Service, "many", &format!("s{index}"), "{}");
            service["spec"] = json!({ "ports": [{ "name": "tcp", "port": 80 }], "selector": { "app": "a" } });
            service
        })
        .collect();
    let regions: Vec<String> = (0..100).map(|index| format!("{{from: a{index}, to: b{index}}}")).collect();
    let near = format!("localityLbSetting: {{failover: [{}]}}", regions.join(", "));
    assert_eq!(made_with(settings(&near), &services).places.len(), 0);
    let made = made_with(settings(&format!("connectTimeout: 3s\n{near}")), &services);
    assert_eq!(made.places.len(), 5_004);
    let encode = |(service, places): (&NamespacedName, &Arc<Clusters>)| {
        mesh_proto::convert::encode_clusters(&service.to_string(), places).len()
    };
    let bytes: usize = made.places.iter().map(encode).sum();
    assert!(bytes < 5_004 * 200, "{bytes} bytes, as much as a service itself takes");
}
