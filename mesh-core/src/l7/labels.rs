//! Labels of workloads, as far as routes and DestinationRules ask for them: which endpoints are of a subset, which clients a rule means. Told by the control
//! plane one workload at a time, so that a pod that comes or goes costs as much in a service of ten thousand as in one of ten.

use std::sync::Arc;

use arcstr::ArcStr;

use super::Labels;
use crate::cow::CowMap;

/// Labels by the workload's uid. Cheap to clone.
#[derive(Clone, Default)]
pub struct LabelIndex {
    by_uid: CowMap<ArcStr, Arc<Labels>>,
    version: u64,
}

/// What has become of a workload's labels; `None`: nobody asks for any of them.
pub type LabelChange = (ArcStr, Option<Arc<Labels>>);

impl LabelIndex {
    /// Those of a workload.
    #[must_use]
    pub fn get(&self, uid: &str) -> Option<&Arc<Labels>> {
        self.by_uid.get(uid)
    }

    /// Whether a workload has all of these.
    #[must_use]
    pub fn has(&self, uid: &str, wanted: &Labels) -> bool {
        let has = |own: &Arc<Labels>| wanted.iter().all(|(key, value)| own.get(key) == Some(value));
        wanted.is_empty() || self.get(uid).is_some_and(has)
    }

    /// Another one for each change.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version
    }

    /// How many workloads have some.
    #[must_use]
    pub fn len(&self) -> usize {
        self.by_uid.len()
    }

    /// Whether none has any.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The index after some changes.
    #[must_use]
    pub fn with(&self, changes: impl IntoIterator<Item = LabelChange>) -> Self {
        let mut next = self.clone();
        next.version += 1;
        for (uid, labels) in changes {
            match labels {
                Some(labels) => drop(next.by_uid.insert(uid, labels)),
                None => drop(next.by_uid.remove(&uid)),
            }
        }
        next
    }
}

impl std::fmt::Debug for LabelIndex {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LabelIndex").field("len", &self.len()).field("version", &self.version).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_told_one_workload_at_a_time() {
        let labels = |text: &str| -> Labels {
            text.split_terminator(',')
                .filter_map(|pair| pair.split_once('='))
                .map(|(k, v)| (k.into(), v.into()))
                .collect()
        };
        let one = LabelIndex::default().with([("a".into(), Some(Arc::new(labels("v=1,x=y"))))]);
        let two = one.with([("a".into(), None), ("b".into(), Some(Arc::new(labels("v=2"))))]);
        for (index, uid, wanted, expected) in [
            (&one, "a", "v=1", true),
            (&one, "a", "v=1,x=y", true),
            (&one, "a", "v=2", false),
            (&one, "a", "z=1", false),
            (&one, "b", "", true),
            (&one, "b", "v=2", false),
            (&two, "a", "v=1", false),
            (&two, "b", "v=2", true),
        ] {
            assert_eq!(index.has(uid, &labels(wanted)), expected, "{uid} {wanted}");
        }
        assert_eq!((one.len(), two.len(), one.version() == two.version()), (1, 1, false));
    }
}
