//! Gateways and what is known of a cluster, as an API server shows them, and what is made of that.

mod listener_sets;
mod objects;
mod ours;
mod scaling;
mod standing;

use jiff::Timestamp;
use mesh_core::NamespacedName;
use mesh_core::listener::{Open, Transport};
use serde_json::{Value as Json, json};

use super::live::essence;
use super::round::{Applied, Known, Listened, Step, What, round};
use super::{Defaults, classes};
use crate::index::Settings;
use crate::index::l7::listeners::told::ListenerTold;
use crate::resource::mesh_config::IstioNames;
use crate::resource::routing::Gateway;
use crate::resource::routing::gateway::Listener;

fn defaults() -> Defaults {
    Defaults {
        image: "registry.example/mesh-waypoint:1".to_owned(),
        pull_policy: "IfNotPresent".to_owned(),
        pull_secrets: Vec::new(),
        control: "mesh-control.undermesh-system.svc:15012".to_owned(),
        network: String::new(),
        log_level: "info".to_owned(),
        log_format: "text".to_owned(),
    }
}

fn now() -> Timestamp {
    "2026-11-22T10:00:00Z".parse().unwrap()
}

/// A waypoint in `shop`, with other fields over it.
fn waypoint(name: &str, over: &Json) -> Json {
    let mut gateway = json!({
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "Gateway",
        "metadata": { "name": name, "namespace": "shop", "uid": format!("uid-{name}"), "generation": 3 },
        "spec": {
            "gatewayClassName": "undermesh-waypoint",
            "listeners": [{ "name": "mesh", "port": 15008, "protocol": "HBONE" }],
        },
    });
    super::overlay::lay(&mut gateway, over);
    gateway
}

fn edge(over: &Json) -> Json {
    let listeners = json!([
        { "name": "web", "port": 80, "protocol": "HTTP", "hostname": "a.example" },
        { "name": "other", "port": 80, "protocol": "HTTP", "hostname": "b.example" },
        { "name": "raw", "port": 9000, "protocol": "TCP" },
    ]);
    let mut gateway = waypoint("edge", &json!({ "spec": { "gatewayClassName": "undermesh" } }));
    gateway["spec"]["listeners"] = listeners;
    super::overlay::lay(&mut gateway, over);
    gateway
}

fn name(namespace: &str, name: &str) -> NamespacedName {
    NamespacedName::new(namespace, name)
}

fn name_of(object: &Json) -> NamespacedName {
    let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
    NamespacedName::new(text("namespace"), text("name"))
}

/// A cluster in which our classes are made and told.
fn known(gateways: &[Json]) -> Known {
    let mut known = Known { of_classes: Some(Ok(Vec::new())), ..Known::default() };
    for what in What::ALL {
        known.objects.insert(what, Default::default());
    }
    for gateway in gateways {
        put(&mut known, What::Gateway, gateway.clone());
    }
    for mut class in classes::wanted(IstioNames::Auto) {
        class["status"] = classes::status(&class, now()).unwrap();
        put(&mut known, What::Class, class);
    }
    let mut mesh = classes::mesh();
    mesh["status"] = classes::status(&mesh, now()).unwrap();
    put(&mut known, What::Mesh, mesh);
    known
}

fn put(known: &mut Known, what: What, object: Json) {
    known.objects.entry(what).or_default().insert(name_of(&object), object);
}

/// As if all listeners could be served.
#[allow(clippy::unnecessary_wraps, reason = "as the joining has it")]
fn listened(_: &NamespacedName, spec: &Gateway) -> Option<Listened> {
    let told = |listener: &Listener| ListenerTold {
        name: listener.name.as_str().into(),
        kinds: if listener.protocol == "HBONE" { Vec::new() } else { vec!["HTTPRoute"] },
        ..ListenerTold::default()
    };
    let more = [(Transport::Tcp, 8443), (Transport::Udp, 9000)].map(|(transport, port)| Open { transport, port });
    let ports = spec.edges().take(1).flat_map(|_| more).collect();
    Some(Listened { told: spec.listeners.iter().map(told).collect(), ports, ..Listened::default() })
}

fn steps(known: &Known) -> Vec<Step> {
    round(known, &defaults(), &Settings::default(), |namespace| namespace != "outside", listened, now())
}

fn applied(steps: &[Step]) -> Vec<&Json> {
    let mut objects = Vec::new();
    for step in steps {
        if let Step::Apply(_, object, _) = step {
            objects.push(object);
        }
    }
    objects
}

fn told(steps: &[Step]) -> Vec<&Json> {
    let mut all = Vec::new();
    for step in steps {
        if let Step::Tell(_, body) = step {
            all.push(&body["status"]);
        }
    }
    all
}

/// Status, reason and message of a condition.
fn condition<'a>(status: &'a Json, kind: &str) -> (&'a str, &'a str, &'a str) {
    let all = status["conditions"].as_array().unwrap();
    let one = all.iter().find(|one| one["type"] == kind).unwrap();
    let text = |field: &str| one[field].as_str().unwrap();
    (text("status"), text("reason"), text("message"))
}

/// Does what steps say, as an API server would.
fn perform(known: &mut Known, steps: &[Step]) {
    for step in steps {
        match step {
            Step::Apply(key, object, hash) => {
                // What others have written into it stays.
                let mut live = known.objects[&key.0].get(&key.1).cloned().unwrap_or_default();
                super::overlay::lay(&mut live, object);
                let mut object = live;
                object["metadata"]["uid"] = json!(format!("uid-of-{}", key.1.name));
                known.applied.insert(key.clone(), Applied { desired: *hash, live: essence(&object) });
                put(known, key.0, object);
            }
            Step::Delete(key, _) => drop(known.objects.get_mut(&key.0).unwrap().remove(&key.1)),
            Step::Tell(key, body) => {
                let object = known.objects.get_mut(&key.0).unwrap().get_mut(&key.1).unwrap();
                object["status"] = body["status"].clone();
            }
            Step::Read(_) | Step::ReadOfClasses => {}
        }
    }
}

fn object<'a>(known: &'a mut Known, what: What, own: &str) -> &'a mut Json {
    known.objects.get_mut(&what).unwrap().get_mut(&name("shop", own)).unwrap()
}
