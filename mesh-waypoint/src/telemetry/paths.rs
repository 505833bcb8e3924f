//! Whose tunnels are counted together, and under which labels it is told how the network carries them (`mesh_runtime::paths` counts). Asked once for a tunnel.
//!
//! What other sockets of a waypoint or gateway are, is not measured: those of visitors are as many as visitors, and nobody is known by them.

use std::sync::Arc;

use arcstr::ArcStr;
use mesh_core::{Identity, Workload};
use mesh_runtime::paths::{PathCounters, PathTable};
use prometheus_client::encoding::{EncodeLabel, EncodeLabelSet, LabelSetEncoder};

use super::labels::{OVERFLOW, Side, UNKNOWN, cut, known};

/// Pairs; the tunnels of more are counted as one.
const MOST: usize = 4096;

/// The numbers of all tunnels.
pub type Paths = Arc<PathTable<PathLabels>>;

/// From which end to which.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PathLabels {
    source: PathEnd,
    destination: PathEnd,
}

/// One end of a tunnel.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PathEnd {
    workload: ArcStr,
    namespace: ArcStr,
    principal: ArcStr,
    cluster: ArcStr,
}

impl PathEnd {
    /// Who has proved to be `identity`, and is known as `workload`.
    pub fn of(workload: Option<&Workload>, identity: &Identity) -> Self {
        let side = Side::of(workload);
        let namespace = known(&identity.namespace);
        Self { workload: side.workload, namespace, principal: cut(identity.to_string().into()), cluster: side.cluster }
    }

    /// The same, called so where nothing is known of it.
    #[must_use]
    pub fn or_called(mut self, workload: Option<&ArcStr>, cluster: Option<&ArcStr>) -> Self {
        for (value, said) in [(&mut self.workload, workload), (&mut self.cluster, cluster)] {
            if *value == UNKNOWN {
                *value = said.map_or(UNKNOWN, known);
            }
        }
        self
    }

    fn overflow() -> Self {
        Self { workload: OVERFLOW, namespace: UNKNOWN, principal: UNKNOWN, cluster: UNKNOWN }
    }
}

/// No numbers yet.
pub fn paths() -> Paths {
    Arc::new(PathTable::new(MOST))
}

/// Where tunnels between these ends are counted.
pub fn counters(paths: &Paths, source: PathEnd, destination: PathEnd, now: u64) -> Arc<PathCounters> {
    let overflow = || PathLabels { source: PathEnd::overflow(), destination: PathEnd::overflow() };
    paths.counters(PathLabels { source, destination }, overflow, now)
}

impl EncodeLabelSet for PathLabels {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> std::fmt::Result {
        let (source, destination) = (&self.source, &self.destination);
        let rows: [(&str, &str); 10] = [
            ("reporter", "waypoint"),
            ("source_workload", &source.workload),
            ("source_workload_namespace", &source.namespace),
            ("source_principal", &source.principal),
            ("source_cluster", &source.cluster),
            ("destination_workload", &destination.workload),
            ("destination_workload_namespace", &destination.namespace),
            ("destination_principal", &destination.principal),
            ("destination_cluster", &destination.cluster),
            ("connection_security_policy", "mutual_tls"),
        ];
        rows.iter().try_for_each(|row| row.encode(encoder.encode_label()))
    }
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
        let client = PathEnd::of(Some(&web), &identity("web"));
        let own = PathEnd::of(None, &identity("waypoint"));
        let called = own.clone().or_called(Some(&"waypoint".into()), None);
        assert_eq!(
            client.clone().or_called(Some(&"else".into()), Some(&"where".into())),
            client,
            "that is known better"
        );
        let paths = paths();
        counters(&paths, client, called, 0).add(&Progress { sent: 3, ..Progress::default() });
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
