//! The leader's end of its heirs: the socket `keeper.sock` in the run folder, which only root reaches, and who is connected to it. Heirs get copies of all
//! that is held and of every change. Used by [`super::lead`]; who of them is next is decided by [`super::succession`].

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, accept4, bind, connect, getsockopt, listen, socket, sockopt,
};

use super::packet;
use super::store::{Message, Store};
use super::succession::{Event, HeirId};

/// File name of the socket in the run folder.
pub const SOCKET: &str = "keeper.sock";
/// Keepers that may wait at once: two of a pod, and two pods in a rollout; and who only asks.
const MOST: usize = 16;
/// How long an heir may leave its packets unread, in milliseconds.
const PATIENCE: u16 = 1000;

/// Everybody who waits.
#[derive(Debug)]
pub struct Heirs {
    listener: OwnedFd,
    links: BTreeMap<HeirId, Link>,
    next: HeirId,
}

#[derive(Debug)]
struct Link {
    socket: OwnedFd,
    /// It has said who it is, and gets what is held.
    follows: bool,
}

/// Connects to whoever leads.
pub fn dial(run_dir: &Path) -> io::Result<OwnedFd> {
    let fd = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)?;
    connect(fd.as_raw_fd(), &UnixAddr::new(&run_dir.join(SOCKET))?)?;
    is_own(&fd)?;
    Ok(fd)
}

/// Nobody else is told anything, and nobody else is believed.
fn is_own(socket: &OwnedFd) -> io::Result<()> {
    let peer = getsockopt(socket, sockopt::PeerCredentials)?.uid();
    match peer == nix::unistd::geteuid().as_raw() {
        true => Ok(()),
        false => Err(io::Error::new(io::ErrorKind::PermissionDenied, format!("a process of user {peer}"))),
    }
}

impl Heirs {
    /// Listens in place of a leader before. The caller holds the lock of the run folder.
    pub fn listen(run_dir: &Path) -> io::Result<Heirs> {
        let path = run_dir.join(SOCKET);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let listener = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?;
        bind(listener.as_raw_fd(), &UnixAddr::new(&path)?)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
        listen(&listener, Backlog::new(MOST as i32)?)?;
        Ok(Heirs { listener, links: BTreeMap::new(), next: 1 })
    }

    /// The same for a leader that goes on after another one listened.
    pub fn listen_again(&mut self, run_dir: &Path) -> io::Result<()> {
        self.listener = Heirs::listen(run_dir)?.listener;
        Ok(())
    }

    /// What to poll.
    pub fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        std::iter::once(self.listener.as_fd()).chain(self.links.values().map(|link| link.socket.as_fd()))
    }

    /// Takes in who connects and what they say.
    pub fn serve(&mut self, own: &str, past: &[String], store: &Store) -> Vec<Event> {
        self.accept();
        let mut events = Vec::new();
        for id in self.links.keys().copied().collect::<Vec<_>>() {
            while let Some(link) = self.links.get_mut(&id) {
                match hear(&link.socket) {
                    Ok(None) => break,
                    Ok(Some(Message::Taken)) if link.follows => events.push(Event::Taken(id)),
                    Ok(Some(Message::Hello { pod })) if !link.follows => {
                        match welcome(&link.socket, own, past, Some(store)) {
                            Ok(()) => {
                                link.follows = true;
                                events.push(Event::Joined(id, pod));
                            }
                            Err(error) => events.extend(self.lose(id, &error)),
                        }
                    }
                    Ok(Some(Message::Ask)) => {
                        let _ = welcome(&link.socket, own, past, None);
                        self.links.remove(&id);
                    }
                    Ok(Some(_)) => events.extend(self.lose(id, &io::Error::other("a packet out of place"))),
                    Err(error) => events.extend(self.lose(id, &error)),
                }
            }
        }
        events
    }

    /// Tells all of them, with copies of the descriptors.
    pub fn mirror(&mut self, message: &Message, fds: &[BorrowedFd<'_>]) -> Vec<Event> {
        let ids: Vec<HeirId> = self.links.iter().filter(|(_, link)| link.follows).map(|(id, _)| *id).collect();
        ids.into_iter()
            .filter_map(|id| self.tell(id, message, fds).err().and_then(|error| self.lose(id, &error)))
            .collect()
    }

    /// Tells one of them.
    pub fn tell(&self, id: HeirId, message: &Message, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let link = self.links.get(&id).ok_or(io::ErrorKind::NotConnected)?;
        send(&link.socket, message, fds)
    }

    /// Has nothing to do with it any more.
    pub fn drop_heir(&mut self, id: HeirId) {
        self.links.remove(&id);
    }

    fn accept(&mut self) {
        while let Ok(accepted) = accept4(self.listener.as_raw_fd(), SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC) {
            // SAFETY: accept4 returned a descriptor that nothing else owns.
            let socket = unsafe { OwnedFd::from_raw_fd(accepted) };
            if let Err(error) = is_own(&socket) {
                tracing::warn!(%error, "refused a keeper");
                continue;
            }
            if self.links.len() >= MOST {
                tracing::warn!("more keepers than there can be: refused one");
                continue;
            }
            self.links.insert(self.next, Link { socket, follows: false });
            self.next += 1;
        }
    }

    fn lose(&mut self, id: HeirId, error: &io::Error) -> Option<Event> {
        let link = self.links.remove(&id)?;
        if error.kind() != io::ErrorKind::UnexpectedEof {
            tracing::warn!(%error, "lost a keeper that waits");
        }
        link.follows.then_some(Event::Left(id))
    }
}

fn welcome(socket: &OwnedFd, own: &str, past: &[String], store: Option<&Store>) -> io::Result<()> {
    send(socket, &Message::Welcome { pod: own.to_owned(), past: past.to_vec() }, &[])?;
    let Some(store) = store else { return Ok(()) };
    for (key, held) in store.entries() {
        let lasting = held.lasting.len() as u8;
        send(socket, &Message::Put { key: key.to_owned(), lasting, meta: held.meta.clone() }, &held.fds())?;
    }
    send(socket, &Message::Done, &[])
}

/// Sends to a keeper that is reading; one that does not read for a second is stuck.
pub fn send(socket: &OwnedFd, message: &Message, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let bytes = message.encode();
    loop {
        match packet::send(socket.as_fd(), &bytes, fds) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let mut writable = [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)];
                if poll(&mut writable, PATIENCE)? == 0 {
                    return Err(io::Error::new(io::ErrorKind::TimedOut, "it does not read"));
                }
            }
            result => return result,
        }
    }
}

/// The next message that carries no descriptors, if one is there.
fn hear(socket: &OwnedFd) -> io::Result<Option<Message>> {
    match packet::receive(socket.as_fd()) {
        Ok(Some(packet)) => Message::decode(&packet.bytes).map(Some),
        Ok(None) => Err(io::ErrorKind::UnexpectedEof.into()),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Err(io::ErrorKind::UnexpectedEof.into()),
        Err(error) => Err(error),
    }
}
