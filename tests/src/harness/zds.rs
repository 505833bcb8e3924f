//! The socket by which a real ztunnel learns of pods (ZDS): one protobuf message per packet, one descriptor with an add.
//! Used by the bench to measure beside two of them.
use super::pod::Pod;
use anyhow::{Context, Result};
use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, accept, bind, listen, recv,
    sendmsg, socket,
};
use std::io::IoSlice;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// One length-delimited protobuf field; all are shorter than 128 bytes.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![number << 3 | 2, bytes.len() as u8];
    out.extend_from_slice(bytes);
    out
}

/// Listens for one ztunnel and tells it about one pod; the connection stays open for the life of the process.
pub fn serve(path: &std::path::Path, pod: &Pod) -> Result<()> {
    let listener =
        socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).context("open socket")?;
    bind(listener.as_raw_fd(), &UnixAddr::new(path).context("socket path")?).context("bind ZDS socket")?;
    listen(&listener, Backlog::new(4).context("backlog")?).context("listen")?;
    let info =
        [field(1, pod.name.as_bytes()), field(2, pod.namespace.as_bytes()), field(3, pod.service_account.as_bytes())]
            .concat();
    let add = field(1, &[field(1, pod.uid.as_bytes()), field(2, &info)].concat());
    let netns = pod.netns.clone();
    std::thread::spawn(move || -> Result<()> {
        loop {
            let raw = accept(listener.as_raw_fd())?;
            // SAFETY: `accept` has just returned this descriptor, and nothing else owns it.
            let peer = unsafe { OwnedFd::from_raw_fd(raw) };
            let mut buffer = [0; 1024];
            recv(peer.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
            let rights = [netns.fd().as_raw_fd()];
            sendmsg::<()>(
                peer.as_raw_fd(),
                &[IoSlice::new(&add)],
                &[ControlMessage::ScmRights(&rights)],
                MsgFlags::empty(),
                None,
            )?;
            recv(peer.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
            sendmsg::<()>(peer.as_raw_fd(), &[IoSlice::new(&[0x1a, 0])], &[], MsgFlags::empty(), None)?;
            while recv(peer.as_raw_fd(), &mut buffer, MsgFlags::empty())? > 0 {}
        }
    });
    Ok(())
}
