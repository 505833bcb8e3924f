//! Whose connections over the network are counted together: the labels of a pair of ends (`mesh_runtime::paths` counts). Used by `handle`.
//!
//! The leg that is measured is the one over the network, never that to the app of this node. A tunnel carries many connections, to whatever service: its labels
//! are those of the two workloads at its ends, so there are none of services here.

use std::fmt;

use arcstr::ArcStr;
use prometheus_client::encoding::{EncodeLabelSet, LabelSetEncoder};

use super::labels::{OVERFLOW, Pairs, PeerLabels, Reporter, Security, UNKNOWN};
use super::series::{Ends, Known};

/// What tells two pairs apart, and is shown.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct PathLabels {
    reporter: Reporter,
    security: Security,
    source: End,
    destination: End,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct End {
    workload: ArcStr,
    namespace: ArcStr,
    principal: ArcStr,
    cluster: ArcStr,
}

impl From<PeerLabels> for End {
    fn from(labels: PeerLabels) -> Self {
        let PeerLabels { workload, namespace, principal, cluster, .. } = labels;
        Self { workload, namespace, principal, cluster }
    }
}

impl PathLabels {
    pub(super) fn of(ends: &Ends) -> Self {
        let (source, destination) = (ends.source.labels().into(), ends.destination.labels().into());
        Self { reporter: ends.reporter, security: ends.security, source, destination }
    }

    /// The one label set that takes what does not fit under the cap.
    pub(super) fn overflow(reporter: Reporter, security: Security) -> Self {
        let end = End { workload: OVERFLOW, ..PeerLabels::unknown().into() };
        Self { reporter, security, source: end.clone(), destination: end }
    }

    /// Whether both workloads are still configured, of whatever revision.
    pub(super) fn are_known(&self, known: &Known<'_>) -> bool {
        let is_known = |end: &End| end.workload == UNKNOWN || known.has_workload(&end.namespace, &end.workload);
        is_known(&self.source) && is_known(&self.destination)
    }
}

impl EncodeLabelSet for PathLabels {
    fn encode(&self, encoder: &mut LabelSetEncoder) -> fmt::Result {
        let (source, destination) = (&self.source, &self.destination);
        Pairs([
            ("reporter", self.reporter.as_str()),
            ("source_workload", &source.workload),
            ("source_workload_namespace", &source.namespace),
            ("source_principal", &source.principal),
            ("source_cluster", &source.cluster),
            ("destination_workload", &destination.workload),
            ("destination_workload_namespace", &destination.namespace),
            ("destination_principal", &destination.principal),
            ("destination_cluster", &destination.cluster),
            ("connection_security_policy", self.security.as_str()),
        ])
        .encode(encoder)
    }
}
