//! What tells two pairs of ends apart, and is printed of them. Agents and waypoints say how an end is made of what they know.

use std::fmt::{self, Debug};
use std::ops::Deref;

use prometheus_client::encoding::{EncodeLabel, EncodeLabelSet, LabelSetEncoder};

/// From which end to which, who tells it, and how the connections are secured. `T` is what whoever counts has for texts.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PathLabels<T> {
    /// `source`, `destination` or `waypoint`.
    pub reporter: &'static str,
    /// As `mutual_tls`.
    pub security: &'static str,
    /// Who has opened the connections.
    pub source: PathEnd<T>,
    /// Who has taken them.
    pub destination: PathEnd<T>,
}

/// One end; what is not known is `unknown`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PathEnd<T> {
    /// As metrics of Istio name it.
    pub workload: T,
    /// Of the workload.
    pub namespace: T,
    /// Who it has proved to be.
    pub principal: T,
    /// Of the workload.
    pub cluster: T,
}

impl<T: Clone + From<&'static str>> PathLabels<T> {
    /// The one label set that takes what does not fit under the cap.
    pub fn overflow(reporter: &'static str, security: &'static str) -> Self {
        let unknown = T::from("unknown");
        let (namespace, principal, cluster) = (unknown.clone(), unknown.clone(), unknown);
        let end = PathEnd { workload: T::from("overflow"), namespace, principal, cluster };
        Self { reporter, security, source: end.clone(), destination: end }
    }
}

impl<T: Deref<Target = str> + Debug> EncodeLabelSet for PathLabels<T> {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        let (source, destination) = (&self.source, &self.destination);
        let rows: [(&str, &str); 10] = [
            ("reporter", self.reporter),
            ("source_workload", &source.workload),
            ("source_workload_namespace", &source.namespace),
            ("source_principal", &source.principal),
            ("source_cluster", &source.cluster),
            ("destination_workload", &destination.workload),
            ("destination_workload_namespace", &destination.namespace),
            ("destination_principal", &destination.principal),
            ("destination_cluster", &destination.cluster),
            ("connection_security_policy", self.security),
        ];
        rows.iter().try_for_each(|row| row.encode(encoder.encode_label()))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::metrics::{Registry, encode};
    use crate::paths::{PathTable, Progress};

    #[test]
    fn pairs_are_printed_with_all_that_is_known_and_the_rest_as_one() {
        let table = Arc::new(PathTable::new(1));
        let end = |[workload, namespace, principal, cluster]: [&'static str; 4]| PathEnd {
            workload: Arc::<str>::from(workload),
            namespace: namespace.into(),
            principal: principal.into(),
            cluster: cluster.into(),
        };
        for source in [["web", "shop", "spiffe://a/ns/shop/sa/web", "c"], ["late", "shop", "unknown", "unknown"]] {
            let destination = end(["db", "data", "spiffe://a/ns/data/sa/db", "d"]);
            let labels = PathLabels { reporter: "source", security: "mutual_tls", source: end(source), destination };
            let overflow = || PathLabels::overflow("source", "mutual_tls");
            table.counters(labels, overflow, 0).add(&Progress { sent: 3, ..Progress::default() });
        }
        let mut registry = Registry::default();
        registry.register_collector(Box::new(table));
        let shown = encode(&registry);
        for line in [
            "undermesh_tcp_segments_total{reporter=\"source\",source_workload=\"web\",source_workload_namespace=\"shop\",\
             source_principal=\"spiffe://a/ns/shop/sa/web\",source_cluster=\"c\",destination_workload=\"db\",\
             destination_workload_namespace=\"data\",destination_principal=\"spiffe://a/ns/data/sa/db\",\
             destination_cluster=\"d\",connection_security_policy=\"mutual_tls\"} 3",
            "undermesh_tcp_segments_total{reporter=\"source\",source_workload=\"overflow\",source_workload_namespace=\"unknown\",\
             source_principal=\"unknown\",source_cluster=\"unknown\",destination_workload=\"overflow\",\
             destination_workload_namespace=\"unknown\",destination_principal=\"unknown\",\
             destination_cluster=\"unknown\",connection_security_policy=\"mutual_tls\"} 3",
        ] {
            assert!(shown.lines().any(|one| one == line), "{line}\nin\n{shown}");
        }
    }
}
