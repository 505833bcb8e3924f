//! Tells the kernel what the registry knows, while a pod is served that may reach nothing else: then a connect to anything else fails at once, also while
//! there is no agent. Called by `recheck.rs` on each change and by enrolment, before the first such pod is captured.
//!
//! Addresses inside of the mesh's ranges are one row each range: whether anybody has one of them the agent asks itself. Of all others each is a row.

use std::collections::{BTreeSet, HashMap};

use ipnet::IpNet;
use mesh_core::{Diff, NamespacedName, Snapshot};
use parking_lot::Mutex;

use super::seams::Interception;
use crate::state::Update;

/// What the kernel has been told, and what it should be.
#[derive(Debug, Default)]
pub struct Registry(Mutex<Told>);

#[derive(Debug, Default)]
struct Told {
    /// What is in the kernel; `None` until that was read: an earlier agent may have left something.
    have: Option<BTreeSet<IpNet>>,
    want: BTreeSet<IpNet>,
    /// Rows of services, by which it is known what a change takes away.
    of_services: HashMap<NamespacedName, Vec<IpNet>>,
    /// In what the two may differ.
    due: BTreeSet<IpNet>,
    is_needed: bool,
    /// There was no room for something.
    is_full: bool,
}

impl Registry {
    /// Brings the kernel in step with the snapshot, as far as `update` says that something has changed; without one only what is left from before. False:
    /// the kernel did not take it. Until it is known what workloads exist and what they may reach, what an earlier agent has said stays. `is_needed`: whether
    /// some pod may reach nothing else.
    pub fn follow(
        &self,
        kernel: &dyn Interception,
        snapshot: &Snapshot,
        network: &str,
        update: Option<&Update>,
        is_needed: impl FnOnce() -> bool,
    ) -> bool {
        if !snapshot.is_synced() || !snapshot.is_outbound_known() {
            return true;
        }
        let mut told = self.0.lock();
        let told = &mut *told;
        // Asked only now: a pod is known before the registry is followed for it.
        let is_needed = is_needed();
        let have = match &mut told.have {
            Some(have) => have,
            unread => match kernel.registry() {
                Ok(have) => unread.insert(have),
                Err(error) => {
                    tracing::warn!(%error, "cannot read what the kernel knows of the registry");
                    return false;
                }
            },
        };
        let was_needed = std::mem::replace(&mut told.is_needed, is_needed);
        match update {
            _ if !is_needed => (told.want, told.of_services) = Default::default(),
            Some(Update::Changed(diff)) if was_needed && !diff.synced => {
                let touched = touch(diff, snapshot, network, &mut told.of_services);
                for range in touched {
                    match is_wanted(snapshot, network, &range) {
                        true => told.want.insert(range),
                        false => told.want.remove(&range),
                    };
                    told.due.insert(range);
                }
            }
            None if was_needed => {}
            _ => (told.want, told.of_services) = all(snapshot, network),
        }
        if is_needed != was_needed || !matches!(update, Some(Update::Changed(_))) {
            told.due = have.symmetric_difference(&told.want).copied().collect();
        }
        let add: Vec<IpNet> =
            told.due.iter().filter(|at| told.want.contains(at) && !have.contains(at)).copied().collect();
        let remove: Vec<IpNet> =
            told.due.iter().filter(|at| !told.want.contains(at) && have.contains(at)).copied().collect();
        if add.is_empty() && remove.is_empty() {
            told.due.clear();
            return true;
        }
        match kernel.set_registry(&add, &remove) {
            Ok(left) => {
                have.extend(add);
                have.retain(|range| !remove.contains(range) && !left.contains(range));
                let is_full = !left.is_empty();
                if is_full && !std::mem::replace(&mut told.is_full, is_full) {
                    let (first, count) = (left.first().map(ToString::to_string), left.len());
                    tracing::error!(
                        first,
                        count,
                        "no room in the kernel for all that the registry knows: pods that may reach nothing else do not reach these"
                    );
                }
                told.is_full = is_full;
                told.due = left.into_iter().collect();
                true
            }
            Err(error) => {
                tracing::warn!(%error, "cannot tell the kernel what the registry knows");
                // How far it came is not known.
                told.have = None;
                told.is_needed = false;
                false
            }
        }
    }
}

/// Rows that a change may have changed.
fn touch(
    diff: &Diff,
    snapshot: &Snapshot,
    network: &str,
    of_services: &mut HashMap<NamespacedName, Vec<IpNet>>,
) -> BTreeSet<IpNet> {
    let mut touched: BTreeSet<IpNet> = diff.addresses.iter().map(|ip| IpNet::from(ip.to_canonical())).collect();
    for key in &diff.services {
        touched.extend(of_services.remove(key).into_iter().flatten());
        let rows = of_service(snapshot, network, key);
        touched.extend(&rows);
        if !rows.is_empty() {
            of_services.insert(key.clone(), rows);
        }
    }
    touched
}

fn of_service(snapshot: &Snapshot, network: &str, key: &NamespacedName) -> Vec<IpNet> {
    let addresses = snapshot.service(key).into_iter().flat_map(|service| &service.addresses);
    let own = addresses.filter(|at| at.network == network).map(|at| at.cidr.trunc());
    own.filter(|range| !is_inside(snapshot, range)).collect()
}

/// Addresses inside of the mesh's ranges are known as a whole.
fn is_inside(snapshot: &Snapshot, range: &IpNet) -> bool {
    range.prefix_len() == range.max_prefix_len() && snapshot.in_mesh_ranges(range.addr())
}

fn is_wanted(snapshot: &Snapshot, network: &str, range: &IpNet) -> bool {
    snapshot.ranges().any(|known| known == *range) || (snapshot.has(network, range) && !is_inside(snapshot, range))
}

/// All rows, and those of services.
fn all(snapshot: &Snapshot, network: &str) -> (BTreeSet<IpNet>, HashMap<NamespacedName, Vec<IpNet>>) {
    let owned = snapshot.owned(network).map(|ip| IpNet::from(ip.to_canonical()));
    let mut want: BTreeSet<IpNet> = owned.filter(|ip| !is_inside(snapshot, ip)).collect();
    want.extend(snapshot.ranges().map(|range| range.trunc()));
    let services = snapshot.services().map(|service| service.key());
    let of_services: HashMap<NamespacedName, Vec<IpNet>> = services
        .map(|key| {
            let rows = of_service(snapshot, network, &key);
            (key, rows)
        })
        .filter(|(_, rows)| !rows.is_empty())
        .collect();
    want.extend(of_services.values().flatten());
    (want, of_services)
}

#[cfg(test)]
#[expect(non_snake_case, reason = "tests carry the ids of their rows")]
mod tests {
    use std::net::SocketAddr;
    use std::os::fd::BorrowedFd;
    use std::sync::Arc;

    use mesh_core::service::ServiceAddress;
    use mesh_core::{Change, Service, Store, Workload};

    use super::*;
    use crate::bpf::InboundMode;

    /// A kernel with room for some.
    #[derive(Default)]
    struct Table {
        rows: Mutex<BTreeSet<IpNet>>,
        room: Mutex<usize>,
        writes: Mutex<usize>,
    }

    impl Interception for Table {
        fn original_destination(&self, _: u64, _: SocketAddr) -> Option<SocketAddr> {
            None
        }
        fn set_client(&self, _: BorrowedFd<'_>, _: SocketAddr) -> std::io::Result<()> {
            Ok(())
        }
        fn client_shown(&self, _: BorrowedFd<'_>) -> bool {
            true
        }
        fn set_inbound(&self, _: u64, _: &InboundMode) -> std::io::Result<bool> {
            Ok(true)
        }
        fn set_registry_only(&self, _: u64, _: bool) -> std::io::Result<()> {
            Ok(())
        }
        fn registry(&self) -> std::io::Result<BTreeSet<IpNet>> {
            Ok(self.rows.lock().clone())
        }
        fn set_registry(&self, add: &[IpNet], remove: &[IpNet]) -> std::io::Result<Vec<IpNet>> {
            *self.writes.lock() += add.len() + remove.len();
            let mut rows = self.rows.lock();
            remove.iter().for_each(|range| assert!(rows.remove(range), "{range}"));
            let room = self.room.lock().saturating_sub(rows.len()).min(add.len());
            rows.extend(&add[..room]);
            Ok(add[room..].to_vec())
        }
    }

    fn entry(host: &str, addresses: &[&str]) -> Change {
        let mut service = Service::new("shop", host, host);
        let address = |text: &&str| ServiceAddress { network: "".into(), cidr: text.parse().unwrap() };
        service.addresses = addresses.iter().map(address).collect();
        Change::Service(service)
    }

    fn workload(name: &str, address: &str) -> Change {
        let mut workload = Workload::new(name, "shop", name);
        workload.addresses = vec![address.parse().unwrap()];
        Change::Workload(workload)
    }

    #[test]
    fn features_SB_3_the_kernel_follows_what_the_registry_knows() {
        let (kernel, registry, mut store) = (Table::default(), Registry::default(), Store::new());
        *kernel.room.lock() = 100;
        // Of an agent that was here before.
        kernel.rows.lock().insert("203.0.113.9/32".parse().unwrap());
        let rows = || kernel.rows.lock().iter().map(ToString::to_string).collect::<Vec<_>>();
        let mut step = |changes: Vec<Change>, is_needed: bool| {
            let applied = store.apply(changes);
            let update = Update::Changed(Arc::new(applied.diff));
            assert!(registry.follow(&kernel, &applied.snapshot, "", Some(&update), || is_needed));
            (rows(), std::mem::take(&mut *kernel.writes.lock()))
        };
        let first = vec![
            Change::Ranges(vec!["198.18.0.0/16".parse().unwrap()]),
            workload("inside", "198.18.0.1"),
            workload("db", "198.51.100.7"),
            entry("inside.example.com", &["198.18.100.1/32"]),
            entry("a.example.com", &["240.240.0.1/32", "2001:2::1/128"]),
            entry("range.example.com", &["198.51.0.0/16"]),
        ];
        assert_eq!(step(first, true).0, ["203.0.113.9/32"], "before the whole configuration what is there stays");
        let whole = ["198.18.0.0/16", "198.51.0.0/16", "198.51.100.7/32", "240.240.0.1/32", "2001:2::1/128"];
        assert_eq!(
            step(vec![Change::Synced], false).0,
            ["203.0.113.9/32"],
            "who may reach nothing else is not known yet"
        );
        assert_eq!(step(vec![Change::OutboundKnown], true).0, whole);
        // Each change costs what it changes.
        assert_eq!(step(vec![workload("inside-2", "198.18.0.2")], true).1, 0);
        let (moved, writes) = step(vec![entry("a.example.com", &["240.240.0.2/32"])], true);
        assert_eq!((moved.join(" "), writes), ("198.18.0.0/16 198.51.0.0/16 198.51.100.7/32 240.240.0.2/32".into(), 3));
        // Two have the range: it stays until both are gone.
        step(vec![entry("b.example.com", &["198.51.0.0/16", "198.51.100.7/32"])], true);
        let gone = |name: &str| Change::RemoveAddress(name.into());
        let (left, _) = step(vec![gone("shop/range.example.com"), gone("db")], true);
        assert_eq!(left, ["198.18.0.0/16", "198.51.0.0/16", "198.51.100.7/32", "240.240.0.2/32"]);
        let (left, _) = step(vec![gone("shop/b.example.com"), gone("shop/a.example.com")], true);
        assert_eq!(left, ["198.18.0.0/16"]);
        assert_eq!(step(vec![workload("db", "198.51.100.7")], false).0, [""; 0], "nobody needs it");
        assert_eq!(step(vec![], true).0, ["198.18.0.0/16", "198.51.100.7/32"]);
    }

    #[test]
    fn what_an_earlier_agent_left_stays_until_this_one_has_its_pods() {
        let (kernel, registry, mut store) = (Table::default(), Registry::default(), Store::new());
        kernel.rows.lock().insert("203.0.113.9/32".parse().unwrap());
        let applied = store.apply(vec![Change::Synced, Change::OutboundKnown]);
        let update = Update::Changed(Arc::new(applied.diff));
        // The configuration is here before the pods are taken over: theirs is what the kernel has.
        assert!(registry.follow(&kernel, &applied.snapshot, "", Some(&update), || false));
        assert_eq!(kernel.rows.lock().len(), 1);
        // A round later nobody has turned up who needs it.
        assert!(registry.follow(&kernel, &applied.snapshot, "", None, || false));
        assert!(kernel.rows.lock().is_empty());
    }

    #[test]
    fn what_has_no_room_comes_when_there_is_some() {
        let (kernel, registry, mut store) = (Table::default(), Registry::default(), Store::new());
        *kernel.room.lock() = 2;
        let many: Vec<String> = (1..=3).map(|n| format!("240.240.0.{n}/32")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        let snapshot = store.apply(vec![entry("a.example.com", &many), Change::Synced, Change::OutboundKnown]).snapshot;
        assert!(registry.follow(&kernel, &snapshot, "", Some(&Update::Resync), || true));
        assert_eq!(kernel.rows.lock().len(), 2);
        *kernel.room.lock() = 3;
        assert!(registry.follow(&kernel, &snapshot, "", None, || true));
        assert_eq!(kernel.rows.lock().len(), 3);
    }
}
