//! What the control plane has said of whom to believe and whom to answer, with the keys of tokens read, and how many requests there may be, with what was
//! counted. The state holds it; `security` asks it.

mod buckets;
mod keys;

use std::collections::HashMap;
use std::sync::Arc;

use mesh_core::l7::limit::RateLimit;
use mesh_core::l7::policy::Policy;
use mesh_core::l7::{Comes, Security, SecurityTarget};
use mesh_core::{ArcStr, NamespacedName};

pub use buckets::Limiter;
pub use keys::KeySet;

/// What the control plane has said. As long as it has said nothing, nothing is let through.
pub struct Guard {
    /// As it was said.
    pub security: Arc<Security>,
    /// By the texts that they were read from.
    keys: HashMap<ArcStr, KeySet>,
    /// Rate limits, with what was counted.
    pub limiters: Vec<Arc<Limiter>>,
}

impl Default for Guard {
    fn default() -> Self {
        Self::closed()
    }
}

impl Guard {
    /// Reads the keys; of a set that is none nothing is believed. What was counted before goes on.
    #[must_use]
    pub fn new(security: Arc<Security>, before: &[Arc<Limiter>]) -> Self {
        let mut keys = HashMap::new();
        let rules = security.authentications.iter().flat_map(|one| &one.rules);
        for text in rules.filter_map(|rule| rule.keys.as_ref()) {
            if !keys.contains_key(text) {
                keys.insert(text.clone(), KeySet::read(text));
            }
        }
        let limiter = |limit: &Arc<RateLimit>| {
            let known = before.iter().find(|one| one.limit.name == limit.name);
            Arc::new(Limiter::new(limit, known.map(|one| &**one)))
        };
        let limiters = security.limits.iter().map(limiter).collect();
        Self { security, keys, limiters }
    }

    /// Nobody says any more what is to be let through: nothing is.
    #[must_use]
    pub fn closed() -> Self {
        let name = NamespacedName::new("undermesh", "no-policies");
        let policies = vec![Arc::new(Policy::closed(name, SecurityTarget::All))];
        Self::new(Arc::new(Security { policies, ..Security::default() }), &[])
    }

    /// The rate limits of requests that come in so.
    #[must_use]
    pub fn limiters_of<'a>(&self, comes: Comes<impl Iterator<Item = &'a NamespacedName> + Clone>) -> Vec<Arc<Limiter>> {
        let is_about = |one: &&Arc<Limiter>| one.limit.target.is_about(comes.clone());
        self.limiters.iter().filter(is_about).cloned().collect()
    }

    /// The keys of a text.
    #[must_use]
    pub fn keys(&self, text: Option<&ArcStr>) -> Option<&KeySet> {
        self.keys.get(text?)
    }
}
