//! What the kernel knows of the registry: addresses and ranges that somebody has, for pods that may reach nothing else. Called when the configuration
//! changes and while any such pod is there; whoever calls says what is new and what is gone.

use std::{collections::BTreeSet, io, net::IpAddr};

use ipnet::IpNet;
use mesh_common::{
    Address,
    row::{POD_REGISTRY_ONLY, RegistryKey},
};

use super::{
    rules::{MAPPED_BITS, canonical, is_full},
    sys,
    tables::Tables,
};

/// The row says that somebody has it.
const KNOWN: u32 = 1;

/// The flags of a row with what its pod may reach.
pub fn with_outbound(flags: u32, registry_only: bool) -> u32 {
    flags & !POD_REGISTRY_ONLY | if registry_only { POD_REGISTRY_ONLY } else { 0 }
}

/// What the kernel knows: also what another agent has told it.
pub fn known(tables: &Tables) -> io::Result<BTreeSet<IpNet>> {
    let is_known = |key: &RegistryKey| matches!(tables.registry.get(key), Ok(Some(KNOWN)));
    Ok(tables.registry.keys()?.iter().filter(|key| is_known(key)).filter_map(range).collect())
}

/// Adds and takes away. What has no room is returned, and may not be reached.
pub fn change(tables: &Tables, add: &[IpNet], remove: &[IpNet]) -> io::Result<Vec<IpNet>> {
    for range in remove {
        let key = key(range);
        match key == v4() {
            true => tables.registry.set(&key, &0, sys::ANY)?,
            false => drop(tables.registry.delete(&key)?),
        }
    }
    // A range of IPv6 that has all of IPv4 in it says nothing of it.
    if !add.is_empty() && tables.registry.get(&v4())?.is_none() {
        tables.registry.set(&v4(), &0, sys::ANY)?;
    }
    let mut left = Vec::new();
    for range in add {
        match tables.registry.set(&key(range), &KNOWN, sys::ANY) {
            Err(error) if is_full(&error) => left.push(*range),
            result => result?,
        }
    }
    Ok(left)
}

fn v4() -> RegistryKey {
    key(&IpNet::V4(Default::default()))
}

fn key(range: &IpNet) -> RegistryKey {
    let range = canonical(*range);
    let bits = u32::from(range.prefix_len()) + if range.addr().is_ipv4() { MAPPED_BITS } else { 0 };
    RegistryKey { prefix: bits, address: Address::from(range.network()) }
}

fn range(key: &RegistryKey) -> Option<IpNet> {
    let address = IpAddr::from(key.address);
    let bits = if address.is_ipv4() { key.prefix.checked_sub(MAPPED_BITS)? } else { key.prefix };
    IpNet::new(address, u8::try_from(bits).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_found_again_in_its_key() {
        for text in ["198.51.100.7/32", "198.51.100.0/24", "0.0.0.0/0", "2001:db8::7/128", "2001:db8::/32", "::/0"] {
            let net: IpNet = text.parse().unwrap();
            assert_eq!(range(&key(&net)), Some(net), "{text}");
        }
        let mapped: IpNet = "::ffff:198.51.100.0/120".parse().unwrap();
        assert_eq!(key(&mapped), key(&"198.51.100.0/24".parse().unwrap()));
        let inside: IpNet = "198.51.100.9/24".parse().unwrap();
        assert_eq!(key(&inside), key(&"198.51.100.0/24".parse().unwrap()));
    }

    #[test]
    fn only_its_own_flag_changes() {
        assert_eq!(with_outbound(3, true), 3 | POD_REGISTRY_ONLY);
        assert_eq!(with_outbound(3 | POD_REGISTRY_ONLY, false), 3);
    }
}
