//! The objects that serve a Gateway: service account, Deployment, Service, and where they are asked for (`scaling`) an autoscaler and a budget. Pure: they depend on nothing but what the Gateway asks for, the command line and
//! the mesh settings.

use std::collections::{BTreeMap, BTreeSet};

use mesh_core::listener::{Open, Transport};
use serde_json::{Map, Value as Json, json};

use super::overlay::{CONTAINER, Overlay, lay};
use super::plan::{Asked, Service};
use super::{Defaults, MANAGED, MANAGER_LABEL, scaling};
use crate::ca::authority::ROOTS_FILE;
use crate::index::Settings;
use crate::resource::waypoint::{GATEWAY_NAME, TUNNEL, TUNNEL_HTTP};

const CLASS_NAME: &str = "gateway.networking.k8s.io/gateway-class-name";
/// As whom the pods run; as the image says.
const NOBODY: u32 = 65532;
/// How long the pods go on taking connections when they are to end: until everybody knows that.
const LEAVING: u32 = 5;
/// How long requests may go on then, and what the process needs to end by itself.
const DRAIN: u32 = 20;
const END: u32 = 10;
const METRICS: u16 = 15020;
const READINESS: u16 = 15021;
const ROOT_FOLDER: &str = "/var/run/secrets/undermesh";
const TOKEN_FOLDER: &str = "/var/run/secrets/tokens";
/// The ConfigMap with the roots, in every namespace of the mesh.
const ROOT_MAP: &str = "undermesh-root-cert";
/// Whom the token of the pods is meant for, as Istio's proxies'.
const AUDIENCE: &str = "istio-ca";

/// All of them, in the order of [`super::round::What::MADE`], each if it is wanted; `more` are ports that Gateways of Istio ask for.
pub fn objects(
    asked: &Asked,
    service: &Service,
    more: &BTreeSet<Open>,
    over: &Overlay,
    defaults: &Defaults,
    settings: &Settings,
) -> [Option<Json>; 5] {
    [
        Some(account(asked, over)),
        Some(deployment(asked, over, defaults, settings)),
        Some(exposed(asked, service, more, over)),
        scaling::autoscaler(asked, over),
        scaling::budget(asked, over),
    ]
}

fn account(asked: &Asked, over: &Overlay) -> Json {
    let mut account = head("v1", "ServiceAccount", &asked.account, asked);
    if let Some(account) = account.as_object_mut() {
        account.insert("automountServiceAccountToken".into(), false.into());
    }
    laid(account, &over.account, asked)
}

/// Everything but what the object is there for.
pub(super) fn head(api_version: &str, kind: &str, name: &str, asked: &Asked) -> Json {
    json!({
        "apiVersion": api_version,
        "kind": kind,
        "metadata": {
            "name": name,
            "namespace": asked.name.namespace.as_str(),
            "labels": labels(asked),
            "annotations": asked.spec.annotations(),
            "ownerReferences": [{
                "apiVersion": "gateway.networking.k8s.io/v1",
                "kind": "Gateway",
                "name": asked.name.name.as_str(),
                "uid": asked.uid,
            }],
        },
    })
}

/// What users give the objects, and over it what we know them by.
fn labels(asked: &Asked) -> BTreeMap<String, String> {
    let mut labels = asked.spec.labels().clone();
    let class: &str = &asked.spec.gateway_class_name;
    for (key, value) in [(GATEWAY_NAME, &*asked.label), (CLASS_NAME, class), (MANAGED, MANAGER_LABEL)] {
        labels.insert(key.to_owned(), value.to_owned());
    }
    labels
}

/// What the pods are known by: their label alone, for it never changes.
pub(super) fn selector(asked: &Asked) -> Json {
    json!({ GATEWAY_NAME: asked.label.as_str() })
}

fn deployment(asked: &Asked, over: &Overlay, defaults: &Defaults, settings: &Settings) -> Json {
    let mut labels = labels(asked);
    // It ends tunnels itself: no agent is to capture it, and no sidecar to be put into it.
    for (key, value) in [
        ("istio.io/dataplane-mode", "none"),
        ("sidecar.istio.io/inject", "false"),
        ("service.istio.io/canonical-name", &*asked.deployed),
        ("service.istio.io/canonical-revision", "latest"),
    ] {
        labels.insert(key.to_owned(), value.to_owned());
    }
    // Of a waypoint everybody knows it.
    if !asked.is_waypoint {
        labels.entry(TUNNEL.to_owned()).or_insert_with(|| TUNNEL_HTTP.to_owned());
    }
    let mut annotations = asked.spec.annotations().clone();
    let (metrics, path) = (METRICS.to_string(), "/stats/prometheus".to_owned());
    for (key, value) in [("scrape", "true".to_owned()), ("port", metrics), ("path", path)] {
        annotations.entry(format!("prometheus.io/{key}")).or_insert(value);
    }
    let mut object = head("apps/v1", "Deployment", &asked.deployed, asked);
    // How many there are is not said: one, until a user or an autoscaler says another number, which then stays.
    object["spec"] = json!({
        "selector": { "matchLabels": selector(asked) },
        "strategy": { "rollingUpdate": { "maxSurge": 1, "maxUnavailable": 0 } },
        "template": {
            "metadata": { "labels": labels, "annotations": annotations },
            "spec": pod(asked, defaults, settings),
        },
    });
    if !over.deployment.is_empty() {
        object = laid(object, &over.deployment, asked);
        let template = &mut object["spec"]["template"]["metadata"]["labels"];
        restore(template, &labels_of_ours(asked));
        restore(template, &BTreeMap::from([("istio.io/dataplane-mode".to_owned(), "none".to_owned())]));
    }
    object
}

fn pod(asked: &Asked, defaults: &Defaults, settings: &Settings) -> Json {
    let mut security = json!({
        "runAsNonRoot": true,
        "runAsUser": NOBODY,
        "runAsGroup": NOBODY,
        "seccompProfile": { "type": "RuntimeDefault" },
    });
    if !asked.is_waypoint {
        // Listeners stand on ports below 1024 as well; this needs no capability.
        security["sysctls"] = json!([{ "name": "net.ipv4.ip_unprivileged_port_start", "value": "0" }]);
    }
    let token =
        json!({ "serviceAccountToken": { "audience": AUDIENCE, "expirationSeconds": 43200, "path": "istio-token" } });
    let mut pod = json!({
        "serviceAccountName": asked.account.as_str(),
        // It never asks the API server; its own token is the one below.
        "automountServiceAccountToken": false,
        "enableServiceLinks": false,
        "terminationGracePeriodSeconds": LEAVING + DRAIN + END,
        "securityContext": security,
        "topologySpreadConstraints": [{
            "maxSkew": 1,
            "topologyKey": "kubernetes.io/hostname",
            "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": { "matchLabels": selector(asked) },
        }],
        "containers": [container(asked, defaults, settings)],
        "volumes": [
            { "name": "root-cert", "configMap": { "name": ROOT_MAP } },
            { "name": "token", "projected": { "sources": [token] } },
        ],
    });
    if !defaults.pull_secrets.is_empty() {
        pod["imagePullSecrets"] = defaults.pull_secrets.iter().map(|name| json!({ "name": name })).collect();
    }
    pod
}

fn container(asked: &Asked, defaults: &Defaults, settings: &Settings) -> Json {
    let field = |name: &str, path: &str| json!({ "name": name, "valueFrom": { "fieldRef": { "fieldPath": path } } });
    let mut ports = vec![
        json!({ "name": "metrics", "containerPort": METRICS, "protocol": "TCP" }),
        json!({ "name": "status-port", "containerPort": READINESS, "protocol": "TCP" }),
    ];
    if asked.is_waypoint {
        ports.push(json!({ "name": "mesh", "containerPort": mesh_core::ports::HBONE, "protocol": "TCP" }));
    }
    json!({
        "name": CONTAINER,
        "image": defaults.image,
        "imagePullPolicy": defaults.pull_policy,
        "args": arguments(asked, defaults, settings),
        "env": [
            field("UNDERMESH_NAMESPACE", "metadata.namespace"),
            field("UNDERMESH_POD", "metadata.name"),
            field("UNDERMESH_IPS", "status.podIPs"),
            field("UNDERMESH_NODE", "spec.nodeName"),
            // In no folder: a volume for it would keep pods from being drained. A command in the container finds it by this, too.
            { "name": "UNDERMESH_ADMIN", "value": "@undermesh/$(UNDERMESH_POD)" },
        ],
        "ports": ports,
        "readinessProbe": {
            "httpGet": { "path": "/healthz/ready", "port": READINESS },
            "periodSeconds": 3,
            "timeoutSeconds": 5,
        },
        // The image has no shell to sleep with.
        "lifecycle": { "preStop": { "sleep": { "seconds": LEAVING } } },
        "resources": { "requests": { "cpu": "100m", "memory": "64Mi" } },
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "capabilities": { "drop": ["ALL"] },
            "privileged": false,
            "readOnlyRootFilesystem": true,
            "runAsNonRoot": true,
            "runAsUser": NOBODY,
            "runAsGroup": NOBODY,
        },
        "volumeMounts": [
            { "name": "root-cert", "mountPath": ROOT_FOLDER, "readOnly": true },
            { "name": "token", "mountPath": TOKEN_FOLDER, "readOnly": true },
        ],
    })
}

fn arguments(asked: &Asked, defaults: &Defaults, settings: &Settings) -> Vec<String> {
    let mut arguments = vec![
        format!("--gateway={}", asked.name.name),
        format!("--service-account={}", asked.account),
        format!("--control={}", defaults.control),
        format!("--control-root={ROOT_FOLDER}/{ROOTS_FILE}"),
        format!("--token={TOKEN_FOLDER}/istio-token"),
        format!("--cluster-id={}", settings.cluster_id),
        format!("--trust-domain={}", settings.trust_domain),
        format!("--cluster-domain={}", settings.cluster_domain),
        format!("--drain={DRAIN}s"),
        format!("--log-level={}", defaults.log_level),
        format!("--log-format={}", defaults.log_format),
    ];
    if asked.deployed != asked.name.name {
        arguments.push(format!("--service={}", asked.deployed));
    }
    if !defaults.network.is_empty() {
        arguments.push(format!("--network={}", defaults.network));
    }
    arguments
}

fn exposed(asked: &Asked, service: &Service, more: &BTreeSet<Open>, over: &Overlay) -> Json {
    let usual = if asked.is_waypoint { "ClusterIP" } else { "LoadBalancer" };
    let kind = service.kind.unwrap_or(usual);
    let mut object = head("v1", "Service", &asked.deployed, asked);
    object["spec"] = json!({
        "type": kind,
        "selector": selector(asked),
        "ipFamilyPolicy": "PreferDualStack",
        "ports": ports(asked, more),
    });
    if let Some(address) = service.addresses.first() {
        let field = if kind == "LoadBalancer" { "loadBalancerIP" } else { "clusterIP" };
        object["spec"][field] = address.as_str().into();
    }
    laid(object, &over.service, asked)
}

/// One port for each number that is listened on, and that of readiness, by which load balancers ask whether anybody is there.
fn ports(asked: &Asked, more: &BTreeSet<Open>) -> Vec<Json> {
    let port = |name: &str, number: u16, transport: &str| {
        let target = if transport == "TCP" { asked.ports.target(number) } else { number };
        let mut port = Map::new();
        port.insert("name".into(), name.into());
        port.insert("port".into(), number.into());
        port.insert("targetPort".into(), target.into());
        port.insert("protocol".into(), transport.into());
        port
    };
    let mut ports = vec![port("status-port", READINESS, "TCP")];
    let mut seen = vec![(READINESS, "TCP")];
    for (number, one) in asked.ports.iter() {
        seen.push((number, "TCP"));
        ports.push(port(&one.name, number, "TCP"));
    }
    for listener in &asked.spec.listeners {
        let transport = if listener.protocol == "UDP" { "UDP" } else { "TCP" };
        if seen.contains(&(listener.port, transport)) {
            continue;
        }
        seen.push((listener.port, transport));
        let (protocol, number) = (listener.protocol.as_str(), listener.port);
        let plain: String =
            protocol.to_ascii_lowercase().chars().filter(char::is_ascii_alphanumeric).take(40).collect();
        let name = match protocol {
            "HBONE" => "mesh".to_owned(),
            _ => format!("{plain}-{number}"),
        };
        let mut port = port(&name, number, transport);
        if protocol == "HBONE" {
            port.insert("appProtocol".into(), "hbone".into());
        }
        ports.push(port);
    }
    let others = more.iter().map(|open| match open.transport {
        Transport::Tcp => (open.port, "TCP", "tcp"),
        Transport::Udp => (open.port, "UDP", "udp"),
    });
    let is_led_to = |number, transport| transport == "TCP" && asked.ports.is_target(number);
    let others = others
        .filter(|(number, transport, _)| !seen.contains(&(*number, *transport)) && !is_led_to(*number, *transport));
    ports.extend(others.map(|(number, transport, name)| port(&format!("{name}-{number}"), number, transport)));
    ports.into_iter().map(Json::Object).collect()
}

fn labels_of_ours(asked: &Asked) -> BTreeMap<String, String> {
    labels(asked).into_iter().filter(|(key, _)| [GATEWAY_NAME, CLASS_NAME, MANAGED].contains(&key.as_str())).collect()
}

/// An object with what is laid over it.
pub(super) fn laid(mut object: Json, over: &[Json], asked: &Asked) -> Json {
    over.iter().for_each(|over| lay(&mut object, over));
    keep(&mut object, asked);
    object
}

/// What we know an object by stays what it is, whatever was laid over it.
fn keep(object: &mut Json, asked: &Asked) {
    restore(&mut object["metadata"]["labels"], &labels_of_ours(asked));
}

fn restore(labels: &mut Json, ours: &BTreeMap<String, String>) {
    if !labels.is_object() {
        *labels = json!({});
    }
    for (key, value) in ours {
        labels[key] = value.as_str().into();
    }
}
