//! What the mesh settings say where manifests say nothing (EX-5).

use std::time::Duration;

use mesh_core::l7::cluster::{Locality, Pool};
use mesh_core::l7::{ClusterKey, Retries, RetryOn};
use mesh_core::listener::{Encryption, Serves};
use mesh_core::spoken::{Spoken, TlsVersion};

use super::virtual_services::to_v3;
use super::*;
use crate::resource::mesh_defaults::MeshDefaults;

fn settings(mesh: &str) -> Settings {
    let mut problems = Vec::new();
    let tree = crate::yaml::node::parse(mesh).unwrap();
    let defaults = MeshDefaults::read(&tree, "mesh", &mut problems);
    assert!(!crate::resource::meta::has_error(&problems), "{problems:?}");
    Settings { defaults, ..Settings::default() }
}

#[test]
fn features_EX_5_what_is_tried_again_where_no_rule_says_it() {
    let written = "defaultHttpRetryPolicy: {attempts: 5, retryOn: '503', perTryTimeout: 2s}";
    let on = RetryOn { events: 0, grpc: 0, statuses: vec![503] };
    let each = Some(Duration::from_secs(2));
    let of_mesh = Retries { attempts: 5, on, per_try_timeout: each, ..Retries::default() };
    let to_web = |rest: &str| {
        [http_route(&format!(
            "{{parentRefs: [{{group: '', kind: Service, name: web}}], rules: [{{backendRefs: [{{name: v3, port: 80}}]{rest}}}]}}"
        ))]
    };
    let each_second = |retries: &Retries| Retries { per_try_timeout: Some(Duration::from_secs(1)), ..retries.clone() };
    for (objects, expected) in [
        (to_v3("name: a"), of_mesh.clone()),
        // What a rule says of it replaces it, and what that does not say is Istio's default.
        (to_v3("retries: {attempts: 3}"), Retries { attempts: 3, ..Retries::default() }),
        (to_v3("retries: {attempts: 0}"), Retries::none()),
        (to_web(""), of_mesh.clone()),
        (to_web(", timeouts: {backendRequest: 1s}"), each_second(&of_mesh)),
        (
            to_web(", retry: {attempts: 1}"),
            Retries { attempts: 1, on: RetryOn { events: RetryOn::RESET, ..RetryOn::default() }, ..Retries::default() },
        ),
    ] {
        let mesh = mesh_with(settings(written), &objects);
        let found = mesh.decide("GET http://web/", 1, |_, decision| decision.unwrap().handling.retries.clone());
        assert_eq!(found, expected, "{objects:?}");
        assert_eq!(*mesh.table.retries(), of_mesh);
    }
    assert_eq!(*mesh(&[]).table.retries(), Retries::default());
    for none in ["{attempts: 0}", "{}"] {
        let settings = settings(&format!("defaultHttpRetryPolicy: {none}"));
        assert_eq!(*mesh_with(settings, &[]).table.retries(), Retries::none(), "{none}");
    }
}

#[test]
fn features_EX_5_how_endpoints_are_reached_where_no_rule_says_it() {
    let written = "{connectTimeout: 3s, localityLbSetting: {failover: [{from: eu, to: us}]}}";
    let seconds = Duration::from_secs;
    let near = |failover: &[(&str, &str)]| Locality {
        failover: failover.iter().map(|(from, to)| ((*from).into(), (*to).into())).collect(),
        ..Locality::default()
    };
    let ill = ", outlierDetection: {}";
    for (policy, connect_timeout, locality) in [
        ("{}".to_owned(), seconds(3), near(&[("eu", "us")])),
        ("{connectionPool: {tcp: {connectTimeout: 1s}}}".to_owned(), seconds(1), near(&[("eu", "us")])),
        ("{connectionPool: {http: {maxRetries: 1}}}".to_owned(), seconds(3), near(&[("eu", "us")])),
        ("{loadBalancer: {simple: RANDOM}}".to_owned(), seconds(3), near(&[("eu", "us")])),
        (
            format!("{{loadBalancer: {{localityLbSetting: {{failover: [{{from: a, to: b}}]}}}}{ill}}}"),
            seconds(3),
            near(&[("a", "b")]),
        ),
        (
            "{loadBalancer: {localityLbSetting: {enabled: false}}}".to_owned(),
            seconds(3),
            Locality { enabled: Some(false), ..near(&[]) },
        ),
    ] {
        let rule = object(Kind::DestinationRule, "shop", "o", &format!("{{host: v3, trafficPolicy: {policy}}}"));
        let mesh = mesh_with(settings(written), &[rule]);
        let of = |name: &str| {
            let service = NamespacedName::new("shop", format!("{name}.shop.svc.cluster.local"));
            let key = ClusterKey { service, port: 80, subset: ArcStr::new() };
            let found = mesh.clusters.find(&key, &Client::default()).unwrap().policy.clone().unwrap();
            (found.pool.connect_timeout, found.locality)
        };
        assert_eq!(of("v3"), (connect_timeout, locality), "{policy}");
        assert_eq!(of("v1"), (seconds(3), near(&[("eu", "us")])), "without a rule");
    }
    assert_eq!(Pool::default().connect_timeout, seconds(10));
}

#[test]
fn features_EX_5_what_a_service_says_of_near_endpoints_goes_before_the_mesh() {
    let written = "localityLbSetting: {enabled: false}";
    let is_the_meshs = |of_namespace: &str, said: &str, policy: &str| {
        let said: Json = serde_saphyr::from_str(said).unwrap();
        let mut near = service("shop", "near", &[80]);
        for (field, value) in said.as_object().unwrap() {
            near["spec"][field] = value.clone();
        }
        let rule = object(Kind::DestinationRule, "shop", "o", &format!("{{host: near, trafficPolicy: {policy}}}"));
        let mut namespace = object(Kind::Namespace, "", "shop", "{}");
        namespace["metadata"]["annotations"] = serde_saphyr::from_str(of_namespace).unwrap();
        let mesh = mesh_with(settings(written), &[near, rule, namespace]);
        let service = NamespacedName::new("shop", "near.shop.svc.cluster.local");
        let key = ClusterKey { service, port: 80, subset: ArcStr::new() };
        let locality = mesh.clusters.find(&key, &Client::default()).unwrap().policy.clone().unwrap().locality;
        locality == Locality { enabled: Some(false), ..Locality::default() }
    };
    let off = "{loadBalancer: {localityLbSetting: {enabled: false}}}";
    let near = "{networking.istio.io/traffic-distribution: PreferClose}";
    for (of_namespace, said, policy, expected) in [
        ("{}", "{}", "{}", true),
        ("{}", "{internalTrafficPolicy: Cluster}", "{}", true),
        ("{}", "{internalTrafficPolicy: Local}", "{}", false),
        ("{}", "{trafficDistribution: PreferClose}", "{}", false),
        ("{}", "{trafficDistribution: PreferClose}", off, true),
        (near, "{}", "{}", false),
        (near, "{}", off, true),
    ] {
        assert_eq!(is_the_meshs(of_namespace, said, policy), expected, "{of_namespace} {said} {policy}");
    }
}

/// A gateway with a server of Istio's Gateway with these fields and a listener of the Gateway API, and places of a DestinationRule and of a BackendTLSPolicy.
fn encrypted(mesh: &str, server: &str) -> crate::index::l7::Made {
    let edge = "{gatewayClassName: undermesh, infrastructure: {labels: {istio: ingressgateway}}, listeners: [
        {name: own, port: 8443, protocol: HTTPS, tls: {certificateRefs: [{name: c}]}}]}";
    let servers = format!(
        "{{selector: {{istio: ingressgateway}}, servers: [{{port: {{number: 443, name: https, protocol: HTTPS}}, hosts: [a.com], tls: {{mode: SIMPLE, credentialName: c{server}}}}}]}}"
    );
    let route = "{parentRefs: [{name: edge}], rules: [{backendRefs: [{name: v1, port: 80}, {name: v3, port: 80}]}]}";
    let policy = "{targetRefs: [{group: '', kind: Service, name: v1}], validation: {hostname: a.com, wellKnownCACertificates: System}}";
    let rule = "{host: v3, trafficPolicy: {tls: {mode: SIMPLE}}}";
    let objects = objects(&[
        object(Kind::Gateway, "shop", "edge", edge),
        object(Kind::IstioGateway, "shop", "one", &servers),
        object(Kind::BackendTlsPolicy, "shop", "p", policy),
        object(Kind::DestinationRule, "shop", "o", rule),
        http_route(route),
    ]);
    let settings = settings(mesh);
    let indexed = super::super::super::routing::index(&objects, &settings);
    super::super::index(&settings, &Around::new(&objects, &settings, &indexed), &Served::new())
}

/// What is spoken at each of them.
fn spoken(mesh: &str, server: &str) -> [Spoken; 4] {
    let made = encrypted(mesh, server);
    let edge = NamespacedName::new("shop", "edge");
    let at = |port: u16, name: &str| {
        let listener = made.listeners[&edge].port(port).unwrap().named(Some(name)).unwrap().clone();
        let Encryption::Ends(tls) = &listener.encryption else { panic!("{listener:?}") };
        tls.spoken.clone()
    };
    let towards = |service: &str| {
        let service = NamespacedName::new("shop", format!("{service}.shop.svc.cluster.local"));
        let key = ClusterKey { service, port: 80, subset: ArcStr::new() };
        let policy = made.clusters[&edge].find(&key, &Client::default()).unwrap().policy.clone().unwrap();
        policy.tls.server().unwrap().spoken.clone()
    };
    [at(443, "a.com"), at(8443, "b.com"), towards("v3"), towards("v1")]
}

#[test]
fn features_EX_5_what_is_spoken_of_TLS_where_no_object_says_it() {
    let names = |names: &[&str]| names.iter().map(|name| (*name).into()).collect::<Vec<ArcStr>>();
    let written =
        "tlsDefaults: {minProtocolVersion: TLSV1_3, cipherSuites: [ECDHE-RSA-AES128-GCM-SHA256], ecdhCurves: [P-256]}";
    let of_mesh = Spoken {
        oldest: TlsVersion::V1_3,
        suites: names(&["TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"]),
        groups: names(&["secp256r1"]),
        ..Spoken::default()
    };
    let own_suites = names(&["TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384"]);
    let (old, new) = (TlsVersion::V1_2, TlsVersion::V1_3);
    for (server, expected) in [
        ("", of_mesh.clone()),
        (", minProtocolVersion: TLS_AUTO", of_mesh.clone()),
        (", minProtocolVersion: TLSV1_2", Spoken { oldest: old, ..of_mesh.clone() }),
        (", maxProtocolVersion: TLSV1_2", Spoken { oldest: old, newest: old, ..of_mesh.clone() }),
        (", cipherSuites: [ECDHE-RSA-AES256-GCM-SHA384]", Spoken { suites: own_suites, ..of_mesh.clone() }),
        (", cipherSuites: [AES128-SHA]", Spoken { oldest: new, suites: names(&[]), ..of_mesh.clone() }),
    ] {
        let [at_server, others @ ..] = spoken(written, server);
        assert_eq!(at_server, expected, "{server}");
        assert!(others.iter().all(|one| *one == of_mesh), "{others:?}");
    }
    assert!(spoken("{}", "").iter().all(|one| *one == Spoken::default()));
}

#[test]
fn features_EX_5_a_server_that_wants_TLS_1_2_has_no_suite_that_the_mesh_leaves_out() {
    const NONE: &str = "none of the suites of `tlsDefaults.cipherSuites` in the mesh settings is spoken";
    let (old, new) = (TlsVersion::V1_2, TlsVersion::V1_3);
    let alone = Spoken { oldest: new, ..Spoken::default() };
    let suites = vec![ArcStr::from("TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384")];
    let own = Spoken { oldest: old, newest: old, suites, ..Spoken::default() };
    for of_mesh in [
        "tlsDefaults: {cipherSuites: [AES128-SHA]}",
        "tlsDefaults: {minProtocolVersion: TLSV1_3, cipherSuites: [AES128-SHA]}",
    ] {
        for (server, expected, said) in [
            ("", Ok(alone.clone()), vec![]),
            (", minProtocolVersion: TLS_AUTO", Ok(alone.clone()), vec![]),
            (", minProtocolVersion: TLSV1_3", Ok(alone.clone()), vec![]),
            (
                ", minProtocolVersion: TLSV1_2",
                Ok(alone.clone()),
                vec![format!("warning spec.servers[0].tls.minProtocolVersion: {NONE}: it is TLS 1.3 alone")],
            ),
            (
                ", maxProtocolVersion: TLSV1_2",
                Err(format!("{NONE}, and TLS 1.3 is not wanted")),
                vec![format!("error spec.servers[0].tls.maxProtocolVersion: {NONE}, and TLS 1.3 is not wanted")],
            ),
            (", maxProtocolVersion: TLSV1_2, cipherSuites: [ECDHE-RSA-AES256-GCM-SHA384]", Ok(own.clone()), vec![]),
        ] {
            let made = encrypted(of_mesh, server);
            let listener = made.listeners[&NamespacedName::new("shop", "edge")].port(443).unwrap();
            let listener = listener.named(Some("a.com")).unwrap();
            let found = match (&listener.serves, &listener.encryption) {
                (Serves::Closed(why), _) => Err(why.to_string()),
                (_, Encryption::Ends(tls)) => Ok(tls.spoken.clone()),
                other => panic!("{other:?}"),
            };
            assert_eq!(found, expected, "{of_mesh} {server}");
            let of_server = made.problems.iter().filter(|(key, _)| key.kind == Kind::IstioGateway);
            let told: Vec<_> = of_server.map(|(_, p)| format!("{} {}: {}", p.severity, p.field, p.message)).collect();
            assert_eq!(told, said, "{of_mesh} {server}");
        }
    }
}
