//! What there is to do, of all that is known: one list of steps. Pure; [`super::run`] does them and says what came of each.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};

use jiff::Timestamp;
use mesh_core::NamespacedName;
use mesh_core::listener::Open;
use serde_json::{Value as Json, json};

use super::claims::Claims;
use super::listener_sets::{self, Joined};
use super::live::{essence, is_ours, owner, yield_to_others};
use super::objects::objects;
use super::overlay::Overlay;
use super::plan::{self, Asked, Parameters, Plan, Refusal};
use super::standing::{Seen, told};
use super::{Defaults, classes, standing};
use crate::index::Settings;
use crate::index::l7::listeners::frontend::GatewayTold;
use crate::index::l7::listeners::told::ListenerTold;
use crate::resource::routing::Gateway;
use crate::resource::waypoint::{GATEWAY_NAME, gateway_label};

/// What is followed, and made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum What {
    /// GatewayClass
    Class,
    /// XMesh, which few clusters have
    Mesh,
    /// Gateway
    Gateway,
    /// ListenerSet, which few clusters have, too
    ListenerSet,
    /// ServiceAccount
    Account,
    /// Deployment
    Deployment,
    /// Service
    Service,
    /// HorizontalPodAutoscaler, which few Gateways have
    Autoscaler,
    /// PodDisruptionBudget, which few have, too
    Budget,
}

impl What {
    /// All of them.
    pub const ALL: [What; 9] = [
        What::Class,
        What::Mesh,
        What::Gateway,
        What::ListenerSet,
        What::Account,
        What::Deployment,
        What::Service,
        What::Autoscaler,
        What::Budget,
    ];
    /// What is made for a Gateway, in the order of [`objects`].
    pub const MADE: [What; 5] = [What::Account, What::Deployment, What::Service, What::Autoscaler, What::Budget];

    /// Group and version, and its name in paths.
    pub fn resource(self) -> (&'static str, &'static str) {
        match self {
            What::Class => ("gateway.networking.k8s.io/v1", "gatewayclasses"),
            What::Mesh => ("gateway.networking.x-k8s.io/v1alpha1", "xmeshes"),
            What::Gateway => ("gateway.networking.k8s.io/v1", "gateways"),
            What::ListenerSet => ("gateway.networking.k8s.io/v1", "listenersets"),
            What::Account => ("v1", "serviceaccounts"),
            What::Deployment => ("apps/v1", "deployments"),
            What::Service => ("v1", "services"),
            What::Autoscaler => ("autoscaling/v2", "horizontalpodautoscalers"),
            What::Budget => ("policy/v1", "poddisruptionbudgets"),
        }
    }

    /// The kind.
    pub fn kind(self) -> &'static str {
        match self {
            What::Class => "GatewayClass",
            What::Mesh => "XMesh",
            What::Gateway => "Gateway",
            What::ListenerSet => "ListenerSet",
            What::Account => "ServiceAccount",
            What::Deployment => "Deployment",
            What::Service => "Service",
            What::Autoscaler => "HorizontalPodAutoscaler",
            What::Budget => "PodDisruptionBudget",
        }
    }

    /// Where an object of it is.
    pub fn path(self, name: &NamespacedName) -> String {
        let (version, plural) = self.resource();
        let root = if version.contains('/') { "apis" } else { "api" };
        match name.namespace.is_empty() {
            true => format!("/{root}/{version}/{plural}/{}", name.name),
            false => format!("/{root}/{version}/namespaces/{}/{plural}/{}", name.namespace, name.name),
        }
    }
}

/// An object of a kind.
pub type Key = (What, NamespacedName);

/// What was applied, and what the API server made of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Applied {
    /// Of what was asked for.
    pub desired: u64,
    /// Of what came of it.
    pub live: u64,
}

/// What the joining says of a Gateway.
#[derive(Clone, Debug, Default)]
pub struct Listened {
    /// What its listeners are told, in their order.
    pub told: Vec<ListenerTold>,
    /// What it is told itself.
    pub gateway: GatewayTold,
    /// Ports that are listened on besides, because a ListenerSet or a Gateway of Istio asks for them.
    pub ports: BTreeSet<Open>,
    /// The ListenerSets that name it.
    pub sets: BTreeMap<NamespacedName, Joined>,
    /// Of the hosts that it says it is found at those that there are.
    pub hosts: BTreeSet<String>,
}

/// All that is known.
#[derive(Clone, Debug, Default)]
pub struct Known {
    /// Objects by kind; none before all of a kind were heard of.
    pub objects: BTreeMap<What, BTreeMap<NamespacedName, Json>>,
    /// What this replica has applied.
    pub applied: BTreeMap<Key, Applied>,
    /// Why an object cannot be made.
    pub failures: BTreeMap<Key, String>,
    /// ConfigMaps that Gateways name, as far as they were looked at.
    pub parameters: BTreeMap<NamespacedName, Parameters>,
    /// ConfigMaps that are for classes, once they were looked at; or why nobody can.
    pub of_classes: Option<Result<Vec<Json>, Refusal>>,
}

/// Something to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Make it so. With the hash of what is asked for.
    Apply(Key, Json, u64),
    /// Take it away, if it is still the one of this uid.
    Delete(Key, String),
    /// Say it in the status of a Gateway or a class.
    Tell(Key, Json),
    /// Look at a ConfigMap that nobody has looked at yet.
    Read(NamespacedName),
    /// Look at those that are for classes.
    ReadOfClasses,
}

impl Step {
    /// Of which object it is.
    pub fn key(&self) -> Option<&Key> {
        match self {
            Step::Apply(key, ..) | Step::Delete(key, _) | Step::Tell(key, _) => Some(key),
            Step::Read(_) | Step::ReadOfClasses => None,
        }
    }
}

impl Known {
    /// All objects of a kind.
    pub fn all(&self, what: What) -> impl Iterator<Item = (&NamespacedName, &Json)> {
        self.objects.get(&what).into_iter().flatten()
    }

    pub(super) fn get(&self, what: What, name: &NamespacedName) -> Option<&Json> {
        self.objects.get(&what)?.get(name)
    }

    fn controller(&self, class: &str) -> Option<&str> {
        self.get(What::Class, &NamespacedName::new("", class))?["spec"]["controllerName"].as_str()
    }
}

/// What there is to do. `heeds` says whether a namespace is of the mesh, `listened` what is known of the listeners of a Gateway in just this form.
pub fn round(
    known: &Known,
    defaults: &Defaults,
    settings: &Settings,
    heeds: impl Fn(&str) -> bool,
    listened: impl Fn(&NamespacedName, &Gateway) -> Option<Listened>,
    now: Timestamp,
) -> Vec<Step> {
    let mut steps = classes_round(known, settings, now);
    // The name of each that is to stay; `None`: all that a Gateway has.
    let mut kept: BTreeMap<String, Option<Vec<Key>>> = BTreeMap::new();
    let sets = sets(known, &heeds);
    let mut plans = plans(known, settings, &heeds);
    let claims = Claims::of(known, &plans);
    for (name, object) in known.all(What::Gateway) {
        let uid = object.pointer("/metadata/uid").and_then(Json::as_str).unwrap_or_default().to_owned();
        let class = object["spec"]["gatewayClassName"].as_str().unwrap_or_default();
        let is_ending = object.pointer("/metadata/deletionTimestamp").is_some();
        if is_ending || !heeds(&name.namespace) {
            // What ends takes its objects along; what is not of the mesh any more may be again.
            kept.insert(uid, None);
            continue;
        }
        let Some(plan) = plans.remove(name) else {
            if known.controller(class).is_none() {
                // Nobody has the class, for a moment or for ever: what was made is in use.
                kept.insert(uid, None);
            }
            continue;
        };
        let (plan, overlay) = with_overlay(known, claims.judged(plan), &mut steps);
        let seen = match (&plan, overlay) {
            (Plan::Deploy(asked, service), Some(overlay)) => {
                let joined = listened(name, &asked.spec);
                let is_unjoined = joined.is_none();
                let more = joined.map(|listened| listened.ports).unwrap_or_default();
                let wanted = objects(asked, service, &more, &overlay, defaults, settings);
                let mut keys = Vec::new();
                for (what, desired) in What::MADE.into_iter().zip(wanted) {
                    let Some(desired) = desired else { continue };
                    let key = key(what, asked);
                    keys.push(key.clone());
                    // A service account that several Gateways name is the one's that has made it, for as long as that is there.
                    if what == What::Account && claims.shares(known, &key.1, &uid) {
                        continue;
                    }
                    // Its ports are not all known yet: what is there stays.
                    if is_unjoined && key.0 == What::Service && known.get(key.0, &key.1).is_some() {
                        continue;
                    }
                    steps.extend(apply(known, &key, desired, &overlay));
                }
                // It serves without what only says how many pods there are.
                let (scaling, needed): (Vec<&Key>, Vec<&Key>) =
                    keys.iter().partition(|key| matches!(key.0, What::Autoscaler | What::Budget));
                let failed =
                    |keys: Vec<&Key>| keys.into_iter().find_map(|key| known.failures.get(key)).map(String::as_str);
                let (failure, unscaled) = (failed(needed), failed(scaling));
                let ours = |what| known.get(what, &key(what, asked).1).filter(|live| is_ours(live));
                let (deployment, service) = (ours(What::Deployment), ours(What::Service));
                let seen = Seen { deployment, service, failure, unscaled, host: None };
                kept.insert(uid, Some(keys));
                seen
            }
            (Plan::Manual(asked, hosts), _) => {
                let joined = listened(name, &asked.spec);
                let hosts = hosts.iter().map(|host| plan::whole(host, &name.namespace, settings));
                let seen = Seen {
                    host: joined.as_ref().and_then(|joined| unusable(known, &uid, hosts, joined, settings)),
                    ..Seen::default()
                };
                // What was made serves until there is another place to be served at.
                let is_served = joined.is_some() && seen.host.is_none();
                kept.insert(uid, is_served.then(Vec::new));
                seen
            }
            // Refused, or not to be judged before its ConfigMap has been looked at.
            (Plan::Refuse(_), _) | (Plan::Deploy(..), None) => {
                kept.insert(uid, None);
                if !matches!(plan, Plan::Refuse(_)) {
                    continue;
                }
                Seen::default()
            }
        };
        // What is said of a Gateway is said of all of it: before it was joined nothing is.
        let joined = match &plan {
            Plan::Deploy(asked, _) | Plan::Manual(asked, _) => match listened(name, &asked.spec) {
                Some(listened) => listened,
                None => continue,
            },
            Plan::Refuse(_) => Listened::default(),
        };
        let told = told(&plan, seen, &name.namespace, settings);
        for (set, object) in sets.get(name).into_iter().flatten() {
            let status = listener_sets::status(object, joined.sets.get(*set), &told, now);
            steps.extend(status.map(|status| tell(What::ListenerSet, set, status)));
        }
        let attached = joined.sets.values().filter(|set| set.told.is_accepted()).count();
        let told = told.with(&joined.told, attached > 0).of(&joined.gateway);
        let attached = known.objects.contains_key(&What::ListenerSet).then_some(attached);
        let status = standing::status(object, &told, &joined.told, attached, now);
        steps.extend(status.map(|status| tell(What::Gateway, name, status)));
    }
    steps.extend(leavings(known, &kept));
    steps
}

/// What is planned for each Gateway of ours that does not end, of namespaces of the mesh.
fn plans(known: &Known, settings: &Settings, heeds: impl Fn(&str) -> bool) -> BTreeMap<NamespacedName, Plan> {
    let is_meant = |(name, object): &(&NamespacedName, &Json)| {
        let class = object["spec"]["gatewayClassName"].as_str().unwrap_or_default();
        let is_ending = object.pointer("/metadata/deletionTimestamp").is_some();
        !is_ending && heeds(&name.namespace) && plan::is_ours(class, known.controller(class), settings)
    };
    let meant = known.all(What::Gateway).filter(is_meant);
    meant.map(|(name, object)| (name.clone(), plan::plan(object))).collect()
}

/// Why a Gateway is not found at a host where it says that it is.
fn unusable(
    known: &Known,
    uid: &str,
    mut hosts: impl Iterator<Item = String>,
    joined: &Listened,
    settings: &Settings,
) -> Option<String> {
    let own =
        known.all(What::Service).filter(|(_, live)| is_ours(live) && owner(live).is_some_and(|(_, of)| of == uid));
    let own: Vec<(&str, String)> =
        own.map(|(made, _)| (&*made.name, plan::whole(&made.name, &made.namespace, settings))).collect();
    hosts.find_map(|host| match own.iter().find(|(_, made)| *made == host) {
        Some((name, _)) => {
            Some(format!("the Service {name} is made for this Gateway: delete the address, and it is found there"))
        }
        None if joined.hosts.contains(&host) => None,
        None => {
            Some(format!("there is no Service {host}: make it, or write the name of the one that leads to its pods"))
        }
    })
}

/// The ListenerSets that name each Gateway, of namespaces of the mesh.
fn sets(known: &Known, heeds: impl Fn(&str) -> bool) -> BTreeMap<NamespacedName, Vec<(&NamespacedName, &Json)>> {
    let mut sets: BTreeMap<NamespacedName, Vec<(&NamespacedName, &Json)>> = BTreeMap::new();
    for (name, object) in known.all(What::ListenerSet).filter(|(name, _)| heeds(&name.namespace)) {
        let of = listener_sets::gateway(name, object);
        of.into_iter().for_each(|gateway| sets.entry(gateway).or_default().push((name, object)));
    }
    sets
}

fn key(what: What, asked: &Asked) -> Key {
    let name = if what == What::Account { &asked.account } else { &asked.deployed };
    (what, NamespacedName::new(asked.name.namespace.clone(), name.clone()))
}

/// What the ConfigMaps of the Gateway and of its class make of the plan; no overlay while nobody has looked at those.
fn with_overlay(known: &Known, plan: Plan, steps: &mut Vec<Step>) -> (Plan, Option<Overlay>) {
    let Plan::Deploy(asked, _) = &plan else { return (plan, None) };
    let Some(of_classes) = &known.of_classes else {
        if !steps.contains(&Step::ReadOfClasses) {
            steps.push(Step::ReadOfClasses);
        }
        return (plan, None);
    };
    let overlay = match plan::parameters(asked) {
        Ok(None) => Ok(Overlay::default()),
        Err(refusal) => Err(refusal),
        Ok(Some(config_map)) => {
            let name = NamespacedName::new(asked.name.namespace.clone(), config_map);
            match known.parameters.get(&name) {
                Some(found) => plan::overlay(&name, found),
                None => {
                    steps.push(Step::Read(name));
                    return (plan, None);
                }
            }
        }
    };
    let of_classes = of_classes.as_ref().map_err(Refusal::clone);
    let of_class = of_classes.and_then(|all| plan::of_class(&asked.spec.gateway_class_name, all));
    match of_class.and_then(|of_class| Ok(of_class.then(overlay?))) {
        Ok(overlay) => (plan, Some(overlay)),
        Err(refusal) => (Plan::Refuse(refusal), None),
    }
}

fn apply(known: &Known, key: &Key, mut desired: Json, overlay: &Overlay) -> Option<Step> {
    let live = known.get(key.0, &key.1);
    if let (What::Deployment, Some(live)) = (key.0, live) {
        let is_said = |field: &str| {
            let path = match field {
                "replicas" => "/spec/replicas",
                _ => "/spec/template/spec/containers/0/resources",
            };
            overlay.deployment.iter().any(|over| over.pointer(path).is_some())
        };
        yield_to_others(&mut desired, live, !overlay.autoscaler.is_empty(), is_said);
    }
    let mut hasher = DefaultHasher::new();
    desired.to_string().hash(&mut hasher);
    let hash = hasher.finish();
    let is_so =
        live.is_some_and(|live| known.applied.get(key) == Some(&Applied { desired: hash, live: essence(live) }));
    (!is_so).then(|| Step::Apply(key.clone(), desired, hash))
}

/// What is ours and no Gateway wants any more.
fn leavings(known: &Known, kept: &BTreeMap<String, Option<Vec<Key>>>) -> Vec<Step> {
    let mut steps = Vec::new();
    let wanted: BTreeMap<&Key, &String> =
        kept.iter().flat_map(|(uid, keys)| keys.iter().flatten().map(move |key| (key, uid))).collect();
    for what in What::MADE {
        for (name, object) in known.all(what).filter(|(_, object)| is_ours(object)) {
            let key = (what, name.clone());
            // Another Gateway has come to want what one leaves. A Deployment's selector cannot be changed: of that one is made anew.
            let is_of = |uid: &&String| what != What::Deployment || selects_pods_of(known, object, uid);
            if wanted.get(&key).is_some_and(is_of) {
                continue;
            }
            let is_kept = owner(object).is_some_and(|(_, uid)| match kept.get(uid) {
                Some(None) => true,
                Some(Some(_)) | None => false,
            });
            let is_ending = object.pointer("/metadata/deletionTimestamp").is_some();
            let uid = object.pointer("/metadata/uid").and_then(Json::as_str).unwrap_or_default();
            if !is_kept && !is_ending && !uid.is_empty() {
                steps.push(Step::Delete(key, uid.to_owned()));
            }
        }
    }
    steps
}

/// Whether a Deployment's pods are those of the Gateway with this uid.
fn selects_pods_of(known: &Known, deployment: &Json, uid: &str) -> bool {
    let labels = deployment.pointer("/spec/selector/matchLabels");
    let Some(label) = labels.and_then(|labels| labels.get(GATEWAY_NAME)).and_then(Json::as_str) else { return true };
    let is_it = |gateway: &Json| gateway.pointer("/metadata/uid").and_then(Json::as_str) == Some(uid);
    let mut named = known.all(What::Gateway).filter(|(_, gateway)| is_it(gateway));
    named.any(|(name, _)| gateway_label(&name.name) == label)
}

fn classes_round(known: &Known, settings: &Settings, now: Timestamp) -> Vec<Step> {
    let mut steps = Vec::new();
    for class in classes::wanted(settings.istio_names) {
        let name = NamespacedName::new("", class.pointer("/metadata/name").and_then(Json::as_str).unwrap_or_default());
        if known.get(What::Class, &name).is_none() {
            steps.push(Step::Apply((What::Class, name), class, 0));
        }
    }
    let mesh = NamespacedName::new("", "undermesh");
    if known.objects.get(&What::Mesh).is_some_and(|all| !all.contains_key(&mesh)) {
        steps.push(Step::Apply((What::Mesh, mesh), classes::mesh(), 0));
    }
    for what in [What::Class, What::Mesh] {
        for (name, object) in known.all(what).filter(|(_, object)| classes::is_ours(object)) {
            steps.extend(classes::status(object, now).map(|status| tell(what, name, status)));
        }
    }
    steps
}

fn tell(what: What, name: &NamespacedName, status: Json) -> Step {
    let mut metadata = json!({ "name": name.name.as_str() });
    if !name.namespace.is_empty() {
        metadata["namespace"] = name.namespace.as_str().into();
    }
    let (version, _) = what.resource();
    let body = json!({ "apiVersion": version, "kind": what.kind(), "metadata": metadata, "status": status });
    Step::Tell((what, name.clone()), body)
}
