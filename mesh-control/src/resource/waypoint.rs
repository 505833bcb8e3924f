//! What the labels of services, pods and namespaces say about waypoints. Whether there is such a waypoint, and whether it takes them, the joining finds
//! (`index::waypoint`).

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use mesh_core::{ArcStr, NamespacedName};

use super::{Labels, meta};
use crate::diagnosis::Problem;

/// The waypoint's name; `none` is none, whatever the namespace says.
pub const USE: &str = "istio.io/use-waypoint";
/// Its namespace, if it is another than the object's.
pub const USE_NAMESPACE: &str = "istio.io/use-waypoint-namespace";
/// On a pod: the gateway that it serves.
pub const GATEWAY_NAME: &str = "gateway.networking.k8s.io/gateway-name";
/// On a gateway or its class: what the waypoint is for.
pub const WAYPOINT_FOR: &str = "istio.io/waypoint-for";
/// On a gateway: the service account of its pods.
pub const SERVICE_ACCOUNT: &str = "gateway.istio.io/service-account";

/// On a service or a namespace, as a label or an annotation: whether what does not come from the waypoint is refused.
pub const BYPASS: &str = "undermesh.io/waypoint-bypass";

/// What is done with connections that go around the waypoint: to an address of a pod, by clients that know nothing of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Bypass {
    /// Nothing is said.
    #[default]
    Unsaid,
    /// Policies at L4 decide.
    Allow,
    /// The pod's agent refuses them.
    Refuse,
}

impl Bypass {
    /// What an object says; its label goes before its annotation. What cannot be read refuses.
    pub fn of(meta: &ObjectMeta, problems: &mut Vec<Problem>) -> Self {
        let label = meta.labels.as_ref().and_then(|labels| labels.get(BYPASS)).map(String::as_str);
        let (field, text) = match (label, meta::annotation(meta, BYPASS)) {
            (Some(text), _) => ("labels", text),
            (None, Some(text)) => ("annotations", text),
            (None, None) => return Bypass::Unsaid,
        };
        match text {
            "" => Bypass::Unsaid,
            "allow" => Bypass::Allow,
            "refuse" => Bypass::Refuse,
            other => {
                let message = format!("{other:?} says nothing, what goes around the waypoint is refused");
                let problem = Problem::error(format!("metadata.{field}[\"{BYPASS}\"]"), message);
                problems.push(problem.help("write `refuse` or `allow`"));
                Bypass::Refuse
            }
        }
    }

    /// What counts of this, and of what a namespace says for its objects.
    pub fn or(self, namespace: Self) -> Self {
        if self == Bypass::Unsaid { namespace } else { self }
    }
}

/// What an object says of its waypoint.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Asked {
    /// Nothing: what is less specific counts.
    #[default]
    Unsaid,
    /// That it has none.
    Without,
    /// Which one.
    Of(NamespacedName),
}

impl Asked {
    /// What the labels of an object in `namespace` say.
    pub fn of(labels: Option<&Labels>, namespace: &str) -> Self {
        let label = |key: &str| labels.and_then(|labels| labels.get(key)).map(String::as_str).filter(|v| !v.is_empty());
        match label(USE) {
            None => Asked::Unsaid,
            Some("none") => Asked::Without,
            Some(name) => {
                let namespace = label(USE_NAMESPACE).unwrap_or(namespace);
                Asked::Of(NamespacedName::new(ArcStr::from(namespace), ArcStr::from(name)))
            }
        }
    }
}

/// Where the label stands.
pub fn field() -> String {
    format!("metadata.labels[\"{USE}\"]")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_say_which_waypoint_is_meant() {
        let of = |namespace: &str, name: &str| Asked::Of(NamespacedName::new(namespace, name));
        for (labels, expected) in [
            (&[][..], Asked::Unsaid),
            (&[(USE, "")], Asked::Unsaid),
            (&[(USE, "none")], Asked::Without),
            (&[(USE, "none"), (USE_NAMESPACE, "infra")], Asked::Without),
            (&[(USE, "wp")], of("shop", "wp")),
            (&[(USE, "wp"), (USE_NAMESPACE, "infra")], of("infra", "wp")),
            (&[(USE, "wp"), (USE_NAMESPACE, "")], of("shop", "wp")),
            (&[(USE_NAMESPACE, "infra")], Asked::Unsaid),
        ] {
            let labels: Labels = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
            assert_eq!(Asked::of(Some(&labels), "shop"), expected, "{labels:?}");
        }
        assert_eq!(Asked::of(None, "shop"), Asked::Unsaid);
    }
}
