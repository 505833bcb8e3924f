//! Whether a Gateway is served by pods of ours, and what they are to be. Pure.

use mesh_core::{ArcStr, NamespacedName};
use serde_json::Value as Json;

use super::overlay::{OF_CLASS, Overlay};
use crate::cluster::decode::{Item, decode};
use crate::diagnosis::{Diagnosis, Severity};
use crate::index::Settings;
use crate::resource::gateway_ports::GatewayPorts;
use crate::resource::mesh_config::IstioNames;
use crate::resource::routing::gateway::{Address, Gateway};
use crate::resource::routing::reference::{CONTROLLER, is_our_class};
use crate::resource::routing::{Routed, Routing};
use crate::resource::waypoint::{SERVICE_ACCOUNT, deployed_name, gateway_label};
use crate::resource::{Kind, Labels, Object};

/// Where the type of the Service is said.
pub const SERVICE_TYPE: &str = "networking.istio.io/service-type";
/// Problems in one message.
const MOST_PROBLEMS: usize = 5;
const TYPES: [&str; 3] = ["ClusterIP", "NodePort", "LoadBalancer"];

/// A Gateway of ours that can be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// Namespace and name.
    pub name: NamespacedName,
    /// The object's.
    pub uid: String,
    /// It is a waypoint: it takes tunnels.
    pub is_waypoint: bool,
    /// What it says to meshes in labels and annotations.
    pub marks: Labels,
    /// What it asks for.
    pub spec: Gateway,
    /// What Deployment and Service are called.
    pub deployed: ArcStr,
    /// What the service account is called.
    pub account: ArcStr,
    /// By which pods name the Gateway.
    pub label: ArcStr,
    /// Ports of the Service that lead to other ones of the pods. What is wrong with them the joining tells.
    pub ports: GatewayPorts,
}

/// Why a Gateway is not served, in the words of the Gateway API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// A reason of the condition `Accepted`.
    pub reason: &'static str,
    /// For people: what, where, how to mend it.
    pub message: String,
}

/// What becomes of a Gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Plan {
    /// It gets pods.
    Deploy(Box<Asked>, Service),
    /// It has pods already, which somebody else made: those behind these host names.
    Manual(Box<Asked>, Vec<String>),
    /// It cannot be served as it is. What was made of an earlier form of it stays.
    Refuse(Refusal),
}

/// What a Gateway asks of its Service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Service {
    /// `ClusterIP`, `NodePort` or `LoadBalancer`; the kind's if it is not said.
    pub kind: Option<&'static str>,
    /// The addresses that it should have. It can ask for the first one only; whoever names several is told which of them it has not.
    pub addresses: Vec<String>,
}

/// Whether Gateways of a class are ours. `class` is the controller of the class, if there is such an object.
pub fn is_ours(name: &str, class: Option<&str>, settings: &Settings) -> bool {
    let with_istio = match settings.istio_names {
        IstioNames::Auto => settings.istio_runs,
        IstioNames::Own => false,
        IstioNames::Off => true,
    };
    class.map_or_else(|| is_our_class(name, with_istio), |controller| controller == CONTROLLER)
}

/// Plans for a Gateway of ours, as the API server shows it.
pub fn plan(object: &Json) -> Plan {
    let invalid = |message: String| Plan::Refuse(Refusal { reason: "Invalid", message });
    let version = object["apiVersion"].as_str().unwrap_or_default();
    let Some(item) = decode(Kind::Gateway, version, object.clone()) else {
        return invalid("it has no usable name".to_owned());
    };
    let routed = match item.outcome {
        Ok(Object::Routing(Routing::Gateway(routed))) => routed,
        _ => return invalid(unread(&item)),
    };
    let asked = asked(&routed, &item.uid, object);
    if !asked.is_waypoint && asked.spec.gateway_class_name.ends_with("-waypoint") {
        let what = "spec.listeners: a waypoint needs one with `name: mesh`, `port: 15008` and `protocol: HBONE`";
        return invalid(what.to_owned());
    }
    match service(&asked) {
        Ok(Exposed::ByHosts(hosts)) => Plan::Manual(Box::new(asked), hosts),
        Ok(Exposed::By(service)) => Plan::Deploy(Box::new(asked), service),
        Err(refusal) => Plan::Refuse(refusal),
    }
}

/// Why an object cannot be read.
pub fn unread(item: &Item) -> String {
    let text = |d: &Diagnosis| {
        let help = d.help.as_ref().map(|help| format!(" ({help})")).unwrap_or_default();
        format!("{}: {}{help}", d.field, d.message)
    };
    let errors = item.diagnoses.iter().filter(|d| d.severity == Severity::Error);
    let problems: Vec<String> = errors.take(MOST_PROBLEMS).map(text).collect();
    format!("cannot be read: {}", problems.join("; "))
}

fn asked(routed: &Routed<Gateway>, uid: &str, object: &Json) -> Asked {
    let (spec, mut marks) = (routed.spec.clone(), routed.marks.clone());
    let is_waypoint = spec.tunnels().next().is_some();
    if let Some(written) =
        object.pointer("/metadata/annotations").and_then(|a| a.get(SERVICE_TYPE)).and_then(Json::as_str)
    {
        marks.insert(SERVICE_TYPE.to_owned(), written.to_owned());
    }
    let deployed = deployed_name(&routed.name, &spec.gateway_class_name, is_waypoint, &marks);
    let account = marks.get(SERVICE_ACCOUNT).filter(|name| !name.is_empty());
    Asked {
        name: NamespacedName::new(routed.namespace.clone(), routed.name.clone()),
        uid: uid.to_owned(),
        is_waypoint,
        account: account.map_or_else(|| deployed.clone(), |name| name.as_str().into()),
        label: gateway_label(&routed.name),
        ports: GatewayPorts::of(&marks, &mut Vec::new()),
        deployed,
        marks,
        spec,
    }
}

enum Exposed {
    By(Service),
    ByHosts(Vec<String>),
}

/// What the Gateway asks of its Service, by its annotation and its addresses.
fn service(asked: &Asked) -> Result<Exposed, Refusal> {
    let refused = |reason, message| Err(Refusal { reason, message });
    let written = asked.spec.annotations().get(SERVICE_TYPE).or_else(|| asked.marks.get(SERVICE_TYPE));
    let kind = match written.filter(|text| !text.is_empty()) {
        None => None,
        Some(text) => match TYPES.into_iter().find(|kind| kind == text) {
            Some(kind) => Some(kind),
            None => {
                let message =
                    format!("metadata.annotations[\"{SERVICE_TYPE}\"]: {text:?} is none of {}", TYPES.join(", "));
                return refused("InvalidParameters", message);
            }
        },
    };
    let is = |address: &&Address, kind: &str| address.kind.as_deref().unwrap_or("IPAddress") == kind;
    let addresses = &asked.spec.addresses;
    if let Some((at, other)) = addresses.iter().enumerate().find(|(_, a)| !is(a, "IPAddress") && !is(a, "Hostname")) {
        let kind = other.kind.as_deref().unwrap_or_default();
        let message = format!("spec.addresses[{at}].type: {kind:?} is not supported; write IPAddress or Hostname");
        return refused("UnsupportedAddress", message);
    }
    let hosts: Vec<String> = addresses.iter().filter(|a| is(a, "Hostname")).filter_map(|a| a.value.clone()).collect();
    let ips: Vec<String> = addresses.iter().filter(|a| is(a, "IPAddress")).filter_map(|a| a.value.clone()).collect();
    match (hosts.is_empty(), ips.is_empty()) {
        (false, true) => Ok(Exposed::ByHosts(hosts)),
        (false, false) => refused(
            "UnsupportedAddress",
            "spec.addresses: a host name means that somebody else made the Service, an address that it is made; keep one of them".to_owned(),
        ),
        (true, _) => Ok(Exposed::By(Service { kind, addresses: ips })),
    }
}

/// The whole name of a host that a Gateway of a namespace says it is found at.
pub fn whole(host: &str, namespace: &str, settings: &Settings) -> String {
    match host.contains('.') {
        true => host.to_owned(),
        false => format!("{host}.{namespace}.svc.{}", settings.cluster_domain),
    }
}

/// The ConfigMap that a Gateway's parameters are in.
pub fn parameters(asked: &Asked) -> Result<Option<&str>, Refusal> {
    let Some(reference) = asked.spec.infrastructure.as_ref().and_then(|i| i.parameters_ref.as_ref()) else {
        return Ok(None);
    };
    match (reference.group.as_str(), reference.kind.as_str()) {
        ("", "ConfigMap") => Ok(Some(&reference.name)),
        (group, kind) => {
            let message = format!(
                "spec.infrastructure.parametersRef: {group}/{kind} is not supported; name a ConfigMap with `group: \"\"`"
            );
            Err(Refusal { reason: "InvalidParameters", message })
        }
    }
}

/// A ConfigMap that a Gateway names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Parameters {
    /// It is this one.
    Found(Box<Json>),
    /// There is none.
    Missing,
    /// The control plane may not read it.
    Forbidden,
}

/// Why no Gateway is made anew or changed while nobody may read what is for its class: without that it might lose what was made of it.
pub fn of_classes_forbidden(namespace: &str) -> Refusal {
    let message = format!(
        "the control plane may not read ConfigMaps of {namespace}, which may say something for all Gateways of a class; let mesh-control list them there"
    );
    Refusal { reason: "InvalidParameters", message }
}

/// What is laid over the objects of all Gateways of a class: of the ConfigMaps that are for classes, that one.
pub fn of_class(class: &str, all: &[Json]) -> Result<Overlay, Refusal> {
    let is_of = |one: &&Json| {
        one.pointer("/metadata/labels").and_then(|labels| labels.get(OF_CLASS)).and_then(Json::as_str) == Some(class)
    };
    let name = |one: &Json| one.pointer("/metadata/name").and_then(Json::as_str).unwrap_or_default().to_owned();
    let invalid = |message| Err(Refusal { reason: "InvalidParameters", message });
    let mut of_it = all.iter().filter(is_of);
    match (of_it.next(), of_it.next()) {
        (None, _) => Ok(Overlay::default()),
        (Some(one), None) => {
            Overlay::read(one).or_else(|why| invalid(format!("ConfigMap {} of the class {class}: {why}", name(one))))
        }
        (Some(one), Some(other)) => {
            invalid(format!("ConfigMaps {} and {} are for the class {class}: delete one", name(one), name(other)))
        }
    }
}

/// What is laid over the objects of a Gateway.
pub fn overlay(name: &NamespacedName, config_map: &Parameters) -> Result<Overlay, Refusal> {
    let read = match config_map {
        Parameters::Found(config_map) => Overlay::read(config_map),
        Parameters::Missing => Err("there is none of this name".to_owned()),
        Parameters::Forbidden => Err(format!(
            "the control plane may not read it; bind the ClusterRole undermesh-gateway-parameters to mesh-control by a RoleBinding in {}",
            name.namespace
        )),
    };
    let message = |why| format!("spec.infrastructure.parametersRef: ConfigMap {}: {why}", name.name);
    read.map_err(|why| Refusal { reason: "InvalidParameters", message: message(why) })
}
