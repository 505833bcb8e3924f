//! Whose tunnels are counted together, and under which labels it is told how the network carries them (`mesh_runtime::paths` counts). Asked once for a tunnel.
//!
//! What other sockets of a waypoint or gateway are, is not measured: those of visitors are as many as visitors, and nobody is known by them.

use std::sync::Arc;

use arcstr::ArcStr;
use mesh_core::{Identity, Workload};
use mesh_runtime::paths::{PathCounters, PathLabels, PathTable};

use super::labels::{Side, UNKNOWN, cut, known};

/// Pairs; the tunnels of more are counted as one.
const MOST: usize = 4096;
const REPORTER: &str = "waypoint";
const SECURITY: &str = "mutual_tls";

/// The numbers of all tunnels.
pub type Paths = Arc<PathTable<PathLabels<ArcStr>>>;
/// One end of them.
pub type PathEnd = mesh_runtime::paths::PathEnd<ArcStr>;

/// The end of who has proved to be `identity`, and is known as `workload`.
pub fn end(workload: Option<&Workload>, identity: &Identity) -> PathEnd {
    let side = Side::of(workload);
    let namespace = known(&identity.namespace);
    PathEnd { workload: side.workload, namespace, principal: cut(identity.to_string().into()), cluster: side.cluster }
}

/// The same, called so where nothing is known of it.
pub fn called(end: PathEnd, workload: Option<&ArcStr>, cluster: Option<&ArcStr>) -> PathEnd {
    let or = |value: ArcStr, said: Option<&ArcStr>| if value == UNKNOWN { said.map_or(UNKNOWN, known) } else { value };
    PathEnd { workload: or(end.workload, workload), cluster: or(end.cluster, cluster), ..end }
}

/// No numbers yet.
pub fn paths() -> Paths {
    Arc::new(PathTable::new(MOST))
}

/// Where tunnels between these ends are counted.
pub fn counters(paths: &Paths, source: PathEnd, destination: PathEnd, now: u64) -> Arc<PathCounters> {
    let labels = PathLabels { reporter: REPORTER, security: SECURITY, source, destination };
    paths.counters(labels, || PathLabels::overflow(REPORTER, SECURITY), now)
}

#[cfg(test)]
mod tests {
    use mesh_runtime::metrics::{Registry, encode};
    use mesh_runtime::paths::Progress;

    use super::*;

    #[test]
    fn a_tunnel_is_told_under_the_names_of_its_ends() {
        let identity = |account: &str| format!("spiffe://cluster.local/ns/shop/sa/{account}").parse().unwrap();
        let mut web = Workload::new("c//Pod/shop/web-1", "shop", "web-1");
        (web.workload_name, web.cluster_id) = ("web".into(), "c".into());
        let client = end(Some(&web), &identity("web"));
        let own = called(end(None, &identity("waypoint")), Some(&"waypoint".into()), None);
        assert_eq!(called(client.clone(), Some(&"else".into()), Some(&"where".into())), client, "that is known better");
        let paths = paths();
        counters(&paths, client, own, 0).add(&Progress { sent: 3, ..Progress::default() });
        let mut registry = Registry::default();
        registry.register_collector(Box::new(paths.clone()));
        let shown = encode(&registry);
        let line = "undermesh_tcp_segments_total{reporter=\"waypoint\",source_workload=\"web\",source_workload_namespace=\"shop\",\
            source_principal=\"spiffe://cluster.local/ns/shop/sa/web\",source_cluster=\"c\",destination_workload=\"waypoint\",\
            destination_workload_namespace=\"shop\",destination_principal=\"spiffe://cluster.local/ns/shop/sa/waypoint\",\
            destination_cluster=\"unknown\",connection_security_policy=\"mutual_tls\"} 3";
        assert!(shown.lines().any(|one| one == line), "{line}\nin\n{shown}");
    }
}
