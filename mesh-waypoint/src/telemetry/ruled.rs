//! What policies did to requests, counted for each lane. A scrape adds them up.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use mesh_core::NamespacedName;
use parking_lot::Mutex;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;

use super::meters::Meters;

/// Policies and outcomes that are counted one by one; of more, nothing is.
const MOST: usize = 4096;

/// What a policy, or a rate limit, did to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ruled {
    /// It was denied.
    Denied,
    /// It would have been, were the policy enforced.
    WouldDeny,
    /// It is told of.
    Audited,
    /// It was refused, because whoever is to be asked has not answered.
    Failed,
    /// It was let through all the same.
    FailedOpen,
    /// There are too many.
    Limited,
}

impl Ruled {
    fn name(self) -> &'static str {
        match self {
            Self::Denied => "denied",
            Self::WouldDeny => "would_deny",
            Self::Audited => "audited",
            Self::Failed => "failed",
            Self::FailedOpen => "failed_open",
            Self::Limited => "limited",
        }
    }
}

/// Counts of one lane.
#[derive(Default)]
pub(super) struct Rulings(Mutex<BTreeMap<(NamespacedName, Ruled), u64>>);

impl Rulings {
    /// Counts one.
    pub(super) fn count(&self, policy: &NamespacedName, ruled: Ruled) {
        let mut counts = self.0.lock();
        let key = (policy.clone(), ruled);
        if counts.len() < MOST || counts.contains_key(&key) {
            *counts.entry(key).or_default() += 1;
        }
    }
}

/// Writes the sums of all lanes.
pub(super) fn encode(all: &[Arc<Meters>], encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let mut sums: BTreeMap<(NamespacedName, Ruled), u64> = BTreeMap::new();
    for meters in all {
        for (key, count) in meters.rulings().0.lock().iter() {
            *sums.entry(key.clone()).or_default() += count;
        }
    }
    if sums.is_empty() {
        return Ok(());
    }
    let help = "Requests that a policy denied, would have denied in a dry run, tells of or could not ask about, and those that a rate limit refused";
    let mut family = encoder.encode_descriptor("undermesh_request_policies", help, None, MetricType::Counter)?;
    for ((name, ruled), count) in &sums {
        let labels = [("policy", name.to_string()), ("outcome", ruled.name().to_owned())];
        ConstCounter::new(*count).encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}
