//! A waypoint as an object: what is written, and what is read of it. Pure; called by [`super`].

pub use mesh_core::asked::{CANARY, USE};
use mesh_core::asked::{CANARY_NAMESPACE, USE_NAMESPACE};
use serde::Serialize;
use serde_json::{Value, json};

const FOR: &str = "istio.io/waypoint-for";
const MODE: &str = "istio.io/dataplane-mode";
const PORT: u16 = 15008;

/// What a waypoint takes.
#[derive(Clone, Copy, Debug, Eq, PartialEq, clap::ValueEnum)]
pub enum Purpose {
    /// What is asked of services
    Service,
    /// What is asked of single workloads
    Workload,
    /// Both
    All,
    /// Nothing
    None,
}

/// What a waypoint is to be.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// Its namespace; not written if it is empty.
    pub namespace: &'a str,
    /// Its name.
    pub name: &'a str,
    /// Its class.
    pub class: &'a str,
    /// Written only if it is said: without, the class may say it.
    pub purpose: Option<Purpose>,
}

/// A name that a Gateway can have. It becomes part of paths.
pub fn name(text: &str) -> Result<String, String> {
    let part = |part: &str| {
        let is_plain = part.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
        !part.is_empty() && is_plain && !part.starts_with('-') && !part.ends_with('-')
    };
    match text.len() <= 253 && text.split('.').all(part) {
        true => Ok(text.to_owned()),
        false => Err("lower-case letters, digits, dashes and dots, at most 253".into()),
    }
}

/// The object.
pub fn gateway(wanted: &Wanted<'_>) -> Value {
    let mut metadata = json!({ "name": wanted.name });
    if !wanted.namespace.is_empty() {
        metadata["namespace"] = wanted.namespace.into();
    }
    let purpose = wanted.purpose.map(|purpose| match purpose {
        Purpose::Service => "service",
        Purpose::Workload => "workload",
        Purpose::All => "all",
        Purpose::None => "none",
    });
    if let Some(purpose) = purpose {
        metadata["labels"] = json!({ FOR: purpose });
    }
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "Gateway",
        "metadata": metadata,
        "spec": {
            "gatewayClassName": wanted.class,
            "listeners": [{ "name": "mesh", "port": PORT, "protocol": "HBONE" }],
        },
    })
}

/// What makes a namespace use a waypoint of its own; nothing if it does. Another one that it uses is not replaced without being told so.
pub fn enrolment(namespace: &Value, waypoint: &str, overwrite: bool) -> Result<Option<Value>, String> {
    let own = namespace["metadata"]["name"].as_str().unwrap_or_default();
    let other = label(namespace, USE_NAMESPACE).filter(|other| *other != own);
    match (label(namespace, USE), other) {
        (Some(used), None) if used == waypoint => Ok(None),
        (Some(used), other) if !overwrite => {
            let of = other.map(|other| format!(" of namespace {other}")).unwrap_or_default();
            Err(format!("namespace {own} uses the waypoint {used}{of} already; --overwrite takes its place"))
        }
        _ => Ok(Some(json!({ "metadata": { "labels": { USE: waypoint, USE_NAMESPACE: null } } }))),
    }
}

/// The waypoint of its own namespace that a namespace uses.
pub fn uses(namespace: &Value) -> Option<&str> {
    let own = namespace["metadata"]["name"].as_str();
    let is_own = label(namespace, USE_NAMESPACE).is_none_or(|other| Some(other) == own);
    label(namespace, USE).filter(|_| is_own)
}

/// The labels by which an object names a waypoint of a namespace.
pub fn names(object: &Value, namespace: &str, waypoint: &str) -> Vec<&'static str> {
    let (of, own) = key(object);
    // A namespace means one of its own.
    let home = if of.is_empty() { own } else { of };
    named(&object["metadata"]["labels"], &home, namespace, waypoint)
}

/// The labels by which endpoints that are written into a ServiceEntry name it.
pub fn endpoints_name(entry: &Value, namespace: &str, waypoint: &str) -> Vec<&'static str> {
    let (home, _) = key(entry);
    let endpoints = entry["spec"]["endpoints"].as_array().into_iter().flatten();
    let mut all: Vec<_> = endpoints.flat_map(|one| named(&one["labels"], &home, namespace, waypoint)).collect();
    all.sort_unstable();
    all.dedup();
    all
}

fn named(labels: &Value, home: &str, namespace: &str, waypoint: &str) -> Vec<&'static str> {
    let said = |key: &str| labels[key].as_str().filter(|value| !value.is_empty());
    let pairs = [(USE, USE_NAMESPACE), (CANARY, CANARY_NAMESPACE)];
    let is_it = |(name, at): &(&str, &str)| said(name) == Some(waypoint) && said(at).unwrap_or(home) == namespace;
    pairs.into_iter().filter(is_it).map(|(name, _)| name).collect()
}

/// What takes it out.
pub fn leaving() -> Value {
    json!({ "metadata": { "labels": { USE: null, USE_NAMESPACE: null } } })
}

/// Whether a namespace's pods are in the mesh unless they say otherwise.
pub fn is_of_the_mesh(namespace: &Value) -> bool {
    label(namespace, MODE) == Some("ambient")
}

/// Whether a Gateway that is there may become a waypoint of the class.
pub fn may_replace(old: &Value, class: &str, overwrite: bool) -> Result<(), String> {
    let (namespace, name) = key(old);
    let other = old["spec"]["gatewayClassName"].as_str().unwrap_or_default();
    if other == class || overwrite {
        return Ok(());
    }
    Err(format!("there is a Gateway {namespace}/{name} of the class {other}; --name another, or --overwrite it"))
}

fn label<'a>(object: &'a Value, key: &str) -> Option<&'a str> {
    object["metadata"]["labels"][key].as_str().filter(|value| !value.is_empty())
}

/// Namespace and name.
pub fn key(object: &Value) -> (String, String) {
    let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
    (text("namespace"), text("name"))
}

/// Whether a Gateway is a waypoint: it takes tunnels.
pub fn is_waypoint(gateway: &Value) -> bool {
    let listeners = gateway["spec"]["listeners"].as_array().into_iter().flatten();
    listeners.into_iter().any(|listener| listener["protocol"] == "HBONE" && listener["port"] == PORT)
}

/// How a waypoint fares.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Standing {
    namespace: String,
    name: String,
    #[serde(rename = "for")]
    purpose: String,
    class: String,
    /// Its pods serve it as it is written now.
    pub programmed: bool,
    reason: String,
    message: String,
    addresses: Vec<String>,
}

impl Standing {
    /// Reads a Gateway.
    pub fn of(gateway: &Value) -> Self {
        let conditions = gateway["status"]["conditions"].as_array().map_or(&[][..], Vec::as_slice);
        let find = |kind: &str| conditions.iter().find(|condition| condition["type"] == kind);
        // What says that it cannot be served says more than that it is not.
        let refused = find("Accepted").filter(|condition| condition["status"] == "False");
        let condition = refused.or_else(|| find("Programmed"));
        let text = |field: &str| condition.and_then(|c| c[field].as_str()).unwrap_or_default().to_owned();
        // One of an earlier form says nothing of this one.
        let generation = gateway["metadata"]["generation"].as_i64().unwrap_or_default();
        let is_current = condition.and_then(|c| c["observedGeneration"].as_i64()).is_none_or(|seen| seen >= generation);
        let addresses = gateway["status"]["addresses"].as_array().into_iter().flatten();
        let (namespace, name) = key(gateway);
        Self {
            namespace,
            name,
            purpose: label(gateway, FOR).unwrap_or("service").to_owned(),
            class: gateway["spec"]["gatewayClassName"].as_str().unwrap_or_default().to_owned(),
            programmed: is_current && refused.is_none() && text("status") == "True",
            reason: text("reason"),
            message: text("message"),
            addresses: addresses.filter_map(|address| address["value"].as_str()).map(str::to_owned).collect(),
        }
    }

    /// In a list.
    pub fn row(&self) -> Vec<String> {
        let programmed = if self.programmed { "True" } else { "False" };
        [&self.namespace, &self.name, &self.purpose, programmed, &self.addresses.join(",")].map(str::to_owned).to_vec()
    }

    /// By itself.
    pub fn detail(&self) -> Vec<String> {
        let programmed = if self.programmed { "True" } else { "False" };
        let all = [&self.namespace, &self.name, programmed, "Programmed", &self.reason, &self.message];
        all.map(str::to_owned).to_vec()
    }

    /// What is waited for.
    pub fn waiting(&self) -> Option<String> {
        let why = match self.message.as_str() {
            "" => "nobody has looked at it yet; does the control plane run?",
            message => message,
        };
        (!self.programmed).then(|| format!("waypoint {}/{}: {why}", self.namespace, self.name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_object_is_istios_and_says_only_what_was_said() {
        let wanted = Wanted { namespace: "shop", name: "wp", class: "undermesh-waypoint", purpose: None };
        let object = gateway(&wanted);
        let expected = json!({
            "apiVersion": "gateway.networking.k8s.io/v1",
            "kind": "Gateway",
            "metadata": { "name": "wp", "namespace": "shop" },
            "spec": {
                "gatewayClassName": "undermesh-waypoint",
                "listeners": [{ "name": "mesh", "port": 15008, "protocol": "HBONE" }],
            },
        });
        assert_eq!(object, expected);
        assert!(is_waypoint(&object));
        let all = gateway(&Wanted { purpose: Some(Purpose::All), namespace: "", ..wanted });
        assert_eq!(all["metadata"], json!({ "name": "wp", "labels": { FOR: "all" } }));
    }

    #[test]
    fn a_namespace_changes_its_waypoint_only_when_told() {
        let namespace = |labels: Value| json!({ "metadata": { "name": "shop", "labels": labels } });
        let change = Some(json!({ "metadata": { "labels": { USE: "wp", USE_NAMESPACE: null } } }));
        for (labels, overwrite, expected, used) in [
            (json!({}), false, Ok(change.clone()), None),
            (json!({ USE: "wp" }), false, Ok(None), Some("wp")),
            (json!({ USE: "wp", USE_NAMESPACE: "shop" }), false, Ok(None), Some("wp")),
            (json!({ USE: "other" }), false, Err("waypoint other already"), Some("other")),
            (json!({ USE: "none" }), false, Err("waypoint none already"), Some("none")),
            (json!({ USE: "wp", USE_NAMESPACE: "infra" }), false, Err("of namespace infra"), None),
            (json!({ USE: "other" }), true, Ok(change.clone()), Some("other")),
        ] {
            let found = enrolment(&namespace(labels.clone()), "wp", overwrite);
            match (&found, &expected) {
                (Err(why), Err(part)) => assert!(why.contains(part), "{labels}: {why}"),
                _ => assert_eq!(found, expected.map_err(str::to_owned), "{labels}"),
            }
            assert_eq!(uses(&namespace(labels.clone())), used, "{labels}");
        }
    }

    #[test]
    fn a_waypoint_is_ready_when_its_present_form_is() {
        let with = |accepted: &str, programmed: &str, seen: i64| {
            let condition = |kind: &str, status: &str| json!({ "type": kind, "status": status, "message": kind, "observedGeneration": seen });
            json!({
                "metadata": { "namespace": "shop", "name": "wp", "generation": 2 },
                "status": { "conditions": [condition("Accepted", accepted), condition("Programmed", programmed)] },
            })
        };
        for (accepted, programmed, seen, is_ready, message) in [
            ("True", "True", 2, true, "Programmed"),
            ("True", "True", 1, false, "Programmed"),
            ("True", "False", 2, false, "Programmed"),
            ("False", "True", 2, false, "Accepted"),
            ("Unknown", "Unknown", 0, false, "Programmed"),
        ] {
            let standing = Standing::of(&with(accepted, programmed, seen));
            assert_eq!(
                (standing.programmed, standing.message.as_str()),
                (is_ready, message),
                "{accepted} {programmed} {seen}"
            );
            assert_eq!(standing.waiting().is_none(), is_ready);
        }
        let silent = Standing::of(&json!({ "metadata": { "namespace": "shop", "name": "wp" } }));
        assert!(silent.waiting().is_some_and(|line| line.contains("does the control plane run?")));
    }

    #[test]
    fn a_gateway_of_another_class_is_not_taken() {
        let old = json!({ "metadata": { "namespace": "shop", "name": "wp" }, "spec": { "gatewayClassName": "nginx" } });
        assert!(may_replace(&old, "undermesh-waypoint", false).is_err_and(|why| why.contains("nginx")));
        assert!(may_replace(&old, "undermesh-waypoint", true).is_ok() && may_replace(&old, "nginx", false).is_ok());
        for wrong in ["", "../x", "A", "-a", "a..b"] {
            assert!(name(wrong).is_err(), "{wrong:?}");
        }
        assert!(name("a.b-1").is_ok());
    }
}
