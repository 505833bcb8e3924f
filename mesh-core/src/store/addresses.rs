//! Who owns an address. Ownership moves in the same batch as the workloads do, and each move gets a new generation.

use std::{cmp::Reverse, sync::Arc};

use arcstr::ArcStr;

use super::{Diff, Store};
use crate::{
    Workload,
    snapshot::AddressOwner,
    workload::{NetworkAddress, NetworkMode, TunnelProtocol},
};

impl Store {
    /// Releases what only `former` had and claims what `latter` has. Both are versions of one workload.
    pub(super) fn move_addresses(
        &mut self,
        former: Option<&Workload>,
        latter: Option<&Arc<Workload>>,
        diff: &mut Diff,
    ) {
        let (old, new) = (keys(former), keys(latter.map(|w| &**w)));
        for key in old.iter().filter(|key| !new.contains(key)) {
            if let Some(workload) = former {
                self.release(key, &workload.uid, diff);
            }
        }
        if let Some(workload) = latter {
            new.into_iter().for_each(|key| self.claim(key, workload, diff));
        }
    }

    fn claim(&mut self, key: NetworkAddress, workload: &Arc<Workload>, diff: &mut Diff) {
        let owner = self.current.addresses.get(&key);
        if let Some(owner) = owner.filter(|owner| owner.workload.uid != workload.uid) {
            let claimants = self.contested.entry(key.clone()).or_insert_with(|| vec![owner.workload.uid.clone()]);
            if !claimants.contains(&workload.uid) {
                claimants.push(workload.uid.clone());
            }
        }
        if self.contested.contains_key(&key) {
            self.elect(key, diff);
        } else {
            self.give(key, Arc::clone(workload), Arc::default(), diff);
        }
    }

    fn release(&mut self, key: &NetworkAddress, uid: &ArcStr, diff: &mut Diff) {
        if let Some(claimants) = self.contested.get_mut(key) {
            claimants.retain(|claimant| claimant != uid);
            self.elect(key.clone(), diff);
            if self.contested.get(key).is_some_and(|claimants| claimants.len() < 2) {
                self.contested.remove(key);
            }
        } else if self.current.addresses.get(key).is_some_and(|owner| owner.workload.uid == *uid) {
            self.current.addresses.remove(key);
            diff.addresses.insert(key.address);
        }
    }

    /// A pod before an entry that a user wrote, then one with a tunnel, then the lowest uid: the same winner in whatever order they came.
    fn elect(&mut self, key: NetworkAddress, diff: &mut Diff) {
        let claimants = self.contested.get(&key).into_iter().flatten();
        let known: Vec<_> = claimants.filter_map(|uid| self.current.workloads.get(uid)).collect();
        let rank = |w: &Workload| (w.is_pod(), w.protocol == TunnelProtocol::Hbone, Reverse(w.uid.clone()));
        if let Some(best) = known.iter().max_by_key(|w| rank(w)).map(|best| Arc::clone(best)) {
            let others = known.into_iter().filter(|other| other.uid != best.uid).cloned().collect();
            self.give(key, best, others, diff);
        }
    }

    fn give(&mut self, key: NetworkAddress, workload: Arc<Workload>, others: Arc<[Arc<Workload>]>, diff: &mut Diff) {
        let owner = self.current.addresses.get(&key);
        let generation = match owner.filter(|owner| owner.workload.uid == workload.uid) {
            Some(owner) => owner.generation,
            None => {
                diff.addresses.insert(key.address);
                self.last_generation += 1;
                self.last_generation
            }
        };
        self.current.addresses.insert(key, AddressOwner { workload, others, generation });
    }
}

/// The addresses by which a workload can be found: none on the host network, where the address is the node's.
fn keys(workload: Option<&Workload>) -> Vec<NetworkAddress> {
    let own = workload.filter(|w| w.network_mode == NetworkMode::Standard);
    let key = |w: &Workload, address| NetworkAddress { network: w.network.clone(), address };
    own.into_iter().flat_map(|w| w.addresses.iter().map(|a| key(w, a.to_canonical()))).collect()
}
