//! One question to the agent over its socket. Called by `run`.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use mesh_proto::convert::{CniAnswer, CniRequest, MAX_CNI_BYTES, cni_answer, encode_cni_request};
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, connect, getsockopt, recv, sendmsg,
    setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;

/// An agent that takes longer than this to take a connection hangs.
const CONNECT: Duration = Duration::from_secs(2);
/// What an answer may take longer than the agent was told to.
const GRACE: Duration = Duration::from_secs(2);

/// Asks; `netns` goes with the question. The error says why there is no answer.
pub fn ask(socket: &Path, request: &CniRequest, netns: Option<&File>) -> Result<CniAnswer, String> {
    let answer = exchange(socket, request, netns).map_err(|error| match error.kind() {
        // What an expired timeout of a socket looks like.
        io::ErrorKind::WouldBlock => "no answer in time".to_owned(),
        _ => format!("{}: {error}", socket.display()),
    })?;
    cni_answer(&answer).map_err(|error| format!("{}: not an answer: {error}", socket.display()))
}

fn exchange(path: &Path, request: &CniRequest, netns: Option<&File>) -> io::Result<Vec<u8>> {
    let fd: OwnedFd = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?;
    let limit = |limit: Duration| TimeVal::new(limit.as_secs() as i64, limit.subsec_micros().into());
    setsockopt(&fd, sockopt::SendTimeout, &limit(CONNECT))?;
    setsockopt(&fd, sockopt::ReceiveTimeout, &limit(request.patience + GRACE))?;
    connect(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
    if getsockopt(&fd, sockopt::PeerCredentials)?.uid() != 0 {
        return Err(io::Error::other("not root's"));
    }
    let bytes = encode_cni_request(request);
    let numbers: Vec<i32> = netns.iter().map(|file| file.as_raw_fd()).collect();
    let rights = [ControlMessage::ScmRights(&numbers)];
    let rights = if numbers.is_empty() { &[][..] } else { &rights[..] };
    sendmsg::<()>(fd.as_raw_fd(), &[io::IoSlice::new(&bytes)], rights, MsgFlags::MSG_NOSIGNAL, None)?;
    let mut answer = vec![0; MAX_CNI_BYTES];
    let length = recv(fd.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    if length == 0 {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "closed without an answer"));
    }
    answer.truncate(length);
    Ok(answer)
}
