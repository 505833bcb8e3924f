//! Enrols and releases one pod: its row, its routes, its own instance of sk_lookup with its listeners.
//!
//! ```text
//!  enrol    routes - program, listeners - row (inbound only) - link - row
//!  remove   row (inbound only) - link - routes, pins - row, slots
//!  close    row (closed); everything else stays
//! ```
//!
//! The order keeps both halves honest: a pod's connects are captured only while its listeners can take them, and a pod that is captured
//! already stays so while it is enrolled again.

use std::{
    fs::{self, File},
    io,
    net::IpAddr,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    path::Path,
};

use aya::programs::SkLookup;
use mesh_common::{
    Address,
    peers::Peers,
    row::{
        self, Listener, POD_CLOSED, POD_INBOUND_ONLY, POD_REGISTRY_ONLY, POD_STRICT, POD_UDP_DENY, POD_UNDECIDED, Pod,
        SlotUse,
    },
};

use super::{
    config::{KernelError, Limits, PodSpec, Repair, Setting},
    inbound::{set_ports, tighten, with_mode, with_setting},
    links, netns,
    object::{Loader, Settings, bpf, missing},
    pins::{Pins, detach_links, failed, remove_tree},
    registry::with_outbound,
    sys::{self, Table},
    tables::Tables,
};

/// The hook in a network namespace, as the kernel numbers it.
pub const SK_LOOKUP: u32 = 36;

/// What enrolment works with.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    pub tables: &'a Tables,
    pub pins: &'a Pins,
    /// With the cookie of the pod.
    pub settings: Settings,
}

/// A pod's own instance of the program, loaded and not attached yet.
#[derive(Debug)]
pub struct Loaded {
    program: OwnedFd,
    id: u32,
}

/// An enrolled pod.
#[derive(Debug)]
pub struct Enrolled {
    cookie: u64,
    netns: OwnedFd,
    netns_inode: u64,
    program: OwnedFd,
    program_id: u32,
    link: OwnedFd,
}

/// Makes slots local in the pod. May wait for an address that the kernel still checks.
pub fn add_routes(pod: &PodSpec<'_>) -> Result<(), KernelError> {
    netns::inside(pod.netns, || {
        if netns::current_cookie()? != pod.cookie {
            return Err(io::Error::other("the namespace has another cookie"));
        }
        netns::add_slot_routes(pod.ips)
    })
    .map_err(|source| refused(pod.cookie, format!("cannot add the routes of slots: {source}")))
}

/// Loads the pod's program and gives it the pod's listeners.
pub fn load(pod: &PodSpec<'_>, context: &Context<'_>, loader: &mut Loader) -> Result<Loaded, KernelError> {
    let folder = context.pins.pod(pod.cookie);
    fs::create_dir_all(&folder).map_err(|source| failed("mkdir", &folder, source))?;
    let map = folder.join("listeners");
    discard_foreign_listeners(&map)?;
    let mut object = loader.open(&context.settings, Some(&map))?;
    set_listeners(pod, &map).map_err(|source| bpf("write", row::maps::LISTENERS, source))?;

    let failed = |source| bpf("load", "pod_lookup", source);
    let program: &mut SkLookup =
        object.program_mut("pod_lookup").ok_or_else(|| missing("pod_lookup"))?.try_into().map_err(failed)?;
    program.load().map_err(failed)?;
    let program = program
        .fd()
        .map_err(failed)?
        .as_fd()
        .try_clone_to_owned()
        .map_err(|source| bpf("dup", "pod_lookup", source))?;
    let id = sys::program_id(program.as_fd()).map_err(|source| bpf("ask about", "pod_lookup", source))?;
    Ok(Loaded { program, id })
}

impl Enrolled {
    /// Enrols a pod, or renews what an earlier agent or an earlier call set up.
    pub fn enrol(pod: &PodSpec<'_>, row: &Pod, loaded: Loaded, context: &Context<'_>) -> Result<Self, KernelError> {
        let Context { tables, pins, .. } = *context;
        let cookie = pod.cookie;
        let refuse = |reason: String| refused(cookie, reason);
        let netns_inode = inode(pod.netns).map_err(|source| refuse(format!("cannot stat its namespace: {source}")))?;
        let netns =
            pod.netns.try_clone_to_owned().map_err(|source| refuse(format!("cannot dup its namespace: {source}")))?;
        tighten(tables, cookie, pod.inbound).map_err(|source| bpf("write", row::maps::PODS, source))?;
        set_ports(tables, cookie, pod.inbound)?;
        add(&tables.slot_use, row::maps::SLOT_USE, cookie, &SlotUse::default())?;
        add(&tables.slot_freed, row::maps::SLOT_FREED, cookie, &0)?;
        if row.flags & POD_UDP_DENY != 0 {
            add_peers(tables, cookie).map_err(|source| bpf("write", row::maps::UDP_PEERS, source))?;
        }
        // What is captured already stays as it is until the last step: a closed pod must not pass anything on its way.
        add(&tables.pods, row::maps::PODS, cookie, &Pod { flags: row.flags | POD_INBOUND_ONLY, ..*row })?;

        let pin = pins.pod(cookie).join("link");
        let relative = Path::new("pods").join(format!("{cookie:016x}"));
        let Loaded { program, id: program_id } = loaded;
        let link = links::adopt(pins, &relative, "link", &pin, program.as_fd(), netns_inode, SK_LOOKUP)
            .map_or_else(|| links::create(&pin, program.as_fd(), pod.netns, SK_LOOKUP), Ok)
            .map_err(|source| bpf("attach", "pod_lookup", source))?;
        tables.pods.set(&cookie, row, sys::ANY).map_err(|source| bpf("write", row::maps::PODS, source))?;
        Ok(Self { cookie, netns, netns_inode, program, program_id, link })
    }

    /// The pod's namespace and the id of its program.
    pub fn place(&self) -> (BorrowedFd<'_>, u32) {
        (self.netns.as_fd(), self.program_id)
    }

    /// Attaches again what somebody detached.
    pub fn verify(&mut self, pins: &Pins) -> Result<Option<Repair>, KernelError> {
        let name = || format!("pods/{:016x}/link", self.cookie);
        let pin = pins.pod(self.cookie).join("link");
        let failed = |source| bpf("attach", "pod_lookup", source);
        let info = sys::link_info(self.link.as_fd()).map_err(failed)?;
        if info.target != self.netns_inode {
            let _ = fs::create_dir_all(pins.pod(self.cookie));
            self.link = links::create(&pin, self.program.as_fd(), self.netns.as_fd(), SK_LOOKUP).map_err(failed)?;
            return Ok(Some(Repair { name: name(), what: "was detached and is attached again" }));
        }
        if info.program != self.program_id {
            sys::link_update(self.link.as_fd(), self.program.as_fd()).map_err(failed)?;
            return Ok(Some(Repair { name: name(), what: "ran another program and was set back" }));
        }
        if !links::is_pin_of(&pin, self.program_id) {
            let _ = fs::create_dir_all(pins.pod(self.cookie));
            links::replace_pin(&pin, self.link.as_fd()).map_err(failed)?;
            return Ok(Some(Repair { name: name(), what: "was not pinned and is again" }));
        }
        Ok(None)
    }
}

/// First half of a pod's release, enrolled by us or left by another agent: its connects are left alone, then what comes in.
pub fn detach(cookie: u64, enrolled: Option<Enrolled>, tables: &Tables, pins: &Pins) -> Result<(), KernelError> {
    if let Ok(Some(mut row)) = tables.pods.get(&cookie) {
        row.flags |= POD_INBOUND_ONLY;
        let _ = tables.pods.set(&cookie, &row, sys::ANY);
    }
    let mut removed = Ok(());
    let mut folders = vec![pins.pod(cookie)];
    folders.extend(pins.other_versions().iter().map(|version| version.join("pods").join(format!("{cookie:016x}"))));
    for folder in folders {
        // The link must have ended, not only be about to, when the row goes: a program without a row drops everything.
        detach_links(&folder);
        removed = removed.and(remove_tree(&folder).map_err(|source| failed("remove", &folder, source)));
    }
    if let Some(enrolled) = enrolled {
        let _ = sys::link_detach(enrolled.link.as_fd());
        // A namespace that is going away takes its routes with it.
        let _ = netns::inside(enrolled.netns.as_fd(), netns::remove_slot_routes);
    }
    removed
}

/// Has every new connection of a pod refused, until it is enrolled again or released. Fine if it is not captured.
pub fn close(cookie: u64, tables: &Tables, setting: Setting) -> io::Result<()> {
    let Some(row) = tables.pods.get(&cookie)? else { return Ok(()) };
    let flags = closed_row(cookie, setting).flags | row.flags & POD_REGISTRY_ONLY;
    tables.pods.set(&cookie, &Pod { flags, ..row }, sys::ANY)
}

/// The row of a pod that has none of this version. Of a closed pod no policy is known: where datagrams are refused, it takes none on any port.
pub fn closed_row(cookie: u64, setting: Setting) -> Pod {
    Pod { cookie, flags: with_setting(POD_CLOSED | POD_STRICT | POD_UNDECIDED, setting), ..Pod::default() }
}

fn refused(cookie: u64, reason: String) -> KernelError {
    KernelError::Pod { cookie, reason }
}

/// The place for those that the pod sends datagrams to.
pub fn add_peers(tables: &Tables, cookie: u64) -> io::Result<()> {
    insert(&tables.udp_peers, cookie, &Peers::NONE)
}

fn add<V: aya::Pod>(table: &Table<u64, V>, name: &'static str, cookie: u64, value: &V) -> Result<(), KernelError> {
    insert(table, cookie, value).map_err(|source| bpf("write", name, source))
}

/// Inserts a row unless there is one.
fn insert<V: aya::Pod>(table: &Table<u64, V>, cookie: u64, value: &V) -> io::Result<()> {
    match table.set(&cookie, value, sys::NOEXIST) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

/// The pod's row, if it can have one.
pub fn row(pod: &PodSpec<'_>, limits: &Limits) -> Result<Pod, KernelError> {
    check(pod).map_err(|reason| refused(pod.cookie, reason))?;
    let mut row = Pod {
        cookie: pod.cookie,
        flags: with_outbound(with_mode(0, pod.inbound), pod.registry_only),
        slot_quota: limits.slots_per_pod,
        slot_share: limits.shares().0,
        outbound_port: mesh_common::ports::OUTBOUND,
        ..Pod::default()
    };
    fill(&mut row.addresses, pod.ips);
    fill(&mut row.nameservers, pod.nameservers);
    set_own_ports(&mut row, pod).map_err(|reason| refused(pod.cookie, reason))?;
    Ok(row)
}

fn check(pod: &PodSpec<'_>) -> Result<(), String> {
    if pod.ips.is_empty() || pod.ips.len() > row::POD_ADDRESSES {
        return Err(format!("has {} addresses; 1 to {} are supported", pod.ips.len(), row::POD_ADDRESSES));
    }
    if pod.nameservers.len() > row::NAMESERVERS {
        return Err(format!("has {} nameservers; at most {} are supported", pod.nameservers.len(), row::NAMESERVERS));
    }
    if let Some(ip) = pod.ips.iter().find(|ip| ip.is_unspecified() || ip.is_loopback() || ip.is_multicast()) {
        return Err(format!("{ip} cannot be a pod's address"));
    }
    let host = File::open("/proc/1/ns/net").and_then(|host| inode(host.as_fd()));
    if host.is_ok_and(|host| inode(pod.netns).is_ok_and(|pod| pod == host)) {
        return Err("its network namespace is the host's".to_owned());
    }
    Ok(())
}

/// The kernel steers to any socket that it is given, also to one of another namespace, where the connection would then be lost.
fn set_own_ports(row: &mut Pod, pod: &PodSpec<'_>) -> Result<(), String> {
    let unreadable = |source: io::Error| format!("cannot read its listeners: {source}");
    let mut own = row.own_ports.iter_mut();
    let mut seen = Vec::new();
    for (listener, socket) in listeners(pod) {
        if netns::socket_cookie(socket).map_err(unreadable)? != pod.cookie {
            return Err(format!("its listener {listener:?} is of another network namespace"));
        }
        let port = socket_port(socket).map_err(unreadable)?;
        if matches!(listener, Listener::DnsUdpV4 | Listener::DnsUdpV6) {
            row.dns_port = port;
        }
        if !seen.contains(&port) {
            seen.push(port);
            *own.next().ok_or_else(|| format!("its listeners are on more than {} ports", row::OWN_PORTS))? = port;
        }
    }
    Ok(())
}

fn fill(slots: &mut [Address], ips: &[IpAddr]) {
    for (slot, ip) in slots.iter_mut().zip(ips) {
        *slot = (*ip).into();
    }
}

fn listeners<'a>(pod: &PodSpec<'a>) -> impl Iterator<Item = (Listener, BorrowedFd<'a>)> {
    let fds = pod.listeners;
    [
        (Listener::OutboundV4, fds.outbound_v4),
        (Listener::OutboundV6, fds.outbound_v6),
        (Listener::PlaintextV4, fds.plaintext_v4),
        (Listener::PlaintextV6, fds.plaintext_v6),
        (Listener::HboneV4, fds.hbone_v4),
        (Listener::HboneV6, fds.hbone_v6),
        (Listener::DnsUdpV4, fds.dns_udp_v4),
        (Listener::DnsUdpV6, fds.dns_udp_v6),
        (Listener::DnsTcpV4, fds.dns_tcp_v4),
        (Listener::DnsTcpV6, fds.dns_tcp_v6),
    ]
    .into_iter()
    .filter_map(|(listener, fd)| Some((listener, fd?)))
}

/// A pinned listener map of an earlier agent is kept, whatever else lies there goes.
fn discard_foreign_listeners(path: &Path) -> Result<(), KernelError> {
    const SOCKMAP: u32 = 15;
    if !path.exists() {
        return Ok(());
    }
    let shape = sys::MapInfo { kind: SOCKMAP, key: 4, value: 4, max: row::LISTENERS };
    if sys::open_pin(path).and_then(|map| sys::map_info(map.as_fd())).is_ok_and(|found| found == shape) {
        return Ok(());
    }
    fs::remove_file(path).map_err(|source| failed("unlink", path, source))
}

fn set_listeners(pod: &PodSpec<'_>, map: &Path) -> io::Result<()> {
    let table: Table<u32, u32> = sys::open_pin(map).and_then(Table::new)?;
    for (listener, socket) in listeners(pod) {
        if listener == Listener::DnsUdpV6 {
            // An answer leaves from a slot, which is local by a route but is nobody's address; IPv6 asks for this first.
            socket2::SockRef::from(&socket).set_freebind_v6(true)?;
        }
        table.set(&(listener as u32), &(socket.as_raw_fd() as u32), sys::ANY)?;
    }
    let given: Vec<u32> = listeners(pod).map(|(listener, _)| listener as u32).collect();
    for index in (0..row::LISTENERS).filter(|index| !given.contains(index)) {
        // EINVAL says that the index was empty.
        let _ = table.delete(&index);
    }
    Ok(())
}

fn socket_port(socket: BorrowedFd<'_>) -> io::Result<u16> {
    let address = socket2::SockRef::from(&socket).local_addr()?;
    address.as_socket().map(|address| address.port()).ok_or_else(|| io::Error::other("not an internet socket"))
}

fn inode(file: BorrowedFd<'_>) -> io::Result<u64> {
    Ok(File::from(file.try_clone_to_owned()?).metadata()?.ino())
}

#[cfg(test)]
#[expect(non_snake_case, reason = "tests carry the ids of their rows")]
mod tests {
    use super::*;

    #[test]
    fn hardening_F25_a_row_of_which_nothing_is_known_refuses_datagrams_where_they_are_refused() {
        let closed = POD_CLOSED | POD_STRICT | POD_UNDECIDED;
        let deny_udp = Setting { deny_udp: true, ..Setting::default() };
        assert_eq!(closed_row(7, Setting::default()), Pod { cookie: 7, flags: closed, ..Pod::default() });
        assert_eq!(closed_row(7, deny_udp), Pod { cookie: 7, flags: closed | POD_UDP_DENY, ..Pod::default() });
    }
}
