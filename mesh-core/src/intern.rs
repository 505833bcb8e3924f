//! Shares equal strings and membership maps between workloads: a mesh of 100k pods has few namespaces, nodes and deployments. Whoever reads
//! workloads from the wire runs each through it at once, before the next is read.

use std::{hash::Hash, sync::Arc};

use arcstr::ArcStr;
use hashbrown::HashSet;

use crate::{NamespacedName, Workload, workload::Memberships};

const FIRST_SWEEP: usize = 4096;

/// What has been seen and is still in use.
#[derive(Default)]
pub struct Interner {
    strings: Pool<ArcStr>,
    memberships: Pool<Memberships>,
    policies: Pool<Arc<[NamespacedName]>>,
}

impl Interner {
    /// Replaces the parts of a workload that others have too.
    pub fn workload(&mut self, workload: &mut Workload) {
        let strings = &mut self.strings;
        for text in [
            &mut workload.namespace,
            &mut workload.network,
            &mut workload.service_account,
            &mut workload.node,
            &mut workload.canonical_name,
            &mut workload.canonical_revision,
            &mut workload.workload_name,
            &mut workload.cluster_id,
            &mut workload.locality.region,
            &mut workload.locality.zone,
            &mut workload.locality.subzone,
            workload.trust_domain.text(),
        ] {
            strings.share(text);
        }
        self.memberships.share(&mut workload.services);
        self.policies.share(&mut workload.authorization_policies);
    }
}

impl std::fmt::Debug for Interner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Interner({} strings)", self.strings.values.len())
    }
}

trait Shared {
    fn only_in_pool(&self) -> bool;
}

impl Shared for ArcStr {
    fn only_in_pool(&self) -> bool {
        ArcStr::strong_count(self) == Some(1)
    }
}

impl<T: ?Sized> Shared for Arc<T> {
    fn only_in_pool(&self) -> bool {
        Arc::strong_count(self) == 1
    }
}

struct Pool<T> {
    values: HashSet<T>,
    sweep_at: usize,
}

impl<T> Default for Pool<T> {
    fn default() -> Self {
        Self { values: HashSet::new(), sweep_at: FIRST_SWEEP }
    }
}

impl<T: Shared + Hash + Eq + Clone> Pool<T> {
    fn share(&mut self, value: &mut T) {
        if let Some(known) = self.values.get(value) {
            *value = known.clone();
            return;
        }
        if self.values.len() >= self.sweep_at {
            self.values.retain(|known| !known.only_in_pool());
            self.sweep_at = FIRST_SWEEP.max(self.values.len() * 2);
        }
        self.values.insert(value.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forgets_what_nobody_uses() {
        let mut pool = Pool::<ArcStr>::default();
        let mut kept: ArcStr = "kept".into();
        pool.share(&mut kept);
        for n in 0..FIRST_SWEEP * 3 {
            pool.share(&mut ArcStr::from(n.to_string()));
        }
        assert!(pool.values.len() <= FIRST_SWEEP + 1);
        let mut again: ArcStr = "kept".into();
        pool.share(&mut again);
        assert!(ArcStr::ptr_eq(&kept, &again));
    }
}
