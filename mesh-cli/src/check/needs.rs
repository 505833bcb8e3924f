//! What each check looks at, by the names under which `collect` reads it: a check that could not look says so, and neither that all is well nor that
//! something is missing. Pure; called by `judge`.

use super::facts::Snapshot;

/// Names of what is read that others than `collect` speak of.
pub const VERSION: &str = "version";
/// Deployments.
pub const DEPLOYMENTS: &str = "deployments";
/// DaemonSets.
pub const DAEMON_SETS: &str = "daemonsets";
/// What accounts may do.
pub const RIGHTS: &str = "rights of accounts";
/// What kubelets say.
pub const CGROUPS: &str = "cgroups of nodes";
/// What the webhook says.
pub const ANSWER: &str = "answer of the webhook";

const NODES: &str = "nodes";
const PODS: &str = "pods";
const NAMESPACES: &str = "namespaces";
const EVENTS: &str = "events";

/// By the id of the check.
const NEEDS: [(&str, &[&str]); 28] = [
    ("kubernetes-version", &[VERSION]),
    ("rights", &[RIGHTS]),
    ("node-ready", &[NODES]),
    ("node-platform", &[NODES]),
    ("kernel-version", &[NODES]),
    ("cgroup-version", &[NODES, CGROUPS]),
    ("clocks", &[NODES, "leases of nodes"]),
    ("other-meshes", &[DAEMON_SETS, DEPLOYMENTS]),
    ("other-hooks", &[DAEMON_SETS]),
    ("cni-exclusive", &[DAEMON_SETS, "configuration of Cilium"]),
    ("definitions", &["definitions (CRDs)"]),
    ("pod-security", &[NAMESPACES]),
    ("control-ready", &[DEPLOYMENTS, PODS]),
    ("control-endpoints", &[DEPLOYMENTS, PODS, "endpoints of mesh-control"]),
    ("control-replicas", &[DEPLOYMENTS]),
    ("root", &[DEPLOYMENTS, DAEMON_SETS, PODS, NAMESPACES, "root certificates"]),
    ("webhook", &[PODS, "webhooks", ANSWER]),
    ("versions", &[DEPLOYMENTS, DAEMON_SETS, PODS]),
    ("agent-nodes", &[NODES, DEPLOYMENTS, DAEMON_SETS, PODS, NAMESPACES]),
    ("agent-ready", &[PODS, EVENTS]),
    ("labels", &[NAMESPACES, PODS]),
    ("host-network", &[NAMESPACES, PODS]),
    ("sidecars", &[NAMESPACES, PODS]),
    ("enrolled", &[NAMESPACES, PODS]),
    ("held", &[PODS, EVENTS]),
    ("probes", &[NAMESPACES, PODS, EVENTS]),
    ("network-policies", &[NAMESPACES, PODS, "network policies"]),
    ("policies", &[DEPLOYMENTS, PODS]),
];

/// What a check needs and could not be read; nothing if it can be made.
pub fn unread(id: &str, snapshot: &Snapshot) -> Vec<String> {
    let needed = NEEDS.iter().find(|(known, _)| *known == id).map_or(&[][..], |(_, needed)| needed);
    needed.iter().filter(|name| snapshot.is_unread(name)).map(|name| (*name).to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::{CHECKS, judge};

    #[test]
    fn what_could_not_be_looked_at_is_neither_well_nor_broken() {
        let blind = |names: &[&str]| Snapshot {
            namespace: "u".into(),
            unread: names.iter().map(|name| ((*name).to_owned(), "forbidden".to_owned())).collect(),
            ..Snapshot::default()
        };
        let all: Vec<&str> = NEEDS.iter().flat_map(|(_, names)| *names).copied().collect();
        for check in judge(&blind(&all), false).checks {
            let expected = if check.id == "readable" { "warning" } else { "skipped" };
            assert_eq!(check.result, expected, "{}", check.id);
        }
        for (_, _, id, ..) in CHECKS {
            let needed = NEEDS.iter().filter(|(known, _)| *known == id).count();
            assert_eq!(needed, usize::from(id != "readable"), "{id}");
        }
        let some = judge(&blind(&[EVENTS]), false);
        let skipped: Vec<_> = some.checks.iter().filter(|c| c.result == "skipped").map(|c| c.id).collect();
        assert_eq!(skipped, ["agent-ready", "held", "probes"]);
        assert!(blind(&[DEPLOYMENTS]).may_be_installed() && !blind(&[EVENTS]).may_be_installed());
    }

    #[test]
    fn every_name_is_one_that_is_read() {
        let collect = include_str!("collect.rs");
        for name in NEEDS.iter().flat_map(|(_, names)| *names) {
            let is_ours = [VERSION, DEPLOYMENTS, DAEMON_SETS, RIGHTS, CGROUPS, ANSWER].contains(name);
            assert!(is_ours || collect.contains(&format!("\"{name}\"")), "{name}");
        }
    }
}
