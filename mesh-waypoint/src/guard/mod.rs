//! What the control plane has said of whom to believe and whom to answer, with the keys of tokens read. The state holds it; `security` asks it.

mod keys;

use std::collections::HashMap;
use std::sync::Arc;

use mesh_core::l7::policy::Policy;
use mesh_core::l7::{Security, SecurityTarget};
use mesh_core::{ArcStr, NamespacedName};

pub use keys::KeySet;

/// What the control plane has said. As long as it has said nothing, nothing is let through.
pub struct Guard {
    /// As it was said.
    pub security: Arc<Security>,
    /// By the texts that they were read from.
    keys: HashMap<ArcStr, KeySet>,
}

impl Default for Guard {
    fn default() -> Self {
        Self::closed()
    }
}

impl Guard {
    /// Reads the keys. Of a set that is none nothing is believed.
    #[must_use]
    pub fn new(security: Arc<Security>) -> Self {
        let mut keys = HashMap::new();
        let rules = security.authentications.iter().flat_map(|one| &one.rules);
        for text in rules.filter_map(|rule| rule.keys.as_ref()) {
            if !keys.contains_key(text) {
                keys.insert(text.clone(), KeySet::read(text));
            }
        }
        Self { security, keys }
    }

    /// Nobody says any more what is to be let through: nothing is.
    #[must_use]
    pub fn closed() -> Self {
        let name = NamespacedName::new("undermesh", "no-policies");
        let policies = vec![Arc::new(Policy::closed(name, SecurityTarget::All))];
        Self::new(Arc::new(Security { policies, ..Security::default() }))
    }

    /// The keys of a text.
    #[must_use]
    pub fn keys(&self, text: Option<&ArcStr>) -> Option<&KeySet> {
        self.keys.get(text?)
    }
}
