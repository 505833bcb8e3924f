//! Whether a pod is to be in the mesh. Pure; called by [`super::book`].

use std::collections::BTreeMap;
use std::fmt;

use super::facts::Facts;

/// The label of namespaces and pods.
pub const MODE_LABEL: &str = "istio.io/dataplane-mode";
/// Namespaces of the cluster and of control planes: never in the mesh, whatever their labels say.
pub const SYSTEM: [&str; 3] = ["undermesh-system", "istio-system", "kube-system"];

/// What the label [`MODE_LABEL`] says.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Mode {
    /// `ambient`.
    InMesh,
    /// `none`.
    OptedOut,
}

impl Mode {
    /// Reads it; other values say nothing.
    pub fn of(labels: &BTreeMap<String, String>) -> Option<Mode> {
        match labels.get(MODE_LABEL).map(String::as_str) {
            Some("ambient") => Some(Mode::InMesh),
            Some("none") => Some(Mode::OptedOut),
            _ => None,
        }
    }
}

/// What to do with a pod.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Verdict {
    /// It belongs in the mesh.
    Enrol,
    /// It does not.
    Leave(Reason),
}

/// Why a pod is left out.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Reason {
    /// Neither it nor its namespace has the label.
    NotLabelled,
    /// Its own label says so.
    OptedOut,
    /// It is in the node's network namespace, as the agent itself is.
    HostNetwork,
    /// A sidecar does the mesh's work in it.
    Sidecar,
    /// It is a waypoint or another gateway of the mesh, which ends tunnels itself.
    Gateway,
    /// Its processes have ended.
    Finished,
    /// Its namespace is the cluster's or a control plane's.
    SystemNamespace,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Reason::NotLabelled => "neither the pod nor its namespace has the label istio.io/dataplane-mode=ambient",
            Reason::OptedOut => "the pod has the label istio.io/dataplane-mode=none",
            Reason::HostNetwork => "the pod uses the node's network (hostNetwork)",
            Reason::Sidecar => "the pod has a sidecar (annotation sidecar.istio.io/status)",
            Reason::Gateway => "the pod serves a Gateway and ends tunnels itself",
            Reason::Finished => "the pod has finished",
            Reason::SystemNamespace => "the namespace is the cluster's or a control plane's",
        })
    }
}

/// Decides. `namespace` is the label of the pod's namespace. What the pod is comes before what its labels say, and its own label before
/// that of its namespace.
pub fn wanted(namespace: Option<Mode>, pod: &Facts) -> Verdict {
    let reason = if pod.host_network {
        Reason::HostNetwork
    } else if SYSTEM.contains(&pod.namespace.as_str()) {
        Reason::SystemNamespace
    } else if pod.sidecar {
        Reason::Sidecar
    } else if pod.gateway {
        Reason::Gateway
    } else if pod.finished {
        Reason::Finished
    } else {
        match (pod.mode, namespace) {
            (Some(Mode::InMesh), _) | (None, Some(Mode::InMesh)) => return Verdict::Enrol,
            (Some(Mode::OptedOut), _) => Reason::OptedOut,
            (None, Some(Mode::OptedOut) | None) => Reason::NotLabelled,
        }
    };
    Verdict::Leave(reason)
}

#[cfg(test)]
mod tests {
    use super::super::facts::tests::pod;
    use super::*;

    #[test]
    fn features_en1_en2_en3_who_is_in_the_mesh() {
        use Mode::{InMesh, OptedOut};
        let plain = |_: &mut Facts| {};
        let mode = |mode| move |pod: &mut Facts| pod.mode = Some(mode);
        let in_mesh_and = |change: fn(&mut Facts)| {
            move |pod: &mut Facts| {
                pod.mode = Some(InMesh);
                change(pod);
            }
        };
        type Change = Box<dyn Fn(&mut Facts)>;
        let rows: Vec<(Option<Mode>, Change, Result<(), Reason>)> = vec![
            (None, Box::new(plain), Err(Reason::NotLabelled)),
            (Some(OptedOut), Box::new(plain), Err(Reason::NotLabelled)),
            (Some(InMesh), Box::new(plain), Ok(())),
            (None, Box::new(mode(InMesh)), Ok(())),
            (Some(OptedOut), Box::new(mode(InMesh)), Ok(())),
            (Some(InMesh), Box::new(mode(OptedOut)), Err(Reason::OptedOut)),
            (None, Box::new(mode(OptedOut)), Err(Reason::OptedOut)),
            (Some(InMesh), Box::new(in_mesh_and(|pod| pod.host_network = true)), Err(Reason::HostNetwork)),
            (Some(InMesh), Box::new(in_mesh_and(|pod| pod.sidecar = true)), Err(Reason::Sidecar)),
            (Some(InMesh), Box::new(in_mesh_and(|pod| pod.gateway = true)), Err(Reason::Gateway)),
            (Some(InMesh), Box::new(in_mesh_and(|pod| pod.finished = true)), Err(Reason::Finished)),
            (
                Some(InMesh),
                Box::new(in_mesh_and(|pod| pod.namespace = "kube-system".into())),
                Err(Reason::SystemNamespace),
            ),
        ];
        for (index, (namespace, change, expected)) in rows.into_iter().enumerate() {
            let mut facts = pod("a");
            change(&mut facts);
            let expected = expected.map_or_else(Verdict::Leave, |()| Verdict::Enrol);
            assert_eq!(wanted(namespace, &facts), expected, "row {index}: {namespace:?} {facts:?}");
        }
    }

    #[test]
    fn features_en1_values_that_nobody_defined_say_nothing() {
        let labels = |value: &str| BTreeMap::from([(MODE_LABEL.to_owned(), value.to_owned())]);
        assert_eq!(Mode::of(&labels("ambient")), Some(Mode::InMesh));
        assert_eq!(Mode::of(&labels("none")), Some(Mode::OptedOut));
        for value in ["", "Ambient", "true", "sidecar"] {
            assert_eq!(Mode::of(&labels(value)), None, "{value:?}");
        }
        assert_eq!(Mode::of(&BTreeMap::new()), None);
    }
}
