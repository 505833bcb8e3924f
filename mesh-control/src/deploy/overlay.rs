//! What users lay over the objects of a Gateway: the ConfigMap of `spec.infrastructure.parametersRef`, and before it that of its class, as Istio's, with the keys `deployment`, `service`,
//! `serviceAccount`, `horizontalPodAutoscaler` and `podDisruptionBudget`, each a part of such an object in YAML. The latter two are made only if their key is there. Pure.
//!
//! Who may write Gateways and ConfigMaps of a namespace may not, by that, make pods there: it is this control plane that makes them. So only what says where
//! and how well the pods run can be laid over (the tables below), and never what they run, as whom, and with which rights.

use serde_json::{Map, Value as Json};

use crate::yaml::node::{Node as Tree, Value, join, parse};
use crate::yaml::stack::with_room;

/// The name of the container: Istio's, so that what was written for Istio's gateways meets the same one.
pub const CONTAINER: &str = "istio-proxy";
/// Bytes of one text.
const LONGEST: usize = 64 << 10;
/// On a ConfigMap of the control plane's own namespace: the class whose Gateways it is for.
pub const OF_CLASS: &str = "gateway.istio.io/defaults-for-class";

/// Keys of the ConfigMap.
const PARTS: [&str; 5] = ["deployment", "service", "serviceAccount", "horizontalPodAutoscaler", "podDisruptionBudget"];

/// What may be laid over a Deployment. `[]` is the container of ours; what is below of a path may be anything.
const DEPLOYMENT: [&str; 24] = [
    "metadata.labels",
    "metadata.annotations",
    "spec.replicas",
    "spec.strategy",
    "spec.minReadySeconds",
    "spec.revisionHistoryLimit",
    "spec.progressDeadlineSeconds",
    "spec.template.metadata.labels",
    "spec.template.metadata.annotations",
    "spec.template.spec.affinity",
    "spec.template.spec.dnsConfig",
    "spec.template.spec.dnsPolicy",
    "spec.template.spec.imagePullSecrets",
    "spec.template.spec.nodeSelector",
    "spec.template.spec.priorityClassName",
    "spec.template.spec.schedulerName",
    "spec.template.spec.terminationGracePeriodSeconds",
    "spec.template.spec.tolerations",
    "spec.template.spec.topologySpreadConstraints",
    "spec.template.spec.containers[].name",
    "spec.template.spec.containers[].imagePullPolicy",
    "spec.template.spec.containers[].readinessProbe",
    "spec.template.spec.containers[].resources",
    "spec.template.spec.containers[].startupProbe",
];

/// What may be laid over a Service. `[]` is a port, which is known by its number.
const SERVICE: [&str; 18] = [
    "metadata.labels",
    "metadata.annotations",
    "spec.type",
    "spec.allocateLoadBalancerNodePorts",
    "spec.externalTrafficPolicy",
    "spec.healthCheckNodePort",
    "spec.internalTrafficPolicy",
    "spec.ipFamilies",
    "spec.ipFamilyPolicy",
    "spec.loadBalancerClass",
    "spec.loadBalancerIP",
    "spec.loadBalancerSourceRanges",
    "spec.sessionAffinity",
    "spec.sessionAffinityConfig",
    "spec.trafficDistribution",
    "spec.ports[].port",
    "spec.ports[].nodePort",
    "spec.ports[].appProtocol",
];

/// What may be laid over a service account: whom the pods speak as outside of the mesh is said by its annotations, and those a Gateway says in any case.
const ACCOUNT: [&str; 3] = ["metadata.labels", "metadata.annotations", "imagePullSecrets"];

/// What may be laid over a HorizontalPodAutoscaler: everything but what it scales.
const AUTOSCALER: [&str; 6] = [
    "metadata.labels",
    "metadata.annotations",
    "spec.minReplicas",
    "spec.maxReplicas",
    "spec.metrics",
    "spec.behavior",
];

/// What may be laid over a PodDisruptionBudget: everything but whose pods it is about.
const BUDGET: [&str; 5] = [
    "metadata.labels",
    "metadata.annotations",
    "spec.minAvailable",
    "spec.maxUnavailable",
    "spec.unhealthyPodEvictionPolicy",
];

/// What is laid over, one after the other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overlay {
    /// Over the Deployment.
    pub deployment: Vec<Json>,
    /// Over the Service.
    pub service: Vec<Json>,
    /// Over the service account.
    pub account: Vec<Json>,
    /// Over the HorizontalPodAutoscaler, which there is only with this.
    pub autoscaler: Vec<Json>,
    /// Over the PodDisruptionBudget, which there is only with this.
    pub budget: Vec<Json>,
}

impl Overlay {
    /// This, and over it what is more specific.
    #[must_use]
    pub fn then(mut self, more: Self) -> Self {
        self.deployment.extend(more.deployment);
        self.service.extend(more.service);
        self.account.extend(more.account);
        self.autoscaler.extend(more.autoscaler);
        self.budget.extend(more.budget);
        self
    }

    /// Reads a ConfigMap. The error says what, where, and what could be there instead.
    pub fn read(config_map: &Json) -> Result<Self, String> {
        let mut overlay = Self::default();
        let empty = Map::new();
        let data = config_map.get("data").and_then(Json::as_object).unwrap_or(&empty);
        for (key, text) in data {
            let text = text.as_str().unwrap_or_default();
            match key.as_str() {
                "deployment" => overlay.deployment.extend(part(key, text, &DEPLOYMENT)?),
                "service" => overlay.service.extend(part(key, text, &SERVICE)?),
                "serviceAccount" => overlay.account.extend(part(key, text, &ACCOUNT)?),
                "horizontalPodAutoscaler" => overlay.autoscaler.push(made(part(key, text, &AUTOSCALER)?)),
                "podDisruptionBudget" => overlay.budget.push(one_number(made(part(key, text, &BUDGET)?))),
                other => {
                    return Err(format!("data.{other}: there is no such part; write one of {}", PARTS.join(", ")));
                }
            }
        }
        Ok(overlay)
    }
}

/// A key that is there asks for the object, also if it says nothing of it.
fn made(part: Option<Json>) -> Json {
    part.unwrap_or_else(|| Json::Object(Map::new()))
}

/// A budget has one of two numbers: what says one takes away the other, which was said before it. Who says both himself keeps both, and the API server tells him.
fn one_number(mut budget: Json) -> Json {
    if let Some(spec) = budget.get_mut("spec").and_then(Json::as_object_mut) {
        for (own, other) in [("minAvailable", "maxUnavailable"), ("maxUnavailable", "minAvailable")] {
            if spec.get(own).is_some_and(|number| !number.is_null()) {
                spec.entry(other).or_insert(Json::Null);
            }
        }
    }
    budget
}

fn part(key: &str, text: &str, allowed: &[&str]) -> Result<Option<Json>, String> {
    if text.len() > LONGEST {
        return Err(format!("data.{key}: longer than {LONGEST} bytes"));
    }
    let tree = match with_room(|| parse(text)) {
        Ok(Ok(tree)) => tree,
        Ok(Err((message, span))) => {
            return Err(format!("data.{key}: not valid YAML, line {} of the text: {message}", span.line));
        }
        Err(why) => return Err(format!("data.{key}: {why}")),
    };
    let mut json = json(tree);
    match &mut json {
        Json::Null => return Ok(None),
        // What it is a part of is known.
        Json::Object(fields) => fields.retain(|key, _| !["apiVersion", "kind"].contains(&key.as_str())),
        _ => return Err(format!("data.{key}: expected a part of an object, as `spec: {{…}}`")),
    }
    check(&json, "", allowed).map_err(|(path, why)| format!("data.{key}: {path}: {why}"))?;
    Ok(Some(json))
}

fn json(tree: Tree) -> Json {
    match tree.value {
        Value::Null => Json::Null,
        Value::Bool(b) => b.into(),
        Value::Int(n) => n.into(),
        Value::Big(n) => n.into(),
        Value::Float(n) => n.into(),
        Value::String(text) => text.into(),
        Value::List(items) => Json::Array(items.into_iter().map(json).collect()),
        Value::Map(entries) => Json::Object(entries.into_iter().map(|e| (e.key, json(e.node))).collect()),
    }
}

/// Whether all of it may be there.
fn check(value: &Json, path: &str, allowed: &[&str]) -> Result<(), (String, String)> {
    if allowed.contains(&path) {
        return whole(value, path);
    }
    let below =
        |path: &str| allowed.iter().any(|a| a.strip_prefix(path).is_some_and(|rest| rest.starts_with(['.', '['])));
    let refuse = |path: &str| {
        let parent = path.rsplit_once('.').map_or("", |(parent, _)| parent);
        let near: Vec<&str> = allowed.iter().copied().filter(|a| a.starts_with(parent)).take(8).collect();
        Err((path.to_owned(), format!("cannot be set here; what can: {}, …", near.join(", "))))
    };
    match value {
        _ if path.is_empty() || below(path) => {}
        _ => return refuse(path),
    }
    match value {
        Json::Object(fields) => fields.iter().try_for_each(|(key, value)| check(value, &join(path, key), allowed)),
        Json::Array(items) => items.iter().try_for_each(|item| {
            let is_named = item.get("name").and_then(Json::as_str) == Some(CONTAINER) || item.get("port").is_some();
            match is_named && item.is_object() {
                true => check(item, &format!("{path}[]"), allowed),
                false => Err((
                    path.to_owned(),
                    format!("there is only what is called {CONTAINER}, or a `port` by its number"),
                )),
            }
        }),
        // What is null goes, and with it whatever of ours is below.
        _ => refuse(path),
    }
}

/// What may be anything holds no directives for merging: they are not heeded.
fn whole(value: &Json, path: &str) -> Result<(), (String, String)> {
    match value {
        Json::Object(fields) => fields.iter().try_for_each(|(key, value)| match key.starts_with('$') {
            true => Err((join(path, key), "directives are not supported; write the value itself".to_owned())),
            false => whole(value, path),
        }),
        Json::Array(items) => items.iter().try_for_each(|item| whole(item, path)),
        _ => Ok(()),
    }
}

/// Lays `over` over `base`, as a strategic merge: objects field by field, containers by their name and ports by their number, and what is null goes. Other
/// lists are replaced.
pub fn lay(base: &mut Json, over: &Json) {
    match (base, over) {
        (Json::Object(base), Json::Object(over)) => {
            for (key, value) in over {
                match value {
                    Json::Null => drop(base.remove(key)),
                    _ => lay(base.entry(key.clone()).or_insert(Json::Null), value),
                }
            }
        }
        (Json::Array(base), Json::Array(over)) if over.iter().all(|item| same(item).is_some()) => {
            for item in over {
                match base.iter_mut().find(|one| same(one) == same(item)) {
                    Some(one) => lay(one, item),
                    None => base.push(item.clone()),
                }
            }
        }
        (base, over) => *base = over.clone(),
    }
}

/// By what items of a list are the same one.
fn same(item: &Json) -> Option<&Json> {
    let is_port = |item: &Json| item.get("port").is_some_and(Json::is_number);
    if is_port(item) { item.get("port") } else { item.get("name") }
}
