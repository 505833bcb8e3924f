//! Which proxies see what somebody wants to know of: the pods of the waypoints that serve it, and the agents on the nodes of its pods. [`proxies`] is pure; what it
//! looks at is read by [`read`].

use std::collections::BTreeSet;

use mesh_core::NamespacedName;
use mesh_core::asked::{self, Asked};

use super::target::{Kind, Named};
use super::terms;
use crate::api::{Api, Failure};
use crate::stop::Stop;
use crate::view::{Map, Meta, Namespace, Pod, Service};

/// On a pod: the Gateway that it serves.
const GATEWAY: &str = "gateway.networking.k8s.io/gateway-name";
/// Where the chart has agents put their sockets.
const RUN_DIR: &str = "/run/undermesh";

/// What was read.
#[derive(Clone, Debug, Default)]
pub struct World {
    /// The namespace of who is asked.
    pub namespace: Namespace,
    /// Its pods.
    pub pods: Vec<Pod>,
    /// Its services.
    pub services: Vec<Service>,
    /// Pods of Gateways, wherever they may be needed.
    pub gateways: Vec<Pod>,
    /// Pods of agents.
    pub agents: Vec<Pod>,
}

/// A proxy that is asked.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Proxy {
    /// How it is called in what is shown.
    pub name: String,
    /// Namespace of its pod.
    pub namespace: String,
    /// Its pod.
    pub pod: String,
    /// The container.
    pub container: String,
    /// What is run there, without the selector.
    pub command: Vec<String>,
    /// It is an agent, which sees connections.
    pub is_agent: bool,
}

/// What was found.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Found {
    /// Those that can be asked.
    pub proxies: Vec<Proxy>,
    /// What cannot be, with the reason.
    pub missing: Vec<String>,
    /// Pods that are asked for, if it is a service: `namespace/name`; agents know of its connections by them.
    pub pods: Vec<String>,
}

/// Reads what is needed to know who sees what is asked of `to`; of everything, if it is none.
pub async fn read(api: &Api, to: Option<&Named>, mesh: &str) -> Result<World, Stop> {
    let mut world = World::default();
    let labelled = |key: &str, value: Option<&str>| {
        let selector = value.map_or_else(|| key.to_owned(), |value| format!("{key}={value}"));
        form_urlencoded::Serializer::new(String::new()).append_pair("labelSelector", &selector).finish()
    };
    let failed = |what: &str| {
        let what = what.to_owned();
        move |failure: Failure| Stop::from(failure).during(format!("{what} cannot be read"))
    };
    if let Some(to) = to {
        let home = format!("/api/v1/namespaces/{}", to.namespace);
        let namespace = api.find(&home).await.map_err(failed("the namespace"))?;
        let Some(namespace) = namespace else {
            return Err(Stop::failed(format!("there is no namespace {}; -n says which is meant", to.namespace)));
        };
        world.namespace = serde_json::from_value(namespace).map_err(Stop::failed)?;
        world.pods = api.view(&format!("{home}/pods")).await.map_err(failed("pods"))?;
        world.services = api.view(&format!("{home}/services")).await.map_err(failed("services"))?;
    }
    // Those of other namespaces are read only if there are some that are used.
    let mut homes: BTreeSet<String> = used(&world, to).into_iter().map(|(namespace, _)| namespace).collect();
    homes.extend(to.map(|to| to.namespace.clone()));
    let query = labelled(GATEWAY, None);
    if to.is_none() {
        world.gateways = api.view(&format!("/api/v1/pods?{query}")).await.map_err(failed("pods of gateways"))?;
    }
    for home in homes {
        let path = format!("/api/v1/namespaces/{home}/pods?{query}");
        world.gateways.extend(api.view::<Pod>(&path).await.map_err(failed("pods of gateways"))?);
    }
    let agents = format!("/api/v1/namespaces/{mesh}/pods?{}", labelled("app", Some("mesh-agent")));
    world.agents = api.view(&agents).await.map_err(failed("pods of agents"))?;
    Ok(world)
}

/// Who sees what is asked of `to`. `of` asks for less: requests, or connections, alone.
pub fn proxies(
    world: &World,
    to: Option<&Named>,
    with_requests: bool,
    with_connections: bool,
) -> Result<Found, String> {
    let pods = meant(world, to)?;
    let mut found = Found::default();
    if with_requests {
        let used = used(world, to);
        let is_asked = |pod: &Pod| {
            let of = (pod.metadata.namespace.clone(), pod.metadata.label(GATEWAY).to_owned());
            // Gateways of a namespace forward what is asked of it from outside.
            let is_home = to.is_some_and(|to| to.kind == Kind::Namespace && to.namespace == of.0);
            to.is_none() || is_home || used.contains(&of)
        };
        let mut seen = BTreeSet::new();
        for pod in world.gateways.iter().filter(|pod| is_asked(pod) && !pod.is_finished()) {
            seen.insert((pod.metadata.namespace.clone(), pod.metadata.label(GATEWAY).to_owned()));
            ask(pod, waypoint(pod), &mut found);
        }
        for (namespace, name) in used.difference(&seen) {
            found.missing.push(format!(
                "waypoint {namespace}/{name} has no pod: `meshctl waypoint status -n {namespace} {name}` says why"
            ));
        }
    }
    if with_connections && to.is_none_or(|to| to.kind != Kind::Gateway) {
        let nodes: BTreeSet<&str> =
            pods.iter().map(|pod| pod.spec.node_name.as_str()).filter(|node| !node.is_empty()).collect();
        let mut asked = BTreeSet::new();
        let mut agents: Vec<&Pod> = world.agents.iter().filter(|pod| !pod.is_finished()).collect();
        // In a rollout there are two on a node, and either reaches the one that serves.
        agents.sort_by_key(|pod| !pod.is_ready());
        for pod in agents {
            let node = pod.spec.node_name.as_str();
            if (to.is_none() || nodes.contains(node)) && asked.insert(node) {
                ask(pod, agent(pod), &mut found);
            }
        }
        for node in nodes.difference(&asked) {
            found.missing.push(format!("node {node} has no agent: `meshctl status` says why"));
        }
    }
    found.proxies.sort();
    if to.is_some_and(|to| to.kind == Kind::Service) {
        found.pods = pods.iter().map(|pod| pod.metadata.full_name()).collect();
    }
    Ok(found)
}

/// Takes it among those that are asked if it runs.
fn ask(pod: &Pod, proxy: Proxy, found: &mut Found) {
    match pod.status.phase.as_str() {
        "Running" => found.proxies.push(proxy),
        phase => {
            let phase = if phase.is_empty() { "unknown" } else { phase };
            found.missing.push(format!("{} is not asked: its pod is {phase}, not Running", pod.metadata.full_name()));
        }
    }
}

fn waypoint(pod: &Pod) -> Proxy {
    let containers = &pod.spec.containers;
    let container = containers.iter().find(|c| c.name == "istio-proxy").or(containers.first());
    Proxy {
        name: pod.metadata.full_name(),
        namespace: pod.metadata.namespace.clone(),
        pod: pod.metadata.name.clone(),
        container: container.map(|c| c.name.clone()).unwrap_or_default(),
        command: ["/mesh-waypoint", "tap"].map(str::to_owned).into(),
        is_agent: false,
    }
}

fn agent(pod: &Pod) -> Proxy {
    let containers = &pod.spec.containers;
    let container = containers.iter().find(|c| c.name == "mesh-agent").or(containers.first());
    let run_dir = container.and_then(|c| c.args.iter().find_map(|arg| arg.strip_prefix("--run-dir=")));
    Proxy {
        name: format!("node/{}", pod.spec.node_name),
        namespace: pod.metadata.namespace.clone(),
        pod: pod.metadata.name.clone(),
        container: container.map(|c| c.name.clone()).unwrap_or_default(),
        command: vec!["/mesh-agent".into(), "tap".into(), format!("--run-dir={}", run_dir.unwrap_or(RUN_DIR))],
        is_agent: true,
    }
}

/// The pods that are asked.
fn meant<'a>(world: &'a World, to: Option<&Named>) -> Result<Vec<&'a Pod>, String> {
    let Some(to) = to else { return Ok(Vec::new()) };
    let alive = world.pods.iter().filter(|pod| !pod.is_finished());
    let found: Vec<&Pod> = match to.kind {
        Kind::Gateway => return Ok(Vec::new()),
        Kind::Namespace => return Ok(alive.collect()),
        Kind::Service => {
            let Some(service) = world.services.iter().find(|service| service.metadata.name == to.name) else {
                return Err(format!(
                    "there is no {to}; what a ServiceEntry says is tapped at its waypoint, with --authority"
                ));
            };
            return Ok(alive.filter(|pod| selects(service, pod)).collect());
        }
        Kind::Workload | Kind::StatefulSet | Kind::DaemonSet | Kind::Pod => {
            alive.filter(|pod| terms::owns(to, pod)).collect()
        }
    };
    match found.is_empty() {
        true => Err(format!("there is no pod of {to}")),
        false => Ok(found),
    }
}

fn selects(service: &Service, pod: &Pod) -> bool {
    let selector = &service.spec.selector;
    !selector.is_empty() && selector.iter().all(|(key, value)| pod.metadata.labels.get(key) == Some(value))
}

/// Waypoints, as namespace and name, that requests for it pass.
fn used(world: &World, to: Option<&Named>) -> BTreeSet<(String, String)> {
    let Some(to) = to else { return BTreeSet::new() };
    if to.kind == Kind::Gateway {
        return [(to.namespace.clone(), to.name.clone())].into();
    }
    let pods = meant(world, Some(to)).unwrap_or_default();
    let is_service = |service: &&Service| match to.kind {
        Kind::Namespace => true,
        Kind::Service => service.metadata.name == to.name,
        _ => pods.iter().any(|pod| selects(service, pod)),
    };
    let services: Vec<_> = world.services.iter().filter(is_service).map(|service| &service.metadata).collect();
    let canaries = services.iter().filter_map(|service| canary_of(service, &world.namespace.metadata));
    // What is asked of a service goes by the service's; what is asked of a pod itself by the pod's.
    let of_pods = pods.iter().filter(|_| to.kind != Kind::Service).map(|pod| &pod.metadata);
    let all = services.iter().copied().chain(of_pods);
    all.filter_map(|object| waypoint_of(object, &world.namespace.metadata)).chain(canaries).collect()
}

/// The canary of a service: its own, or its namespace's, if it has that one's waypoint, too.
fn canary_of(service: &Meta, namespace: &Meta) -> Option<(String, String)> {
    waypoint_of(service, namespace)?;
    let own = asked::canary(Some(&service.labels), &namespace.name);
    let is_own = Asked::of(Some(&service.labels), &namespace.name) != Asked::Unsaid;
    let of_namespace = || asked::canary(Some(&namespace.labels), &namespace.name).filter(|_| !is_own);
    own.or_else(of_namespace).map(key)
}

/// The waypoint of an object: its own label counts before that of its namespace.
fn waypoint_of(object: &Meta, namespace: &Meta) -> Option<(String, String)> {
    let of = |labels: &Map| Asked::of(Some(labels), &namespace.name);
    match (of(&object.labels), of(&namespace.labels)) {
        (Asked::Of(name), _) | (Asked::Unsaid, Asked::Of(name)) => Some(key(name)),
        _ => None,
    }
}

fn key(name: NamespacedName) -> (String, String) {
    (name.namespace.to_string(), name.name.to_string())
}

#[cfg(test)]
mod tests {
    use mesh_core::asked::{CANARY, CANARY_NAMESPACE, USE, USE_NAMESPACE};
    use serde_json::{Value, json};

    use super::super::target::target;
    use super::*;

    fn pod(namespace: &str, name: &str, node: &str, labels: Value, phase: &str) -> Value {
        json!({
            "metadata": {"namespace": namespace, "name": name, "labels": labels},
            "spec": {"nodeName": node, "containers": [{"name": "mesh-agent", "args": ["--run-dir=/run/x"]}, {"name": "istio-proxy"}]},
            "status": {"phase": phase, "conditions": [{"type": "Ready", "status": "True"}]},
        })
    }

    fn of<T: serde::de::DeserializeOwned>(value: Value) -> T {
        serde_json::from_value(value).unwrap()
    }

    fn world() -> World {
        let mut owned = pod("shop", "web-5d-x", "n1", json!({"app": "web", "pod-template-hash": "5d"}), "Running");
        owned["metadata"]["ownerReferences"] = json!([{"kind": "ReplicaSet", "name": "web-5d", "controller": true}]);
        let service = |name: &str, labels: Value| json!({"metadata": {"namespace": "shop", "name": name, "labels": labels}, "spec": {"selector": {"app": name}}});
        let gateway = |namespace: &str, name: &str, of: &str, phase: &str| {
            pod(namespace, name, "n9", json!({GATEWAY: of}), phase)
        };
        World {
            namespace: of(json!({"metadata": {"name": "shop", "labels": {USE: "wp"}}})),
            pods: vec![
                of(owned),
                of(pod("shop", "db-0", "n2", json!({"app": "db"}), "Running")),
                of(pod("shop", "done", "n3", json!({"app": "db"}), "Succeeded")),
            ],
            services: vec![
                of(service("web", json!({}))),
                of(service("db", json!({USE: "none"}))),
                // An empty label says nothing.
                of(service("blank", json!({USE: ""}))),
                of(service("far", json!({USE: "far", USE_NAMESPACE: "infra"}))),
                of(service("moved", json!({CANARY: "other", CANARY_NAMESPACE: "infra"}))),
            ],
            gateways: vec![
                of(gateway("shop", "wp-1", "wp", "Running")),
                of(gateway("shop", "wp-2", "wp", "Pending")),
                of(gateway("shop", "edge-1", "edge", "Running")),
                of(gateway("infra", "other-1", "other", "Running")),
            ],
            agents: vec![
                of(pod("mesh", "agent-1", "n1", json!({}), "Running")),
                of(pod("mesh", "agent-1-new", "n1", json!({}), "Running")),
                of(pod("mesh", "agent-4", "n4", json!({}), "Running")),
            ],
        }
    }

    fn found(text: &str, requests: bool, connections: bool) -> (Vec<String>, Vec<String>) {
        let to = (!text.is_empty()).then(|| target(text).unwrap().within("shop"));
        let found = proxies(&world(), to.as_ref(), requests, connections).unwrap();
        (found.proxies.into_iter().map(|proxy| proxy.name).collect(), found.missing)
    }

    /// What is named, whether requests and connections are wanted; who is asked, and what cannot be.
    type Row = (&'static str, bool, bool, &'static [&'static str], &'static [&'static str]);

    #[test]
    fn features_tm_16_proxies_are_those_that_see_it() {
        const GONE: &str = "node n2 has no agent: `meshctl status` says why";
        const PENDING: &str = "shop/wp-2 is not asked: its pod is Pending, not Running";
        const NO_POD: &str = "waypoint infra/far has no pod: `meshctl waypoint status -n infra far` says why";
        let rows: [Row; 14] = [
            ("web", true, true, &["node/n1", "shop/wp-1"], &[PENDING]),
            ("web", true, false, &["shop/wp-1"], &[PENDING]),
            ("web", false, true, &["node/n1"], &[]),
            ("deploy/web", true, true, &["node/n1", "shop/wp-1"], &[PENDING]),
            ("pod/web-5d-x", true, false, &["shop/wp-1"], &[PENDING]),
            // The service has none; its pod has that of the namespace, and no agent.
            ("db", true, true, &[], &[GONE]),
            ("pod/db-0", true, true, &["shop/wp-1"], &[PENDING, GONE]),
            ("far", true, true, &[], &[NO_POD]),
            ("blank", true, false, &["shop/wp-1"], &[PENDING]),
            ("moved", true, false, &["infra/other-1", "shop/wp-1"], &[PENDING]),
            ("ns/shop", true, false, &["infra/other-1", "shop/edge-1", "shop/wp-1"], &[PENDING, NO_POD]),
            ("waypoint/edge", true, true, &["shop/edge-1"], &[]),
            ("waypoint/other.infra", true, true, &["infra/other-1"], &[]),
            ("", true, true, &["infra/other-1", "node/n1", "node/n4", "shop/edge-1", "shop/wp-1"], &[PENDING]),
        ];
        for (text, requests, connections, names, missing) in rows {
            let (found, left) = found(text, requests, connections);
            assert_eq!(
                (found, left),
                (names.iter().map(|n| (*n).to_owned()).collect(), missing.iter().map(|m| (*m).to_owned()).collect()),
                "{text}"
            );
        }
    }

    #[test]
    fn features_tm_16_what_is_not_there_is_told_and_how_proxies_are_asked() {
        let refused =
            |text: &str| proxies(&world(), Some(&target(text).unwrap().within("shop")), true, true).unwrap_err();
        assert!(refused("gone").starts_with("there is no service shop/gone"));
        assert_eq!(refused("deploy/web-5d"), "there is no pod of workload shop/web-5d");
        assert_eq!(refused("pod/done"), "there is no pod of pod shop/done");
        let to = target("web").unwrap().within("shop");
        let all = proxies(&world(), Some(&to), true, true).unwrap();
        assert_eq!(all.pods, ["shop/web-5d-x"]);
        let asked = |proxy: &Proxy| (proxy.pod.clone(), proxy.container.clone(), proxy.command.join(" "));
        let words = |a: &str, b: &str, c: &str| (a.to_owned(), b.to_owned(), c.to_owned());
        assert_eq!(asked(&all.proxies[0]), words("agent-1", "mesh-agent", "/mesh-agent tap --run-dir=/run/x"));
        assert_eq!(asked(&all.proxies[1]), words("wp-1", "istio-proxy", "/mesh-waypoint tap"));
    }
}
