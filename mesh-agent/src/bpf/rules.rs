//! Rows of what the mesh leaves alone of a pod: ports and ranges that its annotations exclude, and ports that the kubelet may ask. Called when a pod is
//! enrolled.
//!
//! The kernel asks for the longest range that holds an address, and what is excepted is to come before what is named, however long: so each range's row
//! says what holds for it with all that it lies in.

use std::{
    collections::HashMap,
    hash::Hash,
    io,
    net::{IpAddr, Ipv4Addr},
};

use ipnet::{IpNet, Ipv4Net};
use mesh_common::{
    Address, ports,
    row::{
        POD_ALL_RULES, POD_INBOUND_LISTED, POD_INBOUND_OPEN, POD_OUTBOUND_LISTED, POD_RULES, PORT_IN_EXCEPT,
        PORT_IN_ONLY, PORT_OUT_ALSO, PORT_OUT_EXCEPT, PortKey, ProbeKey, RANGE_EXCEPT, RANGE_ONLY, RangeKey,
    },
};
use mesh_core::CaptureRules;

use super::{
    sys::{self, Table},
    tables::Tables,
};

/// Where the addresses of IPv4 lie among those of IPv6.
pub const MAPPED_BITS: u32 = 96;
/// No probe leads there: they are the mesh's.
const MESH_PORTS: [u16; 4] = [ports::OUTBOUND, ports::INBOUND_PLAINTEXT, ports::HBONE, ports::DNS];

/// The rows of one pod.
#[derive(Debug, Default, PartialEq, Eq)]
struct Rows {
    flags: u32,
    ports: HashMap<PortKey, u32>,
    ranges: HashMap<RangeKey, u32>,
    probes: HashMap<ProbeKey, u64>,
}

/// Replaces the rows of a pod; returns the flags that its own row is to have. What was captured and is to be excluded stays captured until that row is
/// written. If there is no room everything is captured, and no probe passes.
pub fn set(tables: &Tables, cookie: u64, ips: &[IpAddr], rules: &CaptureRules) -> io::Result<u32> {
    let mut rows = compile(cookie, ips, rules);
    let had = tables.pods.get(&cookie)?;
    if rows.flags != 0 || had.is_some_and(|row| row.flags & POD_ALL_RULES != 0) {
        let changed = replace_rules(tables, cookie, &rows);
        if changed.as_ref().is_err_and(is_full) {
            tracing::warn!(cookie, "no room for what the pod's annotations exclude: all of its traffic is captured");
            rows = Rows { probes: rows.probes, ..Rows::default() };
            replace_rules(tables, cookie, &rows)?;
        } else {
            changed?;
        }
    }
    match replace_probes(tables, cookie, &rows.probes) {
        Err(error) if is_full(&error) => {
            tracing::warn!(
                cookie,
                "no room for the ports of the pod's probes: those of the kubelet meet the mesh's rules"
            );
        }
        result => result?,
    }
    Ok(rows.flags)
}

/// Takes away all rows of a pod, and the tickets to it.
pub fn forget(tables: &Tables, cookie: u64) -> io::Result<()> {
    replace_rules(tables, cookie, &Rows::default())?;
    replace_probes(tables, cookie, &HashMap::new())?;
    for key in tables.tickets.keys()?.iter().filter(|key| key.cookie == cookie) {
        tables.tickets.delete(key)?;
    }
    Ok(())
}

fn replace_rules(tables: &Tables, cookie: u64, rows: &Rows) -> io::Result<()> {
    let old_ports: Vec<PortKey> = tables.port_rules.keys()?.into_iter().filter(|key| key.cookie == cookie).collect();
    let old_ranges: Vec<RangeKey> =
        tables.range_rules.keys()?.into_iter().filter(|key| key.owner() == cookie).collect();
    if let Some(mut row) = tables.pods.get(&cookie)? {
        let is_same = row.flags & POD_ALL_RULES == rows.flags
            && old_ports.len() == rows.ports.len()
            && old_ranges.len() == rows.ranges.len()
            && old_ranges.iter().all(|key| rows.ranges.contains_key(key))
            && old_ports.iter().all(|key| rows.ports.get(key) == tables.port_rules.get(key).ok().flatten().as_ref());
        if !is_same && row.flags & POD_ALL_RULES != 0 {
            row.flags &= !POD_ALL_RULES;
            tables.pods.set(&cookie, &row, sys::ANY)?;
        }
    }
    replace(&tables.port_rules, old_ports, &rows.ports)?;
    replace(&tables.range_rules, old_ranges, &rows.ranges)
}

fn replace_probes(tables: &Tables, cookie: u64, probes: &HashMap<ProbeKey, u64>) -> io::Result<()> {
    let of_pod = |key: &ProbeKey| matches!(tables.probes.get(key), Ok(Some(owner)) if owner == cookie);
    let old: Vec<ProbeKey> = tables.probes.keys()?.into_iter().filter(of_pod).collect();
    replace(&tables.probes, old, probes)
}

fn replace<K: aya::Pod + Hash + Eq, V: aya::Pod>(
    table: &Table<K, V>,
    old: Vec<K>,
    new: &HashMap<K, V>,
) -> io::Result<()> {
    for key in old.iter().filter(|key| !new.contains_key(key)) {
        table.delete(key)?;
    }
    new.iter().try_for_each(|(key, value)| table.set(key, value, sys::ANY))
}

/// Hash tables say it in another way than tries.
pub fn is_full(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::E2BIG | libc::ENOSPC | libc::ENOMEM))
}

fn compile(cookie: u64, ips: &[IpAddr], rules: &CaptureRules) -> Rows {
    let mut rows = Rows::default();
    for ip in ips {
        for port in rules.probe_ports.iter().filter(|port| !MESH_PORTS.contains(port)) {
            rows.probes.insert(ProbeKey { address: (*ip).into(), port: (*port).into() }, cookie);
        }
    }
    if !rules.excludes() {
        return rows;
    }
    let flag = |on: bool, flag| if on { flag } else { 0 };
    rows.flags = POD_RULES
        | flag(rules.inbound_open, POD_INBOUND_OPEN)
        | flag(rules.inbound_only.is_some(), POD_INBOUND_LISTED)
        | flag(rules.outbound_only.is_some(), POD_OUTBOUND_LISTED);
    let named = [
        (&rules.inbound_except[..], PORT_IN_EXCEPT),
        (rules.inbound_only.as_deref().unwrap_or_default(), PORT_IN_ONLY),
        (&rules.outbound_except_ports, PORT_OUT_EXCEPT),
        (&rules.outbound_also, PORT_OUT_ALSO),
    ];
    for (list, bit) in named {
        for port in list {
            *rows.ports.entry(PortKey { cookie, port: (*port).into(), reserved: 0 }).or_default() |= bit;
        }
    }
    rows.ranges = ranges(cookie, rules);
    rows
}

fn ranges(cookie: u64, rules: &CaptureRules) -> HashMap<RangeKey, u32> {
    let except: Vec<IpNet> = rules.outbound_except.iter().copied().map(canonical).collect();
    let mut all: Vec<IpNet> = rules.outbound_only.iter().flatten().copied().map(canonical).collect();
    let only = all.clone();
    all.extend(&except);
    let held = |list: &[IpNet], range: &IpNet| list.iter().any(|other| other.contains(range));
    let rule = |range: &IpNet| match (held(&except, range), held(&only, range)) {
        (true, _) => RANGE_EXCEPT,
        (false, true) => RANGE_ONLY,
        (false, false) => 0,
    };
    // A range of IPv6 that has all of IPv4 in it says nothing of it.
    if all.iter().any(|range| matches!(range, IpNet::V6(range) if u32::from(range.prefix_len()) <= MAPPED_BITS)) {
        all.push(IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0)));
    }
    let key = |range: &IpNet| {
        let bits = u32::from(range.prefix_len()) + if range.addr().is_ipv4() { MAPPED_BITS } else { 0 };
        RangeKey::new(cookie, Address::from(range.network()), bits)
    };
    all.iter().map(|range| (key(range), rule(range))).collect()
}

/// IPv4 written as IPv6 is IPv4.
pub fn canonical(range: IpNet) -> IpNet {
    let IpNet::V6(v6) = range else { return range.trunc() };
    match (v6.addr().to_ipv4_mapped(), u32::from(v6.prefix_len()).checked_sub(MAPPED_BITS)) {
        (Some(v4), Some(bits)) => Ipv4Net::new(v4, bits as u8).map_or(range, |range| IpNet::V4(range.trunc())),
        _ => range.trunc(),
    }
}

#[cfg(test)]
mod tests {
    use mesh_common::decide::leaves;

    use super::*;

    fn nets(text: &[&str]) -> Vec<IpNet> {
        text.iter().map(|text| text.parse().unwrap()).collect()
    }

    /// As the kernel looks it up.
    fn longest(rows: &Rows, address: &str) -> u32 {
        let address = Address::from(address.parse::<IpAddr>().unwrap());
        let bits = |address: &Address| {
            address.words.iter().fold(0u128, |sum, word| sum << 32 | u128::from(u32::from_be(*word)))
        };
        let holds = |key: &RangeKey| {
            let length = key.prefix - RangeKey::OF_POD;
            length == 0 || (bits(&key.address) ^ bits(&address)) >> (128 - length) == 0
        };
        rows.ranges.iter().filter(|(key, _)| holds(key)).max_by_key(|(key, _)| key.prefix).map_or(0, |(_, rule)| *rule)
    }

    #[test]
    fn features_en11_a_range_that_is_excepted_comes_before_one_that_is_named_whichever_is_longer() {
        let rules = CaptureRules {
            outbound_only: Some(nets(&["198.18.0.0/16", "198.19.7.0/24", "fd00:198::/32"])),
            outbound_except: nets(&["198.18.5.0/24", "198.19.0.0/16", "fd00:198:1::/48", "::ffff:198.18.6.0/120"]),
            ..CaptureRules::default()
        };
        let rows = compile(7, &[], &rules);
        let table = [
            ("198.18.1.1", false),
            ("198.18.5.1", true),
            ("198.18.6.1", true),
            // Named within what is excepted.
            ("198.19.7.1", true),
            ("198.20.0.1", true),
            ("fd00:198::1", false),
            ("fd00:198:1::1", true),
            ("fd00:199::1", true),
        ];
        for (address, expected) in table {
            assert_eq!(leaves(rows.flags, 0, longest(&rows, address)), expected, "{address}");
        }
    }

    #[test]
    fn features_en11_all_of_ipv6_is_nothing_of_ipv4() {
        let except = CaptureRules { outbound_except: nets(&["::/0"]), ..CaptureRules::default() };
        let rows = compile(7, &[], &except);
        assert!(leaves(rows.flags, 0, longest(&rows, "fd00:198::1")));
        assert!(!leaves(rows.flags, 0, longest(&rows, "198.18.0.1")));
        let both = CaptureRules { outbound_except: nets(&["::/0", "0.0.0.0/0"]), ..CaptureRules::default() };
        let rows = compile(7, &[], &both);
        assert!(leaves(rows.flags, 0, longest(&rows, "198.18.0.1")));
    }

    #[test]
    fn features_pl5_probes_are_of_every_address_and_of_no_port_of_the_mesh() {
        let ips = ["198.18.0.2", "fd00:198::2"].map(|ip| ip.parse().unwrap());
        let rules = CaptureRules { probe_ports: vec![8080, 15008, 15001, 15006, 15053], ..CaptureRules::default() };
        let rows = compile(7, &ips, &rules);
        let expected = ips.map(|ip| (ProbeKey { address: Address::from(ip), port: 8080 }, 7));
        assert_eq!(rows, Rows { probes: HashMap::from(expected), ..Rows::default() });
    }

    #[test]
    fn features_en9_en11_flags_and_ports() {
        let rules = CaptureRules {
            inbound_open: true,
            inbound_only: Some(vec![80]),
            inbound_except: vec![80, 81],
            outbound_except_ports: vec![81],
            outbound_also: vec![82],
            ..CaptureRules::default()
        };
        let rows = compile(7, &[], &rules);
        assert_eq!(rows.flags, POD_RULES | POD_INBOUND_OPEN | POD_INBOUND_LISTED);
        let mut ports: Vec<(u32, u32)> = rows.ports.into_iter().map(|(key, rule)| (key.port, rule)).collect();
        ports.sort_unstable();
        let expected =
            [(80, PORT_IN_ONLY | PORT_IN_EXCEPT), (81, PORT_IN_EXCEPT | PORT_OUT_EXCEPT), (82, PORT_OUT_ALSO)];
        assert_eq!(ports, expected);
    }
}
