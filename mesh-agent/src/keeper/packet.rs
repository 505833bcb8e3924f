//! One packet with file descriptors over a Unix SOCK_SEQPACKET socket. Used between keeper and worker and by the enrolment server.
//!
//! Every descriptor that arrives is owned at once, whatever else is wrong with the packet, so that none can leak.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Longest packet either protocol uses.
pub const MAX_PACKET: usize = 64 * 1024;
/// Descriptors that the kernel allows in one packet (SCM_MAX_FD).
const MAX_FDS: usize = 253;
/// Room for the control message that carries them, in u64 so that it is aligned for cmsghdr.
const CONTROL: usize = (64 + MAX_FDS * size_of::<libc::c_int>()) / 8;

/// What was received.
#[derive(Debug)]
pub struct Packet {
    /// The bytes; never longer than [`MAX_PACKET`].
    pub bytes: Vec<u8>,
    /// The descriptors, all close-on-exec.
    pub fds: Vec<OwnedFd>,
    /// The packet or its descriptors did not fit: what is here is not what was sent.
    pub truncated: bool,
}

/// Receives one packet; `None` when the peer has closed. On a non-blocking socket fails with `WouldBlock`.
pub fn receive(socket: BorrowedFd<'_>) -> io::Result<Option<Packet>> {
    let mut bytes = vec![0u8; MAX_PACKET];
    let mut control = [MaybeUninit::<u64>::zeroed(); CONTROL];
    let mut vector = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    // SAFETY: msghdr is plain data for which all zeroes are valid.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &mut vector;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control);
    let length = loop {
        // SAFETY: message points at buffers of the stated sizes that live until after the call.
        let length = unsafe { libc::recvmsg(socket.as_raw_fd(), &mut message, libc::MSG_CMSG_CLOEXEC) };
        if length >= 0 {
            break length as usize;
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    };
    let fds = owned_fds(&message);
    // A SEQPACKET peer can send an empty packet, but neither protocol has one.
    if length == 0 && fds.is_empty() && message.msg_flags & libc::MSG_CTRUNC == 0 {
        return Ok(None);
    }
    bytes.truncate(length);
    bytes.shrink_to_fit();
    Ok(Some(Packet { bytes, fds, truncated: message.msg_flags & (libc::MSG_TRUNC | libc::MSG_CTRUNC) != 0 }))
}

/// Sends one packet whole.
pub fn send(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    if bytes.len() > MAX_PACKET || fds.len() > MAX_FDS {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "packet too large"));
    }
    let raw: Vec<libc::c_int> = fds.iter().map(|fd| fd.as_raw_fd()).collect();
    let mut control = [MaybeUninit::<u64>::zeroed(); CONTROL];
    let mut vector = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    // SAFETY: msghdr is plain data for which all zeroes are valid.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &mut vector;
    message.msg_iovlen = 1;
    if !raw.is_empty() {
        let payload = size_of_val(raw.as_slice());
        message.msg_control = control.as_mut_ptr().cast();
        // SAFETY: pure arithmetic on a size.
        message.msg_controllen = unsafe { libc::CMSG_SPACE(payload as u32) } as usize;
        // SAFETY: msg_control points at a zeroed, aligned buffer larger than msg_controllen, so a first header exists and fits the payload.
        unsafe {
            let header = libc::CMSG_FIRSTHDR(&message);
            (*header).cmsg_level = libc::SOL_SOCKET;
            (*header).cmsg_type = libc::SCM_RIGHTS;
            (*header).cmsg_len = libc::CMSG_LEN(payload as u32) as usize;
            std::ptr::copy_nonoverlapping(raw.as_ptr().cast::<u8>(), libc::CMSG_DATA(header), payload);
        }
    }
    loop {
        // SAFETY: message points at buffers of the stated sizes that live until after the call.
        let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &message, libc::MSG_NOSIGNAL) };
        if sent >= 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// Takes ownership of every descriptor in the control buffer.
fn owned_fds(message: &libc::msghdr) -> Vec<OwnedFd> {
    let mut fds = Vec::new();
    // SAFETY: the kernel filled msg_control and set msg_controllen to what it wrote; the CMSG macros stay inside.
    let mut header = unsafe { libc::CMSG_FIRSTHDR(message) };
    while !header.is_null() {
        // SAFETY: header is not null and inside the control buffer.
        let head = unsafe { std::ptr::read_unaligned(header) };
        if head.cmsg_level == libc::SOL_SOCKET && head.cmsg_type == libc::SCM_RIGHTS {
            // SAFETY: pure arithmetic on a size.
            let payload = head.cmsg_len - unsafe { libc::CMSG_LEN(0) } as usize;
            for index in 0..payload / size_of::<libc::c_int>() {
                // SAFETY: the payload holds that many descriptor numbers, which the kernel has just opened for us alone.
                fds.push(unsafe {
                    let number = libc::CMSG_DATA(header).cast::<libc::c_int>().add(index).read_unaligned();
                    OwnedFd::from_raw_fd(number)
                });
            }
        }
        // SAFETY: header came from the same message.
        header = unsafe { libc::CMSG_NXTHDR(message, header) };
    }
    fds
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

    use super::*;

    fn pair() -> (OwnedFd, OwnedFd) {
        socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap()
    }

    fn inode(fd: BorrowedFd<'_>) -> u64 {
        nix::sys::stat::fstat(fd).unwrap().st_ino
    }

    #[test]
    fn bytes_and_descriptors_arrive_together() {
        let (a, b) = pair();
        let file = tempfile::tempfile().unwrap();
        let many: Vec<BorrowedFd<'_>> = (0..MAX_FDS).map(|_| file.as_fd()).collect();
        for count in [0, 1, 2, 11, MAX_FDS] {
            send(a.as_fd(), b"hello", &many[..count]).unwrap();
            let packet = receive(b.as_fd()).unwrap().unwrap();
            assert_eq!(
                (packet.bytes.as_slice(), packet.fds.len(), packet.truncated),
                (b"hello".as_slice(), count, false)
            );
            assert!(packet.fds.iter().all(|fd| inode(fd.as_fd()) == inode(file.as_fd())));
        }
        drop(a);
        assert!(receive(b.as_fd()).unwrap().is_none());
    }

    #[test]
    fn hardening_b130_an_oversize_packet_is_marked() {
        let (a, b) = pair();
        let long = vec![1u8; MAX_PACKET + 1];
        nix::sys::socket::send(a.as_raw_fd(), &long, nix::sys::socket::MsgFlags::empty()).unwrap();
        let packet = receive(b.as_fd()).unwrap().unwrap();
        assert!(packet.truncated);
        assert_eq!(packet.bytes.len(), MAX_PACKET);
        assert!(send(a.as_fd(), &long, &[]).is_err());
    }
}
