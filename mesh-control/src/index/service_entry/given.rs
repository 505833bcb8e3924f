//! Addresses of hosts that have none of their own: of 240.240.0.0/16 and 2001:2::/48, as Istio's. What an object's status says was given before is kept as long
//! as it is good and nobody else has it, so that neither a restart nor another host moves anybody; whoever wrote it. Of several that want one the oldest has it.
//! Without a status (manifests have none, and a new host has none yet) the number follows from the name alone: the same in every replica, before and after a restart.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use aws_lc_rs::digest::{SHA256, digest};
use mesh_core::NamespacedName;

use super::{Entry, entries, hosts, key, object};
use crate::index::Settings;
use crate::index::service::Services;
use crate::resource::Objects;
use crate::resource::routing::service_entry::Resolution;

/// On an object: whether a host without addresses gets one.
const AUTO: &str = "networking.istio.io/enable-autoallocate-ip";
/// How many of each family there are.
const MOST: u32 = 65_534;

/// Whether hosts of an entry are given addresses.
pub fn wants(entry: &Entry) -> bool {
    let is_off = entry.marks.get(AUTO).is_some_and(|value| value == "false");
    !is_off && entry.spec.resolution != Resolution::None && entry.spec.addresses.is_empty()
}

/// Which addresses are given, and to whom.
pub struct Given {
    /// What hosts have had before, one of each family.
    held: BTreeMap<NamespacedName, [Option<IpAddr>; 2]>,
    /// Nobody else gets these: they are written, or somebody's already.
    taken: BTreeSet<IpAddr>,
    /// How many new ones were given: of a mesh that is full nobody looks for more.
    new: u32,
}

impl Given {
    /// What objects say by themselves. Addresses of `services`, which are those of Kubernetes, are nobody else's.
    pub fn new(objects: &Objects, settings: &Settings, services: &Services) -> Self {
        let (mut held, mut taken) = (BTreeMap::new(), BTreeSet::new());
        let is_free = |address: &IpAddr| !services.addresses.contains_key(address);
        for entry in entries(objects, settings) {
            // In the order of their ages, too: what was given to an older one is not to be written by a younger.
            taken.extend(entry.spec.addresses.iter().filter_map(|written| written.parse::<IpAddr>().ok()));
            if !wants(entry) {
                continue;
            }
            for (_, host) in hosts(entry, objects, settings) {
                let key = key(entry, host);
                // Of two entries for one host the older one counts.
                if held.contains_key(&key) {
                    continue;
                }
                let mut own = [None, None];
                let said = entry.spec.given.0.iter().filter(|said| said.host.eq_ignore_ascii_case(host));
                for address in said.map(|said| said.address).filter(is_ours).filter(&is_free) {
                    let slot = &mut own[usize::from(address.is_ipv6())];
                    if slot.is_none() && taken.insert(address) {
                        *slot = Some(address);
                    }
                }
                held.insert(key, own);
            }
        }
        Self { held, taken, new: 0 }
    }

    /// The addresses of a host. From now on they are nobody else's, neither as addresses nor as endpoints.
    pub fn to(&mut self, entry: &Entry, key: &NamespacedName, services: &mut Services) -> Vec<IpAddr> {
        let held = self.held.get(key).copied().unwrap_or_default();
        let found = if held.contains(&None) { self.free(key, held, services) } else { held };
        let found: Vec<IpAddr> = found.into_iter().flatten().collect();
        for address in &found {
            self.taken.insert(*address);
            services.addresses.insert(*address, object(entry));
        }
        found
    }

    /// What is held, and for the rest the number that the host's name means, or the next that is free.
    fn free(&mut self, key: &NamespacedName, held: [Option<IpAddr>; 2], services: &Services) -> [Option<IpAddr>; 2] {
        if self.new >= MOST {
            return held;
        }
        let hash = digest(&SHA256, key.to_string().as_bytes());
        let bytes = hash.as_ref().iter().take(4).fold(0u32, |number, byte| (number << 8) | u32::from(*byte));
        let is_free = |address: &IpAddr| !services.addresses.contains_key(address) && !self.taken.contains(address);
        let numbers = (0..MOST).map(|step| (bytes % MOST + step) % MOST + 1);
        let found = numbers.map(pair).find(|pair| {
            pair.iter().zip(&held).filter(|(_, held)| held.is_none()).all(|(address, _)| is_free(address))
        });
        let Some(found) = found else {
            self.new = MOST;
            return held;
        };
        self.new += 1;
        [held[0].or(Some(found[0])), held[1].or(Some(found[1]))]
    }
}

/// The two addresses of a number.
fn pair(number: u32) -> [IpAddr; 2] {
    let [.., high, low] = number.to_be_bytes();
    let v6 = Ipv6Addr::new(0x2001, 2, 0, 0, 0, 0, 0, u16::from_be_bytes([high, low]));
    [Ipv4Addr::new(240, 240, high, low).into(), v6.into()]
}

/// Whether an address is one of those that are given: any other is somebody's whom nobody here knows. Not the first, which names the whole block.
fn is_ours(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => matches!(v4.octets(), [240, 240, high, low] if (high, low) != (0, 0)),
        IpAddr::V6(v6) => v6.segments().starts_with(&[0x2001, 2, 0]) && v6.segments()[3..] != [0; 5],
    }
}
