//! What the tables say of a pod's inbound traffic: the flags of its row and the modes of its ports. Called by enrolment and when policies change.

use std::{collections::HashSet, io};

use mesh_common::row::{self, POD_REDIRECTED, POD_STRICT, POD_UDP_DENY, POD_UNDECIDED, PortKey};

use super::{
    config::{InboundMode, KernelError, Limits, Setting},
    object::bpf,
    sys,
    tables::Tables,
};

/// The flags of a row with the node's setting.
pub fn with_setting(flags: u32, setting: Setting) -> u32 {
    let of = |holds: bool, flag: u32| if holds { flag } else { 0 };
    flags & !(POD_UDP_DENY | POD_REDIRECTED)
        | of(setting.deny_udp, POD_UDP_DENY)
        | of(setting.redirected, POD_REDIRECTED)
}

/// The flags of a row with those of this mode.
pub fn with_mode(flags: u32, mode: &InboundMode) -> u32 {
    let strict = if mode.default_strict { POD_STRICT } else { 0 };
    let undecided = if mode.undecided { POD_UNDECIDED } else { 0 };
    (flags & !(POD_STRICT | POD_UNDECIDED)) | strict | undecided
}

/// Sets what the mode refuses in the row of a pod that is captured already, before the modes of its ports are taken from it.
pub fn tighten(tables: &Tables, cookie: u64, mode: &InboundMode) -> io::Result<()> {
    let Some(mut row) = tables.pods.get(&cookie)? else { return Ok(()) };
    row.flags |= with_mode(0, mode);
    tables.pods.set(&cookie, &row, sys::ANY)
}

/// Whether the modes of a pod's ports fit beside those of the others, and beside its own that they replace.
pub fn have_room(tables: &Tables, cookie: u64, mode: &InboundMode, limits: &Limits) -> io::Result<bool> {
    if mode.ports.is_empty() || mode.ports.len() > limits.inbound_ports_per_pod as usize {
        return Ok(mode.ports.is_empty());
    }
    let there: HashSet<PortKey> = tables.inbound_ports.keys()?.into_iter().collect();
    let new = mode.ports.iter().filter(|(port, _)| !there.contains(&port_key(cookie, *port))).count();
    Ok(there.len() + new <= limits.inbound_ports as usize)
}

fn port_key(cookie: u64, port: u16) -> PortKey {
    PortKey { cookie, port: port.into(), reserved: 0 }
}

/// Replaces the modes of a pod's ports, the strict ones first.
pub fn set_ports(tables: &Tables, cookie: u64, mode: &InboundMode) -> Result<(), KernelError> {
    let failed = |source| bpf("write", row::maps::INBOUND_PORTS, source);
    for strict in [true, false] {
        for (port, _) in mode.ports.iter().filter(|(_, mode)| *mode == strict) {
            tables.inbound_ports.set(&port_key(cookie, *port), &u32::from(strict), sys::ANY).map_err(failed)?;
        }
    }
    let keep = |old: &PortKey| mode.ports.iter().any(|(port, _)| u32::from(*port) == old.port);
    for old in tables.inbound_ports.keys().map_err(failed)? {
        if old.cookie == cookie && !keep(&old) {
            tables.inbound_ports.delete(&old).map_err(failed)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use mesh_common::row::POD_CLOSED;

    use super::*;

    #[test]
    fn a_mode_changes_its_own_flags_only() {
        let mode = |default_strict, undecided| InboundMode { default_strict, ports: vec![], undecided };
        assert_eq!(with_mode(POD_CLOSED | POD_STRICT, &mode(false, true)), POD_CLOSED | POD_UNDECIDED);
        assert_eq!(with_mode(POD_UDP_DENY | POD_UNDECIDED, &mode(true, false)), POD_UDP_DENY | POD_STRICT);
        let setting = |deny_udp, redirected| Setting { deny_udp, redirected };
        assert_eq!(with_setting(POD_CLOSED | POD_UDP_DENY, setting(false, true)), POD_CLOSED | POD_REDIRECTED);
        assert_eq!(with_setting(POD_STRICT | POD_REDIRECTED, setting(true, false)), POD_STRICT | POD_UDP_DENY);
    }
}
