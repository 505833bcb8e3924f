//! DestinationRules: which of them counts for a place and a client, and what it says.

use std::time::Duration;

use mesh_core::l7::ClusterKey;
use mesh_core::l7::cluster::{Balancer, Cluster, HashKey, HashTable, Outliers, Policy, Pool, ServerName, Speaks, Tls};

use super::*;

fn rule(namespace: &str, name: &str, more: &str) -> Json {
    object(Kind::DestinationRule, namespace, name, &format!("{{host: v3.shop.svc.cluster.local, {more}}}"))
}

/// The place `v3` on port 80, or a subset of it, as a client sees it: its namespace, and labels as `app=a`.
fn seen(mesh: &Mesh, subset: &str, client: &str) -> Option<Cluster> {
    let service = NamespacedName::new("shop", "v3.shop.svc.cluster.local");
    let key = ClusterKey { service, port: 80, subset: subset.into() };
    let mut words = client.split(' ');
    let namespace = words.next().filter(|name| !name.is_empty());
    let labels: Labels = words.filter_map(|word| word.split_once('=')).map(|(k, v)| (k.into(), v.into())).collect();
    let client = Client { identity: None, namespace, labels: Some(&labels) };
    mesh.clusters.find(&key, &client).map(|cluster| (**cluster).clone())
}

/// A VirtualService that names subsets of `v3`, so that they are places.
fn naming(subsets: &[&str]) -> Json {
    let to: Vec<String> =
        subsets.iter().map(|name| format!("{{destination: {{host: v3, subset: {name}}}, weight: 1}}")).collect();
    object(Kind::VirtualService, "shop", "n", &format!("{{hosts: [web], http: [{{route: [{}]}}]}}", to.join(", ")))
}

fn policy(spec: &str) -> Policy {
    let mesh = mesh(&[rule("shop", "o", &format!("trafficPolicy: {{{spec}}}"))]);
    assert_eq!(mesh.told(), [""; 0]);
    seen(&mesh, "", "shop").unwrap().policy.unwrap()
}

#[test]
fn features_DR_1_whose_rule_counts() {
    let says = |balancer: &str| format!("trafficPolicy: {{loadBalancer: {{simple: {balancer}}}}}");
    let (own, home, root) = (says("RANDOM"), says("ROUND_ROBIN"), says("PASSTHROUGH"));
    let own = || rule("blog", "a", &own);
    let home = |more: &str| rule("shop", "b", &format!("{more} {home}"));
    let root = || rule("undermesh-system", "c", &root);
    use Balancer::{LeastRequest, Passthrough, Random, RoundRobin};
    for (rules, of_blog, of_shop, of_nobody) in [
        (vec![], LeastRequest, LeastRequest, LeastRequest),
        (vec![own()], Random, LeastRequest, LeastRequest),
        (vec![own(), home(""), root()], Random, RoundRobin, RoundRobin),
        (vec![home(""), root()], RoundRobin, RoundRobin, RoundRobin),
        (vec![root()], Passthrough, Passthrough, Passthrough),
        (vec![home("exportTo: [.],"), root()], Passthrough, RoundRobin, Passthrough),
        (vec![home("exportTo: [blog],")], RoundRobin, LeastRequest, LeastRequest),
    ] {
        let mesh = mesh(&rules);
        for (client, expected) in [("blog", of_blog), ("shop", of_shop), ("", of_nobody)] {
            assert_eq!(seen(&mesh, "", client).unwrap().policy.unwrap().balancer, expected, "{client} {rules:#?}");
        }
    }
    // The own namespace's wildcard comes before the name of another's.
    let wild = object(
        Kind::DestinationRule,
        "blog",
        "w",
        "{host: '*.shop.svc.cluster.local', trafficPolicy: {loadBalancer: {simple: RANDOM}}}",
    );
    let mesh = mesh(&[wild, home("")]);
    assert_eq!(seen(&mesh, "", "blog").unwrap().policy.unwrap().balancer, Random);
    assert_eq!(seen(&mesh, "", "shop").unwrap().policy.unwrap().balancer, RoundRobin);
}

#[test]
fn features_DR_2_subsets() {
    let spec = "trafficPolicy: {loadBalancer: {simple: RANDOM}, connectionPool: {http: {maxRetries: 3}}}, subsets: [{name: one, labels: {version: v1}}, {name: two, labels: {version: v2}, trafficPolicy: {loadBalancer: {simple: ROUND_ROBIN}}}]";
    let mesh = mesh(&[rule("shop", "o", spec), naming(&["one", "two"])]);
    for (subset, labels, balancer) in [
        ("", vec![], Balancer::Random),
        ("one", vec![("version", "v1")], Balancer::Random),
        ("two", vec![("version", "v2")], Balancer::RoundRobin),
    ] {
        let cluster = seen(&mesh, subset, "shop").unwrap();
        assert_eq!(cluster.labels, labels.into_iter().map(|(k, v)| (k.into(), v.into())).collect(), "{subset}");
        let policy = cluster.policy.unwrap();
        assert_eq!((policy.balancer, policy.pool.retries), (balancer, 3), "{subset}");
    }
    assert_eq!(mesh.told(), [""; 0]);
}

#[test]
fn features_DR_2_a_client_whose_rule_has_no_such_subset_gets_nowhere() {
    let one = rule("shop", "o", "subsets: [{name: one, labels: {version: v1}}]");
    let mesh = mesh(&[one, rule("blog", "p", "trafficPolicy: {loadBalancer: {simple: RANDOM}}"), naming(&["one"])]);
    assert!(seen(&mesh, "one", "shop").unwrap().policy.is_ok());
    assert_eq!(
        seen(&mesh, "one", "blog").unwrap().policy.unwrap_err(),
        "no DestinationRule that the client sees has a subset \"one\" of v3.shop.svc.cluster.local"
    );
    // A place that nobody names.
    assert_eq!(seen(&mesh, "two", "shop"), None);
}

#[test]
fn features_DR_3_clients_by_their_labels() {
    let some = "workloadSelector: {matchLabels: {app: a}}, trafficPolicy: {loadBalancer: {simple: RANDOM}}";
    let mesh =
        mesh(&[rule("shop", "o", some), rule("shop", "p", "trafficPolicy: {loadBalancer: {simple: ROUND_ROBIN}}")]);
    for (client, expected) in [
        ("shop app=a", Balancer::Random),
        ("shop app=b", Balancer::RoundRobin),
        // Pods of other namespaces are not meant.
        ("blog app=a", Balancer::RoundRobin),
        ("", Balancer::RoundRobin),
    ] {
        assert_eq!(seen(&mesh, "", client).unwrap().policy.unwrap().balancer, expected, "{client}");
    }
}

#[test]
fn features_DR_4_and_DR_5_which_endpoint() {
    let of = |what: &str| policy(&format!("loadBalancer: {{{what}}}")).balancer;
    let hash = |what: &str| of(&format!("consistentHash: {{{what}}}"));
    let ring = HashTable::Ring(1024);
    for (found, expected) in [
        (of("simple: UNSPECIFIED"), Balancer::LeastRequest),
        (of("simple: LEAST_REQUEST"), Balancer::LeastRequest),
        (of("simple: ROUND_ROBIN"), Balancer::RoundRobin),
        (hash("httpHeaderName: X-User"), Balancer::Hash(HashKey::Header("x-user".into()), ring)),
        (hash("useSourceIp: true, maglev: {}"), Balancer::Hash(HashKey::Source, HashTable::Maglev(65_537))),
        (
            hash("httpQueryParameterName: q, ringHash: {minimumRingSize: 7}"),
            Balancer::Hash(HashKey::Parameter("q".into()), HashTable::Ring(7)),
        ),
        (
            hash("httpCookie: {name: c, path: /p, ttl: 0s}"),
            Balancer::Hash(
                HashKey::Cookie {
                    name: "c".into(),
                    path: Some("/p".into()),
                    lasts: Some(Duration::ZERO),
                    attributes: vec![],
                },
                ring,
            ),
        ),
    ] {
        assert_eq!(found, expected);
    }
    let warm =
        policy("loadBalancer: {simple: ROUND_ROBIN, warmup: {duration: 10s, minimumPercent: 25, aggression: 1.5}}")
            .warmup
            .unwrap();
    assert_eq!((warm.time, warm.least.parts(), warm.aggression), (Duration::from_secs(10), 250_000, 1500));
}

#[test]
fn features_DR_9_to_DR_11_limits_and_outliers() {
    let seconds = Duration::from_secs;
    let usual = Pool::default();
    for (written, expected) in [
        ("{}", usual.clone()),
        (
            "{tcp: {maxConnections: 1, connectTimeout: 3s}}",
            Pool { connections: 1, connect_timeout: seconds(3), ..usual.clone() },
        ),
        ("{tcp: {idleTimeout: 1m}}", Pool { silence: Some(seconds(60)), ..usual.clone() }),
        ("{tcp: {idleTimeout: 0s}}", usual.clone()),
        (
            "{http: {http1MaxPendingRequests: 1, http2MaxRequests: 2, maxRequestsPerConnection: 0, maxRetries: 4, idleTimeout: 0s, h2UpgradePolicy: UPGRADE}}",
            Pool { pending: 1, requests: 2, retries: 4, idle_timeout: None, speaks: Speaks::Http2, ..usual.clone() },
        ),
        ("{http: {idleTimeout: 59m}}", Pool { idle_timeout: Some(seconds(59 * 60)), ..usual.clone() }),
        // Told from the hour that nobody says.
        (
            "{http: {idleTimeout: 1h}}",
            Pool { idle_timeout: Some(seconds(3600) + Duration::from_nanos(1)), ..usual.clone() },
        ),
    ] {
        assert_eq!(policy(&format!("connectionPool: {written}")).pool, expected, "{written}");
    }
    assert_eq!(policy("loadBalancer: {simple: RANDOM}").outliers, None);
    let usual = Outliers::default();
    for (written, expected) in [
        ("{}", usual.clone()),
        (
            "{consecutive5xxErrors: 1, interval: 1s, baseEjectionTime: 3m, maxEjectionPercent: 100}",
            Outliers { errors: 1, interval: seconds(1), base: seconds(180), most_percent: 100, ..usual.clone() },
        ),
        (
            "{consecutiveGatewayErrors: 2, splitExternalLocalOriginErrors: true}",
            Outliers { gateway_errors: 2, local_failures: Some(5), ..usual.clone() },
        ),
    ] {
        assert_eq!(policy(&format!("outlierDetection: {written}")).outliers, Some(expected), "{written}");
    }
}

#[test]
fn features_DR_12_tls() {
    let name = |shown: Option<&str>, sni: &str| ServerName {
        roots: vec!["shop/c-cacert".into()],
        shown: shown.map(Into::into),
        sni: Some(sni.into()),
        ..ServerName::default()
    };
    for (written, expected) in [
        ("{mode: ISTIO_MUTUAL}", Tls::Mesh),
        ("{mode: DISABLE}", Tls::Plain),
        ("{mode: SIMPLE, credentialName: c, sni: a.com}", Tls::Simple(name(None, "a.com"))),
        ("{mode: MUTUAL, credentialName: c, sni: a.com}", Tls::Mutual(name(Some("shop/c"), "a.com"))),
    ] {
        assert_eq!(policy(&format!("tls: {written}")).tls, expected, "{written}");
    }
    // What is named follows, as what it is for, and with nothing in it nobody is reached rather than anybody.
    let credentials = |tls: &str| {
        let rule = rule("shop", "o", &format!("trafficPolicy: {{tls: {tls}}}"));
        let (objects, settings) = (objects(&[rule]), Settings::default());
        let indexed = super::super::super::routing::index(&objects, &settings);
        let around = Around::new(&objects, &settings, &indexed);
        let waypoint = NamespacedName::new("infra", "waypoint");
        let v3 = NamespacedName::new("shop", "v3.shop.svc.cluster.local");
        let made = super::super::index(&settings, &around, &[(waypoint, [v3].into())].into());
        let of = |one: &Reference| {
            let or = one.or.as_ref().map(|or| format!(" or {or}")).unwrap_or_default();
            format!("{} {:?} {}{or}", one.field, one.part, one.holder)
        };
        (made.references.iter().map(of).collect::<Vec<_>>(), made.secrets.len())
    };
    let field = "spec.trafficPolicy.tls.credentialName";
    let believed = format!("{field} Believed Secret infra/c-cacert or Secret infra/c");
    assert_eq!(credentials("{mode: SIMPLE, credentialName: c}"), (vec![believed.clone()], 2));
    let shown = format!("{field} Shown Secret infra/c");
    assert_eq!(credentials("{mode: MUTUAL, credentialName: 'kubernetes://c'}"), (vec![believed, shown], 2));
    assert_eq!(credentials("{mode: SIMPLE, credentialName: c, insecureSkipVerify: true}"), (vec![], 0));
    assert_eq!(credentials("{mode: SIMPLE}"), (vec![], 0));
    let odd = mesh(&[rule("shop", "o", "trafficPolicy: {tls: {mode: SIMPLE, credentialName: 'a/b'}}")]);
    assert!(seen(&odd, "", "shop").unwrap().policy.is_err());
    assert_eq!(odd.told(), ["e trafficPolicy.tls.credentialName: \"a/b\" is no name of a Secret"]);
    // Files that no waypoint has: nothing is reached, rather than with less than was asked for.
    let mesh = mesh(&[rule("shop", "o", "trafficPolicy: {tls: {mode: SIMPLE, caCertificates: /etc/ca.pem}}")]);
    let why = "a waypoint has no such file: what has this policy is not reached";
    assert_eq!(
        seen(&mesh, "", "shop").unwrap().policy.unwrap_err(),
        format!("spec.trafficPolicy.tls.caCertificates: {why}")
    );
    assert_eq!(mesh.told(), [format!("e trafficPolicy.tls.caCertificates: {why}")]);
}

#[test]
fn features_SE_1_DR_1_hosts_of_entries_have_no_case() {
    for (own, of_rule) in [
        ("API.example.com", "api.example.com"),
        ("API.Example.com", "API.example.COM"),
        ("api.example.com", "Api.example.com"),
        ("API.example.com", "*.example.com"),
    ] {
        let entry = object(
            Kind::ServiceEntry,
            "shop",
            "api",
            &format!(
                "{{hosts: [{own}], resolution: STATIC, ports: [{{number: 80, name: http, protocol: HTTP}}], endpoints: [{{address: 192.0.2.1}}]}}"
            ),
        );
        let tls = "trafficPolicy: {tls: {mode: SIMPLE, sni: a.com}}";
        let rule = object(Kind::DestinationRule, "shop", "o", &format!("{{host: '{of_rule}', {tls}}}"));
        let to = |kind: Kind, spec: String| object(kind, "shop", "r", &spec);
        for route in [
            to(Kind::VirtualService, "{hosts: [web], http: [{route: [{destination: {host: api.EXAMPLE.com}}]}]}".into()),
            to(
                Kind::HttpRoute,
                "{parentRefs: [{group: '', kind: Service, name: web}], rules: [{backendRefs: [{group: networking.istio.io, kind: Hostname, name: api.example.com, port: 80}]}]}".into(),
            ),
        ] {
            let mesh = mesh(&[entry.clone(), rule.clone(), route]);
            assert_eq!(mesh.told(), [""; 0], "{own} {of_rule}");
            assert_eq!(mesh.ask("GET http://web/"), "api:80", "{own} {of_rule}");
            let service = NamespacedName::new("shop", "api.example.com");
            let key = ClusterKey { service, port: 80, subset: Default::default() };
            let client = Client { identity: None, namespace: Some("shop"), labels: None };
            let policy = mesh.clusters.find(&key, &client).unwrap().policy.clone().unwrap();
            assert!(matches!(&policy.tls, Tls::Simple(_)), "{own} {of_rule}: {policy:?}");
        }
    }
}

#[test]
fn features_SE_1_names_that_an_entry_adds_to_a_service_are_verified_where_a_rule_has_none() {
    let entry = |namespace: &str| {
        let spec = "{hosts: [v3.shop.svc.cluster.local], subjectAltNames: [legacy.example]}";
        object(Kind::ServiceEntry, namespace, "more", spec)
    };
    let tls = |more: &str| rule("shop", "o", &format!("trafficPolicy: {{tls: {{mode: SIMPLE{more}}}}}"));
    for (what, objects, expected) in [
        ("its own namespace", [tls(""), entry("shop")], &["legacy.example"][..]),
        ("the root namespace", [tls(""), entry("undermesh-system")], &["legacy.example"]),
        ("another namespace", [tls(""), entry("far")], &[]),
        ("the rule's own", [tls(", subjectAltNames: [a.example]"), entry("shop")], &["a.example"]),
    ] {
        let policy = seen(&mesh(&objects), "", "shop").unwrap().policy.unwrap();
        let Tls::Simple(server) = policy.tls else { panic!("{what}: {:?}", policy.tls) };
        assert_eq!(server.names, expected, "{what}");
    }
}

#[test]
fn features_DR_16_what_is_said_of_a_port_is_all_that_counts_there() {
    let spec = "loadBalancer: {simple: RANDOM}, connectionPool: {http: {maxRetries: 3}}, portLevelSettings: [{port: {number: 80}, connectionPool: {http: {http2MaxRequests: 9}}}]";
    let found = policy(spec);
    assert_eq!((found.balancer, found.pool.retries, found.pool.requests), (Balancer::LeastRequest, u32::MAX, 9));
    let elsewhere = policy(&spec.replace("number: 80", "number: 81"));
    assert_eq!((elsewhere.balancer, elsewhere.pool.retries), (Balancer::Random, 3));
    // A subset may say it of its port, too; and what it says without a port lies over the host's of the port.
    let mesh = mesh(&[
        rule(
            "shop",
            "o",
            "trafficPolicy: {portLevelSettings: [{port: {number: 80}, loadBalancer: {simple: RANDOM}}]}, subsets: [{name: one, trafficPolicy: {connectionPool: {http: {maxRetries: 3}}}}, {name: two, trafficPolicy: {loadBalancer: {simple: ROUND_ROBIN}, portLevelSettings: [{port: {number: 80}, connectionPool: {http: {maxRetries: 5}}}]}}]",
        ),
        naming(&["one", "two"]),
    ]);
    let of = |subset: &str| seen(&mesh, subset, "shop").unwrap().policy.unwrap();
    assert_eq!((of("one").balancer, of("one").pool.retries), (Balancer::Random, 3));
    assert_eq!((of("two").balancer, of("two").pool.retries), (Balancer::LeastRequest, 5));
}

#[test]
fn features_SE_7_names_of_certificates_are_the_entrys_where_the_rule_has_none() {
    let entry = object(
        Kind::ServiceEntry,
        "shop",
        "o",
        "{hosts: [api.example.com], resolution: DNS, ports: [{number: 443, name: tls, protocol: TLS}], subjectAltNames: [a.example.com, 'spiffe://cluster.local/ns/a/sa/b']}",
    );
    let to_it = "{hosts: [web], http: [{route: [{destination: {host: api.example.com, port: {number: 443}}}]}]}";
    let both: &[&str] = &["a.example.com", "spiffe://cluster.local/ns/a/sa/b"];
    let nobody =
        "w subjectAltNames[0]: \"a.example.com\" is not verified: no DestinationRule begins TLS towards its hosts";
    for (tls, names, told) in [
        ("{mode: SIMPLE}", Some(both), None),
        ("{mode: MUTUAL, credentialName: c}", Some(both), None),
        ("{mode: SIMPLE, subjectAltNames: [b.example.com]}", Some(&["b.example.com"][..]), None),
        ("{mode: DISABLE}", None, Some(nobody)),
    ] {
        let rule = format!("{{host: api.example.com, trafficPolicy: {{tls: {tls}}}}}");
        let rule = object(Kind::DestinationRule, "shop", "r", &rule);
        let mesh = mesh(&[entry.clone(), rule, virtual_service(to_it)]);
        let key = ClusterKey { service: NamespacedName::new("shop", "api.example.com"), port: 443, subset: "".into() };
        let policy = mesh.clusters.find(&key, &Client::default()).unwrap().policy.clone().unwrap();
        let found = policy.tls.server().map(|server| server.names.iter().map(|name| &**name).collect::<Vec<_>>());
        assert_eq!(found.as_deref(), names, "{tls}");
        assert_eq!(mesh.told(), told.as_slice(), "{tls}");
    }
}
