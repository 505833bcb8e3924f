//! Which waypoints the labels of services, pods and namespaces name. Whether there is such a waypoint, and whether it takes them, others find: the control plane,
//! which leads clients there, and `meshctl`, which asks it for what passes.

use std::collections::BTreeMap;

use crate::NamespacedName;

/// The waypoint's name; `none` is none, whatever the namespace says.
pub const USE: &str = "istio.io/use-waypoint";
/// Its namespace, if it is another than the object's.
pub const USE_NAMESPACE: &str = "istio.io/use-waypoint-namespace";
/// On a service or a namespace, beside [`USE`]: the name of a waypoint that has a share of what comes.
pub const CANARY: &str = "istio.io/use-waypoint-canary";
/// Its namespace, if it is another than the object's.
pub const CANARY_NAMESPACE: &str = "istio.io/use-waypoint-canary-namespace";

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
    #[must_use]
    pub fn of(labels: Option<&BTreeMap<String, String>>, namespace: &str) -> Self {
        match labels.and_then(|labels| said(labels, USE)) {
            None => Asked::Unsaid,
            Some("none") => Asked::Without,
            Some(_) => named(labels, namespace, USE, USE_NAMESPACE).map_or(Asked::Unsaid, Asked::Of),
        }
    }
}

/// The second waypoint that the labels of an object in `namespace` name.
#[must_use]
pub fn canary(labels: Option<&BTreeMap<String, String>>, namespace: &str) -> Option<NamespacedName> {
    named(labels, namespace, CANARY, CANARY_NAMESPACE)
}

fn named(labels: Option<&BTreeMap<String, String>>, own: &str, name: &str, namespace: &str) -> Option<NamespacedName> {
    let labels = labels?;
    Some(NamespacedName::new(said(labels, namespace).unwrap_or(own), said(labels, name)?))
}

/// An empty label says nothing.
fn said<'a>(labels: &'a BTreeMap<String, String>, key: &str) -> Option<&'a str> {
    labels.get(key).map(String::as_str).filter(|value| !value.is_empty())
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
            let labels = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
            assert_eq!(Asked::of(Some(&labels), "shop"), expected, "{labels:?}");
        }
        assert_eq!(Asked::of(None, "shop"), Asked::Unsaid);
    }
}
