//! Whose connections over the network are counted together: the labels of a pair of ends (`mesh_runtime::paths` counts). Used by `handle`.
//!
//! The leg that is measured is the one over the network, never that to the app of this node. A tunnel carries many connections, to whatever service: its labels
//! are those of the two workloads at its ends, so there are none of services here.

use std::fmt;

use mesh_core::ArcStr;
use mesh_runtime::paths;
use prometheus_client::encoding::{EncodeLabelSet, LabelSetEncoder};

use super::labels::{PeerLabels, Reporter, Security, UNKNOWN};
use super::series::{Ends, Known};

/// What tells two pairs apart, and is shown.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct PathLabels(paths::PathLabels<ArcStr>);

type PathEnd = paths::PathEnd<ArcStr>;

fn end(labels: PeerLabels) -> PathEnd {
    let PeerLabels { workload, namespace, principal, cluster, .. } = labels;
    paths::PathEnd { workload, namespace, principal, cluster }
}

impl PathLabels {
    pub(super) fn of(ends: &Ends) -> Self {
        Self(paths::PathLabels {
            reporter: ends.reporter.as_str(),
            security: ends.security.as_str(),
            source: end(ends.source.labels()),
            destination: end(ends.destination.labels()),
        })
    }

    /// The one label set that takes what does not fit under the cap.
    pub(super) fn overflow(reporter: Reporter, security: Security) -> Self {
        Self(paths::PathLabels::overflow(reporter.as_str(), security.as_str()))
    }

    /// Whether both workloads are still configured, of whatever revision.
    pub(super) fn are_known(&self, known: &Known<'_>) -> bool {
        let is_known = |end: &PathEnd| end.workload == UNKNOWN || known.has_workload(&end.namespace, &end.workload);
        is_known(&self.0.source) && is_known(&self.0.destination)
    }
}

impl EncodeLabelSet for PathLabels {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        self.0.encode(encoder)
    }
}
