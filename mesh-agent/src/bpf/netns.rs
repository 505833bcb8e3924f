//! Work inside a pod's network namespace: its cookie, and the routes that make slots local. Each call runs on a thread of its own
//! that dies afterwards, so no other thread ever changes namespace, whatever fails.

use std::{
    fs::{self, File},
    io,
    net::{IpAddr, Ipv4Addr},
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use mesh_common::slot;

const SO_NETNS_COOKIE: libc::c_int = 71;
/// Index of the loopback device in every namespace.
const LOOPBACK: u32 = 1;

/// The cookie of a network namespace: never reused while the machine runs.
pub fn netns_cookie(netns: BorrowedFd<'_>) -> io::Result<u64> {
    inside(netns, current_cookie)
}

/// Runs a function on a thread that has entered the namespace.
pub(crate) fn inside<T: Send>(netns: BorrowedFd<'_>, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("netns".into()).spawn_scoped(scope, move || {
            // SAFETY: the descriptor is valid; only this thread changes namespace.
            if unsafe { libc::setns(netns.as_raw_fd(), libc::CLONE_NEWNET) } != 0 {
                return Err(io::Error::last_os_error());
            }
            work()
        })?;
        thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread inside the namespace panicked")))
    })
}

/// The cookie of the calling thread's namespace.
pub(crate) fn current_cookie() -> io::Result<u64> {
    let socket = socket(libc::AF_INET, libc::SOCK_DGRAM, 0)?;
    socket_cookie(socket.as_fd())
}

/// The cookie of the namespace that a socket belongs to.
pub(crate) fn socket_cookie(socket: BorrowedFd<'_>) -> io::Result<u64> {
    let mut cookie = 0u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: value and length are valid for the call.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if result == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}

/// Makes the slots of both families local in the calling thread's namespace, with the pod's addresses as preferred source.
pub(crate) fn add_slot_routes(ips: &[IpAddr]) -> io::Result<()> {
    for source in sources(ips) {
        // A fresh IPv6 address is tentative for a second or two, and no preferred source meanwhile.
        let deadline = Instant::now() + Duration::from_secs(3);
        loop {
            match slot_route(libc::RTM_NEWROUTE, Some(source), source.is_ipv4()) {
                Err(error)
                    if error.raw_os_error() == Some(libc::EINVAL) && source.is_ipv6() && Instant::now() < deadline =>
                {
                    thread::sleep(Duration::from_millis(20));
                }
                other => break other?,
            }
        }
    }
    Ok(())
}

/// Undoes [`add_slot_routes`]; missing routes are fine.
pub(crate) fn remove_slot_routes() -> io::Result<()> {
    for v4 in [true, false] {
        match slot_route(libc::RTM_DELROUTE, None, v4) {
            Err(error)
                if !matches!(error.raw_os_error(), Some(libc::ESRCH | libc::EAFNOSUPPORT | libc::EOPNOTSUPP)) =>
            {
                return Err(error);
            }
            _ => {}
        }
    }
    Ok(())
}

/// The same in those namespaces of a folder that have one of the cookies. What is no namespace, or goes meanwhile, is passed over.
pub(crate) fn remove_all_slot_routes(folder: &Path, cookies: &[u64]) -> io::Result<()> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let path = entry?.path();
        // A namespace looks like a file; what is a pipe, say, is not waited for.
        if !fs::metadata(&path).is_ok_and(|metadata| metadata.is_file()) {
            continue;
        }
        let Ok(netns) = File::open(&path) else { continue };
        let work = || if cookies.contains(&current_cookie()?) { remove_slot_routes() } else { Ok(()) };
        match inside(netns.as_fd(), work) {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
            Err(error) => return Err(io::Error::new(error.kind(), format!("{}: {error}", path.display()))),
        }
    }
    Ok(())
}

/// The first address of each family.
fn sources(ips: &[IpAddr]) -> impl Iterator<Item = IpAddr> {
    let first = |v4: bool| ips.iter().copied().find(move |ip| ip.is_ipv4() == v4);
    [first(true), first(false)].into_iter().flatten()
}

fn slot_route(kind: u16, source: Option<IpAddr>, v4: bool) -> io::Result<()> {
    let (family, network, prefix) = if v4 {
        (libc::AF_INET, &slot::V4_NETWORK[..], slot::V4_PREFIX)
    } else {
        (libc::AF_INET6, &slot::V6_NETWORK[..], slot::V6_PREFIX)
    };
    let flags = if kind == libc::RTM_NEWROUTE { libc::NLM_F_CREATE | libc::NLM_F_REPLACE } else { 0 };
    // rtmsg: family, lengths of destination and source, tos, table, protocol, scope, type, flags.
    let mut body = vec![family as u8, prefix, 0, 0, libc::RT_TABLE_LOCAL, libc::RTPROT_STATIC];
    body.extend([if v4 { libc::RT_SCOPE_HOST } else { libc::RT_SCOPE_UNIVERSE }, libc::RTN_LOCAL]);
    body.extend([0u8; 4]);
    attribute(&mut body, libc::RTA_DST, network);
    attribute(&mut body, libc::RTA_OIF, &LOOPBACK.to_ne_bytes());
    match source {
        Some(IpAddr::V4(ip)) => attribute(&mut body, libc::RTA_PREFSRC, &ip.octets()),
        Some(IpAddr::V6(ip)) => attribute(&mut body, libc::RTA_PREFSRC, &ip.octets()),
        None => {}
    }
    request(kind, flags, &body)
}

fn attribute(message: &mut Vec<u8>, kind: u16, value: &[u8]) {
    message.extend(((value.len() + 4) as u16).to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(value);
    message.resize(message.len().next_multiple_of(4), 0);
}

/// Brings the loopback device of the calling thread's namespace up.
pub(crate) fn loopback_up() -> io::Result<()> {
    // ifinfomsg: family, padding, type, index, flags, mask of flags.
    let mut body = vec![0u8; 4];
    body.extend(LOOPBACK.to_ne_bytes());
    body.extend((libc::IFF_UP as u32).to_ne_bytes());
    body.extend((libc::IFF_UP as u32).to_ne_bytes());
    request(libc::RTM_NEWLINK, 0, &body)
}

/// Adds an address to the loopback device of the calling thread's namespace.
pub(crate) fn add_loopback_address(ip: Ipv4Addr) -> io::Result<()> {
    // ifaddrmsg: family, prefix length, flags, scope, index.
    let mut body = vec![libc::AF_INET as u8, 32, 0, 0];
    body.extend(LOOPBACK.to_ne_bytes());
    attribute(&mut body, libc::IFA_LOCAL, &ip.octets());
    attribute(&mut body, libc::IFA_ADDRESS, &ip.octets());
    request(libc::RTM_NEWADDR, libc::NLM_F_CREATE | libc::NLM_F_REPLACE, &body)
}

/// Sends one request and reads its acknowledgement.
fn request(kind: u16, flags: libc::c_int, body: &[u8]) -> io::Result<()> {
    // nlmsghdr: length, type, flags, sequence, port.
    let mut message = Vec::with_capacity(16 + body.len());
    message.extend((16 + body.len() as u32).to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(((libc::NLM_F_REQUEST | libc::NLM_F_ACK | flags) as u16).to_ne_bytes());
    message.extend([0u8; 8]);
    message.extend(body);
    let socket = socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_ROUTE)?;
    // SAFETY: the buffer is valid for its length.
    let sent = unsafe { libc::send(socket.as_raw_fd(), message.as_ptr().cast(), message.len(), 0) };
    if sent < 0 {
        return Err(io::Error::last_os_error());
    }
    let mut answer = [0u8; 1024];
    // SAFETY: as above.
    let received = unsafe { libc::recv(socket.as_raw_fd(), answer.as_mut_ptr().cast(), answer.len(), 0) };
    if received < 20 {
        return Err(io::Error::last_os_error());
    }
    match i32::from_ne_bytes([answer[16], answer[17], answer[18], answer[19]]) {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(-error)),
    }
}

fn socket(family: libc::c_int, kind: libc::c_int, protocol: libc::c_int) -> io::Result<OwnedFd> {
    // SAFETY: no pointers are passed.
    let fd = unsafe { libc::socket(family, kind | libc::SOCK_CLOEXEC, protocol) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel returned a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
