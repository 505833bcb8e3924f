//! What the labels of services, pods and namespaces say about waypoints. Whether there is such a waypoint, and whether it takes them, the joining finds
//! (`index::waypoint`).

use mesh_core::{ArcStr, NamespacedName};

use super::Labels;

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
