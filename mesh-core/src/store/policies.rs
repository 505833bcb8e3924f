//! Policies, and what stands for one that cannot be read.

use std::sync::Arc;

use super::{Diff, Store};
use crate::{
    NamespacedName, Policy,
    policy::Scope,
    snapshot::{PolicyEntry, PolicyList},
};

impl Store {
    pub(super) fn put_policy(&mut self, policy: Policy, diff: &mut Diff) {
        let known = self.current.policies.get(&policy.name);
        if known.is_some_and(|entry| !entry.stale && entry.policy.as_ref() == Some(&policy)) {
            return;
        }
        let (name, scope) = (policy.name.clone(), policy.scope);
        self.replace_policy(PolicyEntry { name, policy: Some(policy), scope, stale: false }, diff);
    }

    /// The last good form stays in force. Without one there is an entry that denies: in the scope that could be read, or else in the whole
    /// namespace, because the policy may have meant any workload of it.
    pub(super) fn mark_unreadable(&mut self, name: NamespacedName, scope: Option<Scope>, diff: &mut Diff) {
        let policy = self.current.policies.get(&name).and_then(|entry| entry.policy.clone());
        let scope = policy.as_ref().map_or(scope.unwrap_or(Scope::Namespace), |policy| policy.scope);
        self.replace_policy(PolicyEntry { name, policy, scope, stale: true }, diff);
    }

    pub(super) fn remove_policy(&mut self, name: &NamespacedName, diff: &mut Diff) {
        if let Some(entry) = self.current.policies.remove(name) {
            self.edit_list(&entry, false);
            diff.policy(name, entry.scope);
        }
    }

    fn replace_policy(&mut self, entry: PolicyEntry, diff: &mut Diff) {
        let entry = Arc::new(entry);
        if let Some(former) = self.current.policies.insert(entry.name.clone(), Arc::clone(&entry)) {
            self.edit_list(&former, false);
            diff.policy(&former.name, former.scope);
        }
        self.edit_list(&entry, true);
        diff.policy(&entry.name, entry.scope);
    }

    fn edit_list(&mut self, entry: &Arc<PolicyEntry>, present: bool) {
        let namespace = &entry.name.namespace;
        match entry.scope {
            Scope::Global => self.current.global_policies = edited(&self.current.global_policies, entry, present),
            Scope::Namespace => {
                let list = self.current.namespace_policies.get(namespace).cloned().unwrap_or_default();
                let list = edited(&list, entry, present);
                if list.is_empty() {
                    self.current.namespace_policies.remove(namespace);
                } else {
                    self.current.namespace_policies.insert(namespace.clone(), list);
                }
            }
            Scope::WorkloadSelector => {}
        }
    }
}

/// Sorted by name, so that the policy that a decision names does not depend on arrival.
fn edited(list: &PolicyList, entry: &Arc<PolicyEntry>, present: bool) -> PolicyList {
    let mut list: Vec<_> = list.iter().filter(|e| e.name != entry.name).cloned().collect();
    if present {
        list.push(Arc::clone(entry));
    }
    list.sort_by(|a, b| a.name.cmp(&b.name));
    list.into()
}
