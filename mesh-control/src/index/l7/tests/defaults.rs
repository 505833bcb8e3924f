//! What the mesh settings say where manifests say nothing (EX-5).

use std::time::Duration;

use mesh_core::l7::cluster::{Locality, Pool};
use mesh_core::l7::{ClusterKey, Retries, RetryOn};

use super::virtual_services::to_v3;
use super::*;
use crate::resource::mesh_defaults::MeshDefaults;

fn settings(mesh: &str) -> Settings {
    let mut problems = Vec::new();
    let tree = crate::yaml::node::parse(mesh).unwrap();
    let defaults = MeshDefaults::read(&tree, "mesh", &mut problems);
    assert!(problems.is_empty(), "{problems:?}");
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
